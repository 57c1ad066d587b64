# SPDX-License-Identifier: GPL-2.0-only
"""Reporters render plain snapshots: tables, heatmaps, JSON and comparisons from literals."""

from __future__ import annotations

import json

import pytest
from attrs import evolve

from kdamon.mm import Observed, Resident
from kdamon.monitoring.use import MemoryUse, WindowUse
from kdamon.sample_control import READS_UNSEEN
from kdamon_tools.compare import Accuracy, PhaseResult
from kdamon_tools.reporters.comparison import render_comparison
from kdamon_tools.reporters.heatmap import render_heatmap
from kdamon_tools.reporters.json_object import render_json
from kdamon_tools.reporters.shades import LEVELS, UNKNOWN, legend, level_of, paint
from kdamon_tools.reporters.table import render_line, render_summary, render_table, summarize
from kdamon_tools.snapshot import Config, Counters, Recording, Snapshot

MIB = 1 << 20
CONFIG = Config(pid=42)
LOW, HIGH = 0x7F00_0000_0000, 0x7FFF_0000_0000


def recording(snapshots: list[Snapshot], seconds: float, counters: Counters | None = None) -> Recording:
    """A recording of ``snapshots`` that began at time 100, without pauses."""
    begins = [100.0, *(snapshot.time for snapshot in snapshots)]
    snapshots = [evolve(snapshot, began=began) for began, snapshot in zip(begins, snapshots, strict=False)]
    return Recording(CONFIG, snapshots, counters or Counters(), 100.0, 100.0 + seconds)


def picture(of: Recording, **size: int) -> dict[str, str]:
    """The lines of a heatmap by their address label; without heading, time axis and legend."""
    lines = render_heatmap(of, show_legend=False, **size).splitlines()[1:-1]
    return {line[:16].strip(): line[18:] for line in lines}


class TestShades:
    """Access frequency as a character."""

    @pytest.mark.parametrize(
        ("share", "character"),
        [
            (0, "."),
            (0.009, "."),
            (0.01, ":"),
            (0.125, ":"),
            (0.126, "-"),
            (0.5, "+"),
            (0.51, "*"),
            (1, "@"),
            (1.2, "@"),
        ],
    )
    def test_each_level_is_an_eighth(self, share: float, character: str) -> None:
        """Below 1 % counts as not accessed; more than always does not exist."""
        assert character == level_of(share)

    def test_painting_changes_no_character(self) -> None:
        """Colours surround characters; without colours the text is what it was."""
        text = f" .:{UNKNOWN}@@"
        painted = paint(text, colour=True)
        for code in {part.split("m")[0] for part in painted.split("\x1b")[1:]}:
            painted = painted.replace(f"\x1b{code}m", "")
        assert text == painted
        assert text == paint(text, colour=False)

    def test_the_legend_explains_every_character_within_80_columns(self) -> None:
        """A user who sees a picture for the first time can read it."""
        lines = legend(colour=False)
        assert all(f" {character} " in "\n".join(lines) for character in LEVELS + UNKNOWN)
        assert max(map(len, lines)) <= 80


