# SPDX-License-Identifier: GPL-2.0-only
"""The monitor of the public API: what its with block promises."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

import kdamon
from kdamon import trace
from kdamon.core import damon_stop
from kdamon.damon import damon_ctx
from kdamon.monitoring.machines import get_machine, put_machine
from tests.support.capabilities import skip_because
from tests.support.paths import ROOT
from tests.support.waiting import eventually

pytestmark = pytest.mark.real


RANGES = [(0x10000, 0x50000)]
#: Writes a page of its own again and again.
BUSY = "m = bytearray(1 << 20); print('ready', flush=True)\nwhile True: m[::4096] = bytes(256)"


@pytest.fixture(name="process")
def _process() -> Iterator[subprocess.Popen[str]]:
    """A process that works."""
    with subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert "ready\n" == process.stdout.readline()
            yield process
        finally:
            process.kill()


def require(primitive: str, pid: int) -> None:
    """Skip where process ``pid`` cannot be sampled by ``primitive``."""
    machine = get_machine()
    try:
        machine.get_task(pid, primitive).put()
    except OSError as error:
        skip_because(error)
    finally:
        put_machine()


@pytest.fixture(name="needs_machine")
def _needs_machine() -> None:
    """Skip where accessed bits cannot be read."""
    require("page_table", os.getpid())


def held() -> tuple[list[str], list[str]]:
    """The files that this process has open, but for the page table walk's program, which stays loaded; its threads."""
    files = []
    for name in os.listdir("/proc/self/fd"):
        try:
            files.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:
            continue  # the directory itself
    return sorted(name for name in files if "bpf" not in name), sorted(t.name for t in threading.enumerate())


def reports_monitor(**arguments: object) -> kdamon.Monitor:
    """One that samples nothing."""
    return kdamon.monitor(pid=1, ops="reports", ranges=RANGES, sample_us=1000, aggr_us=5000, **arguments)  # type: ignore[arg-type]


@pytest.mark.real
@pytest.mark.usefixtures("needs_machine")
def test_the_iteration_ends_with_the_process_and_nothing_stays(process: subprocess.Popen[str]) -> None:
    """Though it was not reaped."""
    before = held()
    with kdamon.monitor(pid=process.pid, aggr_us=20_000) as m:
        first = next(m)
        process.kill()
        for _ in m:
            pass
        assert not m.running()
    eventually(lambda: held() == before, "the end of the kdamond")
    assert m.error() is None
    assert 0 < m.started <= first.began < first.time <= m.ended
    assert first.regions["start"].dtype == np.uint64
    with pytest.raises(StopIteration):
        next(m)


@pytest.mark.real
@pytest.mark.usefixtures("needs_machine")
def test_two_monitors_of_one_process_are_independent(process: subprocess.Popen[str]) -> None:
    """The end of one of them is none of the other."""
    with kdamon.monitor(pid=process.pid) as one:
        with kdamon.monitor(pid=process.pid) as other:
            assert len(next(other).regions) >= 3
        assert not other.running()
        assert one.running()
        assert len(next(one).regions) >= 3


def test_a_slow_consumer_loses_the_oldest_snapshots() -> None:
    """They are counted; the kdamond goes on."""
    with reports_monitor(kept=3) as m:
        while m.lost < 5:
            time.sleep(0.01)
    times = [snapshot.time for snapshot in m.drain()]
    assert 3 == len(times)
    assert sorted(times) == times
    assert m.counters().lost_snapshots == m.lost
    assert m.ended - times[-1] < m.ended - m.started - 5 * 0.005


def test_any_thread_may_stop_it() -> None:
    """A loop that waits ends then."""
    with kdamon.monitor(pid=1, ops="reports", ranges=RANGES, aggr_us=3_600_000_000) as m:
        stopper = threading.Thread(target=m.stop)
        stopper.start()
        assert [] == list(m)
        stopper.join()


def test_its_probe_goes_with_it() -> None:
    """Of the tracepoint that all contexts share."""
    with reports_monitor() as m:
        next(m)
        assert trace.damon_aggregated.enabled()
    assert not trace.damon_aggregated.enabled()


