# SPDX-License-Identifier: GPL-2.0-only
"""Every answer that Linux 7.3 gave to a write, replayed: path, what was written, errno, what the file said afterwards.

The table is data/errors-7.3.tsv. Its rows come in sections, whose names say in which state they were measured; each
section is set up as its name says.
"""

from __future__ import annotations

import posixpath
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kdamon.core import damon_add_target, damon_new_ctx, damon_new_target, damon_select_ops, damon_start, damon_stop
from kdamon.damon import damon_ops_id
from kdamon_fs.abi import DEFAULT_ABI

KDAMONDS = "/admin/kdamonds"
KDAMOND = f"{KDAMONDS}/0"
CONTEXT = f"{KDAMOND}/contexts/0"
STATE = f"{KDAMOND}/state"
SAMPLE, AGGR = (f"{CONTEXT}/monitoring_attrs/intervals/{name}_us" for name in ("sample", "aggr"))
STATS = f"{CONTEXT}/schemes/0/stats"
REGIONS = f"{CONTEXT}/schemes/0/tried_regions"

COUNTED = "rows about the tree agree"


class Row(NamedTuple):
    """A line of the table."""

    path: str
    written: str
    result: str
    back: str
    section: str

    @property
    def data(self) -> bytes:
        """What was written, as bytes."""
        long = re.fullmatch(r"(.)(.*)\.\.\.\((\d+) bytes\)", self.written)
        if long is None:
            return self.written.encode("latin-1").decode("unicode_escape").encode("latin-1")
        first, rest, size = long[1], long[2], int(long[3])
        filled = (first + rest[:1] * size)[:size]
        if first == "0":
            # The table shows the beginning only; it was a hundred zeros and a 7, or a page of them with or without a 1.
            last = {101: "7", 4096: "1" if self.result == "OK" and self.back != "0\\n" else "0"}.get(size, "0")
            filled = filled[:-1] + last
        return filled.encode()


def escaped(text: str) -> str:
    """A content as the table writes it."""
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    size = len(text.encode()) - text.count("\\n")
    return f"{text[:24]}...({size} bytes)" if size > 200 else text


def _read() -> list[Row]:
    rows = []
    for line in (Path(__file__).parent / "data/errors-7.3.tsv").read_text().splitlines():
        if not line.startswith("#"):
            path, written, result, back, section, _milliseconds = line.split("\t")
            rows.append(Row(f"/admin/{path}", written, result, back, section))
    return rows


ROWS = _read()


def rows_of(*sections: str) -> list[Row]:
    """The rows whose section begins with one of ``sections``, in the table's order."""
    return [row for row in ROWS if row.section.startswith(sections)]


def settings(section: str) -> list[tuple[str, str, bool]]:
    """What a section's name says was set: path below the context, value, whether that was refused."""
    inside = re.search(r" \[(.*)\]$", section)
    pairs = re.findall(r"(\S+?)=((?: /)?[^ ]*)", inside[1]) if inside else []
    return [
        (path, value.removesuffix("(EINVAL)").replace("\\n", "\n"), value.endswith("(EINVAL)"))
        for path, value in pairs
        if path not in ("ops", "targets")
    ]


@pytest.fixture
def count(rows: Counter[str]) -> Callable[[Row], None]:
    """Counts a row as replayed."""

    def add(row: Row) -> None:
        rows[COUNTED] += 1

    return add


def put(session: Any, path: str, value: str, refused: bool = False) -> None:
    """Write ``value`` to ``path`` below the context; the numbered directory that it is in is made before."""
    path = posixpath.normpath(f"{CONTEXT}/{path}")
    names = path.split("/")
    for place, name in enumerate(names):
        if name.isdecimal():
            directory = "/".join(names[:place])
            nr_file = next(entry for entry in session.tree.listdir(directory) if entry.startswith("nr_"))
            if int(session.read(f"{directory}/{nr_file}")) <= int(name):
                session.put(f"{directory}/{nr_file}", int(name) + 1)
    assert session.write(path, value) == ("EINVAL" if refused else "OK"), f"{value} > {path}"


