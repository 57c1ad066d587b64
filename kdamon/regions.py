# SPDX-License-Identifier: GPL-2.0-only
"""The region table: the port's replacement for the linked list of ``struct damon_region``.

A target's regions are the columns of one table, in address order, with C's widths, so that unsigned arithmetic wraps
as it does in C. A loop over regions in the kernel is one function over the table here. Merges are in
:mod:`kdamon.region_merge`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from attrs import define

from kdamon.arrays import F64Array, Indexes, Mask, U8Array, U32Array, U64Array

__all__ = [
    "COLUMNS",
    "DAMON_MAX_PROBES",
    "INHERITED",
    "Draw",
    "Regions",
    "damon_addr_range",
    "damon_region",
    "mostly_unknown",
]

DAMON_MAX_PROBES = 4

_ONE = np.uint32(1)
_1, _9, _10, _32 = (np.uint64(n) for n in (1, 9, 10, 32))
#: Draws n uniform 32-bit numbers: f(n) -> shape (n,), uint64.
Draw = Callable[[int], U64Array]

#: Columns that a split copies to both parts, besides the probe counters.
INHERITED = ("nr_accesses", "last_nr_accesses", "age", "unknown_age", "nr_unknown", "last_nr_unknown")
_OF_DENSITY = ("density", "density_since")
_OPTIONAL = ("access_reported", "probe_hits", "last_probe_hits", "mean_accesses", *_OF_DENSITY)
#: Every column; the optional ones are None while they are not needed.
COLUMNS = ("start", "end", "sampling_addr", *INHERITED, *_OPTIONAL)


@define(slots=True)
class damon_addr_range:
    """The half open range of addresses [start, end), in core address units (bytes where addr_unit is 1)."""

    start: int
    end: int


@define(slots=True)
class damon_region:
    """One region as a value: to give regions to a target, and as snapshots and walks hand them out.

    Changing it changes no target.
    """

    ar: damon_addr_range
    nr_accesses: int = 0
    age: int = 0
    last_nr_accesses: int = 0
    sampling_addr: int = 0
    probe_hits: tuple[int, ...] = (0,) * DAMON_MAX_PROBES
    last_probe_hits: tuple[int, ...] = (0,) * DAMON_MAX_PROBES
    #: No kernel counterparts, see :class:`Regions`.
    unknown_age: int = 0
    nr_unknown: int = 0
    last_nr_unknown: int = 0

    @property
    def start(self) -> int:
        """First address."""
        return self.ar.start

    @property
    def end(self) -> int:
        """The end (exclusive)."""
        return self.ar.end

    @property
    def size(self) -> int:
        """Size in core address units."""
        return self.ar.end - self.ar.start


def mostly_unknown(nr_unknown: U32Array, nr_samples: int) -> Mask:
    """Decide which regions are mostly unknown: at least half of their samples could not be taken, shape (n,).

    Whether such a region is accessed is not known, however few accesses were seen: its age is no evidence, it is not
    merged with regions that are known, and actions that cost something where memory is in use leave it alone. No kernel
    counterpart: the kernel can take every sample.

    :param nr_unknown: samples that could not be taken, shape (n,).
    :param nr_samples: samples of each region in the same time.
    """
    return nr_unknown >= max((nr_samples + 1) // 2, 1)


# Deviation: docs/deviations.md#regions-are-columns
class Regions:
    """Regions of one target, sorted by address and disjoint, as columns of shape (n,).

    :ivar start: first address, core address units.
    :ivar end: end (exclusive).
    :ivar sampling_addr: address to sample in the present sampling interval.
    :ivar nr_accesses: accesses seen in the present aggregation interval.
    :ivar last_nr_accesses: the same of the aggregation interval before.
    :ivar age: aggregation intervals for which the access pattern was stable.
    :ivar unknown_age: the age at which it was mostly unknown last (:func:`mostly_unknown`), 0 not since it is stable:
        the access pattern is known for the rest of ``age`` (no kernel counterpart).
    :ivar nr_unknown: samples of the present aggregation interval that could not be taken (no kernel counterpart).
    :ivar last_nr_unknown: the same of the aggregation interval before.
    :ivar access_reported: a report was counted in the present sampling interval (the series' second version); None
        while none was.
    :ivar probe_hits: probe hits, shape (n, DAMON_MAX_PROBES); None in a context without probes.
    :ivar last_probe_hits: the same of the aggregation interval before.
    :ivar mean_accesses: accesses seen in the present aggregation interval as ``nr_accesses``, but not rounded down
        where regions were merged: times the size, their sum is that of all that was seen (no kernel counterpart); None
        while nothing was merged, and they are ``nr_accesses``.
    :ivar density: estimated accesses per core address unit and second, to rank regions by (:mod:`kdamon.density`);
        None in a context without it.
    :ivar density_since: number of the first aggregation interval that it is based on; 0 none yet.
    """

    __slots__ = (*COLUMNS, "_sizes", "_wide")

    start: U64Array
    end: U64Array
    sampling_addr: U64Array
    nr_accesses: U32Array
    last_nr_accesses: U32Array
    age: U32Array
    unknown_age: U32Array
    nr_unknown: U32Array
    last_nr_unknown: U32Array
    access_reported: Mask | None
    probe_hits: U8Array | None
    last_probe_hits: U8Array | None
    mean_accesses: F64Array | None
    density: F64Array | None
    density_since: U32Array | None

    def __init__(self, start: Sequence[int] | U64Array = (), end: Sequence[int] | U64Array = ()) -> None:
        self.start = np.array(start, np.uint64)
        self.end = np.array(end, np.uint64)
        n = len(self.start)
        self.sampling_addr = np.zeros(n, np.uint64)
        self.nr_accesses = np.zeros(n, np.uint32)
        self.last_nr_accesses = np.zeros(n, np.uint32)
        self.age = np.zeros(n, np.uint32)
        self.unknown_age = np.zeros(n, np.uint32)
        self.nr_unknown = np.zeros(n, np.uint32)
        self.last_nr_unknown = np.zeros(n, np.uint32)
        self.access_reported = None
        self.probe_hits = None
        self.last_probe_hits = None
        self.mean_accesses = None
        self.density = None
        self.density_since = None
        self._sizes: U64Array | None = None
        self._wide: bool | None = None

    def __len__(self) -> int:
        return len(self.start)

    def copy(self) -> Regions:
        """A table with the same content that shares nothing with this one."""
        other = Regions()
        for name in COLUMNS:
            column = getattr(self, name)
            setattr(other, name, None if column is None else column.copy())
        return other

    def sizes(self) -> U64Array:
        """Size of each region, core address units, shape (n,); the caller must not change them."""
        if self._sizes is None:
            self._sizes = self.end - self.start
        return self._sizes

    def wide(self) -> bool:
        """Return whether the size of any region needs more than 32 bits."""
        if self._wide is None:
            self._wide = bool((self.sizes() >> np.uint64(32)).any())
        return self._wide

    def total(self) -> int:
        """Sum of the sizes."""
        return int(self.sizes().sum())

    def known_age(self) -> U32Array:
        """For how many aggregation intervals up to now each region was stable and not mostly unknown, shape (n,)."""
        return self.age - self.unknown_age

    def exact_accesses(self) -> F64Array:
        """Accesses seen in the present aggregation interval, see ``mean_accesses``, shape (n,)."""
        return self.nr_accesses.astype(np.float64) if self.mean_accesses is None else self.mean_accesses

    # Indexes as values.

    def region(self, row: int) -> damon_region:
        """Row ``row`` as a value (``struct damon_region``)."""
        hits = last_hits = (0,) * DAMON_MAX_PROBES
        if self.probe_hits is not None and self.last_probe_hits is not None:
            hits = tuple(self.probe_hits[row].tolist())
            last_hits = tuple(self.last_probe_hits[row].tolist())
        return damon_region(
            damon_addr_range(int(self.start[row]), int(self.end[row])),
            nr_accesses=int(self.nr_accesses[row]),
            age=int(self.age[row]),
            last_nr_accesses=int(self.last_nr_accesses[row]),
            sampling_addr=int(self.sampling_addr[row]),
            probe_hits=hits,
            last_probe_hits=last_hits,
            unknown_age=int(self.unknown_age[row]),
            nr_unknown=int(self.nr_unknown[row]),
            last_nr_unknown=int(self.last_nr_unknown[row]),
        )

    def insert(self, row: int, region: damon_region) -> None:
        """Insert ``region`` before row ``row`` (``damon_insert_region()``); the caller keeps the order."""
        rows = np.insert(np.arange(len(self), dtype=np.intp), row, -1)
        sampling_addr = np.insert(self.sampling_addr, row, region.sampling_addr)
        self.rebuild(rows, np.insert(self.start, row, region.start), np.insert(self.end, row, region.end))
        self.sampling_addr = sampling_addr
        self.nr_accesses[row] = region.nr_accesses
        if self.mean_accesses is not None:
            self.mean_accesses[row] = region.nr_accesses
        self.last_nr_accesses[row] = region.last_nr_accesses
        self.age[row] = region.age
        self.unknown_age[row] = region.unknown_age
        self.nr_unknown[row] = region.nr_unknown
        self.last_nr_unknown[row] = region.last_nr_unknown
        if any(region.probe_hits) or any(region.last_probe_hits) or self.probe_hits is not None:
            self.use_probes()
            assert self.probe_hits is not None
            assert self.last_probe_hits is not None
            self.probe_hits[row] = region.probe_hits
            self.last_probe_hits[row] = region.last_probe_hits

    def append(self, region: damon_region) -> None:
        """Append ``region`` (``damon_add_region()``)."""
        self.insert(len(self), region)

    def use_probes(self) -> None:
        """Make the probe columns if there are none."""
        if self.probe_hits is None:
            self.probe_hits = np.zeros((len(self), DAMON_MAX_PROBES), np.uint8)
            self.last_probe_hits = np.zeros((len(self), DAMON_MAX_PROBES), np.uint8)

    def keep(self, mask: Mask) -> None:
        """Remove the rows where ``mask`` (shape (n,)) is false (``damon_destroy_region()``)."""
        rows = mask.nonzero()[0]
        for name in COLUMNS:
            column = getattr(self, name)
            if column is not None:
                setattr(self, name, column.take(rows, axis=0))
        self._sizes = self._wide = None

    def rebuild(self, rows: Indexes, start: U64Array, end: U64Array) -> None:
        """Make the table of [start, end) ranges; each takes its counters from row ``rows[i]``, from none if -1."""
        if len(self):
            for name in INHERITED:
                setattr(self, name, getattr(self, name).take(rows))
            if self.probe_hits is not None and self.last_probe_hits is not None:
                self.probe_hits = self.probe_hits.take(rows, axis=0)
                self.last_probe_hits = self.last_probe_hits.take(rows, axis=0)
            if self.mean_accesses is not None:
                self.mean_accesses = self.mean_accesses.take(rows)
            if self.density is not None and self.density_since is not None:
                self.density = self.density.take(rows)
                self.density_since = self.density_since.take(rows)
            fresh = rows < 0
            if fresh.any():
                for name in (*INHERITED, "probe_hits", "last_probe_hits", "mean_accesses", *_OF_DENSITY):
                    column = getattr(self, name)
                    if column is not None:
                        column[fresh] = 0
            self._set_ranges(start, end)
        else:
            probes = self.probe_hits is not None
            self.__init__(start, end)  # type: ignore[misc]
            if probes:
                self.use_probes()

    def _set_ranges(self, start: U64Array, end: U64Array) -> None:
        self.start = start
        self.end = end
        self.sampling_addr = start
        self.access_reported = None
        self._sizes = self._wide = None

    # Aggregation.

    def reset_aggregated(self) -> None:
        """Start a new aggregation interval: the counters become the last ones and zero."""
        self.last_nr_accesses = self.nr_accesses
        self.nr_accesses = np.zeros(len(self), np.uint32)
        self.mean_accesses = None
        self.last_nr_unknown = self.nr_unknown
        self.nr_unknown = np.zeros(len(self), np.uint32)
        if self.probe_hits is not None:
            self.last_probe_hits = self.probe_hits
            self.probe_hits = np.zeros_like(self.probe_hits)

    # Split.

    def split_at(self, row: int, size: int) -> None:
        """Cut row ``row`` so that its first part has ``size`` (``damon_split_region_at()``)."""
        self._cut(np.array([row], np.intp), np.array([size], np.uint64))

    def _cut(self, rows: Indexes, sizes: U64Array) -> None:
        """Cut each of ``rows``, ascending, so that its first part has the size in ``sizes``; both of shape (m,)."""
        parts = np.ones(len(self), np.intp)
        parts[rows] = 2
        old = np.arange(len(self), dtype=np.intp).repeat(parts)
        start, end = self.start.take(old), self.end.take(old)
        right = rows + np.arange(1, len(rows) + 1)
        start[right] += sizes
        end[right - 1] = start[right]
        self.rebuild(old, start, end)

    def split_max(self, size: int) -> None:
        """Cut every region larger than ``size`` into parts of it; the last part takes the rest."""
        sizes = self.sizes()
        piece = np.uint64(size)
        if not np.count_nonzero(sizes > piece):
            return
        counts = ((sizes - _1) // piece).astype(np.intp) + 1
        rows = np.repeat(np.arange(len(self), dtype=np.intp), counts)
        last = np.cumsum(counts) - 1
        nth = np.arange(len(rows), dtype=np.intp) - np.repeat(last + 1 - counts, counts)
        start = self.start[rows] + nth.astype(np.uint64) * piece
        end = start + piece
        end[last] = self.end
        self.rebuild(rows, start, end)

    def split_random(self, nr_subs: int, min_size: int, draw: Draw, among: Mask | None = None) -> None:
        """Cut regions at random places between 10 and 90 percent of them (``damon_split_regions_of()``).

        Each further cut is made in the leftmost part. The kernel draws the numbers of a region one after another;
        here each round draws for all regions at once, from the same distribution.

        :param nr_subs: parts to make of each region.
        :param min_size: smallest part; every cut is a multiple of it from the region's start.
        :param draw: source of random numbers.
        :param among: rows to cut, shape (n,); a region of exactly twice ``min_size`` is cut then
            (``damon_split_some_regions()``). Default is every region larger than that.
        """
        # Deviation: docs/deviations.md#cuts-are-drawn-in-rounds
        unit = np.uint64(min_size)
        n = len(self)
        left = np.arange(n, dtype=np.intp)  # where the leftmost part of each region is
        for _ in range(nr_subs - 1):
            sizes = self.sizes().take(left)
            # Uniform in [1, 10), as damon_rand() does it: a part is never the whole.
            sub = draw(n) * _9
            sub >>= _32
            sub += _1
            sub *= sizes
            sub //= _10
            sub -= sub % unit
            cut = sizes > 2 * min_size if among is None else among & (sizes >= 2 * min_size)
            cut &= sub > 0
            rows = cut.nonzero()[0]
            if len(rows):
                self._cut(left[rows], sub[rows])
                left += cut.cumsum() - cut

    # Compare.

    def merge_scores(self, weights: U32Array | None = None, *, last: bool = False) -> U32Array:
        """The scores that merges compare (``damon_merge_score()``): nr_accesses, or weighted sums of probe hits.

        :param weights: of the probes, shape (DAMON_MAX_PROBES,).
        :param last: of the aggregation interval before.
        :returns: shape (n,).
        """
        if weights is None:
            return self.last_nr_accesses if last else self.nr_accesses
        hits = self.last_probe_hits if last else self.probe_hits
        return np.zeros(len(self), np.uint32) if hits is None else hits.astype(np.uint32) @ weights

    def count_age(self, threshold: int, weights: U32Array | None = None, unknown: Mask | None = None) -> None:
        """Increase every age by one, or reset it where the count changed by more than ``threshold``.

        :param weights: as for :meth:`merge_scores`.
        :param unknown: which are mostly unknown, shape (n,).
        """
        now, last = self.merge_scores(weights), self.merge_scores(weights, last=True)
        self.age += _ONE
        if unknown is None and not (np.count_nonzero(now) or np.count_nonzero(last)):
            return
        stable = np.maximum(now, last) - np.minimum(now, last) <= threshold
        stable &= (now == 0) == (last == 0)
        self.age *= stable
        self.unknown_age *= stable
        if unknown is not None:
            self.unknown_age[unknown] = self.age[unknown]
