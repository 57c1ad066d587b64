# SPDX-License-Identifier: GPL-2.0-only
"""Processes that notice when something is done to them, and what must be true of them afterwards."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support.capabilities import compiler as path_of

__all__ = [
    "FILTER",
    "KINDS",
    "SECCOMP",
    "SOAK",
    "Suspicious",
    "build",
    "leftovers",
    "mapping_of",
    "memory_file",
    "running",
    "sockets",
]

#: What ``inject_target.c`` can do over and over.
KINDS = ("spin", "sleep", "epoll", "select", "futex", "ipc", "signal", "socket", "aio", "pipe", "threads")

#: How often loops that look for rare failures go round; KDAMON_SOAK=500 for a thorough run.
SOAK = int(os.environ.get("KDAMON_SOAK", "0"))

#: A program in an interpreter that checks its memory, its sleeps and what it reads.
PYTHON = """
import select, sys, threading, time, os, hashlib
over = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), over.set())).start()
r, w = os.pipe()
threading.Thread(target=lambda: [(os.write(w, b"x" * 8), time.sleep(.002)) for _ in iter(over.is_set, True)]).start()
print("ready", flush=True)
poller = select.epoll()
want = hashlib.sha256(b"kdamon" * 5000).hexdigest()
while not over.is_set():
    assert os.read(r, 8) == b"x" * 8, "read"
    begin = time.monotonic()
    time.sleep(.01)
    assert time.monotonic() - begin >= .01, "sleep"
    assert poller.poll(.01) == [], "epoll"
    assert hashlib.sha256(b"kdamon" * 5000).hexdigest() == want, "memory"
    assert sum(i * i for i in range(1000)) == 332833500, "arithmetic"
print("good")
"""


def build(directory: Path, name: str, *flags: str, compiler: str = "cc") -> Path:
    """Compile ``inject_stacks.c``, ``inject_hostile.c``, ``inject_vfork.c`` or ``inject_target.c``, as a name begins.

    The test is skipped without a compiler.
    """
    program = directory / name
    if not program.exists():
        others = ("inject_stacks", "inject_hostile", "inject_vfork")
        known = next((known for known in others if name.startswith(known)), "inject_target")
        source = Path(__file__).with_name(f"{known}.c")
        subprocess.run([path_of(compiler), "-O1", "-pthread", *flags, "-o", program, source], check=True)
    return program


class Suspicious:
    """A running process that checks itself; as a context it must be content with itself at the end."""

    def __init__(self, *command: str | Path) -> None:
        self.process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        assert "ready\n" == self.process.stdout.readline()
        self.threads = len(os.listdir(f"/proc/{self.pid}/task"))

    @property
    def pid(self) -> int:
        return self.process.pid

    def __enter__(self) -> Suspicious:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            output, _ = self.process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            output = "hangs: " + self.process.communicate()[0]
        if kind is None:
            assert ("good\n", 0) == (output, self.process.returncode), output


@contextlib.contextmanager
def running(*command: str | Path) -> Iterator[int]:
    """The pid of a command that is killed in the end."""
    with subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield process.pid
        finally:
            process.kill()


def leftovers(pid: int) -> list[str]:
    """Traces of work on a process: a tracer, a stop, a userfaultfd."""
    found = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            lines = (thread / "status").read_text().splitlines()
            found += [line for line in lines if line.startswith("TracerPid:") and not line.endswith("\t0")]
            found += [line for line in lines if line.startswith(("State:\tt", "State:\tT"))]
            # All signals blocked, which none of the targets does for long in its main thread.
            if thread.name == str(pid):
                found += [line for line in lines if line.startswith(("SigBlk:\tfffffffe", "SigBlk:\tffffffff"))]
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += [target] if "userfaultfd" in (target := os.readlink(link)) else []
    return found


def memory_file(pid: int, name: str) -> str:
    """A file such as maps of a process, also where its first thread ended."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            if text := (thread / name).read_text():
                return text
    raise ProcessLookupError(pid)


def mapping_of(pid: int) -> tuple[int, int]:
    """Start and end of a part of a process's program."""
    start, end = memory_file(pid, "maps").split()[0].split("-")
    return int(start, 16), int(end, 16)


def sockets() -> set[str]:
    """The sockets that this process has."""
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.add(os.readlink(link))
    return {name for name in found if name.startswith("socket:")}


#: A filter that allows everything, for the thread that calls it.
FILTER = """
import ctypes, sys, threading, time
libc = ctypes.CDLL(None)
class Filter(ctypes.Structure):
    _fields_ = [("n", ctypes.c_ushort), ("p", ctypes.c_void_p)]
code = (ctypes.c_uint64 * 1)(0x7FFF000000000006)
def filter_calls():
    libc.prctl(38, 1, 0, 0, 0)
    assert libc.prctl(22, 2, ctypes.byref(Filter(1, ctypes.addressof(code)))) == 0
"""

SECCOMP = (
    FILTER
    + """
filter_calls()
print("ready", flush=True)
sys.stdin.read()
"""
)
