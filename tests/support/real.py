# SPDX-License-Identifier: GPL-2.0-only
"""Only tests with the marker ``real`` start processes, so that the others run in seconds, and several at once.

``pytest -m "not real"`` selects the others, and does not even import the modules that are real as a whole. A test that
starts a process without the marker fails at that place.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

__all__ = [
    "is_real_as_a_whole",
    "no_process_is_started",
    "pytest_collection_modifyitems",
    "pytest_pycollect_makemodule",
    "pytest_runtest_protocol",
]

_ALL_REAL = re.compile(r"^pytestmark = (?:\[\s*)?pytest\.mark\.real\b", re.MULTILINE)

_STARTS = frozenset({"os.fork", "os.forkpty", "os.posix_spawn", "os.system", "subprocess.Popen"})


class _Guard:
    """An audit hook, which cannot be removed, so there is one."""

    def __init__(self) -> None:
        self.forbids = False
        self.seen: list[str] = []

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.forbids and event in _STARTS:
            self.seen.append(f"{event} {arguments[:2]}")
            pytest.fail(f"a test without the marker real starts a process: {self.seen[-1]}")


_GUARD = _Guard()
sys.addaudithook(_GUARD)


def is_real_as_a_whole(source: str) -> bool:
    """Return whether each test of a module has the marker ``real``, because the module itself has it."""
    return _ALL_REAL.search(source) is not None


class OnlyRealTests(pytest.Module):
    """A module of which no test is selected: to import it takes time."""

    def collect(self) -> list[pytest.Item | pytest.Collector]:
        """Return no tests."""
        return []


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Leave out what ``-m "not real"`` deselects as a whole."""
    if parent.config.getoption("markexpr") != "not real":
        return None
    if not is_real_as_a_whole(module_path.read_text(encoding="utf-8")):
        return None
    return OnlyRealTests.from_parent(parent, path=module_path)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mounting starts no process as root, but it is nothing to do several times at once."""
    for item in items:
        if "fuse_binding" in getattr(item, "fixturenames", ()) and item.get_closest_marker("real") is None:
            raise pytest.UsageError(f"{item.nodeid} mounts, but lacks the marker real")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None]:
    """Watch a test from the set-up of its fixtures, of whatever scope, to their end."""
    _GUARD.seen.clear()
    _GUARD.forbids = item.get_closest_marker("real") is None
    yield
    _GUARD.forbids = False


@pytest.fixture(autouse=True)
def no_process_is_started() -> Iterator[None]:
    """Fail a test whose other threads, or whose own code, withheld the failure."""
    yield
    assert [] == _GUARD.seen, "a test without the marker real starts processes"
