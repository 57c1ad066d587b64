# SPDX-License-Identifier: GPL-2.0-only
"""Trees on simulated processes, in real time: nothing here needs root, FUSE or a kernel feature."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from kdamon.kernel import ULONG_MAX
from kdamon.mm.sim.machine import SimMachine
from kdamon_fs.sysfs import SysfsTree, damon_sysfs_init
from tests.support.tree import CONTEXT, KDAMOND, KDAMONDS

#: Rows of the measured table, by what became of them; shown in the summary of the run.
ROWS: pytest.StashKey[Counter[str]] = pytest.StashKey()

MEBI = 1 << 20


class Session:
    """A tree and its machine, with the words of a shell."""

    def __init__(self, abi: str = "7.3") -> None:
        self.machine = SimMachine(seed=1)
        for pid in (1, 141, 150):
            self.spawn(pid)
        self.machine.memcgs["/foo"] = 2
        self.tree: SysfsTree = damon_sysfs_init(self.machine, abi)

    def spawn(self, pid: int) -> None:
        """Start a process with the usual three groups of mappings."""
        ranges = [(MEBI, 40 * MEBI), (1 << 32, (1 << 32) + 40 * MEBI), (1 << 46, (1 << 46) + MEBI)]
        self.machine.spawn(ranges, pid)

    def write(self, path: str, value: str | bytes) -> str:
        """Write and return "OK", the name of the errno, or how many bytes were taken."""
        data = value.encode() if isinstance(value, str) else value
        try:
            file = self.tree.open(path, 0o1)
        except OSError as error:
            return f"open:{errno.errorcode[error.errno or 0]}"
        try:
            taken = file.write(data)
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        return "OK" if taken == len(data) else f"short:{taken}"

    def read(self, path: str) -> str:
        """The content, or the name of the errno in angle brackets."""
        try:
            return self.tree.read(path).decode("utf-8", "backslashreplace")
        except OSError as error:
            return f"<{errno.errorcode[error.errno or 0]}>"

    def put(self, path: str, value: str | int) -> None:
        """Write what has to be taken."""
        assert "OK" == self.write(path, str(value)), f"{value} > {path}"

    def context(self) -> None:
        """One kdamond with one context."""
        self.put(f"{KDAMONDS}/nr_kdamonds", 1)
        self.put(f"{KDAMOND}/contexts/nr_contexts", 1)

    def monitor(self, pid: int = 150) -> None:
        """A kdamond that monitors ``pid``, with a scheme for all regions."""
        self.context()
        self.put(f"{CONTEXT}/targets/nr_targets", 1)
        self.put(f"{CONTEXT}/targets/0/pid_target", pid)
        self.scheme_for_all()

    def scheme_for_all(self) -> None:
        """A scheme that counts all regions."""
        self.put(f"{CONTEXT}/schemes/nr_schemes", 1)
        for bound in ("sz", "nr_accesses", "age"):
            self.put(f"{CONTEXT}/schemes/0/access_pattern/{bound}/max", ULONG_MAX)

    def state(self, command: str) -> str:
        """Write ``command`` to the state file."""
        return self.write(f"{KDAMOND}/state", command)


@pytest.fixture
def make_session() -> Iterator[Callable[..., Session]]:
    """A maker of sessions; what they run is stopped afterwards."""
    sessions: list[Session] = []

    def make(abi: str = "7.3") -> Session:
        sessions.append(Session(abi))
        return sessions[-1]

    yield make
    for session in sessions:
        session.tree.shutdown()


@pytest.fixture
def session(make_session: Callable[..., Session]) -> Session:
    """A tree as of Linux 7.3."""
    return make_session()


@pytest.fixture
def rows(pytestconfig: pytest.Config) -> Counter[str]:
    """Where to count rows of the measured table."""
    return pytestconfig.stash.setdefault(ROWS, Counter())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how much of the measured table was replayed, and what was left out why."""
    counted = terminalreporter.config.stash.get(ROWS, None)
    if counted:
        terminalreporter.section("answers measured on Linux 7.3")
        for what, number in counted.most_common():
            terminalreporter.write_line(f"{number:5} {what}")
