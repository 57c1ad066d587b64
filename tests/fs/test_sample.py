# SPDX-License-Identifier: GPL-2.0-only
"""monitoring_attrs/sample: what its files take and answer, and that monitoring goes by them."""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from kdamon.kernel import VirtualClock
from kdamon.mm.sim.machine import SimMachine
from kdamon.reports.deliver import report_accesses
from kdamon.reports.record import report_array
from kdamon_fs import sysfs_sample

KDAMOND = "/admin/kdamonds/0"
CONTEXT = f"{KDAMOND}/contexts/0"
SAMPLE = f"{CONTEXT}/monitoring_attrs/sample"
FILTERS = f"{SAMPLE}/filters"
COUNTERS = ("accepted", "applied", "ineligible", "filtered", "straddling", "outside", "late", "dropped", "pending")
MEBI = 1 << 20
CPUS = 4


@pytest.fixture
def session(make_session: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The newest tree, with one context, on a machine of four CPUs."""
    monkeypatch.setattr(sysfs_sample, "nr_cpu_ids", lambda: CPUS)
    made = make_session("kdamon")
    made.context()
    return made


class _RealClock(VirtualClock):
    """Simulated processes in a tree are monitored in real time."""

    def now(self) -> int:
        return time.monotonic_ns()


def test_the_directory_is_in_the_newest_tree_only(make_session: Callable[..., Any]) -> None:
    """And with it the operations set for reports."""
    for abi, there in (("7.3", False), ("7.4", False), ("kdamon", True), ("next", True)):
        made = make_session(abi)
        made.context()
        assert ("sample" in made.tree.listdir(f"{CONTEXT}/monitoring_attrs")) == there
        assert ("reports\n" in made.read(f"{CONTEXT}/avail_operations")) == there
        assert made.write(f"{CONTEXT}/operations", "reports") == ("OK" if there else "EINVAL")


def test_the_files_and_their_modes(session: Any) -> None:
    """As the development tree has them; reports and density are kdamon's own."""
    session.put(f"{FILTERS}/nr_filters", 1)
    listed = {
        path: oct(session.tree.getattr(f"{SAMPLE}/{path}")["st_mode"] & 0o777)
        for directory in ("", "primitives/", "filters/", "filters/0/", "reports/")
        for path in (f"{directory}{name}" for name in session.tree.listdir(f"{SAMPLE}/{directory}"))
    }
    assert listed == {
        **dict.fromkeys(("primitives", "filters", "reports", "filters/0"), "0o755"),
        **dict.fromkeys(("density", "primitives/page_table", "primitives/page_fault", "filters/nr_filters"), "0o600"),
        **{f"filters/0/{name}": "0o600" for name in ("type", "matching", "allow", "cpumask", "tid_arr")},
        **{f"reports/{name}": "0o400" for name in COUNTERS},
    }


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("density", "N\n"),
        ("primitives/page_table", "Y\n"),
        ("primitives/page_fault", "N\n"),
        ("filters/nr_filters", "1\n"),
        ("filters/0/type", "cpumask\n"),
        ("filters/0/matching", "N\n"),
        ("filters/0/allow", "N\n"),
        ("filters/0/cpumask", "\n"),
        ("filters/0/tid_arr", "\n"),
        *((f"reports/{name}", "0\n") for name in COUNTERS),
    ],
)
def test_what_a_new_directory_says(session: Any, path: str, content: str) -> None:
    """Before anything was written, and before a kdamond was started."""
    session.put(f"{FILTERS}/nr_filters", 1)
    assert session.read(f"{SAMPLE}/{path}") == content


BOOLEANS = ("density", "primitives/page_table", "primitives/page_fault", "filters/0/matching", "filters/0/allow")
MANY = ",".join(str(100_000 + i) for i in range(500))


