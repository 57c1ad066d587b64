# SPDX-License-Identifier: GPL-2.0-only
"""What an exact working set costs: kdamon's CPU time, the process's faults, and the waits of its mmap().

One process has 1 GiB in pages of 4 KiB and writes to, or reads, each of them once, armed or made old, and not; both in
CPU time, as the machine may be busy. Another one (mapper.c) times mmap(), touch and munmap() while its own memory is
armed and counted again and again.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import IO

from measure import arguments, compiled, machine_name, table

from kdamon.mm.working_set.by_accessed_bits import AccessedBitObservation
from kdamon.mm.working_set.by_faults import FaultObservation
from kdamon.mm.working_set.observation import Observation

HERE = Path(__file__).parent
KINDS: dict[str, Callable[[int], Observation]] = {"page_fault": FaultObservation, "page_table": AccessedBitObservation}
#: Answers each line with the seconds in which it used all pages: "w" writes, "r" reads.
USER = """
import mmap, sys, time
import numpy as np
memory = mmap.mmap(-1, int(sys.argv[1]) << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_NOHUGEPAGE)
data = np.frombuffer(memory, dtype=np.uint8)
data[:] = 1
pages = data[::4096]
print("ready", flush=True)
for line in sys.stdin:
    begin = time.process_time()
    if line == "w\\n":
        pages[:] = 2
    else:
        pages.sum()
    print(time.process_time() - begin, flush=True)
"""
#: MiB of the mapper's file, and as much of its own memory.
MAPPER_MIB = 128


@contextmanager
def running(*words: str | Path) -> Iterator[tuple[int, Callable[[str], list[float]]]]:
    """A process: its number, and what asks it for numbers."""
    with subprocess.Popen([*words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        ask: IO[str] | None = process.stdin
        answer: IO[str] | None = process.stdout
        assert ask is not None
        assert answer is not None

        def numbers(line: str) -> list[float]:
            ask.write(f"{line}\n")
            ask.flush()
            return [float(word) for word in answer.readline().split()]

        try:
            assert "ready\n" == answer.readline()
            yield process.pid, numbers
        finally:
            process.kill()


def timed(work: Callable[[], object]) -> float:
    """CPU time of ``work``, seconds."""
    begin = time.thread_time()
    work()
    return time.thread_time() - begin


def windows(mib: int, turns: int) -> list[list[object]]:
    """Rows of the first table."""
    rows: list[list[object]] = []
    with running(sys.executable, "-c", USER, str(mib)) as (pid, ask):
        for name, make in KINDS.items():
            for how in ("w", "r"):
                columns: list[tuple[float, ...]] = []
                for _ in range(turns):
                    plain = min(ask(how)[0] for _ in range(3))
                    with make(pid) as observation:
                        cost = timed(lambda: observation.cost(lambda: False))
                        begin = timed(lambda: observation.begin(lambda: False))
                        armed = ask(how)[0] - plain
                        count = timed(observation.end)
                        closing = time.thread_time()
                    closed = time.thread_time() - closing
                    columns.append((cost, begin, count, closed, armed / (mib * 256)))
                *seconds, page = (median(column) for column in zip(*columns, strict=True))
                what = {"w": "writes", "r": "reads"}[how]
                rows.append([name, what, *(f"{1e3 * one:.0f} ms" for one in seconds), f"{1e6 * page:.2f} us"])
    return rows


def waits(turns: int, seconds: float) -> list[list[object]]:
    """Rows of the second table."""
    found: dict[str, list[list[float]]] = {}
    with tempfile.TemporaryDirectory(prefix="kdamon-bench-", dir="/var/tmp") as directory:
        program, data = compiled(HERE / "mapper.c", Path(directory)), Path(directory, "data")
        data.write_bytes(b"\1" * (MAPPER_MIB << 20))
        with running(program, data, str(MAPPER_MIB)) as (pid, ask):
            for _ in range(turns):
                ask("")
                time.sleep(seconds)
                found.setdefault("alone", []).append(ask(""))
                for name, make in KINDS.items():
                    with make(pid) as observation:
                        ask("")
                        end = time.monotonic() + seconds
                        while time.monotonic() < end:
                            observation.begin(lambda: False)
                            observation.end()
                        found.setdefault(name, []).append(ask(""))
    rows: list[list[object]] = []
    for name, figures in found.items():
        columns = [median(column) for column in zip(*figures, strict=True)]
        rows.append([name, *(f"{one:.0f} us" for one in columns[1:4])])
    return rows


def main() -> int:
    """Print both tables."""
    args = arguments(__doc__.splitlines()[0] if __doc__ else "")
    mib, turns, seconds = (256, 3, 0.5) if args.quick else (1024, 7, 2.0)
    print(machine_name())
    table(
        f"CPU time for a process with {mib} MiB in pages of 4 KiB that uses each once, median of {turns} turns",
        ("", "", "cost", "begin", "count", "end", "a page more"),
        windows(mib, turns),
    )
    table(
        f"mmap(), touch and munmap() of a process with {2 * MAPPER_MIB} MiB that is armed and counted without a pause",
        ("", "p50", "p99", "p99.9"),
        waits(turns, seconds),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