def nr_needed(wanted: list[tuple[str, str, bool]], directory: str) -> int:
    """How many directories the paths in ``wanted`` need in ``directory``."""
    places = (
        path.removeprefix(f"{directory}/").split("/")[0] for path, *_ in wanted if path.startswith(f"{directory}/")
    )
    return max((int(place) + 1 for place in places if place.isdecimal()), default=0)


def stage(session: Any, section: str) -> None:
    """Set what the section's name says."""
    wanted = settings(section)
    # A later, larger number would reset the directories that are set already.
    for directory, nr_file in (("targets/0/regions", "nr_regions"), ("schemes/0/dests", "nr_dests")):
        if number := nr_needed(wanted, directory):
            put(session, f"{directory}/{nr_file}", str(number))
    for path, value, refused in wanted:
        put(session, path, value, refused)


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that is sure to come."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.005)


def state_is(session: Any, state: str) -> Callable[[], bool]:
    return lambda: session.read(STATE) == f"{state}\n"


def check_state(session: Any, back: str) -> None:
    """Compare with a read back like "state=on pid=N"; a kdamond that is to end by itself gets the time to."""
    now = re.split(";| later ", back, maxsplit=1)[0]
    wanted = dict(field.split("=") for field in now.split())
    if wanted["state"] == "off":
        until(state_is(session, "off"), "the end of the kdamond")
    assert session.read(STATE) == wanted["state"] + "\n"
    if "pid" in wanted:
        pid = session.read(f"{KDAMOND}/pid")
        assert pid == "-1\n" if wanted["pid"] == "-1" else int(pid) > 0


# Values written while nothing runs.


def one_of_all(session: Any) -> None:
    """One directory of each kind."""
    session.context()
    for directory, nr_file in (
        ("monitoring_attrs/probes", "nr_probes"),
        ("monitoring_attrs/probes/0/filters", "nr_filters"),
        ("targets", "nr_targets"),
        ("targets/0/regions", "nr_regions"),
        ("schemes", "nr_schemes"),
        ("schemes/0/filters", "nr_filters"),
        ("schemes/0/core_filters", "nr_filters"),
        ("schemes/0/ops_filters", "nr_filters"),
        ("schemes/0/dests", "nr_dests"),
        ("schemes/0/quotas/goals", "nr_goals"),
    ):
        session.put(f"{CONTEXT}/{directory}/{nr_file}", 1)


VALUES = ("values/off", "read-only", "nr_*/size")


@pytest.mark.parametrize("abi", ["7.3", DEFAULT_ABI])
@pytest.mark.parametrize("path", dict.fromkeys(row.path for row in rows_of(*VALUES)))
def test_a_file_takes_refuses_and_shows_values_as_the_kernels(
    make_session: Any, count: Callable[[Row], None], path: str, abi: str
) -> None:
    """The errno of every write, the value read back; a refused one leaves what was there."""
    session = make_session(abi)
    one_of_all(session)
    before = session.read(path)
    for row in rows_of(*VALUES):
        if row.path != path:
            continue
        result = session.write(path, row.data)
        after = session.read(path)
        what = f"{row.written!r} > {path}"
        assert (result, what) == (row.result, what)
        if path.endswith("avail_operations"):
            assert "vaddr\nfvaddr\npaddr\n" + ("" if abi == "7.3" else "reports\n") == after
        elif result in ("OK", "ENOMEM") or result.startswith("short"):
            # An empty write changes nothing, and what was there may come from a row that is not in the table.
            assert escaped(after) == (row.back if row.written else escaped(before)), what
        else:
            assert after == before, what
        before = after
        if abi == "7.3":
            count(row)


def test_directories_are_new_after_a_write_of_their_number(session: Any, count: Callable[[Row], None]) -> None:
    """The same number again resets what was in them; the table read the action of scheme 0."""
    (row,) = rows_of("resize same number")
    one_of_all(session)
    session.put(f"{CONTEXT}/schemes/nr_schemes", 2)
    session.put(f"{CONTEXT}/schemes/0/action", "cold")
    assert session.write(row.path, row.data) == row.result
    assert escaped(session.read(f"{CONTEXT}/schemes/0/action")) == row.back
    count(row)


