# SPDX-License-Identifier: GPL-2.0-only
"""Reading ``perf script`` output: what every line means, and that no line is an accident."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdamon.arrays import Records
from kdamon_tools.report_files.perf_script import PerfScript
from kdamon_tools.report_files.records import RECORD_DTYPE, TextNotes
from tests.support.cli import DATA
from tests.support.tables import effort

MS = 1_000_000


def parse(text: str, pid: int | None = None) -> tuple[Records, TextNotes]:
    """What is read from ``text``."""
    reader = PerfScript(pid)
    return reader.parse(text.encode()), reader.notes


def parse_file(name: str) -> tuple[Records, TextNotes]:
    return parse((DATA / name).read_text())


def test_loads_and_stores_of_perf_mem_record() -> None:
    """Time, process, thread, CPU, address and operation of each sample; samples without address are left out."""
    records, notes = parse_file("perf_script_mem.txt")
    names = ["time", "pid", "tid", "cpu", "addr", "write", "size", "nr_accesses", "node_id"]
    assert [
        (544966_882384000, 4242, 4251, 2, 0x7FFDF1391B0C, False, 1, 1, -1),
        (544966_882401000, 77, 77, 3, 0xFFFF90CF25B26280, True, 1, 1, -1),
        (544966_882499000, 4300, 4300, 0, 0x7FAD70001000, False, 1, 1, -1),
        (544966_882500000, 5000, 5000, 1, 0x7F1200000040, False, 1, 1, -1),
    ] == records[names].tolist()
    assert TextNotes(lines=10, unparsable=1, without_address=1, remote=1) == notes


def test_a_real_recording_of_page_faults_by_two_threads() -> None:
    """Made by perf 6.1 itself: ``perf script -F comm,pid,tid,cpu,time,event,addr,data_src,weight``."""
    records, notes = parse_file("perf_script_threads.txt")
    assert (24, 24, 0) == (len(records), notes.lines, notes.unparsable)
    assert {25611} == set(records["pid"].tolist())
    assert [25611] * 12 + [25653] * 12 == records["tid"].tolist()
    assert (0x7F5829B23030, 11398_422537000) == (records["addr"][0], records["time"][0])
    assert 24 == notes.without_operation


def test_callchains_and_headers_are_no_accesses_and_no_mistakes() -> None:
    """They have lines of their own, which are skipped; made by perf 6.1 as well."""
    records, notes = parse_file("perf_script_callchains.txt")
    lines = (DATA / "perf_script_callchains.txt").read_text().splitlines()
    assert sum("page-faults:" in line and not line.startswith("#") for line in lines) == len(records) > 10
    assert (len(lines), 0, 0) == (notes.lines, notes.unparsable, notes.without_address)
    assert (0x7F78B784E1A4, 25664) in records[["addr", "pid"]].tolist()


LINE = "  cc1 1234/1235 [001]  100.000005:  {event}:  7f0000001000  {rest}\n"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        # time, pid, tid, cpu, addr, write
        ("cc1 1234/1235 [001] 1.5: x: 1000\n", (1500 * MS, 1234, 1235, 1, 0x1000, False)),
        ("cc1 1234 [001] 1.000001: x: 1000\n", (1000 * MS + 1000, 1234, 1234, 1, 0x1000, False)),
        ("cc1 1234/1235 1.000000001: x: 1000\n", (1000 * MS + 1, 1234, 1235, -1, 0x1000, False)),
        ("1234/1235 [001] 1.5: x: 1000\n", (1500 * MS, 1234, 1235, 1, 0x1000, False)),
        ("cc1 1.5: x: 1000\n", (1500 * MS, 0, 0, -1, 0x1000, False)),
        ("1.5: 1000\n", (1500 * MS, 0, 0, -1, 0x1000, False)),
        ("1.5: x: 1000 12\n", (1500 * MS, 0, 0, -1, 0x1000, False)),
        ("1.5: 77 a:b:u: 1000 7f00aa00bb main+0x3 (/bin/cc1)\n", (1500 * MS, 0, 0, -1, 0x1000, False)),
        ("1.5: x: 1000 [unknown] (//anon)  7f00aa00 main (/bin/cc1)\n", (1500 * MS, 0, 0, -1, 0x1000, False)),
        ("  my prog 7 1234/1235 [001] 1.5: x: 1000\n", (1500 * MS, 1234, 1235, 1, 0x1000, False)),
        (" 99 1234/1235 [001] 1.5: x: 1000\n", (1500 * MS, 1234, 1235, 1, 0x1000, False)),
        (" [001] 1: 9/9 [003] 1.5: x: 1000\n", (1500 * MS, 9, 9, 3, 0x1000, False)),
        (":-1 -1/-1 [001] 1.5: x: 1000\n", (1500 * MS, 0, 0, 1, 0x1000, False)),
        ("cc1 1/2 [0] 1.5: cpu/mem-stores/P: 1000\n", (1500 * MS, 1, 2, 0, 0x1000, True)),
        ("cc1 1/2 [0] 1.5: MEM_INST_RETIRED.ALL_STORES: 1000\n", (1500 * MS, 1, 2, 0, 0x1000, True)),
        ("cc1 1/2 [0] 1.5: mem-stores: 1000 10268100142 |OP LOAD|LVL L1\n", (1500 * MS, 1, 2, 0, 0x1000, False)),
        ("cc1 1/2 [0] 1.5: x: 1000 444000288100144 |OP STORE SIMD|LVL L1\n", (1500 * MS, 1, 2, 0, 0x1000, True)),
        ("cc1 1/2 [0] 1.5: x: 1000 68100144 L1 hit|SNP None|TLB L1\n", (1500 * MS, 1, 2, 0, 0x1000, True)),
        ("cc1 1/2 [0] 1.5: x: ffffffffffffffff\n", (1500 * MS, 1, 2, 0, 0xFFFFFFFFFFFFFFFF, False)),
    ],
)
def test_fields_may_be_missing(line: str, expected: tuple[object, ...]) -> None:
    """Only time and address must be there; names of commands may look like anything."""
    records, notes = parse(line)
    assert [expected] == records[["time", "pid", "tid", "cpu", "addr", "write"]].tolist()
    assert (0, 0) == (notes.unparsable, notes.without_address)


@pytest.mark.parametrize(
    "line",
    [
        "cc1 1234/1235 [001] 1.5: 10000 cycles: 7f00aa00bb main+0x3 (/bin/cc1)\n",
        "cc1 1234/1235 [001] 1.5: 10000 cycles: 7f00aa00bb [unknown] (/lib/libglib-2.0.so.0)\n",
        "cc1 1234/1235 [001] 1.5: cpu/mem-loads/P: 0 1e05080021 |OP N/A|LVL N/A\n",
    ],
)
def test_an_instruction_is_not_taken_for_data(line: str) -> None:
    """Samples of other events, or without the field addr, show where the program was, not what it accessed."""
    records, notes = parse(line)
    assert (0, TextNotes(lines=1, without_address=1)) == (len(records), without(notes, "without_process"))


def without(notes: TextNotes, name: str) -> TextNotes:
    setattr(notes, name, 0)
    return notes


@pytest.mark.parametrize(
    ("line", "unparsable"),
    [
        ("cc1 1234 [001] 1.5: x:\n", 1),
        ("cc1 1234 [001] x: 1000\n", 1),
        ("cc1 1234 [001] 1.5: x: 10000000000000000\n", 1),
        ("cc1 1234 [001] 123456789012.5: x: 1000\n", 1),
        ("cc1 1234 [001] 1.5: x: 7fzz\n", 1),
        ("\x00\xff binary \x80\n", 1),
        ("\n", 0),
        ("# cc1 1234 [001]\n", 0),
        ("\t    7f00aa00bb main+0x3 (/bin/cc1)\n", 0),
        ("process_api     0 [000]     0.000000000: PERF_RECORD_COMM: process_api:1/1\n", 0),
    ],
)
def test_what_is_no_sample_is_counted_if_nobody_knows_what_it_is(line: str, unparsable: int) -> None:
    """Never an error, whatever the line holds."""
    records, notes = parse(line + "cc1 1/2 [000] 1.5: x: 1000\n")
    assert (1, unparsable, 2) == (len(records), notes.unparsable, notes.lines)


def test_a_thread_may_belong_to_a_process_that_is_told_otherwise() -> None:
    """perf's default prints the thread only: it stands for its process, unless --pid names that."""
    text = "cc1 1235 [001] 1.5: x: 1000\ncc1 1236/1237 [001] 1.5: x: 1000\n"
    records, notes = parse(text)
    assert ([1235, 1236], [1235, 1237], 1) == (
        records["pid"].tolist(),
        records["tid"].tolist(),
        notes.without_process,
    )
    assert [1234, 1236] == parse(text, 1234)[0]["pid"].tolist()


