# SPDX-License-Identifier: GPL-2.0-only
"""Sections of ELF files, good ones and hostile ones, and the pages that they name."""

from __future__ import annotations

import os
import random
import struct
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from kdamon.kernel import PAGE_SIZE
from kdamon.names import elf
from kdamon.names.elf import Section, open_mapped, sections_of
from kdamon.names.mappings import MappedFile, NamedMappings
from kdamon.names.sections import SectionCache, section_rows
from kdamon.names.table import NAMED_RANGE, NO_OFFSET, joined
from kdamon.names.texts import NameList

#: A real file of this machine, in which .text, .data and .bss are.
REAL = Path(sys.executable).resolve()
HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
SECTION = struct.Struct("<IIQQQQIIQQ")
SHOFF, SHENTSIZE, SHNUM, SHSTRNDX = 6, 11, 12, 13


def sections(path: Path) -> tuple[Section, ...]:
    """Those of a file."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return sections_of(fd)
    finally:
        os.close(fd)


def made(path: Path, **fields: int) -> Path:
    """A small ELF file, of which fields of the header, or of all section headers, are as given."""
    names = b"\0.text\0.data\0.bss\0.strtab\0.comment\0"
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    rows = [
        (0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
        (1, 1, 6, 0x1000, 0x1000, 0x800, 0, 0, 16, 0),
        (7, 1, 3, 0x4000, 0x2000, 0x1100, 0, 0, 16, 0),
        (13, 8, 3, 0x5100, 0x3100, 0x2000, 0, 0, 16, 0),
        (18, 3, 0, 0, 0x4000, len(names), 0, 0, 1, 0),
        (26, 1, 0, 0, 0x4100, 100, 0, 0, 1, 0),
    ]
    header = [ident, 3, 62, 1, 0, 64, 0x5000, 0, 64, 56, 0, 64, len(rows), 4]
    places = {"e_shoff": SHOFF, "e_shentsize": SHENTSIZE, "e_shnum": SHNUM, "e_shstrndx": SHSTRNDX}
    for name, value in fields.items():
        if name in places:
            header[places[name]] = value
    place = {"sh_name": 0, "sh_type": 1, "sh_offset": 4, "sh_size": 5, "sh_link": 6}
    changed = [[fields.get(f"all_{name}", row[at]) for name, at in place.items()] for row in rows]
    rows = [
        (name, kind, row[2], row[3], offset, size, link, *row[7:])
        for row, (name, kind, offset, size, link) in zip(rows, changed, strict=True)
    ]
    data = bytearray(0x5000 + len(rows) * 64)
    data[: HEADER.size] = HEADER.pack(*header)
    data[0x4000 : 0x4000 + len(names)] = names
    for at, row in enumerate(rows):
        SECTION.pack_into(data, 0x5000 + at * 64, *row)
    path.write_bytes(data)
    return path


def test_a_real_file() -> None:
    """This interpreter's own."""
    found = {section.name: section for section in sections(REAL)}
    assert found[".text"].size > 0
    assert (True, False) == (found[".data"].writable, found[".data"].empty)
    assert found[".bss"].empty
    assert not {".strtab", ".symtab", ".comment"} & found.keys()


def test_a_small_file(tmp_path: Path) -> None:
    """Only sections that are in memory."""
    expected = (
        Section(".text", 0x1000, 0x1000, 0x800, False, False),
        Section(".data", 0x2000, 0x4000, 0x1100, True, False),
        Section(".bss", 0x3100, 0x5100, 0x2000, True, True),
    )
    assert expected == sections(made(tmp_path / "file"))


