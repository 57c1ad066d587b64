# SPDX-License-Identifier: GPL-2.0-only
"""Programs that use the same part of their memory all the time: each a context manager that gives their process."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

__all__ = ["PROGRAMS", "MissingError"]

#: Seconds until a server answers.
_PATIENCE = 60

#: Writes to 512 MiB, or as many as the argument says. Zipf's law: 20000 pages a second, few of them often.
_ZIPF = """
import mmap, sys, time
import numpy as np
pages, rng = int(sys.argv[1]) << 8, np.random.default_rng(1)
own = mmap.mmap(-1, pages << 12, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
# A huge page counts as a whole.
own.madvise(mmap.MADV_NOHUGEPAGE)
memory = np.frombuffer(own, np.uint8).reshape(pages, 4096)
memory[:, 0] = 1
place = rng.permutation(pages)
share = np.cumsum(1 / np.arange(1, pages + 1))
print("ready", flush=True)
due = time.monotonic()
while True:
    drawn = np.searchsorted(share, rng.random(400) * share[-1])
    memory[place[np.minimum(drawn, pages - 1)], 0] += 1
    due += 0.02
    time.sleep(max(0, due - time.monotonic()))
"""

#: Serves one of 20000 objects of 10 KB for each request; most requests are for the first hundredth of them.
_WEB = """
import http.server, random
objects = [bytes([number % 256]) * 10_000 for number in range(20_000)]

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = objects[int(self.path[1:]) % len(objects)]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""

#: Asks for objects, 200 a second.
_CLIENT = """
import http.client, random, sys, time
rng, due = random.Random(1), time.monotonic()
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
while True:
    connection.request("GET", f"/{rng.randrange(200) if rng.random() < 0.95 else rng.randrange(20_000)}")
    connection.getresponse().read()
    due += 0.005
    time.sleep(max(0, due - time.monotonic()))
"""

#: Asks a redis at a socket for any of 200000 values, 800 a second.
_REDIS_CLIENT = """
import random, socket, sys, time
rng, due = random.Random(1), time.monotonic()
with socket.socket(socket.AF_UNIX) as server:
    server.connect(sys.argv[1])
    answers = server.makefile("rb")
    while True:
        server.sendall(b"GET key:%012d\\r\\n" % rng.randrange(200_000))
        answers.read(int(answers.readline()[1:]) + 2)
        due += 1 / 800
        time.sleep(max(0, due - time.monotonic()))
"""


class MissingError(Exception):
    """This machine lacks what a program needs; a sentence says what."""


@contextmanager
def _started(*words: str | Path, user: str | None = None) -> Iterator[subprocess.Popen[str]]:
    """A process that is gone in the end."""
    quiet = subprocess.DEVNULL
    with subprocess.Popen(
        [*map(str, words)], stdin=quiet, stdout=subprocess.PIPE, stderr=quiet, text=True, user=user, cwd="/"
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def _line(process: subprocess.Popen[str]) -> str:
    """What it says first, which means that it is ready."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"{process.args} ended"
    return line.strip()


@contextmanager
def stairs() -> Iterator[int]:
    """20 MiB without a pause, 60 MiB each five seconds, and 120 MiB never."""
    words = ("--warm-period-ms", "5000", "--rest-us", "20000", "--seconds", "600")
    with _started(sys.executable, "-m", "kdamon_tools.workloads.stairs", *words) as process:
        # Its memory is there once it began its second round.
        time.sleep(8)
        yield process.pid


@contextmanager
def zipf(mib: int = 512) -> Iterator[int]:
    """20000 writes a second by Zipf's law."""
    with _started(sys.executable, "-c", _ZIPF, str(mib)) as process:
        _line(process)
        yield process.pid


@contextmanager
def web() -> Iterator[int]:
    """A web server in Python with 200 MB of objects."""
    with _started(sys.executable, "-c", _WEB) as server, _started(sys.executable, "-c", _CLIENT, _line(server)):
        yield server.pid


def _until(answers: Callable[[], bool]) -> None:
    end = time.monotonic() + _PATIENCE
    while not answers():
        assert time.monotonic() < end, "it does not answer"
        time.sleep(0.1)


@contextmanager
def redis() -> Iterator[int]:
    """redis with 200000 values of 1000 bytes, and 800 GETs a second of any of them."""
    if shutil.which("redis-server") is None:
        raise MissingError("there is no redis: install redis-server")
    with tempfile.TemporaryDirectory(prefix="kdamon-redis-") as directory:
        place = f"{directory}/socket"
        words = ("--port", "0", "--unixsocket", place, "--save", "", "--appendonly", "no", "--dir", directory)
        with _started("redis-server", *words) as server:
            ask = ("redis-cli", "-s", place)
            _until(lambda: subprocess.run([*ask, "ping"], capture_output=True, check=False).stdout == b"PONG\n")
            script = "for i = 0, 199999 do redis.call('SET', string.format('key:%012d', i), string.rep('x', 1000)) end"
            subprocess.run([*ask, "eval", script, "0"], capture_output=True, check=True)
            with _started(sys.executable, "-c", _REDIS_CLIENT, place):
                yield server.pid


@contextmanager
def postgres() -> Iterator[int]:
    """The backend of ``pgbench -S -R 400``, at a scale of 20."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    if not programs or not (programs[-1] / "pgbench").exists():
        raise MissingError("there is no PostgreSQL: install postgresql")
    if os.geteuid() != 0:
        raise MissingError("PostgreSQL is started as the user postgres: run as root")
    found = programs[-1]
    user = pwd.getpwnam("postgres")
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="kdamon-postgres-"))
        os.chown(directory, user.pw_uid, user.pw_gid)
        data = f"{directory}/data"

        def run(*words: str | Path) -> str:
            done = subprocess.run(
                [*map(str, words)], user="postgres", capture_output=True, text=True, cwd="/", check=True
            )
            return done.stdout

        run(found / "initdb", "-D", data, "-A", "trust", "--no-sync")
        settings = ("-c", "listen_addresses=", "-c", f"unix_socket_directories={directory}", "-c", "fsync=off")
        stack.enter_context(_started(found / "postgres", "-D", data, *settings, user="postgres"))
        ready = [found / "pg_isready", "-h", directory]
        _until(lambda: subprocess.run(ready, capture_output=True, check=False).returncode == 0)
        run(found / "pgbench", "-h", directory, "-i", "-q", "-s", "20", "postgres")
        load = (found / "pgbench", "-h", directory, "-n", "-S", "-R", "400", "-T", "600", "postgres")
        stack.enter_context(_started(*load, user="postgres"))
        query = "SELECT pid FROM pg_stat_activity WHERE application_name = 'pgbench'"
        ask = (found / "psql", "-h", directory, "-A", "-t", "-c", query, "postgres")
        _until(lambda: bool(run(*ask).strip()))
        # It maps a shared buffer when it first reads it.
        time.sleep(20)
        yield int(run(*ask).split()[0])


#: By name. They raise :class:`MissingError` where they cannot be started.
PROGRAMS: dict[str, Callable[[], AbstractContextManager[int]]] = {
    "stairs": stairs,
    "zipf": zipf,
    "web": web,
    "redis": redis,
    "postgres": postgres,
}
