# SPDX-License-Identifier: GPL-2.0-only
"""What changed from one recording to another: by name and by place within what has the name, not by address."""

from __future__ import annotations

import re
from typing import Any, Final

import numpy as np
from attrs import evolve, frozen

from kdamon.arrays import F64Array, U64Array, distinct
from kdamon_tools.defaults import FIGURES
from kdamon_tools.snapshot import Recording
from kdamon_tools.views.grid import NEGLIGIBLE
from kdamon_tools.views.measures import weight_of
from kdamon_tools.views.profile import profile_of
from kdamon_tools.views.regions import NO_NAME, Named, idle_seconds, kinds_of
from kdamon_tools.views.resident import known_snapshots
from kdamon_tools.views.table import Column, Kind, Order, Report, Table
from kdamon_tools.views.where import idle_view, where_view
from kdamon_tools.views.working_set import Course, course_of, percentile_of

__all__ = ["Figure", "difference_view", "figures_of"]

#: Seconds without an access that make memory idle.
_IDLE_S: Final = 10.0
_BASIS: Final = {"memory": "in memory", "mapped": "mapped"}
_THREAD: Final = re.compile(r"\[stack of [0-9]+ (.*)\]", re.DOTALL)


@frozen
class Figure:
    """A figure of both recordings, bytes; None is unknown.

    :ivar before: its median in the first one.
    :ivar after: the same of the second one.
    :ivar spread: how far apart the middle half of the snapshots is, of the recording where that is more. A change that
        is smaller may be chance.
    """

    name: str
    before: int | None
    after: int | None
    spread: int | None

    @property
    def change(self) -> int | None:
        """Bytes more in the second one."""
        return None if self.before is None or self.after is None else self.after - self.before

    @property
    def share(self) -> float | None:
        """The same as a share of the first one; infinite where that has none."""
        if self.change is None or self.before is None:
            return None
        if not self.before:
            return 0.0 if not self.change else float("inf")
        return self.change / self.before


def figures_of(before: Recording, after: Recording) -> dict[str, Figure]:
    """All :data:`kdamon_tools.defaults.FIGURES` of two recordings."""
    courses = [course_of(recording) for recording in (before, after)]
    found, in_memory, watched = {}, is_in_memory(before, after), _are_watched(*courses)
    for name in FIGURES:
        if name == "idle":
            found[name] = Figure(name, _idle(before, in_memory), _idle(after, in_memory), None)
            continue
        columns = [_column(name, course, in_memory, watched) for course in courses]
        sizes = [percentile_of(column, course.weights, 50) for column, course in zip(columns, courses, strict=True)]
        spreads = [_spread(column, course.weights) for column, course in zip(columns, courses, strict=True)]
        known = [spread for spread in spreads if spread is not None]
        found[name] = Figure(name, sizes[0], sizes[1], max(known) if known else None)
    return found


def is_in_memory(before: Recording, after: Recording) -> bool:
    """Whether cold and idle bytes are of what was in memory: that is known of both."""
    return bool(known_snapshots(before) and known_snapshots(after))


def _are_watched(*courses: Course) -> bool:
    """Whether the working sets are what was used within 10 s: that is known of both."""
    return not any(np.isnan(course.used).all() for course in courses)


def _column(name: str, course: Course, in_memory: bool, watched: bool) -> F64Array:
    if name == "wss" and watched:
        return course.used
    if name == "cold":
        return course.cold if in_memory else course.monitored - course.accessed - course.unknown
    return {
        "wss": course.accessed,
        "hot": course.hot,
        "unknown": course.unknown,
        "resident": course.resident,
    }[name]


def _spread(column: F64Array, weights: F64Array) -> int | None:
    low, high = (percentile_of(column, weights, percent) for percent in (25, 75))
    return None if low is None or high is None else high - low


def _idle(recording: Recording, in_memory: bool) -> int | None:
    """Bytes that were idle at the end, as the view ``idle`` has them; None where the recording is too short to know."""
    if recording.seconds < _IDLE_S or not recording.snapshots:
        return None
    if in_memory:
        return {key: value for key, _, _, value in idle_view(recording).facts}.get(f"idle_{_IDLE_S:.0f}s_bytes")
    last = recording.snapshots[-1]
    return int(last.sizes[idle_seconds(last, recording.config) >= _IDLE_S].sum())