@pytest.mark.parametrize("row", rows_of("state/"), ids=lambda row: f"{row.section}: {row.written[:40]}")
def test_commands_before_anything_was_started(session: Any, count: Callable[[Row], None], row: Row) -> None:
    """Unknown ones, known ones, and without a context."""
    if "nr_contexts=0" in row.section:
        session.put(f"{KDAMONDS}/nr_kdamonds", 1)
    else:
        session.monitor()
    assert session.write(row.path, row.data) == row.result
    assert escaped(session.read(row.path)) == row.back
    count(row)


# Turning on.

DEAD = "999999"
PIDS = {"unset": "0", "alive": "150", "zombie": "150", "ignored by paddr": "0"}


def prepare_on(session: Any, section: str) -> None:
    """The context that a section "on/..." was measured with."""
    session.context()
    operations, targets = re.search(r"\[ops=(\w+) targets=(\d)", section).groups()
    session.put(f"{CONTEXT}/operations", operations)
    session.put(f"{CONTEXT}/targets/nr_targets", targets)
    special = re.match(r"on/pid(?:\(fvaddr\))? (.+?) \[", section)
    nr_regions = re.search(r"nr_regions=(\d) \[", section)
    for place in range(int(targets)):
        pid = PIDS.get(special[1], special[1]) if special else (DEAD if "pid dead" in section else "150")
        session.put(f"{CONTEXT}/targets/{place}/pid_target", pid)
        if nr_regions:
            session.put(f"{CONTEXT}/targets/{place}/regions/nr_regions", nr_regions[1])
    if "schemes/0" in section:
        session.scheme_for_all()
    stage(session, section)


@pytest.mark.parametrize("row", rows_of("on/"), ids=lambda row: row.section[3:].replace("monitoring_attrs/", ""))
def test_turning_on(session: Any, count: Callable[[Row], None], row: Row) -> None:
    """What can be started, and what cannot."""
    prepare_on(session, row.section)
    assert session.write(row.path, row.data) == row.result
    check_state(session, row.back)
    count(row)


# Commands while it runs, and afterwards.


def replay(session: Any, count: Callable[[Row], None], rows: Iterator[Row] | list[Row]) -> None:
    """Write each row and compare errno and what the file says."""
    for row in rows:
        assert (row, session.write(row.path, row.data)) == (row, row.result)
        if row.back.startswith("state="):
            check_state(session, row.back)
        else:
            assert (row, escaped(session.read(row.path))) == (row, row.back)
        count(row)


def test_commands_of_a_running_kdamond(session: Any, count: Callable[[Row], None]) -> None:
    """In the order of the table: while it is on, without its context directory, after off, after a new number."""
    session.monitor()
    session.put(f"{CONTEXT}/schemes/0/filters/nr_filters", 0)
    assert "OK" == session.state("on")
    order = (
        "running/on again",
        "running/unknown keyword",
        "running/command",
        "running/nr_kdamonds",
        "running/write any file",
        "running/command with nr_contexts=0",
        "running/off with nr_contexts=0",
        "was on, now off, nr_contexts=0",
    )
    for section in order:
        replay(
            session,
            count,
            [row for row in ROWS if row.section.removesuffix(" (takes effect at commit only)") == section],
        )
    session.put(f"{KDAMOND}/contexts/nr_contexts", 1)
    *commands, resize = [row for row in ROWS if row.section == "was on, now off"]
    replay(session, count, commands)
    assert session.write(resize.path, resize.data) == resize.result
    # The table read the number of contexts of the new kdamond.
    assert escaped(session.read(f"{KDAMOND}/contexts/nr_contexts")) == resize.back
    count(resize)
    replay(session, count, rows_of("was on, then nr_kdamonds rewritten"))


def test_directories_that_changed_while_it_runs(session: Any, count: Callable[[Row], None]) -> None:
    """Fewer or more scheme directories than schemes, and goals of no effect, are no errors."""
    session.monitor()
    assert "OK" == session.state("on")
    session.put(f"{CONTEXT}/schemes/0/quotas/goals/nr_goals", 1)
    replay(session, count, [row for row in ROWS if row.section == "running/goal"])
    session.put(f"{CONTEXT}/schemes/0/quotas/goals/nr_goals", 0)
    replay(session, count, rows_of("running/goal nr_goals=0"))
    session.put(f"{CONTEXT}/schemes/nr_schemes", 0)
    replay(session, count, rows_of("running/nr_schemes=0"))
    session.put(f"{CONTEXT}/schemes/nr_schemes", 3)
    replay(session, count, rows_of("running/nr_schemes=3 of 1"))


