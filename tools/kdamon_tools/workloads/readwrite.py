# SPDX-License-Identifier: GPL-2.0-only
"""A workload of readers and writers: ``python -m kdamon_tools.workloads.readwrite --help``.

One anonymous mapping and three threads. The first writes part A and runs on one CPU; the second writes part B, the
third only reads part C, and both run on another CPU. Between and after the parts the mapping is idle: written once at
the start. The result of a monitor depends on the accesses that it counts: all, writes, those of a CPU or a thread.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final, TextIO

from attrs import asdict, field, frozen

from kdamon.arrays import U8Array
from kdamon_tools.units import parse_positive, parse_seconds, parse_unsigned
from kdamon_tools.workloads.memory import MIB, PAGE, map_memory
from kdamon_tools.workloads.truth import write_event

__all__ = ["Part", "Pattern", "Worker", "main", "run"]

#: The access and the CPU of each part; an idle part of the same size follows each.
_PARTS: Final = (("A", "writes", 0), ("B", "writes", 1), ("C", "reads", 1))


def _first_cpus() -> tuple[int, int]:
    cpus = sorted(os.sched_getaffinity(0))
    return cpus[0], cpus[min(1, len(cpus) - 1)]


@frozen
class Pattern:
    """The access pattern of the workload; sizes in bytes, times in seconds.

    :ivar part: size of each part, and of the idle memory after each.
    :ivar cpus: the CPU that writes A, and the CPU that writes B and reads C.
    :ivar rest: pause of a thread between two sweeps of its part; 0 keeps a CPU busy.
    """

    part: int = 20 * MIB
    cpus: tuple[int, int] = field(factory=_first_cpus)
    duration: float = 30.0
    rest: float = 0.001


@frozen
class Part:
    """One part of the memory and the thread that accesses it."""

    name: str
    does: str
    start: int
    end: int
    cpu: int
    tid: int


class Worker(threading.Thread):
    """A thread that sweeps one part, pinned to its CPU.

    :ivar sweeps: the number of complete sweeps.
    """

    def __init__(self, name: str, does: str, cpu: int, memory: U8Array) -> None:
        super().__init__(name=f"{does} {name}", daemon=True)
        self.stop = threading.Event()
        self.ready = threading.Event()
        self.sweeps = 0
        self.error: OSError | None = None
        self._writes = does == "writes"
        self._cpu = cpu
        self._pages = memory[::PAGE]
        self._rest = 0.0

    def launch(self, rest: float) -> None:
        """Start, and return when the thread runs on its CPU; it sweeps from then on.

        :raises OSError: it may not run on its CPU.
        """
        self._rest = rest
        self.start()
        self.ready.wait()
        if self.error is not None:
            raise self.error

    def run(self) -> None:
        """Sweep until it is stopped; numpy lets the other threads run meanwhile."""
        try:
            os.sched_setaffinity(0, {self._cpu})
            # What tools show of a thread; Python's own name is not the kernel's.
            Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(self.name, encoding="ascii")
        except OSError as error:
            self.error = OSError(error.errno, f"no thread of this process can run on CPU {self._cpu}")
        self.ready.set()
        pages = self._pages
        while self.error is None and not self.stop.is_set():
            if self._writes:
                pages += 1
            else:
                pages.max()
            self.sweeps += 1
            if self._rest:
                time.sleep(self._rest)


def run(pattern: Pattern, out: TextIO | None = None, truth: TextIO | None = None) -> None:
    """Run ``pattern``; print the threads and their parts to ``out``, one JSON object, and write the truth file.

    :raises OSError: EINVAL a CPU does not exist or is not allowed.
    """
    memory = map_memory(2 * len(_PARTS) * pattern.part)
    base = memory.ctypes.data
    write_event(truth, "map", base, base + len(memory))
    workers, parts = [], []
    try:
        for i, (name, does, cpu) in enumerate(_PARTS):
            begin = 2 * i * pattern.part
            worker = Worker(name, does, pattern.cpus[cpu], memory[begin : begin + pattern.part])
            worker.launch(pattern.rest)
            workers.append(worker)
            start = base + begin
            parts.append(Part(name, does, start, start + pattern.part, pattern.cpus[cpu], worker.native_id or 0))
            write_event(truth, does, parts[-1].start, parts[-1].end, cpu=parts[-1].cpu, tid=parts[-1].tid)
        if out is not None:
            about = {"pid": os.getpid(), **_range(base, base + len(memory))}
            shown = [asdict(part) | _range(part.start, part.end) for part in parts]
            print(json.dumps(about | {"parts": shown}), file=out, flush=True)
        _watch(workers, parts, pattern.duration, truth)
    finally:
        for worker in workers:
            worker.stop.set()
        for worker in workers:
            worker.join()
    write_event(truth, "end", base, base + len(memory))


def _range(start: int, end: int) -> dict[str, int | str]:
    """A range of addresses, bytes, for JSON and in the form of ``kdamon run --range``."""
    return {"start": start, "end": end, "range": f"{start:x}-{end:x}"}


def _watch(workers: list[Worker], parts: list[Part], seconds: float, truth: TextIO | None) -> None:
    """Wait for the end, and record each second the number of sweeps of each part."""
    end = time.monotonic() + seconds
    before = [worker.sweeps for worker in workers]
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(1.0, left))
        now = [worker.sweeps for worker in workers]
        for part, count, last in zip(parts, now, before, strict=True):
            write_event(truth, "sweeps", part.start, part.end, sweeps=count - last)
        before = now


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="readwrite", description="a process whose threads read and write different memory on different CPUs"
    )
    defaults = Pattern()
    parser.add_argument("--part", type=parse_positive, default=defaults.part // MIB, metavar="MIB", help="size of each")
    parser.add_argument(
        "--cpus", type=parse_unsigned, nargs=2, default=defaults.cpus, metavar="N", help="of A, and of B and C"
    )
    parser.add_argument("--seconds", type=parse_seconds, default=defaults.duration, help="end by itself after this")
    parser.add_argument(
        "--rest-us", type=parse_unsigned, default=round(defaults.rest * 1e6), metavar="US", help="pause between sweeps"
    )
    parser.add_argument(
        "--truth", type=Path, metavar="FILE", help="write the true accesses to this file, as JSON lines"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the workload as a command and return its exit status."""
    arguments = _parser().parse_args(argv)
    pattern = Pattern(
        part=arguments.part * MIB,
        cpus=tuple(arguments.cpus),
        duration=arguments.seconds,
        rest=arguments.rest_us / 1e6,
    )
    try:
        with ExitStack() as stack:
            truth = stack.enter_context(arguments.truth.open("w", encoding="utf-8")) if arguments.truth else None
            run(pattern, sys.stdout, truth)
    except OSError as error:
        print(f"readwrite: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
