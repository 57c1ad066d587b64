# SPDX-License-Identifier: GPL-2.0-only
"""``kdamon run`` on simulated memory: everything but the access source, on any machine."""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from kdamon import trace
from kdamon.damon import damon_ctx
from kdamon.kernel import RealClock
from kdamon.mm.sim.actions import SimPages
from kdamon.mm.sim.machine import SimMachine
from kdamon.mm.sim.process import SimProcess
from kdamon.producers.client import ReportClient
from kdamon.regions import Regions
from kdamon.reports.record import report_array
from kdamon.sample_control import READS_UNSEEN
from kdamon_fs import sysfs_sample
from kdamon_tools import cli
from kdamon_tools.commands import run as run_verb
from kdamon_tools.commands import run_live
from kdamon_tools.output.terminal import LiveView
from kdamon_tools.report_files.report_file import RecordingWriter, open_recording
from tests.support.json_schemas import validate

pytestmark = pytest.mark.real


MIB = 1 << 20
BASE = 0x7F00_0000_0000
QUICK = ["--sample-us", "1000", "--aggr-us", "20000"]


class RealTimeMachine(SimMachine):
    """Any process has the same simulated memory: 64 MiB, of which 16 MiB are always accessed."""

    #: Which processes were asked for.
    meant: ClassVar[list[tuple[int, int | None]]] = []

    def get_task(self, pid: int, primitive: str = "page_table", birth: int | None = None) -> SimProcess:
        """Make it."""
        vmas = [(0x40_0000, 0x41_0000), (BASE, BASE + 64 * MIB), (0x7FFF_0000_0000, 0x7FFF_0001_0000)]
        clock: Any = RealClock()
        pages = SimPages(clock, np.array(vmas, np.uint64))
        process = SimProcess(pid, clock, np.random.default_rng(1), pages)
        process.access(BASE, BASE + 16 * MIB)
        process.primitive, process.reads_fault = primitive, self.faults_of_reads
        self.processes[pid] = process
        self.meant.append((pid, birth))
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


@contextmanager
def after(
    aggregations: int, act: Callable[[], object], once: Callable[[Regions], bool] = lambda _: True
) -> Iterator[None]:
    """Do something when so many aggregations are over, however long they take, and ``once`` holds for the regions."""
    seen = itertools.count(1)
    done = threading.Event()

    def aggregated(_ctx: damon_ctx, _target: int, regions: Regions) -> None:
        number = next(seen)
        # A condition that never comes is for the test's own assertions.
        if not done.is_set() and number >= aggregations and (once(regions) or number > 50 * aggregations):
            done.set()
            act()

    trace.damon_aggregated.register(aggregated)
    try:
        yield
    finally:
        trace.damon_aggregated.unregister(aggregated)


def interrupt() -> None:
    """Ctrl-C."""
    os.kill(os.getpid(), signal.SIGINT)


