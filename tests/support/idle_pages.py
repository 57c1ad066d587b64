# SPDX-License-Identifier: GPL-2.0-only
"""The kernel's files about pages, on files that stand for them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from kdamon.arrays import U64Array
from kdamon.mm.proc.kpageflags import LRU, Folios
from kdamon.mm.proc.process_files import ProcessFiles
from kdamon.mm.sampling.page_idle import Bitmap, PageIdleSpace

__all__ = ["FRAMES", "Memory", "Space"]

FRAMES = 4096


class Memory:
    """A process's page table and the kernel's files about its pages."""

    def __init__(self, directory: Path) -> None:
        self.pages: dict[int, int] = {}
        self.flags = np.full(FRAMES, LRU, dtype=np.uint64)
        self.bitmap = directory / "bitmap"
        self.bitmap.write_bytes(bytes(FRAMES // 8))
        self._kpageflags = directory / "kpageflags"
        self._kpagecount = directory / "kpagecount"
        self._kpagecount.write_bytes(np.ones(FRAMES, dtype=np.uint64).tobytes())

    def pfns(self, addrs: U64Array) -> U64Array:
        return np.array([self.pages.get(int(addr) >> 12, 0) for addr in addrs], dtype=np.uint64)

    def folios(self) -> Folios:
        self._kpageflags.write_bytes(self.flags.tobytes())
        return Folios(str(self._kpageflags), str(self._kpagecount))

    def idle(self, pfn: int) -> bool:
        return bool(self.bitmap.read_bytes()[pfn // 8] >> pfn % 8 & 1)

    def access(self, pfn: int) -> None:
        """What the kernel does to the bit of an accessed page."""
        bits = bytearray(self.bitmap.read_bytes())
        bits[pfn // 8] &= ~(1 << pfn % 8)
        self.bitmap.write_bytes(bits)


class Space:
    """A PageIdleSpace over :class:`Memory`, with everything that it needs open."""

    def __init__(self, memory: Memory) -> None:
        directory = os.open("/proc/self", os.O_RDONLY | os.O_DIRECTORY)
        self._bitmap = Bitmap(str(memory.bitmap))
        self._folios = memory.folios()
        self.space = PageIdleSpace(self._bitmap, self._folios, ProcessFiles(directory), -1, memory)
        os.close(directory)

    def __enter__(self) -> PageIdleSpace:
        return self.space

    def __exit__(self, *_: object) -> None:
        self.space.close()
        self._bitmap.close()
        self._folios.close()