@pytest.mark.parametrize(
    ("path", "written", "result", "content"),
    [
        *((path, "y", "OK", "Y\n") for path in BOOLEANS),
        *((path, "N\n", "OK", "N\n") for path in BOOLEANS),
        *((path, "1\n", "OK", "Y\n") for path in BOOLEANS),
        *((path, "off", "OK", "N\n") for path in BOOLEANS),
        *((path, "2", "EINVAL", None) for path in BOOLEANS),
        *((path, "\n", "EINVAL", None) for path in BOOLEANS),
        ("filters/0/type", "threads\n", "OK", "threads\n"),
        ("filters/0/type", "write", "OK", "write\n"),
        ("filters/0/type", "cpumask", "OK", "cpumask\n"),
        ("filters/0/type", "Write", "EINVAL", None),
        ("filters/0/type", "anon", "EINVAL", None),
        ("filters/0/type", "\n", "EINVAL", None),
        ("filters/nr_filters", "-1", "EINVAL", None),
        ("filters/nr_filters", "x", "EINVAL", None),
        ("filters/nr_filters", "2147483648", "ERANGE", None),
        ("filters/nr_filters", "2000000000", "ENOMEM", "0\n"),
        ("filters/nr_filters", "0x2\n", "OK", "2\n"),
        ("filters/0/cpumask", "0", "OK", "0\n"),
        ("filters/0/cpumask", "all\n", "OK", f"0-{CPUS - 1}\n"),
        ("filters/0/cpumask", "N", "OK", f"{CPUS - 1}\n"),
        ("filters/0/cpumask", "\n", "OK", "\n"),
        ("filters/0/cpumask", f"{CPUS}", "ERANGE", None),
        ("filters/0/cpumask", f"0-{CPUS}", "ERANGE", None),
        ("filters/0/cpumask", "0-", "EINVAL", None),
        ("filters/0/cpumask", "4294967296", "EOVERFLOW", None),
        ("filters/0/tid_arr", "12,13\n", "OK", "12,13\n"),
        ("filters/0/tid_arr", "20-22", "OK", "20,21,22\n"),
        ("filters/0/tid_arr", "12 13", "OK", "12\n"),
        ("filters/0/tid_arr", "\n", "ENOENT", None),
        ("filters/0/tid_arr", "self", "ENOENT", None),
        ("filters/0/tid_arr", "1-1048577", "ENOMEM", None),
        ("filters/0/tid_arr", MANY, "OK", f"{MANY[:2047]}\n"),
    ],
)
def test_what_the_files_take(session: Any, path: str, written: str, result: str, content: str | None) -> None:
    """Answer and content afterwards; what is refused changes nothing, but for a number of directories."""
    session.put(f"{FILTERS}/nr_filters", 1)
    before = session.read(f"{SAMPLE}/{path}")
    assert session.write(f"{SAMPLE}/{path}", written) == result
    assert session.read(f"{SAMPLE}/{path}") == (before if content is None else content)


def test_the_number_of_filters_waits_for_no_command(session: Any) -> None:
    """EBUSY while a command holds the tree's lock."""
    assert session.tree.acquire()
    try:
        assert "EBUSY" == session.write(f"{FILTERS}/nr_filters", "1")
    finally:
        session.tree.release()


# Monitoring.


class Process:
    """A simulated process in real time: CPU 0, thread 11 write A; CPU 1, thread 12 write B and read C."""

    pid = 160
    a = (0x1000_0000, 0x1000_0000 + 8 * MEBI)
    b = (a[1] + 8 * MEBI, a[1] + 16 * MEBI)
    c = (b[1] + 8 * MEBI, b[1] + 16 * MEBI)
    whole = (a[0], c[1] + 8 * MEBI)


