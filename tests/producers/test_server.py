# SPDX-License-Identifier: GPL-2.0-only
"""Reports from other processes: permitted ones arrive, once, and a producer's trouble is its own."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from kdamon.core import (
    damon_add_target,
    damon_new_ctx,
    damon_new_target,
    damon_select_ops,
    damon_set_attrs,
    damon_start,
    report_counters,
)
from kdamon.damon import damon_attrs, damon_ctx, damon_ops_id
from kdamon.kernel import RealClock
from kdamon.producers.client import ReportClient, report_paths
from kdamon.producers.ring import HELLO, MAGIC, REPLY, VERSION, ReportRing
from kdamon.producers.server import ReportServer, ReportServerCounters, default_report_path
from kdamon.regions import Regions
from kdamon.reports import deliver as reports_module
from kdamon.reports.deliver import subscribe_reports, unsubscribe_reports
from kdamon.reports.queue import ReportQueue
from kdamon.reports.record import report_array
from tests.support.contexts import SteppedClock, stepped, stopped
from tests.support.paths import public_directory
from tests.support.reporter import Reporter
from tests.support.waiting import eventually

pytestmark = pytest.mark.real


SOAK = int(os.environ.get("KDAMON_SOAK", "0"))
PID = 4_194_305  # no process has this number
NOBODY = 65534
OTHER = 65533
SERVER = """
import os, sys
from kdamon.kernel import RealClock
from kdamon.reports.queue import ReportQueue
from kdamon.producers.server import ReportServer
from kdamon.reports.deliver import subscribe_reports
user = int(sys.argv[2])
os.setresgid(user, user, user)
os.setresuid(user, user, user)
subscribe_reports(ReportQueue(RealClock()))
with ReportServer(sys.argv[1]) as server:
    print("ready", flush=True)
    sys.stdin.readline()
counters = server.counters()
print(counters.received, counters.not_permitted, flush=True)
"""

SILENT = """
import socket, struct, sys
silent = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(int(sys.argv[2]))]
for connection in silent:
    connection.connect(sys.argv[1])
for connection in silent:
    print(struct.unpack("<QIiQiI", connection.recv(100))[2])
