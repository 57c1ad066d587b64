# SPDX-License-Identifier: GPL-2.0-only
"""Ranges that no process and no machine has, and ranges in which nothing is."""

from __future__ import annotations

import numpy as np
import pytest

from kdamon_tools import addresses
from kdamon_tools.addresses import (
    check_physical_addresses,
    check_user_addresses,
    doubtful_ranges,
    end_of_user_space,
    size_within,
)
from kdamon_tools.errors import CommandError

GIB = 1 << 30


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "bits"),
    [
        ("x86_64", "flags\t\t: fpu vme la57 de\n", 56),
        ("x86_64", "flags\t\t: fpu vme de\n", 47),
        ("x86_64", "model name\t: la57\nflags\t\t: fpu xla57\n", 47),
        ("aarch64", "", 56),
    ],
)
def test_where_user_space_ends(monkeypatch: pytest.MonkeyPatch, machine: str, cpuinfo: str, bits: int) -> None:
    """By the levels of page tables that are in use; where that is not known, nothing is refused that could be."""
    monkeypatch.setattr(addresses.platform, "machine", lambda: machine)
    assert 1 << bits == end_of_user_space(cpuinfo)


@pytest.mark.parametrize(
    ("start", "end", "beyond"),
    [
        # What a decimal address looks like.
        (0x139873495060480, 0x139873562169344, 0x139873495060480),
        (0xFFFF_FFFF_8000_0000, 0xFFFF_FFFF_8100_0000, 0xFFFF_FFFF_8000_0000),
        (0x7FFF_0000_0000, 0xFFFF_FFFF_FFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF),
        (0x7FFF_FFFF_F000, 0x8000_0000_0001, 0x8000_0000_0001),
    ],
)
def test_ranges_beyond_user_space_are_refused(
    monkeypatch: pytest.MonkeyPatch, start: int, end: int, beyond: int
) -> None:
    """With the value as it was understood."""
    monkeypatch.setattr(addresses, "end_of_user_space", lambda: 1 << 47)
    with pytest.raises(CommandError) as raised:
        check_user_addresses([(0x1000, 0x2000), (start, end)])
    assert 2 == raised.value.exit_code
    assert (
        f"--range {start:x}-{end:x}: {beyond:#x} is beyond user space, which ends at 0x800000000000; "
        "addresses are hexadecimal" == str(raised.value)
    )


def test_ranges_up_to_the_end_of_user_space_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether anything is mapped there or not."""
    monkeypatch.setattr(addresses, "end_of_user_space", lambda: 1 << 47)
    check_user_addresses([(0, 1), (0x7FFF_FFFF_0000, 1 << 47)])
    check_user_addresses([])


@pytest.mark.parametrize(
    ("start", "end", "beyond"),
    [
        (2 * GIB, 3 * GIB, 2 * GIB),
        # A GiB in decimal, from the beginning.
        (0, 0x1073741824, 0x1073741824),
    ],
)
def test_ranges_beyond_memory_are_refused(start: int, end: int, beyond: int) -> None:
    """All of a range has to be below the end of the last memory; holes are taken."""
    ram = np.array([[0x1000, 0x9F000], [GIB, 2 * GIB]], np.uint64)
    check_physical_addresses([(0xA0000, 0xB0000), (0, 2 * GIB)], ram)
    with pytest.raises(CommandError) as raised:
        check_physical_addresses([(start, end)], ram)
    assert 2 == raised.value.exit_code
    assert f"{beyond:#x} is beyond the machine's memory, which ends at 0x80000000" in str(raised.value)


def test_ranges_in_which_nothing_is_are_doubted() -> None:
    """Each by itself; part of one is enough, and a neighbour is not."""
    present = np.array([[0x1000, 0x2000], [0x5000, 0x6000]], np.uint64)
    ranges = [(0, 0x1000), (0x1800, 0x5000), (0x2000, 0x5000), (0x5FFF, 0x10000)]
    said = list(doubtful_ranges(ranges, present, "nothing is mapped"))
    assert [
        f"--range {span}: nothing is mapped there now, so no access can be observed; addresses are hexadecimal"
        for span in ("0-1000", "2000-5000")
    ] == said
    assert 0x801 == size_within(ranges, present)
    assert 4 == len(list(doubtful_ranges(ranges, np.empty((0, 2), np.uint64), "nothing is mapped")))
