# SPDX-License-Identifier: GPL-2.0-only
"""What hostile producers can take: not the descriptors, memory and time of others, nor the room for their reports."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import pytest

from kdamon.core import (
    damon_add_target,
    damon_call,
    damon_commit_ctx,
    damon_new_ctx,
    damon_new_target,
    damon_select_ops,
    damon_set_attrs,
    report_counters,
)
from kdamon.damon import (
    damon_access_report,
    damon_attrs,
    damon_call_control,
    damon_ctx,
    damon_ops_id,
    damon_target,
)
from kdamon.kernel import RealClock
from kdamon.producers import admission as report_admission
from kdamon.producers.admission import Admission, User
from kdamon.producers.ring import ReportRing
from kdamon.producers.server import ReportServer
from kdamon.regions import Regions
from kdamon.reports import deliver as reports_module
from kdamon.reports.deliver import report_accesses, reported_pids, subscribe_reports, unsubscribe_reports
from kdamon.reports.queue import ReportQueue, ReportSource
from kdamon.reports.record import report_array
from tests.support.contexts import SteppedClock, stepped
from tests.support.paths import ROOT
from tests.support.reporter import Reporter
from tests.support.waiting import eventually

pytestmark = pytest.mark.real


NOBODY = 65534
OTHER = 65533

#: Becomes a user who may not run this interpreter.
BECOME = """
import os, sys
from kdamon.producers.client import ReportClient
from kdamon.producers.ring import DROPPED, HEAD, SENT, TAIL
from kdamon.reports.record import report_array
os.setgroups([])
os.setresgid(USER, USER, USER)
os.setresuid(USER, USER, USER)
"""

#: Opens RINGS rings at PATH, reports on the processes FIRST to LAST - 1 from each, and waits for its input's end.
ATTACKER = """
path, rings, capacity, first, last = sys.argv[1], *map(int, sys.argv[2:6])
clients = []
for _ in range(rings):
    try:
        clients.append(ReportClient(path, capacity))
    except OSError as error:
        print(error.errno, end=" ")
        break
print(len(clients), flush=True)
for client in clients:
    client.report(report_array(last - first, pid=range(first, last)))