"""


@pytest.fixture(scope="module")
def public() -> Iterator[Path]:
    """A directory that every user may use."""
    with public_directory(0o1777) as directory:
        yield directory


@pytest.fixture
def server(public: Path) -> Iterator[ReportServer]:
    with ReportServer(public / "reports") as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_left(public: Path) -> Iterator[None]:
    """Each test leaves as many threads and open files as it found, and no socket."""
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    yield
    eventually(lambda: threading.active_count() <= threads, "the end of all threads")
    assert files == len(os.listdir("/proc/self/fd"))
    assert set(os.listdir(public)) <= {"reporter"}


@pytest.fixture
def recorder() -> Iterator[ReportQueue]:
    """Something that takes every report, whatever it is about."""
    queue = ReportQueue(RealClock())
    subscribe_reports(queue)
    yield queue
    unsubscribe_reports(queue)


def context(*ranges: tuple[int, int], pid: int = PID, **attrs: int) -> damon_ctx:
    """A context that only reports about ``pid`` drive."""
    ctx = damon_new_ctx(seed=1)
    damon_select_ops(ctx, damon_ops_id.DAMON_OPS_REPORTS)
    ctx.min_region_sz = 1
    damon_set_attrs(
        ctx, damon_attrs(**({"sample_interval": 5000, "aggr_interval": 10**9, "min_nr_regions": 3} | attrs))
    )
    t = damon_new_target()
    t.pid = pid
    t.regions = Regions([start for start, _ in ranges], [end for _, end in ranges])
    damon_add_target(ctx, t)
    return ctx


def received(server: ReportServer, n: int) -> ReportServerCounters:
    """The counters once ``n`` reports arrived."""
    eventually(lambda: server.counters().received >= n, f"{n} reports")
    counters = server.counters()
    assert n == counters.received
    return counters


def alone(server: ReportServer) -> bool:
    return server.counters().producers == 0


# The way of a report.


def test_reports_of_another_process_are_counted_for_its_regions(server: ReportServer, program: Path) -> None:
    """From C, one by one and in batches; from Python; all at the same time."""
    ctx = context((0, 1000), (1000, 2000), (5000, 6000))
    with stepped(ctx) as clock:
        with Reporter(program, server.path) as c, ReportClient(server.path) as python:
            assert c.process.pid == c.pid
            assert os.getpid() == python.pid
            assert 3 == c.ask("report", PID, 0, 10, 3)
            assert 2500 == c.ask("batch", PID, 5000, 1, 2500)
            assert 2 == python.report(report_array(2, pid=PID, addr=[7, 5], size=[1, 996]))
            assert 2 == received(server, 2505).producers
            clock.step()
        assert [1, 0, 1] == ctx.adaptive_targets[0].regions.nr_accesses.tolist()
        counters = report_counters(ctx)
        assert (2505, 1004, 1, 1500) == (counters.accepted, counters.applied, counters.straddling, counters.outside)
        eventually(lambda: alone(server), "the end of both producers")
        assert server.counters() == ReportServerCounters(received=2505, sent=2505)


def test_every_field_arrives(server: ReportServer, recorder: ReportQueue) -> None:
    """As it was sent."""
    sent = report_array(
        3, pid=[1, 2, 3], addr=[4, 5, 2**63], size=[6, 2**40, 1], nr_accesses=[7, 8, 9], node_id=[0, -1, 3],
        write=[True, False, True], cpu=[-1, 0, 77], tid=[0, 5, 2**31 - 1],
    )  # fmt: skip
    with ReportClient(server.path) as client:
        client.report(sent)
        received(server, 3)
    assert [sent.tolist()] == [batch.tolist() for _, batch in recorder.take()]


def test_accepted_and_dropped_is_what_was_sent(server: ReportServer, program: Path) -> None:
    """Exactly, far above what the ring and the context can hold."""
    ctx = context((0, 1 << 28), pid=7)
    clock = SteppedClock()
    ctx.clock = clock
    n = 2_000_000
    with stopped(ctx), patch.object(reports_module, "DAMON_ACCESS_REPORTS_CAP", 300_000):
        damon_start([ctx], exclusive=False)
        clock.wait_asleep()
        with Reporter(program, server.path, capacity=4096) as c:
            taken = c.ask("flood", 7, n)
            sent, dropped = c.ask_all("counters")
            assert (n, n - taken) == (sent, dropped)
            eventually(lambda: server.counters().received == taken, "the last record")
            produced = server.counters()
            assert (sent, dropped) == (produced.sent, produced.dropped)
        counters = report_counters(ctx)
        assert sent == dropped + counters.accepted + counters.dropped
        clock.step()
        counters = report_counters(ctx)
        assert counters.accepted == counters.applied
        eventually(lambda: alone(server), "the end of the producer")
        assert (sent, dropped) == (server.counters().sent, server.counters().dropped)


def test_a_full_ring_drops_the_newest_and_says_how_many(server: ReportServer) -> None:
    """Room comes back as soon as kdamon reads."""
    with (
        patch.object(ReportServer, "_drain_all", return_value=(False, False)),
        ReportServer(server.path.parent / "b") as slow,
    ):
        client = ReportClient(slow.path, capacity=1000)
        assert 1024 == client.capacity
        assert 1000 == client.report(report_array(1000, pid=PID))
        assert 24 == client.report(report_array(50, pid=PID))
        assert 0 == client.report(report_array(1, pid=PID))
        assert (1051, 27, 1024) == (client.sent, client.dropped, client.pending)
    assert not client.connected()
    client.close()
    client.close()


def test_what_can_be_no_report_is_counted_and_dropped(server: ReportServer) -> None:
    with ReportClient(server.path) as client:
        client.report(report_array(4, pid=[1, -1, 1, 1], size=[1, 1, 0, 1], nr_accesses=[1, 1, 1, -3]))
        counters = received(server, 4)
        assert (3, 0) == (counters.malformed, counters.not_permitted)


@pytest.mark.parametrize("bad", [np.zeros(3), report_array(4).reshape(2, 2)])
def test_a_client_takes_batches_of_reports_only(server: ReportServer, bad: np.ndarray) -> None:
    with ReportClient(server.path) as client, pytest.raises(TypeError):
        client.report(bad)


# Which producer may report on which process.


def permitted(server: ReportServer, c: Reporter, pid: int) -> bool:
    before = server.counters()
    assert 1 == c.ask("report", pid, 0, 1, 1)
    return received(server, before.received + 1).not_permitted == before.not_permitted


@pytest.fixture(scope="module")
def sleepers() -> Iterator[dict[str, int]]:
    """Processes of several users."""
    sender = {"nobody": (NOBODY, NOBODY), "nobody of another group": (NOBODY, OTHER), "other": (OTHER, OTHER)}
    running = {
        name: subprocess.Popen(["sleep", "600"], user=user, group=group, extra_groups=[])
        for name, (user, group) in sender.items()
    }
    yield {name: process.pid for name, process in running.items()} | {"root": os.getpid(), "physical": 0, "none": PID}
    for process in running.values():
        process.kill()
        process.wait()


ALL = {"itself", "nobody", "nobody of another group", "other", "root", "physical", "none"}


@pytest.mark.usefixtures("recorder")
@pytest.mark.parametrize(
    ("sender", "may"),
    [
        ("root", ALL),
        ("nobody", {"itself", "nobody"}),
        ("root without the capability", {"itself", "none"}),
        ("nobody with all capabilities of a namespace of its own", {"itself"}),
        ("nobody with the capability", ALL),
    ],
)
def test_a_producer_tells_about_what_it_could_look_at(
    server: ReportServer, program: Path, sleepers: dict[str, int], sender: str, may: set[str]
) -> None:
    """Root about anything; others about processes of their user and group; physical memory is root's."""
    user: dict[str, object] = {
        "root": {},
        "nobody": {"user": NOBODY},
        "root without the capability": {"before": ("setpriv", "--bounding-set=-sys_ptrace")},
        "nobody with all capabilities of a namespace of its own": {
            "user": NOBODY, "before": ("unshare", "--user", "--map-root-user"),
        },
        "nobody with the capability": {
            "before": (
                "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups",
                "--inh-caps=+sys_ptrace", "--ambient-caps=+sys_ptrace",
            ),
        },
    }[sender]  # fmt: skip
    with Reporter(program, server.path, **user) as c:  # type: ignore[arg-type]
        pids = sleepers | {"itself": c.pid}
        assert may == {name for name, pid in pids.items() if permitted(server, c, pid)}