class TestHeatmap:
    """Address x time."""

    def test_a_hot_and_an_idle_half(self) -> None:
        """Lines are addresses, columns are time, characters are frequency."""
        rows = [(0x1000, 0x3000, 20, 1, 0), (0x3000, 0x5000, 0, 1, 0)]
        of = recording([Snapshot.of(100 + t / 10, rows) for t in range(1, 4)], 0.3)
        assert {"1000": "@@@", "2000": "@@@", "3000": "...", "...": "not drawn: 4.0 KiB not accessed"} == picture(of)
        assert "a line is 4.0 KiB, a column 0.1 s" in render_heatmap(of)

    def test_time_goes_to_the_right(self) -> None:
        """What was hot early is hot on the left."""
        early = Snapshot.of(100.5, [(0x1000, 0x2000, 20, 0, 0), (0x2000, 0x3000, 0, 0, 0)])
        late = Snapshot.of(101.0, [(0x1000, 0x2000, 0, 0, 0), (0x2000, 0x3000, 10, 0, 0)])
        assert {"1000": "@.", "2000": ".+"} == picture(recording([early, late], 1.0))

    def test_unknown_is_not_idle(self) -> None:
        """A region whose samples could not be taken shows as a question mark; blank where nothing was monitored."""
        first = Snapshot.of(100.5, [(0x1000, 0x2000, 0, 0, 20)])
        second = Snapshot.of(101.0, [(0x1000, 0x2000, 0, 0, 11), (0x2000, 0x3000, 20, 0, 0)])
        assert {"1000": "??", "2000": " @"} == picture(recording([first, second], 1.0))

    def test_gaps_between_the_areas_are_cut(self) -> None:
        """Unmonitored terabytes take one line; idle monitored bytes are counted in it."""
        rows = [(LOW, LOW + MIB, 20, 0, 0), (LOW + MIB, LOW + 101 * MIB, 0, 0, 0), (HIGH, HIGH + MIB, 20, 0, 0)]
        lines = picture(recording([Snapshot.of(101.0, rows)], 1.0), height=20)
        assert "not drawn: 99.9 MiB not accessed" == lines["..."]
        assert lines[f"{LOW:x}"] == lines[f"{HIGH:x}"] == "@"
        assert len(lines) <= 21

    @pytest.mark.parametrize("width", [40, 80, 133])
    @pytest.mark.parametrize("height", [10, 24, 50])
    def test_it_fits_the_terminal(self, width: int, height: int) -> None:
        """No line is wider than asked for, and about as many lines are drawn."""
        snapshots = [
            Snapshot.of(100 + t / 10, [(LOW + n * MIB, LOW + (n + 1) * MIB, (n + t) % 21, 0, 0) for n in range(100)])
            for t in range(1, 200)
        ]
        lines = render_heatmap(recording(snapshots, 20), width=width, height=height, show_legend=False).splitlines()
        assert max(map(len, lines)) <= width
        assert height // 2 <= len(lines) <= height + 3

    def test_averages_where_many_snapshots_share_a_column(self) -> None:
        """Half of the time hot is a level of one half."""
        snapshots = [Snapshot.of(100 + t / 10, [(0x1000, 0x2000, 20 * (t % 2), 0, 0)]) for t in range(1, 101)]
        assert set(picture(recording(snapshots, 10), width=43)["1000"]) <= {"=", "+", "*"}

    def test_an_idle_process_is_shown_whole(self) -> None:
        """Where nothing was accessed nothing is worth more than the rest."""
        of = recording([Snapshot.of(101, [(0x1000, 0x3000, 0, 5, 0)])], 1.0)
        assert {"1000": ".", "2000": "."} == picture(of)

    def test_nothing_monitored_is_said(self) -> None:
        """Why: only empty snapshots, none in so short a time, or none because the monitor could not keep up."""
        said = [
            render_heatmap(recording([Snapshot.of(101, [])], 1.0)),
            render_heatmap(recording([], 0.01)),
            render_heatmap(recording([], 10.0, Counters(missed_intervals=1900))),
        ]
        assert [
            "nothing to draw: the process has no memory of its own",
            "nothing to draw: the run was shorter than an aggregation interval",
            "nothing to draw: no aggregation interval ended, 1900 sampling intervals were missed; use a longer "
            "--sample-us and --aggr-us",
        ] == said

    def test_addresses_at_the_end_of_the_address_space(self) -> None:
        """Doubles have no room for pages up there; the picture must not lose them."""
        start = (1 << 64) - 0x4000
        rows = [(start, start + 0x1000, 20, 0, 0), (start + 0x1000, start + 0x3000, 0, 0, 0)]
        lines = picture(recording([Snapshot.of(101, rows)], 1.0))
        assert ["@", "."] == list(lines.values())[:2]

    def test_lines_begin_at_pages(self) -> None:
        """Whatever the surroundings that are shown come to."""
        rows = [(LOW, LOW + 33 * 4096, 20, 0, 0), (LOW + 33 * 4096, LOW + MIB, 0, 0, 0)]
        lines = picture(recording([Snapshot.of(101, rows)], 1.0))
        assert [0] == sorted({int(label, 16) % 4096 for label in lines if label != "..."})