@pytest.mark.parametrize(
    "fields",
    [
        {"e_shoff": 0},
        {"e_shoff": (1 << 64) - 64},
        {"e_shnum": 0},
        {"e_shnum": 0xFEFF},
        {"e_shentsize": 0},
        {"e_shentsize": 65535},
        {"e_shstrndx": 200},
    ],
    ids=str,
)
def test_a_header_that_makes_no_sense(tmp_path: Path, fields: dict[str, int]) -> None:
    """Gives no sections."""
    assert () == sections(made(tmp_path / "file", **fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"all_sh_name": 0xFFFFFFFF},
        {"all_sh_offset": (1 << 64) - 1},
        {"all_sh_size": (1 << 64) - 1},
        {"all_sh_type": 0x6FFFFFF6, "all_sh_size": 1 << 40},
        {"all_sh_type": 5, "all_sh_link": 0xFFFF},
        {"all_sh_type": 11, "all_sh_link": 1},
    ],
    ids=str,
)
def test_sections_that_make_no_sense(tmp_path: Path, fields: dict[str, int]) -> None:
    """Are not followed: hash tables and symbols are never read."""
    path = made(tmp_path / "file", **fields)
    with patch.object(elf, "_MOST_READ", 2048):
        found = sections(path)
    assert all(isinstance(section, Section) for section in found)


def test_files_that_are_none(tmp_path: Path) -> None:
    """Empty, short, and of another kind."""
    for content in (b"", b"\x7fELF", b"\x7fELF\x02\x01\x01" + bytes(20), b"#!/bin/sh\n", b"\x7fELF" + b"\xff" * 4096):
        (tmp_path / "file").write_bytes(content)
        assert () == sections(tmp_path / "file")


def test_garbage(tmp_path: Path) -> None:
    """A good file with some bytes changed, and a half of it: no error, and no more is read than the limit."""
    good = made(tmp_path / "good").read_bytes()
    luck = random.Random(7)
    for _ in range(300):
        data = bytearray(good)
        for _ in range(luck.randrange(1, 12)):
            data[luck.choice([luck.randrange(64), luck.randrange(0x5000, len(data))])] = luck.randrange(256)
        (tmp_path / "bad").write_bytes(data[: luck.choice([len(data), luck.randrange(len(data))])])
        assert len(sections(tmp_path / "bad")) <= 6


def test_what_is_read_has_a_limit(tmp_path: Path) -> None:
    """However many sections, and names however long, there are."""
    read: list[int] = []
    pread = os.pread
    with patch.object(os, "pread", lambda fd, count, at: read.append(count) or pread(fd, count, at)):
        sections(made(tmp_path / "file", all_sh_size=1 << 62))
        sections(REAL)
    assert sum(read) < 1 << 19


# Pages.


def mappings(*rows: tuple[int, int, int], anonymous: int = 0) -> NamedMappings:
    """Mappings of one file (start, end, offset in pages), and the pages of an anonymous one that follows."""
    table = [(start * PAGE_SIZE, end * PAGE_SIZE, offset * PAGE_SIZE, 0) for start, end, offset in rows]
    if anonymous:
        table.append((table[-1][1], table[-1][1] + anonymous * PAGE_SIZE, NO_OFFSET, 0))
    file = MappedFile("file", b"/file", 1, "0-1", list(range(len(rows))), True)
    flags = np.zeros(len(table), np.bool_)
    flags[len(rows) :] = True
    return NamedMappings(np.array(table, NAMED_RANGE), flags, ~flags, {(b"fe:00", b"1"): file})