@pytest.fixture
def process(session: Any) -> type[Process]:
    """It is monitored as soon as the kdamond is turned on, with intervals of 2 ms and 20 ms."""
    machine: SimMachine = session.machine
    machine.clock = _RealClock()
    running = machine.spawn([(4096, 8192), Process.whole, (1 << 46, (1 << 46) + 4096)], Process.pid)
    running.access(*Process.a, cpu=0, tid=11)
    running.access(*Process.b, cpu=1, tid=12)
    running.access(*Process.c, cpu=1, tid=12, write=False)
    session.monitor(Process.pid)
    session.put(f"{CONTEXT}/monitoring_attrs/intervals/sample_us", 2000)
    session.put(f"{CONTEXT}/monitoring_attrs/intervals/aggr_us", 20_000)
    return Process


def add_filter(session: Any, kind: str, value: str = "", matching: str = "Y", allow: str = "Y") -> None:
    """Have one filter."""
    session.put(f"{FILTERS}/nr_filters", 1)
    session.put(f"{FILTERS}/0/type", kind)
    session.put(f"{FILTERS}/0/matching", matching)
    session.put(f"{FILTERS}/0/allow", allow)
    if value:
        session.put(f"{FILTERS}/0/{'cpumask' if kind == 'cpumask' else 'tid_arr'}", value)


def hot_parts(session: Any) -> str:
    """Which of A, B and C are mostly in regions that were accessed in half of their samples or more."""
    tried = f"{CONTEXT}/schemes/0/tried_regions"
    assert "OK" == session.state("update_schemes_tried_regions")
    names = [name for name in session.tree.listdir(tried) if name.isdecimal()]
    regions = [
        tuple(int(session.read(f"{tried}/{name}/{what}")) for what in ("start", "end", "nr_accesses")) for name in names
    ]
    found = ""
    for part, (start, end) in (("A", Process.a), ("B", Process.b), ("C", Process.c)):
        hot = sum(max(0, min(r[1], end) - max(r[0], start)) for r in regions if r[2] >= 5)
        found += part if hot > (end - start) // 2 else ""
    return found


def wait_for_hot_parts(session: Any, wanted: str) -> None:
    """Return once just the ``wanted`` ones are hot."""
    deadline = time.monotonic() + 60
    while (found := hot_parts(session)) != wanted:
        assert time.monotonic() < deadline, f"{found or 'nothing'} is hot"
        time.sleep(0.05)


def test_accessed_bits_see_everything(session: Any, process: Any) -> None:
    """page_table is the default."""
    assert "OK" == session.state("on")
    wait_for_hot_parts(session, "ABC")


@pytest.mark.parametrize("page_table", ["Y", "N"])
def test_faults_see_writes_and_win_over_accessed_bits(
    session: Any, process: Any, page_table: str, caplog: pytest.LogCaptureFixture
) -> None:
    """damo, having read the tree, may set both primitives; without a filter the log says what is not seen."""
    session.put(f"{SAMPLE}/primitives/page_table", page_table)
    session.put(f"{SAMPLE}/primitives/page_fault", "Y")
    assert "OK" == session.state("on")
    assert ["admin/kdamonds/0: page_fault observes writes and first touches; other reads need Linux 7.3"] == [
        record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING
    ]
    wait_for_hot_parts(session, "AB")


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged so far."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_scheme_for_cold_memory_is_doubted_where_reads_are_not_seen(
    session: Any, process: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Memory that is only read looks cold to faults of writes, and would be paged out again and again."""
    scheme = "admin/kdamonds/0/contexts/0/schemes"
    session.put(f"{scheme}/nr_schemes", "2")
    session.put(f"{scheme}/0/action", "stat")
    session.put(f"{scheme}/1/action", "pageout")
    session.put(f"{SAMPLE}/primitives/page_fault", "Y")
    expected = [
        "admin/kdamonds/0: page_fault observes writes and first touches; other reads need Linux 7.3",
        "admin/kdamonds/0: memory that is only read looks cold to page_fault, so pageout applies: use page_table",
    ]
    assert "OK" == session.state("on")
    assert expected == warnings_of(caplog)
    assert "OK" == session.state("commit")
    assert expected == warnings_of(caplog)
    # What a commit brings is doubted as well.
    session.put(f"{scheme}/0/action", "cold")
    assert "OK" == session.state("commit")
    expected.append(expected[-1].replace("pageout applies", "cold, pageout applies"))
    assert expected == warnings_of(caplog)


def test_a_scheme_for_cold_memory_is_doubted_for_files_alone_where_reads_are_seen(
    session: Any, process: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Reads of ordinary files fault nowhere."""
    monkeypatch.setattr(SimMachine, "faults_of_reads", True)
    session.put("admin/kdamonds/0/contexts/0/schemes/nr_schemes", "1")
    session.put("admin/kdamonds/0/contexts/0/schemes/0/action", "pageout")
    session.put(f"{SAMPLE}/primitives/page_fault", "Y")
    assert "OK" == session.state("on")
    assert [
        "admin/kdamonds/0: files that are only read look cold to page_fault, so pageout applies: use page_table"
    ] == warnings_of(caplog)