_FIGURES: Final = (
    Column("figure", "figure", Kind.TEXT, hidden=True),
    Column("title", "", Kind.TEXT),
    Column("before_bytes", "A", Kind.BYTES),
    Column("after_bytes", "B", Kind.BYTES),
    Column("change_bytes", "change", Kind.BYTES),
    Column("change_share", "in %", Kind.SHARE),
    Column("spread_bytes", "spread", Kind.BYTES),
)
_NAMES: Final = (
    Column("name", "name", Kind.TEXT),
    Column("before_accessed_bytes", "accessed A", Kind.BYTES),
    Column("after_accessed_bytes", "B", Kind.BYTES),
    Column("change_bytes", "change", Kind.BYTES),
    Column("before_hot_bytes", "hot A", Kind.BYTES, optional=1),
    Column("after_hot_bytes", "B", Kind.BYTES, optional=1),
    Column("both_bytes", "same place", Kind.BYTES, optional=1),
    Column("only_before_bytes", "only A", Kind.BYTES, optional=1),
    Column("only_after_bytes", "only B", Kind.BYTES, optional=1),
)


_RESIDENT: Final = (
    Column("before_resident_bytes", "in memory A", Kind.BYTES),
    Column("after_resident_bytes", "B", Kind.BYTES),
    Column("resident_change_bytes", "change", Kind.BYTES),
)
#: The columns where it is known what was in memory; on a narrow terminal some are left out.
_NAMES_IN_MEMORY: Final = (
    _NAMES[0],
    *_RESIDENT,
    *(evolve(column, optional=2 if column.optional else 1) for column in _NAMES[1:]),
)


def difference_view(before: Recording, after: Recording) -> Report:
    """What changed from ``before``, A, to ``after``, B; both have snapshots."""
    basis = "memory" if is_in_memory(before, after) else "mapped"
    watched = _are_watched(course_of(before), course_of(after))
    figures = [
        (
            figure.name,
            _title(figure.name, basis, watched),
            figure.before,
            figure.after,
            figure.change,
            None if figure.share is None else round(figure.share, 6),
            figure.spread,
        )
        for figure in figures_of(before, after).values()
    ]
    return Report(
        "diff",
        (("basis", "", Kind.TEXT, basis),),
        (
            Table("figures", _FIGURES, tuple(figures)),
            Table(
                "names",
                _NAMES if basis == "mapped" else _NAMES_IN_MEMORY,
                _by_name(before, after, in_memory=basis == "memory"),
                "names",
                Order.RANK,
            ),
        ),
        (
            "medians; spread: how far apart the middle half of the snapshots of a record is: a smaller change may be "
            "chance",
            "same place: accessed in both records at the same distance from the start of what has the name; only A and "
            "only B: in one of them; at addresses that were accessed in at least 1% of the samples",
        ),
    )


def _title(name: str, basis: str, watched: bool) -> str:
    if name == "wss" and watched:
        return f"{FIGURES[name]}, used within 10 s"
    return FIGURES[name] + (f" ({_BASIS[basis]})" if name in {"cold", "idle"} else "")


@frozen(eq=False)
class _Places:
    """The memory of one name, as distances from the start of its first range; gaps between its ranges have no length.

    :ivar edges: ascending, shape (n + 1,).
    :ivar used: whether the part from each edge to the next was accessed, shape (n,).
    """

    edges: U64Array
    used: Any


def _by_name(before: Recording, after: Recording, *, in_memory: bool) -> tuple[tuple[Any, ...], ...]:
    """A row for each name that was accessed, or in memory, the largest change first."""
    means = [_means(recording) for recording in (before, after)]
    places = [_places(recording) for recording in (before, after)]
    there = [_resident(recording) if in_memory else {} for recording in (before, after)]
    rows: list[tuple[Any, ...]] = []
    for name in dict.fromkeys([*means[0], *means[1], *there[0], *there[1]]):
        (accessed_a, hot_a), (accessed_b, hot_b) = (found.get(name, (0, 0)) for found in means)
        overlap: tuple[int | None, ...] = (None, None, None)
        if name != NO_NAME:
            overlap = _overlap(places[0].get(name), places[1].get(name))
        sizes = [found.get(name, 0) for found in there]
        if accessed_a or accessed_b or any(overlap) or any(sizes):
            of_memory = (*sizes, sizes[1] - sizes[0]) if in_memory else ()
            rows.append((name, *of_memory, accessed_a, accessed_b, accessed_b - accessed_a, hot_a, hot_b, *overlap))
    changes = (3, 6) if in_memory else (3,)
    rows.sort(key=lambda row: [-abs(row[place]) for place in changes])
    return tuple(rows)