@pytest.mark.parametrize("row", rows_of("inactive"), ids=lambda row: f"{row.section}: {row.written}")
def test_commands_while_watermarks_keep_all_schemes_inactive(
    session: Any, count: Callable[[Row], None], row: Row
) -> None:
    """All but walks, which are canceled, are answered when the watermarks are looked at."""
    session.monitor()
    for name, value in (
        ("metric", "free_mem_rate"),
        ("interval_us", 50_000),
        ("high", 300),
        ("mid", 200),
        ("low", 100),
    ):
        session.put(f"{CONTEXT}/schemes/0/watermarks/{name}", value)
    assert "OK" == session.state("on")
    replay(session, count, [row])


@pytest.mark.parametrize("row", rows_of("commit: "), ids=lambda row: row.section)
def test_commit(session: Any, count: Callable[[Row], None], row: Row) -> None:
    """What can be changed while it runs, and that it goes on where something cannot."""
    session.monitor()
    if "ops paddr->" in row.section:
        session.put(f"{CONTEXT}/operations", "paddr")
    assert "OK" == session.state("on")
    stage(session, row.section)
    assert session.write(row.path, row.data) == row.result
    now, later = (state.split("=")[1] for state in row.back.split(" later "))
    if later == "on":
        time.sleep(0.05)
    # What leaves no target to monitor is off when the write returns.
    assert (now == "off") == (session.read(STATE) == "off\n")
    check_state(session, f"state={later}")
    count(row)


def test_two_kdamonds(session: Any, count: Callable[[Row], None]) -> None:
    """Both may monitor the same process; one goes off without the other."""
    session.put(f"{KDAMONDS}/nr_kdamonds", 2)
    for kdamond in (f"{KDAMONDS}/0", f"{KDAMONDS}/1"):
        session.put(f"{kdamond}/contexts/nr_contexts", 1)
        session.put(f"{kdamond}/contexts/0/targets/nr_targets", 1)
        session.put(f"{kdamond}/contexts/0/targets/0/pid_target", 150)
        session.put(f"{kdamond}/contexts/0/schemes/nr_schemes", 1)
    assert "OK" == session.state("on")
    for row in rows_of("two kdamonds"):
        assert session.write(row.path, row.data) == row.result
        assert "state=" + session.read(row.path).strip() == row.back.removesuffix(" ") or "pid" in row.back
        count(row)
    assert "on\n" == session.read(STATE)


CONCURRENT = (
    r"concurrent: (\w+) then (\w+) 30ms later; "
    r"meanwhile read state=(\S+) pid=(\S+) write nr_kdamonds=(\w+) nr_schemes=(\w+)"
)


@pytest.mark.parametrize("section", dict.fromkeys(row.section for row in rows_of("concurrent: ")))
def test_commands_at_the_same_time(session: Any, count: Callable[[Row], None], section: str) -> None:
    """A command that waits for a walk of regions holds the lock, which others only try; short ones ended before."""
    first, second, state, pid, nr_kdamonds, nr_schemes = re.fullmatch(CONCURRENT, section).groups()
    session.monitor()
    session.put(AGGR, 1_000_000 if "tried" in first else 100_000)
    assert "OK" == session.state("on")
    results: dict[str, str] = {}
    thread = threading.Thread(target=lambda: results.update(first=session.state(first)))
    thread.start()
    if "tried" in first:
        until(lambda: session.read(STATE).strip() == state, "the walk")
    else:
        thread.join()
    answers = (session.read(STATE).strip().removesuffix("\n"), session.read(f"{KDAMOND}/pid").strip())
    assert answers[0] == state
    assert answers[1] == pid or int(answers[1]) > 0
    assert session.write(f"{KDAMONDS}/nr_kdamonds", "1") == nr_kdamonds
    results["second"] = session.state(second)
    assert session.write(f"{CONTEXT}/schemes/nr_schemes", "1") == nr_schemes
    thread.join()
    for row in (row for row in ROWS if row.section == section):
        which = "first" if row.written == first and row.result == "OK" else "second"
        assert results[which] == row.result
        count(row)
    check_state(session, "state=on")


