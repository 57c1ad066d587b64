# SPDX-License-Identifier: GPL-2.0-only
"""Floods of connections: a user who makes hundreds of them a second keeps no other producer from being heard."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from kdamon.producers import server as report_server
from kdamon.producers.client import ReportClient
from kdamon.producers.ring import ReportRing
from kdamon.producers.server import ReportServer
from kdamon.reports.record import report_array
from tests.support.capabilities import needs_root
from tests.support.paths import ROOT
from tests.support.waiting import eventually

PID = 4_194_305  # no process has this number

#: Connects for ever, a line after each hundred; what it does with a connection is to be given.
FLOOD = """
import os, socket, struct, sys
HELLO = struct.pack("<QII", int.from_bytes(b"kdamonRR", "little"), 1, 256)
NOBODY = 65534
os.setresgid(NOBODY, NOBODY, NOBODY)
os.setresuid(NOBODY, NOBODY, NOBODY)
kept, number = [], 0
while True:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(sys.argv[1])
    # What kdamon already hung up on takes no more.
    try:
        DO(connection)
    except (BrokenPipeError, ConnectionResetError, BlockingIOError):
        pass
    number += 1
    if number % 100 == 0:
        kept.clear()
        print(number, flush=True)
"""
WAYS = {
    "nothing": "connection.close()",
    "hello and gone": "connection.send(HELLO); connection.close()",
    "half a hello": "connection.send(HELLO[:8]); connection.close()",
    "reads no answer": "connection.send(HELLO); kept.append(connection)",
    "says nothing": "kept.append(connection)",
    "as much as fits": "connection.setblocking(False); [connection.send(b'x') for _ in range(1000)]",
    "empty messages": "connection.setblocking(False); [connection.send(b'') for _ in range(1000)]",
    "lingers": "connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 3600)); "
    "connection.send(HELLO); connection.close()",
}

pytestmark = [pytest.mark.real, needs_root("another user is needed: run as root")]


@pytest.fixture
def place() -> Iterator[Path]:
    """Where every user reaches a socket."""
    with tempfile.TemporaryDirectory(prefix="kdamon-test-", dir="/var/tmp") as directory:
        os.chmod(directory, 0o755)
        yield Path(directory) / "reports"


@contextlib.contextmanager
def flood(place: Path, way: str) -> Iterator[subprocess.Popen[str]]:
    """A hostile user that connects for as long as the ``with`` block runs."""
    program = FLOOD.replace("DO(connection)", way)
    with subprocess.Popen([sys.executable, "-c", program, place], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("refusing", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_other_producers_are_heard(place: Path, way: str, refusing: bool) -> None:
    """All that they report arrives, and when the flood is over nothing of it is left."""
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    with ReportServer(place, refusing) as server:
        with flood(place, WAYS[way]) as hostile:
            assert hostile.stdout is not None
            for number in range(1, 4):
                assert f"{number}00\n" == hostile.stdout.readline()
                with ReportClient(place, 1000, patience=60) as client:
                    assert 1000 == client.report(report_array(1000, pid=PID))
                    eventually(lambda client=client: client.pending == 0, "the reports of another producer")
        eventually(lambda: not server._producers, "the end of every connection")
        counters = server.counters()
    assert (3000, 0, 0) == (counters.received, counters.not_permitted, counters.malformed)
    assert (threads, files) == (threading.active_count(), len(os.listdir("/proc/self/fd")))


#: Opens sys.argv[2] rings as user sys.argv[3], with 2000 reports in each.
RINGS = """
import os, sys
from kdamon.producers import server as report_server
from kdamon.producers.client import ReportClient
from kdamon.reports.record import report_array
user = int(sys.argv[3])
os.setgroups([])
os.setresgid(user, user, user)
os.setresuid(user, user, user)
clients = [ReportClient(sys.argv[1], 4096, patience=60) for _ in range(int(sys.argv[2]))]
print(sum(client.report(report_array(2000, pid=os.getpid())) for client in clients), flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def full_rings(place: Path, rings: int, user: int) -> Iterator[None]:
    """A process of ``user`` with reports in that many rings."""
    with subprocess.Popen(
        [sys.executable, "-c", RINGS, place, str(rings), str(user)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert f"{2000 * rings}\n" == process.stdout.readline()
        yield
        process.communicate(timeout=60)


def test_rings_of_a_user_take_turns(place: Path) -> None:
    """Before: 273 reports of each of 60 rings at every look, which takes 60 times as long as one ring does."""
    drain, look = ReportRing.drain, ReportServer._drain_all
    looks: list[list[tuple[ReportRing, int]]] = []

    def counted(ring: ReportRing, limit: int) -> np.ndarray:
        records = drain(ring, limit)
        if len(records):
            looks[-1].append((ring, len(records)))
        return records

    def a_look(server: ReportServer) -> tuple[bool, bool]:
        looks.append([])
        return look(server)

    with contextlib.ExitStack() as running:
        with patch.object(ReportRing, "drain", lambda _ring, _limit: report_array()):
            server = running.enter_context(ReportServer(place))
            running.enter_context(full_rings(place, 60, 65534))
            looks.append([])
        running.enter_context(patch.object(ReportRing, "drain", counted))
        running.enter_context(patch.object(ReportServer, "_drain_all", a_look))
        eventually(lambda: server.counters().received == 60 * 2000, "all reports")
    taken = [[n for _, n in rings] for rings in looks if rings]
    # The first list may have a part of a look.
    assert all(len(of_look) <= 17 and sum(of_look) <= 1 << 14 for of_look in taken)
    assert 60 == len({id(ring) for ring, _ in [each for rings in looks for each in rings][:60]})


def test_the_end_does_not_wait_for_floods(place: Path) -> None:
    """Before: it took as long as all that they wrote, and what others wrote last was lost with the thread."""
    drain, ending = ReportRing.drain, threading.Event()

    def slow(ring: ReportRing, limit: int) -> np.ndarray:
        if not ending.is_set():
            return report_array()
        records = drain(ring, limit)
        if ring.capacity == 4096 and len(records):
            time.sleep(0.1)
        return records

    with (
        patch.object(ReportRing, "drain", slow),
        patch.object(report_server, "_LAST_READ", 0.2),
        patch.object(report_server, "_END", 60),
        ReportServer(place) as server,
        full_rings(place, 60, 65534),
        ReportClient(place, 1024, patience=60) as client,
    ):
        assert 1000 == client.report(report_array(1000, pid=PID))
        ending.set()
        server.close()
        assert 0 == client.pending
        assert server.counters().received < 60_000
