# SPDX-License-Identifier: GPL-2.0-only
"""Accesses by CPU, thread and node: sums, names, pictures and tables."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
from attrs import evolve

from kdamon.names.table import NAMED_RANGE, NO_OFFSET, NameTable
from kdamon.reports.groups import GroupTable
from kdamon_tools.groups import Group, Grouping, GroupLog, ThreadNames
from kdamon_tools.history import History, merge_snapshots, nr_rows
from kdamon_tools.reporters.groups import render_group_heatmaps, render_group_tables, render_most_active
from kdamon_tools.reporters.heatmap import render_heatmap
from kdamon_tools.reporters.table import render_table
from kdamon_tools.reporters.whole import render_parts
from kdamon_tools.shared_writes import SharedRange, Writer
from kdamon_tools.snapshot import Config, Counters, Recording, Snapshot
from tests.support.groups import group_table

MIB = 1 << 20
BASE = 0x7F00_0000_0000
CONFIG = Config(pid=42, primitive="page_fault", by="thread")


def rows_of(table: GroupTable | None) -> list[tuple[int, int, int, float, int, int]]:
    """Group, start, end, accesses, reports and writes of each row."""
    assert table is not None
    return [row[:6] for row in table.regions.tolist()]


def two_halves(time: float) -> Snapshot:
    """One region that two threads write in halves, and idle memory after it."""
    groups = group_table(
        [
            (7, BASE, BASE + MIB, 20, 20, 20, BASE, BASE + MIB - 8),
            (9, BASE + MIB, BASE + 2 * MIB, 10, 10, 8, BASE + MIB, BASE + 2 * MIB - 8),
        ]
    )
    rows = [(BASE, BASE + 2 * MIB, 15, 3, 0), (BASE + 2 * MIB, BASE + 4 * MIB, 0, 3, 0)]
    return evolve(Snapshot.of(time, rows), groups=groups)


def recording(snapshots: list[Snapshot], config: Config = CONFIG) -> Recording:
    """A run with the groups of its snapshots."""
    grouping = Grouping(config.by)
    for snapshot in snapshots:
        assert snapshot.groups is not None
        grouping.add(snapshot.groups)
    counters = Counters(reports={"accepted": 70, "applied": 65})
    log = evolve(grouping.log(), nr_missing=5)
    return Recording(config, snapshots, counters, 100.0, 100.0 + len(snapshots) / 10, groups=log)


TWO = [two_halves(100.1), two_halves(100.2)]


class TestSums:
    """What a run adds up."""

    @pytest.mark.parametrize(("by", "unknown"), [("thread", 0), ("cpu", -1), ("node", -1)])
    def test_most_active_groups_come_first(self, by: str, unknown: int) -> None:
        """With all their reports and writes; what is not known is a group without number."""
        grouping = Grouping(by)
        for _ in range(2):
            rows = [(unknown, 0, 9, 1, 1, 0, 0, 0), (3, 0, 9, 1, 5, 4, 1, 1), (3, 9, 20, 1, 5, 4, 9, 9)]
            grouping.add(group_table(rows))
        grouping.add(group_table([]))
        log = grouping.log()
        assert (Group(3, None, 20, 16), Group(None, None, 2, 0)) == log.groups
        assert 22 == log.nr_reports

    def test_a_snapshot_of_one_group(self) -> None:
        """Its accesses where it made them, none elsewhere; those of several groups are added up."""
        snapshot = evolve(two_halves(100.1), merged=3)
        end = BASE + 4 * MIB
        expected = [
            (BASE, BASE + MIB, 0, 3, 0, 0),
            (BASE + MIB, BASE + 2 * MIB, 10, 3, 0, 10),
            (BASE + 2 * MIB, end, 0, 3, 0, 0),
        ]
        one = snapshot.of_groups([9])
        assert expected == one.regions.tolist()
        assert (100.1, 3, None) == (one.time, one.merged, one.groups)
        assert [20, 10, 0] == snapshot.of_groups([7, 9]).regions["nr_accesses"].tolist()
        assert [0, 0] == snapshot.of_groups([8]).regions["nr_accesses"].tolist()
        assert [] == Snapshot.of(1.0, []).of_groups([7]).regions.tolist()

    def test_names_of_threads_are_those_seen_last(self) -> None:
        """Also when the thread ended since; of a number that no thread has, none."""
        begin, named, end = threading.Event(), threading.Event(), threading.Event()

        def work() -> None:
            Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text("a (b) c")
            begin.set()
            named.wait()
            end.wait()

        thread = threading.Thread(target=work)
        thread.start()
        begin.wait()
        tid = thread.native_id or 0
        names = ThreadNames(os.getpid())
        names.look([tid, 1 << 30, 0])
        assert ("a (b) c", None, None) == (names.name(tid), names.name(1 << 30), names.name(0))
        named.set()
        end.set()
        thread.join()
        names._looked_at.clear()
        names.look([tid])
        assert "a (b) c" == names.name(tid)


class TestHistory:
    """Groups of merged snapshots."""

    def test_accesses_are_means_and_reports_are_sums(self) -> None:
        """A group that has no row in one of them did not access the memory."""
        older = evolve(Snapshot.of(1.0, [(0, 100, 5, 0, 0)]), groups=group_table([(1, 0, 100, 20, 30, 9, 4, 50)]))
        # As many regions may be left as the larger table has.
        rows = [(1, 0, 50, 10, 3, 1, 2, 9), (2, 50, 60, 6, 1, 0, 0, 0), (2, 60, 100, 6, 1, 0, 0, 0)]
        newer = evolve(Snapshot.of(2.0, [(0, 100, 5, 0, 0)]), groups=group_table(rows))
        merged = merge_snapshots(older, newer)
        assert [(1, 0, 50, 15, 33, 10), (1, 50, 100, 10, 0, 0), (2, 50, 100, 3, 2, 0)] == rows_of(merged.groups)
        assert [(2, 50), (0, 0), (0, 0)] == merged.groups.regions[["first", "last"]].tolist()  # type: ignore[union-attr]
        again = merge_snapshots(merged, evolve(newer, groups=group_table([])))
        assert [(1, 0, 50, 10, 33, 10), (1, 50, 100, 6.667, 0, 0), (2, 50, 100, 2, 2, 0)] == [
            (*row[:3], round(row[3], 3), *row[4:]) for row in rows_of(again.groups)
        ]

    def test_a_long_run_stays_bounded_and_loses_no_report(self) -> None:
        """Rows of groups count as regions do."""
        history = History(max_snapshots=50, max_rows=200)
        for at in range(300):
            history.add(two_halves(100 + at / 10))
        assert len(history.snapshots) <= 50
        assert sum(map(nr_rows, history.snapshots)) <= 200
        for group, nr_reports in ((7, 20 * 300), (9, 10 * 300)):
            rows = [row for snapshot in history.snapshots for row in rows_of(snapshot.groups) if row[0] == group]
            assert nr_reports == sum(row[4] for row in rows)
        assert [20, 10, 0] == history.snapshots[0].of_groups([7, 9]).regions["nr_accesses"].tolist()


class TestPictures:
    """A heatmap for each group."""

    def test_each_group_is_drawn_at_the_same_addresses(self) -> None:
        """What one writes is idle for the other, although both halves are one region of the snapshot."""
        config = evolve(CONFIG, ops="fvaddr", ranges=((BASE, BASE + 4 * MIB),))
        text = render_group_heatmaps(recording(TWO, config), height=4)
        first, second = text.split("\n\n")
        labels = [line[:16].strip() for line in first.splitlines()[2:-1]]
        assert labels == [line[:16].strip() for line in second.splitlines()[2:-1]]
        assert "tid 7: 40 reports, 66.7% of all" == first.splitlines()[0]
        assert "tid 9: 20 reports, 33.3% of all" == second.splitlines()[0]
        assert ["@@", "..", "..", ".."] == [line[18:] for line in first.splitlines()[2:6]]
        assert ["..", "++", "..", ".."] == [line[18:] for line in second.splitlines()[2:6]]

    def test_many_groups(self) -> None:
        """The most active ones, and the others in one picture; those with hardly any report are among these."""
        rows = [(tid, BASE, BASE + MIB, 20, 1000 - tid, 0, 0, 0) for tid in range(1, 501)]
        made = recording([evolve(two_halves(100.1), groups=group_table(rows))])
        heads = [part.splitlines()[0] for part in render_group_heatmaps(made).split("\n\n")]
        assert [*(f"tid {tid}: {1000 - tid} reports, 0.3% of all" for tid in range(1, 8))] == heads[:-1]
        assert f"others (493 threads): {374750 - sum(range(993, 1000))} reports, 98.1% of all" == heads[-1]
        rows = [(cpu, BASE, BASE + MIB, 20, 1000 if cpu < 3 else 1, 0, 0, 0) for cpu in range(64)]
        made = recording([evolve(two_halves(100.1), groups=group_table(rows))], evolve(CONFIG, by="cpu"))
        heads = [part.splitlines()[0].partition(":")[0] for part in render_group_heatmaps(made).split("\n\n")]
        assert ["CPU 0", "CPU 1", "CPU 2", "others (61 CPUs)"] == heads
        rows = [(cpu, BASE, BASE + MIB, 20, 1000 if cpu < 12 else 1, 0, 0, 0) for cpu in range(64)]
        made = recording([evolve(two_halves(100.1), groups=group_table(rows))], evolve(CONFIG, by="cpu"))
        heads = [part.splitlines()[0].partition(":")[0] for part in render_group_heatmaps(made).split("\n\n")]
        assert [*(f"CPU {cpu}" for cpu in range(7)), "others (57 CPUs)"] == heads

    def test_without_groups_the_result_is_what_it_was(self) -> None:
        """The heatmap and the summary."""
        made = evolve(recording(TWO), groups=None)
        assert 2 == len(render_parts(made))
        assert render_heatmap(made) == render_parts(made)[0]
        empty = evolve(recording(TWO), snapshots=[], groups=GroupLog("thread"))
        assert "" == render_group_heatmaps(empty)
        assert 3 == len(render_parts(empty))


class TestTables:
    """Figures of groups, and what several of them write."""

    def test_figures_add_up(self) -> None:
        """Reports of each group and of all; what is missing to those applied is said."""
        expected = [
            "by thread    reports   share  writes  accessed      hot",
            "tid 7             40   66.7%      40   1.0 MiB  1.0 MiB",
            "tid 9             20   33.3%      16   1.0 MiB  1.0 MiB",
            "all threads       60  100.0%      56",
            "5 more reports are of intervals that did not end, or of lost snapshots",
            "",
            "no memory was found that several threads write at the same time",
        ]
        assert expected == render_group_tables(recording(TWO)).splitlines()

    def test_of_reads_alone_nothing_is_said_of_writers(self) -> None:
        """There are none."""
        made = recording(TWO, evolve(CONFIG, read_only=True))
        assert "several" not in render_group_tables(made)

    def test_writes_are_some_of_them_where_reads_fault(self) -> None:
        """The first access to a page is what shows; unless only writes fault, or none of them counts."""
        text = (
            "a write after a read of its page in the same sampling interval is not among the writes; --write-only "
            "counts all"
        )
        for said, only in ((True, {}), (False, {"write_only": True}), (False, {"read_only": True})):
            made = recording(TWO, evolve(CONFIG, **only))
            made = evolve(made, counters=evolve(made.counters, faults_of_reads=True))
            assert said is (text in render_group_tables(made, width=200).splitlines())
        assert text not in render_group_tables(recording(TWO), width=200)

    def test_shared_memory(self) -> None:
        """Range, size, writers with shares, cache lines; names that are hostile are escaped."""
        groups = (Group(7, "a\nb", 10, 10), Group(8, None, 9, 9), Group(None, None, 3, 3))
        shared = (
            SharedRange(BASE, BASE + 4096, 200, (Writer(7, 120), Writer(8, 80)), 3, 2, 1),
            SharedRange(BASE, BASE + MIB, 100, (Writer(8, 60), Writer(None, 40))),
        )
        made = evolve(recording(TWO), groups=GroupLog("thread", groups, shared))
        lines = render_group_tables(made, width=100).splitlines()
        at = lines.index(
            "written by several threads at the same time; most writes by others than the main writer first"
        )
        assert [
            "  7f0000000000-7f0000001000 4.0 KiB, 200 writes: tid 7 (a\\x0ab) 60%, tid 8 40%; 3 cache lines seen,",
            "      2 shared, 1 at different places",
            "  7f0000000000-7f0000100000 1.0 MiB, 100 writes: tid 8 60%, thread unknown 40%",
        ] == lines[at + 1 :]
        rows = np.array([(BASE, BASE + 3072, NO_OFFSET, 0)], NAMED_RANGE)
        named = render_group_tables(evolve(made, names=NameTable(rows, ("[h\x1beap]",))), width=100).splitlines()
        assert (
            "  7f0000000000-7f0000001000 4.0 KiB of [h\\x1beap] 75%, 200 writes: tid 7 (a\\x0ab) 60%, tid 8 40%; 3"
            == (named[at + 1])
        )

    @pytest.mark.parametrize("width", [28, 40, 60, 80])
    def test_it_fits_a_narrow_terminal(self, width: int) -> None:
        """All lines of all tables and pictures."""
        groups = tuple(Group(n, "a long name", 10, 10) for n in range(1, 12))
        writers = tuple(Writer(n, 10) for n in range(1, 12))
        log = GroupLog("thread", groups, (SharedRange(BASE, BASE + 4096, 110, writers, 3, 2, 1),) * 12)
        made = evolve(recording(TWO), groups=log)
        for text in (render_group_tables(made, width=width), render_group_heatmaps(made, width=width)):
            assert [] == [line for line in text.splitlines() if len(line) > width]
        for height in range(1, 30):
            table = render_table(TWO[0], CONFIG, since=100, width=max(width, 30), height=height, groups=log)
            lines = table.splitlines()
            assert len(lines) <= height
            assert [] == [line for line in lines if len(line) > max(width, 30)]

    def test_the_most_active_groups_in_a_line(self) -> None:
        """Three at most."""
        log = GroupLog("cpu", tuple(Group(cpu, None, 25, 0) for cpu in range(4)))
        assert "CPU 0 25%, CPU 1 25%, CPU 2 25%" == render_most_active(log)

    def test_the_live_table_shows_groups_above_the_regions(self) -> None:
        """A third of the lines at most."""
        made = recording(TWO)
        lines = render_table(TWO[0], CONFIG, since=100, height=12, groups=made.groups).splitlines()
        assert [
            "by thread  share  accessed      hot",
            "tid 7      66.7%   1.0 MiB  1.0 MiB",
            "tid 9      33.3%   1.0 MiB  1.0 MiB",
        ] == lines[1:4]
        assert lines[4].split() == ["start", "size", "accessed", "age", "unknown"]
        assert "by thread" not in render_table(TWO[0], CONFIG, since=100, height=4, groups=made.groups)
