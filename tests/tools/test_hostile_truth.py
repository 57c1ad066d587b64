# SPDX-License-Identifier: GPL-2.0-only
"""A truth file is the workload's: whatever it holds or becomes, nothing is lost by it but the comparison."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdamon_tools.compare import compare
from kdamon_tools.reporters.comparison import render_comparison
from kdamon_tools.reporters.json_object import render_json
from kdamon_tools.workloads.truth import Event, load_truth
from tests.support.cli import ENVIRONMENT, REPORTS_ONLY
from tests.support.limited import AS_ANOTHER_USER, limited, one_sentence
from tests.support.tables import effort
from tests.support.truths import recording
from tests.support.waiting import eventually

pytestmark = pytest.mark.real


def line(**values: object) -> str:
    """An event with some values exchanged."""
    return json.dumps({"time": 1.0, "event": "hot", "start": 4096, "end": 8192} | values)


NO_TRUTH = {
    "an empty range": line(end=4096),
    "a range the wrong way round": line(start=8193),
    "a negative address": line(start=-4096),
    "an address of 65 bits": line(end=1 << 64),
    "an address of 5000 digits": line(end=1).replace('"end": 1', '"end": ' + "9" * 5000),
    "an address that is no whole number": line(start=4096.5),
    "a text for an address": line(start="4096"),
    "a yes for an address": line(start=True),
    "a time beyond all numbers": line().replace("1.0", "1e400"),
    "an address beyond all numbers": line().replace("8192", "1e400"),
    "not a number": line(time=float("nan")),
    "infinity": line(time=float("inf")),
    "a time of 400 digits": line(time=10**400),
    "a time before the machine began": line(time=-1),
    "nothing for a time": line(time=None),
    "a number for an event": line(event=5),
    "a list for an event": line(event=["hot"]),
    "a figure that is none": line(rss="much"),
    "a list of figures": line(rss=[[1]]),
    "a hundred figures": line(**{f"f{n}": n for n in range(100)}),
    "20000 brackets": "[" * 20000,
    "20000 brackets in an event": line().replace("1.0", "[" * 20000),
    "20000 brackets that are closed": "[" * 20000 + "]" * 20000,
    "an event of a megabyte": line(event="h" * (1 << 20)),
    "an event of half of a kilobyte": line(event="h" * 512),
    "no text": "\udcff\udcfe",
    "a text that is not UTF-8": line(event="x").replace('"x"', '"\udcff"'),
    "a zero": "\0" * 300,
    "another value": "5",
    "an empty line": "",
    "less": '{"time": 1.0, "event": "hot", "start": 1}',
    "a time before the one of the line above": line(time=0.5),
}


@pytest.mark.parametrize("what", NO_TRUTH)
def test_what_is_no_truth_is_refused_before_anything_is_started(what: str, tmp_path: Path) -> None:
    """Status 2 and one sentence with the line."""
    path = tmp_path / "truth"
    path.write_bytes(os.fsencode(f"{line()}\n{NO_TRUTH[what]}\n"))
    with pytest.raises(ValueError, match=rf"{path} line 2 is not an event of a truth file"):
        load_truth(path)


@pytest.mark.real
@pytest.mark.parametrize("kind", ["a pipe", "a directory", "/dev/zero", "a loop", "lines without end", "a huge hole"])
def test_what_is_no_file_of_lines_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    """Without waiting for a writer, and in bounded memory."""
    path = tmp_path / "truth"
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a directory":
        path.mkdir()
    elif kind == "/dev/zero":
        path.symlink_to("/dev/zero")
    elif kind == "a loop":
        path.symlink_to(path)
    elif kind == "lines without end":
        path.write_text((line() + "\n") * ((1 << 18) + 1))
    else:
        path.touch()
        os.truncate(path, 1 << 40)
    done = limited("run", "--pid", str(os.getpid()), "--truth", str(path))
    assert f"kdamon: --truth {path}" in one_sentence(done, 2)


def test_a_pipe_that_took_the_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    """Between the look at it and opening it."""
    os.mkfifo(tmp_path / "truth")
    with pytest.raises(OSError, match="it is not a regular file"):
        load_truth(tmp_path / "truth")


def test_a_file_that_grows_is_read_as_far_as_it_was(tmp_path: Path) -> None:
    """As a workload does that writes faster than it is read."""
    path = tmp_path / "truth"
    text = (line() + "\n") * 10
    path.write_text(text)
    stop = threading.Event()

    def grow() -> None:
        with path.open("a") as file:
            while not stop.wait(0.0001):
                file.write(text)
                file.flush()

    thread = threading.Thread(target=grow)
    thread.start()
    try:
        assert eventually(lambda: path.stat().st_size > len(text))
        assert len(load_truth(path)) * len(text) <= path.stat().st_size * 10
    finally:
        stop.set()
        thread.join()


#: What the workload does with its truth file, $1, in the end.
BECOMES = {
    "nonsense": 'echo hello > "$1"',
    "brackets": "head -c 20000 /dev/zero | tr '\\0' '[' > \"$1\"",
    "an empty range": """echo '{"time": 1.0, "event": "hot", "start": 1, "end": 1}' > "$1" """,
    "beyond all numbers": """echo '{"time": 1e400, "event": "hot", "start": 1, "end": 2}' > "$1" """,
    "a text": """echo '{"time": 1, "event": "hot", "start": "1", "end": 2}' > "$1" """,
    "a pipe": 'rm -f "$1"; mkfifo "$1"',
    "a directory": 'rm -f "$1"; mkdir "$1"',
    "/dev/zero": 'ln -sf /dev/zero "$1"',
    "nothing": 'rm -f "$1"',
    "unreadable terminal": r"""rm -f "$1"; mkdir "$1"; printf '\033[2J' > "$1/x" """,
}


@pytest.mark.real
@pytest.mark.parametrize("what", BECOMES)
def test_a_truth_that_becomes_bad_costs_no_result(what: str, open_path: Path) -> None:
    """The result is whole, and a sentence says why nothing is compared."""
    directory = open_path / "theirs"
    directory.mkdir()
    directory.chmod(0o777)
    truth = directory / "truth"
    command = [*AS_ANOTHER_USER, "sh", "-c", BECOMES[what], "sh", str(truth)]
    done = limited(*REPORTS_ONLY, "--json", "--quiet", "--truth", str(truth), "--", *command)
    assert (1, 1) == (done.returncode, done.stderr.count("\n")), done.stderr
    assert done.stderr.startswith(f"kdamon: {truth}")
    document = json.loads(done.stdout)
    assert ("the process ended", False) == (document["note"], "accuracy" in document)


MANY = """
import sys
from kdamon_tools.compare import compare
from tests.support.truths import recording
from kdamon_tools.workloads.truth import Event
events = [Event(100 + n / (1 << 17), "hot", 0, 4096) for n in range(1 << 18)]
print(compare(recording(400), events).nr_judged)
"""


@pytest.mark.real
def test_a_quarter_of_a_million_moves_take_seconds_of_cpu_time_at_most() -> None:
    """As many as a truth file may have, all within a run of 4000 snapshots."""
    command = ["prlimit", "--cpu=60:60", sys.executable, "-c", MANY]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=250, check=False)
    assert (0, True) == (done.returncode, int(done.stdout) > 3000), done.stderr


numbers = st.one_of(
    st.integers(-(1 << 70), 1 << 70), st.floats(), st.integers(0, 1 << 64), st.floats(0, 200), st.integers(0, 10)
)
values = st.one_of(numbers, st.none(), st.booleans(), st.text(max_size=5), st.lists(numbers, max_size=3))


@st.composite
def truths(draw: st.DrawFn) -> bytes:
    """Truth files, good ones and bad ones."""
    lines = []
    times = sorted(draw(st.lists(st.floats(90, 120), max_size=8)))
    for time in times:
        start = draw(st.integers(0, (1 << 64) - 2))
        good = {"time": time, "event": draw(st.sampled_from(["hot", "end", "map", "sweeps"])), "start": start}
        good["end"] = draw(st.integers(start + 1, (1 << 64) - 1))
        bad = draw(st.dictionaries(st.sampled_from(["time", "event", "start", "end", "more"]), values, max_size=1))
        lines.append(json.dumps(good | (bad if draw(st.integers(0, 9)) == 0 else {})).encode())
    lines += draw(st.lists(st.binary(max_size=30), max_size=1))
    return b"\n".join(lines) + draw(st.sampled_from([b"", b"\n"]))


@given(content=truths())
@effort(300)
def test_what_is_taken_for_a_truth_can_be_compared_and_shown(content: bytes, tmp_path_factory: Any) -> None:
    """Anything else is refused with a sentence."""
    path = tmp_path_factory.getbasetemp() / "fuzzed-truth"
    path.write_bytes(content)
    try:
        events = load_truth(path)
    except ValueError as error:
        assert str(path) in str(error)
        return
    seen = recording()
    with np.errstate(all="raise"):
        accuracy = compare(seen, events)
    assert render_comparison(accuracy, 100.0)
    assert "".join(render_json(seen, accuracy))


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    """Every beginning of a file is one, but for what begins with nonsense."""
    path = tmp_path / "truth"
    text = line() + "\n" + line(event="end") + "\n"
    for length in range(len(line()), len(text) + 1):
        path.write_text(text[:length])
        assert ["hot", "end"][: 1 + (length >= len(text) - 1)] == [event.event for event in load_truth(path)]


def test_figures_of_a_workload_are_a_truth(tmp_path: Path) -> None:
    """An empty range is none of something hot, but may be that of a sweep."""
    path = tmp_path / "truth"
    path.write_text(line() + "\n" + line(event="sweeps", start=4096, end=4096, sweeps=3, max_ms=0.5))
    expected = [Event(1.0, "hot", 4096, 8192), Event(1.0, "sweeps", 4096, 4096, {"sweeps": 3, "max_ms": 0.5})]
    assert expected == load_truth(path)
