# SPDX-License-Identifier: GPL-2.0-only
"""Density of reports against the faithful rule: what is found, how fast changes are followed, what it costs.

All in simulated time, at 100000 reports per second, sampled from more accesses than that.
"""

from __future__ import annotations

import sys
import time
from statistics import median
from unittest.mock import patch

import numpy as np
from density_workloads import AGGREGATION, WORKLOADS, Bucket, Workload, buckets, context
from measure import arguments, table

import kdamon.core
from kdamon.core import run_ctx
from kdamon.damon import damon_attrs, damon_ctx

Buckets = list[Bucket]
#: Reports are remembered for 2.6 s: from then on nothing gets better.
SETTLED = 3.0
AIMS = {"zipf": 0.70, "needle 10 GB in 100 TB": 0.95, "needle 200 MB in 160 GB": 0.95}


def delays(seen: Buckets) -> list[float]:
    """For each phase but the first: seconds to the first of three snapshots that are 90 % as good as its end."""
    found = []
    for number in range(1, seen[-1].phase):
        phase = [b.quality.f1 for b in seen if b.phase == number]
        good = np.array(phase) >= 0.9 * median(phase[len(phase) // 2 :])
        three = np.nonzero(good[:-2] & good[1:-1] & good[2:])[0]
        found.append((three[0] + 1) * AGGREGATION if len(three) else float("inf"))
    return found


def row(workload: Workload, density: bool, runs: list[Buckets]) -> list[str]:
    """A line of the table: the worst seed's median F1; working-set errors of the worst seed."""
    steady = [[b for b in seen if b.at > SETTLED or b.phase] for seen in runs]
    f1 = min(median(b.quality.f1 for b in seen) for seen in steady)
    errors = [
        np.quantile([[b.quality.ws_error for b in seen] for seen in steady], q, axis=1).max() for q in (0.5, 0.95)
    ]
    c1 = min(median(b.quality.c1 for b in seen) for seen in steady)
    one = steady[0][0].quality
    aim = f"{AIMS[workload.name]:.2f}" if density and workload.name in AIMS else ""
    late = [delay for seen in runs for delay in delays(seen)]
    return [
        workload.name,
        "density" if density else "faithful",
        f"{f1:.2f}",
        aim,
        f"{one.chance:.4f}",
        f"{c1:.2f}",
        f"{one.best_c1:.2f}",
        *(f"{100 * error:.3g}" for error in errors),
        f"{median(b.nr_regions for seen in steady for b in seen):.0f}",
        f"{median(late):.1f} {max(late):.1f}" if late else "",
    ]


def found(seeds: int, seconds: float) -> None:
    """Print what is found of each workload."""
    rows = []
    for workload in WORKLOADS:
        for density in (False, True):
            rows.append(row(workload, density, [buckets(workload, seed, density, seconds) for seed in range(seeds)]))
    table(
        f"What is found, worst of {seeds} seeds, {seconds:.0f} s (aim for the working set: 20 %)",
        (
            "workload",
            "rule",
            "F1",
            "aim",
            "chance",
            "c@1%",
            "best",
            "ws error % p50",
            "p95",
            "regions",
            "delay s, worst",
        ),
        rows,
    )


def cost(turns: int) -> None:
    """Print the CPU time of a kdamond for an aggregation interval of 20 samples and 10000 reports."""
    rows = []
    for workload in (WORKLOADS[0], WORKLOADS[1], WORKLOADS[4], WORKLOADS[5]):
        for density in (False, True):
            runs = [timed(workload, turn, density) for turn in range(turns)]
            whole, end, regions = (np.concatenate([run[i] for run in runs]) for i in range(3))
            rows.append(
                (
                    workload.name,
                    "density" if density else "faithful",
                    f"{np.median(regions):.0f}",
                    *(f"{1e3 * np.quantile(column, q):.2f}" for column in (whole, end) for q in (0.5, 0.95)),
                )
            )
    table(
        "CPU time of a kdamond for an aggregation interval of 20 samples and 10000 reports, ms",
        ("workload", "rule", "regions", "all, p50", "p95", "its end, p50", "p95"),
        rows,
    )


def timed(workload: Workload, seed: int, density: bool) -> tuple[list[float], list[float], list[int]]:
    """For each aggregation interval CPU seconds in all, of the adjustment at its end, and the number of regions."""
    ctx = context(workload, seed, density)
    if not density:
        ctx.attrs = damon_attrs(min_nr_regions=900, aggr_samples=20)
    assert ctx.ops is not None
    prepare, merge = ctx.ops.prepare_access_checks, kdamon.core.kdamond_merge_regions
    assert prepare is not None
    preparing = 0.0
    clock: list[float] = []
    steps: list[float] = []
    regions: list[int] = []

    def timed_prepare(of: damon_ctx) -> None:
        nonlocal preparing
        begin = time.thread_time()
        clock.append(begin - preparing)
        prepare(of)
        preparing += time.thread_time() - begin

    def timed_merge(of: damon_ctx, threshold: int, sz_limit: int) -> None:
        begin = time.thread_time()
        merge(of, threshold, sz_limit)
        steps.append(time.thread_time() - begin)
        regions.append(sum(len(t.regions) for t in of.adaptive_targets))

    ctx.ops.prepare_access_checks = timed_prepare
    with patch.object(kdamon.core, "kdamond_merge_regions", timed_merge):
        run_ctx(ctx, 2 * SETTLED)
    settled = len(steps) // 2
    return np.diff(clock[::20])[settled:].tolist(), steps[settled:], regions[settled:]


def main() -> int:
    """Print the tables."""
    args = arguments(__doc__.splitlines()[0] if __doc__ else "")
    found(*((1, 6.5) if args.quick else (5, 10.5)))
    cost(1 if args.quick else 5)
    return 0


if __name__ == "__main__":
    sys.exit(main())
