# SPDX-License-Identifier: GPL-2.0-only
"""For damo: its own record, compressed JSON, which ``damo report access``, ``heatmap`` and ``wss`` read."""

from __future__ import annotations

import json
import zlib
from typing import Any

import numpy as np

from kdamon.arrays import Mask
from kdamon.monitoring.defaults import TUNING_AGGRS, TUNING_BP
from kdamon_tools.exports import Write
from kdamon_tools.recorded.recording import config_of
from kdamon_tools.recorded.selection import Selection
from kdamon_tools.snapshot import Config, Snapshot
from kdamon_tools.views.measures import ages_of

__all__ = ["export"]


def export(selection: Selection, write: Write) -> list[str]:
    """Write one record of one target; returns sentences for the user.

    damo knows no unknown samples and would take their memory for cold: regions whose samples are mostly unknown are
    left out.
    """
    config = config_of(selection.record.run)
    packer = zlib.compressobj()
    head = {
        "kdamond_idx": 0,
        "context_idx": 0,
        "intervals": {
            "sample_us": str(config.sample_us),
            "aggr_us": str(config.aggr_us),
            "ops_update_us": str(config.update_us),
            **_goal(config),
        },
        "scheme_idx": None,
        "target_id": config.pid,
        "scheme_filters": [],
        "data_source": "unknown",
    }
    write(packer.compress(f'[{json.dumps(head)[:-1]}, "snapshots": ['.encode()))
    written, left_out = 0, 0
    for snapshot in selection.snapshots():
        unknown = snapshot.regions["nr_unknown"] > config.max_nr_accesses / 2
        left_out += int(snapshot.sizes[unknown].sum())
        text = _snapshot(snapshot, ~unknown, config)
        if text:
            write(packer.compress((("," if written else "") + text).encode()))
            written += 1
    write(packer.compress(b"]}]"))
    write(packer.flush())
    if not left_out:
        return []
    share = left_out // max(1, written)
    return [
        f"damo knows no unknown samples: regions that were mostly not sampled are left out, {share} bytes on average"
    ]


def _goal(config: Config) -> dict[str, Any]:
    """The goal of tuned intervals: damo looks for those of a snapshot only where there is one."""
    if config.intervals == "fixed":
        return {}
    bounds = {"min_sample_us": str(config.sample_us), "max_sample_us": str(config.longest_sample_us)}
    return {"intervals_goal": {"access_bp": f"{TUNING_BP / 100:g} %", "aggrs": str(TUNING_AGGRS), **bounds}}


def _snapshot(snapshot: Snapshot, kept: Mask, config: Config) -> str:
    """A snapshot as damo writes it, with the regions ``kept``; empty without regions, which damo cannot read.

    Ages are in both units, because damo takes the one or the other: what counts intervals counts the record's.
    """
    regions = snapshot.regions[kept]
    if not len(regions):
        return ""
    rows = zip(
        regions["start"].tolist(),
        regions["end"].tolist(),
        regions["nr_accesses"].round().astype(int).tolist(),
        (ages_of(snapshot, config)[kept] * 1e6).round().astype(np.int64).tolist(),
        strict=True,
    )
    aggr_us = snapshot.aggr_us or config.aggr_us
    fields: dict[str, Any] = {
        "start_time": str(round(snapshot.began * 1e9)),
        "end_time": str(round(snapshot.time * 1e9)),
        "damos_stats": None,
        "sample_interval_us": str(aggr_us // config.max_nr_accesses),
        "total_bytes": str(int((regions["end"] - regions["start"]).sum())),
    }
    texts = [
        f'{{"start":"{start}","end":"{end}","nr_accesses":{{"samples":{accesses},"percent":null}},'
        f'"age":{{"usec":{age},"aggr_intervals":{age // config.aggr_us}}},"probe_hits":[],"sz_filter_passed":"0"}}'
        for start, end, accesses, age in rows
    ]
    return f'{json.dumps(fields)[:-1]}, "regions": [{",".join(texts)}]}}'