@pytest.mark.usefixtures("recorder")
def test_a_process_that_hides_its_memory_is_not_told_about(server: ReportServer, program: Path) -> None:
    """Not by its own user either; it may report on itself."""
    with Reporter(program, server.path, user=NOBODY) as c, Reporter(program, server.path, user=NOBODY) as hidden:
        assert permitted(server, c, hidden.pid)
        assert 0 == hidden.ask("dumpable", 0)
        eventually(lambda: not permitted(server, c, hidden.pid), "a new look at the process")
        assert permitted(server, hidden, hidden.pid)


@pytest.mark.usefixtures("recorder")
def test_a_process_that_ended_is_not_told_about(server: ReportServer, program: Path) -> None:
    """Another process may have its number by then."""
    with Reporter(program, server.path, user=NOBODY) as c:
        target = subprocess.Popen(["sleep", "600"], user=NOBODY, group=NOBODY, extra_groups=[])
        assert permitted(server, c, target.pid)
        target.kill()
        target.wait()
        assert not permitted(server, c, target.pid)


def test_some_may_be_permitted_and_some_not(
    server: ReportServer, recorder: ReportQueue, program: Path, sleepers: dict[str, int]
) -> None:
    """In one and the same batch."""
    with Reporter(program, server.path, user=NOBODY) as c:
        for pid in range(200):
            c.ask("report", pid + PID, 0, 1, 1)
        for pid in (sleepers["nobody"], 1, sleepers["nobody"]):
            c.ask("report", pid, 0, 1, 1)
        assert 201 == received(server, 203).not_permitted
        arrived = np.concatenate([entry for _, entry in recorder.take()])
        assert [sleepers["nobody"]] * 2 == arrived["pid"].tolist()