sys.stdin.read()
"""


@pytest.fixture
def server(public: Path) -> Iterator[ReportServer]:
    """A server; afterwards no descriptor of it is left."""
    files = len(os.listdir("/proc/self/fd"))
    with ReportServer(public / "reports") as made:
        yield made
    assert files == len(os.listdir("/proc/self/fd"))


def as_user(script: str, user: int = NOBODY) -> str:
    """``script``, run by ``user``."""
    return BECOME.replace("USER", str(user)) + script


@contextlib.contextmanager
def attacker(server: ReportServer, *numbers: int, user: int = NOBODY) -> Iterator[list[int]]:
    """``numbers`` are rings, capacity, first and last; gives the error that ended opening, if any, and the rings."""
    with subprocess.Popen(
        [sys.executable, "-c", as_user(ATTACKER, user), server.path, *map(str, numbers)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        yield [int(word) for word in process.stdout.readline().split()]
        process.communicate(timeout=60)


@contextlib.contextmanager
def recording() -> Iterator[ReportQueue]:
    """Take every report, whatever it is about, as a recorder does."""
    queue = ReportQueue(RealClock())
    subscribe_reports(queue)
    try:
        yield queue
    finally:
        unsubscribe_reports(queue)


def target(pid: int) -> damon_target:
    """A target that is process ``pid``, with one region."""
    t = damon_new_target()
    t.pid = pid
    t.regions = Regions([0], [1 << 32])
    return t


@contextlib.contextmanager
def monitored(*pids: int) -> Iterator[tuple[damon_ctx, SteppedClock]]:
    """A context that only reports on ``pids`` drive; its first sample ends when its clock is stepped."""
    ctx = damon_new_ctx(seed=1)
    damon_select_ops(ctx, damon_ops_id.DAMON_OPS_REPORTS)
    damon_set_attrs(ctx, damon_attrs(1_000_000, 10**9, min_nr_regions=3))
    for pid in pids:
        damon_add_target(ctx, target(pid))
    with stepped(ctx) as clock:
        yield ctx, clock


def received(server: ReportServer, n: int) -> None:
    """Wait until ``n`` reports arrived."""
    eventually(lambda: server.counters().received >= n, f"{n} reports")


# Descriptors.


@pytest.mark.parametrize("recorded", [False, True], ids=["monitored", "recorded"])
def test_rings_that_name_every_process_take_no_descriptor_for_any(server: ReportServer, recorded: bool) -> None:
    """Before: 16600 for one user. Now: those of its rings; also where everything is recorded, so that it is asked."""
    with recording() if recorded else monitored(os.getpid()):
        files = len(os.listdir("/proc/self/fd"))
        with attacker(server, 64, 256, 1, 257) as (rings,):
            assert 64 == rings
            received(server, 64 * 256)
            # Two are the pipes to the attacker, one notices the end of processes.
            assert len(os.listdir("/proc/self/fd")) <= files + 64 * 4 + 3
            counters = server.counters()
            # Its own number may be among those that it names.
            assert 64 * 255 <= (counters.not_permitted if recorded else counters.ineligible)
        eventually(lambda: server.counters().producers == 0, "the end of the attacker")


def test_all_users_together_leave_descriptors_to_monitoring(server: ReportServer) -> None:
    """At the usual limit of 1024 two users with 64 rings each get a quarter; root's producer still gets its ring."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        files = len(os.listdir("/proc/self/fd"))
        with attacker(server, 64, 256, 0, 0) as one, attacker(server, 64, 256, 0, 0, user=OTHER) as other:
            # A user has no more than what is left to the others.
            assert [errno.EUSERS, 32] == one
            assert [errno.EUSERS, 16] == other
            assert len(os.listdir("/proc/self/fd")) <= files + 256 + 4
            with attacker(server, 1, 256, 0, 0, user=0) as root, attacker(server, 1, 256, 0, 0, user=7) as third:
                assert [[1], [1]] == [root, third]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_root_leaves_descriptors_to_monitoring_too(server: ReportServer) -> None:
    """It is refused what is more than half of all."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    try:
        with attacker(server, 64, 256, 0, 0, user=0) as root:
            assert [errno.EMFILE, 25] == root
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# Memory.


def test_all_users_together_get_so_many_records_and_no_more(server: ReportServer) -> None:
    """However many users there are, memory for rings is limited, and the next user gets some of what is left."""
    with patch.object(report_admission, "MAX_RECORDS", 4096), contextlib.ExitStack() as running:
        rings = [
            running.enter_context(attacker(server, 64, 256, 0, 0, user=user))[-1] for user in range(50_000, 50_004)
        ]
        assert [8, 4, 2, 1] == rings
        assert [1] == running.enter_context(attacker(server, 1, 4096, 0, 0, user=0))


def test_what_a_user_gives_back_it_may_have_again() -> None:
    """Rings, records, descriptors; also when it got no ring."""
    admission = Admission()

    def fill() -> list[User]:
        got = []
        with contextlib.suppress(OSError):
            while True:
                user = admission.connect(NOBODY)
                got.append(user)
                admission.grant(user, 1 << 16)
        return got

    first = fill()
    for user in first[:-1]:
        admission.disconnect(user, 1 << 16)
    admission.disconnect(first[-1])
    user = admission.connect(NOBODY)
    assert (1, 0, 0, 2) == (user.connections, user.rings, user.records, user.descriptors)
    admission.disconnect(user)
    assert len(first) == len(fill())
    admission.close()


def test_heads_without_records_cost_no_memory(server: ReportServer) -> None:
    """All records of a ring count as malformed, and the memory that kdamon shares with its producer stays as it was."""
    script = """
client = ReportClient(sys.argv[1], 1 << 18)
for turn in range(1, 5):
    client._words[HEAD] = turn << 18
    while client._words[TAIL] != turn << 18:
        pass