@pytest.mark.parametrize(
    ("data_src", "remote"),
    [
        ("10268100142", 0),  # L1 hit
        ("3a68202042", 1),  # Remote RAM (1 hop), with the flag for it
        ("68202042", 1),  # the same without the flag
        ("51088842", 0),  # "L3 or Remote Cache (1 hop)": unknown
        ("1e05080021", 0),  # nothing is known
    ],
)
def test_accesses_to_other_nodes_are_counted(data_src: str, remote: int) -> None:
    """A report has no place for where memory is: the number of remote accesses is all that is kept of it."""
    records, notes = parse(f"cc1 1/2 [000] 1.5: x: 1000 {data_src} |OP X|LVL X\n")
    assert (1, remote, -1) == (len(records), notes.remote, records["node_id"][0])


#: What a thread may call itself: what looks like the fields of a sample, bytes that are no text, blanks at the ends.
COMMS = (
    *(b"cat", b"a b", b"1 2 [3] 4.5: a", b"1/2 [3] 4.5: ", b"4.5: abc", b"9 4.5: 77 ab", b"[001] 1.0: 7f", b"123"),
    *(b"x 1 [2] 3.4: a", b"a: 1 2.3: 4", b"x/y 1/1 2.0: ", b"\r\xff\x85 x", b"fifteen bytes..", b" lead", b"trail "),
)
#: What perf prints after the name, by its formats, and the thread, process and CPU that are in it.
FIELDS = (
    (b"%7d/%-7d [%03d] " % (1234, 1235, 1), (1234, 1235, 1)),
    (b"%7d [%03d] " % (1235, 1), (1235, 1235, 1)),
    (b"%7d " % 1235, (1235, 1235, -1)),
)


