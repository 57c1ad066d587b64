# SPDX-License-Identifier: GPL-2.0-only
"""Producers, in C and in Python, at a socket whose server is stopped or hostile: an error, soon, and nothing worse."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kdamon.producers.ring import HELLO, MAGIC, REPLY, TAIL, VERSION, ReportRing, ring_size
from tests.support.capabilities import needs_root
from tests.support.hostile_sender import slow_to_close
from tests.support.paths import SUPPORT
from tests.support.reporter import compile_c

pytestmark = pytest.mark.real


NOBODY = 65534
OTHER = 65533
CAPACITY = 256
SIZE = ring_size(CAPACITY)
PYTHON = """
import sys
from kdamon.producers.client import ReportClient
try:
    with ReportClient(sys.argv[1], patience=0.5):
        print("ready")
except OSError as error:
    print("refused", error.errno)
"""
SERVER = """
import sys
from kdamon.producers.server import ReportServer
with ReportServer(sys.argv[1]):
    print("ready", flush=True)
    sys.stdin.readline()
"""
OPEN = """
#include "kdamon_report.h"
int main(void)
{
	kdamon_report_close(kdamon_report_open(NULL));
	return 0;
}
"""


@pytest.fixture(scope="module")
def public() -> Iterator[Path]:
    """A directory that every user reaches."""
    with tempfile.TemporaryDirectory(prefix="kdamon-test-", dir="/var/tmp") as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)


@pytest.fixture(scope="module")
def program(public: Path) -> Path:
    """The producer in C, with little patience."""
    return compile_c(SUPPORT / "reporter.c", public / "reporter", "-DKDAMON_REPORT_PATIENCE=1")


@pytest.fixture
def place(public: Path) -> Iterator[Path]:
    """Where to serve."""
    path = public / "reports"
    yield path
    path.unlink(missing_ok=True)


def failure(language: str, path: Path, program: Path) -> int:
    """What opening a ring fails with, 0 if it does not; the producer ends, too."""
    command: list[str | Path] = [program, path, "0"] if language == "c" else [sys.executable, "-c", PYTHON, path]
    ended = subprocess.run(command, input="close\n", stdout=subprocess.PIPE, text=True, timeout=60, check=False)
    first, _, number = ended.stdout.splitlines()[0].partition(" ")
    assert first in ("ready", "refused")
    return int(number) if first == "refused" else 0


both = pytest.mark.parametrize("language", ["c", "python"])


@both
def test_a_stopped_server_does_not_answer(place: Path, program: Path, language: str) -> None:
    """It accepted, or the kernel did for it."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, place], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        assert "ready\n" == server.stdout.readline()
        server.send_signal(signal.SIGSTOP)
        try:
            assert errno.ETIMEDOUT == failure(language, place, program)
        finally:
            server.send_signal(signal.SIGCONT)
        assert 0 == failure(language, place, program)
        server.communicate("\n")


@both
def test_a_server_that_does_not_accept(place: Path, program: Path, language: str) -> None:
    """So many wait already that the kernel lets no other connect."""
    with listening(place) as server, contextlib.ExitStack() as waiting:
        server.listen(0)
        while True:
            other = waiting.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            other.setblocking(False)
            if other.connect_ex(os.fspath(place)) == errno.EAGAIN:
                break
        assert errno.ETIMEDOUT == failure(language, place, program)


@contextlib.contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(os.fspath(path))
        path.chmod(0o666)
        server.listen()
        yield server