def pages(found: NamedMappings, of: tuple[Section, ...]) -> list[tuple[int, int, str]]:
    """The rows of sections: first and last (exclusive) page, name."""
    names = NameList()
    rows = joined(section_rows(found, {(b"fe:00", b"1"): of}, names))
    assert (rows["start"][1:] >= rows["end"][:-1]).all()
    return [(start // PAGE_SIZE, end // PAGE_SIZE, names.name(name)) for start, end, _, name in rows.tolist()]


def section(name: str, offset: float, size: float, address: float | None = None, empty: bool = False) -> Section:
    """A writable section; all in pages."""
    there = int((offset if address is None else address) * PAGE_SIZE)
    return Section(name, int(offset * PAGE_SIZE), there, int(size * PAGE_SIZE), True, empty)


def test_pages_of_sections() -> None:
    """A page that several share belongs to the one with most of it."""
    of = section(".a", 0, 2.25), section(".b", 2.25, 0.5), section(".c", 2.75, 2.25)
    expected = [(100, 102, "file .a"), (102, 103, "file .b"), (103, 105, "file .c")]
    assert expected == pages(mappings((100, 105, 0)), of)


def test_a_mapping_of_a_part_of_the_file() -> None:
    """Begins at its offset."""
    of = section(".a", 0, 4), section(".b", 4, 4)
    assert [(10, 11, "file .a"), (11, 12, "file .b"), (20, 21, "file .b")] == pages(
        mappings((10, 12, 3), (20, 21, 7)), of
    )


def test_bss_goes_on_in_the_anonymous_mapping_that_follows() -> None:
    """As far as it is large; what is above it is something else."""
    of = section(".data", 2, 1.5, address=12), section(".bss", 3.5, 2.75, address=13.5, empty=True)
    found = pages(mappings((50, 52, 2), anonymous=10), of)
    assert [(50, 52, "file .data"), (52, 55, "file .bss")] == found


def test_bss_that_is_elsewhere() -> None:
    """An anonymous mapping that is not next to the file's is none of its sections."""
    of = section(".data", 0, 1), section(".bss", 1, 1, empty=True)
    apart = mappings((50, 51, 0), anonymous=4)
    apart.rows["start"][1] += PAGE_SIZE
    assert [(50, 51, "file .data")] == pages(apart, of)


def test_sections_that_overlap() -> None:
    """As only hostile headers say: rows stay disjoint."""
    of = tuple(section(f".{n}", n % 3, 4) for n in range(9))
    assert pages(mappings((100, 106, 0)), of)


def test_many_sections_in_many_mappings() -> None:
    """Have a limit."""
    many = mappings(*((at * 2, at * 2 + 1, 9) for at in range(1, 2000)))
    of = tuple(section(f".{n}", 9, 1) for n in range(500))
    assert len(pages(many, of)) < 400


# Opening.


def test_only_the_file_that_is_meant_is_opened(tmp_path: Path) -> None:
    """By its number; no FIFO, no device, no directory."""
    path = made(tmp_path / "file")
    inode = path.stat().st_ino
    pid = os.getpid()
    fd = open_mapped(pid, "0-1", os.fsencode(path), inode)
    # Without rights for map_files it is found by its path.
    by_path = patch.object(elf, "_look", lambda *_: os.open(path, os.O_PATH))
    if fd is None:
        with by_path:
            fd = open_mapped(pid, "0-1", os.fsencode(path), inode)
    assert fd is not None
    assert 3 == len(sections_of(fd))
    os.close(fd)
    os.mkfifo(tmp_path / "fifo")
    for other in (tmp_path / "fifo", tmp_path, Path("/dev/null")):
        with patch.object(elf, "_look", lambda *_, other=other: os.open(other, os.O_PATH)):
            assert None is open_mapped(pid, "0-1", os.fsencode(other), other.stat().st_ino)
    with by_path:
        assert None is open_mapped(pid, "0-1", os.fsencode(path), inode + 1)


def test_files_are_read_once(tmp_path: Path) -> None:
    """Until another file has the number, or they change."""
    path = made(tmp_path / "file")
    file = MappedFile("file", os.fsencode(path), path.stat().st_ino, "0-1", [0], True)
    files = {(b"fe:00", b"1"): file}
    cache = SectionCache(os.getpid())
    with patch.object(elf, "_look", lambda *_: os.open(path, os.O_PATH)):
        assert 3 == len(cache.look(files)[b"fe:00", b"1"])
        with patch.object(elf, "_look", side_effect=AssertionError):
            assert 3 == len(cache.look(files)[b"fe:00", b"1"])
        assert {} == cache.look({})
        path.write_bytes(b"\x7fELF" + bytes(100))
        assert {} == cache.look(files)
