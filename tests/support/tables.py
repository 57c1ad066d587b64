# SPDX-License-Identifier: GPL-2.0-only
"""Random region tables for the tests, and the way between tables and the model's objects."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from kdamon.core import damon_add_target, damon_new_ctx, damon_new_target
from kdamon.damon import damon_addr_range, damon_ctx, damon_target
from kdamon.regions import COLUMNS, Regions
from tests.support.model import Region

#: Multiplies the number of examples: a tenth outside CI, more for a long search.
EFFORT = float(os.environ.get("KDAMON_EFFORT", "1" if os.environ.get("CI") else "0.1"))


def effort(examples: int, **more: Any) -> settings:
    """Settings of a property test: no deadline, because this is no place to measure time."""
    return settings(
        max_examples=max(1, round(examples * EFFORT)),
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
        **more,
    )


def table_of(regions: Sequence[Region], probes: bool = False) -> Regions:
    """The table with the content of the model's ``regions``."""
    table = Regions([r.start for r in regions], [r.end for r in regions])
    for name in ("nr_accesses", "last_nr_accesses", "age", "unknown_age", "nr_unknown", "last_nr_unknown"):
        setattr(table, name, np.array([getattr(r, name) for r in regions], np.uint32))
    if probes:
        table.use_probes()
        shape = (len(regions), 4)
        table.probe_hits = np.array([r.probe_hits for r in regions], np.uint8).reshape(shape)
        table.last_probe_hits = np.array([r.last_probe_hits for r in regions], np.uint8).reshape(shape)
    return table


def model_of(table: Regions) -> list[Region]:
    """The model's objects with the content of ``table``."""
    rows = [table.region(row) for row in range(len(table))]
    return [
        Region(
            r.start,
            r.end,
            r.nr_accesses,
            r.last_nr_accesses,
            r.age,
            r.nr_unknown,
            list(r.probe_hits),
            list(r.last_probe_hits),
            r.last_nr_unknown,
            r.unknown_age,
        )
        for r in rows
    ]


def well_formed(table: Regions) -> bool:
    """Return whether all columns have the table's length and their dtypes, and cached sizes are right."""
    dtypes = {"access_reported": np.bool_, "probe_hits": np.uint8, "last_probe_hits": np.uint8, "density": np.float64}
    dtypes["mean_accesses"] = np.float64
    dtypes |= dict.fromkeys(("start", "end", "sampling_addr"), np.uint64)
    for name in COLUMNS:
        column = getattr(table, name)
        if column is None:
            continue
        if len(column) != len(table.start) or column.dtype != dtypes.get(name, np.uint32):
            return False
    sizes = table.end - table.start
    return bool((table.sizes() == sizes).all()) and table.wide() == bool((sizes >> np.uint64(32)).any())


def ranges_of(table: Regions) -> list[tuple[int, int]]:
    """Start and end of every region."""
    return list(zip(table.start.tolist(), table.end.tolist(), strict=True))


def addr_ranges(pairs: Sequence[tuple[int, int]]) -> list[damon_addr_range]:
    """Pairs as address ranges."""
    return [damon_addr_range(start, end) for start, end in pairs]


def target_of(table: Regions, ctx: damon_ctx | None = None) -> damon_target:
    """A target with ``table``, in ``ctx`` if given."""
    t = damon_new_target()
    t.regions = table
    if ctx is not None:
        damon_add_target(ctx, t)
    return t


def ctx_of(*tables: Regions, seed: int = 1, min_region_sz: int = 1) -> damon_ctx:
    """A context with a target for each of ``tables``."""
    ctx = damon_new_ctx(seed=seed)
    ctx.min_region_sz = min_region_sz
    for table in tables:
        target_of(table, ctx)
    return ctx


@st.composite
def region_lists(
    draw: st.DrawFn,
    *,
    max_regions: int = 300,
    min_regions: int = 0,
    unit: int = 1,
    max_count: int | None = None,
    probes: bool = True,
) -> list[Region]:
    """Regions in address order. A few parameters and a seed are drawn and the rows made from them.

    So a table of 300 rows costs no more to draw than one of 3; what matters to the code under test (chains of
    neighbours of every length, equal values, gaps, sizes) is a parameter, and shrinks.

    :param unit: all addresses are multiples of it.
    :param max_count: largest nr_accesses; drawn if None.
    """
    n = draw(st.integers(min_regions, max_regions))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    largest_size = draw(st.sampled_from([1, 3, 100, 1 << 20, 1 << 33, 1 << 44]))
    gap_share = draw(st.sampled_from([0.0, 0.02, 0.3, 1.0]))
    largest_count = max_count if max_count is not None else draw(st.sampled_from([0, 1, 3, 20, 1000]))
    oldest = draw(st.sampled_from([0, 1, 5, 1000, 2**32 - 1]))
    steady = draw(st.booleans())
    with_probes = probes and draw(st.booleans())
    most_unknown = draw(st.sampled_from([0, 2, 20]))

    sizes = rng.integers(1, largest_size, n, endpoint=True) * unit
    gaps = np.where(rng.random(n) < gap_share, rng.integers(1, largest_size, n, endpoint=True) * unit, 0)
    first = draw(st.sampled_from([0, 1, 4096, 1 << 46])) * unit
    counts = rng.integers(0, largest_count, n, endpoint=True)
    if steady:
        # Runs of equal values, as memory has them.
        counts = counts[rng.integers(0, n, n, endpoint=False)] if n else counts
        counts = np.repeat(counts, rng.integers(1, 6, n))[:n]
    last = np.where(rng.random(n) < 0.5, counts, rng.integers(0, largest_count, n, endpoint=True))
    ages = rng.integers(0, oldest, n, endpoint=True)
    unknown_ages = np.where(rng.random(n) < 0.5, 0, rng.integers(0, ages, endpoint=True))
    hits = rng.integers(0, 255, (n, 8), endpoint=True) if with_probes else np.zeros((n, 8), int)
    regions = []
    at = first
    for i in range(n):
        at += int(gaps[i])
        end = at + int(sizes[i])
        regions.append(
            Region(
                at,
                end,
                int(counts[i]),
                int(last[i]),
                int(ages[i]),
                int(rng.integers(0, most_unknown, endpoint=True)),
                hits[i, :4].tolist(),
                hits[i, 4:].tolist(),
                int(rng.integers(0, most_unknown, endpoint=True)),
                int(unknown_ages[i]) if most_unknown else 0,
            )
        )
        at = end
    return regions


def has_probes(regions: Sequence[Region]) -> bool:
    """Return whether any region has a probe's hits."""
    return any(any(r.probe_hits) or any(r.last_probe_hits) for r in regions)
