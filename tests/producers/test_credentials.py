# SPDX-License-Identifier: GPL-2.0-only
"""Which process may look at which: the kernel's rules, on real credentials and on possible ones."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
from attrs import evolve

from kdamon.lib.pidfd import pidfd_open
from kdamon.producers.credentials import (
    Credentials,
    KnownProcesses,
    Rights,
    SpareQuestions,
    credentials_of,
    may_access,
)
from tests.support.paths import ROOT
from tests.support.waiting import eventually

pytestmark = pytest.mark.real


SYS_PTRACE = 1 << 19
SYS_NICE = 1 << 23
HERE, ELSEWHERE = (4, 1), (4, 2)
USER = Credentials((7, 7, 7), (8, 8, 8), 0, 0, True, HERE)


@pytest.mark.parametrize(
    ("peer", "target", "may"),
    [
        ({}, {}, True),
        ({}, {"uids": (7, 7, 9)}, False),
        ({}, {"uids": (7, 9, 7)}, False),
        ({}, {"uids": (9, 7, 7)}, False),
        ({}, {"gids": (8, 8, 9)}, False),
        ({"uids": (7, 9, 9)}, {}, True),
        ({"uids": (9, 7, 7)}, {}, False),
        ({}, {"dumpable": False}, False),
        ({"dumpable": False}, {}, True),
        ({}, {"permitted": SYS_NICE}, False),
        ({"permitted": SYS_NICE}, {"permitted": SYS_NICE}, True),
        ({}, {"user_ns": ELSEWHERE}, False),
        ({}, {"user_ns": None}, False),
        ({"user_ns": None}, {"user_ns": None}, False),
        ({"effective": SYS_PTRACE}, {"uids": (0, 0, 0), "dumpable": False, "permitted": 2**40 - 1}, True),
        ({"permitted": SYS_PTRACE}, {"uids": (0, 0, 0)}, False),
        ({"effective": SYS_PTRACE}, {"user_ns": ELSEWHERE}, False),
        # None is our own PID namespace, in which the numbers are.
        ({}, {"pid_ns": ELSEWHERE}, True),
        ({"pid_ns": HERE}, {"pid_ns": HERE}, True),
        ({"pid_ns": HERE}, {}, False),
        ({"pid_ns": HERE}, {"pid_ns": ELSEWHERE}, False),
        ({"pid_ns": HERE, "effective": SYS_PTRACE}, {}, False),
    ],
)
def test_the_kernels_rules(peer: dict[str, Any], target: dict[str, Any], may: bool) -> None:
    """All users and groups of the target are the peer's real ones, it is dumpable and has no more capabilities."""
    assert may == may_access(evolve(USER, **peer), evolve(USER, **target))


def loaded(pid: int, user: int) -> int:
    """Wait until process ``pid`` of ``user`` is dumpable: shortly after an exec() closed its files it is not yet."""
    eventually(lambda: os.stat(f"/proc/{pid}").st_uid == user, "a program that runs")
    return pid


def test_the_credentials_of_a_process() -> None:
    own = os.pidfd_open(os.getpid())
    with subprocess.Popen(["sleep", "600"], user=7, group=8, extra_groups=[]) as process:
        pidfd = pidfd_open(process.pid)
        try:
            loaded(process.pid, 7)
            namespace = credentials_of(os.getpid(), own).user_ns
            assert evolve(USER, user_ns=namespace) == credentials_of(process.pid, pidfd)
            process.kill()
            process.wait()
            with pytest.raises(ProcessLookupError):
                credentials_of(process.pid, pidfd)
        finally:
            process.kill()
            os.close(pidfd)
            os.close(own)


def test_who_changed_its_user_since_it_connected_has_no_rights() -> None:
    """It may be another program by now, and more mighty."""
    with subprocess.Popen(["sleep", "600"], user=7, group=8, extra_groups=[]) as process:
        pidfd = pidfd_open(process.pid)
        try:
            for uid, gid in ((0, 8), (7, 0)):
                with pytest.raises(PermissionError):
                    Rights(process.pid, pidfd, uid, gid, KnownProcesses())
            loaded(process.pid, 7)
            rights = Rights(process.pid, pidfd, 7, 8, KnownProcesses())
            assert [True, False, False] == rights.permitted([process.pid, 0, os.getpid()])
        finally:
            process.kill()
            os.close(pidfd)


@pytest.fixture
def sleepers() -> Iterator[Callable[[int], int]]:
    """Starts processes of a user; returns their numbers."""
    running: list[subprocess.Popen[bytes]] = []

    def start(user: int = 7, group: int = 8) -> int:
        running.append(subprocess.Popen(["sleep", "600"], user=user, group=group, extra_groups=[]))
        return loaded(running[-1].pid, user)

    files = len(os.listdir("/proc/self/fd"))
    yield start
    for process in running:
        process.kill()
        process.wait()
    assert files == len(os.listdir("/proc/self/fd"))


@contextmanager
def rights_of(pid: int, known: KnownProcesses) -> Iterator[Rights]:
    """What process ``pid`` of user 7 and group 8 may report on."""
    pidfd = pidfd_open(pid)
    try:
        yield Rights(pid, pidfd, 7, 8, known)
    finally:
        os.close(pidfd)


def test_questions_are_limited(sleepers: Callable[..., int]) -> None:
    """A peer that names thousands of processes gets answers about a few, and costs no more; later it may go on."""
    known = KnownProcesses()
    peer = sleepers()
    with rights_of(peer, known) as rights, patch.object(KnownProcesses, "_ask", side_effect=ProcessLookupError) as ask:
        for first in range(5_000_000, 5_020_000, 1000):
            assert [False] * 1000 == rights.permitted(list(range(first, first + 1000)))
        assert 256 <= ask.call_count < 1000
        assert [True] == rights.permitted([peer])
        known._then -= 1_000_000_000
        rights.permitted([os.getpid()])
        assert known._questions > 200


