# SPDX-License-Identifier: GPL-2.0-only
"""Selects the addresses that a picture shows, all hot ones if they fit, and describes the rest."""

from __future__ import annotations

from typing import Final

import numpy as np

from kdamon.arrays import F64Array, Mask, U64Array, distinct
from kdamon.kernel import PAGE_SIZE
from kdamon_tools.reporters.rest import describe_rest
from kdamon_tools.snapshot import Config, Range
from kdamon_tools.views.profile import Profile
from kdamon_tools.views.regions import HOT

__all__ = ["choose_areas", "line_size", "monitored_ranges", "rests_of"]

#: An address gets a line if it was accessed in at least this share of all samples, or hot for some time.
_WORTHWHILE: Final = 0.02
#: It also gets one if it was unknown most of the time, and monitored for at least this share of the run.
_LONG: Final = 0.1
#: Ranges are joined if the gap is at most this number of lines.
_FAR: Final = 256


def monitored_ranges(profile: Profile) -> list[Range]:
    """All addresses that were ever monitored, in order and disjoint."""
    return _ranges_where(profile.edges, profile.covered > 0.5)


def choose_areas(profile: Profile, total: float, config: Config, most: int) -> list[Range]:
    """The addresses to show, in order and disjoint, at most ``most`` ranges.

    Memory is shown if it was hot for some time, or accessed or unknown during a noticeable share of the run, with some
    of its surroundings; without any such memory everything is shown. If there are more ranges than lines, hot ones come
    first, then those with most accessed bytes.

    :param total: how long the recording is, as :attr:`Profile.covered` counts.
    """
    possible = config.max_nr_accesses * total
    long_unknown = (profile.covered >= _LONG * total) & _mostly_unknown(profile, config)
    wanted = (profile.accesses >= _WORTHWHILE * possible) | (profile.peak >= HOT) | long_unknown
    if not wanted.any():
        wanted = profile.accesses > 0.5
    if not wanted.any():
        wanted = profile.covered > 0.5
    ranges = _join_near(_ranges_where(profile.edges, wanted), most)
    ranges = _most_important(ranges, profile, most)
    size = sum(end - start for start, end in ranges)
    margin = max(1, size // (16 * len(ranges)) // PAGE_SIZE) * PAGE_SIZE
    return _widen(ranges, monitored_ranges(profile), margin)


def _mostly_unknown(profile: Profile, config: Config) -> Mask:
    return profile.unknown > 0.5 * config.max_nr_accesses * profile.covered


def _ranges_where(edges: U64Array, wanted: Mask) -> list[Range]:
    """The pieces for which ``wanted`` is true; touching ones are joined."""
    flags = np.concatenate([[False], wanted, [False]]).astype(np.int8)
    steps = np.diff(flags)
    return [
        (int(start), int(end))
        for start, end in zip(edges[np.flatnonzero(steps == 1)], edges[np.flatnonzero(steps == -1)], strict=True)
    ]


def _join_near(ranges: list[Range], lines: int) -> list[Range]:
    """Join ranges with a gap of less than a line: leaving it out would save nothing.

    If there are more ranges than lines, the nearest ones are joined too, unless hot memory would become a dot in the
    picture.
    """
    starts, ends = np.array(ranges, np.uint64).T
    gaps = starts[1:] - ends[:-1]
    line = max(1, int((ends - starts).sum()) // lines)
    nearest = np.argsort(gaps, kind="stable")[: max(0, len(ranges) - lines)]
    joined = gaps <= line
    joined[nearest] |= gaps[nearest] <= line * _FAR
    first = np.concatenate([[True], ~joined])
    last = np.concatenate([~joined, [True]])
    return list(zip(starts[first].tolist(), ends[last].tolist(), strict=True))


def _most_important(ranges: list[Range], profile: Profile, most: int) -> list[Range]:
    """At most ``most`` of ``ranges``: hot ones first, then by accessed bytes; in address order."""
    if len(ranges) <= most:
        return ranges
    # Ranges begin and end at edges. A piece at the end makes the last edge an index too.
    bounds = np.searchsorted(profile.edges, np.array(ranges, np.uint64).ravel())
    heat = np.maximum.reduceat(np.append(profile.peak, 0), bounds)[::2]
    bytes_accessed = np.add.reduceat(np.append(profile.accesses * profile.sizes, 0), bounds)[::2]
    order = np.lexsort((-bytes_accessed, heat < HOT))
    return [ranges[at] for at in np.sort(order[:most])]


def _widen(ranges: list[Range], monitored: list[Range], margin: int) -> list[Range]:
    """``ranges`` extended by ``margin`` bytes on each side within the monitored area; joined where they meet."""
    starts = np.array([start for start, _ in monitored], np.uint64)
    widened: list[Range] = []
    for start, end in ranges:
        area_start = monitored[int(np.searchsorted(starts, np.uint64(start), side="right")) - 1][0]
        area_end = monitored[int(np.searchsorted(starts, np.uint64(end - 1), side="right")) - 1][1]
        start, end = max(area_start, start - margin), min(area_end, end + margin)  # noqa: PLW2901
        if widened and start <= widened[-1][1]:
            widened[-1] = (widened[-1][0], max(end, widened[-1][1]))
        else:
            widened.append((start, end))
    return widened


def line_size(ranges: list[Range], lines: int) -> int:
    """The smallest number of bytes per line with which ``lines`` lines can show ``ranges``, each line only one of them.

    Whole pages and three significant bits: labels are easier to read. If there are more ranges than lines, each range
    has one line.
    """
    sizes = np.array([end - start for start, end in ranges], np.float64)
    lines = max(lines, len(ranges))
    for shift in range(64):
        for step in (4, 5, 6, 7):
            size = step << shift >> 2
            if np.ceil(sizes / (size * PAGE_SIZE)).sum() <= lines:
                return size * PAGE_SIZE
    return 1 << 64


def rests_of(profile: Profile, drawn: list[Range], config: Config, *, together: bool) -> list[str]:
    """Descriptions of monitored memory that is not ``drawn``: before each of the ranges, and after the last one.

    A description is empty if there is no such memory.

    :param together: the last description covers all of it.
    """
    bounds = np.array(drawn, np.uint64)
    edges = distinct(np.concatenate([profile.edges, bounds.ravel()]))
    starts, ends = edges[:-1], edges[1:]
    # The profile's piece that each one belongs to, and the numbers of ranges that begin and end before its end.
    piece = np.searchsorted(profile.edges, starts, side="right") - 1
    left = (piece >= 0) & (piece < len(profile.covered))
    piece[~left] = 0
    begun = np.searchsorted(bounds[:, 0], starts, side="right")
    left &= (profile.covered[piece] > 0.5) & (begun == np.searchsorted(bounds[:, 1], starts, side="right"))
    starts, ends, piece, begun = starts[left], ends[left], piece[left], begun[left]
    if together:
        begun[:] = len(drawn)
    unknown = _mostly_unknown(profile, config)
    words = []
    for place in range(len(drawn) + 1):
        here = slice(*np.searchsorted(begun, [place, place + 1]))
        words.append(_describe(starts[here], ends[here], profile.peak[piece[here]], unknown[piece[here]]))
    return words


def _describe(starts: U64Array, ends: U64Array, peak: F64Array, unknown: Mask) -> str:
    if not len(starts):
        return ""
    apart = np.concatenate([[True], starts[1:] != ends[:-1]])
    return describe_rest((ends - starts).astype(np.float64), peak, unknown, apart)