def test_a_target_that_ends(session: Any, count: Callable[[Row], None]) -> None:
    """Not reaped it still counts; gone, the kdamond ends by itself and cannot be turned on again."""
    session.monitor()
    assert "OK" == session.state("on")
    (unreaped,) = rows_of("target killed, not reaped")
    assert "state=" + session.read(unreaped.path).strip() == unreaped.back
    count(unreaped)
    session.machine.processes[150].exit()
    until(state_is(session, "off"), "the end of the kdamond")
    assert "OK" == session.state("off")
    replay(session, count, rows_of("target exited"))


def test_another_exclusive_user(session: Any, count: Callable[[Row], None]) -> None:
    """Beside an exclusive user of DAMON nothing starts."""
    ctx = damon_new_ctx()
    damon_select_ops(ctx, damon_ops_id.DAMON_OPS_VADDR)
    target = damon_new_target()
    target.pid, target.task = 1, session.machine.get_task(1)
    damon_add_target(ctx, target)
    session.monitor()
    damon_start([ctx], exclusive=True)
    try:
        replay(session, count, rows_of("DAMON_RECLAIM running", "module/damon_lru_sort running"))
    finally:
        damon_stop([ctx])
    for row in (row for row in ROWS if row.section in ("x", "")):
        assert "OK" == session.state("on")
        replay(session, count, [row])


# Commits that are tried on a copy first.

STAGED = {
    "intervals_goal bad": [("monitoring_attrs/intervals/intervals_goal/aggrs", "3")],
    "nr_schemes=0 then 1": [("schemes/nr_schemes", "0"), ("schemes/nr_schemes", "1")],
    "nr_targets=0": [("targets/nr_targets", "0")],
    "obsolete first of two": [("targets/0/obsolete_target", "Y")],
    "ops to paddr": [("operations", "paddr")],
}
DRY_RUN = r"dry run: (?:same again: |off after: )?(.*?)(?: \[.*\])?$"


def intervals(session: Any) -> str:
    """What the table shows of the intervals: the answer to their update, and the files."""
    answer = session.state("update_tuned_intervals")
    return f"{answer} sample_us={session.read(SAMPLE).strip()} aggr_us={session.read(AGGR).strip()}"


@pytest.mark.parametrize("name", dict.fromkeys(re.match(DRY_RUN, row.section)[1] for row in rows_of("dry run: ")))
def test_a_commit_that_fails_changes_nothing(session: Any, count: Callable[[Row], None], name: str) -> None:
    """All of its parameters or none; the same commit again; off afterwards."""
    session.monitor()
    if name == "obsolete first of two":
        session.put(f"{CONTEXT}/targets/nr_targets", 2)
        for place, pid in enumerate((150, 141)):
            session.put(f"{CONTEXT}/targets/{place}/pid_target", pid)
    if "(paddr)" in name:
        session.put(f"{CONTEXT}/operations", "paddr")
    assert "OK" == session.state("on")
    rows = [row for row in rows_of("dry run: ") if re.match(DRY_RUN, row.section)[1] == name]
    before = intervals(session)
    for row in rows[:1]:
        if "[../" in row.section:
            session.put(f"{KDAMOND}/contexts/nr_contexts", 0)
        elif name in STAGED:
            for path, value in STAGED[name]:
                put(session, path, value)
        elif "off after" not in row.section and "same again" not in row.section:
            stage(session, row.section)
    first = session.state("commit")
    if first == "OK" and any("state=off" in row.back for row in rows if "off after" not in row.section):
        until(state_is(session, "off"), "the end of the kdamond")
    for row in rows:
        if "off after" in row.section:
            assert session.state("off") == row.result
        elif "same again" in row.section:
            assert session.state("commit") == row.result
        else:
            assert first == row.result
            assert f"before {before}" in row.back
            after = intervals(session)
            measured = re.search(r"; after ([^;]*)", row.back)[1]
            assert after == measured
        check_state(session, row.back)
        count(row)


