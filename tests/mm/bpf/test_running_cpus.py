# SPDX-License-Identifier: GPL-2.0-only
"""The CPUs on which threads of a process run, by a BPF program."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kdamon.mm.bpf.running_cpus import ANY_CPU, RunningCpus, running_cpus
from tests.support.capabilities import needs_root
from tests.support.waiting import eventually

pytestmark = pytest.mark.real

OWN = sorted(os.sched_getaffinity(0))
BUSY = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"


@pytest.fixture(name="cpus")
def _cpus() -> RunningCpus:
    """The one of this process."""
    found = running_cpus()
    if found is None:
        pytest.skip("no BPF program can see where threads run")
    return found


@contextmanager
def busy(text: str = BUSY) -> Iterator[tuple[int, int]]:
    """A process that is busy on the last CPU: its number and its open pagemap."""
    with subprocess.Popen([sys.executable, "-c", text]) as process:
        pagemap = os.open(f"/proc/{process.pid}/pagemap", os.O_RDONLY)
        try:
            os.sched_setaffinity(process.pid, {OWN[-1]})
            yield process.pid, pagemap
        finally:
            os.close(pagemap)
            process.kill()


@needs_root("looks at another process")
def test_the_cpu_of_a_process(cpus: RunningCpus) -> None:
    """Of a busy one it is that on which it may run; of one that is stopped there is none."""
    with busy() as (pid, pagemap):
        eventually(lambda: cpus.of(pagemap) == 1 << OWN[-1], "the CPU of the process")
        os.sched_setaffinity(pid, {OWN[0]})
        eventually(lambda: cpus.of(pagemap) == 1 << OWN[0], "its other CPU")
        os.kill(pid, signal.SIGSTOP)
        eventually(lambda: cpus.of(pagemap) == 0, "no CPU")


@needs_root("gives a process real-time priority")
def test_a_thread_of_real_time_priority_may_be_anywhere(cpus: RunningCpus) -> None:
    """Beside it another one may never run."""
    with busy() as (pid, pagemap):
        eventually(lambda: cpus.of(pagemap) == 1 << OWN[-1], "the CPU of the process")
        try:
            os.sched_setscheduler(pid, os.SCHED_FIFO, os.sched_param(1))
        except OSError:
            pytest.skip("kernel lacks: real-time priority for this control group")
        assert cpus.of(pagemap) in {ANY_CPU, 0}
        eventually(lambda: cpus.of(pagemap) == ANY_CPU, "any CPU")


def test_a_process_that_ended_has_none(cpus: RunningCpus) -> None:
    """Though its file is still open."""
    with subprocess.Popen(["sleep", "100"]) as process:
        pagemap = os.open(f"/proc/{process.pid}/pagemap", os.O_RDONLY)
        process.kill()
    found = cpus.of(pagemap)
    os.close(pagemap)
    assert 0 == found


#: Asks for it while no file can be opened, and afterwards.
SHORT_OF_FILES = """
import os, resource
from kdamon.mm.bpf.running_cpus import running_cpus
limits = resource.getrlimit(resource.RLIMIT_NOFILE)
first_free = os.dup(0)
os.close(first_free)
resource.setrlimit(resource.RLIMIT_NOFILE, (first_free, limits[1]))
print(running_cpus() is not None)
resource.setrlimit(resource.RLIMIT_NOFILE, limits)
print(running_cpus() is not None)
"""


@pytest.mark.usefixtures("cpus")
def test_a_lack_of_files_is_not_remembered() -> None:
    """Once there are some, it can be had."""
    done = subprocess.run([sys.executable, "-c", SHORT_OF_FILES], capture_output=True, text=True, check=True)
    assert ["False", "True"] == done.stdout.split()


def test_a_file_that_is_no_pagemap(cpus: RunningCpus, tmp_path: Path) -> None:
    """The kernel's memory is read as far as it can be."""
    with (tmp_path / "file").open("w") as file:
        assert 0 == cpus.of(file.fileno())
