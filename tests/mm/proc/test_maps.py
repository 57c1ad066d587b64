# SPDX-License-Identifier: GPL-2.0-only
"""/proc/PID/maps becomes an array."""

from __future__ import annotations

import mmap
import os
import re
from pathlib import Path

import numpy as np
import pytest

from kdamon.mm.proc import maps

TEXT = b"""\
1000-2000 ---p 00000000 00:00 0
00400000-00452000 r-xp 00000000 08:02 173521      /usr/bin/a - name-with 12-34 dashes
7f0000000000-7f0000021000 rw-p 00000000 00:00 0
7ffd5a1d2000-7ffd5a1f3000 rw-p 00000000 00:00 0                          [stack]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
"""


def test_start_and_end_of_every_line_are_read() -> None:
    """Addresses of any width; the kernel's own [vsyscall] is left out."""
    expected = [
        [0x1000, 0x2000],
        [0x400000, 0x452000],
        [0x7F0000000000, 0x7F0000021000],
        [0x7FFD5A1D2000, 0x7FFD5A1F3000],
    ]
    assert expected == maps.parse(TEXT).tolist()


def test_five_level_addresses_are_read() -> None:
    """Up to the end of the user's half."""
    assert [[0xFFFFFFFFFFF000, 1 << 56]] == maps.parse(b"fffffffffff000-100000000000000 rw-p 0 00:00 0\n").tolist()


@pytest.mark.parametrize("text", [b"", b"ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0    [vsyscall]\n"])
def test_nothing_mapped_is_an_empty_array(text: bytes) -> None:
    """Of the right shape, so that no caller has to check it first."""
    assert (0, 2) == maps.parse(text).shape


def test_lines_that_overlap_those_before_are_left_out() -> None:
    """The list is read in pieces, and the process changes it in between."""
    text = b"1000-5000 r--p 0 00:00 0\n3000-4000 r--p 0 00:00 0\n4000-8000 r--p 0 00:00 0\n5000-6000 r--p 0 00:00 0\n"
    assert [[0x1000, 0x5000], [0x5000, 0x6000]] == maps.parse(text).tolist()


def test_the_first_system_v_shared_memory_is_a_file() -> None:
    """Its inode number is its identifier, which is 0."""
    line = b"7f0000000000-7f0000021000 rw-s 00000000 00:01 0                          /SYSV00000000 (deleted)\n"
    found = maps.Mappings.parse(line)
    assert [True] == found.files[:1].tolist()
    assert [1] == found.devices[:1].tolist()


def test_a_living_process_agrees_with_a_plain_reading() -> None:
    """Through several reads of the file."""
    fd = os.open("/proc/self/maps", os.O_RDONLY)
    try:
        found = maps.MapsReader(fd).all().ranges
        text = b"".join(iter(lambda: os.read(fd, 1 << 16), b"")).decode()
    finally:
        os.close(fd)
    expected = [
        [int(start, 16), int(end, 16)]
        for start, end, rest in re.findall(r"^(\w+)-(\w+) (.*)$", text, re.MULTILINE)
        if "[vsyscall]" not in rest
    ]
    # The reading itself may have grown the heap.
    assert len(found) > 10
    assert sum(row in expected for row in found.tolist()) >= len(found) - 2


def test_each_mapping_has_what_its_line_says(tmp_path: Path) -> None:
    """Offset, device, whether it may be written, is shared, is of a file."""
    path = tmp_path / "file"
    path.write_bytes(bytes(8192))
    with path.open("rb") as file:
        private = np.frombuffer(mmap.mmap(file.fileno(), 4096, mmap.MAP_PRIVATE, mmap.PROT_READ, offset=4096), np.uint8)
    shared = np.frombuffer(mmap.mmap(-1, 4096, mmap.MAP_SHARED), np.uint8)
    with open("/proc/self/maps", "rb") as lines:
        found = maps.Mappings.parse(lines.read())
    row = np.searchsorted(found.ranges[:, 0], np.uint64(private.ctypes.data), side="right") - 1
    assert (4096, path.stat().st_dev) == (found.offsets[row], found.devices[row])
    assert (False, False, True) == (found.writable[row], found.shared[row], found.files[row])
    row = np.searchsorted(found.ranges[:, 0], np.uint64(shared.ctypes.data), side="right") - 1
    assert (True, True, True) == (found.writable[row], found.shared[row], found.files[row])
    nothing = np.searchsorted(found.ranges[:, 0], np.uint64(np.zeros(1).ctypes.data), side="right") - 1
    assert (0, 0, True, False, False) == (
        found.offsets[nothing], found.devices[nothing], found.writable[nothing], found.shared[nothing],
        found.files[nothing],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("addr", "expected"),
    [(0xFFF, None), (0x1000, (0x1000, 0x2000)), (0x1FFF, (0x1000, 0x2000)), (0x2000, None), (1 << 60, None)],
)
def test_the_mapping_of_an_address_is_found(addr: int, expected: tuple[int, int] | None) -> None:
    """The end is outside."""
    assert expected == maps.containing(maps.parse(TEXT), addr)
    assert maps.containing(maps.parse(b""), addr) is None