# What runs on by itself: pauses, refreshes, limits.


def snapshots(session: Any) -> int:
    """How often the scheme was applied, updated unless refresh_ms does that."""
    if session.read(f"{KDAMOND}/refresh_ms") == "0\n":
        assert "OK" == session.state("update_schemes_stats")
    return int(session.read(f"{STATS}/nr_snapshots"))


def observed(row: Row) -> list[int]:
    """The numbers of snapshots that the table saw."""
    return [int(number) for number in re.findall(r"nr_snapshots=(\d+)", row.back)]


def check_growth(session: Any, row: Row, count: Callable[[Row], None], pause: float = 0.25) -> None:
    """The number of snapshots grows if it grew in the table, and stands still if it stood still."""
    first, last = observed(row)
    before = snapshots(session)
    if last > first:
        until(lambda: snapshots(session) > before, row.section)
    else:
        time.sleep(pause)
        assert snapshots(session) == before, row.section
    count(row)


def test_pause(session: Any, count: Callable[[Row], None]) -> None:
    """It takes a commit to pause and to go on; a paused kdamond answers everything but walks."""
    session.monitor()
    assert "OK" == session.state("on")
    check_growth(session, *rows_of("pause: before"), count)
    replay(session, count, [row for row in ROWS if row.section == "pause"])
    check_growth(session, *rows_of("pause: Y written"), count)
    assert "OK" == session.state("commit")
    replay(session, count, rows_of("paused/command"))
    session.put(f"{CONTEXT}/pause", "N")
    replay(session, count, rows_of("pause: commit N"))
    assert "OK" == session.state("off")
    session.put(f"{CONTEXT}/pause", "Y")
    assert "OK" == session.state("on")
    replay(session, count, rows_of("pause: Y at on"))


def test_refresh(session: Any, count: Callable[[Row], None]) -> None:
    """Results update by themselves while refresh_ms is not 0, from the moment that it is written."""
    session.monitor()
    assert "OK" == session.state("on")
    (never,) = rows_of("refresh_ms: 0")
    time.sleep(0.15)
    assert int(session.read(f"{STATS}/nr_snapshots")) == observed(never)[0]
    count(never)
    replay(session, count, rows_of("refresh_ms: 100 while running"))
    seen = 0
    for row in (row for row in ROWS if row.section == "refresh_ms: 100"):
        until(lambda: int(session.read(f"{STATS}/nr_snapshots")) > seen, "an update")  # noqa: B023
        seen = int(session.read(f"{STATS}/nr_snapshots"))
        count(row)
    stop, off = (row for row in ROWS if row.section == "refresh_ms")
    replay(session, count, [stop])
    (still,) = rows_of("refresh_ms: back to 0")
    assert observed(still)[0] == observed(still)[1]

    def stands_still() -> bool:
        before = session.read(f"{STATS}/nr_snapshots")
        time.sleep(0.25)
        return bool(session.read(f"{STATS}/nr_snapshots") == before)

    # The last update may have been under way.
    assert stands_still() or stands_still()
    count(still)
    replay(session, count, [off])


def test_a_limit_of_snapshots(session: Any, count: Callable[[Row], None]) -> None:
    """The scheme stops at exactly the limit, is still walked, and goes on when there is none."""
    session.monitor()
    session.put(f"{STATS}/max_nr_snapshots", 5)
    assert "OK" == session.state("on")
    (limited,), (reached,), (unlimited,) = (
        rows_of(f"max_nr_snapshots: {what}") for what in ("5 committed", "reached", "0 committed")
    )
    until(lambda: snapshots(session) >= 5, "the limit")
    time.sleep(0.25)
    assert [snapshots(session)] * 2 == observed(limited)
    count(limited)
    replay(session, count, [reached])
    session.put(f"{STATS}/max_nr_snapshots", 0)
    assert "OK" == session.state("commit")
    check_growth(session, unlimited, count)


