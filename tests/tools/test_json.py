# SPDX-License-Identifier: GPL-2.0-only
"""JSON is as docs/schemas says, and lines of it come at once, whatever their reader does."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from jsonschema import Draft202012Validator, ValidationError

from kdamon.mm.proc.maps import NamedMapping
from kdamon_tools.compare import Accuracy, PhaseResult
from kdamon_tools.groups import Group, GroupLog
from kdamon_tools.line_stream import LineStream
from kdamon_tools.mapping_history import MappingHistory, MappingLog, SeenMapping
from kdamon_tools.origin import this_machine
from kdamon_tools.reporters.json_object import REPLAY, render_aggregation, render_end, render_header, render_json
from kdamon_tools.shared_writes import SharedRange, Writer
from kdamon_tools.snapshot import Config, Counters, Recording, Snapshot
from tests.support.cli import ENVIRONMENT, KDAMON
from tests.support.groups import group_table
from tests.support.json_schemas import SCHEMAS, objects_of, validate
from tests.support.waiting import eventually

pytestmark = pytest.mark.real


MIB = 1 << 20
PID = 4_194_305  # no process has this number
#: Needs no rights: nothing is sampled.
WORDS = (*KDAMON, "run", "--quiet", "--ops", "reports", "--pid", str(PID), "--range", "0x0-0x100000")
QUICK = ("--sample-us", "1ms", "--aggr-us", "10ms")

REPORTS = dict.fromkeys(
    ("accepted", "applied", "ineligible", "filtered", "straddling", "outside", "late", "dropped", "pending"), 0
)
LOG = MappingLog((SeenMapping(NamedMapping(0x1000, 0x3000, "rw-p", 0, 0, "[heap]"), 99.9, 101.0),), 2, 99.9, 101.0)
SNAPSHOT = Snapshot.of(100.25, [(0x1000, (1 << 64) - 4096, 20, 3, 1.5)])
FULL = Recording(
    Config(42, "fvaddr", command=("sleep", "1"), ranges=((0x1000, 0x3000),), cpus=(0, 3), tids=(12,)),
    [SNAPSHOT],
    Counters(
        *(1, 10, 2, 0.5, REPORTS, 3, (1 << 40, 4096), 4096, 0.25, 7),
        producers={"received": 4},
        recorded={"written": 5, "lost": 0},
    ),
    100.0,
    101.0,
    "the time was over",
    ("a sentence",),
    this_machine(datetime(2026, 11, 30, 21, 0, 0, 7, UTC)),
    LOG,
)
GROUPED = evolve(
    FULL,
    config=evolve(FULL.config, by="thread"),
    snapshots=[
        evolve(
            SNAPSHOT,
            groups=group_table([(0, 0x1000, 0x2000, 1.5, 3, 1, 8, 8), (12, 0x1000, 0x2000, 20, 21, 21, 8, 16)]),
        )
    ],
    groups=GroupLog(
        "thread",
        (Group(12, "a\udcff", 21, 21), Group(None, None, 3, 1)),
        (SharedRange(0x1000, 0x2000, 22, (Writer(12, 21), Writer(None, 1)), 2, 1, 0), SharedRange(0, 9, 2, ())),
    ),
)
EMPTY = Recording(Config(0, "paddr"), [], Counters(reports=REPORTS), 100.0, 100.0)
ACCURACY = Accuracy(0.5, None, 3, (PhaseResult(101.0, (0, 4096), None, None, 1.0, 0.5),), 2, 1)


# The schemas.


@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas_describe_every_field(name: str) -> None:
    """Each is a schema, and says of every field what it is, in which unit."""
    Draft202012Validator.check_schema(SCHEMAS[name])
    assert name == SCHEMAS[name]["$id"]
    fields = [(key, field) for one in objects_of(SCHEMAS[name]) for key, field in one["properties"].items()]
    assert fields
    assert [] == [key for key, field in fields if not (field.get("description") or "$ref" in field)]


@pytest.mark.parametrize(("made", "accuracy"), [(FULL, ACCURACY), (FULL, None), (GROUPED, None), (EMPTY, None)])
def test_objects_are_valid(made: Recording, accuracy: Accuracy | None) -> None:
    """With everything that there can be, and with nothing."""
    validate(json.loads("".join(render_json(made, accuracy))), "kdamon.run")
    validate(json.loads("".join(render_json(made, accuracy, REPLAY))), "kdamon.replay")
    header = json.loads(render_header(made.config, made.started, made.origin, made.mappings))
    validate(header, "kdamon.run.lines")
    validate(json.loads(render_end(made, accuracy, 4, 1)), "kdamon.run.lines")
    for snapshot in made.snapshots:
        line = json.loads(render_aggregation(snapshot, made.started, 0, 0, made.config.by))
        validate(line, "kdamon.run.lines")


def test_groups() -> None:
    """Each one's regions, sums and shared ranges; what is not known is null."""
    document = json.loads("".join(render_json(GROUPED)))
    region = {"start": 0x1000, "end": 0x2000, "nr_accesses": 20, "nr_reports": 21, "nr_writes": 21}
    unknown = {"number": None, "regions": [region | {"nr_accesses": 1.5, "nr_reports": 3, "nr_writes": 1}]}
    assert [unknown, {"number": 12, "regions": [region]}] == document["snapshots"][0]["groups"]
    sizes = {"working_set_bytes": 0x1000, "hot_bytes": 0x1000}
    assert [
        {"number": 12, "name": "a\\xff", "nr_reports": 21, "nr_writes": 21, **sizes},
        {"number": None, "name": None, "nr_reports": 3, "nr_writes": 1, **sizes, "hot_bytes": 0},
    ] == document["groups"]
    assert {
        "start": 0x1000,
        "end": 0x2000,
        "nr_writes": 22,
        "lines": 2,
        "shared_lines": 1,
        "apart": 0,
        "writers": [{"number": 12, "nr_writes": 21}, {"number": None, "nr_writes": 1}],
    } == document["shared"][0]
    assert not {"groups", "shared"} & json.loads("".join(render_json(FULL))).keys()


