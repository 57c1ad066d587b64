# SPDX-License-Identifier: GPL-2.0-only
"""Reading lackey's traces: every access, in order, and a time for each."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdamon.arrays import Records
from kdamon_tools.report_files.lackey import Lackey
from kdamon_tools.report_files.records import RECORD_DTYPE, TextNotes, line_blocks
from tests.support.tables import effort

TRACE = Path(__file__).parent / "data" / "lackey_trace.txt"
SECOND = 1_000_000_000


def slow_parse(text: str, instructions: bool) -> list[tuple[int, int, bool]]:
    """Address, size and write of each access, found line by line."""
    found = []
    for line in text.splitlines():
        if line[:3] not in (" L ", " S ", " M ", "I  ") or (line[0] == "I" and not instructions):
            continue
        address, size = line[3:].split(",")
        found.append((int(address, 16), int(size), line[1] == "S"))
        if line[1] == "M":
            found.append((int(address, 16), int(size), True))
    return found


@pytest.mark.parametrize("instructions", [False, True])
def test_a_real_trace(instructions: bool) -> None:
    """Made by valgrind 3.19; a modification is a read and a write at one time."""
    text = TRACE.read_text()
    reader = Lackey(instructions=instructions)
    records = reader.parse(text.encode())
    assert slow_parse(text, instructions) == records[["addr", "size", "write"]].tolist()
    assert TextNotes(lines=215) == reader.notes
    assert {26764} == set(records["pid"].tolist())
    assert {(-1, 0, 1)} == set(records[["cpu", "tid", "nr_accesses"]].tolist())


def test_order_is_time() -> None:
    """A fixed number of accesses makes a second; a modification is one access."""
    records = Lackey(rate=4).parse(b" L 1000,1\n M 2000,4\nI  3000,1\n S 4000,2\n L 5000,1\n L 6000,8\n")
    times = [0, SECOND // 4, SECOND // 4, SECOND // 2, 3 * SECOND // 4, SECOND]
    assert times == records["time"].tolist()
    assert [False, False, True, True, False, False] == records["write"].tolist()


@pytest.mark.parametrize(
    ("line", "unparsable"),
    [
        (" L 1000", 1),
        (" L ,8", 1),
        (" L 1000,", 1),
        (" L 1000,8x", 1),
        (" L 10000000000000000,8", 1),
        (" L 1000,1234567", 1),
        (" L1000,8", 1),
        (" X 1000,8", 1),
        ("L  1000,8", 1),
        ("II 1000,8", 1),
        ("what the program printed", 1),
        ("", 0),
        ("==26764== Exit code:       0", 0),
        ("--26764-- warning", 0),
        ("**26764** printed by a client request", 0),
    ],
)
def test_what_is_no_access_is_counted_unless_it_is_valgrinds(line: str, unparsable: int) -> None:
    """Programs print between the lines of the trace."""
    reader = Lackey(pid=7)
    records = reader.parse(f" L 1000,8\n{line}\n S 2000,4\n".encode())
    assert [0x1000, 0x2000] == records["addr"].tolist()
    assert (unparsable, 3) == (reader.notes.unparsable, reader.notes.lines)


def test_the_largest_numbers() -> None:
    """64-bit addresses, and sizes of six digits."""
    records = Lackey(pid=7).parse(b" S ffffffffffffffff,999999\n")
    assert [(0xFFFFFFFFFFFFFFFF, 999999)] == records[["addr", "size"]].tolist()


@pytest.mark.parametrize(("pid", "expected"), [(None, [0, 12]), (99, [99, 99])])
def test_whose_accesses_they_are(pid: int | None, expected: list[int]) -> None:
    """The process is the one that valgrind's lines name, unless --pid names another."""
    reader = Lackey(pid)
    blocks = (b" L 1000,8\n", b"==12== Lackey\n==13== Parent PID: 11\n L 1000,8\n")
    assert expected == [reader.parse(block)["pid"][0] for block in blocks]


def parse_in_blocks(text: bytes, size: int) -> tuple[Records, TextNotes]:
    reader = Lackey()
    parts = [reader.parse(block) for block in line_blocks(io.BytesIO(text), size)]
    return np.concatenate(parts), reader.notes


def test_how_a_file_is_cut_into_blocks_does_not_matter() -> None:
    """Not for times either; and the last line needs no end."""
    text = TRACE.read_bytes().rstrip()
    whole, notes = parse_in_blocks(text, 1 << 20)
    for size in (1, 7, 100, 1000):
        records, other = parse_in_blocks(text, size)
        assert whole.tolist() == records.tolist()
        assert notes == other


@given(st.lists(st.one_of(st.binary(max_size=40), st.sampled_from([b" L 1000,8", b" M 2000,4", b"I  1,1"]))))
@effort(150)
def test_no_bytes_at_all_are_an_error(lines: list[bytes]) -> None:
    """Whatever is in between, the accesses are found."""
    text = b"\n".join(lines) + b"\n"
    reader = Lackey(pid=7)
    records = reader.parse(text)
    assert RECORD_DTYPE == records.dtype
    good = [line for line in text.split(b"\n") if line in (b" L 1000,8", b" M 2000,4")]
    assert sum(2 if line.startswith(b" M") else 1 for line in good) <= len(records)
    assert 0 <= reader.notes.unparsable <= reader.notes.lines