class TestTable:
    """One snapshot as a table."""

    ROWS = [(0x1000, 0x3000, 20, 3, 0), (0x3000, 0x10_3000, 0, 600, 0), (0x10_3000, 0x10_4000, 0, 0, 15)]

    def test_regions_in_address_order(self) -> None:
        """Start, size, bar and share, age as time, unknown share."""
        text = render_table(Snapshot.of(102.5, self.ROWS), CONFIG, since=100.0)
        assert [
            "    2.5 s  3 regions of 1.0 MiB, accessed 8.0 KiB, hot 8.0 KiB",
            "           start        size  accessed                age  unknown",
            "            1000     8.0 KiB  @@@@@@@@@@ 100%       0.3 s",
            "            3000     1.0 MiB  .            0%        60 s",
            "          103000     4.0 KiB  ?            0%       0.0 s      75%",
            "? cannot be sampled: pages that are mapped more than once (shared, or twice by",
            "one process), locked, or huge TLB",
        ] == text.splitlines()
        # Once, where there is room, and in the summary; nothing where all is known.
        assert "?" not in render_table(Snapshot.of(102.5, self.ROWS[:2]), CONFIG, since=100.0)
        assert "cannot be sampled" not in render_table(Snapshot.of(102.5, self.ROWS), CONFIG, since=100.0, height=8)
        summaries = [render_summary(recording([Snapshot.of(101.0, self.ROWS[:n])], 1.0)) for n in (3, 2)]
        assert [1, 0] == [summary.count("? cannot be sampled: ") for summary in summaries]

    def test_the_hottest_are_kept_where_there_is_no_room(self) -> None:
        """A small terminal shows fewer regions, still in address order, and says how many it does not show."""
        rows = [(n * 0x1000, (n + 1) * 0x1000, n % 10, 0, 0) for n in range(100)]
        lines = render_table(Snapshot.of(101, rows), CONFIG, since=100, height=9).splitlines()
        assert len(lines) <= 9
        assert ["9000", "13000", "1d000", "27000", "31000", "3b000"] == [line[:16].strip() for line in lines[2:-1]]
        assert "and 94 more: 376.0 KiB accessed in at most 45%" == lines[-1].strip()

    def test_hot_regions_that_find_no_room_are_counted(self) -> None:
        """Those with most accessed bytes are shown; a small hot one comes before a large one that is warm."""
        rows = [(LOW + n * MIB, LOW + n * MIB + (n + 1) * 4096, 20, 0, 0) for n in range(100)]
        rows += [(HIGH, HIGH + 1024 * MIB, 9, 0, 0), (HIGH + 1024 * MIB, HIGH + 1025 * MIB, 0, 0, 20)]
        lines = render_table(Snapshot.of(101, rows), CONFIG, since=100, height=9, width=110).splitlines()
        shown = [f"{LOW + n * MIB:x}" for n in range(94, 100)]
        assert shown == [line[:16].strip() for line in lines[2:-1]]
        hidden = sum(n + 1 for n in range(94)) * 4 / 1024
        assert lines[-1].strip() == (
            f"and 96 more: {hidden:.1f} MiB hot in 94 areas, 1.0 MiB unknown, 1.0 GiB accessed in at most 45%"
        )

    @pytest.mark.parametrize("height", [1, 2, 3, 4, 8, 24])
    @pytest.mark.parametrize("width", [30, 40, 46, 58, 66, 80])
    def test_it_fits_any_terminal(self, width: int, height: int) -> None:
        """Neither wider nor higher; start, size and share are always there."""
        rows = [(LOW + n * MIB, LOW + (n + 1) * MIB, n % 21, n, n % 5) for n in range(100)]
        lines = render_table(Snapshot.of(101, rows), CONFIG, since=100, height=height, width=width).splitlines()
        assert max(map(len, lines)) <= width
        assert len(lines) <= height
        if height == 24:
            assert [f"{LOW + 20 * MIB:x}", "1.0", "MiB"] == next(line.split()[:3] for line in lines if "100%" in line)
            assert "hot in" in " ".join(lines)

    @pytest.mark.parametrize("width", [40, 60, 80])
    def test_no_line_is_wider_than_the_terminal(self, width: int) -> None:
        """A line that wrapped would break redrawing in place."""
        text = render_table(Snapshot.of(102.5, self.ROWS), CONFIG, since=100.0, width=width)
        assert max(map(len, text.splitlines())) <= width

    def test_a_line_for_those_who_have_no_terminal(self) -> None:
        """Working set and hot bytes at one moment."""
        line = render_line(Snapshot.of(103, self.ROWS), CONFIG, 100)
        assert "    3.0 s  3 regions of 1.0 MiB, accessed 8.0 KiB, hot 8.0 KiB" == line