def memory(size: int = SIZE, seals: int = fcntl.F_SEAL_SHRINK, capacity: int = CAPACITY) -> int:
    """A ring's memory as a server makes it, but for what the arguments say."""
    ring = ReportRing(CAPACITY, mapped=True)
    head = bytearray(os.pread(ring.fd, 4096, 0))
    head[24:32] = capacity.to_bytes(8, "little")
    ring.close()
    fd = os.memfd_create("hostile", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    os.pwrite(fd, head, 0)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


REPLIES: dict[str, Callable[[], list[int]]] = {
    "memory that can shrink": lambda: [memory(seals=fcntl.F_SEAL_GROW)],
    "too little memory": lambda: [memory(size=SIZE - 4096)],
    "more memory than was said": lambda: [memory(size=SIZE + 4096)],
    "a ring of another capacity": lambda: [memory(capacity=1 << 40)],
    "two memories": lambda: [memory(), memory()],
    "no memory": list,
    "a file": lambda: [os.open("/dev/zero", os.O_RDWR)],
}


@both
@pytest.mark.parametrize("what", [*REPLIES, "a socket that takes an hour to close"])
def test_a_reply_with_something_else(place: Path, program: Path, language: str, what: str) -> None:
    """No kdamon answers so. The producer neither waits for it nor dies of it."""
    with listening(place) as server, contextlib.ExitStack() as kept:
        if os.fork() == 0:
            # What was sent is the producer's alone.
            with contextlib.suppress(BaseException):
                answer(server, what)
            os._exit(0)
        kept.callback(os.wait)
        server.close()
        assert errno.EPROTO == failure(language, place, program)


def answer(server: socket.socket, what: str) -> None:
    """Be the hostile server of one producer, until that ends."""
    connection, _ = server.accept()
    connection.recv(HELLO.size)
    fds, beside = REPLIES[what]() if what in REPLIES else [], []
    if what not in REPLIES:
        slow, beside = slow_to_close()
        fds = [slow.detach()]
    producer, _, _ = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    # It must not be done with them before the last ones are those that were sent.
    os.kill(producer, signal.SIGSTOP)
    socket.send_fds(connection, [REPLY.pack(MAGIC, VERSION, 0, SIZE, 1, 0)], fds)
    for fd in fds:
        os.close(fd)
    os.kill(producer, signal.SIGCONT)
    connection.recv(1)
    del beside


def test_a_tail_that_makes_no_sense_keeps_a_producer_in_its_ring(place: Path, program: Path) -> None:
    """The server says that it read what was never written: the ring is full then."""
    with listening(place) as server:
        ring = ReportRing(CAPACITY, mapped=True)
        command = subprocess.Popen([program, place, "256"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        connection, _ = server.accept()
        connection.recv(HELLO.size)
        socket.send_fds(connection, [REPLY.pack(MAGIC, VERSION, 0, SIZE, 1, 0)], [ring.fd])
        for tail in (1 << 40, (1 << 64) - 1):
            ring._words[TAIL] = tail
            assert command.stdin is not None
            command.stdin.write("batch 1 0 1 100000\n")
            command.stdin.flush()
        ring._words[TAIL] = 1 << 40
        said, _ = command.communicate("close\n", timeout=60)
        connection.close()
        ring.close()
    assert ("ready 1", "0") == (said.splitlines()[0], said.splitlines()[-1])
    assert 0 == command.returncode
    assert all(int(taken) <= CAPACITY for taken in said.splitlines()[1:3])


@needs_root("a program with more rights than its user is needed: run as root")
@pytest.mark.parametrize("variable", ["KDAMON_REPORTS", "XDG_RUNTIME_DIR"])
def test_the_environment_of_a_set_uid_program_is_ignored(public: Path, variable: str) -> None:
    """Its user would choose the server that maps memory into it."""
    (public / "open.c").write_text(OPEN)
    opener = compile_c(public / "open.c", public / "opener")
    directory = public / "kdamon"
    directory.mkdir(exist_ok=True)
    directory.chmod(0o755)
    place = directory / "reports"
    environment = {variable: os.fspath(place if variable == "KDAMON_REPORTS" else public)}
    with listening(place) as server:
        server.setblocking(False)
        for mode, connected in ((0o755, True), (0o4755, False)):
            os.chown(opener, OTHER, OTHER)
            opener.chmod(mode)
            process = subprocess.Popen([opener], env=environment, user=NOBODY, group=NOBODY, extra_groups=[])
            came = False
            while process.poll() is None:
                with contextlib.suppress(BlockingIOError):
                    server.accept()[0].close()
                    came = True
            with contextlib.suppress(BlockingIOError):
                server.accept()[0].close()
                came = True
            assert connected == came
    place.unlink()


@needs_root("a program of another user is needed: run as root")
@pytest.mark.parametrize(("directory", "connected"), [("absolute", True), (".", False), ("", False)])
def test_a_relative_runtime_directory_is_not_used(public: Path, directory: str, connected: bool) -> None:
    """It would lead into the working directory, which may be anybody's."""
    (public / "open.c").write_text(OPEN)
    opener = compile_c(public / "open.c", public / "opener")
    place = public / "kdamon" / "reports"
    place.parent.mkdir(exist_ok=True)
    place.parent.chmod(0o755)
    environment = {"XDG_RUNTIME_DIR": directory.replace("absolute", os.fspath(public))}
    with listening(place) as server:
        server.setblocking(False)
        with subprocess.Popen(
            [opener], env=environment, cwd=public, user=NOBODY, group=NOBODY, extra_groups=[]
        ) as process:
            came = False
            ended = False
            while not ended:
                ended = process.poll() is not None
                with contextlib.suppress(BlockingIOError):
                    server.accept()[0].close()
                    came = True
    assert connected == came
    place.unlink()
