# SPDX-License-Identifier: GPL-2.0-only
"""Recordings of reports, good ones and bad ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from kdamon_tools.report_files.records import new_records

__all__ = ["head", "some_records"]


def some_records(n: int) -> Any:
    return new_records(n, time=np.arange(n) * 1000, pid=7, addr=0x1000 + np.arange(n), write=np.arange(n) % 2 == 0)


def head(text: str, length: int | None = None) -> bytes:
    """The beginning of an array's file whose head is ``text`` and says that it has ``length`` bytes."""
    size = len(text) if length is None else length
    return b"\x93NUMPY\x02\x00" + size.to_bytes(4, "little") + text.encode()
