# SPDX-License-Identifier: GPL-2.0-only
"""Drives ``workload.c``: a process that touches exactly the pages that a test names."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kdamon.arrays import U64Array
from tests.support.capabilities import compiler

__all__ = ["MONITOR_CPU", "TARGET_CPU", "Pages", "Workload", "build"]

#: Page numbers.
Pages = npt.NDArray[np.int64] | Sequence[int]

#: The monitor's and the target's processors: different ones, so that stale TLB entries show.
MONITOR_CPU = min(os.sched_getaffinity(0))
TARGET_CPU = max(os.sched_getaffinity(0))


def build(directory: Path, *flags: str) -> Path:
    """Compile the workload, skip the test where there is no compiler."""
    program = directory / "workload"
    source = Path(__file__).parent / "workload.c"
    subprocess.run([compiler(), "-O1", "-pthread", *flags, "-o", program, source], check=True)
    return program


class Workload:
    """A running workload, as a context.

    :param program: what :func:`build` made, or the interpreter followed by a script with the same protocol.
    """

    def __init__(self, program: list[str | Path], kind: str, pages: int, *more: str, user: int | None = None) -> None:
        self.process = subprocess.Popen(
            [*map(str, program), kind, str(pages), *more],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
        )
        os.sched_setaffinity(self.process.pid, {TARGET_CPU})
        self.greet()

    def greet(self) -> None:
        """Read where the memory is, at the start and after an exec."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the workload did not start"
        base, pages = line.split()
        self.base = int(base)
        self.pages = int(pages)

    @property
    def pid(self) -> int:
        return self.process.pid

    def __enter__(self) -> Workload:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def order(self, kind: str, pages: Pages = (), answer: int = 1) -> bytes:
        """Give an order and wait until it is carried out; ``answer`` bytes come back."""
        self.send(kind, pages)
        return self.receive(answer)

    def send(self, kind: str, pages: Pages = ()) -> None:
        """Give an order."""
        assert self.process.stdin is not None
        numbers = np.asarray(pages, dtype=np.uint32)
        view = memoryview(kind.encode() + struct.pack("<I", len(numbers)) + numbers.tobytes())
        while view:
            view = view[self.process.stdin.write(view) :]

    def receive(self, answer: int) -> bytes:
        """Wait for ``answer`` bytes."""
        assert self.process.stdout is not None
        got = b""
        while len(got) < answer:
            part = self.process.stdout.read(answer - len(got))
            assert part, "the workload ended"
            got += part
        return got

    def spoilt(self, pages: Pages) -> int:
        """How many of ``pages``, all written before, hold something else by now."""
        return int.from_bytes(self.order("c", pages, 4), "little")

    def addrs(self, pages: Pages) -> U64Array:
        """Addresses somewhere in ``pages``."""
        numbers = np.asarray(pages, dtype=np.uint64)
        found: U64Array = np.uint64(self.base) + numbers * np.uint64(4096) + numbers * np.uint64(97) % np.uint64(4096)
        return found