def serve(path: Path, user: int = 0) -> subprocess.Popen[str]:
    """A server in a process of its own, ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, path, str(user)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert "ready\n" == process.stdout.readline()
    return process


def end(process: subprocess.Popen[str]) -> str:
    """End it; returns what it says."""
    said, _ = process.communicate("\n", timeout=60)
    assert 0 == process.returncode
    return said


def test_numbers_of_no_process_are_for_the_user_that_kdamon_runs_as(public: Path, program: Path) -> None:
    """A researcher's own producer needs no root; others get nowhere."""
    process = serve(public / "reports", NOBODY)
    with (
        Reporter(program, public / "reports", user=NOBODY) as same,
        Reporter(program, public / "reports", user=OTHER) as other,
    ):
        same.ask("report", PID, 0, 1, 2)
        same.ask("report", 0, 0, 1, 4)
        other.ask("report", PID, 0, 1, 8)
        same.ask("close")
        other.ask("close")
        assert "14 12\n" == end(process)


# Producers that end, stop, or misbehave.


@pytest.mark.usefixtures("recorder")
def test_what_a_dead_producer_wrote_is_read(server: ReportServer, program: Path) -> None:
    """Killed right after its last report; then its ring is gone."""
    with Reporter(program, server.path) as c:
        assert 100_000 == c.ask("batch", PID, 0, 1, 100_000)
        c.kill(signal.SIGKILL)
    eventually(lambda: alone(server), "the end of the producer")
    assert server.counters() == ReportServerCounters(received=100_000, sent=100_000)


@pytest.mark.usefixtures("recorder")
def test_a_dead_producer_told_about_itself_in_time(server: ReportServer, program: Path) -> None:
    with Reporter(program, server.path, user=NOBODY) as c:
        c.ask("report", c.pid, 0, 1, 50_000)
        c.kill(signal.SIGKILL)
    eventually(lambda: alone(server), "the end of the producer")
    assert (50_000, 0) == (server.counters().received, server.counters().not_permitted)


def test_a_stopped_producer_holds_nobody_up(server: ReportServer, program: Path) -> None:
    with Reporter(program, server.path) as stopped_one, Reporter(program, server.path) as c:
        stopped_one.say("flood", PID, 50_000_000)
        eventually(lambda: server.counters().received, "the first reports")
        stopped_one.kill(signal.SIGSTOP)
        before = server.counters().sent
        assert 1000 == c.ask("report", PID, 0, 1, 1000)
        eventually(lambda: server.counters().sent == before + 1000, "the other one's reports")


@pytest.mark.parametrize(
    ("hello", "answer"),
    [
        (HELLO.pack(MAGIC, VERSION + 1, 0), errno.EPROTONOSUPPORT),
        (HELLO.pack(MAGIC + 1, VERSION, 0), errno.EPROTONOSUPPORT),
        (b"GET / HTTP/1.1", errno.EPROTONOSUPPORT),
        (b"x" * 100_000, errno.EPROTONOSUPPORT),
    ],
)
def test_who_says_something_else_than_hello_is_refused(server: ReportServer, hello: bytes, answer: int) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(str(server.path))
        connection.send(hello)
        reply = REPLY.unpack(connection.recv(100))
        assert answer == reply[2]
        assert b"" == connection.recv(100)


def test_a_producer_can_send_nothing_after_its_hello(server: ReportServer) -> None:
    """So its connection cannot fill memory of the kernel either."""
    with ReportClient(server.path) as client:
        client.report(report_array(3, pid=PID))
        with pytest.raises(BrokenPipeError):
            client._connection.send(b"more")
        received(server, 3)
        assert client.connected()
    eventually(lambda: alone(server), "the end of the producer")


def test_a_second_hello_is_refused(server: ReportServer) -> None:
    with patch("kdamon.producers.server._ACCEPTED_AT_ONCE", 0):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.connect(str(server.path))
        for _ in range(2):
            connection.send(HELLO.pack(MAGIC, VERSION, 0))
    with connection:
        assert errno.EPROTO == REPLY.unpack(connection.recv(100))[2]
        assert b"" == connection.recv(100)


