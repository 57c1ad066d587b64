# SPDX-License-Identifier: GPL-2.0-only
"""A user sends file descriptors that take an hour to close; no thread of ours waits for one of them."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from kdamon.producers.client import ReportClient
from kdamon.producers.connections import ReportListener
from kdamon.producers.ring import HELLO, MAGIC, VERSION
from kdamon.producers.server import ReportServer
from kdamon.reports.record import report_array
from tests.support.capabilities import needs_root
from tests.support.paths import SUPPORT
from tests.support.waiting import eventually

PID = 4_194_305  # no process has this number
NOBODY = 65534
SENDER = SUPPORT / "hostile_sender.py"
GREETING = HELLO.pack(MAGIC, VERSION, 0)

pytestmark = [pytest.mark.real, needs_root("another user is needed: run as root")]


@pytest.fixture
def path() -> Iterator[Path]:
    """A place for a socket that every user reaches."""
    with tempfile.TemporaryDirectory(prefix="kdamon-test-", dir="/var/tmp") as directory:
        os.chmod(directory, 0o755)
        yield Path(directory) / "reports"


@contextlib.contextmanager
def sender(path: Path, how: str) -> Iterator[int]:
    """A hostile user that has sent; what sendmsg(2) failed with, or 0."""
    with subprocess.Popen(
        [sys.executable, SENDER, path, how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


@contextlib.contextmanager
def listening(path: Path, refusing: bool) -> Iterator[ReportListener]:
    """A listener alone, without a thread."""
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    bound.bind(os.fspath(path))
    path.chmod(0o666)
    listener = ReportListener(bound, refusing)
    yield listener
    listener.close()


def kernel_refuses() -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        try:
            probe.setsockopt(socket.SOL_SOCKET, 83, 0)
        except OSError:
            return False
    return True


def children() -> set[str]:
    """Processes that this one started and that live."""
    tasks = Path("/proc/self/task").iterdir()
    return {child for task in tasks for child in (task / "children").read_text().split()}


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Each test leaves as many threads, processes and open files as it found."""
    threads, files, processes = threading.active_count(), len(os.listdir("/proc/self/fd")), children()
    yield
    eventually(lambda: threading.active_count() <= threads, "the end of all threads")
    assert files == len(os.listdir("/proc/self/fd"))
    eventually(lambda: children() <= processes, "the end of all processes")


@pytest.mark.skipif("not kernel_refuses()", reason="kernel lacks: SO_PASSRIGHTS (6.16)")
@pytest.mark.parametrize("how", ["hello", "empty", "many"])
def test_the_kernel_refuses_descriptors(path: Path, how: str) -> None:
    """The sender gets EPERM, and nothing arrives."""
    with listening(path, refusing=True) as listener, sender(path, how) as failure:
        assert errno.EPERM == failure
        connection = listener.accept()
        assert connection is not None
        assert listener.receive(connection, HELLO.size) is None
        listener.hang_up(connection)
        assert not listener.waiting


@pytest.mark.parametrize(
    ("how", "error"),
    [("hello", errno.EPERM), ("empty", errno.EPERM), ("many", errno.EPERM), ("hangup", errno.EPERM)]
    + [(how, errno.EPROTO) for how in ("second", "third", "queued")],
)
def test_descriptors_are_never_received(path: Path, how: str, error: int) -> None:
    """Before Linux 6.16, wherever they are: with the hello, after it, or after more than is thrown away."""
    with listening(path, refusing=False) as listener, sender(path, how) as failure:
        assert 0 == failure
        connection = listener.accept()
        assert connection is not None
        with pytest.raises(OSError, match="it sent") as refused:
            listener.receive(connection, HELLO.size)
        assert error == refused.value.errno
        listener.hang_up(connection)
        assert listener.waiting
        listener.tidy()
        assert not listener.waiting


@pytest.mark.parametrize("how", ["hello", "empty", "second", "queued"])
def test_a_process_closes_descriptors_that_were_not_received(path: Path, how: str) -> None:
    """By hanging up at once, and by the end of the listener, whether or not it accepted."""
    with listening(path, refusing=False) as listener, contextlib.ExitStack() as senders:
        assert [0, 0, 0] == [senders.enter_context(sender(path, how)) for _ in range(3)]
        for _ in range(2):
            connection = listener.accept()
            assert connection is not None
            listener.hang_up(connection)
        listener.close()


def test_a_refused_producer_reads_the_reason(path: Path) -> None:
    """Also after it sent what is never read: closing a connection with that in it would reset it."""
    with listening(path, refusing=True) as listener, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as refused:
        refused.connect(os.fspath(path))
        refused.send(GREETING)
        connection = listener.accept()
        assert connection is not None
        connection.send(b"no")
        listener.hang_up(connection)
        assert [b"no", b""] == [refused.recv(100), refused.recv(100)]
        with pytest.raises(BrokenPipeError):
            refused.send(b"but")


@pytest.mark.parametrize("refusing", [True, False])
def test_a_server_goes_on_and_ends(path: Path, refusing: bool, caplog: pytest.LogCaptureFixture) -> None:
    """With such a hello, and with one that is still to be accepted when the server ends."""
    with ReportServer(path, refusing) as server, contextlib.ExitStack() as senders, ReportClient(path) as client:
        eventually(lambda: server.counters().producers == 1, "the other producer")
        for how in ("hello", "empty", "second", "queued", "hangup", "many"):
            with patch("kdamon.producers.server._ACCEPTED_AT_ONCE", 0):
                senders.enter_context(sender(path, how))
            client.report(report_array(10, pid=PID))
            eventually(lambda: client.pending == 0, "reports of another producer")
        assert client.connected()
        with patch("kdamon.producers.server._ACCEPTED_AT_ONCE", 0):
            senders.enter_context(sender(path, "hello"))
            server.close()
    assert 60 == server.counters().received
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_processes_that_never_end_are_lost(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """So many and no more; then no other connection is accepted, and the rings that are there are read."""
    stuck = "import os, time; os.read(0, 1); time.sleep(600)"
    with (
        patch("kdamon.producers.connections._CLOSER", stuck),
        patch("kdamon.producers.connections._CLOSER_PERIOD", 0),
        patch("kdamon.producers.connections._CLOSER_END", 0),
        patch("kdamon.producers.connections._MOST_LOST", 2),
        patch("kdamon.producers.connections._MOST_WAITING", 3),
        ReportServer(path, refusing=False) as server,
        ReportClient(path) as client,
        contextlib.ExitStack() as senders,
    ):

        def lost() -> list[str]:
            return [child for child in children() if stuck in Path(f"/proc/{child}/cmdline").read_text()]

        for number in (1, 2):
            with patch("kdamon.producers.server._ACCEPTED_AT_ONCE", 0):
                senders.enter_context(sender(path, "hello"))
            eventually(lambda number=number: len(lost()) == number, "the process that closes it")
        with patch("kdamon.producers.server._ACCEPTED_AT_ONCE", 0):
            for _ in range(3):
                senders.enter_context(sender(path, "hello"))
        eventually(lambda: "no others are taken" in caplog.text, "the sentence")
        eventually(lambda: server._listener is not None and server._listener._closer.waiting == 3, "three that wait")
        with pytest.raises(TimeoutError):
            ReportClient(path, patience=0.2)
        client.report(report_array(10, pid=PID))
        eventually(lambda: client.pending == 0, "reports of another producer")
        server.close()
        # Two while it ran, and the one of its end.
        eventually(lambda: len(lost()) == 3, "a third one")
        for process in map(int, lost()):
            os.kill(process, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(process, 0)
