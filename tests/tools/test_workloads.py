# SPDX-License-Identifier: GPL-2.0-only
"""The bundled workloads do what their truth files say."""

from __future__ import annotations

import ctypes
import io
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kdamon_tools.workloads import readwrite, stairs
from kdamon_tools.workloads.stairs import Pattern
from kdamon_tools.workloads.truth import load_truth
from tests.support.cli import ENVIRONMENT
from tests.support.paths import PYTHONPATH
from tests.support.waiting import eventually

pytestmark = pytest.mark.real


MIB = 1 << 20


def test_the_hot_window_climbs_and_starts_over() -> None:
    """Each place follows the one before; a place where the whole window does not fit is left out."""

    class EnoughError(Exception):
        """It would go on for a minute."""

    class Truth(io.StringIO):
        def write(self, text: str) -> int:
            written = super().write(text)
            if self.getvalue().count('"hot"') == 5:
                raise EnoughError
            return written

    out = Truth()
    with pytest.raises(EnoughError):
        stairs.run(Pattern(total=7 * MIB, hot=2 * MIB, warm=0, duration=60, step=0.05), out)
    events = [json.loads(line) for line in out.getvalue().splitlines()]
    base = events[0]["start"]
    assert ("map", base + 7 * MIB, 0) == (events[0]["event"], events[0]["end"], base % (2 * MIB))
    places = [(event["start"] - base) // MIB for event in events if event["event"] == "hot"]
    assert [0, 2, 4, 0, 2] == places
    assert {2 * MIB} == {event["end"] - event["start"] for event in events if event["event"] == "hot"}
    assert [event["time"] for event in events] == sorted(event["time"] for event in events)


@pytest.mark.real
def test_every_page_is_present_and_small(tmp_path: Path) -> None:
    """All memory is written at the start, without huge pages: what a monitor samples is what the truth is about."""
    truth = tmp_path / "truth.jsonl"
    words = [sys.executable, "-m", "kdamon_tools.workloads.stairs", "--total", "32", "--hot", "4", "--warm", "8"]
    with subprocess.Popen(
        [*words, "--seconds", "30", "--truth", truth], env=os.environ | {"PYTHONPATH": PYTHONPATH}
    ) as workload:
        try:
            while not (truth.exists() and "warm" in truth.read_text()):
                assert workload.poll() is None
                time.sleep(0.05)
            events = {event.event: event for event in load_truth(truth)}
            mapped = events["map"]
            assert (mapped.start, mapped.start + 4 * MIB) == (events["hot"].start, events["hot"].end)
            assert (events["hot"].end, events["hot"].end + 8 * MIB) == (events["warm"].start, events["warm"].end)
            kib = smaps_of(workload.pid, mapped.start)
            assert kib["Rss"] >= 32 * 1024
            assert 0 == kib["AnonHugePages"]
        finally:
            workload.kill()


def smaps_of(pid: int, address: int) -> dict[str, int]:
    """The figures in /proc/PID/smaps of the mapping that ``address`` is in, KiB."""
    text = Path(f"/proc/{pid}/smaps").read_text()
    for start, end, figures in re.findall(r"^([0-9a-f]+)-([0-9a-f]+) .*\n((?:\w+:.*\n)+)", text, re.MULTILINE):
        if int(start, 16) <= address < int(end, 16):
            return {name: int(size) for name, size in re.findall(r"(\w+): +(\d+) kB", figures)}
    raise LookupError(f"{address:x} is not mapped in process {pid}")


def test_it_ends_by_itself_and_writes_no_truth_unasked(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing that is forgotten runs on."""
    assert 0 == stairs.main(["--total", "4", "--hot", "1", "--seconds", "0.2", "--step", "0.1", "--rest-us", "100"])
    assert ("", "") == capsys.readouterr()
    out = io.StringIO()
    stairs.run(Pattern(total=MIB, hot=MIB, warm=0, duration=0.01), out)
    assert ["map", "hot", "end"] == [json.loads(line)["event"] for line in out.getvalue().splitlines()]


def test_parts_that_do_not_fit_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence."""
    assert 1 == stairs.main(["--total", "10", "--hot", "8", "--warm", "8"])
    assert "must fit into the total" in capsys.readouterr().err


READWRITE = [sys.executable, "-m", "kdamon_tools.workloads.readwrite"]


@pytest.mark.real
def test_threads_read_and_write_their_own_parts_on_their_own_cpus(tmp_path: Path) -> None:
    """What it says of itself: threads of one process, where they run, and what they sweep over."""
    truth = tmp_path / "truth.jsonl"
    words = [*READWRITE, "--part", "4", "--seconds", "60", "--truth", str(truth)]
    with subprocess.Popen(words, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as workload:
        try:
            assert workload.stdout is not None
            said = json.loads(workload.stdout.readline())
            parts = said["parts"]
            assert (workload.pid, 24 * MIB) == (said["pid"], said["end"] - said["start"])
            assert [("A", "writes"), ("B", "writes"), ("C", "reads")] == [(p["name"], p["does"]) for p in parts]
            starts = [said["start"] + at * MIB for at in (0, 8, 16)]
            assert [(start, start + 4 * MIB) for start in starts] == [(p["start"], p["end"]) for p in parts]
            tids = {p["tid"] for p in parts}
            assert 3 == len(tids)
            assert tids < {int(name) for name in os.listdir(f"/proc/{workload.pid}/task")}
            assert [{p["cpu"]} for p in parts] == [os.sched_getaffinity(p["tid"]) for p in parts]
            assert parts[1]["cpu"] == parts[2]["cpu"]
            while truth.read_text().count("sweeps") < 9:
                assert workload.poll() is None
                time.sleep(0.05)
            assert 0 == smaps_of(workload.pid, said["start"])["AnonHugePages"]
        finally:
            workload.kill()
    events = load_truth(truth)
    read = [(e.event, e.start, e.end, e.detail.get("tid")) for e in events[:4]]
    assert read == [
        ("map", said["start"], said["end"], None),
        *((p["does"], p["start"], p["end"], p["tid"]) for p in parts),
    ]
    assert all(e.detail["sweeps"] > 0 for e in events if e.event == "sweeps")


def test_only_the_written_parts_change() -> None:
    """C and what is idle stay as they were written at the start."""
    part, seen = 64 * 1024, []

    class Look(io.StringIO):
        def write(self, text: str) -> int:
            if text.strip():
                base = json.loads(text)["start"]
                whole = (ctypes.c_ubyte * (6 * part)).from_address(base)
                # The threads run since before this; the machine may have no CPU for one of them yet.
                for written in (0, 2 * part):
                    first = whole[written]
                    eventually(lambda at=written, first=first: whole[at] != first, "a sweep")
                seen.extend(bytes(whole[i * part : (i + 1) * part : 4096]) for i in range(6))
            return len(text)

    readwrite.run(readwrite.Pattern(part=part, duration=0.3, rest=0.01), Look())
    unchanged = bytes([1] * (part // 4096))
    assert [False, True, False, True, True, True] == [piece == unchanged for piece in seen]


def test_a_cpu_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence, and no thread is left."""
    before = threading.active_count()
    assert 1 == readwrite.main(["--part", "1", "--seconds", "1", "--cpus", "0", "9999"])
    assert "no thread of this process can run on CPU 9999" in capsys.readouterr().err
    assert before == threading.active_count()
