# SPDX-License-Identifier: GPL-2.0-only
"""Files to replay may be another user's: no traceback, no time and memory without bounds, whatever they hold."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdamon_tools import cli
from kdamon_tools.report_files.records import RECORD_DTYPE, new_records
from kdamon_tools.report_files.report_file import open_reports, read_reports
from kdamon_tools.report_files.stored_records import HEAD_BYTES, MAGIC, parse_head
from tests.support.cli import DATA, ENVIRONMENT
from tests.support.limited import limited, one_sentence
from tests.support.recordings import head, some_records
from tests.support.tables import effort

pytestmark = pytest.mark.real


DESCR = repr(np.lib.format.dtype_to_descr(RECORD_DTYPE))
GOOD = f"{{'descr': {DESCR}, 'fortran_order': False, 'shape': (3,), }}"

HEADS = {
    "9000 signs": GOOD.replace("(3,)", "(" + "-" * 9000 + "3,)"),
    "9000 more signs": GOOD.replace("(3,)", "(" + "~" * 9000 + "3,)"),
    "3000 imaginary terms": GOOD.replace("(3,)", "(" + "1j+" * 3000 + "3,)"),
    "3000 terms": GOOD.replace("(3,)", "(" + "1+" * 3000 + "3,)"),
    "9000 brackets": "(" * 9000,
    "4000 brackets that are closed": "(" * 4000 + ")" * 4000,
    "lists of lists": GOOD.replace("(3,)", "[" * 4000 + "]" * 4000),
    "brackets in the types": GOOD.replace("'<u8'", "(" * 4000 + "'<u8'" + ",)" * 4000, 1),
    "a power": GOOD.replace("(3,)", "(9**9**9,)"),
    "a number of 9000 digits": GOOD.replace("(3,)", "(" + "9" * 9000 + ",)"),
    "a call": GOOD.replace("(3,)", "(__import__('os').abort(),)"),
    "a comprehension": GOOD.replace("(3,)", "tuple(3 for _ in [0])"),
    "a type without end": "{'descr': '|V99999999999999999', 'fortran_order': False, 'shape': (3,), }",
    "a type of objects": "{'descr': '|O', 'fortran_order': False, 'shape': (3,), }",
    "a string for types": "{'descr': " + "'" * 9000 + ", 'fortran_order': False, 'shape': (3,), }",
    "beginnings again and again": "{'descr': '" + "', 'fortran_order': True, 'shape': (" * 1800,
    "comments": "#" * 60000,
    "backslashes": "\\\n" * 30000,
    "zeros": "\0" * 60000,
    "names of characters": '"' + "\\N{DIGIT ONE}" * 4000 + '"',
    "two arrays": GOOD + GOOD,
    "a shape before a type": "{'shape': (3,), 'fortran_order': False, 'descr': " + DESCR + "}",
    "no text": "\xff" * 60000,
}


@pytest.mark.real
@pytest.mark.parametrize("what", HEADS)
def test_no_head_of_an_array_takes_memory_or_the_stack(what: str, tmp_path: Path) -> None:
    """Each is refused in one sentence, by a process that may take a minute of CPU time and 2 GiB at most."""
    path = tmp_path / "r.npy"
    path.write_bytes(head("", len(HEADS[what])) + HEADS[what].encode("latin-1") + bytes(3 * RECORD_DTYPE.itemsize))
    with pytest.raises(OSError, match=r"not a readable numpy array|does not hold access reports"):
        read_reports(path)
    if what in ("9000 signs", "3000 imaginary terms", "beginnings again and again"):
        assert "not a readable numpy array" in one_sentence(limited("replay", str(path)), 1)


@given(
    begin=st.sampled_from([GOOD, GOOD.replace("(3,)", "(18446744073709551616,)"), GOOD[:-3] + "}", GOOD + "\n"]),
    edits=st.lists(
        st.tuples(st.integers(0, len(GOOD)), st.integers(0, 20), st.text(st.characters(max_codepoint=255), max_size=8)),
        max_size=2,
    ),
    repeat=st.integers(1, 500),
)
@effort(500)
def test_what_is_read_is_what_numpy_reads(begin: str, edits: list[tuple[int, int, str]], repeat: int) -> None:
    """Any edit of a head is refused, or harmless to numpy too."""
    text = begin
    for at, length, more in edits:
        text = text[:at] + more * repeat + text[at + length :]
    content = head("", len(text.encode("latin-1"))) + text.encode("latin-1")
    try:
        found = parse_head(content[:HEAD_BYTES], "name")
    except OSError as error:
        assert "name" == error.filename
        return
    literal: dict[str, Any] = eval(text.strip(" \n"), {"__builtins__": {}})
    assert [("descr", eval(DESCR)), ("fortran_order", False), ("shape", (found.promised,))] == list(literal.items())
    assert len(content) == found.offset


@given(content=st.binary(max_size=200), version=st.sampled_from([b"", MAGIC, MAGIC + b"\1\0", MAGIC + b"\2\0"]))
@effort(300)
def test_any_beginning_of_a_file_is_refused(content: bytes, version: bytes) -> None:
    with pytest.raises(OSError, match="not a readable numpy array"):
        parse_head(version + content, "name")


def any_records(draw: st.DrawFn, n: int) -> Any:
    """Records of any bytes in which times are close together."""
    records = np.frombuffer(draw(st.binary(min_size=56 * n, max_size=56 * n)), RECORD_DTYPE).copy()
    begin = draw(st.sampled_from([0, 1 << 32, (1 << 63) - 1, (1 << 64) - 1 - (1 << 31)]))
    records["time"] = begin + records["time"] % (1 << draw(st.sampled_from([1, 10, 29])))
    if draw(st.booleans()):
        records["pid"] %= 3
    if draw(st.booleans()):
        records["addr"] %= 1 << 47
        records["size"] %= 1 << draw(st.sampled_from([3, 20, 50]))
    return records


@given(data=st.data())
@effort(150)
def test_recordings_of_any_bytes_are_replayed_or_refused(data: st.DataObject, tmp_path_factory: Any) -> None:
    """Values that no producer makes: negative processes, sizes over the end of all addresses, truths other than 1."""
    path = tmp_path_factory.getbasetemp() / "fuzzed.npy"
    result = tmp_path_factory.getbasetemp() / "fuzzed-result"
    np.save(path, any_records(data.draw, data.draw(st.integers(0, 8))))
    more = data.draw(st.sampled_from([[], ["--write-only"], ["--density"], ["--range", "0-fffffffffffff000"]]))
    form = data.draw(st.sampled_from([["--json"], []]))
    result.write_text("")
    status = cli.main(["replay", str(path), "--output", str(result), "--aggr-us", "50ms", *form, *more])
    assert (status == 0) == bool(result.read_text())
    assert status in (0, 1)


#: Pieces of the texts of perf script and lackey, and of what is like them.
PIECES = st.one_of(
    st.sampled_from((DATA / "perf_script_mem.txt").read_bytes().split(b"\n")),
    st.sampled_from((DATA / "lackey_trace.txt").read_bytes()[:2000].split(b"\n")),
    st.sampled_from([b"", b" ", b"[", b"[000]", b"1/1", b"-1", b"9" * 400, b"1.5:", b"\x1b[2J", b"f" * 16]),
    st.sampled_from([b" L 1000,8", b"I  1000,8", b" M ffffffffffffffff,999999", b"==1== ", b"|OP LOAD|", b"mem:"]),
    st.binary(max_size=20),
)


@given(
    lines=st.lists(st.lists(PIECES, max_size=6).map(b" ".join), max_size=20),
    file_format=st.sampled_from(["auto", "perf", "lackey"]),
    times=st.sampled_from([1, 1, 1, 50]),
)
@effort(400)
def test_texts_of_any_lines_are_read_or_refused(
    lines: list[bytes], file_format: str, times: int, tmp_path_factory: Any
) -> None:
    """Every line is an access, or counted."""
    path = tmp_path_factory.getbasetemp() / "fuzzed.txt"
    path.write_bytes(b"\n".join(lines * times) + b"\n")
    try:
        with open_reports(path, file_format) as (records, notes):
            assert len(records) <= 2 * notes.lines
            assert notes.unparsable <= notes.lines
    except OSError as error:
        assert str(path) == error.filename


SAMPLE = b"c 1/1 [000] 1.000000: 1 e: ff "
#: What goes on and on in a line, after its beginning.
LINES = {
    "blanks": (b"", b" "),
    "tabs": (b"c ", b"\t"),
    "digits": (b"", b"9"),
    "processes": (b"", b" 1/1 [000]"),
    "events": (b"", b" a 1 [0] 1.1: 1 e:"),
    "addresses": (SAMPLE, b" ff"),
    "symbols": (SAMPLE, b") "),
    "sources": (SAMPLE, b" ff |SNP "),
    "sources of before": (SAMPLE, b" ff X"),
    "addresses of instructions": (b" " * 2000, b"f"),
    "letters": (b"", b" L "),
}


@pytest.mark.real
@pytest.mark.parametrize("what", LINES)
def test_no_line_takes_long_to_be_left(what: str, tmp_path: Path) -> None:
    """One of a megabyte, by either reader, in a minute of CPU time."""
    path = tmp_path / "line"
    begin, more = LINES[what]
    path.write_bytes(begin + more * (1_000_000 // len(more)) + b"x\n")
    for file_format in ("perf", "lackey"):
        done = limited("replay", "--format", file_format, str(path))
        assert done.returncode in (0, 1), done.stderr


@pytest.mark.real
@pytest.mark.parametrize("file_format", ["auto", "reports", "perf", "lackey"])
@pytest.mark.parametrize("source", ["/dev/zero", "a hole"])
def test_zeros_without_end_take_no_memory(source: str, file_format: str, tmp_path: Path) -> None:
    """They are refused at once, or read until the limit of the CPU time comes, and not that of the memory."""
    path = tmp_path / "hole"
    path.touch()
    os.truncate(path, 1 << 40)
    command = ["prlimit", "--as=2147483648", "--cpu=3", sys.executable, "-m", "kdamon_tools", "replay"]
    command += ["--format", file_format, "/dev/zero" if source == "/dev/zero" else str(path)]
    environment = ENVIRONMENT | {"OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250, check=False)
    assert "Memory" not in done.stderr
    # SIGXCPU, or SIGKILL.
    assert done.returncode in ((1,) if file_format in ("auto", "reports") else (-24, -9)), done.stderr


@pytest.mark.real
def test_a_hole_that_is_to_be_sorted_takes_no_memory(tmp_path: Path) -> None:
    """A terabyte that costs its maker a page."""
    path = tmp_path / "r.npy"
    np.save(path, new_records(2, time=5, pid=7, addr=0x1000))
    os.truncate(path, 1 << 40)
    done = limited("replay", str(path), "--pid", "7", "--range", "1000-9000")
    assert "reports are not in the order of their times, and sorting them takes " in one_sentence(done, 1)


@pytest.mark.real
def test_a_recording_of_many_processes_is_replayed_of_the_busiest(tmp_path: Path) -> None:
    """The others are said, counted, and there for --pid."""
    path = tmp_path / "r.npy"
    busy = new_records(3000, time=np.arange(3000), pid=70_000 + np.arange(3000) % 1000, addr=0x5000)
    rest = new_records(200_000, time=np.arange(200_000) * 400, pid=100_000 + np.arange(200_000), addr=0x5000)
    np.save(path, np.concatenate([rest, busy]))
    done = limited("replay", str(path), "--json")
    sentence = "201000 processes have reports; only the 1000 with most are monitored: use --pid PID"
    assert (0, f"kdamon: {path}: {sentence}\n") == (done.returncode, done.stderr)
    documents = [json.loads(line) for line in done.stdout.splitlines()]
    assert list(range(70_000, 71_000)) == [document["config"]["pid"] for document in documents]
    assert [[sentence]] * 1000 == [document["remarks"] for document in documents]
    reports = documents[0]["counters"]["reports"]
    assert (203_000, 200_000) == (reports["accepted"], reports["ineligible"])
    done = limited("replay", str(path), "--json", "--pid", "299999")
    assert (0, "", 1) == (done.returncode, done.stderr, done.stdout.count("\n"))
    done = limited("replay", str(path), "--json", "--pid", "300000")
    assert "no report is about process 300000; there are reports about 70000, " in one_sentence(done, 1)


@pytest.mark.real
def test_a_text_of_many_processes_is_no_other(tmp_path: Path) -> None:
    """As of a machine on which many short processes ran."""
    path = tmp_path / "perf.txt"
    lines = (f"cc {n}/{n} [000] {n / 1e5:.6f}: 1 e: 5000 1 |OP LOAD|\n" for n in range(1, 5001))
    path.write_text("".join(lines))
    done = limited("replay", str(path), "--json")
    assert (0, 1000) == (done.returncode, done.stdout.count("\n"))
    assert "5000 processes have reports" in done.stderr


#: What is not to reach a terminal: escape sequences and other control characters.
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]")
NAME = "\x1b]0;owned\x07\x1b[2J\r\u202e\x9b31m.npy"


def cut(path: Path) -> None:
    path.write_bytes(head(GOOD) + some_records(2).tobytes())


def kernels(path: Path) -> None:
    np.save(path, new_records(2, pid=7, addr=1 << 63))


def of_many(path: Path) -> None:
    np.save(path, new_records(1001, pid=np.arange(1001), addr=0x1000))


def of_text(path: Path) -> None:
    path.write_bytes(b"\x1b[2J 7/7 [000] 1.000000: 1 \x1b[2J: 5000 1 |OP LOAD|\x1b[2J\n\x1b]0;x\x07\n" * 9)


@pytest.mark.real
@pytest.mark.parametrize("make", [cut, kernels, of_many, of_text, Path.touch, Path.mkdir, None])
@pytest.mark.parametrize("more", [[], ["--pid", "5"]])
def test_no_control_character_of_a_file_reaches_the_terminal(
    make: Callable[[Path], None] | None, more: list[str], tmp_path: Path
) -> None:
    """Neither of its name nor of what is in it, in whatever is said and shown."""
    path = tmp_path / NAME
    if make is not None:
        make(path)
    done = limited("replay", str(path), *more)
    assert "" == "".join(CONTROL.findall(done.stdout + done.stderr))
    assert "\\x1b]0;owned\\x07\\x1b[2J\\x0d" in done.stderr or 0 == done.returncode