def test_the_schema_refuses_what_is_wrong() -> None:
    """A field that it does not describe, one that is missing, and a wrong type."""
    document = json.loads("".join(render_json(FULL)))
    without = dict(document)
    del without["boot_id"]
    for wrong in (
        {**document, "more": 1},
        without,
        {**document, "schema": "kdamon.run/2"},
        {**document, "seconds": "1"},
    ):
        with pytest.raises(ValidationError):
            validate(wrong, "kdamon.run")


def test_what_is_unknown_is_null() -> None:
    """Nothing was sampled, and the machine is another one's: no figure and no name is made up."""
    document = json.loads("".join(render_json(EMPTY)))
    for field in ("kernel_release", "architecture", "boot_id", "started_at", "mappings", "mappings_read"):
        assert document[field] is None
    for figure in ("working_set_bytes", "hot_bytes", "unknown_percent", "kdamond_cpu_percent"):
        assert document["summary"][figure] is None
    assert (None, None, None) == tuple(document["counters"][name] for name in ("cpu_s", "never_mapped", "suspended_s"))


def test_machine_and_clocks() -> None:
    """Both clocks at the begin, and times of mappings from there on."""
    document = json.loads("".join(render_json(FULL)))
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert ("kdamon.run/1", os.uname().release, boot_id) == (
        document["schema"],
        document["kernel_release"],
        document["boot_id"],
    )
    assert ("2026-11-30T21:00:00.000007Z", 100.0) == (document["started_at"], document["started"])
    [mapping] = document["mappings"]
    assert {
        "start": 0x1000,
        "end": 0x3000,
        "permissions": "rw-p",
        "offset": 0,
        "name": "[heap]",
        "first_seen": -0.1,
        "last_seen": 1.0,
    } == mapping
    assert {"times": 2, "first": -0.1, "last": 1.0, "left_out": 0} == document["mappings_read"]


# Mappings.


@pytest.fixture
def mapper() -> Iterator[Callable[[str], str]]:
    """A process that runs one line of Python after the other, and prints an answer."""
    code = "import sys\nfor line in sys.stdin:\n    exec(line)\n    print(flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", "import mmap\n" + code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:

        def do(line: str) -> str:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(line + "\n")
            process.stdin.flush()
            return process.stdout.readline()

        do("pass")
        do.pid = process.pid  # type: ignore[attr-defined]
        yield do
        process.kill()


def test_mappings_that_came_and_went(mapper: Any, tmp_path: Path) -> None:
    """Each is known with its name and for how long it was seen, also when it is gone."""
    file = tmp_path / "a file \r\udcff"
    file.write_bytes(bytes(8192))
    with MappingHistory(mapper.pid) as history:
        assert history.found() is None
        history.look(60)
        mapper(f"f = open({os.fsencode(file)!r}, 'r+b'); m = mmap.mmap(f.fileno(), 4096, offset=4096)")
        history.look(60)
        mapper("m.close()")
        history.look(60)
        found = history.found()
    assert found is not None
    assert (3, 0) == (found.nr_reads, found.nr_left_out)
    [mapped] = [one for one in found.seen if one.mapping.name == str(file)]
    assert (4096, "rw-s", 4096) == (
        mapped.mapping.end - mapped.mapping.start,
        mapped.mapping.permissions,
        mapped.mapping.offset,
    )
    assert found.first_read < mapped.first_seen == mapped.last_seen < found.last_read
    [stack] = {one.mapping.end for one in found.seen if one.mapping.name == "[stack]"}
    assert stack < 1 << 63
    starts = [one.mapping.start for one in found.seen]
    assert sorted(starts) == starts


