# SPDX-License-Identifier: GPL-2.0-only
"""``kdamon replay``: the same file gives the same regions, always, and they are the right ones."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attrs import evolve

from kdamon import trace
from kdamon.core import run_ctx
from kdamon.damon import damon_access_report, damon_ctx
from kdamon.kernel import VirtualClock
from kdamon.monitoring.context import add_target, new_context
from kdamon.monitoring.monitor import Monitor
from kdamon.regions import Regions
from kdamon.reports.deliver import damon_report_access, report_accesses
from kdamon.reports.record import REPORT_DTYPE
from kdamon_tools import cli, replayer
from kdamon_tools.replayer import Replay, Tape, processes_of, ranges_of
from kdamon_tools.report_files import report_file
from kdamon_tools.report_files.records import Records, new_records, reports_of
from kdamon_tools.report_files.report_file import Recorder, RecordingWriter, read_reports
from kdamon_tools.snapshot import Config, Snapshot
from tests.support.cli import DATA
from tests.support.json_schemas import validate
from tests.support.paths import PYTHONPATH

MIB = 1 << 20
BASE = 0x7F00_0000_0000
HOT = (BASE + 64 * MIB, BASE + 80 * MIB)
QUICK = ["--sample-us", "1000", "--aggr-us", "20000"]


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of 80 x 24."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")


def workload(pid: int = 7, seconds: float = 1.0, seed: int = 1, cold: float = 0.01) -> Records:
    """200 accesses in each millisecond, half of them writes, all but ``cold`` to 16 MiB of 256; by two threads."""
    rng = np.random.default_rng(seed)
    n = round(200_000 * seconds)
    hot = rng.random(n) >= cold
    start = np.where(hot, HOT[0], BASE).astype(np.uint64)
    pages = np.where(hot, rng.integers(0, 16 * MIB // 4096, n), rng.integers(0, 256 * MIB // 4096, n))
    threads = rng.integers(0, 2, n)
    return new_records(
        n,
        time=1_000_000_000 + np.arange(n) * 5000,
        pid=pid,
        addr=start + pages.astype(np.uint64) * np.uint64(4096) + np.uint64(8),
        size=8,
        write=rng.random(n) < 0.5,
        cpu=threads * 64,
        tid=100 + threads,
    )


def saved(path: Path, records: Records) -> str:
    """The name of a recording of ``records``."""
    with path.open("wb", buffering=0) as file:
        RecordingWriter(file).write(records)
    return str(path)


def replayed(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    """What ``kdamon replay --json`` says, an object for each process."""
    status = cli.main(["replay", "--json", *words])
    out, err = capsys.readouterr()
    assert (0, "") == (status, err)
    return [validate(json.loads(line), "kdamon.replay") for line in out.splitlines()]


def hot_share(document: dict[str, Any], where: tuple[int, int] = HOT) -> tuple[float, float]:
    """How much of ``where`` the last snapshot says is hot, and how much of the rest."""
    regions = document["snapshots"][-1]["regions"]
    hot = [r for r in regions if r["nr_accesses"] >= document["config"]["max_nr_accesses"] / 2]
    inside = sum(max(0, min(r["end"], where[1]) - max(r["start"], where[0])) for r in hot)
    total = sum(r["end"] - r["start"] for r in regions)
    outside = sum(r["end"] - r["start"] for r in hot) - inside
    return inside / (where[1] - where[0]), outside / (total - (where[1] - where[0]))


def contrast(regions: list[dict[str, Any]]) -> float:
    """How many times more often bytes of the hot range were accessed than others; a stalled machine does not matter."""
    inside = outside = size = 0.0
    for r in regions:
        hot = max(0, min(r["end"], HOT[1]) - max(r["start"], HOT[0]))
        inside += hot * r["nr_accesses"]
        outside += (r["end"] - r["start"] - hot) * r["nr_accesses"]
        size += r["end"] - r["start"]
    return (inside / (HOT[1] - HOT[0])) / max(1e-9, outside / (size - (HOT[1] - HOT[0])))


def test_a_recording_shows_what_was_hot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a process that need not exist; in the shape of what ``kdamon run`` says."""
    (document,) = replayed(capsys, saved(tmp_path / "r.npy", workload()), *QUICK)
    assert (7, "reports", "replayed", 1.0) == (
        document["config"]["pid"],
        document["config"]["ops"],
        document["note"],
        document["started"],
    )
    assert [round(0.02 * n, 6) for n in range(1, 51)] == [s["time"] for s in document["snapshots"]]
    found, wrong = hot_share(document)
    assert found > 0.9
    assert wrong < 0.05
    counters = document["counters"]["reports"]
    assert (200_000, 0, 0, 0) == tuple(counters[name] for name in ("accepted", "late", "dropped", "pending"))
    assert counters["accepted"] == counters["applied"] + counters["straddling"] + counters["outside"]
    # The ranges of a file are made of whole pages, and each access lies in one.
    assert counters["accepted"] == counters["applied"]


