# SPDX-License-Identifier: GPL-2.0-only
"""Processes that take turns beside a target: ``kdamon run``, and floors. They are stopped while it is not their turn.

Each has one thread whose CPU time counts, which is read from the kernel's ``schedstat``.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import floor
from attrs import define, field

__all__ = ["Case", "Floor", "Kdamon", "Rival", "Target", "Turn"]

ROOT = Path(__file__).resolve().parents[2]
#: Seconds in which a process has to start, to stop, or to end.
PATIENCE = 120


def _named(tasks: Path, prefix: str) -> Path | None:
    """The thread in ``tasks`` (/proc/PID/task) whose name begins so."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in tasks.iterdir():
            if (task / "comm").read_text(encoding="utf-8").startswith(prefix):
                return task
    return None


@define
class Turn:
    """One turn of a rival: CLOCK_MONOTONIC nanoseconds and CPU nanoseconds.

    :ivar resumed: when it was let go; ``begin`` and ``end`` are those of the measurement, ``stopped`` comes after it.
    """

    resumed: int
    begin: int
    end: int
    stopped: int
    cpu: int

    @property
    def share(self) -> float:
        """CPU time over time."""
        return self.cpu / self.ns

    @property
    def ns(self) -> int:
        """How long it was measured, nanoseconds."""
        return self.end - self.begin

    def measured(self, at: int) -> bool:
        """Return whether it was measured at that moment."""
        return self.begin <= at <= self.end

    def covers(self, begin: int, end: int) -> bool:
        """Return whether the process ran from ``begin`` to ``end``."""
        return self.resumed <= begin and end <= self.stopped


class Target:
    """The process to monitor (writer.c).

    :param program: writer, compiled.
    :param pattern: ``idle``, ``sequential`` or ``random``.
    :param seconds: it ends by itself after them.
    """

    def __init__(self, program: Path, pattern: str, threads: int, mib: int, seconds: int) -> None:
        command = [program, pattern, str(threads), str(mib), str(seconds)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self._process.pid
        start, end = self._line()
        self.memory = start, end

    def _line(self) -> list[int]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the target ended by itself, status {self._process.wait()}: its time was over")
        return [int(word) for word in line.split()]

    def work(self) -> tuple[int, int]:
        """The time, CLOCK_MONOTONIC nanoseconds, and how many writes were done by then."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        now, writes = self._line()
        return now, writes

    def resume(self) -> None:
        """Let it go on."""
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Stop it until :meth:`resume`."""
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED)

    def close(self) -> None:
        """Let it end."""
        self._process.kill()
        self._process.communicate()


@define(frozen=True)
class Case:
    """What a rival does.

    :ivar regions: number of regions; 0: nothing.
    :ivar sample_us: sampling interval, microseconds.
    :ivar aggr_us: aggregation interval, microseconds.
    :ivar seconds: it ends by itself after them.
    """

    regions: int
    sample_us: int
    aggr_us: int
    seconds: int


@define(eq=False)
class Rival(ABC):
    """A process of its own: :meth:`wait` until it is at work; :meth:`resume` and :meth:`stop` let it take turns.

    :ivar passed: sampling intervals that it took in its turns, or in whole aggregation intervals within them.
    :ivar missed: those that it missed then.
    """

    case: Case
    passed: int = field(default=0, init=False)
    missed: int = field(default=0, init=False)
    turns: list[Turn] = field(factory=list, init=False)
    _process: subprocess.Popen[str] = field(init=False)
    _schedstat: Path = field(init=False)
    _said: str = field(default="", init=False)

    @abstractmethod
    def wait(self) -> None:
        """Wait until it is at work."""

    @abstractmethod
    def nr_intervals(self, result: Any) -> tuple[int, int]:
        """How many sampling intervals passed in turns, and how many were missed; possibly not of all turns."""

    @abstractmethod
    def result(self) -> Any:
        """What it printed in the end."""

    def resume(self) -> None:
        """Let it go on."""
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Stop it until :meth:`resume`."""
        self._process.send_signal(signal.SIGSTOP)
        found = os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        if found is None or found.si_code != os.CLD_STOPPED:
            self._ended_early()
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)

    def cpu(self) -> int:
        """CPU time of its thread, nanoseconds."""
        return int(self._schedstat.read_text(encoding="ascii").split()[0])

    def share(self) -> list[float]:
        """CPU time over time, of each turn."""
        return [turn.share for turn in self.turns]

    def end(self) -> None:
        """Let it end, and count the intervals that passed in its turns, and those that it missed."""
        self.resume()
        self._process.send_signal(signal.SIGINT)
        self._said, _ = self._process.communicate(timeout=PATIENCE)
        if self._process.returncode:
            self._ended_early()
        self.passed, self.missed = self.nr_intervals(self.result())

    def kill(self) -> None:
        """End it whatever it does."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()

    def _ended_early(self) -> None:
        self._process.kill()
        said = self._process.communicate()[1]
        raise SystemExit(f"a process to measure ended with status {self._process.returncode}: {said.strip()}")