def test_mappings_have_a_bound(mapper: Any) -> None:
    """Those beyond it are counted."""
    with MappingHistory(mapper.pid, most=5) as history:
        history.look(60)
        found = history.found()
    assert found is not None
    assert 5 == len(found.seen)
    assert found.nr_left_out > 0


def test_mappings_of_a_process_that_ended(mapper: Any) -> None:
    """What was seen stays; another process with its number is not taken for it."""
    with MappingHistory(mapper.pid) as history:
        history.look(60)
        before = history.found()
        mapper("import os; os._exit(0)")
        history.look(60)
        assert before == history.found()
    with pytest.raises(ProcessLookupError):
        MappingHistory(os.getpid(), birth=1)


# Lines.


class Reader:
    """Takes lines when it may."""

    def __init__(self) -> None:
        self.may = threading.Event()
        self.waits = threading.Event()
        self.lines: list[dict[str, Any]] = []

    def write(self, text: str) -> None:
        """Take a line, and raise what is to be raised."""
        self.waits.set()
        self.may.wait()
        self.lines.append(json.loads(text))


def end(aggregations: int, dropped: int) -> str:
    """The last line."""
    return render_end(FULL, None, aggregations, dropped)


def begun(reader: Reader) -> LineStream:
    """Lines to ``reader``."""
    stream = LineStream(reader.write, lambda: None)
    stream.begin(render_header(FULL.config, FULL.started, FULL.origin, None), FULL.started)
    return stream


def test_a_line_for_each_aggregation() -> None:
    """A header, the aggregations, totals."""
    reader = Reader()
    reader.may.set()
    stream = begun(reader)
    for _ in range(3):
        stream.add(SNAPSHOT)
    stream.finish(end, 60)
    assert stream.ended
    assert ["header", "aggregation", "aggregation", "aggregation", "end"] == [line["type"] for line in reader.lines]
    for line in reader.lines:
        validate(line, "kdamon.run.lines")
    assert [(0, 0), (1, 0), (2, 0)] == [(line["index"], line["dropped"]) for line in reader.lines[1:-1]]
    assert (3, 0) == (reader.lines[-1]["aggregations"], reader.lines[-1]["dropped"])


def test_a_slow_reader_misses_the_oldest() -> None:
    """Adding never waits, what waits has a bound, and each line says how many are missing."""
    reader = Reader()
    stream = begun(reader)
    assert reader.waits.wait(60)
    for _ in range(1000):
        stream.add(SNAPSHOT)
    reader.may.set()
    stream.finish(end, 60)
    got = [(line["index"], line["dropped"]) for line in reader.lines if line["type"] == "aggregation"]
    assert [(index, 936) for index in range(936, 1000)] == got
    assert (1000, 936) == (reader.lines[-1]["aggregations"], reader.lines[-1]["dropped"])
    assert 936 == stream.dropped


def test_large_snapshots_have_a_bound_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest one waits however large it is."""
    monkeypatch.setattr("kdamon_tools.line_stream._MOST_ROWS", 10)
    reader = Reader()
    stream = begun(reader)
    assert reader.waits.wait(60)
    large = evolve(SNAPSHOT, regions=SNAPSHOT.regions.repeat(8))
    for _ in range(3):
        stream.add(large)
    reader.may.set()
    stream.finish(end, 60)
    assert [2] == [line["index"] for line in reader.lines if line["type"] == "aggregation"]


def test_a_reader_that_takes_nothing_does_not_hold_up_the_end() -> None:
    """It is given up; what waited for it is dropped."""
    reader = Reader()
    stream = begun(reader)
    stream.add(SNAPSHOT)
    stream.finish(end, 0.05)
    assert not stream.ended
    reader.may.set()
    assert eventually(lambda: stream.ended)
    assert ["header", "end"] == [line["type"] for line in reader.lines]


def test_what_cannot_be_written_ends_the_lines() -> None:
    """The error is kept for the caller."""

    def write(_text: str) -> None:
        raise BrokenPipeError

    stream = LineStream(write, lambda: None)
    stream.begin("{}", 0.0)
    assert eventually(lambda: stream.error() is not None)
    stream.add(SNAPSHOT)
    stream.finish(end, 60)
    assert isinstance(stream.error(), BrokenPipeError)


# The command.


@contextlib.contextmanager
def kdamon(*words: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A run in the background."""
    settings: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": ENVIRONMENT}
    with subprocess.Popen([*WORDS, *QUICK, *words], **(settings | options)) as process:
        try:
            yield process
        finally:
            process.kill()