def test_addresses_that_were_asked_for_are_all_drawn() -> None:
    """Also where nothing happens: pictures of several runs can be laid side by side."""
    snapshot = Snapshot.of(101, [(LOW, LOW + 4 * MIB, 20, 0, 0), (LOW + 4 * MIB, LOW + 400 * MIB, 0, 0, 0)])
    made = recording([snapshot], 1.0)
    assert "not drawn" in render_heatmap(made, height=20)
    made = evolve(made, config=Config(pid=42, ops="fvaddr", ranges=((LOW, LOW + 400 * MIB),)))
    assert "not drawn" not in render_heatmap(made, height=20)
    lines = picture(made, height=20)
    assert f"{LOW:x}" == next(iter(lines))
    assert 15 <= len(lines) <= 22


class TestSummary:
    """What a recording comes to."""

    COUNTERS = Counters(missed_intervals=7, samples=200, unknown=5, cpu_s=0.25)

    def snapshots(self) -> list[Snapshot]:
        """Three snapshots whose median is not their mean."""
        return [
            Snapshot.of(100 + t, [(0, size, 20, 0, 0), (size, 2 * size, 1, 0, 0), (2 * size, 1 << 30, 0, 0, 0)])
            for t, size in ((1, MIB), (2, 2 * MIB), (10, 200 * MIB))
        ]

    def test_figures(self) -> None:
        """Medians of bytes, shares in percent."""
        assert {
            "working_set_bytes": 4 * MIB,
            "hot_bytes": 2 * MIB,
            "unknown_percent": 2.5,
            "missed_intervals": 7,
            "unsampled_seconds": 0.0,
            "kdamond_cpu_percent": 2.5,
            "watching_cpu_percent": None,
        } == summarize(recording(self.snapshots(), 10, self.COUNTERS))

    def test_an_empty_recording_has_figures_too(self) -> None:
        """A process that was gone at once divides by nothing, and what is unknown is not 0."""
        assert {
            "working_set_bytes": None,
            "hot_bytes": None,
            "unknown_percent": None,
            "missed_intervals": 0,
            "unsampled_seconds": 0.0,
            "kdamond_cpu_percent": None,
            "watching_cpu_percent": None,
        } == summarize(recording([], 0))
        assert 2 == render_summary(recording([], 0)).count(" unknown  median")

    def test_text(self) -> None:
        """Every figure has its line."""
        text = render_summary(recording(self.snapshots(), 10, self.COUNTERS))
        assert "monitored pid 42 for 10 s, 3 aggregations" in text
        for figure in ("4.0 MiB", "2.0 MiB", "2.5%  of 200", "7", "2.5%  of one CPU"):
            assert figure in text

    @pytest.mark.parametrize("width", [80, 60, 28])
    def test_it_fits_a_narrow_terminal(self, width: int) -> None:
        """Every line, with all that it says."""
        counters = evolve(self.COUNTERS, reports={"accepted": 12, "applied": 7, "late": 5, "dropped": 3})
        remarks = ("the process's children took more CPU time than it did, process 1234 most of all",)
        made = evolve(recording(self.snapshots(), 10, counters), note="the time was over", remarks=remarks)
        made = evolve(made, config=Config(pid=42, primitive="page_fault"))
        text = render_summary(made, width=width)
        assert [] == [line for line in text.splitlines() if len(line) > width]
        assert render_summary(made, width=1000).split() == text.split()

    def test_what_counted(self) -> None:
        """Nothing is said of all accesses; else which ones, and what is not seen."""
        configs = {
            Config(pid=42): [],
            Config(pid=42, primitive="page_fault"): [READS_UNSEEN],
            Config(pid=42, primitive="page_fault", write_only=True): ["only writes counted"],
            Config(pid=42, primitive="page_fault", cpus=(0, 1, 2, 5)): [
                "only accesses by CPUs 0-2,5 counted",
                READS_UNSEEN,
            ],
            Config(pid=42, primitive="page_fault", write_only=True, cpus=(3,), tids=(12,)): [
                "only writes by CPU 3 by thread 12 counted"
            ],
            Config(pid=42, primitive="page_fault", read_only=True): ["only reads counted", READS_UNSEEN],
            Config(pid=42, primitive="", tids=(12, 13)): ["only accesses by threads 12,13 counted"],
        }
        for config, lines in configs.items():
            made = evolve(recording(self.snapshots(), 10, self.COUNTERS), config=config)
            text = render_summary(made).splitlines()
            assert (
                lines
                == text[1 : text.index("accessed within an aggregation       4.0 MiB  median, by samples of regions")]
            )

    def test_of_how_much_faults_show_what(self) -> None:
        """Where reads fault, too; else the sentence about reads says it."""
        made = evolve(recording(self.snapshots(), 10), config=Config(pid=42, primitive="page_fault"))
        for observed, said in (
            (Observed(48 << 20, 3 << 20, 0), "48.0 MiB  writes only of 3.0 MiB"),
            (Observed(48 << 20, 0, 8192), "48.0 MiB  neither of 8.0 KiB"),
            (Observed(1 << 20, 0, 0), "1.0 MiB"),
        ):
            for reads in (True, False):
                counters = evolve(self.COUNTERS, faults_of_reads=reads, observed=observed)
                lines = render_summary(evolve(made, counters=counters)).splitlines()
                found = [line.split("of ", 1)[1].strip() for line in lines if line.startswith("faults show")]
                assert found == ([said] if reads else [])

    def test_reports(self) -> None:
        """Accepted ones, and all others that there are; nothing where there was none and none was expected."""
        reports = {"accepted": 12, "applied": 7, "filtered": 0, "late": 5, "dropped": 3}
        counters = evolve(self.COUNTERS, reports=reports)
        made = recording(self.snapshots(), 10, counters)
        assert "reports accepted                          12  applied 7, late 5, dropped 3\n" in render_summary(made)
        assert "faults lost" not in render_summary(made)
        assert "reports" not in render_summary(recording(self.snapshots(), 10, self.COUNTERS))
        made = evolve(made, config=Config(pid=42, primitive="page_fault"), counters=evolve(counters, faults_lost=9))
        assert "faults lost                                9\n" in render_summary(made)
        made = evolve(made, config=Config(pid=42, primitive=""), counters=self.COUNTERS)
        assert "reports accepted                           0\n" in render_summary(made)
        assert "samples unknown" not in render_summary(made)

    def test_other_processes_and_a_recording(self) -> None:
        """A line each, where they were asked for."""
        producers = {"producers": 1, "received": 20, "malformed": 2, "not_permitted": 0, "sent": 25, "dropped": 5}
        counters = evolve(self.COUNTERS, producers=producers, recorded={"written": 18, "lost": 0})
        text = render_summary(recording(self.snapshots(), 10, counters), width=100)
        assert "received from producers                   20  producers 1, malformed 2, sent 25, dropped 5\n" in text
        assert "reports recorded                          18\n" in text


