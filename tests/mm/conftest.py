# SPDX-License-Identifier: GPL-2.0-only
"""What tests on real processes need: the machine, a compiled workload, two processors."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from kdamon.mm.inject import requests as inject
from kdamon.mm.inject.budget import StopBudget
from kdamon.mm.linux.machine import LinuxMachine, linux_machine
from kdamon.mm.proc import cgroup
from tests.support.capabilities import skip_because
from tests.support.paths import SUPPORT, public_directory
from tests.support.process_memory import PAGE, PAGES
from tests.support.workload import MONITOR_CPU, build


@pytest.fixture(name="budget", autouse=True)
def _budget(monkeypatch: pytest.MonkeyPatch) -> StopBudget:
    """Processes that are stopped as often as a test likes; what they otherwise may be."""
    monkeypatch.setattr(inject, "_budget", StopBudget(1e9, 1e9))
    return StopBudget()


@pytest.fixture(scope="session")
def machine() -> Iterator[LinuxMachine]:
    """The running kernel, by the page table walk."""
    try:
        found = linux_machine("page_table")
    except OSError as error:
        skip_because(error)
    yield found
    found.close()


@pytest.fixture(scope="session")
def faulting() -> Iterator[LinuxMachine]:
    """This machine, which monitors by faults."""
    found = linux_machine("page_fault")
    try:
        with subprocess.Popen(["sleep", "60"]) as child:
            try:
                found.get_task(child.pid, "page_fault").put()
            finally:
                child.kill()
    except OSError as error:
        skip_because(error)
    yield found
    found.close()


@pytest.fixture(scope="session")
def directory() -> Iterator[Path]:
    """A directory on a disk that any user may read."""
    with public_directory() as path:
        yield path


@pytest.fixture(scope="session")
def program(directory: Path) -> Path:
    """The workload."""
    return build(directory)


@pytest.fixture(autouse=True)
def pinned() -> Iterator[None]:
    """Run the test on another processor than its target."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {MONITOR_CPU})
    yield
    os.sched_setaffinity(0, before)


@pytest.fixture
def group() -> Iterator[tuple[str, Path]]:
    """A control group of a test, which needs those of the second version and root: its path as the kernel writes it,
    and its directory.
    """
    mounted, root = cgroup._root()
    name = f"kdamon-test-{os.getpid()}"
    directory = mounted / name
    directory.mkdir()
    yield f"{root.rstrip('/')}/{name}", directory
    # Bottom up, in pieces: the names may be too long for one system call.
    subprocess.run(["find", directory, "-depth", "-type", "d", "-execdir", "rmdir", "{}", ";"], check=True)


@pytest.fixture
def ending_helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has the helper send itself a signal when it calls ptrace() for the n-th time, after one to the process.

    Before that the process's control group is frozen, if one is given.
    """
    script = tmp_path / "inject_helper_ends.py"
    shutil.copy(SUPPORT / script.name, script)
    order = script.with_suffix(".order")
    helper = inject._HELPER
    monkeypatch.setattr(inject, "_HELPER", script)
    # Those that are kept from before would not do that.
    monkeypatch.setattr(inject, "_idle", [])
    # A busy machine may give the helper no CPU for a long time before it begins, which is no death of it.
    monkeypatch.setattr(inject, "_PATIENCE", 60.0)
    return lambda step, number, first=0, group="": (
        order.write_text(f"{step} {number} {first} {helper} {group}") and None
    )


@pytest.fixture
def data(directory: Path) -> Path:
    """A file with what 'w' orders write, on the disk and not in memory."""
    contents = np.zeros((PAGES, PAGE), np.uint8)
    contents[:, 128] = (np.arange(PAGES) * 7 + 3) % 256
    path = directory / "data"
    path.write_bytes(contents.tobytes())
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return path