def rest_of(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What it still says until it ends; communicate() would forget what readline() has read ahead."""
    assert process.stdout is not None
    assert process.stderr is not None
    rest, said = process.stdout.read(), process.stderr.read()
    process.wait(120)
    return rest, said


def lines_of(text: str) -> list[dict[str, Any]]:
    """Valid lines, the first and the last of their kind."""
    lines = [validate(json.loads(line), "kdamon.run.lines") for line in text.splitlines()]
    assert ["header", *["aggregation"] * (len(lines) - 2), "end"] == [line["type"] for line in lines]
    return lines


def test_one_object_of_a_run() -> None:
    """Its wall clock is that of the run, and what it cannot know is null."""
    before = datetime.now(UTC)
    done = subprocess.run(
        [*WORDS, *QUICK, "--json", "--seconds", "0.2"], capture_output=True, env=ENVIRONMENT, check=True
    )
    document = validate(json.loads(done.stdout), "kdamon.run")
    assert before <= datetime.fromisoformat(document["started_at"]) <= datetime.now(UTC)
    assert (None, None) == (document["mappings"], document["mappings_read"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_lines_come_at_once_and_end_with_a_signal(number: signal.Signals) -> None:
    """The first ones are there while monitoring goes on; then there are totals."""
    with kdamon("--json=lines") as process:
        assert process.stdout is not None
        first = [process.stdout.readline() for _ in range(4)]
        assert process.poll() is None
        process.send_signal(number)
        rest, said = rest_of(process)
    lines = lines_of("".join(first) + rest)
    assert (0, "") == (process.returncode, said)
    assert "stopped by a signal" == lines[-1]["note"]
    assert len(lines) - 2 + lines[-1]["dropped"] == lines[-1]["aggregations"] >= 3


def test_a_reader_that_ends_ends_the_run_quietly() -> None:
    """As for any filter: no word, and status 1."""
    with kdamon("--json=lines") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        assert (1, "") == (process.wait(120), process.stderr.read())


def test_the_reader_is_missed_before_there_is_a_line_for_it() -> None:
    """An aggregation interval may be hours."""
    with kdamon("--json=lines", "--aggr-us", "1h") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert 1 == process.wait(120)


def test_a_reader_that_stops_reading_loses_lines_only() -> None:
    """Monitoring goes on meanwhile; once it reads again, the numbers add up."""
    with kdamon("--json=lines", "--sample-us", "100us", "--aggr-us", "200us", "--max-regions", "10") as process:
        assert process.stdout is not None
        # Before the first line comes: a pipe that holds more than that stays as it is.
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)
        first = process.stdout.readline()
        # Mostly long enough for lines to be dropped; the numbers add up in any case.
        time.sleep(2)
        process.send_signal(signal.SIGINT)
        rest, said = rest_of(process)
    lines = lines_of(first + rest)
    dropped = lines[-1]["dropped"]
    assert lines[-1]["aggregations"] == len(lines) - 2 + dropped
    assert [line["dropped"] + at for at, line in enumerate(lines[1:-1])] == [line["index"] for line in lines[1:-1]]
    if dropped:
        assert f"{dropped} of {lines[-1]['aggregations']} aggregations have no line" in said


def test_lines_in_a_file(tmp_path: Path) -> None:
    """They replace an earlier file once they are whole, and are read beside it until then."""
    path = tmp_path / "lines"
    path.write_text("earlier")
    with kdamon("--json=lines", "--output", str(path)) as process:
        assert eventually(lambda: any(b"aggregation" in part.read_bytes() for part in tmp_path.glob("lines.*.part")))
        assert "earlier" == path.read_text()
        process.send_signal(signal.SIGTERM)
        assert ("", "") == process.communicate(timeout=120)
    assert 0 == process.returncode
    lines_of(path.read_text())
    assert [path] == list(tmp_path.iterdir())


def test_lines_that_find_no_room_end_the_run() -> None:
    """A full disk is an error, and said."""
    with kdamon("--json=lines", "--output", "/dev/full") as process:
        out, said = process.communicate(timeout=120)
    assert (1, "", "kdamon: /dev/full: No space left on device\n") == (process.returncode, out, said)


def test_only_known_forms_are_taken() -> None:
    """One sentence, status 2."""
    done = subprocess.run([*WORDS, "--json=xml"], capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert 2 == done.returncode
    assert 1 == len(done.stderr.splitlines())
    assert "xml" in done.stderr