@pytest.mark.real
def test_an_interrupt_leaves_nothing_behind() -> None:
    """Wherever it comes: while the block begins, runs or ends."""
    program = """
import os, signal, sys, threading, time
import kdamon
from kdamon.core import damon_start
def interrupt(after):
    time.sleep(after)
    os.kill(os.getpid(), signal.SIGINT)
with kdamon.monitor(pid=1, ops="reports", ranges=[(0x10000, 0x50000)]) as m:
    pass  # everything is imported: an import that is interrupted is another matter
interrupted = 0
for n in range(60):
    threads = set(threading.enumerate())
    killer = threading.Thread(target=interrupt, args=(n / 10000,))
    try:
        killer.start()
        with kdamon.monitor(pid=1, ops="reports", ranges=[(0x10000, 0x50000)], sample_us=1000, aggr_us=2000) as m:
            for _ in m:
                pass
    except KeyboardInterrupt:
        interrupted += 1
    killer.join()
    give_up = time.monotonic() + 60
    while set(threading.enumerate()) - threads:
        assert time.monotonic() < give_up, threading.enumerate()
        time.sleep(0.01)
assert not kdamon.core._running["nr_ctxs"]
print("interrupted", interrupted)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, check=True, stdout=subprocess.PIPE, text=True, timeout=240
    )
    assert "interrupted 60\n" == result.stdout


def test_a_second_interrupt_does_not_keep_it_running(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that comes while the block ends, just before the kdamond is asked to stop."""
    stops = 0

    def interrupted(ctxs: Sequence[damon_ctx]) -> None:
        nonlocal stops
        stops += 1
        if stops == 1:
            raise KeyboardInterrupt("the second")
        damon_stop(ctxs)

    before = held()
    monkeypatch.setattr("kdamon.monitoring.monitor.damon_stop", interrupted)
    with pytest.raises(KeyboardInterrupt, match="the second"), reports_monitor() as m:
        next(m)
        raise KeyboardInterrupt("the first")
    assert not m.running()
    assert before == held()


def test_signal_handlers_stay() -> None:
    """Those of the caller."""
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    with reports_monitor() as m:
        next(m)
        assert {number: signal.getsignal(number) for number in signal.valid_signals()} == before


@pytest.mark.real
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "ops='vaddr' monitors a process: give its number as pid"),
        ({"pid": 1, "ranges": RANGES}, "ops='vaddr' monitors the whole process; use ops='fvaddr' for ranges"),
        ({"pid": 1, "ops": "fvaddr"}, "ops='fvaddr' needs ranges=[(start, end), ...], the addresses to monitor"),
        ({"pid": 1, "ops": "paddr"}, "ops='paddr' monitors the memory of the machine, not a process: leave pid out"),
        ({"pid": 1, "ops": "vadr"}, "there is no operations set 'vadr'; use vaddr, fvaddr, paddr, reports"),
        ({"pid": 1, "primitive": "bits"}, "there is no primitive 'bits'; use 'page_table', 'page_fault', or '' for"),
        ({"pid": 1, "by": "core"}, "by is 'cpu', 'thread' or 'node', not 'core'"),
        ({"pid": 1, "by": "cpu", "primitive": "page_table"}, "accessed bits do not identify writes, CPUs or threads"),
        ({"pid": 1, "by": "cpu", "primitive": "", "density": True}, "the density of a region is an estimate"),
        ({"pid": 1, "write_only": True, "read_only": True}, "write_only and read_only exclude each other"),
        ({"pid": 1, "primitive": "page_table", "write_only": True}, "accessed bits do not identify writes, CPUs or"),
        ({"pid": 1, "min_regions": 2}, "the minimum number of regions must be at least 3"),
        ({"pid": 1, "aggr_us": -1}, "aggr_us is in microseconds, from 0 to 2**64 - 1"),
        ({"pid": 1, "sample_us": 1 << 64, "aggr_us": 1 << 64}, "sample_us is in microseconds, from 0 to 2**64 - 1"),
        ({"pid": 1, "aggr_us": 1}, "the sampling interval must not exceed the aggregation interval"),
        ({"pid": 1, "ops": "reports", "ranges": [(0, 9), (8, 5000)]}, "region 0x8-0x1388 overlaps or precedes"),
    ],
)
def test_mistakes_are_sentences(arguments: dict[str, object], sentence: str) -> None:
    """Before anything is opened."""
    with pytest.raises(OSError) as refused:
        kdamon.monitor(**arguments)  # type: ignore[arg-type]
    assert errno.EINVAL == refused.value.errno
    assert refused.value.strerror.startswith(sentence)


