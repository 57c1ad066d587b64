# SPDX-License-Identifier: GPL-2.0-only
"""``kdamon run`` on simulated memory: everything but the access source, on any machine."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kdamon.kernel import RealClock
from kdamon.mm.sim import SimMachine, SimProcess
from kdamon_tools import cli
from kdamon_tools.commands import run as run_verb

MIB = 1 << 20
BASE = 0x7F00_0000_0000
QUICK = ["--sample-us", "1000", "--aggr-us", "20000"]


class RealTimeMachine(SimMachine):
    """Any process has the same simulated memory: 64 MiB, of which 16 MiB are always accessed."""

    def get_task(self, pid: int, primitive: str = "page_table") -> SimProcess:
        """Make it."""
        vmas = [(0x40_0000, 0x41_0000), (BASE, BASE + 64 * MIB), (0x7FFF_0000_0000, 0x7FFF_0001_0000)]
        process = SimProcess(pid, RealClock(), np.random.default_rng(1), np.array(vmas, np.uint64))  # type: ignore[arg-type]
        process.access(BASE, BASE + 16 * MIB)
        process.primitive = primitive
        self.processes[pid] = process
        return process


@pytest.fixture(autouse=True)
def simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Monitor simulated memory, in a terminal of 80 x 24."""
    monkeypatch.setattr(run_verb, "machine_when_needed", RealTimeMachine)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A real process, whose number and end are real."""
    with subprocess.Popen(["sleep", "60"]) as sleeping:
        yield sleeping
        sleeping.kill()


def test_json_has_regions_of_each_aggregation(
    process: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    """One object with the configuration, the snapshots and the counters; the hot range is in them."""
    status = cli.main(["run", "--pid", str(process.pid), "--seconds", "1.5", "--json", "--quiet", *QUICK])
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert (0, "") == (status, err)
    assert (process.pid, 20) == (document["config"]["pid"], document["config"]["max_nr_accesses"])
    assert document["note"] == "the time was over"
    assert 30 <= len(document["snapshots"]) <= 75
    last = document["snapshots"][-1]["regions"]
    hot = [region for region in last if region["nr_accesses"] >= 10]
    assert BASE in [region["start"] for region in hot]
    assert 12 * MIB <= sum(region["end"] - region["start"] for region in hot) <= 24 * MIB
    assert document["counters"]["samples"] > 1000


def test_the_result_is_a_heatmap_with_a_summary(
    process: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    """Lines about the present state on standard error, the result on standard output."""
    assert 0 == cli.main(["run", "--pid", str(process.pid), "--seconds", "2.5", *QUICK])
    out, err = capsys.readouterr()
    assert 2 == err.count("accessed")
    assert f"{BASE:x}  " in out
    assert "@@@@@" in out
    assert "\x1b" not in out
    assert f"monitored pid {process.pid} for 2.5 s" in out
    assert max(map(len, out.splitlines())) <= 80


def test_a_file_may_take_the_result(
    process: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Standard output stays free for the command's own."""
    path = tmp_path / "result.json"
    words = ["run", "--pid", str(process.pid), "--seconds", "0.3", "--json", "--quiet", "--output", str(path), *QUICK]
    assert 0 == cli.main(words)
    assert "" == capsys.readouterr().out
    assert json.loads(path.read_text())["seconds"] >= 0.3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_cleanly(
    process: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    """Ctrl-C shows the result and is a success; afterwards signals do what they did before."""
    before = signal.getsignal(number)
    timer = threading.Timer(1.0, os.kill, (os.getpid(), number))
    timer.start()
    try:
        status = cli.main(["run", "--pid", str(process.pid), "--quiet", *QUICK])
    finally:
        # A run that ended too early must not get the tests killed.
        timer.cancel()
        timer.join()
    assert 0 == status
    assert "stopped by a signal" in capsys.readouterr().out
    assert before == signal.getsignal(number)


def test_a_hangup_that_is_ignored_ends_nothing(
    process: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    """As with nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGHUP))
    timer.start()
    try:
        assert 0 == cli.main(["run", "--pid", str(process.pid), "--quiet", "--seconds", "1", *QUICK])
    finally:
        timer.join()
        signal.signal(signal.SIGHUP, before)
    assert "the time was over" in capsys.readouterr().out


def test_a_thread_of_the_kernel_has_nothing_to_monitor(capsys: pytest.CaptureFixture[str]) -> None:
    """It would be monitored for ever, and nothing be seen."""
    threads = [entry.name for entry in Path("/proc").iterdir() if entry.name.isdecimal() and _parent(entry) == 2]
    if not threads:
        pytest.skip("no thread of the kernel is visible here, as in a container")
    assert 1 == cli.main(["run", "--pid", threads[0], "--quiet", "--seconds", "1", *QUICK])
    sentence = f"kdamon: process {threads[0]} is a thread of the kernel: it has no memory of its own to monitor\n"
    assert sentence == capsys.readouterr().err


def _parent(process: Path) -> int:
    try:
        return int((process / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except OSError:
        return -1


def test_the_process_may_end_first(process: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]) -> None:
    """A note says so, also when its parent has not looked yet; what was seen until then is shown."""
    timer = threading.Timer(0.5, process.send_signal, (signal.SIGKILL,))
    timer.start()
    began = time.monotonic()
    assert 0 == cli.main(["run", "--pid", str(process.pid), "--quiet", *QUICK])
    timer.join()
    assert time.monotonic() - began < 20
    out = capsys.readouterr().out
    assert "the process ended" in out
    assert "@@@" in out


@pytest.mark.parametrize(("script", "expected"), [("exit 7", 7), ("kill -9 $$", 137), ("exit 0", 0)])
def test_the_exit_status_of_a_command_is_passed_on(
    capfd: pytest.CaptureFixture[str], script: str, expected: int
) -> None:
    """As a shell does, 128 + number for a signal; its output is its own."""
    words = ["run", "--quiet", *QUICK, "--", "sh", "-c", f"echo it runs; sleep 0.3; {script}"]
    assert expected == cli.main(words)
    assert "it runs" in capfd.readouterr().out


def test_a_command_ends_with_the_time(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Nothing that was started for monitoring outlives it."""
    pid_file = tmp_path / "pid"
    words = ["run", "--quiet", "--seconds", "0.5", *QUICK, "--", "sh", "-c", f"echo $$ > {pid_file}; exec sleep 600"]
    assert 0 == cli.main(words)
    assert "the time was over" in capsys.readouterr().out
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


def test_a_command_that_cannot_be_started(capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence with its name."""
    assert 1 == cli.main(["run", "--", "/nonexistent/server"])
    assert "kdamon: /nonexistent/server: No such file or directory\n" == capsys.readouterr().err


def test_intervals_that_cannot_be(process: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]) -> None:
    """The core's own sentence."""
    assert 1 == cli.main(["run", "--pid", str(process.pid), "--sample-us", "5000", "--aggr-us", "1000"])
    out, err = capsys.readouterr()
    assert ("", 1) == (out, err.count("\n"))
    assert err.startswith("kdamon: ")


def test_on_a_terminal_the_table_is_redrawn(
    process: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each table takes the place of the one before, and none is left at the end."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert 0 == cli.main(["run", "--pid", str(process.pid), "--seconds", "1.7", *QUICK])
    shown = screen.getvalue()
    assert 3 == shown.count("start        size")
    assert shown.count("start        size") == shown.count("\x1b[J")
    assert shown.endswith("\x1b[J")
    assert "\x1b[48;5;" in shown
    assert "\x1b" not in capsys.readouterr().out