@pytest.mark.parametrize(
    ("installed", "wanted"),
    [
        (("write", "", "Y", "Y"), "AB"),
        (("write", "", "N", "Y"), ""),
        (("write", "", "Y", "N"), ""),
        (("cpumask", "0", "Y", "Y"), "A"),
        (("cpumask", "1", "Y", "Y"), "B"),
        (("cpumask", "1", "Y", "N"), "A"),
        (("cpumask", "1", "N", "Y"), "A"),
        (("cpumask", "\n", "Y", "Y"), ""),
        (("threads", "12", "Y", "Y"), "B"),
        (("threads", "11,99", "Y", "Y"), "A"),
    ],
)
def test_a_filter_lets_through_what_it_says(
    session: Any, process: Any, installed: tuple[str, str, str, str], wanted: str
) -> None:
    """Type, value, matching, allow: allow what matches, or reject it and allow the rest."""
    session.put(f"{SAMPLE}/primitives/page_fault", "Y")
    add_filter(session, *installed)
    assert "OK" == session.state("on")
    if wanted:
        wait_for_hot_parts(session, wanted)
    else:
        deadline = time.monotonic() + 60
        while int(session.read(f"{SAMPLE}/reports/filtered")) < 100:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert "" == hot_parts(session)
        assert "0\n" == session.read(f"{SAMPLE}/reports/applied")


def test_filters_and_primitives_can_be_committed_online(session: Any, process: Any) -> None:
    """The kdamond goes on with what it knows, and by the new ones from then on."""
    assert "OK" == session.state("on")
    kdamond = session.read(f"{KDAMOND}/pid")
    wait_for_hot_parts(session, "ABC")
    session.put(f"{SAMPLE}/primitives/page_fault", "Y")
    assert "OK" == session.state("commit")
    wait_for_hot_parts(session, "AB")
    for tid, wanted in ((11, "A"), (12, "B")):
        add_filter(session, "threads", str(tid))
        assert "OK" == session.state("commit")
        wait_for_hot_parts(session, wanted)
    session.put(f"{FILTERS}/nr_filters", 0)
    session.put(f"{SAMPLE}/primitives/page_fault", "N")
    assert "OK" == session.state("commit")
    wait_for_hot_parts(session, "ABC")
    assert session.read(f"{KDAMOND}/pid") == kdamond