def test_questions_that_others_do_not_ask_are_not_wasted() -> None:
    """One that reports on 256 processes, with users beside it that only have rings, asks about each every second."""
    spare = SpareQuestions()
    one, other = KnownProcesses(spare=spare), KnownProcesses(spare=spare)
    second = 1_000_000_000
    start = time.monotonic_ns()

    def asked(known: KnownProcesses, now: int, n: int) -> int:
        known.look(now, 10)
        return sum(known.may(USER, pid, now) for pid in range(1, n + 1))

    with patch.object(KnownProcesses, "_ask", return_value=True):
        # What each may ask at first.
        assert 256 <= asked(one, start, 1000)
        assert 256 <= asked(other, start, 1000)
        # They asked more than there is.
        assert 30 == asked(one, start + second, 30)
        assert [256] * 5 == [asked(one, start + i * second, 256) for i in range(4, 9)]
        # Others ask, too: each has its own, and all together no more than those of a second.
        both = [asked(known, start + i * second, 256) for i in range(9, 19) for known in (other, one)]
        assert min(both) >= 30
        assert sum(both) <= 300 * 10 + 256


def test_nothing_is_kept_of_a_process_that_the_peer_must_not_look_at(sleepers: Callable[..., int]) -> None:
    """However many it names: no descriptor, and of the number not much either."""
    known = KnownProcesses()
    others = [sleepers(9, 9) for _ in range(20)]
    with rights_of(sleepers(), known) as rights:
        files = len(os.listdir("/proc/self/fd"))
        assert [False] * 20 == rights.permitted(others)
        assert [False] * 20 == rights.permitted(others)
        assert files == len(os.listdir("/proc/self/fd"))
        known._questions = 1e9
        for first in range(6_000_000, 6_010_000, 200):
            rights.permitted(list(range(first, first + 200)))
        assert len(known._refused) <= 1024


def test_the_peers_of_one_user_share_what_is_known(sleepers: Callable[..., int]) -> None:
    """One descriptor for each process, however many producers report on it."""
    known = KnownProcesses()
    own, foreign = sleepers(), sleepers(9, 9)
    with rights_of(sleepers(), known) as one, rights_of(sleepers(), known) as other:
        files = len(os.listdir("/proc/self/fd"))
        for rights in (one, other, one):
            assert [True, False] == rights.permitted([own, foreign])
        assert 1 == len(known)
        # It, and what reports its end.
        assert files + 2 == len(os.listdir("/proc/self/fd"))
        known.close()
        assert files == len(os.listdir("/proc/self/fd"))


def test_without_room_for_descriptors_answers_are_right_and_nothing_is_kept(sleepers: Callable[..., int]) -> None:
    """The process that was held first makes room for the next one."""
    taken: list[int] = []

    def take(n: int) -> bool:
        if n > 0 and sum(taken) >= room:
            return False
        taken.append(n)
        return True

    known = KnownProcesses(take)
    first, second = sleepers(), sleepers()
    with rights_of(sleepers(), known) as rights:
        room = 0
        assert [True, True] == rights.permitted([first, second])
        assert (0, []) == (len(known), taken)
        room = 1
        assert [True, True] == rights.permitted([first, second])
        assert (1, [1, -1, 1]) == (len(known), taken)
        known.close()
        assert 0 == sum(taken)


REUSED = """
import os, signal
from kdamon.producers.credentials import KnownProcesses, Rights
from kdamon.lib.pidfd import pidfd_open

def child(user, pid=None):
    if pid:
        with open("/proc/sys/kernel/ns_last_pid", "w") as last:
            last.write(str(pid - 1))
    new = os.fork()
    if not new:
        os.setresgid(8, 8, 8)
        os.setresuid(user, user, user)
        os.execv("/bin/sleep", ["sleep", "600"])
    # Not dumpable before that.
    while os.readlink(f"/proc/{new}/exe") == os.readlink("/proc/self/exe") or os.stat(f"/proc/{new}").st_uid != user:
        pass
    assert pid in (None, new), (pid, new)
    return new

def end(pid):
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

def answers(pid):
    return [one.permitted([pid]) for one in rights]

assert os.getpid() == 1
known = KnownProcesses()
peers = [child(7), child(7)]
rights = [Rights(peer, pidfd_open(peer), 7, 8, known) for peer in peers]
subject = child(7)
assert [[True], [True]] == answers(subject)
end(subject)
assert [[False], [False]] == answers(subject)
known._refused.clear()
os.waitpid(subject, 0)
subject = child(7, subject)
assert [[True], [True]] == answers(subject)
# Within the time for which an answer holds.
end(subject)
os.waitpid(subject, 0)
assert subject == child(9, subject)
assert [[False], [False]] == answers(subject)

# A peer may go on after its end: a child of it has the ring, too.
peer = peers[0]
end(peer)
assert [[True], [False]] == answers(peer)
os.waitpid(peer, 0)
assert [[True], [False]] == answers(peer)
known._refused.clear()
assert peer == child(7, peer)
assert [[False], [True]] == answers(peer)
known.close()
print("done")
"""


def test_a_number_that_is_used_again_is_asked_about_again() -> None:
    """In the middle of the time for which an answer holds, for all peers of the user; also the number of a peer."""
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", REUSED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert (0, "done\n") == (done.returncode, done.stdout), done.stderr
