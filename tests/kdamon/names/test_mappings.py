# SPDX-License-Identifier: GPL-2.0-only
"""Names of mappings, from lines of /proc/PID/maps."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdamon.names.mappings import MappingRows, NamedMappings, read_names
from kdamon.names.table import NO_OFFSET
from kdamon.names.texts import MOST_NAMES, REST, NameList, mapping_text, shortened

MAPS = b"""\
55d0a0000000-55d0a0001000 r--p 00000000 fe:00 11 /usr/bin/program
55d0a0001000-55d0a0002000 r-xp 00001000 fe:00 11 /usr/bin/program
55d0a0010000-55d0a0031000 rw-p 00000000 00:00 0                          [heap]
55d0a0040000-55d0a0041000 rw-p 00000000 00:00 0
7f0000000000-7f0000021000 rw-p 00000000 00:00 0
7f0000021000-7f0004000000 ---p 00000000 00:00 0
7f1000000000-7f1000100000 rw-s 00003000 fe:00 12 /srv/a name with blanks (deleted)
7f1000100000-7f1000200000 rw-p 00000000 00:00 0                          [anon:arena 7]
7f1000200000-7f1000300000 rw-p 00000000 00:00 0
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0                          [stack]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
"""


def parsed(text: bytes, names: NameList) -> NamedMappings:
    """The mappings of a text, which is read in pieces."""
    return read_names(lambda size, at: text[at : at + min(size, 100)], names)


def test_names_and_offsets() -> None:
    """Anonymous memory has the nearest neighbour with a name; [vsyscall] is none of the process's."""
    names = NameList()
    found = parsed(MAPS, names)
    expected = [
        ("program", 0),
        ("program", 0x1000),
        ("[heap]", None),
        ("[anon] above [heap]", None),
        ("[anon] below a name with blanks (deleted)", None),
        ("[anon] below a name with blanks (deleted)", None),
        ("a name with blanks (deleted)", 0x3000),
        ("[anon: arena 7]", None),
        ("[anon] above [anon: arena 7]", None),
        ("[stack]", None),
    ]
    rows = [(names.name(name), None if offset == NO_OFFSET else offset) for *_, offset, name in found.rows.tolist()]
    assert expected == rows
    assert [3, 4, 5, 8] == np.flatnonzero(found.anonymous).tolist()
    assert [5] == np.flatnonzero(~found.accessible).tolist()


def test_files_that_may_hold_sections() -> None:
    """Those with a mapping that may be executed."""
    [(key, file)] = parsed(MAPS, NameList()).files.items()
    assert (b"fe:00", b"11") == key
    assert ("program", b"/usr/bin/program", 11, [0, 1]) == (file.name, file.path, file.inode, file.rows)
    assert "55d0a0000000-55d0a0001000" == file.range


def test_nothing_but_anonymous_memory() -> None:
    """There is no neighbour."""
    names = NameList()
    found = parsed(b"1000-2000 rw-p 00000000 00:00 0\n", names)
    assert ["[anon]"] == [names.name(number) for number in found.rows["name"].tolist()]


@pytest.mark.parametrize("text", [b"", b"ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]\n"])
def test_no_mappings(text: bytes) -> None:
    """As of a process that is ending."""
    assert 0 == len(parsed(text, NameList()).rows)


def test_an_address_space_that_is_gone() -> None:
    """Has no mappings, whatever was read before."""

    def read(_size: int, at: int) -> bytes:
        if at:
            raise ProcessLookupError
        return MAPS

    assert 0 == len(read_names(read, NameList()).rows)


def test_mappings_that_come_and_go_meanwhile() -> None:
    """What is not above the line before is left out."""
    text = b"1000-3000 rw-p 0 00:00 0\n2000-4000 rw-p 0 00:00 0\n1000-2000 rw-p 0 00:00 0\n4000-5000 rw-p 0 00:00 0\n"
    assert [(0x1000, 0x3000), (0x4000, 0x5000)] == [row[:2] for row in parsed(text, NameList()).rows.tolist()]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"/usr/lib/libfoo.so.1", "libfoo.so.1"),
        (b"/memfd:ring (deleted)", "memfd:ring"),
        (b"/dev/zero (deleted)", "[shared anon]"),
        (b"/SYSV00000000 (deleted)", "SYSV00000000 (deleted)"),
        (b"anon_inode:[perf_event]", "anon_inode:[perf_event]"),
        (b"[anon:scudo:primary]", "[anon: scudo:primary]"),
        (b"[anon_shmem:shared]", "[anon_shmem: shared]"),
        (b"[vdso]", "[vdso]"),
        # Files do not look like what the kernel or a program says.
        (b"/tmp/[heap]", "./[heap]"),
        (b'/tmp/"pool"', './"pool"'),
        (b"/tmp/" + b"x" * 4000, "x" * 127 + "…" + "x" * 127),
        (b"/tmp/\xff\x1b[m", "\udcff\x1b[m"),
    ],
)
def test_text_of_a_mapping(name: bytes, expected: str) -> None:
    """As users know it."""
    assert expected == mapping_text(name)


@given(text=st.text(max_size=40), most=st.integers(3, 30))
def test_shortened(text: str, most: int) -> None:
    """It begins and ends as before, and is no longer than asked for."""
    found = shortened(text, most)
    assert (found == text) == (len(text) <= most)
    if found != text:
        head, tail = found[: most - 1 - (most - 1) // 2], found[most - (most - 1) // 2 :]
        assert most == len(found)
        assert text.startswith(head)
        assert text.endswith(tail)


def test_names_have_a_limit() -> None:
    """Hostile processes have no end of names."""
    names = NameList(most=4)
    assert [0, 1, 2, 3, 3, 3, 1] == [names.number(name) for name in ["a", "b", "c", "d", "e", "f", "b"]]
    assert ("a", "b", "c", REST) == names.all()
    assert MOST_NAMES <= 1 << 16


def test_many_names_of_files() -> None:
    """As many as a process may have mappings: each is found."""
    count = 3000
    lines = [b"%x-%x rw-p 0 fe:00 %d /tmp/%d" % (at * 8192, at * 8192 + 4096, at + 1, at) for at in range(1, count)]
    names = NameList()
    found = MappingRows(names)
    for line in lines:
        found.add([line])
    assert [str(at) for at in range(1, count)] == [names.name(n) for n in found.mappings().rows["name"].tolist()]


def test_names_of_bytes_that_are_not_utf_8() -> None:
    """Survive: os.fsencode() gives them back."""
    assert b"\xff\xfe" == os.fsencode(mapping_text(b"/a/\xff\xfe"))
