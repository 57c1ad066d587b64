# SPDX-License-Identifier: GPL-2.0-only
"""``kdamon export`` of a record whose content is known, and what other tools make of it."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import sqlite3
import subprocess
import sys
import xml.etree.ElementTree as ET
import zlib
from pathlib import Path

import numpy as np
import pytest
from attrs import evolve

import kdamon
from kdamon import Snapshot
from kdamon.names.table import NAMED_RANGE, NO_OFFSET, NameTable, changes
from kdamon_tools import cli
from kdamon_tools.recorded.selection import clipped, select
from kdamon_tools.recorded.totals import counters_of
from kdamon_tools.units import parse_span
from tests.support.capabilities import needs_program
from tests.support.groups import group_table
from tests.support.json_schemas import validate
from tests.support.records import HEAP, LIBRARY, STARTED, names, rows, some_record, writer

MIB = 1 << 20
#: A part of Debian's package of a profiler for Perl.
FLAMEGRAPH = "/usr/share/perl5/Devel/NYTProf/flamegraph.pl"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A record of three seconds."""
    return some_record(tmp_path / "run.kdamon")


def exported(path: Path, form: str, *words: str, status: int = 0) -> bytes:
    """The file that a record is exported to."""
    target = path.with_name(f"exported.{form}")
    assert status == cli.main(["export", str(path), "--to", form, "-o", str(target), *words])
    return target.read_bytes()


def table(path: Path, *words: str) -> list[dict[str, str]]:
    """The rows of the CSV file."""
    return list(csv.DictReader(exported(path, "csv", *words).decode().splitlines()))


def test_csv(path: Path) -> None:
    """A row for each region of each snapshot, with the name of its largest part."""
    found = table(path)
    assert 30 * 4 == len(found)
    first = {"began": "0.0", "time": "0.1", "start": str(HEAP.start), "end": str(HEAP.start + 4 * MIB)}
    first |= {"nr_accesses": "20.0", "age": "0", "nr_unknown": "0.0", "mean_accesses": "20.0", "aggr_us": "100000"}
    assert first | {"name": "[heap]"} == found[0]
    assert ["[heap]"] * 3 + ["a b;c.so .text"] == [row["name"] for row in found[:4]]


def test_a_part_of_time(path: Path) -> None:
    """In seconds from the start, with units, or with one bound."""
    assert ["1.1", "1.2"] == sorted({row["time"] for row in table(path, "--time", "1-1.2")})
    assert ["2.9", "3.0"] == sorted({row["time"] for row in table(path, "--time", "2800ms-")})
    assert ["0.1", "0.2"] == sorted({row["time"] for row in table(path, "--time=-200ms")})


@pytest.mark.parametrize(
    ("text", "span"),
    [("10-20", (10, 20)), ("0-1", (0, 1)), ("1m-", (60, None)), ("-1.5", (None, 1.5)), ("0s-1h", (0, 3600))],
)
def test_times(text: str, span: tuple[float | None, float | None]) -> None:
    assert span == parse_span(text)