def test_who_says_nothing_costs_nothing(server: ReportServer) -> None:
    silent = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    silent.connect(str(server.path))
    with ReportClient(server.path) as client:
        client.report(report_array(3, pid=PID))
        assert 1 == received(server, 3).producers
    silent.close()


def test_a_silent_connection_loses_its_place(server: ReportServer, program: Path) -> None:
    """A user's silent connections are in the way of that user's producers for a few seconds, and then not."""
    limit = patch("kdamon.producers.admission._DESCRIPTORS_PER_USER", 4)
    with limit, patch("kdamon.producers.server._HELLO_WITHIN", 0.05):
        silent = subprocess.Popen(
            ["python3", "-c", SILENT, server.path, "2"], stdout=subprocess.PIPE, user=NOBODY, group=NOBODY,
            extra_groups=[],
        )  # fmt: skip
        said, _ = silent.communicate(timeout=60)
        assert [errno.ETIMEDOUT, errno.ETIMEDOUT] == [int(word) for word in said.split()]
        with Reporter(program, server.path, user=NOBODY) as c:
            assert 0 == c.errno
    eventually(lambda: alone(server), "the end of the producer")


def test_a_user_gets_so_many_rings_and_no_more(server: ReportServer, program: Path) -> None:
    """Others still get theirs."""
    with patch("kdamon.producers.admission._RINGS_PER_USER", 2), contextlib.ExitStack() as running:

        def refusal(user: int) -> int:
            return running.enter_context(Reporter(program, server.path, 256, user=user)).errno

        assert [0, 0, errno.EUSERS] == [refusal(NOBODY) for _ in range(3)]
        assert [0, 0, errno.EUSERS] == [refusal(OTHER) for _ in range(3)]
        assert [0, 0, 0] == [refusal(0) for _ in range(3)]


def test_a_users_rings_have_so_many_records_and_no_more(server: ReportServer, program: Path) -> None:
    with patch("kdamon.producers.admission._RECORDS_PER_USER", 1024), contextlib.ExitStack() as running:

        def refusal(capacity: int) -> int:
            return running.enter_context(Reporter(program, server.path, capacity, user=NOBODY)).errno

        assert [0, errno.EUSERS, 0, errno.EUSERS] == [refusal(n) for n in (512, 1024, 512, 1)]


def test_garbage_in_one_ring_does_not_touch_the_others(server: ReportServer) -> None:
    """Random bytes all over it, with a head that often makes sense."""
    rng = np.random.default_rng(1)
    with ReportClient(server.path, capacity=256) as hostile, ReportClient(server.path) as client:
        whole = np.frombuffer(hostile._memory, np.uint8)
        for i in range(300):
            whole[:] = rng.integers(0, 256, len(whole), np.uint8)
            hostile._words[16] = hostile._words[32] + np.uint64(rng.integers(0, 300))
            if i % 30 == 0:
                client.report(report_array(10, pid=PID))
        eventually(lambda: client.pending == 0, "the other one's reports")
        counters = server.counters()
        assert 100 <= counters.received - counters.malformed - counters.not_permitted
        assert 2 == counters.producers
        del whole
    eventually(lambda: alone(server), "the end of both")


def test_others_cannot_keep_root_from_being_read(server: ReportServer, program: Path) -> None:
    """However much they send, so much is read of all of them together, and then it is root's turn."""
    drain = ReportRing.drain
    seen: list[tuple[int, int]] = []

    def watched(ring: ReportRing, limit: int) -> np.ndarray:
        records = drain(ring, limit)
        seen.append((ring.capacity, limit))
        return records

    with contextlib.ExitStack() as running:
        for _ in range(2):
            c = running.enter_context(Reporter(program, server.path, 4096, user=NOBODY))
            c.say("flood", c.pid, 100_000_000)
        root = running.enter_context(Reporter(program, server.path, 1024))
        with patch.object(ReportRing, "drain", watched):
            for _ in range(20):
                assert 1000 == root.ask("batch", PID, 0, 1, 1000)
                eventually(lambda: root.ask("batch", PID, 0, 1, 1), "room")
                eventually(lambda: len(seen) > 10, "a few looks at the rings")
                seen.clear()
                eventually(lambda: len(seen) > 10, "a few more")
        assert {(4096, 8192), (1024, 65536)} == set(seen)
    eventually(lambda: alone(server), "the end of all producers")
    assert 0 == server.counters().not_permitted


