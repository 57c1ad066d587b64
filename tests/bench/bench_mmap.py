# SPDX-License-Identifier: GPL-2.0-only
"""How long a process's mmap() waits while kdamon looks at its memory.

A thread of the process (mapper.c) times mmap(), touch and munmap() while another one uses 256 MiB, half of them of a
file. It is left alone, monitored, and has a scheme applied to all of its memory every 100 ms, in turns; each number is
the median over the turns. The longest waits are left out: they are those of a thread that got no CPU.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import IO

from measure import arguments, compiled, table

from kdamon.core import (
    damon_add_scheme,
    damon_add_target,
    damon_new_ctx,
    damon_new_target,
    damon_select_ops,
    damon_set_attrs,
    damon_start,
    damon_stop,
)
from kdamon.damon import (
    PrimitivesEnabled,
    damon_attrs,
    damon_ctx,
    damon_ops_id,
    damos,
    damos_action,
    damos_filter,
    damos_filter_type,
)
from kdamon.mm.linux.machine import LinuxMachine, linux_machine

HERE = Path(__file__).parent
MIB = 128
ANON = damos_filter(damos_filter_type.DAMOS_FILTER_TYPE_ANON, matching=True, allow=True)


def done() -> dict[str, tuple[str, damos | None]]:
    """What is done meanwhile: the primitive, and a scheme."""
    return {
        "page_table": ("page_table", None),
        "page_fault": ("page_fault", None),
        "stat, filter anon": ("page_table", damos(ops_filters=[ANON], ops_filters_default_reject=True)),
        "cold": ("page_table", damos(action=damos_action.DAMOS_COLD)),
        "pageout": ("page_table", damos(action=damos_action.DAMOS_PAGEOUT)),
        "hugepage": ("page_table", damos(action=damos_action.DAMOS_HUGEPAGE)),
    }


@contextmanager
def mapper() -> Iterator[tuple[int, IO[str], IO[str]]]:
    """The process: its number, where to ask, where it answers."""
    with tempfile.TemporaryDirectory(prefix="kdamon-bench-", dir="/var/tmp") as directory:
        program, data = compiled(HERE / "mapper.c", Path(directory)), Path(directory, "data")
        data.write_bytes(b"\1" * (MIB << 20))
        command = [program, data, str(MIB)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                assert "ready\n" == process.stdout.readline()
                yield process.pid, process.stdin, process.stdout
            finally:
                process.kill()


def monitoring(machine: LinuxMachine, pid: int, primitive: str, s: damos | None) -> damon_ctx:
    """Monitor the process by ``primitive``, with the scheme if there is one."""
    ctx = damon_new_ctx(seed=1)
    ctx.machine = machine
    damon_select_ops(ctx, damon_ops_id.DAMON_OPS_VADDR)
    damon_set_attrs(ctx, damon_attrs(5000, 100_000))
    ctx.sample_control.primitives_enabled = PrimitivesEnabled(primitive == "page_table", primitive == "page_fault")
    t = damon_new_target()
    t.pid, t.task = pid, machine.get_task(pid, primitive)
    damon_add_target(ctx, t)
    if s is not None:
        damon_add_scheme(ctx, s)
    return ctx


def main() -> int:
    """Print the table."""
    args = arguments(__doc__.splitlines()[0] if __doc__ else "")
    turns, seconds = (3, 0.5) if args.quick else (7, 2.0)
    found: dict[str, list[list[float]]] = {}
    machine = linux_machine()
    try:
        with mapper() as (pid, ask, answer):

            def measure(name: str) -> None:
                ask.write("\n")
                ask.flush()
                answer.readline()
                time.sleep(seconds)
                ask.write("\n")
                ask.flush()
                found.setdefault(name, []).append([float(word) for word in answer.readline().split()])

            for _ in range(turns):
                measure("alone")
                for name, (primitive, s) in done().items():
                    ctx = monitoring(machine, pid, primitive, s)
                    damon_start([ctx], exclusive=False)
                    try:
                        time.sleep(0.3)
                        measure(name)
                    finally:
                        damon_stop([ctx])
                    intervals = ctx.passed_sample_intervals + ctx.missed_intervals
                    found[name][-1].append(100 * ctx.missed_intervals / max(intervals, 1))
    finally:
        machine.close()
    rows = []
    for name, figures in found.items():
        columns = [median(column) for column in zip(*figures, strict=True)]
        alone = median(one[3] for one in found["alone"])
        missed = f"{columns[5]:.0f} %" if len(columns) > 5 else ""
        rows.append((name, *(f"{one:.0f} us" for one in columns[1:4]), f"{columns[3] / max(alone, 1):.1f}x", missed))
    table(
        f"mmap(), touch and munmap() of a process with {2 * MIB} MiB, median of {turns} turns of {seconds:g} s",
        ("", "p50", "p99", "p99.9", "p99.9 / alone", "intervals missed"),
        rows,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
