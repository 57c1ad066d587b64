# SPDX-License-Identifier: GPL-2.0-only
"""Page faults are recorded with address, thread and CPU, of watched processes only."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kdamon.mm import Faults
from kdamon.mm.sampling import fault_recorder as faults_module
from kdamon.mm.sampling.fault_recorder import _SAMPLE, FaultRecorder, _numbers, _samples
from tests.support.capabilities import needs_pid_namespace
from tests.support.paths import ROOT
from tests.support.workload import TARGET_CPU, Workload

pytestmark = pytest.mark.real


PAGES = 1024


@pytest.fixture(name="recorder")
def _recorder() -> Iterator[FaultRecorder]:
    found = FaultRecorder()
    yield found
    found.close()


def _of(work: Workload, faults: Faults) -> Faults:
    """Those in the workload's memory, in the order of their times."""
    inside = (faults["addr"] >= work.base) & (faults["addr"] < work.base + 4096 * work.pages)
    return np.sort(faults[inside], order="time")


def test_first_writes_and_reads_are_told_apart(recorder: FaultRecorder, program: Path) -> None:
    """Each with address, process, thread, CPU and node."""
    with Workload([program], "untouched", PAGES) as work:
        recorder.watch(work.pid)
        work.order("w", np.arange(0, PAGES, 2))
        work.order("r", np.arange(1, PAGES, 2))
        faults = _of(work, recorder.read())
        assert ((faults["addr"] - np.uint64(work.base)) // np.uint64(4096)).tolist() == [
            *range(0, PAGES, 2),
            *range(1, PAGES, 2),
        ]
        assert [True] * (PAGES // 2) + [False] * (PAGES // 2) == faults["write"].tolist()
        assert set(faults["pid"].tolist()) == set(faults["tid"].tolist()) == {work.pid}
        assert {TARGET_CPU} == set(faults["cpu"].tolist())
        node = Path(f"/sys/devices/system/cpu/cpu{TARGET_CPU}")
        assert {f"node{number}" for number in set(faults["node_id"].tolist())} == {
            path.name for path in node.glob("node[0-9]*")
        }


def test_the_kernels_writes_are_recorded(recorder: FaultRecorder, program: Path) -> None:
    """read(2) into memory that is not there yet."""
    with Workload([program], "untouched", PAGES) as work:
        recorder.watch(work.pid)
        work.order("k", np.arange(PAGES))
        faults = _of(work, recorder.read())
        assert PAGES == len(np.unique(faults["addr"] >> np.uint64(12)))
        assert faults["write"].all()


def test_others_are_not_recorded(recorder: FaultRecorder, program: Path) -> None:
    """Neither before a process is watched, nor when the last watcher left."""
    with Workload([program], "untouched", PAGES) as work:
        work.order("w", range(100))
        assert not recorder.watching
        recorder.watch(work.pid)
        recorder.watch(work.pid)
        work.order("w", range(100, 200))
        recorder.unwatch(work.pid)
        work.order("w", range(200, 300))
        assert recorder.watching
        recorder.unwatch(work.pid)
        assert not recorder.watching
        work.order("w", range(300, 400))
        pages = (_of(work, recorder.read())["addr"] - np.uint64(work.base)) >> np.uint64(12)
        assert pages.tolist() == list(range(100, 300))


def test_each_fault_is_read_once_and_in_order_while_rings_wrap(program: Path) -> None:
    """A record may lie at the end and at the beginning of a ring."""
    recorder = FaultRecorder(1 << 16)
    pages = 8192
    with Workload([program], "untouched", pages) as work:
        recorder.watch(work.pid)
        read = []
        for first in range(0, pages, 500):
            work.order("w", range(first, min(first + 500, pages)))
            read.append(_of(work, recorder.read()))
        found = (np.concatenate(read)["addr"] - np.uint64(work.base)) >> np.uint64(12)
        assert found.tolist() == list(range(pages))
        assert 0 == recorder.lost
    recorder.close()


def test_what_does_not_fit_is_counted(program: Path) -> None:
    """Read and lost faults together are those that there were."""
    recorder = FaultRecorder(1 << 16)
    pages = 8192
    with Workload([program], "untouched", pages) as work:
        stat = Path(f"/proc/{work.pid}/stat")
        recorder.watch(work.pid)
        before = int(stat.read_text(encoding="ascii").rsplit(")", 1)[1].split()[7])
        total = len(recorder.read())
        for first in (0, pages // 2):
            work.order("w", range(first, first + pages // 2))
            total += len(recorder.read())
        after = int(stat.read_text(encoding="ascii").rsplit(")", 1)[1].split()[7])
        assert recorder.lost > pages // 2
        assert total + recorder.lost == after - before
        # Nothing of what the kernel says about the loss disturbs what comes then.
        work.order("d")
        work.order("w", range(100))
        assert 100 == len(_of(work, recorder.read()))
    recorder.close()


def test_notes_about_lost_records_are_stepped_over() -> None:
    """They are shorter than ours."""
    records = np.zeros(5, dtype=_SAMPLE)
    records["type"], records["size"], records["addr"] = 9, _SAMPLE.itemsize, np.arange(5)
    raw = records.view(np.uint8)
    note = np.zeros(24, dtype=np.uint8)
    note[0], note[6] = 2, 24
    stride = _SAMPLE.itemsize
    recorded = np.concatenate((note, raw[: 2 * stride], note, note, raw[2 * stride :], note))
    assert [0, 1, 2, 3, 4] == _samples(recorded)["addr"].tolist()
    assert len(_samples(note)) == len(_samples(note[:0])) == 0


@pytest.mark.parametrize(
    ("text", "expected"), [("0-3,8\n", [0, 1, 2, 3, 8]), ("5", [5]), ("\n", []), ("0,2-3", [0, 2, 3])]
)
def test_the_kernels_lists_of_numbers(text: str, expected: list[int]) -> None:
    """Of CPUs, for example."""
    assert expected == _numbers(text)


def test_rings_of_many_cpus_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them together have an upper bound."""
    monkeypatch.setattr(faults_module, "_ALL_RINGS", 1 << 20)
    recorder = FaultRecorder()
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    rings = [[int(x, 16) for x in line.split()[0].split("-")] for line in lines if "perf_event" in line]
    recorder.close()
    assert 0 < sum(end - start for start, end in rings) <= (1 << 20) + 4096 * len(rings)


def test_closing_leaves_nothing_open(program: Path) -> None:
    """No file, no mapping, no program that goes on."""

    def held() -> tuple[list[str], int]:
        fds = os.listdir("/proc/self/fd")
        return fds, Path("/proc/self/maps").read_text(encoding="utf-8").count("perf_event")

    before = held()
    for _ in range(3):
        recorder = FaultRecorder()
        assert len(held()[0]) > len(before[0])
        assert held()[1] > before[1]
        recorder.close()
    assert held() == before


@needs_pid_namespace
def test_numbers_are_those_of_this_pid_namespace() -> None:
    """Where process 1 is another one than outside."""
    script = """
        import ctypes, mmap, os
        from kdamon.mm.sampling.fault_recorder import FaultRecorder
        recorder = FaultRecorder()
        assert os.getpid() == 1
        recorder.watch(1)
        memory = mmap.mmap(-1, 100 * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for page in range(100):
            memory[page * 4096] = 1
        faults = recorder.read()
        mine = faults[(faults["addr"] >= base) & (faults["addr"] < base + len(memory))]
        print(len(mine), set(faults["pid"].tolist()), set(mine["tid"].tolist()))
    """
    command = ["unshare", "-pf", "--mount-proc", sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (0, "100 {1} {1}\n") == (done.returncode, done.stdout), done.stderr