def _resident(recording: Recording) -> dict[str, int]:
    """Bytes in memory by name, means over time."""
    found: dict[str, int] = {}
    for row in where_view(recording).tables[0].records():
        name = _key(row["name"])
        found[name] = found.get(name, 0) + row["resident_bytes"]
    return found


def _means(recording: Recording) -> dict[str, tuple[int, int]]:
    """Accessed and hot bytes by name, means over time."""
    named = Named(recording.names)
    sums, weight = np.zeros((4, len(named.names))), 0.0
    for snapshot in recording.snapshots:
        sums += weight_of(snapshot, recording.config) * named.sums(snapshot, kinds_of(snapshot, recording.config))
        weight += weight_of(snapshot, recording.config)
    found: dict[str, tuple[int, int]] = {}
    for name, hot, warm in zip(map(_key, named.names), *np.rint(sums[:2] / (weight or 1.0)), strict=True):
        accessed, of_hot = found.get(name, (0, 0))
        found[name] = accessed + int(hot + warm), of_hot + int(hot)
    return found


def _key(name: str) -> str:
    """A name that another run of the program has as well: without the number of a thread."""
    return _THREAD.sub(r"[stack of \1]", name)


def _places(recording: Recording) -> dict[str, _Places]:
    """Which parts of what has a name were accessed."""
    if recording.names is None:
        return {}
    profile = profile_of(recording.snapshots, recording.config)
    possible = recording.config.max_nr_accesses * np.maximum(profile.covered, 1)
    used = profile.accesses >= NEGLIGIBLE * possible
    table = recording.names
    edges = distinct(np.concatenate([profile.edges, table.rows["start"], table.rows["end"]]))
    starts, ends = edges[:-1], edges[1:]
    row = np.searchsorted(table.rows["start"], starts, side="right") - 1
    inside = (row >= 0) & (ends <= table.rows["end"][np.maximum(row, 0)])
    piece = np.clip(np.searchsorted(profile.edges, starts, side="right") - 1, 0, max(0, len(used) - 1))
    within = (starts >= profile.edges[0]) & (ends <= profile.edges[-1])
    used_here = within & used[piece]
    # The first name of each key stands for all of them.
    keys = [_key(name) for name in table.names]
    first_of = {key: at for at, key in reversed(list(enumerate(keys)))}
    numbers = np.array([first_of[key] for key in keys], np.intp)
    starts, ends, used_here, names = (
        starts[inside],
        ends[inside],
        used_here[inside],
        numbers[table.rows["name"][row[inside]]],
    )
    order = np.argsort(names, kind="stable")
    bounds = np.append(np.flatnonzero(np.diff(names[order], prepend=-1)), len(order))
    found = {}
    for first, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        here = order[first:end]
        sizes = ends[here] - starts[here]
        found[keys[names[here[0]]]] = _Places(np.append(np.uint64(0), np.cumsum(sizes)), used_here[here])
    return found


def _overlap(one: _Places | None, other: _Places | None) -> tuple[int, int, int]:
    """Bytes that were accessed in both, in the first only, and in the second only."""
    edges = distinct(np.concatenate([np.zeros(1, np.uint64), *(part.edges for part in (one, other) if part)]))
    sizes = np.diff(edges)
    used = [_used_at(part, edges[:-1]) for part in (one, other)]
    parts = (used[0] & used[1], used[0] & ~used[1], used[1] & ~used[0])
    return tuple(int(sizes[part].sum()) for part in parts)  # type: ignore[return-value]


def _used_at(part: _Places | None, starts: U64Array) -> Any:
    if part is None or not len(part.used):
        return np.zeros(len(starts), np.bool_)
    at = np.searchsorted(part.edges, starts, side="right") - 1
    return (at < len(part.used)) & part.used[np.minimum(at, len(part.used) - 1)]
