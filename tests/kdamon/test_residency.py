# SPDX-License-Identifier: GPL-2.0-only
"""What is in memory, by addresses: of simulated processes, in steps, and sums of parts of it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdamon.arrays import Records, U64Array
from kdamon.mm import RESIDENT
from kdamon.mm.sim.machine import SimMachine
from kdamon.mm.sim.process import SimProcess
from kdamon.monitoring.residency import Residency, ResidencyReader, cut, merged_blocks

MIB = 1 << 20
PAGE = 4096
BASE = 1 << 30
ALL = np.array([[0, 1 << 47]], np.uint64)


def spawn(mib: int) -> SimProcess:
    return SimMachine(seed=1).spawn([(BASE, BASE + mib * MIB)])


def mib(residency: Residency | None, start: int = 0, end: int = 1 << 30) -> tuple[float, ...]:
    """MiB anonymous, of files, in swap and unknown, between two MiB after the base."""
    assert residency is not None
    [row] = residency.sums([(BASE + start * MIB, BASE + end * MIB)])
    return tuple(int(row[name]) / MIB for name in ("anon", "file", "swapped", "unknown"))


def test_what_is_in_memory_by_kind() -> None:
    process = spawn(100)
    process.mark("anon", [(BASE, BASE + 80 * MIB)])
    process.advise("pageout", np.array([[BASE + 10 * MIB, BASE + 30 * MIB]], np.uint64))
    reader = ResidencyReader()
    reader.step(process, None)
    assert (60, 20, 20, 0) == mib(reader.latest)
    assert (10, 0, 5, 0) == mib(reader.latest, 0, 15)
    assert (0, 20, 0, 0) == mib(reader.latest, 80, 200)
    memory = process.memory()
    assert (60 * MIB, 20 * MIB, 20 * MIB) == (memory.anon, memory.file, memory.swapped)


def test_only_monitored_ranges_are_looked_at() -> None:
    process = spawn(100)
    reader = ResidencyReader()
    reader.step(process, np.array([[BASE + 90 * MIB, BASE + 200 * MIB]], np.uint64))
    assert (10, 0, 0, 0) == mib(reader.latest)


def test_memory_that_came_and_went_is_seen_by_the_next_pass() -> None:
    process = spawn(100)
    reader = ResidencyReader()
    reader.step(process, None)
    process.mmap([(BASE, BASE + 25 * MIB), (BASE + 200 * MIB, BASE + 201 * MIB)])
    assert (100, 0, 0, 0) == mib(reader.latest)
    reader.step(process, None)
    assert (26, 0, 0, 0) == mib(reader.latest)


class InSteps:
    """A process of which each step takes longer than a step may; the clock is that of its steps."""

    def __init__(self, process: SimProcess, answers: int = 1 << 30) -> None:
        self.process = process
        self.answers = answers
        self.now = 0.0

    def __getattr__(self, name: str) -> object:
        return getattr(self.process, name)

    def residency(self, ranges: U64Array) -> Iterator[tuple[int, Records]]:
        for start in range(int(ranges[0, 0]), int(ranges[-1, 1]), 25 * MIB):
            if not self.answers:
                return
            self.answers -= 1
            self.now += 1.0
            part = np.array([[start, start + 25 * MIB]], np.uint64)
            yield start + 25 * MIB, np.concatenate([rows for _, rows in self.process.residency(part)])


def in_steps(mm: InSteps) -> ResidencyReader:
    return ResidencyReader(lambda: mm.now, lambda: mm.now)


def test_what_was_not_looked_at_yet_is_unknown() -> None:
    mm = InSteps(spawn(100))
    reader = in_steps(mm)
    found = []
    for _ in range(5):
        reader.step(mm, None)  # type: ignore[arg-type]
        found.append(mib(reader.latest))
    assert [(25, 0, 0, 75), (50, 0, 0, 50), (75, 0, 0, 25), (100, 0, 0, 0), (100, 0, 0, 0)] == found


def test_later_passes_replace_what_was_seen_before() -> None:
    """Of the second pass the first quarter; above it what the first pass found, and what is new is unknown."""
    mm = InSteps(spawn(100))
    reader = in_steps(mm)
    for _ in range(5):
        reader.step(mm, None)  # type: ignore[arg-type]
    mm.process.mmap([(BASE, BASE + 10 * MIB), (BASE + 30 * MIB, BASE + 120 * MIB)])
    reader.step(mm, None)  # type: ignore[arg-type]
    assert (10 + 70, 0, 0, 20) == mib(reader.latest)
    assert (0, 0, 0, 20) == mib(reader.latest, 100)


def test_a_process_that_stops_to_answer_is_known_in_part() -> None:
    mm = InSteps(spawn(100), answers=2)
    reader = in_steps(mm)
    for _ in range(4):
        reader.step(mm, None)  # type: ignore[arg-type]
    assert (50, 0, 0, 50) == mib(reader.latest)


def test_steps_take_a_small_share_of_the_time() -> None:
    mm = InSteps(spawn(100))
    reader = in_steps(mm)
    reader.step(mm, None)  # type: ignore[arg-type]
    assert pytest.approx(1.0 + 1.0 / 0.003) == reader.due
    quick = ResidencyReader(lambda: 5.0, lambda: 0.0)
    quick.step(spawn(1), None)
    assert pytest.approx(6.0) == quick.due


def test_the_first_pass_does_not_wait_for_long() -> None:
    """Steps of 5 ms: some at once, and then a pause of a second."""
    now, spent = [0.0], [0.0]

    class Slow(InSteps):
        def residency(self, ranges: U64Array) -> Iterator[tuple[int, Records]]:
            for step in super().residency(ranges):
                spent[0] += 0.005
                yield step

    mm = Slow(spawn(800))
    reader = ResidencyReader(lambda: now[0], lambda: spent[0])
    while not reader.due:
        reader.step(mm, None)  # type: ignore[arg-type]
    assert 1.0 == reader.due
    assert 0.05 <= spent[0] < 0.065
    reader.step(mm, None)  # type: ignore[arg-type]
    assert pytest.approx(0.005 / 0.003) == reader.due


def test_memory_that_is_mapped_after_a_pass_is_unknown_until_the_next() -> None:
    """Not empty: nothing looked there. What the pass looked at stays as it was."""
    now = [10.0]
    process = spawn(400)
    reader = ResidencyReader(lambda: now[0], lambda: 0.0)
    reader.step(process, None)
    assert (400, 0, 0, 0) == mib(reader.latest)
    now[0] = 11.5
    process.mmap([(BASE, BASE + 400 * MIB), (BASE + 600 * MIB, BASE + 620 * MIB)])
    reader._mark_new(process, None, now[0])
    assert (400, 0, 0, 20) == mib(reader.latest)
    assert pytest.approx(20 / 420) == reader.latest.unknown_share  # type: ignore[union-attr]
    reader.step(process, None)
    assert (420, 0, 0, 0) == mib(reader.latest)


def test_another_address_space_is_looked_at_anew() -> None:
    reader = ResidencyReader()
    reader.step(spawn(100), None)
    reader.reset()
    assert reader.latest is None
    reader.step(spawn(3), None)
    assert (3, 0, 0, 0) == mib(reader.latest)


def test_a_process_that_ended_leaves_what_was_seen() -> None:
    process = spawn(100)
    reader = ResidencyReader()
    reader.step(process, None)
    process.exit()
    reader.step(process, None)
    assert (100, 0, 0, 0) == mib(reader.latest)


@st.composite
def tables(draw: st.DrawFn) -> Records:
    """Runs of pages, each of one kind."""
    edges = draw(st.lists(st.integers(0, 3000), min_size=2, max_size=60, unique=True).map(sorted))
    kinds = draw(st.lists(st.sampled_from(["anon", "file", "swapped", "", "unknown"]), min_size=59, max_size=59))
    rows = []
    for start, end, kind in zip(edges, edges[1:], kinds, strict=False):
        if kind:
            row = np.zeros(1, RESIDENT)
            row["start"], row["end"] = BASE + start * PAGE, BASE + end * PAGE
            row[kind] = (end - start) * PAGE
            rows.append(row)
    return np.concatenate([np.empty(0, RESIDENT), *rows])


@given(tables(), st.integers(0, 3000), st.integers(0, 3000))
def test_sums_of_runs_are_exact(rows: Records, start: int, size: int) -> None:
    where = np.array([[BASE + start * PAGE, BASE + (start + size) * PAGE]], np.uint64)
    [found] = Residency(0.0, rows).sums(where)
    for kind in ("anon", "file", "swapped", "unknown"):
        of_kind = rows[rows[kind] > 0]
        low = np.maximum(of_kind["start"], where[0, 0]).astype(np.int64)
        high = np.minimum(of_kind["end"], where[0, 1]).astype(np.int64)
        assert int(np.maximum(high - low, 0).sum()) == found[kind]


@given(tables())
def test_blocks_have_the_bytes_of_their_runs(rows: Records) -> None:
    merged = merged_blocks(rows)
    assert Residency(0.0, rows).sums(ALL).tolist() == Residency(0.0, merged).sums(ALL).tolist()
    assert (merged["start"][1:] >= merged["end"][:-1]).all()
    assert len(merged) <= 2 * len(np.unique(np.concatenate([rows["start"], rows["end"]]) // np.uint64(2 * MIB))) + 1


@given(tables(), st.integers(0, 3000))
def test_a_cut_divides_the_bytes(rows: Records, page: int) -> None:
    edge = BASE + page * PAGE
    halves = [cut(rows, np.array([bounds], np.uint64)) for bounds in ((0, edge), (edge, 1 << 47))]
    whole = Residency(0.0, rows).sums(ALL)
    sums = [Residency(0.0, half).sums(ALL) for half in halves]
    for kind in ("anon", "file", "swapped", "unknown"):
        assert whole[kind] == sums[0][kind] + sums[1][kind]
