# SPDX-License-Identifier: GPL-2.0-only
"""A scheme from Python: it pages out memory that a process does not use, and a table shows the effect. As root."""

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
from attrs import evolve

from kdamon import core, damon
from kdamon.lib.process_status import stat_fields
from kdamon.mm.linux.machine import LinuxMachine, linux_machine
from kdamon.mm.proc.pagemap import entries_at, present
from kdamon_tools.units import parse_positive, parse_seconds
from kdamon_tools.workloads.truth import Event, load_truth

MIB = 1 << 20
WORKLOAD = "-m kdamon_tools.workloads.coldhalf --total 192 --written 64 --read 64 --seconds"


def start(machine: LinuxMachine, pid: int, primitive: str, goal: int) -> tuple[damon.damon_ctx, damon.damos]:
    """A kdamond that pages out what was not accessed for five seconds, at most 16 MiB in a charge window."""
    ctx = core.damon_new_ctx()
    ctx.machine = machine
    core.damon_select_ops(ctx, damon.damon_ops_id.DAMON_OPS_VADDR)
    core.damon_set_attrs(ctx, damon.damon_attrs(5_000, 100_000, 1_000_000))
    ctx.sample_control.primitives_enabled.page_fault = primitive == "page_fault"  # it sees writes only
    target = core.damon_new_target()
    target.pid, target.task = pid, machine.get_task(pid, primitive)
    core.damon_add_target(ctx, target)
    cold = damon.damos_access_pattern(max_nr_accesses=0, min_age_region=50)  # aggregation intervals of 100 ms
    quota = damon.damos_quota(1000, sz=16 * MIB, fail_charge_num=1, fail_charge_denom=1000)
    if goal:
        quota.reset_interval, quota.goals = 500, [damon.damos_quota_goal(target_value=goal)]
    scheme = damon.damos(cold, damon.damos_action.DAMOS_PAGEOUT, quota=quota)
    core.damon_add_scheme(ctx, scheme)
    core.damon_start([ctx], exclusive=False)
    return ctx, scheme


def show(pid: int, ctx: damon.damon_ctx, scheme: damon.damos, seconds: float, used: list[Event]) -> None:
    """Print a row every two seconds; feed a goal with the MiB paged out, and show the kernel's formula."""
    began, before, quota = time.monotonic(), resident(pid), scheme.quota
    last = {"window": 0, "esz_bp": 0, "formula": 0}
    rows: list[tuple[damon.damos_stat, int]] = []

    def each_interval(_: object) -> None:
        for goal in quota.goals:
            if (began_at := quota.charged_from or 0) != last["window"]:
                old, score = max(last["esz_bp"], 10000), 10000 * goal.current_value // goal.target_value
                change = old * abs(10000 - score) // 10000
                new = 10000 if score >= 20000 else max(old - change if score > 10000 else old + change, 10000)
                last.update(window=began_at, esz_bp=quota.esz_bp, formula=min(new // 10000, quota.sz))
            goal.current_value = max(0, before - resident(pid)) // MIB

    def look(_: object) -> None:
        each_interval(None)
        rows.append((evolve(scheme.stat), quota.esz))

    # Only the kdamond may access its context: it calls these functions between two sampling intervals.
    core.damon_call(ctx, damon.damon_call_control(each_interval, repeat=True))
    print("    s RSS MiB    used tried MiB applied qt_exceeds  quota, B     formula  major   minor faults")
    while (passed := time.monotonic() - began) < seconds and core.damon_is_running(ctx):
        core.damon_call(ctx, damon.damon_call_control(look))
        stat, esz = rows[-1]
        faults = stat_fields(Path(f"/proc/{pid}/stat").read_bytes())
        here = in_memory(pid, used) if used else float("nan")
        row = f"{passed:5.0f} {resident(pid) / MIB:7.1f} {here:7.1f} {stat.sz_tried / MIB:9.0f}"
        row += f" {stat.sz_applied / MIB:7.1f} {stat.qt_exceeds:10} {esz:9} {last['formula']:>11}"
        print(row, f"{int(faults[9]):>6} {int(faults[7]):>14}", flush=True)
        time.sleep(2)


def resident(pid: int) -> int:
    """Bytes of the process in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def in_memory(pid: int, parts: list[Event]) -> float:
    """MiB of parts of the workload that are in memory and mapped."""
    with open(f"/proc/{pid}/pagemap", "rb") as file:
        pages = [np.arange(part.start, part.end, 4096, dtype=np.uint64) for part in parts]
        return sum(int(present(entries_at(file.fileno(), one)).sum()) for one in pages) * 4096 / MIB


@contextmanager
def workload(seconds: float) -> Iterator[tuple[int, Path]]:
    """A process that writes a third of its memory, reads a third and leaves a third idle; with its truth events."""
    with tempfile.NamedTemporaryFile() as truth:
        command = [sys.executable, *WORKLOAD.split(), str(seconds), "--truth", truth.name]
        with subprocess.Popen(command, start_new_session=True) as process:
            try:
                while len(rates(Path(truth.name))) < 5:
                    if process.poll() is not None:
                        raise ValueError("the workload failed")
                    time.sleep(0.2)
                yield process.pid, Path(truth.name)
            finally:
                process.kill()


def rates(truth: Path) -> list[float]:
    """The number of sweeps of the workload in each second."""
    return [event.detail["sweeps"] for event in load_truth(truth) if event.event == "sweeps"]


def main() -> None:
    """Run the workload, or use an existing process, and show the effect of the scheme."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pid", type=parse_positive, help="monitor this process instead of starting a workload")
    parser.add_argument("--seconds", type=parse_seconds, default=30.0)
    parser.add_argument("--write-only", action="store_true", help="memory that is only read is cold, too")
    parser.add_argument("--goal", type=parse_positive, default=0, metavar="MIB", help="goal: MiB to page out")
    options = parser.parse_args()
    primitive = "page_fault" if options.write_only else "page_table"
    machine = linux_machine(primitive)
    with ExitStack() as stack:
        pid, truth = (options.pid, None) if options.pid else stack.enter_context(workload(options.seconds + 60))
        events = load_truth(truth) if truth else []
        parts = [event for event in events if event.event in {"writes", "reads", "cold"}]
        ctx, scheme = start(machine, pid, primitive, options.goal)
        stack.callback(core.damon_stop, [ctx])
        with suppress(KeyboardInterrupt, FileNotFoundError, ProcessLookupError):  # the last two: the process ended
            show(pid, ctx, scheme, options.seconds, [part for part in parts if part.event != "cold"])
        for part in parts:
            size = (part.end - part.start) / MIB
            print(f"{part.event}: {in_memory(pid, [part]):.1f} of {size:.0f} MiB in memory")
        if truth:
            before = sum(event.event == "sweeps" for event in events)
            old, new = (np.median(some) for some in (rates(truth)[:before], rates(truth)[before:] or [0.0]))
            print(f"sweeps a second: {old:.0f} before, {new:.0f} since then, slow-down {100 * (1 - new / old):+.1f} %")
            print("(one run; includes the noise of the machine)")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"cold_memory: {getattr(error, 'strerror', None) or error}")
    except KeyboardInterrupt:
        sys.exit(130)