@pytest.mark.parametrize("text", ["", "-", "5", "5-5", "7-5", "a-b", "1-2-3", "--5", "1-x"])
def test_impossible_times(path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence, and status 2."""
    assert 2 == cli.main(["export", str(path), "--to", "csv", f"--time={text}"])
    assert "is not a time from A to B, such as 10-20, 1m-2m, 30- or -30" in capsys.readouterr().err


def test_a_part_of_memory(path: Path) -> None:
    """Regions that reach beyond it are cut; ranges that overlap are one."""
    words = [
        "--range",
        f"{HEAP.start + MIB:x}-{HEAP.start + 3 * MIB:x}",
        "--range",
        f"{LIBRARY.start:x}-{LIBRARY.end:x}",
    ]
    words += ["--range", f"{HEAP.start + 2 * MIB:x}-{HEAP.start + 5 * MIB:x}"]
    found = [(int(row["start"]), int(row["end"])) for row in table(path, *words)[:3]]
    heap = [(HEAP.start + MIB, HEAP.start + 4 * MIB), (HEAP.start + 4 * MIB, HEAP.start + 5 * MIB)]
    assert [*heap, (LIBRARY.start, LIBRARY.end)] == found


def test_clipping_keeps_the_rest() -> None:
    """Counters are those of the whole region."""
    regions = Snapshot.of(1, rows(5)).regions
    assert [(HEAP.start, HEAP.start + 4096, 20.0, 5, 0.0, 20.0)] == clipped(regions, [(0, HEAP.start + 4096)]).tolist()
    assert 0 == len(clipped(regions, [(0, 4096)]))


def test_further_columns_are_in_the_table(tmp_path: Path) -> None:
    """Such as resident bytes; what is unknown is an empty cell."""
    record = writer(tmp_path / "a")
    record.add(Snapshot.of(STARTED + 1, rows(0)), {"resident": np.array([1, 2, np.nan, 4])})
    record.close()
    found = table(tmp_path / "a")
    assert (["1.0", "2.0", "", "4.0"], [""] * 4) == (
        [row["resident"] for row in found],
        [row["name"] for row in found],
    )


def test_json(path: Path) -> None:
    """The lines of ``kdamon run --json=lines``, by their schema."""
    lines = [json.loads(line) for line in exported(path, "json").decode("ascii").splitlines()]
    for line in lines:
        validate(line, "kdamon.run.lines")
    assert ["header", *["aggregation"] * 30, "end"] == [line["type"] for line in lines]
    assert (12, 30, 580) == (lines[0]["config"]["pid"], lines[-1]["aggregations"], lines[-1]["counters"]["samples"])
    assert ["[heap]", "/lib/a b;c\n\\xff.so"] == [mapping["name"] for mapping in lines[0]["mappings"]]
    assert 6 * MIB == lines[-1]["summary"]["working_set_bytes"]


def test_parquet(path: Path) -> None:
    """The same table as CSV."""
    duckdb = pytest.importorskip("duckdb")
    exported(path, "parquet")
    with duckdb.connect() as db:
        found = db.execute(f"SELECT * FROM '{path.with_name('exported.parquet')}'").fetchall()
        kinds = [str(kind) for _, kind, *_ in db.description]
    assert 30 * 4 == len(found)
    assert (0.0, 0.1, HEAP.start, HEAP.start + 4 * MIB, 20.0, 0, 0.0, 20.0, 100_000, "[heap]") == found[0]
    assert len(kinds) == 10


def test_parquet_without_duckdb(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence with the command that installs it; no file is made."""
    monkeypatch.setitem(sys.modules, "duckdb", None)
    target = path.with_name("a.parquet")
    assert 1 == cli.main(["export", str(path), "--to", "parquet", "-o", str(target)])
    wanted = "kdamon: Parquet files need duckdb: install it with pip install 'kdamon[parquet]'\n"
    assert (wanted, False) == (capsys.readouterr().err, target.exists())


def test_folded_stacks(path: Path) -> None:
    """Mean bytes by process, mapping, section and heat: half of the heap is hot, a quarter warm, the rest unknown."""
    found = exported(path, "folded").decode().splitlines()
    assert [
        f"server 12;[heap];hot {4 * MIB}",
        f"server 12;[heap];warm {2 * MIB}",
        f"server 12;[heap];unknown {2 * MIB}",
        f"server 12;a b:c.so;.data;cold {MIB}",
        f"server 12;a b:c.so;.text;cold {MIB}",
    ] == sorted(found, key=lambda line: (line.split(";")[:-1], ["hot", "warm", "cold", "unknown"].index(_heat(line))))


def test_memory_that_was_hardly_sampled_but_accessed(tmp_path: Path) -> None:
    """Is in use, as in the views; only what was not seen accessed is unknown."""
    record = writer(tmp_path / "a", name=None)
    record.add(Snapshot.of(STARTED + 1, [(0, MIB, 1, 0, 19), (MIB, 2 * MIB, 0, 0, 20)], seconds=1))
    record.close()
    found = exported(tmp_path / "a", "folded").decode().splitlines()
    assert [f"process 12;[unnamed];warm {MIB}", f"process 12;[unnamed];unknown {MIB}"] == found


def _heat(line: str) -> str:
    return line.rpartition(";")[2].split()[0]


def test_folded_stacks_add_up(tmp_path: Path) -> None:
    """To the monitored bytes, where snapshots cover different times; names of none have their own line."""
    record = writer(tmp_path / "a", name=None)
    record.add(Snapshot.of(STARTED + 1, [(0, 4 * MIB, 20, 0, 0)], seconds=1))
    record.add(Snapshot.of(STARTED + 4, [(0, 4 * MIB, 0, 0, 0)], seconds=3))
    record.close()
    found = exported(tmp_path / "a", "folded").decode().splitlines()
    assert [f"process 12;[unnamed];hot {MIB}", f"process 12;[unnamed];cold {3 * MIB}"] == found


def counters(path: Path, *words: str) -> dict[str, list[tuple[float, dict[str, int]]]]:
    """Times and values of the counters in a file for Perfetto."""
    document = json.loads(exported(path, "perfetto", *words))
    found: dict[str, list[tuple[float, dict[str, int]]]] = {}
    for event in document["traceEvents"]:
        assert event["pid"] == 12
        if event["ph"] == "C":
            found.setdefault(event["name"], []).append((event["ts"], event["args"]))
    return found


def test_counters_for_perfetto(path: Path) -> None:
    """Bytes by heat of each name; a value that does not change is written once."""
    found = counters(path)
    heap = {"hot": 4 * MIB, "warm": 2 * MIB, "cold": 0, "unknown": 2 * MIB}
    assert [(0.0, heap)] == found["[heap]"]
    assert [(0.0, heap | {"cold": 2 * MIB})] == found["all memory"]
    assert [{"rss_anon": 6 * MIB, "rss_file": MIB}] * 3 == [values for _, values in found["resident"]]
    assert {"[heap]", "a b;c.so .text", "a b;c.so .data", "all memory", "resident"} == set(found)


def test_a_pause_is_unknown_for_perfetto(tmp_path: Path) -> None:
    """Not cold, and not as it was before."""
    record = writer(tmp_path / "a")
    record.add(Snapshot.of(STARTED + 1, [(0, MIB, 20, 0, 0)]))
    record.add(Snapshot.of(STARTED + 5, [(0, MIB, 20, 0, 0)]))
    record.close()
    found = [
        (round(time / 1e6, 3), values["hot"], values["unknown"])
        for time, values in counters(tmp_path / "a")["[unnamed]"]
    ]
    assert [(0.9, MIB, 0), (1.0, 0, MIB), (4.9, MIB, 0)] == found


def test_no_time_for_perfetto_is_negative(tmp_path: Path) -> None:
    """It drops such events: a first snapshot that began before the run would lose its values."""
    record = writer(tmp_path / "a")
    record.add(Snapshot.of(STARTED + 0.05, [(0, MIB, 20, 0, 0)]))
    record.close()
    assert [0.0] == [time for time, _ in counters(tmp_path / "a")["all memory"]]


@pytest.mark.real
@needs_program(FLAMEGRAPH, "libdevel-nytprof-perl")
def test_flamegraph_draws_all_folded_stacks(tmp_path: Path) -> None:
    """Whatever the names are: each has its bytes, and the picture is XML."""
    texts = ("<svg>&\"'", "a;b 12", "# x", "tab\t\x1b[31m\udcff\n", "日本 語", "lib.so .text")
    record = writer(tmp_path / "a", name="# <comm>;")
    rows_of = [(at * MIB, (at + 1) * MIB, NO_OFFSET, at) for at in range(len(texts))]
    record.change_names(changes(None, NameTable(np.array(rows_of, NAMED_RANGE), texts, STARTED)))
    record.add(Snapshot.of(STARTED + 1, [(at * MIB, (at + 1) * MIB, 20, 0, 0) for at in range(len(texts))]))
    record.close()
    drawn = subprocess.run(
        [FLAMEGRAPH, "--countname", "bytes"], input=exported(tmp_path / "a", "folded"), capture_output=True, check=True
    )
    assert b"" == drawn.stderr
    titles = [one.text for one in ET.fromstring(drawn.stdout).iter() if one.tag.endswith("title")]
    assert len(texts) == sum(title.startswith("hot (1,048,576 bytes, ") for title in titles if title)
    shown = "\n".join(filter(None, titles))
    for text in (
        "(svg)&\"'",
        "a:b 12",
        "# x",
        r"tab\x09\x1b[31m\xff\x0a",
        "日本 語",
        "lib.so",
        ".text",
        "# (comm): 12",
    ):
        assert f"{text} (" in shown


def test_damo_gets_no_unknown_memory(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It would take it for cold; the user hears of it."""
    (found,) = json.loads(zlib.decompress(exported(path, "damo")))
    assert "regions that were mostly not sampled are left out" in capsys.readouterr().err
    snapshot = found["snapshots"][3]
    assert (12, str(round(1000.3e9)), str(round(1000.4e9))) == (
        found["target_id"],
        snapshot["start_time"],
        snapshot["end_time"],
    )
    wanted = [row for row in rows(3) if row[4] < 20]
    assert wanted == [
        (int(one["start"]), int(one["end"]), one["nr_accesses"]["samples"], one["age"]["aggr_intervals"], row[4])
        for one, row in zip(snapshot["regions"], wanted, strict=True)
    ]


def test_binary_files_do_not_go_to_a_terminal(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They would change its state."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    for form in ("damo", "parquet"):
        assert 2 == cli.main(["export", str(path), "--to", form])
        assert "kdamon: the result is not text: add -o FILE, or redirect standard output\n" == capsys.readouterr().err


@pytest.mark.parametrize("form", ["damo", "json", "csv", "folded", "perfetto"])
def test_a_record_without_snapshots(tmp_path: Path, form: str) -> None:
    """Is exported, too."""
    some_record(tmp_path / "a", 0)
    assert exported(tmp_path / "a", form) or form == "folded"


@pytest.mark.parametrize("form", ["damo", "json", "csv", "folded", "perfetto"])
def test_a_damaged_record(tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence, status 1, and no file."""
    path = some_record(tmp_path / "a")
    content = bytearray(path.read_bytes())
    content[4096:] = bytes(len(content) - 4096)
    path.write_bytes(content)
    target = tmp_path / "out"
    assert 1 == cli.main(["export", str(path), "--to", form, "-o", str(target)])
    err = capsys.readouterr().err
    assert err.startswith(f"kdamon: {path}: the record is damaged: ")
    assert (1, False) == (err.count("\n"), target.exists())


def test_the_record_is_not_overwritten(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By its own export."""
    before = path.read_bytes()
    assert 2 == cli.main(["export", str(path), "--to", "csv", "-o", str(path)])
    assert "are the same file" in capsys.readouterr().err
    assert before == path.read_bytes()


def test_what_is_no_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence."""
    (tmp_path / "a").write_text("text")
    assert 1 == cli.main(["export", str(tmp_path / "a"), "--to", "csv"])
    assert f"kdamon: {tmp_path / 'a'}: this is not a record of kdamon\n" == capsys.readouterr().err


def test_a_missing_form(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The sentence names the option."""
    assert 2 == cli.main(["export", str(path)])
    assert "--to" in capsys.readouterr().err


class Terminal(io.StringIO):
    """Standard error that is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_how_far_it_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing is left of it; what is no terminal shows nothing."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("kdamon_tools.output.progress._REDRAW_S", 0.0)
    exported(path, "csv")
    shown = re.findall(r"^(?:.*\x1b\[J)?(....)(?:, .* left)?: /", screen.getvalue(), re.MULTILINE)
    assert [f"{number / 30:4.0%}" for number in range(1, 31)] == shown
    assert screen.getvalue().endswith("\x1b[1F\x1b[J")
    plain = io.StringIO()
    monkeypatch.setattr(sys, "stderr", plain)
    exported(path, "csv")
    assert "" == plain.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        '{"samples": "x", "unknown": [1], "cpu_s": {}, "reports": 5, "sparse": [1]}',
        '{"samples": NaN, "unknown": -1, "cpu_s": Infinity, "observed": {"a": 1}, "reports": {"accepted": "x"}}',
    ],
)
def test_counters_that_are_no_numbers_are_unknown(path: Path, data: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE counters SET data = ?", (data,))
        db.execute("INSERT OR REPLACE INTO run VALUES ('mappings_left_out', '\"x\"')")
        db.commit()
    assert b'"unknown_percent":null,"missed_intervals":0' in exported(path, "json").splitlines()[-1]


def test_counters_of_a_part(path: Path) -> None:
    """A share of what was added between the readings around it, which are a second apart here."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute(
            "UPDATE counters SET data = json_object('samples', 100 * id, 'cpu_s', 0.5 * id, 'sparse', NULL) FROM"
            " (SELECT time AS at, row_number() OVER (ORDER BY time) AS id FROM counters) WHERE time = at"
        )
        db.commit()
    with kdamon.open(path) as record:
        for span, samples, cpu_s in (
            (None, 300, 1.5),
            ((0.0, 1.0), 100, 0.5),
            ((1.0, 1.5), 50, 0.25),
            ((1.5, None), 150, 0.75),
            ((None, 0.1), 10, 0.05),
        ):
            found = counters_of(select(record, span, ()))
            assert (samples, pytest.approx(cpu_s)) == (found.samples, found.cpu_s), span


def test_groups_of_a_part_of_memory(tmp_path: Path) -> None:
    """Those of other memory are left out."""
    record = writer(tmp_path / "a")
    groups = group_table([(7, 0, MIB, 1.0, 1, 0, 0, 0), (8, 2 * MIB, 3 * MIB, 1.0, 1, 0, 0, 0)])
    record.add(evolve(Snapshot.of(STARTED + 1, [(0, 4 * MIB, 1, 0, 0)]), groups=groups))
    record.close(ended=STARTED + 1)
    with kdamon.open(tmp_path / "a") as found:
        for ranges, numbers in (((), [7, 8]), (((MIB, 2 * MIB),), []), (((0, 1), (3 * MIB - 1, 4 * MIB)), [7, 8])):
            (snapshot,) = select(found, None, ranges).snapshots()
            assert snapshot.groups is not None
            assert numbers == snapshot.groups.regions["group"].tolist()


def test_a_name_is_no_formula_in_a_spreadsheet(tmp_path: Path) -> None:
    record = writer(tmp_path / "a")
    table_of = NameTable(names().rows, ("=1+1", "a.so", "@b"), STARTED)
    record.change_names(changes(None, table_of))
    record.add(Snapshot.of(STARTED + 1, rows(0)))
    record.close()
    assert {"'=1+1", "a.so"} == {row["name"] for row in table(tmp_path / "a")}