class TestJson:
    """For programs."""

    def test_everything_is_there(self) -> None:
        """Config, snapshots with their regions, counters, summary."""
        snapshot = Snapshot.of(100.25, [(0x1000, 0x2000, 20, 3, 1)])
        text = "".join(render_json(recording([snapshot], 1.0, Counters(samples=10, reports={"accepted": 4}))))
        assert "\n" not in text
        document = json.loads(text)
        assert {"config", "started", "seconds", "note", "remarks", "snapshots", "counters", "summary"} <= set(document)
        assert [
            {
                "began": 0.0,
                "time": 0.25,
                "aggr_us": None,
                "use": None,
                "merged": 1,
                "regions": [
                    {
                        "start": 0x1000,
                        "end": 0x2000,
                        "nr_accesses": 20,
                        "age": 3,
                        "nr_unknown": 1,
                        "mean_accesses": 20,
                    }
                ],
            }
        ] == document["snapshots"]
        assert {"pid": 42, "ops": "vaddr", "sample_us": 5000, "max_nr_accesses": 20}.items() <= document[
            "config"
        ].items()
        assert {"accepted": 4} == document["counters"]["reports"]

    def test_accuracy_where_the_truth_is_known(self) -> None:
        """As much as the table for people says."""
        document = json.loads("".join(render_json(recording([], 1.0), Accuracy(0.5, 1.0, 3, (), 2, 1))))
        assert {
            "recall": 0.5,
            "precision": 1.0,
            "nr_judged": 3,
            "phases": [],
            "nr_moves": 2,
            "nr_moves_missed": 1,
        } == document["accuracy"]


