# SPDX-License-Identifier: GPL-2.0-only
"""Floods of connections: a user who makes hundreds of them a second keeps no other producer from being heard."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdamon.report_client import ReportClient
from kdamon.report_server import ReportServer
from kdamon.reports import report_array
from tests.kdamon.harness import eventually

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

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="another user is needed: run as root")


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