# Servers that end, and several of them.


@pytest.mark.parametrize("how", ["closed", "killed"])
def test_producers_outlive_the_server(public: Path, program: Path, how: str) -> None:
    """However it ends: nothing blocks or dies, the ring fills, and a producer can ask."""
    process = serve(public / "reports")
    with Reporter(program, public / "reports", capacity=1024) as c, ReportClient(public / "reports", 1024) as python:
        assert 1 == c.ask("connected")
        assert python.connected()
        if how == "killed":
            process.kill()
            process.communicate()
        else:
            end(process)
        eventually(lambda: not c.ask("connected"), "the news in C")
        eventually(lambda: not python.connected(), "the news in Python")
        assert 1024 == c.ask("flood", PID, 10_000)
        assert [10_000, 10_000 - 1024] == c.ask_all("counters")
        assert 1024 == python.report(report_array(2000, pid=PID))
        assert 0 == python.report(report_array(2000, pid=PID))
    eventually(lambda: os.listdir(public) == ["reporter"], "the end of the socket and its lock")


def test_a_stopped_server_holds_no_producer_up(public: Path, program: Path) -> None:
    process = serve(public / "reports")
    with Reporter(program, public / "reports", capacity=1024) as c:
        os.kill(process.pid, signal.SIGSTOP)
        taken = c.ask("flood", PID, 10_000)
        assert 1 == c.ask("connected")
        os.kill(process.pid, signal.SIGCONT)
        eventually(lambda: c.ask("report", PID, 0, 1, 1), "room")
        assert [taken + 1 + c.ask_all("counters")[1]] == c.ask_all("counters")[:1]
        c.ask("close")
        end(process)


def test_the_place_of_a_dead_server_is_taken_over(public: Path) -> None:
    """Of a killed one whose socket is left; not that of one that lives, even if it is stopped."""
    process = serve(public / "reports")
    os.kill(process.pid, signal.SIGSTOP)
    with pytest.raises(OSError, match="another kdamon") as refused:
        ReportServer(public / "reports").start()
    assert errno.EADDRINUSE == refused.value.errno
    (watcher,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(watcher), signal.SIGKILL)
    process.kill()
    process.communicate()
    assert (public / "reports").exists()
    with ReportServer(public / "reports") as server, ReportClient(server.path) as client:
        client.report(report_array(1, pid=PID))
        received(server, 1)


def test_the_place_of_a_later_server_is_left_alone(public: Path) -> None:
    """It came before what the killed one left could be removed."""
    process = serve(public / "reports")
    (watcher,) = map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
    os.kill(watcher, signal.SIGSTOP)
    process.kill()
    process.communicate()
    with ReportServer(public / "reports") as server:
        os.kill(watcher, signal.SIGCONT)
        eventually(lambda: not os.path.exists(f"/proc/{watcher}"), "the watcher's end")
        with ReportClient(server.path) as client:
            client.report(report_array(1, pid=PID))
            received(server, 1)
            assert {"reports", "reports.lock"} <= set(os.listdir(public))


