# SPDX-License-Identifier: GPL-2.0-only
"""For damo: its own record, compressed JSON, which ``damo report access``, ``heatmap`` and ``wss`` read."""

from __future__ import annotations

import json
import zlib
from typing import Any

from kdamon.arrays import Records
from kdamon.monitoring.config import Config
from kdamon_tools.exports import Write
from kdamon_tools.recorded.selection import Selection
from kdamon_tools.snapshot import Snapshot

__all__ = ["export"]


def export(selection: Selection, write: Write) -> list[str]:
    """Write one record of one target; returns sentences for the user.

    damo knows no unknown samples and would take their memory for cold: regions whose samples are mostly unknown are
    left out.
    """
    config = selection.record.run.config
    packer = zlib.compressobj()
    head = {
        "kdamond_idx": 0,
        "context_idx": 0,
        "intervals": {
            "sample_us": str(config.sample_us),
            "aggr_us": str(config.aggr_us),
            "ops_update_us": str(config.update_us),
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
        text = _snapshot(snapshot, snapshot.regions[~unknown], config)
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


def _snapshot(snapshot: Snapshot, regions: Records, config: Config) -> str:
    """A snapshot as damo writes it; empty without regions, which damo cannot read."""
    if not len(regions):
        return ""
    rows = zip(
        regions["start"].tolist(),
        regions["end"].tolist(),
        regions["nr_accesses"].round().astype(int).tolist(),
        regions["age"].tolist(),
        strict=True,
    )
    fields: dict[str, Any] = {
        "start_time": str(round(snapshot.began * 1e9)),
        "end_time": str(round(snapshot.time * 1e9)),
        "damos_stats": None,
        "sample_interval_us": str(config.sample_us),
        "total_bytes": str(int((regions["end"] - regions["start"]).sum())),
    }
    texts = [
        f'{{"start":"{start}","end":"{end}","nr_accesses":{{"samples":{accesses},"percent":null}},'
        f'"age":{{"usec":null,"aggr_intervals":{age}}},"probe_hits":[],"sz_filter_passed":"0"}}'
        for start, end, accesses, age in rows
    ]
    return f'{json.dumps(fields)[:-1]}, "regions": [{",".join(texts)}]}}'