print("read", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", as_user(script), server.path], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert "read\n" == process.stdout.readline()
        eventually(lambda: server.counters().malformed == 4 << 18, "all of the records")
        (producer,) = server._producers.values()
        assert producer.ring is not None
        # The page of the head.
        assert 4096 == 512 * os.fstat(producer.ring.fd).st_blocks
        process.communicate(timeout=60)


def test_a_ring_of_another_user_is_never_mapped(server: ReportServer, program: Path) -> None:
    """But its head."""
    with Reporter(program, server.path, 1 << 16, user=NOBODY) as c:
        assert c.ask("report", c.pid, 0, 1, 1)
        maps = Path("/proc/self/maps").read_text().splitlines()
        sizes = [
            int(end, 16) - int(start, 16)
            for start, end in (line.split()[0].split("-") for line in maps if "kdamon-reports" in line)
        ]
        assert [4096] == sizes


# Room for reports.


def test_a_flood_about_its_own_producer_loses_its_own_reports_alone(server: ReportServer, program: Path) -> None:
    """Before: 800 of 4000 reports of an honest producer arrived. Now: all of them, and what is lost is the flood's."""
    cap = 20_000
    with (
        patch.object(reports_module, "DAMON_ACCESS_REPORTS_CAP", cap),
        Reporter(program, server.path, 1 << 16, user=NOBODY) as flood,
        Reporter(program, server.path, 1 << 16, user=OTHER) as honest,
        monitored(flood.pid, honest.pid) as (ctx, clock),
    ):
        n = 60_000
        assert n == flood.ask("batch", flood.pid, 0, 1, n)
        received(server, n)
        assert 4000 == honest.ask("report", honest.pid, 1 << 20, 1, 4000)
        received(server, n + 4000)
        counters = report_counters(ctx)
        # As much is left to others.
        assert (cap + 4000, n - cap) == (counters.accepted, counters.dropped)
        lost = {p.pid: p.counters.lost for p in server._producers.values()}
        assert {flood.pid: n - cap, honest.pid: 0} == lost
        assert n - cap == server.counters().lost
        clock.step()
        assert cap + 4000 == report_counters(ctx).applied


#: Reports on itself through one ring after the other, COUNT times.
AGAIN = """
batch = report_array(20000, pid=os.getpid())
for _ in range(int(sys.argv[2])):
    with ReportClient(sys.argv[1], 1 << 15) as client:
        taken = client.report(batch)
        while client.pending:
            pass
        print(taken, flush=True)
sys.stdin.read()
"""


def test_connecting_again_gives_no_new_room(server: ReportServer, program: Path) -> None:
    """Before: all that is there, each time; a gigabyte in ten seconds. Now: one user's share, and others get theirs."""
    cap = 20_000
    with (
        patch.object(reports_module, "DAMON_ACCESS_REPORTS_CAP", cap),
        subprocess.Popen(
            [sys.executable, "-c", as_user(AGAIN), server.path, "20"], cwd=ROOT, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True,
        ) as flood,
        Reporter(program, server.path, 1 << 16, user=OTHER) as honest,
        monitored(flood.pid, honest.pid) as (ctx, clock),
    ):  # fmt: skip
        assert flood.stdout is not None
        assert ["20000\n"] * 20 == [flood.stdout.readline() for _ in range(20)]
        eventually(lambda: server.counters().producers == 1, "the end of the last connection")
        before = server.counters()
        counters = report_counters(ctx)
        # Some of its reports may have come before there was a context.
        assert before.received - before.ineligible == counters.accepted + counters.dropped
        assert counters.accepted <= cap
        assert 4000 == honest.ask("report", honest.pid, 1 << 20, 1, 4000)
        received(server, before.received + 4000)
        assert counters.accepted + 4000 == report_counters(ctx).accepted
        assert len(ctx.reports._lanes) <= 4
        clock.step()
        assert counters.accepted + 4000 == report_counters(ctx).applied
        clock.step()
        assert 1 == len(ctx.reports._users)
        assert (0, 0) == (ctx.reports._of_users.used, ctx.reports._users[OTHER].room.used)
        flood.communicate(timeout=60)


#: Opens a ring as each of 200 users, and waits.
MANY_USERS = """
import os, sys
from kdamon.producers.client import ReportClient
clients = []
for user in range(50000, 50200):
    os.setresgid(-1, user, -1)
    os.setresuid(-1, user, -1)
    clients.append(ReportClient(sys.argv[1], 256, patience=60))
    os.setresuid(-1, 0, -1)
print(len(clients), flush=True)
sys.stdin.read()
"""


def test_users_that_report_nothing_take_nothing(server: ReportServer, program: Path) -> None:
    """Before: 200 users that only had rings left an honest one a 201st of the room, and of each look."""
    drain, limits = ReportRing.drain, set()

    def watched(ring: ReportRing, limit: int) -> npt.NDArray[np.void]:
        records = drain(ring, limit)
        if len(records):
            limits.add(limit)
        return records

    with (
        patch.object(reports_module, "DAMON_ACCESS_REPORTS_CAP", 20_000),
        subprocess.Popen(
            [sys.executable, "-c", MANY_USERS, server.path], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
        ) as many,
        Reporter(program, server.path, 1 << 15, user=OTHER) as honest,
        monitored(honest.pid) as (ctx, _clock),
    ):  # fmt: skip
        assert many.stdout is not None
        assert "200\n" == many.stdout.readline()
        assert 201 == server.counters().producers
        with patch.object(ReportRing, "drain", watched):
            assert 20_000 == honest.ask("batch", honest.pid, 0, 1, 20_000)
            received(server, 20_000)
        assert (20_000, 0) == (report_counters(ctx).accepted, report_counters(ctx).dropped)
        assert 1 << 14 == max(limits)
        many.communicate(timeout=60)


def test_users_that_come_and_go_have_limited_room_together() -> None:
    """And the next one gets some of it, as often as they come; what they left is forgotten once it is taken."""
    with recording() as queue, patch.object(reports_module, "DAMON_ACCESS_REPORTS_CAP", 1000):
        taken = []
        for user in range(50_000, 50_100):
            source = ReportSource(user)
            report_accesses(report_array(5000), source)
            taken.append(5000 - source.lost)
            source.close()
        assert [1000, 500, 250] == taken[:3]
        assert sum(taken) <= 2000
        assert sum(taken) == sum(len(batch) for _, batch in queue.take() if not isinstance(batch, damon_access_report))
        report_accesses(report_array(5000), source := ReportSource(60_000))
        assert 4000 == source.lost
        assert [60_000] == list(queue._users)
        assert (100 * 5000 + 5000, sum(taken) + 1000) == (
            queue.snapshot().accepted + queue.snapshot().dropped,
            queue.snapshot().accepted,
        )


def test_reports_on_a_new_target_count_as_soon_as_it_is_committed() -> None:
    """Before: not until the kdamond was about to sleep, which a scheme may hold up."""
    fates = []

    def commit(_data: object) -> None:
        new = damon_new_ctx(seed=1)
        damon_select_ops(new, damon_ops_id.DAMON_OPS_REPORTS)
        damon_set_attrs(new, damon_attrs(1_000_000, 10**9, min_nr_regions=3))
        for pid in (7, 8):
            damon_add_target(new, target(pid))
        damon_commit_ctx(ctx, new)
        # What the caller may do once it knows.
        report_accesses(report_array(10, pid=8), source)
        fates.append(reported_pids())

    source = ReportSource()
    with monitored(7) as (ctx, clock):
        caller = threading.Thread(target=damon_call, args=(ctx, damon_call_control(fn=commit)))
        caller.start()
        eventually(lambda: ctx.call_controls, "the call")
        clock.step()
        caller.join(60)
        assert [frozenset({7, 8})] == fates
        clock.step()
        assert (10, 0) == (report_counters(ctx).applied, report_counters(ctx).ineligible)


def test_a_flood_about_what_is_not_monitored_takes_no_room(server: ReportServer, program: Path) -> None:
    """Neither of its own producer nor of the context; root's flood as well."""
    with (
        patch.object(reports_module, "DAMON_ACCESS_REPORTS_CAP", 5000),
        Reporter(program, server.path, 1 << 16, user=NOBODY) as flood,
        Reporter(program, server.path, 1 << 16) as root,
        monitored(flood.pid) as (ctx, _clock),
    ):
        assert 50_000 == root.ask("batch", root.pid, 0, 1, 50_000)
        assert 50_000 == flood.ask("batch", root.pid, 0, 1, 50_000)
        assert 100 == flood.ask("batch", flood.pid, 0, 1, 100)
        received(server, 100_100)
        counters = server.counters()
        assert (100_000, 0, 0) == (counters.ineligible, counters.not_permitted, counters.lost)
        assert (100, 0) == (report_counters(ctx).accepted, report_counters(ctx).dropped)


def test_each_context_gets_what_is_about_its_targets(server: ReportServer, program: Path) -> None:
    """What another context wants is ineligible for it, and takes no room; sums are as for any other report."""
    with (
        patch.object(reports_module, "DAMON_ACCESS_REPORTS_CAP", 200),
        Reporter(program, server.path, 1 << 16) as c,
        monitored(7) as (one, clock),
        monitored(8, 9) as (other, _clock),
    ):
        for pid, n in ((7, 100), (8, 50), (9, 30), (10, 20)):
            assert n == c.ask("batch", pid, 0, 1, n)
        received(server, 200)
        counters = [report_counters(ctx) for ctx in (one, other)]
        assert 20 == server.counters().ineligible
        assert [180, 180] == [each.accepted for each in counters]
        assert [(80, 100), (100, 80)] == [(each.ineligible, each.pending) for each in counters]
        clock.step()
        assert 100 == report_counters(one).applied


def test_what_is_monitored_may_change(server: ReportServer, program: Path) -> None:
    """A target that comes is reported on from the next sampling interval on, and one that goes no more."""
    with Reporter(program, server.path) as c, monitored(7) as (ctx, clock):
        for pids in ([7], [7, 8], [8]):
            # The kdamond sleeps.
            ctx.adaptive_targets = [target(pid) for pid in pids]
            clock.step()
            before, ineligible = report_counters(ctx).accepted, server.counters().ineligible
            for pid in (7, 8, 9):
                assert 10 == c.ask("report", pid, 0, 1, 10)
            sent = c.ask_all("counters")[0]
            received(server, sent)
            assert 10 * len(pids) == report_counters(ctx).accepted - before
            assert 30 - 10 * len(pids) == server.counters().ineligible - ineligible


def test_many_small_batches_are_limited_as_large_ones_are() -> None:
    """Each costs memory besides its reports."""
    with recording() as queue, patch.object(reports_module, "DAMON_ACCESS_REPORTS_CAP", 1000):
        source = ReportSource()
        for _ in range(500):
            report_accesses(report_array(1), source)
        assert (125, 375) == (len(queue.take()), source.lost)
        report_accesses(report_array(1), source)
        assert 1 == len(queue.take())
        source.close()
        queue.take()
        assert (126, 375) == (queue.snapshot().accepted, queue.snapshot().dropped)
        assert () == queue._lanes


def test_a_liars_counters_are_not_added_to_those_of_others(server: ReportServer, program: Path) -> None:
    """What a user other than root claims to have sent and dropped changes no sum; what root says does."""
    script = """
with ReportClient(sys.argv[1], 256) as client:
    client.report(report_array(10, pid=client.pid))
    client._words[SENT] = client._words[DROPPED] = 2**64 - 1
"""
    subprocess.run([sys.executable, "-c", as_user(script), server.path], cwd=ROOT, check=True, timeout=60)
    with Reporter(program, server.path, 256) as root, patch.object(ReportRing, "drain", lambda _r, _n: report_array()):
        assert 256 == root.ask("batch", 1, 0, 1, 300)
    eventually(lambda: server.counters().sent >= 310, "the reports of both")
    counters = server.counters()
    assert (310, 44) == (counters.sent, counters.dropped)


def test_a_full_ring_is_noticed_whatever_its_producer_says(server: ReportServer, program: Path) -> None:
    """It may have dropped reports."""
    with Reporter(program, server.path, 256, user=NOBODY) as c:
        assert 300 > c.ask("batch", c.pid, 0, 1, 300)
        eventually(lambda: server.counters().full == 1, "a full ring")


# PID namespaces.


def test_a_producer_in_another_pid_namespace_reports_by_our_numbers(server: ReportServer, program: Path) -> None:
    """It gets its number here; its own 1 is not it. It can report on its namespace, and on no other of its user."""
    sleeper = subprocess.Popen(["sleep", "600"], user=NOBODY, group=NOBODY, extra_groups=[])
    within = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "setpriv", f"--reuid={NOBODY}",
              f"--regid={NOBODY}", "--clear-groups")  # fmt: skip
    try:
        with (
            Reporter(program, server.path, before=within) as c,
            Reporter(program, server.path, user=NOBODY) as outside,
            monitored(1, c.pid, sleeper.pid, outside.pid),
        ):
            assert c.pid > 1
            eventually(lambda: os.stat(f"/proc/{sleeper.pid}").st_uid == NOBODY, "a program that runs")
            fates = {}
            for name, producer, pid in (
                ("itself", c, c.pid), ("its own number", c, 1), ("outside", c, sleeper.pid),
                ("by a process outside", outside, c.pid), ("outside by that", outside, sleeper.pid),
            ):  # fmt: skip
                before = server.counters()
                assert 1 == producer.ask("report", pid, 0, 1, 1)
                received(server, before.received + 1)
                fates[name] = server.counters().not_permitted == before.not_permitted
            assert {
                "itself": True,
                "its own number": False,
                "outside": False,
                "by a process outside": True,
                "outside by that": True,
            } == fates
    finally:
        sleeper.kill()
        sleeper.wait()


def test_a_producer_that_kdamons_pid_namespace_does_not_contain_is_refused(public: Path, program: Path) -> None:
    """kdamon has no number for it."""
    script = f"""
import sys
from kdamon.producers.server import ReportServer
with ReportServer({str(public / "inner")!r}):
    print("ready", flush=True)
    sys.stdin.readline()
"""
    with subprocess.Popen(
        ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "-c", script], cwd=ROOT,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert "ready\n" == process.stdout.readline()
        with Reporter(program, public / "inner") as c:
            assert errno.EPERM == c.errno
        process.communicate("\n", timeout=60)


def test_root_may_report_on_anything_also_from_another_pid_namespace(server: ReportServer, program: Path) -> None:
    """CAP_SYS_PTRACE is enough; so it has to know the numbers."""
    within = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
    with Reporter(program, server.path, before=within) as c, monitored(1):
        assert 1 == c.ask("report", 1, 0, 1, 1)
        received(server, 1)
        assert (0, 0) == (server.counters().not_permitted, server.counters().ineligible)