@pytest.mark.real
def test_a_process_that_is_not_there() -> None:
    """Only the block opens it."""
    m = kdamon.monitor(pid=1 << 22)
    with pytest.raises(ProcessLookupError, match="there is no process"):
        m.__enter__()
    m.stop()
    with pytest.raises(OSError) as twice:
        m.__enter__()
    assert errno.EBUSY == twice.value.errno
    with pytest.raises(OSError) as early:
        next(kdamon.monitor(pid=1))
    assert errno.EINVAL == early.value.errno


@pytest.mark.real
@pytest.mark.traceback_expected
def test_an_error_in_the_kdamond_ends_the_iteration() -> None:
    """As an OSError with its reason."""

    def fail(_: kdamon.damon_ctx) -> None:
        raise OSError(errno.EIO, "the device is gone")

    with kdamon.monitor(ops=kdamon.damon_operations(check_accesses=fail), ranges=RANGES) as m:
        with pytest.raises(OSError, match="monitoring ended: the device is gone") as failed:
            next(m)
        assert errno.EIO == failed.value.errno
    assert not m.running()


def test_statistics_of_schemes_can_be_read_meanwhile_and_afterwards() -> None:
    """They are copies."""
    scheme = kdamon.damon_new_scheme(kdamon.damos_access_pattern(), kdamon.damos_action.DAMOS_STAT)
    with reports_monitor(schemes=[scheme]) as m:
        next(m)
        (earlier,) = m.scheme_stats()
        next(m)
    (later,) = m.scheme_stats()
    assert 0 < earlier.nr_tried < later.nr_tried
    assert later is not scheme.stat


def test_numbers_may_be_integers_of_any_kind() -> None:
    """As numpy's, whose arithmetic overflows; and arrays may be given where several are."""
    m = kdamon.monitor(
        np.int64(1), write_only=True, cpus=np.array([0, 1]), tids=np.array([1, 2]), min_regions=np.int8(4)
    )  # type: ignore[arg-type]
    assert (1, "page_fault", (0, 1), (1, 2)) == (m.config.pid, m.config.primitive, m.config.cpus, m.config.tids)
    assert "page_table" == kdamon.monitor(1, cpus=(n for n in range(0))).config.primitive
    ranges = np.array([[0x10000, 0x50000]], dtype=np.uint64)
    with kdamon.monitor(
        pid=1,
        ops="reports",
        ranges=ranges,
        sample_us=np.uint32(1000),
        aggr_us=np.int64(2000),  # type: ignore[arg-type]
    ) as reports:
        assert [(0x10000, 0x50000)] == [(int(r["start"].min()), int(r["end"].max())) for r in (next(reports).regions,)]
    with pytest.raises(TypeError):
        kdamon.monitor(1, sample_us=5000.0)  # type: ignore[arg-type]


def test_own_operations_take_intervals_of_an_unsigned_long() -> None:
    """As all operations sets."""
    with pytest.raises(OSError, match="aggr_us is in microseconds"):
        kdamon.monitor(ops=kdamon.damon_operations(), ranges=RANGES, aggr_us=1 << 64)