def test_tuned_intervals_are_those_of_the_kdamond(session: Any, count: Callable[[Row], None]) -> None:
    """The command overwrites the files while it is on, and leaves them alone afterwards."""
    session.monitor()
    assert "OK" == session.state("on")
    session.put(SAMPLE, 7000)
    running, after_off = (row for row in ROWS if row.section.startswith("tuned"))
    replay(session, count, [running])
    assert "5000\n" == session.read(SAMPLE)
    assert "OK" == session.state("off")
    session.put(SAMPLE, 7777)
    assert session.write(after_off.path, after_off.data) == after_off.result
    assert escaped(session.read(SAMPLE)) == after_off.back
    count(after_off)


@pytest.mark.parametrize("section", dict.fromkeys(row.section for row in rows_of("latency")))
def test_commands_at_other_intervals(session: Any, count: Callable[[Row], None], section: str) -> None:
    """All of them are answered also at long intervals, here a twentieth of the table's."""
    sample, aggr = (int(number) // 20 for number in re.findall(r"=(\d+)", section))
    session.monitor()
    session.put(SAMPLE, sample)
    session.put(AGGR, aggr)
    assert "OK" == session.state("on")
    replay(session, count, rows_of(section))


def test_tried_regions(session: Any, count: Callable[[Row], None]) -> None:
    """Their files, that they cannot be written, what removes them, and that they outlive off."""
    session.monitor()
    assert "OK" == session.state("on")
    assert "OK" == session.state("update_schemes_tried_regions")
    names = session.tree.listdir(REGIONS)
    assert sorted(names) == sorted(["total_bytes", *(str(i) for i in range(len(names) - 1))])
    for row in rows_of("tried_regions after update"):
        assert {"0", "total_bytes"} <= set(row.back.split()) & set(names)
        count(row)
    for row in (row for row in ROWS if row.section in ("tried_regions", "tried_regions write") and "/0/" in row.path):
        if not row.path.startswith(REGIONS):
            continue
        if row.written != "(read)":
            assert session.write(row.path, row.data) == row.result
        content = session.read(row.path)
        assert content.rstrip("\n").isdecimal()
        if row.path.endswith(("nr_accesses", "sz_filter_passed")):
            assert escaped(content) == row.back
        count(row)
    total = sum(
        int(session.read(f"{REGIONS}/{i}/end")) - int(session.read(f"{REGIONS}/{i}/start"))
        for i in range(len(names) - 1)
    )
    assert int(session.read(f"{REGIONS}/total_bytes")) == total
    replay(session, count, rows_of("tried_bytes keeps dirs?"))
    (bytes_only,) = rows_of("tried_regions after tried_bytes")
    assert ["total_bytes"] == session.tree.listdir(REGIONS)
    assert int(session.read(bytes_only.path)) == total
    count(bytes_only)
    clear, off, on = (row for row in ROWS if row.section == "tried_regions" and row.path == STATE)
    replay(session, count, [clear])
    assert "0\n" == session.read(f"{REGIONS}/total_bytes")
    assert "OK" == session.state("update_schemes_tried_regions")
    replay(session, count, [off])
    (kept,) = rows_of("after off (kept)")
    assert "0" in session.tree.listdir(kept.path)
    count(kept)
    replay(session, count, [on])
    fresh, updated = rows_of("stats after on again")
    assert escaped(session.read(fresh.path)) == fresh.back
    count(fresh)
    until(lambda: session.state("update_schemes_stats") == "OK" and session.read(updated.path) != "0\n", "a snapshot")
    count(updated)


REPLAYED = (
    *VALUES,
    *(
        "resize same number",
        "state/",
        "on/",
        "running/",
        "was on, ",
        "commit: ",
        "inactive ",
        "two kdamonds",
        "concurrent: ",
    ),
    *("target killed", "target exited", "DAMON_RECLAIM ", "module/damon_lru_sort ", "dry run: ", "pause", "refresh_ms"),
    *("max_nr_snapshots: ", "tuned", "latency ", "tried_", "after off (kept)", "stats after on again"),
)


def test_no_row_of_the_table_is_left_out() -> None:
    """Each is in a section that a test above goes through ("x" and no name: some kdamond was turned off)."""
    left = {row.section for row in ROWS if not row.section.startswith(REPLAYED)}
    assert {"x", ""} == left
    assert 3929 == len(ROWS)
