# SPDX-License-Identifier: GPL-2.0-only
"""Reads a record of damo: JSON, compressed by zlib or plain, of ``damo record`` and ``kdamon export --to damo``."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from attrs import evolve

from kdamon.lib.trusted import open_to_read
from kdamon_tools.recorded.selection import clipped
from kdamon_tools.snapshot import Config, Counters, Range, Recording, Snapshot

__all__ = ["is_damo_record", "part_of", "read_damo_record"]

#: Maximum bytes of the JSON: a hostile file may expand a thousandfold.
_LARGEST: Final = 1 << 30
_AT_ONCE: Final = 1 << 20
#: An interval that is longer than so many times its snapshot has another unit.
_NANOSECONDS: Final = 100
#: The parts of a time, and their units in microseconds.
_TIME: Final = re.compile(r"([0-9,]+) (d|h|m|s|ms|us|ns)\b")
_UNITS: Final = {"d": 86400e6, "h": 3600e6, "m": 60e6, "s": 1e6, "ms": 1e3, "us": 1, "ns": 1e-3}


def is_damo_record(path: Path) -> bool:
    """Whether a file begins as one; False also for what cannot be read."""
    try:
        # A pipe would block without a writer.
        with open(open_to_read(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            head = file.read(2) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else b""
    except OSError:
        return False
    # Compressed data of any level, or a list.
    return head[:1] == b"[" or (len(head) == 2 and head[0] == 0x78 and int.from_bytes(head, "big") % 31 == 0)


def read_damo_record(path: Path) -> tuple[Recording, str]:
    """The first target of a record, and a sentence about further ones; empty without.

    damo records neither samples that failed nor names.

    :raises OSError: EBADMSG it is damaged, or no record of damo; EFBIG it is too large.
    """
    with open(open_to_read(path), "rb") as file:
        text = _expanded(file, path)
    try:
        records = json.loads(text)
        shown = next(record for record in records if record["snapshots"])
        recording = _recording(shown)
    except StopIteration:
        raise _bad(path, "the record holds no snapshot") from None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise _bad(path, "this is not a record of damo, or it is damaged") from error
    rest = len(records) - 1
    return recording, f"only the first of {len(records)} targets is shown" if rest else ""


def _bad(path: Path, why: str, number: int = errno.EBADMSG) -> OSError:
    return OSError(number, why, os.fspath(path))


def _expanded(file: Any, path: Path) -> bytes:
    """The JSON in a file."""
    first = file.read(_AT_ONCE)
    unpacker = None if first[:1] == b"[" else zlib.decompressobj()
    parts, size = [], 0
    try:
        while first:
            part = first if unpacker is None else unpacker.decompress(first, _LARGEST - size + 1)
            parts.append(part)
            size += len(part)
            if size > _LARGEST:
                raise _bad(path, f"the record is larger than {_LARGEST >> 20} MiB", errno.EFBIG)
            first = file.read(_AT_ONCE)
    except zlib.error as error:
        raise _bad(path, "this is not a record of damo, or it is damaged") from error
    if unpacker is not None and not unpacker.eof:
        raise _bad(path, "the record of damo is truncated")
    return b"".join(parts)


def _number(value: Any) -> int:
    """A number as damo writes it: 4096, "4096" or "4,096"."""
    return value if isinstance(value, int) else int(str(value).replace(",", ""))


def _recording(record: dict[str, Any]) -> Recording:
    intervals = record["intervals"]
    target = record["target_id"]
    config = Config(
        pid=target if isinstance(target, int) and target > 0 else 0,
        sample_us=_number(intervals["sample_us"]),
        aggr_us=_number(intervals["aggr_us"]),
    )
    if not 0 < config.sample_us <= config.aggr_us:
        raise ValueError("intervals")
    tuned = "intervals_goal" in intervals and _number(intervals["intervals_goal"].get("aggrs") or 0) > 0
    snapshots = [_snapshot(one, config, tuned=tuned) for one in record["snapshots"]]
    times = np.array([(snapshot.began, snapshot.time) for snapshot in snapshots])
    if (np.diff(times.ravel()) < 0).any():
        raise ValueError("times")
    return Recording(config, snapshots, Counters(), snapshots[0].began, snapshots[-1].time, "this is a record of damo")


def _snapshot(one: dict[str, Any], config: Config, *, tuned: bool) -> Snapshot:
    began, ended = _number(one["start_time"]) / 1e9, _number(one["end_time"]) / 1e9
    aggr_us = config.aggr_us
    if tuned and (sample_us := one.get("sample_interval_us")) is not None:
        aggr_us = _number(sample_us) * config.max_nr_accesses
        if aggr_us > _NANOSECONDS * (ended - began) * 1e6:
            # damo 3.4.3 writes nanoseconds, though it reads microseconds.
            aggr_us //= 1000
    if aggr_us <= 0:
        raise ValueError("intervals")
    rows = [
        (
            _number(region["start"]),
            _number(region["end"]),
            _number(region["nr_accesses"]["samples"]),
            _age(region["age"], aggr_us),
            0,
        )
        for region in one["regions"]
    ]
    snapshot = evolve(Snapshot.of(ended, rows), began=began, aggr_us=aggr_us if tuned else 0)
    regions = snapshot.regions
    if (regions["end"] <= regions["start"]).any() or (regions["end"][:-1] > regions["start"][1:]).any():
        raise ValueError("regions")
    return snapshot


def _age(age: dict[str, Any], aggr_us: int) -> int:
    """The age of a region, in aggregation intervals of its snapshot."""
    usec = age.get("usec")
    return _number(age["aggr_intervals"]) if usec is None else round(_microseconds(usec) / aggr_us)


def _microseconds(text: Any) -> float:
    """A time as damo writes it: 1600000, or "1 s 600 ms"."""
    parts = _TIME.findall(str(text))
    return sum(_number(count) * _UNITS[unit] for count, unit in parts) if parts else _number(text)


def part_of(recording: Recording, span: tuple[float | None, float | None] | None, ranges: Sequence[Range]) -> Recording:
    """A part of the time and of the addresses of a recording.

    :param span: begin and end, seconds since the start; None where there is no bound.
    """
    since, until = span or (None, None)
    begin = recording.started + (since or 0.0)
    end = recording.ended if until is None else min(recording.ended, recording.started + until)
    snapshots = [
        snapshot
        for snapshot in recording.snapshots
        if snapshot.time > begin and (snapshot.began < end or until is None)
    ]
    if ranges:
        snapshots = [evolve(one, regions=clipped(one.regions, sorted(ranges))) for one in snapshots]
        recording = evolve(recording, config=evolve(recording.config, ranges=tuple(sorted(ranges))))
    return evolve(recording, snapshots=snapshots, started=begin, ended=max(begin, end))
