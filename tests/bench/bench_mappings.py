# SPDX-License-Identifier: GPL-2.0-only
"""The cost of following what real processes map: many mappings, many addresses, many processes.

Each figure is the median of CPU times of this thread. Run it with PYTHONPATH set to another commit's work tree to
compare with that.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

from measure import arguments, compiled, table

from kdamon.core import (
    damon_add_target,
    damon_new_ctx,
    damon_new_target,
    damon_select_ops,
    damon_set_attrs,
    damon_start,
    damon_stop,
)
from kdamon.damon import damon_attrs, damon_ctx, damon_ops_id
from kdamon.mapped import follow_mappings
from kdamon.mm.linux.machine import LinuxMachine, linux_machine

HERE = Path(__file__).parent
TIB_100 = 100 * 10**12 >> 20

#: Name, arguments of mappings.c, number of processes.
CASES = (
    ("64 MiB", ("reserved", 64), 1),
    ("1 GiB", ("reserved", 1024), 1),
    ("100 TB", ("reserved", TIB_100), 1),
    ("60000 mappings side by side", ("many", 60_000), 1),
    ("30000 mappings with gaps", ("apart", 30_000), 1),
    ("100 processes", ("reserved", 64), 100),
)

Process = subprocess.Popen[str]


@contextmanager
def running(program: Path, words: tuple[str, int], count: int) -> Iterator[list[Process]]:
    """So many processes that have mapped their memory."""
    with ExitStack() as stack:
        started = []
        for _ in range(count):
            command = [str(program), words[0], str(words[1])]
            process = stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            stack.callback(process.kill)
            started.append(process)
        for process in started:
            ready(process)
        yield started


def ready(process: Process) -> None:
    """Wait until the process did what it was asked for."""
    assert process.stdout is not None
    assert "ready\n" == process.stdout.readline()


def change(process: Process) -> None:
    """Let the process map one page more."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    ready(process)


def monitoring(machine: LinuxMachine, processes: list[Process], least: int = 10, most: int = 1000) -> damon_ctx:
    """A context that follows the mappings of ``processes``."""
    ctx = damon_new_ctx(seed=1)
    ctx.machine = machine
    damon_select_ops(ctx, damon_ops_id.DAMON_OPS_VADDR)
    damon_set_attrs(ctx, damon_attrs(5000, 100_000, 1_000_000, min_nr_regions=least, max_nr_regions=most))
    follow_mappings(ctx)
    for process in processes:
        t = damon_new_target()
        t.pid, t.task = process.pid, machine.get_task(process.pid, "page_table")
        damon_add_target(ctx, t)
    return ctx


def updates(ctx: damon_ctx, processes: list[Process], turns: int) -> tuple[float, float, float]:
    """Milliseconds: of an update without changes, of one after a change, and of the longest part of that."""
    assert ctx.ops is not None
    ctx.ops.init(ctx)
    same, changed, longest = [], [], []

    def part(spent: list[float], work: object, *arguments: object) -> None:
        begin = time.thread_time()
        work(*arguments)  # type: ignore[operator]
        spent.append(1e3 * (time.thread_time() - begin))

    for _ in range(turns):
        time.sleep(0.15)  # from then on it is looked whether the processes called exec()
        spent: list[float] = []
        part(spent, ctx.ops.update, ctx)
        same.append(sum(spent))
        for process in processes:
            change(process)
        time.sleep(0.15)
        spent = []
        part(spent, ctx.ops.update, ctx)
        lists = [t.task.get_mm()._files.mappings for t in ctx.adaptive_targets if t.task]  # type: ignore[union-attr]
        unread = [one for one in lists if one.under_way]
        for mappings in unread:
            while mappings.under_way:
                part(spent, mappings.go_on, min(5_000_000 // getattr(mappings, "time_of_one", 32_000), 1024))
        if unread:
            # Only the next update knows them.
            part(spent, ctx.ops.update, ctx)
        changed.append(sum(spent))
        longest.append(max(spent))
    return median(same), median(changed), median(longest)


def share(ctx: damon_ctx, seconds: float) -> tuple[float, float]:
    """Percent of a CPU that monitoring takes, and percent of the intervals that it misses."""
    damon_start([ctx], exclusive=False)
    try:
        time.sleep(1.5)
        passed, missed = ctx.passed_sample_intervals, ctx.missed_intervals
        cpu, begin = time.process_time(), time.monotonic()
        time.sleep(seconds)
        cpu, elapsed = time.process_time() - cpu, time.monotonic() - begin
        passed, missed = ctx.passed_sample_intervals - passed, ctx.missed_intervals - missed
    finally:
        damon_stop([ctx])
    return 100 * cpu / elapsed, 100 * missed / max(passed + missed, 1)


def main() -> int:
    """Print the tables."""
    args = arguments(__doc__.splitlines()[0] if __doc__ else "")
    turns, seconds, times = (3, 1.2, 3) if args.quick else (15, 6.0, 5)
    with tempfile.TemporaryDirectory(prefix="kdamon-bench-", dir="/var/tmp") as directory, ExitStack() as stack:
        # There is no room for 100 TB beside a program in the middle of the address space.
        program = compiled(HERE / "mappings.c", Path(directory), "-no-pie")
        machine = linux_machine()
        stack.callback(machine.close)
        rows = []
        for name, words, count in CASES:
            with running(program, words, count) as processes:
                ctx = monitoring(machine, processes)
                figures = updates(ctx, processes, turns)
                for t in ctx.adaptive_targets:
                    if t.task is not None:
                        t.task.put()
            rows.append((name, *(f"{figure:.2f} ms" for figure in figures)))
        title = f"CPU time of an update of the mappings, median of {turns}"
        table(title, ("", "nothing changed", "a mapping changed", "longest part of that"), rows)

        names = ("1 GiB", "100 TB", "60000 mappings side by side")
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
        kinds = [(name, words) for name, words, _ in CASES if name in names]
        several = [stack.enter_context(running(program, words, 1)) for _, words in kinds]
        for _ in range(times):
            for (name, _), processes in zip(kinds, several, strict=True):
                found[name].append(share(monitoring(machine, processes, 200, 200), seconds))
        rows = []
        for name, pairs in found.items():
            cpu, missed = zip(*pairs, strict=True)
            rows.append((name, f"{median(cpu):.2f} %", f"{min(cpu):.2f} to {max(cpu):.2f}", f"{median(missed):.1f} %"))
        title = f"monitoring at 5 ms and 200 regions, median of {times} turns of {seconds:g} s"
        table(title, ("", "CPU", "", "missed intervals"), rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
