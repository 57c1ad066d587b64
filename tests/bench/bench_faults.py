# SPDX-License-Identifier: GPL-2.0-only
"""The cost of ``kdamon run --write-only`` on a real process: CPU time of the kdamond, missed intervals, slow-down.

The process writes to 64 MiB at random (writer.c), or sleeps. A process can be monitored by one userfaultfd only, so
each number of regions has a process of its own, and so has the loop of sleeps beside them. They take turns: the process
with its kdamond, and alone if it does anything. They are stopped (SIGSTOP) while it is not their turn. Each figure is
the median over the turns. The noise is that of the same command twice.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from attrs import define, evolve, field
from bench_kdamond import (
    MIB,
    SETTLE,
    Group,
    command_line,
    compare,
    confidence,
    microseconds,
    missed,
    ratio,
)
from measure import table
from rivals import ROOT, Case, Floor, Kdamon, Rival, Target

WORKLOADS = ("idle:1", "random:1")
REGIONS = (15, 100, 400)
SAMPLE_US = (5000,)
SECONDS = 0.2
#: What lets kdamon monitor by faults.
OPTIONS = ("--write-only",)


@define(eq=False)
class Pair:
    """A rival and its process.

    :ivar idle: the process sleeps.
    :ivar slow: how much longer the process takes for its work beside the rival, in each turn.
    """

    rival: Rival
    target: Target
    idle: bool
    slow: list[float] = field(factory=list)

    def take_turn(self, seconds: float, alone_first: bool) -> None:
        """Let the process run with its rival and without."""
        self.target.resume()
        alone, beside = Group(), Group([self.rival])
        for group in (alone, beside) if alone_first else (beside, alone):
            # Of a process that sleeps there is nothing to see alone.
            if group is beside or not self.idle:
                group.take_turn(self.target, seconds)
        self.target.stop()
        # A process that got no CPU in a turn says nothing.
        self.slow += [one / other - 1 for one, other in zip(alone.rates, beside.rates, strict=False) if one and other]


class Faults:
    """All that is measured of one kind of process.

    :param old: another checkout, to measure the kdamond of that, too.
    """

    def __init__(  # noqa: PLR0917 -- a case of each list on the command line
        self, stack: ExitStack, args: argparse.Namespace, program: Path, workload: str, sample_us: int, old: Path | None
    ) -> None:
        self._stack, self._args, self._program = stack, args, program
        self._pattern, self._threads = workload.split(":")
        # Each of them has a time limit, for the case that this process is killed.
        self._limit = 600 + round(args.turns * 6 * (len(args.regions) + 2) * (args.seconds + SETTLE))
        self._case = Case(0, sample_us, 20 * sample_us, self._limit)
        self._directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kdamon-bench-")))
        self.new = {n: self._kdamon(n, "new", ROOT) for n in args.regions}
        self.old = {n: self._kdamon(n, "old", old) for n in args.regions} if old else {}
        self.twice = args.regions[len(args.regions) // 2]
        self.again = self._kdamon(self.twice, "again", ROOT)
        self.loop = self._pair(lambda target: Floor(self._case, target))
        both = [pair for n in args.regions for pair in (self.new[n], self.old.get(n)) if pair]
        self._pairs = [*both, self.loop, self.again]

    def _kdamon(self, regions: int, name: str, root: Path) -> Pair:
        case = evolve(self._case, regions=regions)
        output = self._directory / f"{name}-{regions}.json"
        return self._pair(lambda target: Kdamon(case, target, output, root, OPTIONS))

    def _pair(self, begin: Callable[[Target], Rival]) -> Pair:
        target = Target(self._program, self._pattern, int(self._threads), MIB, self._limit)
        self._stack.callback(target.close)
        rival = begin(target)
        self._stack.callback(rival.kill)
        rival.wait()
        # Two aggregation intervals: what is done once is done then.
        time.sleep(2 * self._case.aggr_us / 1e6)
        rival.stop()
        target.stop()
        return Pair(rival, target, self._pattern == "idle")

    def run(self) -> None:
        """Let all take their turns."""
        for turn in range(self._args.turns):
            # Forth and back, so that what changes in the meantime meets all of them.
            for pair in reversed(self._pairs) if turn % 2 else self._pairs:
                pair.take_turn(self._args.seconds, alone_first=bool(turn % 2))
        for pair in self._pairs:
            pair.target.resume()
            pair.rival.end()

    def show(self, commit: str | None) -> None:
        """Print the table."""
        rows = []
        for n, pair in self.new.items():
            row = [n, *_figures(pair)]
            if n in self.old:
                row += [*_figures(self.old[n]), ratio(self.old[n].rival, pair.rival)]
            rows.append(row)
        header = ["regions", *COLUMNS]
        if self.old:
            header += [f"{commit}: us", *COLUMNS[1:], "old / new"]
        us, lost, *slower = _figures(self.loop)
        name = "idle" if self._pattern == "idle" else f"{self._pattern} writes, threads: {self._threads}"
        noise = f"noise: the same kdamond twice {ratio(self.again.rival, self.new[self.twice].rival)}"
        if self.loop.slow:
            noise += f", the process beside the loop {slower[0]} ({slower[1]})"
        table(
            f"{name}; {self._case.sample_us / 1000:g} ms; empty loop {us} us, missed {lost}\n  {noise}",
            header,
            rows,
        )


COLUMNS = ("us", "missed", "slower", "95 %")


def _figures(pair: Pair) -> tuple[str, str, str, str]:
    """The cells of one rival: microseconds an interval, missed, slow-down of the process and its interval."""
    us, lost, slow = microseconds(pair.rival), missed(pair.rival), pair.slow
    return (
        "-" if us is None else f"{us:.0f}",
        "-" if lost is None else f"{lost:.1%}",
        *((f"{median(slow):+.1%}", confidence(slow)) if slow else ("-", "-")),
    )


def main() -> int:
    """Print the tables."""
    args = command_line(__doc__, WORKLOADS, REGIONS, SAMPLE_US, SECONDS)

    def measure(stack: ExitStack, program: Path, workload: str, sample_us: int, old: Path | None) -> None:
        faults = Faults(stack, args, program, workload, sample_us, old)
        faults.run()
        faults.show(args.against)

    compare(args, measure)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