class TestUse:
    """How much memory is in use, in the line, the summary and JSON."""

    USE = MemoryUse(
        100.2,
        Resident(200 * MIB, 40 * MIB, 8 * MIB),
        (
            WindowUse(1.0, 20 * MIB, 18 * MIB, 22 * MIB, 10 * MIB, 210 * MIB, 180 * MIB, 30 * MIB, 4000),
            WindowUse(10.0, 80 * MIB, 75 * MIB, 85 * MIB, 10 * MIB, 150 * MIB, 130 * MIB, 20 * MIB, 3000),
        ),
    )

    def test_a_line_names_the_windows(self) -> None:
        """Until the first one is over, it is about regions."""
        snapshot = Snapshot.of(100.5, [(LOW, LOW + 4 * MIB, 20, 0, 0)])
        expected = "    0.5 s  1 regions, hot 4.0 MiB; used 20.0 MiB in 1 s, 80.0 MiB in 10 s of 240.0 MiB in memory"
        assert expected == render_line(evolve(snapshot, use=self.USE), CONFIG, 100.0)
        for use in (None, MemoryUse(100.2, self.USE.resident)):
            line = render_line(evolve(snapshot, use=use), CONFIG, 100.0)
            assert "    0.5 s  1 regions of 4.0 MiB, accessed 4.0 MiB, hot 4.0 MiB" == line

    def test_the_summary_has_bounds_and_what_is_unknown(self) -> None:
        made = recording([], 10, Counters(use=self.USE, sample_us=15_000))
        lines = render_summary(made, width=120).splitlines()
        assert [
            f"in memory{240:29}.0 MiB  200.0 MiB anonymous, 40.0 MiB of files; besides 8.0 MiB swapped",
            "used within 1 s                     20.0 MiB  95 %: 18.0 MiB to 22.0 MiB, by 4000 pages",
            "used within 10 s                    80.0 MiB  95 %: 75.0 MiB to 85.0 MiB, by 3000 pages",
            "idle for 10 s                      150.0 MiB  130.0 MiB anonymous, 20.0 MiB of files",
            "unknown                             10.0 MiB  accesses cannot be observed",
        ] == lines[1:6]
        assert "sampling interval, at the end          15 ms  tuned; aggregation interval 300 ms" in lines

    def test_a_run_that_was_too_short_says_so(self) -> None:
        made = recording([], 0.5, Counters(use=MemoryUse(100.2)))
        assert "used within 1 s                      unknown  no window was long enough" in render_summary(made)

    def test_json(self) -> None:
        snapshot = evolve(Snapshot.of(100.5, []), use=self.USE, aggr_us=300_000)
        document = json.loads("".join(render_json(recording([snapshot], 1.0, Counters(use=self.USE)))))
        [found] = document["snapshots"]
        assert found["use"] == document["counters"]["use"]
        assert (300_000, 240 * MIB, 8 * MIB) == (
            found["aggr_us"],
            found["use"]["resident_bytes"],
            found["use"]["swapped_bytes"],
        )
        assert [(1.0, 20 * MIB), (10.0, 80 * MIB)] == [
            (window["seconds"], window["accessed_bytes"]) for window in found["use"]["windows"]
        ]


class TestComparison:
    """Found next to what is true."""

    def test_a_line_for_each_place(self) -> None:
        """Truth, found bytes, recall and precision, delay where it was a move."""
        phases = (
            PhaseResult(101.0, (LOW, LOW + 20 * MIB), 20.5 * MIB, 0.99, 0.98, None),
            PhaseResult(105.0, (LOW + 20 * MIB, LOW + 40 * MIB), 19 * MIB, 0.95, 1.0, 0.21),
        )
        lines = render_comparison(Accuracy(0.97, 0.99, 40, phases, 1, 0), 100.0).splitlines()
        assert ["0.990", "0.980"] == lines[2].split()[-2:]
        assert ["19.0", "MiB", "0.950", "1.000", "0.21", "s"] == lines[3].split()[-6:]
        assert max(map(len, lines)) <= 84
        assert "mean of 40 snapshots: recall 0.970, precision 0.990" == lines[4]
        assert "1 moves, 0 missed, seen after 0.21 s (median), 0.21 s at most" == lines[5]

    def test_nothing_to_compare_is_said(self) -> None:
        """A run that was too short has no figures."""
        assert "too short" in render_comparison(Accuracy(None, None, 0, (), 0, 0), 100.0)
