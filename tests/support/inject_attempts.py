# SPDX-License-Identifier: GPL-2.0-only
"""Attempts to take a userfaultfd from a process that checks itself, and what must be true after each."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from kdamon.mm.inject import requests as inject
from tests.support.inject_targets import PYTHON, Suspicious, build, leftovers
from tests.support.waiting import eventually

__all__ = ["attempt", "check", "target"]


def target(directory: Path, kind: str) -> Suspicious:
    """One of the processes that check themselves."""
    if kind == "python":
        return Suspicious(sys.executable, "-c", PYTHON)
    if kind == "static":
        return Suspicious(build(directory, "inject_static", "-static"), "threads")
    return Suspicious(build(directory, "inject_target"), kind)


def check(process: Suspicious) -> None:
    """Nothing is left of the attempt, and the process has the threads that it had."""
    assert eventually(lambda: not leftovers(process.pid)), leftovers(process.pid)
    assert eventually(lambda: len(os.listdir(f"/proc/{process.pid}/task")) == process.threads)
    assert process.process.poll() is None


def attempt(process: Suspicious) -> bool:
    """Take a userfaultfd once; return whether the helper lived to give it."""
    try:
        os.close(inject._take(process.pid, lambda: True, {}))
    except inject._Again:
        return False
    return True