#: Writes what becomes of a monitor in a child, by fork(), of the process that monitors, and of another one made there.
FORKING = """
import os, sys, traceback
import kdamon
options, pid = {"primitive": sys.argv[1], "sample_us": 1000, "aggr_us": 20_000}, int(sys.argv[2])
if sys.argv[1] == "":
    options |= {"ops": "reports", "ranges": [(0x10000, 0x50000)]}
def is_refused(call):
    try:
        call()
    except ChildProcessError as error:
        return f"this is a child of process {os.getppid()}, which goes on" in error.strerror
    return False
with kdamon.monitor(pid, **options) as m:
    next(m)
    child = os.fork()
    if not child:
        status = 1
        try:
            assert not m.running()
            assert all(is_refused(call) for call in (m.__next__, m.drain, m.scheme_stats))
            assert m.mapped() is None
            m.__exit__(None, None, None)
            # Not that of the parent: memory has room for one userfaultfd.
            with kdamon.monitor(os.getpid(), **options) as own:
                for _ in range(3):
                    next(own)
            assert not own.running()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    print("child", os.waitpid(child, 0)[1])
    m.drain()
    next(m)
print("parent ends")
"""


@pytest.mark.parametrize("primitive", ["", "page_table", "page_fault"])
def test_a_child_leaves_its_parents_monitor_alone(primitive: str, process: subprocess.Popen[str]) -> None:
    """It has no threads of its parent, and the kernel maps no ring of faults into it; it can have a monitor itself."""
    if primitive:
        require(primitive, process.pid)
    words = [sys.executable, "-X", "faulthandler", "-c", FORKING, primitive, str(process.pid)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(words, env=environment, capture_output=True, check=False, text=True, timeout=240)
    assert "child 0\nparent ends\n" == result.stdout, result.stderr


@pytest.mark.traceback_expected
def test_a_failure_at_the_end_is_no_reason_to_wait() -> None:
    """For the consumer, and for stop()."""

    def fail(_: kdamon.damon_target) -> None:
        raise OSError(errno.EIO, "the target cannot be let go")

    with kdamon.monitor(ops=kdamon.damon_operations(cleanup_target=fail), ranges=RANGES, aggr_us=10_000) as m:
        next(m)
        stopper = threading.Thread(target=m.stop)
        stopper.start()
        for _ in m:
            pass
        stopper.join(120)
        assert not stopper.is_alive()
    assert not m.running()


@pytest.mark.usefixtures("needs_machine")
def test_watched_pages_say_how_much_is_in_use(process: subprocess.Popen[str]) -> None:
    """Within a second, of what is in memory; nothing of the watch stays."""
    before = held()
    with kdamon.monitor(pid=process.pid, aggr_us=20_000, watch=True) as m:
        eventually(lambda: (use := m.use()) is not None and bool(use.windows), "the end of the first window")
        use, overall = m.use(), m.use(overall=True)
        assert use is not None
        assert use.resident is not None
        [window] = use.windows
        assert 1.0 == window.seconds
        # It writes a MiB again and again, and runs Python for that.
        assert window.low <= 4 << 20
        assert 0 < window.accessed <= window.high
        assert pytest.approx(use.resident.total) == window.accessed + window.idle + window.unknown
        assert overall is not None
        looks = m.drain_looks()
        assert {kdamon.LOOK} == {one.dtype for one in looks}
        m.drain()
        assert next(m).use is not None
    assert before == held()
    assert m.counters().watching_cpu_s


@pytest.mark.usefixtures("needs_machine")
def test_tuned_intervals_become_longer_where_little_is_accessed() -> None:
    """Snapshots say which interval their ages count; the number of samples stays."""
    with (
        subprocess.Popen(["sleep", "60"]) as idle,
        kdamon.monitor(pid=idle.pid, sample_us=1000, aggr_us=20_000, intervals="tuned", longest_sample_us=4000) as m,
    ):
        intervals = [snapshot.aggr_us for snapshot, _ in zip(m, range(12), strict=False)]
        assert 4000 == m.counters().sample_us
        idle.kill()
    assert sorted(intervals) == intervals
    assert (20_000, 80_000) == (intervals[0], intervals[-1])


def test_pages_are_watched_where_accessed_bits_are() -> None:
    for arguments in ({"write_only": True}, {"primitive": "page_fault"}):
        with pytest.raises(OSError, match="pages are watched by the accessed bits of a process"):
            kdamon.monitor(pid=os.getpid(), watch=True, **arguments)  # type: ignore[arg-type]
    with pytest.raises(OSError, match="intervals is 'fixed' or 'tuned', not 'auto'"):
        kdamon.monitor(pid=os.getpid(), intervals="auto")