def test_of_many_that_want_a_place_one_gets_it(public: Path) -> None:
    """The first one; also where a dead one left its socket."""
    for _ in range(20):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
            dead.bind(str(public / "reports"))
        servers = [ReportServer(public / "reports") for _ in range(4)]
        errors: list[int | None] = []

        def start(server: ReportServer, errors: list[int | None] = errors) -> None:
            try:
                server.start()
            except OSError as error:
                errors.append(error.errno)

        threads = [threading.Thread(target=start, args=(server,)) for server in servers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [errno.EADDRINUSE] * 3 == errors
        with ReportClient(public / "reports") as client:
            assert client.connected()
        for server in servers:
            server.close()
        assert not (public / "reports").exists()


def test_something_else_at_the_place_stays(public: Path) -> None:
    (public / "reports").write_text("important")
    with pytest.raises(FileExistsError, match="is no socket"):
        ReportServer(public / "reports").start()
    assert "important" == (public / "reports").read_text()
    (public / "reports").unlink()


@pytest.mark.parametrize(
    ("path", "number", "sentence"),
    [("missing/reports", errno.ENOENT, "there is no directory"), ("x" * 120, errno.ENAMETOOLONG, "longer than")],
)
def test_a_place_that_cannot_be_is_refused(public: Path, path: str, number: int, sentence: str) -> None:
    with pytest.raises(OSError, match=sentence) as refused:
        ReportServer(public / path).start()
    assert number == refused.value.errno


def test_without_a_server_there_is_no_client(public: Path, program: Path) -> None:
    with pytest.raises(FileNotFoundError, match="start one first"):
        ReportClient(public / "reports")
    with Reporter(program, public / "reports") as c:
        assert errno.ENOENT == c.errno
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(str(public / "reports"))
    with pytest.raises(ConnectionRefusedError, match="start one first"):
        ReportClient(public / "reports")
    with Reporter(program, public / "reports") as c:
        assert errno.ECONNREFUSED == c.errno
    (public / "reports").unlink()


def test_the_default_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root's below /run, others' below their runtime directory; a client may be given another one."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    monkeypatch.delenv("KDAMON_REPORTS", raising=False)
    own, system = Path("/run/user/7/kdamon/reports"), Path("/run/kdamon/reports")
    monkeypatch.setattr(os, "geteuid", lambda: 7)
    assert (own, [own, system]) == (default_report_path(), report_paths())
    for invalid in ("", ".", "run/user/7"):
        monkeypatch.setenv("XDG_RUNTIME_DIR", invalid)
        assert (own, [own, system]) == (default_report_path(), report_paths())
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert (own, [own, system]) == (default_report_path(), report_paths())
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert (system, [system]) == (default_report_path(), report_paths())
    monkeypatch.setenv("KDAMON_REPORTS", "/elsewhere")
    assert (system, [Path("/elsewhere")]) == (default_report_path(), report_paths())


def test_a_server_may_be_started_again(public: Path) -> None:
    server = ReportServer(public / "reports")
    for n in (1, 2):
        with server, ReportClient(server.path) as client:
            client.report(report_array(1, pid=PID))
            received(server, n)
    server.close()


# Any moment.


@pytest.mark.timeout(180 + 5 * SOAK)
def test_producers_that_are_killed_at_any_moment(server: ReportServer, program: Path) -> None:
    """Also while they connect or write: their rings are read and freed, and all counters add up."""
    rng = np.random.default_rng(5)
    for _ in range(SOAK or 10):
        command = [program, server.path, "4096"]
        producer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        assert producer.stdin is not None
        producer.stdin.write(f"flood {PID} 1000000000\n")
        producer.stdin.flush()
        time.sleep(float(rng.choice([0, 0.001, 0.003, 0.02])))
        producer.kill()
        producer.communicate()
    with Reporter(program, server.path) as c:
        c.ask("report", PID, 0, 1, 10)
    eventually(lambda: alone(server), "the end of all producers")
    counters = server.counters()
    assert (0, 0, 0) == (counters.malformed, counters.not_permitted, counters.resyncs)
    # Each may have died between writing a record and counting it, or the other way round.
    assert abs(counters.sent - counters.dropped - counters.received) <= (SOAK or 10)


@pytest.mark.timeout(180 + 5 * SOAK)
def test_servers_that_are_killed_at_any_moment(public: Path, program: Path) -> None:
    """Producers notice, live on, and find the next server."""
    rng = np.random.default_rng(6)
    for _ in range(SOAK or 4):
        process = serve(public / "reports")
        with Reporter(program, public / "reports", capacity=4096) as c:
            c.say("flood", PID, 3_000_000)
            time.sleep(float(rng.choice([0, 0.002, 0.01])))
            process.kill()
            process.communicate()
            taken = int(c._line())
            sent, dropped = c.ask_all("counters")
            assert (3_000_000, 3_000_000 - taken) == (sent, dropped)
            eventually(lambda c=c: not c.ask("connected"), "the news")
            assert 0 == c.ask("close")
    eventually(lambda: os.listdir(public) == ["reporter"], "the end of the socket and its lock")