def test_a_filter_that_discards_reads_changes_which_accesses_fault(
    session: Any, process: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit opens the process anew; where reads fault, those that come first would hide writes."""
    monkeypatch.setattr(SimMachine, "faults_of_reads", True)
    session.put(f"{SAMPLE}/primitives/page_fault", "Y")
    assert "OK" == session.state("on")
    wait_for_hot_parts(session, "ABC")
    add_filter(session, "write", "", "Y", "Y")
    assert "OK" == session.state("commit")
    assert "page_fault_writes" == session.machine.processes[Process.pid].primitive
    wait_for_hot_parts(session, "AB")
    session.put(f"{FILTERS}/nr_filters", 0)
    assert "OK" == session.state("commit")
    assert "page_fault" == session.machine.processes[Process.pid].primitive
    wait_for_hot_parts(session, "ABC")


def test_a_commit_opens_no_process_again(session: Any, process: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a userfaultfd the process would have to be stopped; only another way to monitor it needs that."""
    session.put(f"{SAMPLE}/primitives/page_fault", "Y")
    assert "OK" == session.state("on")
    opened: list[str] = []
    get_task = session.machine.get_task
    monkeypatch.setattr(
        session.machine, "get_task", lambda pid, how, birth: opened.append(how) or get_task(pid, how, birth)
    )
    for _ in range(3):
        assert "OK" == session.state("commit")
    assert [] == opened
    session.put(f"{SAMPLE}/primitives/page_fault", "N")
    assert "OK" == session.state("commit")
    assert ["page_table"] == opened
    wait_for_hot_parts(session, "ABC")


@pytest.mark.parametrize("command", ["on", "commit"])
def test_a_filter_of_threads_needs_some(
    session: Any, process: Any, command: str, caplog: pytest.LogCaptureFixture
) -> None:
    """EINVAL, with the filter's path in the log."""
    if command == "commit":
        assert "OK" == session.state("on")
    add_filter(session, "threads")
    assert "EINVAL" == session.state(command)
    assert "sample/filters/0: a sample filter of the type threads names no thread" in caplog.text
    session.put(f"{FILTERS}/0/tid_arr", 11)
    assert "OK" == session.state(command)


@pytest.mark.parametrize("kind", ["cpumask", "threads", "write"])
def test_a_machine_that_tells_no_cpu_and_no_thread_cannot_filter_by_them(
    session: Any, process: Any, kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """EOPNOTSUPP with a sentence for faults; reports of others may have them."""
    monkeypatch.setattr(SimMachine, "attributes_faults", False)
    add_filter(session, kind, "" if kind == "write" else "0")
    session.put(f"{SAMPLE}/primitives/page_fault", "Y")
    if kind == "write":
        assert "OK" == session.state("on")
        return
    assert session.state("on") == errno.errorcode[errno.EOPNOTSUPP]
    assert "does not report which CPU or thread" in caplog.text
    session.put(f"{SAMPLE}/primitives/page_fault", "N")
    assert "OK" == session.state("on")


def test_faults_that_may_be_reads_cannot_be_filtered_by_writes_where_that_is_unknown(
    session: Any, process: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """EOPNOTSUPP with a sentence: writes would be taken for reads. Where they alone count, reads do not fault."""
    monkeypatch.setattr(SimMachine, "attributes_faults", False)
    monkeypatch.setattr(SimMachine, "faults_of_reads", True)
    session.put(f"{SAMPLE}/primitives/page_fault", "Y")
    assert "OK" == session.state("on")
    assert "OK" == session.state("off")
    add_filter(session, "write", "", "Y", "Y")
    assert "OK" == session.state("on")
    assert "OK" == session.state("off")
    add_filter(session, "write", "", "N", "Y")
    assert session.state("on") == errno.errorcode[errno.EOPNOTSUPP]
    assert "does not report whether a page fault was a read or a write" in caplog.text


def counters(session: Any) -> dict[str, int]:
    """What the counters' files say."""
    return {name: int(session.read(f"{SAMPLE}/reports/{name}")) for name in COUNTERS}


def wait_for(session: Any, **wanted: int) -> dict[str, int]:
    """Return all counters once those are as ``wanted``."""
    deadline = time.monotonic() + 30
    while True:
        found = counters(session)
        if wanted.items() <= found.items():
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.01)


def reported(session: Any, regions: list[tuple[int, int]], pid: int = 7) -> None:
    """Describe a kdamond for reports on ``pid``, which need not be a process."""
    session.monitor(pid)
    session.put(f"{CONTEXT}/operations", "reports")
    session.put(f"{CONTEXT}/monitoring_attrs/intervals/sample_us", 2000)
    session.put(f"{CONTEXT}/monitoring_attrs/intervals/aggr_us", 20_000)
    session.put(f"{CONTEXT}/targets/0/regions/nr_regions", len(regions))
    for i, (start, end) in enumerate(regions):
        session.put(f"{CONTEXT}/targets/0/regions/{i}/start", start)
        session.put(f"{CONTEXT}/targets/0/regions/{i}/end", end)


def test_counters_tell_what_became_of_reports(session: Any) -> None:
    """While it runs; the last values stay after off, and a new start begins at zero."""
    reported(session, [(0, MEBI)])
    add_filter(session, "write")
    assert "OK" == session.state("on")
    report_accesses(report_array(5, pid=7, addr=4096, write=True))
    report_accesses(report_array(3, pid=7, addr=4096))
    report_accesses(report_array(2, pid=8, addr=4096, write=True))
    report_accesses(report_array(1, pid=7, addr=2 * MEBI, write=True))
    report_accesses(report_array(1, pid=7, addr=MEBI - 1, size=2, write=True))
    expected = dict.fromkeys(COUNTERS, 0) | {"accepted": 12, "applied": 5, "filtered": 3, "ineligible": 2}
    expected |= {"outside": 1, "straddling": 1}
    assert expected == wait_for(session, accepted=12, pending=0)
    assert "OK" == session.state("off")
    assert expected == counters(session)
    assert "OK" == session.state("on")
    assert counters(session) == dict.fromkeys(COUNTERS, 0)


@contextmanager
def reporting(pid: int, start: int, end: int) -> Iterator[None]:
    """A source that reports accesses to each 64 KiB of a range, again and again."""
    addrs = np.arange(start, end, 65536, dtype=np.uint64)
    stop = threading.Event()

    def report() -> None:
        while not stop.wait(0.0005):
            report_accesses(report_array(len(addrs), pid=pid, addr=addrs))

    source = threading.Thread(target=report)
    source.start()
    try:
        yield
    finally:
        stop.set()
        source.join()


def test_reports_alone_can_drive_the_monitoring(session: Any) -> None:
    """No process has to exist, and nothing is sampled; the regions that were reported are the hot ones."""
    reported(session, [Process.whole], pid=2_000_000_000)
    assert "OK" == session.state("on")
    with reporting(2_000_000_000, *Process.b):
        wait_for_hot_parts(session, "B")
    kdamond = session.tree.kdamonds.present()[0].damon_ctx
    assert kdamond.machine is None


def test_reports_alone_need_regions(session: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing else says what to monitor."""
    reported(session, [])
    assert "EINVAL" == session.state("on")
    assert "targets/0/regions: the operations set reports monitors only ranges" in caplog.text


def test_without_primitives_only_reports_count(session: Any, process: Any) -> None:
    """Accessed bits are not looked at; the process's mappings are still followed."""
    session.put(f"{SAMPLE}/primitives/page_table", "N")
    assert "OK" == session.state("on")
    with reporting(Process.pid, *Process.c):
        wait_for_hot_parts(session, "C")
    assert counters(session)["applied"] > 0


def test_density_reaches_the_context(session: Any, process: Any) -> None:
    """At the start and by a commit."""
    session.put(f"{SAMPLE}/density", "Y")
    assert "OK" == session.state("on")
    ctx = session.tree.kdamonds.present()[0].damon_ctx
    assert ctx.density
    session.put(f"{SAMPLE}/density", "N")
    assert "OK" == session.state("commit")
    assert not ctx.density


def test_a_machine_has_a_number_of_cpus() -> None:
    """At least those that this process may use."""
    assert sysfs_sample.nr_cpu_ids() > max(os.sched_getaffinity(0))