@pytest.mark.real
@pytest.mark.parametrize("more", [[], ["--density"]])
def test_the_same_file_gives_the_same_bytes(
    more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also in another process, and whatever the sizes of the blocks in which files are read; not with another seed."""
    name = saved(tmp_path / "r.npy", workload(seconds=0.1))
    words = ["--json", *QUICK, *more]
    command = [sys.executable, "-m", "kdamon_tools", "replay", name, *words]
    environment = os.environ | {"PYTHONPATH": PYTHONPATH}
    elsewhere = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout.decode()
    outputs = []
    for block in (1 << 18, 1000, 7):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(replayer, "_BLOCK", block)
            assert 0 == cli.main(["replay", name, *words])
        outputs.append(capsys.readouterr().out)
    assert [elsewhere] * 3 == outputs
    assert 0 == cli.main(["replay", name, "--seed", "1", *words])
    # With density, regions are split where it differs, not at random.
    assert bool(more) == (elsewhere == capsys.readouterr().out)


@pytest.mark.parametrize("name", ["lackey_trace.txt", "perf_script_callchains.txt"])
def test_a_text_gives_what_a_recording_of_it_gives(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However it is cut into blocks; only what is said about recordings of faults differs."""
    np.save(tmp_path / "r.npy", read_reports(DATA / name))
    words = ["--json", "--sample-us", "100", "--aggr-us", "1000"]

    def without_remarks(file: Path) -> list[dict[str, Any]]:
        assert 0 == cli.main(["replay", str(file), *words])
        return [{**json.loads(line), "remarks": []} for line in capsys.readouterr().out.splitlines()]

    expected = without_remarks(tmp_path / "r.npy")
    assert expected
    for size in (1 << 22, 100):
        monkeypatch.setattr(report_file, "_BLOCK_BYTES", size)
        assert expected == without_remarks(DATA / name)


def test_records_may_be_in_any_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their times are what counts."""
    records = workload(seconds=0.2)
    shuffled = records[np.random.default_rng(3).permutation(len(records))]
    documents = [replayed(capsys, saved(tmp_path / "r.npy", some), *QUICK) for some in (records, shuffled)]
    assert documents[0] == documents[1]


class OneByOne(VirtualClock):
    """Each report is pushed by itself when it is due."""

    def __init__(self, records: Records) -> None:
        super().__init__()
        self._rest = records.tolist()[::-1]
        self._start = int(records["time"][0])

    def sleep_until(self, deadline: int, wake: threading.Event) -> None:
        while self._rest and self._rest[-1][0] - self._start < deadline:
            self._now, values = self._rest[-1][0] - self._start, self._rest.pop()[1:]
            damon_report_access(damon_access_report(**dict(zip(REPORT_DTYPE.names or (), values, strict=True))))
        super().sleep_until(deadline, wake)


def test_replaying_is_the_same_as_reporting_one_by_one() -> None:
    """At its time each; the regions are the same after every aggregation interval."""
    records = workload(seconds=0.2)
    config = Config(
        pid=7, ops="reports", primitive="", sample_us=1000, aggr_us=20_000, ranges=tuple(ranges_of(records, [7])[7])
    )
    (recording,) = Replay(Tape(records), [config], 5).in_simulated_time()
    ctx = new_context(config, 5)
    ctx.clock = OneByOne(records)
    add_target(ctx, config)
    seen: list[Regions] = []

    def aggregated(of: damon_ctx, _target: int, regions: Regions) -> None:
        if of is ctx:
            seen.append(regions.copy())

    trace.damon_aggregated.register(aggregated)
    try:
        run_ctx(ctx, 0.2)
    finally:
        trace.damon_aggregated.unregister(aggregated)
    assert 10 == len(seen) == len(recording.snapshots)
    for regions, snapshot in zip(seen, recording.snapshots, strict=True):
        for column in ("start", "end", "nr_accesses", "age"):
            assert getattr(regions, column).tolist() == snapshot.regions[column].tolist()


def test_each_sampling_interval_gets_the_reports_of_its_time() -> None:
    """From its first nanosecond to its last; the first report's time is where they begin."""
    times = np.array([0, 4_999_999, 5_000_000, 10_000_000, 24_999_999, 99_999_999, 100_000_000]) + 12_345
    records = new_records(len(times), time=times, pid=7, addr=BASE + 0x800)
    config = Config(pid=7, ops="reports", primitive="", ranges=((BASE, BASE + 4096),))
    (recording,) = Replay(Tape(records), [config], 0).in_simulated_time()
    # Intervals 0, 1, 2, 4 and 19 of the first twenty, then 0 of the next.
    assert [[5], [1]] == [s.regions["nr_accesses"].tolist() for s in recording.snapshots]
    assert 7 == recording.counters.reports["applied"]


@pytest.mark.parametrize("replay", [Replay.in_simulated_time, Replay.in_real_time])
def test_an_aggregation_interval_is_made_of_whole_sampling_intervals(replay: Any) -> None:
    """As everywhere; it ends with the one that the last report lies in."""
    records = new_records(3, time=np.array([0, 29, 31]) * 1_000_000, pid=7, addr=BASE + 0x800)
    config = Config(pid=7, ops="reports", primitive="", sample_us=5000, aggr_us=14_000, ranges=((BASE, BASE + 4096),))
    (recording,) = replay(Replay(Tape(records), [config], 0))
    # Of 10 ms each.
    assert (0.04, 2) == (recording.seconds, config.max_nr_accesses)
    if replay is Replay.in_simulated_time:
        assert [[1], [0], [1], [1]] == [s.regions["nr_accesses"].tolist() for s in recording.snapshots]
        assert [0.01, 0.02, 0.03, 0.04] == [s.time for s in recording.snapshots]


def test_each_process_is_a_target_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An object a line, those with most reports first; a picture for each."""
    shifted = workload(9, 0.2)
    shifted["addr"] += np.uint64(32 * MIB)
    name = saved(tmp_path / "r.npy", np.concatenate([shifted, workload(8, 0.4)]))
    documents = replayed(capsys, name, *QUICK)
    assert [8, 9] == [document["config"]["pid"] for document in documents]
    assert hot_share(documents[0])[0] > 0.8
    assert [20, 20] == [len(document["snapshots"]) for document in documents]
    early = {"snapshots": documents[1]["snapshots"][:10], "config": documents[1]["config"]}
    assert hot_share(early, (HOT[0] + 32 * MIB, HOT[1] + 32 * MIB))[0] > 0.8
    assert 0 == documents[0]["counters"]["reports"]["ineligible"]
    assert 0 == cli.main(["replay", name, *QUICK])
    out = capsys.readouterr().out
    assert ["monitored pid 8", "monitored pid 9"] == [
        line[:15] for line in out.splitlines() if line.startswith("monitored")
    ]
    assert max(map(len, out.splitlines())) <= 80
    assert "reports accepted" in out


def test_pictures_of_many_processes_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And a line says so."""
    records = new_records(120, time=np.arange(120), pid=1 + np.arange(120) % 12, addr=BASE)
    assert 0 == cli.main(["replay", saved(tmp_path / "r.npy", records)])
    out = capsys.readouterr().out
    assert 8 == out.count("monitored pid")
    assert "and 4 processes with fewer reports" in out


@pytest.mark.parametrize(
    ("columns", "said"),
    [({"cpu": 0, "tid": 100}, True), ({"cpu": 0, "tid": 100, "size": 64}, False), ({"cpu": 0}, False), ({}, False)],
    ids=["a fault", "not one byte", "no thread", "neither"],
)
def test_a_replay_of_faults_says_how_it_differs_from_the_live_run(
    columns: dict[str, int], said: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the summary and in the object; there are no other remarks."""
    name = saved(tmp_path / "faults.npy", new_records(3, time=np.arange(3), pid=7, addr=BASE, **columns))
    (document,) = replayed(capsys, name)
    assert [said] * len(document["remarks"]) == [
        "less memory shows as accessed here than in the live run" in remark for remark in document["remarks"]
    ]
    assert int(said) == len(document["remarks"])
    assert 0 == cli.main(["replay", name])
    assert said == ("than in the live run" in " ".join(capsys.readouterr().out.split()))


def test_a_text_of_samples_is_not_about_a_live_run(capsys: pytest.CaptureFixture[str]) -> None:
    """Samples of perf's name thread and CPU, too."""
    assert 0 == cli.main(["replay", "--json", str(DATA / "perf_script_callchains.txt")])
    assert {()} == {tuple(json.loads(line)["remarks"]) for line in capsys.readouterr().out.splitlines()}


def test_one_process_may_be_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is about others is ineligible."""
    name = saved(tmp_path / "r.npy", np.concatenate([workload(8, 0.1), workload(9, 0.1)]))
    (document,) = replayed(capsys, name, "--pid", "9", *QUICK)
    assert 9 == document["config"]["pid"]
    assert 20_000 == document["counters"]["reports"]["ineligible"]


@pytest.mark.parametrize(
    ("words", "passes"),
    [
        (["--write-only"], lambda r: r["write"]),
        (["--cpus", "64"], lambda r: r["cpu"] == 64),
        (["--cpus", "0-63,65-9999"], lambda r: r["cpu"] == 0),
        (["--tids", "101,7"], lambda r: r["tid"] == 101),
        (["--write-only", "--tids", "100", "--cpus", "0"], lambda r: r["write"] & (r["tid"] == 100)),
    ],
)
def test_filters_are_those_of_sampling(
    words: list[str], passes: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They discard, and count what they discard; the CPUs need not be this machine's."""
    records = workload(seconds=0.1)
    (document,) = replayed(capsys, saved(tmp_path / "r.npy", records), *words, *QUICK)
    counters = document["counters"]["reports"]
    passed = int(passes(records).sum())
    assert (passed, len(records) - passed) == (counters["applied"], counters["filtered"])


def test_ranges_may_be_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is not in them is outside."""
    records = workload(seconds=0.1)
    middle = (HOT[0] + HOT[1]) // 2
    words = ["--range", f"{middle:x}-{HOT[1]:x}", "--range", f"{BASE:x}-{BASE + MIB:x}"]
    (document,) = replayed(capsys, saved(tmp_path / "r.npy", records), *words, *QUICK)
    assert [[middle, HOT[1]], [BASE, BASE + MIB]] == document["config"]["ranges"]
    addresses = records["addr"]
    inside = ((addresses >= middle) & (addresses < HOT[1])) | (addresses < BASE + MIB)
    counters = document["counters"]["reports"]
    assert (int(inside.sum()), int((~inside).sum())) == (counters["applied"], counters["outside"])


@pytest.mark.real
def test_in_real_time_it_takes_the_time_that_it_took(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By a kdamond as any other: the hot part is found as well, and nothing is lost but what comes late."""
    name = saved(tmp_path / "r.npy", workload(seconds=1, cold=0))

    def good() -> bool:
        (document,) = replayed(capsys, name, "--realtime", "--range", f"{BASE:x}-{BASE + 256 * MIB:x}")
        assert 1.0 == document["seconds"]
        assert 1 <= len(document["snapshots"]) <= 11
        counters = document["counters"]["reports"]
        assert counters["accepted"] == sum(counters.values()) - counters["accepted"] - counters["dropped"]
        # Not the last one, which a kdamond that was held up ends when the reports are over.
        found = contrast(document["snapshots"][len(document["snapshots"]) // 2]["regions"]) > 3
        return found and counters["applied"] > 0.3 * 200_000

    # A busy machine may hold the kdamond up for all of a second.
    assert any(good() for _ in range(5))


def test_no_snapshot_begins_before_the_replay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the kdamond samples long before the thread that started it goes on."""
    start = replayer.damon_start

    def start_and_wait(*arguments: Any, **options: Any) -> None:
        start(*arguments, **options)
        time.sleep(0.3)

    monkeypatch.setattr(replayer, "damon_start", start_and_wait)
    name = saved(tmp_path / "r.npy", workload(seconds=1, cold=0))
    # It is compared with the schema, in which no time is negative.
    (document,) = replayed(capsys, name, "--realtime", "--range", f"{BASE:x}-{BASE + 256 * MIB:x}")
    assert 0 <= document["snapshots"][0]["began"] < document["snapshots"][0]["time"]


def test_what_was_recorded_live_shows_what_was_seen_live(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A kdamond and a recorder get the same reports; the recording is replayed later."""
    config = Config(pid=7, ops="reports", primitive="", aggr_us=50_000, ranges=((BASE, BASE + 256 * MIB),))
    reports = reports_of(workload(seconds=0.1, cold=0))
    snapshots: list[Snapshot] = []
    rounds = 0
    with Recorder(tmp_path / "r.npy") as recorder, Monitor(config) as monitor:
        while len(snapshots) < 10:
            rounds += 1
            for at in range(0, len(reports), 500):
                report_accesses(reports[at : at + 500])
                time.sleep(0.005)
            snapshots += monitor.drain()
    # Of both the last whole aggregation interval: the very last may have begun just before the end.
    seen = snapshots[-2]
    assert (rounds * len(reports), 0) == (recorder.recorded, recorder.lost)
    words = ["--aggr-us", "50000", "--range", f"{BASE:x}-{BASE + 256 * MIB:x}"]
    (document,) = replayed(capsys, str(tmp_path / "r.npy"), *words)
    assert rounds * len(reports) == document["counters"]["reports"]["applied"]
    assert contrast(document["snapshots"][-2]["regions"]) > 3
    names = seen.regions.dtype.names or ()
    assert contrast([dict(zip(names, row, strict=True)) for row in seen.regions.tolist()]) > 3


@pytest.mark.real
def test_a_file_may_come_through_a_pipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As from valgrind or perf themselves, or a recording from zcat."""
    command = [sys.executable, "-m", "kdamon_tools", "replay", "-", "--json"]
    environment = os.environ | {"PYTHONPATH": PYTHONPATH}
    trace_text = (DATA / "lackey_trace.txt").read_bytes()
    piped = subprocess.run(command, env=environment, input=trace_text, check=True, stdout=subprocess.PIPE).stdout
    assert 0 == cli.main(["replay", str(DATA / "lackey_trace.txt"), "--json"])
    assert capsys.readouterr().out == piped.decode()
    recording = tmp_path / "r.npy"
    np.save(recording, workload(seconds=0.01))
    piped = subprocess.run(command, env=environment, input=recording.read_bytes(), check=True, stdout=subprocess.PIPE)
    assert 0 == cli.main(["replay", str(recording), "--json"])
    assert capsys.readouterr().out == piped.stdout.decode()


@pytest.mark.real
def test_no_room_for_a_temporary_recording_is_said() -> None:
    """With where it was to be, and what to do."""
    command = [sys.executable, "-m", "kdamon_tools", "replay", str(DATA / "lackey_trace.txt")]
    environment = os.environ | {"PYTHONPATH": PYTHONPATH}
    limit = "import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); "
    limit += "os.execv(sys.argv[1], sys.argv[1:])"
    failed = subprocess.run(
        [sys.executable, "-c", limit, *command], env=environment, capture_output=True, text=True, check=False
    )
    assert (1, 1) == (failed.returncode, failed.stderr.count("\n"))
    assert (
        "there is no room for a temporary report file: File too large; set TMPDIR to a directory with room"
        in failed.stderr
    )


def test_lackeys_pace_and_instructions_may_be_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    """A second is so many accesses."""
    (document,) = replayed(capsys, str(DATA / "lackey_trace.txt"), "--rate", "100")
    # 56 accesses, two of which modify and count twice.
    assert (0.6, 58) == (document["seconds"], document["counters"]["reports"]["accepted"])
    (document,) = replayed(capsys, str(DATA / "lackey_trace.txt"), "--rate", "100", "--instructions")
    assert (2.0, 193) == (document["seconds"], document["counters"]["reports"]["accepted"])


def test_what_became_of_lines_is_said_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    """A sentence each on standard error; programs that read the output are not disturbed."""
    assert 0 == cli.main(["replay", str(DATA / "perf_script_mem.txt"), "--json"])
    out, err = capsys.readouterr()
    assert [4242, 4300, 5000] == [json.loads(line)["config"]["pid"] for line in out.splitlines()]
    assert [
        "left out: 1 lines that could not be parsed",
        "left out: 1 samples without a data address",
        "not kept: 1 accesses were served by another NUMA node",
    ] == [line.split("perf_script_mem.txt: ")[1] for line in err.splitlines()]


def test_the_result_may_go_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As of any other verb."""
    path = tmp_path / "result"
    assert 0 == cli.main(["replay", str(DATA / "lackey_trace.txt"), "--json", "--output", str(path)])
    assert "" == capsys.readouterr().out
    assert 26764 == json.loads(path.read_text())["config"]["pid"]


def test_a_terminal_shows_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both of reading and of replaying, however long the file's name is; nothing of it is left."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("kdamon_tools.output.progress._REDRAW_S", 0.0)
    trace_file = tmp_path / ("long" * 50)
    trace_file.write_bytes((DATA / "lackey_trace.txt").read_bytes())
    assert 0 == cli.main(["replay", str(trace_file), "--json", "--output", str(tmp_path / "out")])
    shown = screen.getvalue()
    assert f"100%: reading {tmp_path}"[:60] in shown
    assert "0.1 s of 0.1 s replayed" in shown
    assert shown.endswith("\x1b[1F\x1b[J")


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        (["{tmp}/none"], 1, "{tmp}/none: No such file or directory"),
        (["{tmp}/empty.npy"], 1, "{tmp}/empty.npy: the file contains no reports"),
        (["{tmp}/text"], 1, "{tmp}/text: neither a report file, nor output of perf script, nor a trace of lackey; "),
        (["{tmp}/kernel.npy"], 1, "{tmp}/kernel.npy: all addresses are kernel addresses; select memory with --range"),
        (["{tmp}/r.npy", "--pid", "3"], 1, "{tmp}/r.npy: no report is about process 3; there are reports about 7"),
        (
            ["{tmp}/r.npy", "--range", "1000-3000", "--range", "2000-4000"],
            2,
            "region 0x2000-0x4000 overlaps",
        ),
        (["{tmp}/r.npy", "--aggr-us", "1000"], 2, "the sampling interval must not exceed the aggregation interval"),
        (["{tmp}/years.npy"], 1, "the first and the last report are 1000000000 s apart, too long to replay in"),
        (["{tmp}/r.npy", "--min-regions", "2"], 2, "the minimum number of regions must be at least 3"),
        (["{tmp}/r.npy", "--cpus", "70000"], 2, "argument --cpus: '70000' names a CPU that cannot be"),
        (["{tmp}/r.npy", "--rate", "0"], 2, "argument --rate: '0' is not a number from 1 on"),
        (["{tmp}/r.npy", "--rate", "1000000001"], 2, "argument --rate: '1000000001' is more than one access per nano"),
        (
            ["{tmp}/r.npy", "--pid", "2147483648"],
            2,
            "argument --pid: '2147483648' is too large: 2147483647 is the largest",
        ),
        ([], 2, "the following arguments are required: FILE"),
    ],
)
def test_mistakes_are_one_sentence(
    words: list[str], status: int, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the file's name where it is about the file."""
    saved(tmp_path / "r.npy", workload(seconds=0.01))
    saved(tmp_path / "empty.npy", new_records(0))
    saved(tmp_path / "kernel.npy", new_records(3, pid=7, addr=0xFFFF_8000_0000_0000))
    saved(tmp_path / "years.npy", new_records(2, pid=7, addr=0x1000, time=[1, 10**18]))
    (tmp_path / "text").write_text("hello\n")
    assert status == cli.main(["replay", *(word.format(tmp=tmp_path) for word in words)])
    out, err = capsys.readouterr()
    assert ("", 1) == (out, err.count("\n"))
    assert err.startswith("kdamon: " + sentence.format(tmp=tmp_path))


@pytest.mark.parametrize(
    ("reports", "expected"),
    [
        # Pages that touch are one range; up to three ranges stay as they are.
        ([(0x1000, 8), (0x2FF8, 8)], [(0x1000, 0x3000)]),
        ([(0x1000, 8), (0x3000, 1)], [(0x1000, 0x2000), (0x3000, 0x4000)]),
        # An access may reach into the next page, or span many; one without size has an address at least.
        ([(0x1FFF, 2)], [(0x1000, 0x3000)]),
        ([(0x1000, 0x10000), (0x3000, 1)], [(0x1000, 0x11000)]),
        ([(0x1000, 0)], [(0x1000, 0x2000)]),
        # Of more, the two biggest gaps are left out.
        (
            [(0x1000, 8), (0x3000, 8), (0x100000, 8), (0x104000, 8), (0x7F0000000000, 8)],
            [(0x1000, 0x4000), (0x100000, 0x105000), (0x7F0000000000, 0x7F0000001000)],
        ),
        # Neither the kernel's addresses nor those of other processes.
        ([(0xFFFFFFFF81000000, 8), (0x1000, 1 << 63), (0x5000, 8)], [(0x5000, 0x6000)]),
    ],
)
def test_what_to_monitor_is_found_in_the_file(
    reports: list[tuple[int, int]], expected: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole pages without the two biggest gaps, as vaddr finds them in a process's mappings."""
    addresses, sizes = zip(*reports, strict=True)
    mine = new_records(len(reports), pid=7, addr=np.array(addresses, np.uint64), size=np.array(sizes, np.uint64))
    records = np.concatenate([mine, new_records(2, pid=8, addr=0x900000), new_records(1, pid=9, addr=1 << 63)])
    for block in (1 << 18, 2, 1):
        monkeypatch.setattr(replayer, "_BLOCK", block)
        assert {7: expected, 8: [(0x900000, 0x901000)]} == ranges_of(records, [7, 8, 9])
        assert {8: [(0x900000, 0x901000)]} == ranges_of(records, [8])


def test_processes_come_by_the_number_of_their_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then by their own number, so that the order never varies."""
    records = new_records(7, pid=np.array([3, 5, 5, 4, 9, 9, 2]))
    for block in (1 << 18, 2):
        monkeypatch.setattr(replayer, "_BLOCK", block)
        assert [5, 9, 2, 3, 4] == processes_of(records).tolist()


def test_a_replay_leaves_nothing_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No threads and nothing that listens, also after a mistake."""
    name = saved(tmp_path / "r.npy", workload(seconds=0.01))
    before = threading.active_count(), trace.damon_aggregated.enabled()
    for words in ([], ["--realtime"], ["--aggr-us", "1000"]):
        cli.main(["replay", name, "--json", *words])
    assert before == (threading.active_count(), trace.damon_aggregated.enabled())


def test_density_is_handed_on() -> None:
    """To the context, as the filters are."""
    config = Config(pid=7, ops="reports", primitive="", ranges=((BASE, BASE + 4096),))
    assert [False, True] == [new_context(evolve(config, density=density)).density for density in (False, True)]


@pytest.mark.parametrize(
    ("keep", "missing"),
    [
        (lambda size: size - 1001 * 56, "the file has only the first 999 of 2000 reports"),
        (lambda size: size - 1, "the file has only the first 1999 of 2000 reports"),
        (lambda size: size - 2000 * 56, "the file contains no reports: the file has only the first 0 of 2000 reports"),
    ],
)
def test_a_recording_that_was_cut_off_is_said_to_be(
    keep: Callable[[int], int], missing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is there is shown, what is missing is said, and the status is 1."""
    name = saved(tmp_path / "r.npy", workload(seconds=0.01))
    os.truncate(name, keep(os.stat(name).st_size))
    assert 1 == cli.main(["replay", name])
    out, err = capsys.readouterr()
    assert (1, True) == (err.count("\n"), missing in err)
    assert ("no report" in missing) != ("monitored pid 7" in out)


def test_a_text_that_was_cut_off_is_said_to_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A number at its end may not be whole: the line is left out."""
    path = tmp_path / "trace"
    path.write_bytes((DATA / "lackey_trace.txt").read_bytes() + b" L 1000,8\n L 7f00,1")
    assert 1 == cli.main(["replay", "--json", str(path)])
    out, err = capsys.readouterr()
    assert 59 == json.loads(out)["counters"]["reports"]["accepted"]
    assert f"kdamon: {path}: truncated: the last line is incomplete" in err


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
def test_a_file_may_become_shorter_meanwhile(order: slice, tmp_path: Path) -> None:
    """An error, where memory that is mapped would be the end of the process."""
    name = saved(tmp_path / "r.npy", workload(seconds=0.1)[order])
    with report_file.open_reports(name) as (records, _):
        tape = Tape(records)
        os.truncate(name, 4096)
        with pytest.raises(OSError, match="the file was truncated while it was read"):
            tape.play(1 << 62)


@pytest.mark.real
def test_a_pipe_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a shell has it for <(...)."""
    name = saved(tmp_path / "r.npy", workload(seconds=0.01))
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["sh", "-c", 'cat "$1" > "$2"', "sh", name, str(tmp_path / "pipe")]):
        (document,) = replayed(capsys, str(tmp_path / "pipe"))
    assert [document] == replayed(capsys, name)


def test_rows_are_read_in_any_order(tmp_path: Path) -> None:
    """Those that are near each other in one piece, others one by one."""
    records = workload(seconds=0.01)
    name = saved(tmp_path / "r.npy", records)
    with report_file.open_reports(name) as (stored, _):
        for rows in ([], [5], [7, 3, 3], [1999, 0], list(range(100, 50, -1)), [0, 1, 1000, 5]):
            index = np.array(rows, np.intp)
            assert records[index].tolist() == stored[index].tolist()
        for part in (slice(0, 0), slice(3, 10), slice(1990, 3000), slice(None)):
            assert records[part].tolist() == stored[part].tolist()
