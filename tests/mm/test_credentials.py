# SPDX-License-Identifier: GPL-2.0-only
"""Who may look at whom: the kernel's rules, on credentials as they are and as it may happen."""

from __future__ import annotations

import os
import subprocess
from typing import Any
from unittest.mock import patch

import pytest
from attrs import evolve

from kdamon.mm.credentials import Credentials, Rights, credentials_of, may_access
from kdamon.mm.madvise import pidfd_open

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
    ],
)
def test_the_kernels_rules(peer: dict[str, Any], target: dict[str, Any], may: bool) -> None:
    """All users and groups of the target are the peer's real ones, it is dumpable and has no more capabilities."""
    assert may == may_access(evolve(USER, **peer), evolve(USER, **target))


def test_the_credentials_of_a_process() -> None:
    own = os.pidfd_open(os.getpid())
    with subprocess.Popen(["sleep", "600"], user=7, group=8, extra_groups=[]) as process:
        pidfd = pidfd_open(process.pid)
        try:
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
                    Rights(process.pid, pidfd, uid, gid)
            rights = Rights(process.pid, pidfd, 7, 8)
            assert [True, False, False] == rights.permitted([process.pid, 0, os.getpid()])
            rights.close()
        finally:
            process.kill()
            os.close(pidfd)


def test_questions_are_limited() -> None:
    """A peer that names thousands of processes gets its answers about a few, and costs no more; later it may go on."""
    with subprocess.Popen(["sleep", "600"], user=7, group=8, extra_groups=[]) as process:
        pidfd = pidfd_open(process.pid)
        rights = Rights(process.pid, pidfd, 7, 8)
        try:
            files = len(os.listdir("/proc/self/fd"))
            asked: list[int] = []
            ask = Rights._ask
            with patch.object(Rights, "_ask", lambda self, pid, now: (asked.append(pid), ask(self, pid, now))[1]):
                for first in range(5_000_000, 5_020_000, 1000):
                    assert [False] * 1000 == rights.permitted(list(range(first, first + 1000)))
            assert 256 <= len(asked) < 1000
            assert [True] == rights.permitted([process.pid])
            assert len(os.listdir("/proc/self/fd")) <= files + 256
            rights._then -= 1_000_000_000
            rights.permitted([os.getpid()])
            assert rights._questions > 200
        finally:
            rights.close()
            process.kill()
            os.close(pidfd)
