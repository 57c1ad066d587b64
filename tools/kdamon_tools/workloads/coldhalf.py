# SPDX-License-Identifier: GPL-2.0-only
"""A workload whose memory is half cold: ``python -m kdamon_tools.workloads.coldhalf --help``.

One private mapping of a file, all of it read once at the start. The first part is written repeatedly, the next part is
read repeatedly, and the rest is never accessed again. File-backed memory can be paged out on any machine, with or
without swap, and is read back from the file; written pages are anonymous and stay.
"""

from __future__ import annotations

import argparse
import mmap
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Final, TextIO

import numpy as np
from attrs import frozen

from kdamon.arrays import U8Array
from kdamon_tools.units import parse_positive, parse_seconds, parse_unsigned
from kdamon_tools.workloads.memory import MIB, PAGE
from kdamon_tools.workloads.truth import write_event

__all__ = ["Pattern", "main", "map_file", "run"]

_CHUNK: Final = 4 * MIB


@frozen
class Pattern:
    """The access pattern of the workload; sizes in bytes, times in seconds.

    :ivar rest: pause between two sweeps of both parts; 0 keeps a CPU busy.
    """

    total: int = 128 * MIB
    written: int = 0
    read: int = 64 * MIB
    duration: float = 30.0
    rest: float = 0.001


def map_file(file: BinaryIO, size: int) -> U8Array:
    """Fill ``file`` with ``size`` bytes, put them onto the disk, and map them privately, all pages present."""
    for at in range(0, size, _CHUNK):
        file.write(b"\1" * min(_CHUNK, size - at))
    file.flush()
    # Dirty pages cannot be paged out.
    os.fsync(file.fileno())
    mapping = mmap.mmap(file.fileno(), size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
    memory = np.frombuffer(mapping, np.uint8)
    memory[::PAGE].max()
    return memory


def run(pattern: Pattern, file: BinaryIO, truth: TextIO | None = None) -> None:
    """Access memory of ``file`` as ``pattern`` describes, and write the truth file.

    :raises ValueError: the parts do not fit into the total.
    :raises OSError: the file cannot be written or mapped.
    """
    if pattern.written + pattern.read > pattern.total:
        raise ValueError("the written and the read part together must fit into the total")
    memory = map_file(file, pattern.total)
    base = memory.ctypes.data
    edges = (base, base + pattern.written, base + pattern.written + pattern.read, base + pattern.total)
    written = memory[: pattern.written : PAGE]
    read = memory[pattern.written : pattern.written + pattern.read : PAGE]
    write_event(truth, "map", base, base + pattern.total, rss=_resident())
    for name, start, end in zip(("writes", "reads", "cold"), edges, edges[1:], strict=False):
        if start < end:
            write_event(truth, name, start, end)
    began = second = time.monotonic()
    sweeps = 0
    while (now := time.monotonic()) - began < pattern.duration:
        np.add(written, 1, out=written)
        if len(read):
            read.max()
        sweeps += 1
        if now - second >= 1:
            write_event(truth, "sweeps", base, edges[2], sweeps=round(sweeps / (now - second)), rss=_resident())
            second, sweeps = now, 0
        if pattern.rest:
            time.sleep(pattern.rest)
    write_event(truth, "end", base, base + pattern.total)


def _resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * PAGE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="coldhalf", description="a process of whose memory a part is never used again"
    )
    defaults = Pattern()
    parser.add_argument("--total", type=parse_positive, default=defaults.total // MIB, metavar="MIB")
    parser.add_argument("--written", type=parse_unsigned, default=defaults.written, metavar="MIB")
    parser.add_argument("--read", type=parse_unsigned, default=defaults.read // MIB, metavar="MIB")
    parser.add_argument("--seconds", type=parse_seconds, default=defaults.duration, help="end by itself after this")
    parser.add_argument(
        "--rest-us", type=parse_unsigned, default=round(defaults.rest * 1e6), metavar="US", help="pause between sweeps"
    )
    parser.add_argument(
        "--directory", type=Path, default=Path("/var/tmp"), help="on a disk; the file has no name there"
    )
    parser.add_argument(
        "--truth", type=Path, metavar="FILE", help="write the true accesses to this file, as JSON lines"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the workload as a command and return its exit status."""
    arguments = _parser().parse_args(argv)
    pattern = Pattern(
        total=arguments.total * MIB,
        written=arguments.written * MIB,
        read=arguments.read * MIB,
        duration=arguments.seconds,
        rest=arguments.rest_us / 1e6,
    )
    try:
        with ExitStack() as stack:
            file = stack.enter_context(tempfile.TemporaryFile(dir=arguments.directory))
            truth = stack.enter_context(arguments.truth.open("w", encoding="utf-8")) if arguments.truth else None
            run(pattern, file, truth)
    except (OSError, ValueError) as error:
        print(f"coldhalf: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
