# SPDX-License-Identifier: GPL-2.0-only
"""The cost of ``kdamon run`` on a real process: CPU time of the kdamond, missed intervals, slow-down of the process.

The process writes to 64 MiB in a known way (writer.c), or sleeps. Beside each number of regions is the floor
(floor.py): one BPF call and one process_madvise() an interval on as many pages; and a loop of sleeps. All of them are
started once for each kind of process; then they take turns, and are stopped (SIGSTOP) while others do or the process is
left alone. Each figure is the median over the turns; the interval of 95 percent of a slow-down is a bootstrap of that
median. The noise is that of the same command twice, and of the process that is left alone twice.

At 100 ms all numbers of regions have their turn together, as each costs little: the slow-down is theirs together.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import TypeVar

from attrs import define, field
from measure import compiled, interval, machine_name, table
from rivals import ROOT, Case, Floor, Kdamon, Rival, Target, Turn

R = TypeVar("R", bound=Rival)

HERE = Path(__file__).parent
GIT = ("git", "-C", str(ROOT))
MIB = 64
WORKLOADS = ("idle:1", "sequential:1", "random:1", "sequential:2", "random:2")
REGIONS = (15, 100, 400, 1000)
SAMPLE_US = (5000, 100_000)
#: Of a turn; 2.5 times as much where all have their turn together.
SECONDS = 0.35
#: From this sampling interval on, all numbers of regions have their turn together.
LONG_US = 50_000
#: Seconds from being let go to the measurement: what waited meanwhile is done then.
SETTLE = 0.1


@define(eq=False)
class Group:
    """Rivals that have their turn at the same time; none: the process is left alone.

    :ivar rates: writes a second of the process, in each turn.
    """

    rivals: Sequence[Rival] = ()
    rates: list[float] = field(factory=list)

    def take_turn(self, target: Target, seconds: float) -> None:
        """Let them run beside ``target``, and measure for ``seconds``."""
        resumed = time.monotonic_ns()
        for rival in self.rivals:
            rival.resume()
        time.sleep(SETTLE)
        begins = [(time.monotonic_ns(), rival.cpu()) for rival in self.rivals]
        began, before = target.work()
        time.sleep(seconds)
        ended, after = target.work()
        ends = [(time.monotonic_ns(), rival.cpu()) for rival in self.rivals]
        for rival in self.rivals:
            rival.stop()
        stopped = time.monotonic_ns()
        for rival, (begin, cpu), (end, cpu_end) in zip(self.rivals, begins, ends, strict=True):
            rival.turns.append(Turn(resumed, begin, end, stopped, cpu_end - cpu))
        self.rates.append((after - before) * 1e9 / (ended - began))


class Comparison:
    """All that is measured beside one process at one sampling interval.

    :param old: another checkout, to measure the kdamond of that, too.
    """

    def __init__(  # noqa: PLR0917 -- a case of each list on the command line
        self, stack: ExitStack, args: argparse.Namespace, program: Path, workload: str, sample_us: int, old: Path | None
    ) -> None:
        self._stack = stack
        self.together = sample_us >= LONG_US
        self._args = args
        # Each of them has a time limit, for the case that this process is killed.
        per_turn = (len(args.regions) * 3 + 4) * (args.seconds + 3 * SETTLE)
        self._limit = 600 + 3 * round(args.turns * per_turn)
        self._case = Case(0, sample_us, sample_us * (5 if self.together else 20), self._limit)
        self._directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kdamon-bench-")))
        pattern, threads = workload.split(":")
        self.idle = pattern == "idle"
        self.target = Target(program, pattern, int(threads), MIB, self._limit)
        stack.callback(self.target.close)
        self.kdamons = self._kdamons("new", ROOT, args.regions)
        #: One of them once more: the machine's noise.
        self.twice = 100 if 100 in args.regions else args.regions[0]
        self.again = self._kdamons("again", ROOT, [self.twice])[self.twice]
        self.old = self._kdamons("old", old, args.regions) if old else {}
        #: 0: the loop of sleeps.
        self.floors = {n: self._begin(Floor(self._of(n), self.target)) for n in (*args.regions, 0)}
        self.rivals: list[Rival] = [*self.kdamons.values(), self.again, *self.old.values(), *self.floors.values()]
        self.alone = Group(), Group()
        self._groups = [Group(rivals) for rivals in self._turns() if rivals]
        self._group_of = {rival: group for group in self._groups for rival in group.rivals}
        for rival in self.rivals:
            rival.wait()
        time.sleep(2 * self._case.aggr_us / 1e6)
        for rival in self.rivals:
            rival.stop()

    def _of(self, regions: int) -> Case:
        return Case(regions, self._case.sample_us, self._case.aggr_us, self._limit)

    def _begin(self, rival: R) -> R:
        self._stack.callback(rival.kill)
        return rival

    def _kdamons(self, name: str, root: Path, numbers: Sequence[int]) -> dict[int, Kdamon]:
        return {
            n: self._begin(Kdamon(self._of(n), self.target, self._directory / f"{name}-{n}.json", root))
            for n in numbers
        }

    def _turns(self) -> list[list[Rival]]:
        """Which have their turn at the same time, in order."""
        if self.together:
            return [[*self.kdamons.values(), self.again], list(self.old.values()), list(self.floors.values())]
        each = (self.kdamons, self.old, self.floors)
        return [[by[n]] for n in self.kdamons for by in each if n in by] + [[self.floors[0]], [self.again]]

    def run(self) -> None:
        """Let all take their turns."""
        middle = len(self._groups) // 2
        order = [self.alone[0], *self._groups[:middle], self.alone[1], *self._groups[middle:]]
        if self.idle:
            order = self._groups
        for turn in range(self._args.turns):
            # Forth and back, so that what changes in the meantime meets both of a pair.
            for group in reversed(order) if turn % 2 else order:
                longer = 2.5 if self.together and group.rivals else 1
                group.take_turn(self.target, self._args.seconds * longer)
        for rival in self.rivals:
            rival.end()

    def slow_down(self, rival: Rival) -> list[float]:
        """How much longer the process takes for its work beside ``rival``, in each turn; empty: it does none."""
        if self.idle:
            return []
        rates = zip(self.alone[0].rates, self.alone[1].rates, self._group_of[rival].rates, strict=True)
        # A process that got no CPU in a turn says nothing.
        return [(one + other) / 2 / rate - 1 for one, other, rate in rates if one and other and rate]

    def noise(self) -> str:
        """How much the same, measured twice, differs."""
        found = f"the same kdamond twice {ratio(self.again, self.kdamons[self.twice])}"
        pairs = zip(self.alone[0].rates, self.alone[1].rates, strict=True)
        alone = [one / other - 1 for one, other in pairs if one and other]
        return f"{found}, the process alone twice {median(alone):+.1%} ({confidence(alone)})" if alone else found


def missed(rival: Rival) -> float | None:
    """The share of intervals that it missed; None: no aggregation interval lay within a turn."""
    seen = rival.passed + rival.missed
    return rival.missed / seen if seen else None


def microseconds(rival: Rival) -> float | None:
    """CPU time of an interval that it did not miss: missing some is no saving."""
    share = missed(rival)
    return None if share in (None, 1) else median(rival.share()) * rival.case.sample_us / (1 - share)


def ratio(one: Rival, other: Rival) -> str:
    """CPU time of an interval of ``one`` over that of ``other``."""
    mine, its = microseconds(one), microseconds(other)
    return f"{mine / its:.2f}x" if mine and its else "-"


def confidence(values: Sequence[float]) -> str:
    """The interval of 95 percent of the median."""
    low, high = interval(values)
    return f"{low:+.1%} .. {high:+.1%}"


def figures(comparison: Comparison, rival: Rival) -> tuple[str, str, str, str, str]:
    """The cells of one rival: CPU share, microseconds an interval, missed, slow-down and its interval."""
    slow = comparison.slow_down(rival)
    slower = (f"{median(slow):+.1%}", confidence(slow)) if slow else ("-", "-")
    us, lost = microseconds(rival), missed(rival)
    return (
        f"{median(rival.share()):.2%}",
        "-" if us is None else f"{us:.0f}",
        "-" if lost is None else f"{lost:.1%}",
        *slower,
    )


COLUMNS = ("CPU", "us", "missed", "slower", "95 %")


def show(comparison: Comparison, workload: str, commit: str) -> None:
    """Print the table of one process and interval."""
    case = comparison.kdamons[comparison.twice].case
    empty = figures(comparison, comparison.floors[0])
    rows = []
    for n, kdamon in comparison.kdamons.items():
        floor = comparison.floors[n]
        row = [n, *figures(comparison, kdamon), *figures(comparison, floor), ratio(kdamon, floor)]
        if n in comparison.old:
            old = comparison.old[n]
            row += [*figures(comparison, old), ratio(old, kdamon)]
        rows.append(row)
    header = ["regions", *COLUMNS, "floor: CPU", *COLUMNS[1:], "/ floor"]
    if comparison.old:
        header += [f"{commit}: CPU", *COLUMNS[1:], "old / new"]
    pattern, threads = workload.split(":")
    name = pattern if pattern == "idle" else f"{pattern} writes, {threads} thread{'s' * (threads != '1')}"
    table(
        f"{name}; {case.sample_us / 1000:g} ms; empty loop {empty[0]}, {empty[1]} us, missed {empty[2]}\n"
        f"  noise: {comparison.noise()}",
        header,
        rows,
    )


@contextmanager
def checkout(commit: str | None) -> Iterator[Path | None]:
    """Another commit of this repository, in a worktree of its own."""
    if commit is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="kdamon-bench-") as directory:
        tree = Path(directory, "tree")
        subprocess.run([*GIT, "worktree", "add", "--quiet", "--detach", tree, commit], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*GIT, "worktree", "remove", "--force", tree], check=False)


def is_commit(name: str) -> bool:
    """Return whether this repository has such a commit."""
    if shutil.which("git") is None:
        return False
    words = ["rev-parse", "--quiet", "--verify", "--end-of-options", f"{name}^{{commit}}"]
    return not subprocess.run([*GIT, *words], capture_output=True, check=False).returncode


def workload_name(text: str) -> str:
    """``PATTERN:THREADS``."""
    pattern, _, threads = text.partition(":")
    if pattern not in ("idle", "sequential", "random") or not threads.isdigit() or not 1 <= int(threads) <= 64:
        raise argparse.ArgumentTypeError(f"'{text}' is not idle, sequential or random with threads, such as random:2")
    return text


def command_line(
    text: str | None, workloads: Sequence[str], regions: Sequence[int], sample_us: Sequence[int], seconds: float
) -> argparse.Namespace:
    """What to measure; all but the first are defaults.

    :param text: describes it in the first line.
    """
    parser = argparse.ArgumentParser(description=text.splitlines()[0] if text else "")
    parser.add_argument("--quick", action="store_true", help="few and short turns: for a look, not for a figure")
    parser.add_argument("--workloads", nargs="+", type=workload_name, default=workloads, metavar="PATTERN:THREADS")
    parser.add_argument("--regions", nargs="+", type=int, default=regions, metavar="N", help="3 to 1000")
    parser.add_argument("--sample-us", nargs="+", type=int, default=sample_us, metavar="US")
    parser.add_argument("--turns", type=int, help="of each; default: 5")
    parser.add_argument("--seconds", type=float, help=f"of each turn; default: {seconds:g}")
    parser.add_argument("--against", metavar="COMMIT", help="measure the kdamond of this commit, too")
    args = parser.parse_args()
    if not all(3 <= n <= 1000 for n in args.regions):
        parser.error("--regions takes numbers from 3 to 1000")
    if args.turns is not None and args.turns < 1:
        parser.error("--turns takes 1 and more")
    if args.against and not is_commit(args.against):
        parser.error(f"there is no commit '{args.against}'; --against takes what 'git log' shows, and needs git")
    args.turns = args.turns or (2 if args.quick else 5)
    args.seconds = args.seconds or (0.2 if args.quick else seconds)
    return args


def head(args: argparse.Namespace) -> None:
    """Print what is measured, and where."""
    # What is stopped must not stay.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    print(f"{machine_name()}, {datetime.now(tz=UTC).date()}: {shlex.join(sys.argv)}")
    print(
        f"median of {args.turns} turns of {args.seconds:g} s; us: CPU time of a sampling interval; "
        f"load of the machine before: {os.getloadavg()[0]:.1f}"
    )


def compare(args: argparse.Namespace, measure: Callable[[ExitStack, Path, str, int, Path | None], None]) -> None:
    """Call ``measure`` for each case.

    :param measure: gets what closes its processes, the program to monitor, its workload, the sampling interval in
        microseconds, and where the other commit is.
    """
    head(args)
    with checkout(args.against) as old, tempfile.TemporaryDirectory(prefix="kdamon-bench-") as directory:
        program = compiled(HERE / "writer.c", Path(directory))
        for sample_us in args.sample_us:
            for workload in args.workloads:
                with ExitStack() as stack:
                    measure(stack, program, workload, sample_us, old)


def main() -> int:
    """Print the tables."""
    args = command_line(__doc__, WORKLOADS, REGIONS, SAMPLE_US, SECONDS)

    def measure(stack: ExitStack, program: Path, workload: str, sample_us: int, old: Path | None) -> None:
        comparison = Comparison(stack, args, program, workload, sample_us, old)
        comparison.run()
        show(comparison, workload, args.against)

    compare(args, measure)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
