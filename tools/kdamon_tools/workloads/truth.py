# SPDX-License-Identifier: GPL-2.0-only
"""The truth file of a workload, its true accesses: one JSON object per line, written as they happen.

Keys: ``time`` (CLOCK_MONOTONIC seconds, as in snapshots), ``event``, ``start`` and ``end`` (bytes). Events: ``map``:
all memory of the workload; ``hot``, ``warm``: the range is hot or warm from now on; ``sweeps``: counts of the last
second; ``end``: the workload has ended.
"""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import stat
import time
from pathlib import Path
from typing import Any, Final, NoReturn, TextIO

from attrs import field, frozen

from kdamon.lib.trusted import open_to_read

__all__ = ["Event", "load_truth", "write_event"]

#: A workload's line has about 150 bytes and a few figures; it writes one to three per second: this is enough for a day.
_LONGEST_LINE: Final = 512
_MOST_FIGURES: Final = 8
_MOST_LINES: Final = 1 << 18
#: The largest time that fits 63 bits of nanoseconds, seconds.
_LATEST: Final = (1 << 63) / 1e9


@frozen(slots=True)
class Event:
    """One event of a workload.

    :ivar time: CLOCK_MONOTONIC seconds.
    :ivar detail: further figures, by name.
    """

    time: float
    event: str
    start: int
    end: int
    detail: dict[str, float] = field(factory=dict)


def write_event(out: TextIO | None, event: str, start: int, end: int, **detail: float) -> None:
    """Append a present event to ``out``; None writes nothing."""
    if out is not None:
        line = {"time": time.monotonic(), "event": event, "start": start, "end": end} | detail
        out.write(json.dumps(line) + "\n")
        out.flush()


def load_truth(path: Path | str) -> list[Event]:
    """Read the events of a truth file in their order.

    The file may be another user's, and may be written meanwhile: its content at the time of opening is read, up to the
    size that a workload writes.

    :raises OSError: the file cannot be read; EINVAL it is not a regular file.
    :raises ValueError: it is not a truth file; the message names the line.
    """
    events: list[Event] = []
    with open(path, "rb", opener=_open_regular) as file:
        left = os.fstat(file.fileno()).st_size
        for number in itertools.count(1):
            line = file.readline(min(left, _LONGEST_LINE + 1))
            if not line:
                return events
            left -= len(line)
            if number > _MOST_LINES:
                raise ValueError(f"{path} has more than the {_MOST_LINES} lines of a truth file")
            try:
                events.append(_event(line, events[-1].time if events else 0.0))
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
                if events and not left and not line.endswith(b"\n"):
                    # The workload is still writing it.
                    return events
                raise ValueError(f"{path} line {number} is not an event of a truth file") from error
    raise AssertionError


def _open_regular(path: str, flags: int) -> int:
    """Open a regular file, whose reads never block; the opener for :func:`open`."""
    descriptor = open_to_read(path, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", path)
    return descriptor


def _event(line: bytes, earliest: float) -> Event:
    """The event that a line describes; raises one of the errors that :func:`load_truth` catches if it is invalid."""
    if len(line) > _LONGEST_LINE:
        raise ValueError("too long")
    values: dict[str, Any] = json.loads(line.decode("utf-8"), parse_constant=_refuse)
    name = values.pop("event")
    time, start, end = (values.pop(key) for key in ("time", "start", "end"))
    if not isinstance(name, str) or not all(map(_is_number, (time, *values.values()))):
        raise TypeError("not of the right types")
    if len(values) > _MOST_FIGURES:
        raise ValueError("too many figures")
    if type(start) is not int or type(end) is not int:
        raise TypeError("addresses are whole numbers")
    # The range of a sweep may be empty, but something is hot.
    if not 0 <= start <= end < 1 << 64 or (name == "hot" and start == end):
        raise ValueError("not a range of addresses")
    if not earliest <= time <= _LATEST:
        raise ValueError("not a time of CLOCK_MONOTONIC, or earlier than in the previous line")
    return Event(float(time), name, start, end, values)


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")