@define(eq=False)
class Kdamon(Rival):
    """``kdamon run --quiet`` as its users start it, from the checkout ``root``.

    :ivar target: the process to monitor.
    :ivar output: where its JSON goes.
    :ivar options: more words of the command line.
    """

    target: Target
    output: Path
    root: Path = ROOT
    options: Sequence[str] = ()

    def __attrs_post_init__(self) -> None:
        case = self.case
        regions = str(case.regions)
        options = {
            "--pid": self.target.pid,
            "--sample-us": case.sample_us,
            "--aggr-us": case.aggr_us,
            "--min-regions": regions,
            "--max-regions": regions,
            "--seconds": case.seconds,
            "--output": self.output,
        }
        words = [str(word) for option in options.items() for word in option]
        parts = os.pathsep.join(str(self.root / part) for part in ("", "fs", "tools"))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "kdamon_tools", "run", "--quiet", "--json", *words, *self.options],
            # Python looks for modules in the present directory first.
            cwd=self.root,
            env=os.environ | {"PYTHONPATH": parts},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait(self) -> None:
        end = time.monotonic() + PATIENCE
        tasks = Path(f"/proc/{self._process.pid}/task")
        while not (found := _named(tasks, "kdamond.")):
            if self._process.poll() is not None or time.monotonic() > end:
                self._ended_early()
            time.sleep(0.01)
        self._schedstat = found / "schedstat"

    def result(self) -> Any:
        return json.loads(self.output.read_text(encoding="utf-8"))

    def nr_intervals(self, result: Any) -> tuple[int, int]:
        """By the snapshots that lie within turns: each has as many samples as an aggregation interval has."""
        passed = missed = 0
        samples = self.case.aggr_us // self.case.sample_us
        times = [
            (*(int((result["started"] + snapshot[name]) * 1e9) for name in ("began", "time")), snapshot["merged"])
            for snapshot in result["snapshots"]
        ]
        for turn in self.turns:
            within = [(end - begin, merged) for begin, end, merged in times if turn.covers(begin, end)]
            sampled = samples * sum(merged for _, merged in within)
            passed += sampled
            missed += max(round(sum(ns for ns, _ in within) / (1000 * self.case.sample_us)) - sampled, 0)
        return passed, missed


@define(eq=False)
class Floor(Rival):
    """A loop of sleeps, with what sampling costs at least (floor.py).

    :ivar target: the process to sample.
    """

    target: Target

    def __attrs_post_init__(self) -> None:
        case = self.case
        self._process = subprocess.Popen(
            floor.command(self.target.pid, self.target.memory, case.regions, case.sample_us, case.seconds),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait(self) -> None:
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            self._ended_early()
        self._schedstat = Path(f"/proc/{self._process.pid}/schedstat")

    def result(self) -> Any:
        return json.loads(self._said)

    def nr_intervals(self, result: Any) -> tuple[int, int]:
        interval = 1000 * self.case.sample_us
        missed = 0
        for turn in self.turns:
            # The first may have begun while it was stopped.
            late = [min(count, (at - turn.begin) // interval) for at, count in result["missed"] if turn.measured(at)]
            missed += min(sum(late), turn.ns // interval)
        intervals = sum(turn.ns for turn in self.turns) / interval
        return round(intervals) - missed, missed