def test_json_has_regions_of_each_aggregation(
    process: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    """One object with the configuration, the snapshots and the counters; the hot range is in them."""
    with after(50, process.kill):
        status = cli.main(["run", "--pid", str(process.pid), "--json", "--quiet", *QUICK])
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert (0, "") == (status, err)
    assert (process.pid, 20) == (document["config"]["pid"], document["config"]["max_nr_accesses"])
    assert "the process ended" == document["note"]
    assert len(document["snapshots"]) >= 50
    assert all(snapshot["began"] < snapshot["time"] for snapshot in document["snapshots"])
    last = document["snapshots"][-1]["regions"]
    hot = [region for region in last if region["nr_accesses"] >= 10]
    assert BASE in [region["start"] for region in hot]
    assert 12 * MIB <= sum(region["end"] - region["start"] for region in hot) <= 24 * MIB
    assert document["counters"]["samples"] > 1000


def test_the_result_is_a_heatmap_with_a_summary(
    process: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines about the present state on standard error, the result on standard output."""
    monkeypatch.setattr(run_live, "_LINE_S", 0.5)
    ends_when_shown(monkeypatch, process, 2)
    assert 0 == cli.main(["run", "--pid", str(process.pid), *QUICK])
    out, err = capsys.readouterr()
    assert 2 == err.count("accessed")
    assert f"{BASE:x}  " in out
    assert "@@@@@" in out
    assert "\x1b" not in out
    assert f"monitored pid {process.pid} for " in out
    assert max(map(len, out.splitlines())) <= 80


def test_a_file_may_take_the_result(
    process: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Standard output stays free for the command's own."""
    path = tmp_path / "result.json"
    words = ["run", "--pid", str(process.pid), "--seconds", "0.3", "--json", "--quiet", "--output", str(path), *QUICK]
    assert 0 == cli.main(words)
    assert "" == capsys.readouterr().out
    document = json.loads(path.read_text())
    assert "the time was over" == document["note"]
    assert document["seconds"] >= 0.3


def test_the_process_that_has_the_number_at_the_beginning_is_meant(process: subprocess.Popen[bytes]) -> None:
    """And no other one that gets it until monitoring begins."""
    RealTimeMachine.meant.clear()
    assert 0 == cli.main(["run", "--pid", str(process.pid), "--seconds", "0.1", "--quiet", *QUICK])
    with open(f"/proc/{process.pid}/stat", "rb") as stat:
        began = int(stat.read().rpartition(b")")[2].split()[19])
    assert [(process.pid, began)] == RealTimeMachine.meant


class PhysicalMachine(RealTimeMachine):
    """The memory of one process is at 4 GiB, a quarter of it hot; after it is as much page cache."""

    def __init__(self) -> None:
        super().__init__()
        process = super().get_task(150)
        process.placed = self.placed
        self.place(process, BASE, BASE + 64 * MIB, 1 << 32)
        self.cached = np.array([[(1 << 32) + 64 * MIB, (1 << 32) + 128 * MIB]], np.uint64)

    def get_task(self, pid: int, primitive: str = "page_table", birth: int | None = None) -> SimProcess:
        """The one that there is."""
        return self.processes[pid]


def test_physical_memory(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """All there is, without a process; or ranges of it, for as long as a command runs."""
    monkeypatch.setattr(run_verb, "machine_when_needed", PhysicalMachine)
    with after(40, interrupt):
        assert 0 == cli.main(["run", "--ops", "paddr", "--json", "--quiet", *QUICK])
    document = json.loads(capsys.readouterr().out)
    assert (0, "paddr") == (document["config"]["pid"], document["config"]["ops"])
    last = document["snapshots"][-1]["regions"]
    assert (1 << 32, (1 << 32) + 128 * MIB) == (last[0]["start"], last[-1]["end"])
    hot = sum(region["end"] - region["start"] for region in last if region["nr_accesses"] >= 10)
    assert 12 * MIB <= hot <= 24 * MIB
    assert 0 < document["counters"]["unknown"] < document["counters"]["samples"]
    # The end of the memory of the process, and the beginning of the page cache.
    part = f"{(1 << 32) + 48 * MIB:x}-{(1 << 32) + 80 * MIB:x}"
    assert 3 == cli.main(["run", "--ops", "paddr", "--range", part, *QUICK, "--", "sh", "-c", "sleep 1; exit 3"])
    out = capsys.readouterr().out
    assert "monitored physical addresses for" in out
    assert f"{(1 << 32) + 48 * MIB:x}  " in out


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["--pid", "1"], "--pid"),
        (["--write-only"], "--write-only, --read-only, --cpus, --tids and --by"),
        (["--cpus", "0"], "--write-only, --read-only, --cpus, --tids and --by"),
        (["--tids", "5"], "--write-only, --read-only, --cpus, --tids and --by"),
        (["--primitive", "page_fault"], "--primitive page_fault"),
        (["--truth", "file"], "--truth"),
    ],
)
def test_what_only_processes_have_is_refused_for_physical_memory(
    words: list[str], option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With one sentence."""
    assert 2 == cli.main(["run", "--ops", "paddr", *words])
    sentence = f"kdamon: --ops paddr monitors the machine's memory, not a process: leave {option} out\n"
    assert sentence == capsys.readouterr().err


def test_ranges_in_which_nothing_is_mapped(
    process: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    """It is said before and after; what is mapped counts."""
    words = ["run", "--pid", str(process.pid), "--ops", "fvaddr", "--quiet", "--seconds", "0.5", *QUICK]
    assert 0 == cli.main([*words, "--range", "10000-20000", "--range", f"{BASE:x}-{BASE + MIB:x}"])
    out, err = capsys.readouterr()
    assert (
        "kdamon: --range 10000-20000: nothing is mapped there now, so no access can be observed; addresses are " in err
    )
    assert 1 == err.count("--range")
    assert "never mapped                        64.0 KiB  of the 1.1 MiB of the ranges\n" in out
    assert 0 == cli.main([*words, "--range", f"{BASE:x}-{BASE + MIB:x}", "--json"])
    out, err = capsys.readouterr()
    assert "" == err
    assert 0 == json.loads(out)["counters"]["never_mapped"]


@pytest.mark.parametrize(
    ("ops", "addresses", "said"),
    [
        ("fvaddr", "0x139873495060480-0x139873562169344", "0x139873495060480 is beyond user space, which ends at 0x"),
        ("fvaddr", "7f0000000000-ffffffffffffffff", "0xffffffffffffffff is beyond user space, which ends at 0x"),
        (
            "paddr",
            "139873495060480-139873562169344",
            "0x7f36d5fc9000 is beyond the machine's memory, which ends at 0x",
        ),
    ],
)
def test_addresses_that_cannot_be_are_refused_before_a_command_begins(  # noqa: PLR0917 -- columns and fixtures
    ops: str,
    addresses: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As a mistake on the command line."""
    monkeypatch.setattr(run_verb, "machine_when_needed", PhysicalMachine)
    begun = tmp_path / "begun"
    assert 2 == cli.main(["run", "--ops", ops, "--range", addresses, "--", "touch", str(begun)])
    err = capsys.readouterr().err
    assert said in err
    assert err.endswith("; addresses are hexadecimal\n")
    assert not begun.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_cleanly(
    process: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    """Ctrl-C shows the result and is a success; afterwards signals do what they did before."""
    before = signal.getsignal(number)
    with after(20, lambda: os.kill(os.getpid(), number)):
        assert 0 == cli.main(["run", "--pid", str(process.pid), "--quiet", *QUICK])
    assert "stopped by a signal" in capsys.readouterr().out
    assert before == signal.getsignal(number)


def test_a_hangup_that_is_ignored_ends_nothing(
    process: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    """As with nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with after(2, lambda: os.kill(os.getpid(), signal.SIGHUP)):
            assert 0 == cli.main(["run", "--pid", str(process.pid), "--quiet", "--seconds", "1", *QUICK])
    finally:
        signal.signal(signal.SIGHUP, before)
    assert "the time was over" in capsys.readouterr().out


def test_a_thread_of_the_kernel_has_nothing_to_monitor(capsys: pytest.CaptureFixture[str]) -> None:
    """It would be monitored for ever, and nothing be seen."""
    threads = [entry.name for entry in Path("/proc").iterdir() if entry.name.isdecimal() and _parent(entry) == 2]
    if not threads:
        pytest.skip("no thread of the kernel is visible here, as in a container")
    assert 1 == cli.main(["run", "--pid", threads[0], "--quiet", "--seconds", "1", *QUICK])
    sentence = f"kdamon: process {threads[0]} is a kernel thread: it has no memory of its own to monitor\n"
    assert sentence == capsys.readouterr().err


def _parent(process: Path) -> int:
    try:
        return int((process / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except OSError:
        return -1


def test_the_process_may_end_first(process: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]) -> None:
    """A note says so, also when its parent has not looked yet; what was seen until then is shown."""
    with after(25, process.kill):
        assert 0 == cli.main(["run", "--pid", str(process.pid), "--quiet", *QUICK])
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


def test_a_command_ends_with_the_time(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing that was started for monitoring outlives it."""
    assert 0 == cli.main(["run", "--quiet", "--seconds", "0.5", *QUICK, "--", "sleep", "600"])
    out = capsys.readouterr().out
    assert "the time was over" in out
    (pid,) = re.findall(r"^monitored pid (\d+) ", out, re.MULTILINE)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


def test_a_command_that_cannot_be_started(capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence with its name."""
    assert 1 == cli.main(["run", "--", "/nonexistent/server"])
    assert "kdamon: /nonexistent/server: No such file or directory\n" == capsys.readouterr().err


def test_intervals_that_cannot_be(process: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]) -> None:
    """The core's own sentence."""
    assert 2 == cli.main(["run", "--pid", str(process.pid), "--sample-us", "5000", "--aggr-us", "1000"])
    out, err = capsys.readouterr()
    assert ("", 1) == (out, err.count("\n"))
    assert err.startswith("kdamon: ")


def ends_when_shown(monkeypatch: pytest.MonkeyPatch, process: subprocess.Popen[bytes], times: int) -> None:
    """End ``process`` once its present state was shown so often."""
    show = LiveView.show
    shown = itertools.count(1)

    def counted(view: LiveView, text: str) -> None:
        show(view, text)
        if next(shown) == times:
            process.kill()
            process.wait()

    monkeypatch.setattr(LiveView, "show", counted)


def test_the_first_aggregation_is_shown_at_once(
    process: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interval between two lines does not delay the first one."""
    monkeypatch.setattr(run_live, "_LINE_S", float("inf"))
    ends_when_shown(monkeypatch, process, 1)
    assert 0 == cli.main(["run", "--pid", str(process.pid), *QUICK])
    assert 1 == capsys.readouterr().err.count(" regions of ")


def test_an_aggregation_is_shown_once(
    process: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where lines come more often than aggregations, none is shown again."""
    monkeypatch.setattr(run_live, "_LINE_S", 0.0)
    ends_when_shown(monkeypatch, process, 3)
    assert 0 == cli.main(["run", "--pid", str(process.pid), "--sample-us", "50ms", "--aggr-us", "500ms"])
    times = [line.split()[0] for line in capsys.readouterr().err.splitlines()]
    assert 3 == len(times) == len(set(times))


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
    ends_when_shown(monkeypatch, process, 3)
    assert 0 == cli.main(["run", "--pid", str(process.pid), *QUICK])
    shown = screen.getvalue()
    assert 3 == shown.count("start        size")
    assert shown.count("start        size") == shown.count("\x1b[J")
    assert shown.endswith("\x1b[J")
    assert "\x1b[48;5;" in shown
    assert "\x1b" not in capsys.readouterr().out


class ReadersAndWriters(RealTimeMachine):
    """16 MiB are written on CPU 0, 16 MiB on CPU 1, 16 MiB are only read on CPU 1."""

    parts = {"A": BASE, "B": BASE + 24 * MIB, "C": BASE + 48 * MIB}

    def get_task(self, pid: int, primitive: str = "page_table", birth: int | None = None) -> SimProcess:
        """Make it."""
        process = super().get_task(pid, primitive, birth)
        process.script.clear()
        process.access(self.parts["A"], self.parts["A"] + 16 * MIB, cpu=0, tid=1001)
        process.access(self.parts["B"], self.parts["B"] + 16 * MIB, cpu=1, tid=1002)
        process.access(self.parts["C"], self.parts["C"] + 16 * MIB, cpu=1, tid=1002, write=False)
        return process


@pytest.fixture
def readers_and_writers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Monitor them, on a machine with two CPUs at least."""
    monkeypatch.setattr(run_verb, "machine_when_needed", ReadersAndWriters)
    monkeypatch.setattr(sysfs_sample, "nr_cpu_ids", lambda: 4)


def hot_parts(regions: list[dict[str, Any]], nr_accesses: int = 10) -> str:
    """Which parts are mostly in regions that count so often, 10 is half of the samples."""
    hot = [r for r in regions if r["nr_accesses"] >= nr_accesses]
    found = ""
    for name, start in ReadersAndWriters.parts.items():
        end = start + 16 * MIB
        covered = sum(max(0, min(r["end"], end) - max(r["start"], start)) for r in hot)
        found += name if covered > 8 * MIB else ""
    return found


@pytest.mark.usefixtures("readers_and_writers")
@pytest.mark.parametrize(
    ("options", "primitive", "wanted"),
    [
        ([], "page_table", "ABC"),
        (["--primitive", "page_table"], "page_table", "ABC"),
        (["--primitive", "page_fault"], "page_fault", "AB"),
        (["--write-only"], "page_fault", "AB"),
        (["--cpus", "0"], "page_fault", "A"),
        (["--cpus", "1-3"], "page_fault", "B"),
        (["--tids", "1002,5"], "page_fault", "B"),
        (["--write-only", "--cpus", "0", "--tids", "1002"], "page_fault", ""),
    ],
)
def test_only_what_is_asked_for_counts(
    process: subprocess.Popen[bytes],
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    primitive: str,
    wanted: str,
) -> None:
    """A filter implies page_fault; what became of the faults adds up."""
    with after(40, process.kill):
        assert 0 == cli.main(["run", "--pid", str(process.pid), "--json", "--quiet", *options, *QUICK])
    out, err = capsys.readouterr()
    assert "" == err
    document = json.loads(out)
    assert primitive == document["config"]["primitive"]
    assert wanted == hot_parts(document["snapshots"][-1]["regions"])
    reports = document["counters"]["reports"]
    assert reports["accepted"] == sum(reports.values()) - reports["accepted"] - reports["dropped"]
    assert bool(reports["accepted"]) == (primitive == "page_fault")
    assert bool(reports["filtered"]) == (document["config"]["cpus"] + document["config"]["tids"] != [])
    assert 0 == document["counters"]["faults_lost"]


@pytest.mark.usefixtures("readers_and_writers")
def test_it_says_what_faults_do_not_show(process: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]) -> None:
    """On standard error at the start, and below the heatmap; not to those who asked for writes only."""
    sentence = "page_fault observes writes and first touches; other reads need Linux 7.3\n"
    words = ["run", "--pid", str(process.pid), "--seconds", "0.3", "--cpus", "0", *QUICK]
    assert 0 == cli.main(words)
    out, err = capsys.readouterr()
    assert err.startswith(f"kdamon: {sentence}")
    assert sentence in out
    assert "\nonly accesses by CPU 0 counted\n" in out
    assert 0 == cli.main([*words, "--write-only", "--tids", "7,8"])
    out, err = capsys.readouterr()
    assert sentence not in out + err
    assert "\nonly writes by CPU 0 by threads 7,8 counted\n" in out


@pytest.mark.usefixtures("readers_and_writers")
@pytest.mark.parametrize(
    ("by", "wanted"), [("cpu", {0: "A", 1: "B"}), ("thread", {1001: "A", 1002: "B"}), ("node", {0: "AB"})]
)
@pytest.mark.parametrize("form", ["object", "lines"])
def test_each_group_accesses_its_own_memory(
    process: subprocess.Popen[bytes], tmp_path: Path, form: str, by: str, wanted: dict[int, str]
) -> None:
    """In one run, from the same faults; their numbers add up."""
    output = tmp_path / "result.json"
    words = ["run", "--pid", str(process.pid), "--by", by, f"--json={form}", "--output", str(output), "--quiet"]
    with after(40, process.kill):
        assert 0 == cli.main([*words, *QUICK])
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    if form == "lines":
        for line in lines:
            validate(line, "kdamon.run.lines")
        document, snapshots = {**lines[0], **lines[-1]}, lines[1:-1]
    else:
        document = validate(lines[0], "kdamon.run")
        snapshots = document["snapshots"]
    assert "page_fault" == document["config"]["primitive"]
    last = {group["number"]: group["regions"] for group in snapshots[-1]["groups"]}
    assert wanted == {number: hot_parts(regions) for number, regions in last.items()}
    assert sorted(wanted) == sorted(group["number"] for group in document["groups"])
    in_snapshots = sum(region["nr_reports"] for s in snapshots for group in s["groups"] for region in group["regions"])
    in_all = sum(group["nr_reports"] for group in document["groups"])
    assert in_snapshots == in_all > 0
    assert in_all <= document["counters"]["reports"]["applied"]


@pytest.mark.usefixtures("readers_and_writers")
def test_a_picture_of_each_group(process: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]) -> None:
    """After the picture of all, and their numbers in a table."""
    with after(40, process.kill):
        assert 0 == cli.main(["run", "--pid", str(process.pid), "--by", "cpu", *QUICK])
    out = capsys.readouterr().out
    assert re.search(r"^CPU 0: \d+ reports, \d+\.\d% of all$", out, re.MULTILINE)
    assert re.search(r"^all CPUs +\d+ +100\.0%", out, re.MULTILINE)
    assert 3 == out.count("         address  ")


@pytest.mark.usefixtures("readers_and_writers")
@pytest.mark.parametrize(("option", "wanted"), [("--cpus=1", "BC"), ("--read-only", "C")])
def test_reads_count_where_faults_show_them(
    process: subprocess.Popen[bytes],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    option: str,
    wanted: str,
) -> None:
    """By CPU and thread as writes do, and alone; that they are not seen is not said then."""
    monkeypatch.setattr(ReadersAndWriters, "faults_of_reads", True)
    words = ["run", "--pid", str(process.pid), option, *QUICK]
    with after(40, process.kill):
        assert 0 == cli.main([*words, "--json"])
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert wanted == hot_parts(document["snapshots"][-1]["regions"])
    assert document["counters"]["faults_of_reads"]
    assert READS_UNSEEN not in err


@pytest.mark.usefixtures("readers_and_writers")
def test_reads_alone_are_refused_where_faults_do_not_show_them(
    process: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    """With what brings them, and what works meanwhile; a command is not even started."""
    for target in (["--pid", str(process.pid)], ["--", "touch", "/nonexistent/started"]):
        assert 1 == cli.main(["run", "--read-only", "--quiet", *QUICK, *target])
        out, err = capsys.readouterr()
        assert ("", 1) == (out, err.count("\n"))
        assert err.startswith(
            "kdamon: reads alone cannot be counted, because faults do not show reads of mapped memory"
        )
        assert "7.3" in err
        assert err.endswith("; page_table counts reads and writes together, and page_fault the writes\n")


@pytest.mark.usefixtures("readers_and_writers")
def test_a_machine_that_does_not_tell_who(
    process: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writes can still be observed; asking for a CPU is an error of one sentence."""
    monkeypatch.setattr(ReadersAndWriters, "attributes_faults", False)
    words = ["run", "--pid", str(process.pid), "--seconds", "0.3", "--quiet", *QUICK]
    assert 0 == cli.main([*words, "--write-only"])
    capsys.readouterr()
    for option in ("--cpus=0", "--by=thread"):
        assert 1 == cli.main([*words, option])
        out, err = capsys.readouterr()
        assert ("", 1) == (out, err.count("\n"))
        assert "does not report which CPU or thread" in err


def test_a_refusal_is_told_with_its_reason(
    process: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the machine says about the process, and nothing else."""

    def refuse(_machine: object, pid: int, primitive: str = "page_table", _birth: int | None = None) -> SimProcess:
        raise OSError(errno.EPERM, f"process {pid} filters its system calls; {primitive} is not for it")

    monkeypatch.setattr(RealTimeMachine, "get_task", refuse)
    assert 1 == cli.main(["run", "--pid", str(process.pid), "--quiet", "--write-only", *QUICK])
    sentence = f"kdamon: process {process.pid} filters its system calls; page_fault_writes is not for it\n"
    assert sentence == capsys.readouterr().err


@contextmanager
def producing(socket: Path, pid: int, addr: int) -> Iterator[None]:
    """Another source: it connects as soon as there is a socket, and reports 16 MiB again and again."""
    stop = threading.Event()

    def produce() -> None:
        while not socket.exists() and not stop.wait(0.005):
            pass
        with ReportClient(socket) as client:
            batch = report_array(256, pid=pid, addr=addr + 65536 * np.arange(256), size=64)
            while not stop.wait(0.0003):
                client.report(batch)

    source = threading.Thread(target=produce)
    source.start()
    try:
        yield
    finally:
        stop.set()
        source.join()


def test_reports_of_others_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is sampled, and what is reported about need not be a process; the recording has all of it."""
    socket, recording = tmp_path / "socket", tmp_path / "reports.npy"
    words = ["run", "--ops", "reports", "--pid", str(os.getpid()), "--range", f"{BASE:x}-{BASE + 64 * MIB:x}"]
    words += ["--reports", str(socket), "--reports-to", str(recording), "--quiet", *QUICK]

    def found(regions: Regions) -> bool:
        names = ("start", "end", "nr_accesses")
        rows = zip(*(getattr(regions, name).tolist() for name in names), strict=True)
        # The source may not get its turn in each sampling interval.
        return hot_parts([dict(zip(names, row, strict=True)) for row in rows], 3) == "B"

    with producing(socket, os.getpid(), BASE + 24 * MIB), after(20, interrupt, once=found):
        assert 0 == cli.main([*words, "--json"])
    document = json.loads(capsys.readouterr().out)
    assert "" == document["config"]["primitive"]
    assert "B" in [hot_parts(snapshot["regions"], 3) for snapshot in document["snapshots"]]
    counters = document["counters"]
    assert counters["producers"]["received"] >= counters["reports"]["accepted"] > 0
    assert counters["recorded"] == {"written": len(open_recording(recording)), "lost": 0}
    assert counters["recorded"]["written"] >= counters["reports"]["accepted"]
    assert not socket.exists()


def test_a_command_finds_the_socket(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """By its environment; below the heatmap is what came of it."""
    words = ["run", "--reports", str(tmp_path / "socket"), "--quiet", *QUICK]
    words += ["--", "sh", "-c", 'test -S "$KDAMON_REPORTS" && echo it is there; sleep 0.3']
    assert 0 == cli.main(words)
    out = capfd.readouterr().out
    assert "it is there" in out
    assert "received from producers" in out


def test_a_recording_that_cannot_be_finished_loses_no_result(
    process: subprocess.Popen[bytes],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A full disk is reported after the heatmap; a recording that cannot be begun, at once."""
    words = ["run", "--pid", str(process.pid), "--seconds", "0.3", "--quiet", "--write-only", *QUICK]
    for impossible in (str(tmp_path), "/dev/full"):
        assert 2 == cli.main([*words, "--reports-to", impossible])
        out, err = capsys.readouterr()
        assert ("", 1) == (out, err.count("\n"))
        assert f"--reports-to: {impossible}: " in err

    def no_room(_writer: RecordingWriter, _records: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(RecordingWriter, "write", no_room)
    assert 1 == cli.main([*words, "--reports-to", str(tmp_path / "r.npy")])
    out, err = capsys.readouterr()
    assert "monitored pid" in out
    assert f"{tmp_path}/r.npy: the report file is incomplete: No space left on device" in err
