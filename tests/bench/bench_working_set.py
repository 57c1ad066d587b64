# SPDX-License-Identifier: GPL-2.0-only
"""How near the memory in use that ``kdamon run`` estimates is to the exact count of ``kdamon wss``, on real programs.

Each program does the same all the time. It is measured twice, in turns: 10 s by ``kdamon wss``, which counts all pages,
and then by ``kdamon run``, whose figure is the mean of all its windows of 10 s. The machine may be busy; both see the
same accesses then.

    python tests/bench/bench_working_set.py              all programs, about 6 minutes
    python tests/bench/bench_working_set.py stairs zipf  these
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attrs import frozen
from measure import machine_name, table

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.support.programs import PROGRAMS, MissingError  # noqa: E402 (it is found from there on)

KDAMON = (sys.executable, "-m", "kdamon_tools")
MIB = 1 << 20
#: Seconds of the window, and of the run.
WINDOW = 10
#: A run of less has few windows of 10 s, or none.
SECONDS, QUICK = 26, 14
#: Two figures agree within this part.
AGREE = 0.1


@frozen
class Figures:
    """One measurement, bytes.

    :ivar exact: in use within :data:`WINDOW`, all pages counted.
    :ivar estimate: by watched pages; with the bounds of 95 %.
    :ivar unknown: bytes whose accesses the run could not observe.
    :ivar resident: in memory.
    :ivar regions: accessed in an aggregation interval, by the samples of regions; the median.
    :ivar watching: part of a CPU that watching pages took.
    """

    exact: int
    estimate: int
    low: int
    high: int
    unknown: int
    resident: int
    regions: int
    watching: float


def kdamon(*words: object) -> dict[str, Any]:
    """What a command prints as JSON."""
    done = subprocess.run([*KDAMON, *map(str, words)], stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measured(pid: int, seconds: int) -> Figures:
    """Measure a process once."""
    window = kdamon("wss", "--pid", pid, "--seconds", WINDOW, "--primitive", "page_table", "--json")
    run = kdamon("run", "--pid", pid, "--seconds", seconds, "--json", "--quiet")
    counters, summary = run["counters"], run["summary"]
    used = next(one for one in counters["use"]["windows"] if one["seconds"] == WINDOW)
    return Figures(
        window["total"]["used_bytes"],
        used["accessed_bytes"],
        used["low_bytes"],
        used["high_bytes"],
        used["unknown_bytes"],
        counters["use"]["resident_bytes"],
        summary["working_set_bytes"],
        summary["watching_cpu_percent"],
    )


def command_line() -> argparse.Namespace:
    """What to measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("names", nargs="*", metavar="PROGRAM", help=f"of {', '.join(PROGRAMS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="short runs: for a look, not for a figure")
    args = parser.parse_args()
    if unknown := [name for name in args.names if name not in PROGRAMS]:
        parser.error(f"there is no program {' '.join(unknown)}; there are {', '.join(PROGRAMS)}")
    return args


def row(name: str, figures: Figures) -> list[str]:
    """A row of the table, in MiB."""
    sizes = (figures.resident, figures.exact, figures.estimate, figures.low, figures.high, figures.unknown)
    ratio = figures.estimate / figures.exact if figures.exact else 0.0
    shown = [f"{size / MIB:.1f}" for size in sizes]
    return [name, *shown, f"{ratio:.2f}", f"{figures.regions / MIB:.1f}", f"{figures.watching:.1f}"]


def verdict(name: str, runs: Sequence[Figures]) -> str:
    """Whether the runs agree with each other, and with the exact counts, in words."""
    one, other = (figures.estimate for figures in runs)
    apart = abs(one - other) / max(one, other, 1)
    off = max(abs(figures.estimate - figures.exact) / max(figures.exact, 1) for figures in runs)
    between = "agree" if apart <= AGREE else "DIFFER"
    exact = "agrees" if off <= AGREE else "DIFFERS"
    return (
        f"{name}: two runs {between} ({apart:.0%} apart), the estimate {exact} with the exact count (within {off:.0%})"
    )


def main() -> None:
    """Measure, and print the table."""
    args = command_line()
    rows, remarks = [], []
    for name in args.names or PROGRAMS:
        try:
            with PROGRAMS[name]() as pid:
                runs = [measured(pid, QUICK if args.quick else SECONDS) for _ in range(2)]
        except MissingError as missing:
            remarks.append(f"{name}: skipped: {missing}")
            continue
        rows += [row(name, figures) for figures in runs]
        remarks.append(verdict(name, runs))
    header = ("program", "in memory", "exact", "run", "low", "high", "unknown", "run/exact", "by regions", "watching %")
    table(f"MiB used within {WINDOW} s, {machine_name()}", header, rows)
    print("\n" + "\n".join(remarks))


if __name__ == "__main__":
    main()
