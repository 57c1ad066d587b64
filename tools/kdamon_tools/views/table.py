# SPDX-License-Identifier: GPL-2.0-only
"""Tables as plain values: one shape for text, JSON and CSV."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from attrs import field, frozen

__all__ = ["Column", "Kind", "Order", "Report", "Table", "number_or_none"]


def number_or_none(value: Any) -> Any:
    """``value`` for JSON and CSV, which have no infinite numbers."""
    return None if isinstance(value, float) and math.isinf(value) else value


class Kind(StrEnum):
    """What the values of a column are; None in any of them stands for unknown."""

    BYTES = "bytes"
    SECONDS = "seconds"
    #: 0 to 1, or of a change; infinite where there was nothing before.
    SHARE = "share"
    COUNT = "count"
    ADDRESS = "address"
    #: Raw: a reporter escapes it.
    TEXT = "text"


class Order(StrEnum):
    """The order of a table's rows."""

    #: All of them matter.
    ADDRESS = "address"
    #: The first ones matter most.
    RANK = "rank"
    #: Some rows, equally far apart, show the course of them.
    TIME = "time"


@frozen
class Column:
    """A column of a table.

    :ivar key: its name in JSON and CSV, with the unit.
    :ivar title: its name in text.
    :ivar hidden: in JSON and CSV only.
    :ivar optional: 0: each terminal has it; else a narrow one does not: the columns with the highest number go first.
    """

    key: str
    title: str
    kind: Kind
    hidden: bool = False
    optional: int = 0


@frozen
class Table:
    """Rows of values, one for each column.

    :ivar key: its name in JSON.
    :ivar more: what the rows are, such as ``names``.
    :ivar order: of the rows, which says which ones text has where there is no room for all.
    """

    key: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Any, ...], ...]
    more: str = "rows"
    order: Order = Order.ADDRESS

    def records(self) -> list[dict[str, Any]]:
        """The rows as objects."""
        keys = [column.key for column in self.columns]
        return [dict(zip(keys, map(number_or_none, row), strict=True)) for row in self.rows]


@frozen
class Report:
    """A view of a recording.

    :ivar view: its name.
    :ivar facts: key, title, kind and value of single figures; without a title: in JSON and CSV only.
    :ivar notes: sentences about what the figures mean, and about what is missing.
    :ivar beside: by their keys, what text has after the values of some figures.
    """

    view: str
    facts: tuple[tuple[str, str, Kind, Any], ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    beside: Mapping[str, str] = field(factory=dict)