@pytest.mark.parametrize("comm", [*COMMS, None], ids=repr)
@pytest.mark.parametrize(("seconds", "ns"), [(b"1.123456", 1_123456000), (b"12345.123456789", 12345_123456789)])
def test_a_threads_name_may_look_like_a_sample(comm: bytes | None, seconds: bytes, ns: int) -> None:
    """In its column of 16 bytes, of its own width as with callchains, and left out."""
    names = (b"",) if comm is None else (b"%16s " % comm, b"%s " % comm)
    fields = [(name + numbers, found) for name in names for numbers, found in FIELDS]
    # Without a thread only the column says where a name ends.
    fields += [(b"%16s [%03d] " % (comm or b"", 1), (0, 0, 1))]
    for begin, (pid, tid, cpu) in fields:
        for end in (b"%16x\n", b"10 cpu/mem-loads/: %16x 68100142 |OP LOAD|LVL L1 hit\n"):
            line = begin + b"%12s: " % seconds + end % 0x7F0012345678
            reader = PerfScript()
            records = reader.parse(line)
            assert [(pid, tid, cpu, ns, 0x7F0012345678)] == records[["pid", "tid", "cpu", "time", "addr"]].tolist(), (
                line
            )
            assert 0 == reader.notes.unparsable


def test_a_threads_name_with_a_newline_costs_no_sample() -> None:
    """perf prints it as it is, so the sample begins in the next line."""
    records, notes = parse("             x\n1 [0] 1.1: a    1234/1235    [001]    99.123456: 7f0012345678\n")
    assert [(1234, 1235, 0x7F0012345678)] == records[["pid", "tid", "addr"]].tolist()
    assert (2, 1) == (notes.lines, notes.unparsable)


def test_how_a_file_is_cut_into_blocks_does_not_matter() -> None:
    """One reader for block after block finds what it finds in the whole."""
    lines = (DATA / "perf_script_callchains.txt").read_bytes().splitlines(keepends=True)
    whole, piecewise = PerfScript(), PerfScript()
    expected = whole.parse(b"".join(lines))
    assert expected.tolist() == np.concatenate([piecewise.parse(line) for line in lines]).tolist()
    assert whole.notes == piecewise.notes


@given(st.binary(max_size=300), st.integers(0, 200))
@effort(150)
def test_no_bytes_at_all_are_an_error(noise: bytes, at: int) -> None:
    """Neither noise, nor a good line with noise in it."""
    good = b"cc1 1234/1235 [001] 1.5: 1 cpu/mem-loads/P: 1000 10268100142 |OP LOAD|LVL L1 hit|SNP None\n"
    for block in (noise + b"\n", good[:at] + noise + good[at:]):
        reader = PerfScript()
        records = reader.parse(block if block.endswith(b"\n") else block + b"\n")
        assert RECORD_DTYPE == records.dtype
        assert len(records) + reader.notes.unparsable + reader.notes.without_address <= reader.notes.lines
