# SPDX-License-Identifier: GPL-2.0-only
"""What a real process has in memory, in a record and its views: exact to the page, also after it gave memory back."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kdamon
from kdamon_tools.recorded.recording import recording_of
from kdamon_tools.recorded.selection import select
from kdamon_tools.views.where import idle_view, where_view
from tests.support.cli import run
from tests.support.json_schemas import validate

pytestmark = pytest.mark.real

MIB = 1 << 20
#: It maps 100 MiB and touches 40 MiB of them, and 10 MiB of a file; half of both is idle. Then it obeys commands.
TARGET = textwrap.dedent(
    """
    import ctypes, mmap, select, sys
    MIB = 1 << 20
    memory = mmap.mmap(-1, 100 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(15)
    with open(sys.argv[1], "rb") as data:
        file = mmap.mmap(data.fileno(), 10 * MIB, prot=mmap.PROT_READ, flags=mmap.MAP_SHARED)
    for page in range(0, 40 * MIB, 4096):
        memory[page] = 1
    total = sum(file[page] for page in range(0, 10 * MIB, 4096))
    print(ctypes.addressof(ctypes.c_char.from_buffer(memory)), flush=True)
    while True:
        for page in range(0, 20 * MIB, 4096):
            memory[page] = 2
        total += sum(file[page] for page in range(0, 5 * MIB, 4096))
        if select.select([sys.stdin], [], [], 0.02)[0]:
            order = sys.stdin.readline().strip()
            if order == "give back":
                memory.madvise(mmap.MADV_DONTNEED, 30 * MIB, 10 * MIB)
            elif order == "unmap":
                file.close()
                file = [0] * (5 * MIB)
            else:
                break
            print("done", flush=True)
    """
)


@pytest.fixture(name="data")
def _data(tmp_path: Path) -> Path:
    path = tmp_path / "data.bin"
    path.write_bytes(b"x" * (10 * MIB))
    return path


@contextmanager
def target(data: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The process, and the address of its 100 MiB."""
    with subprocess.Popen(
        [sys.executable, "-c", TARGET, str(data)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        base = int(process.stdout.readline())
        try:
            yield process, base
        finally:
            process.kill()


def order(process: subprocess.Popen[str], what: str) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    print(what, file=process.stdin, flush=True)
    assert "done\n" == process.stdout.readline()


def test_what_is_in_memory_is_recorded(data: Path, tmp_path: Path) -> None:
    """40 MiB anonymous and 10 MiB of the file, half of each idle."""
    path = tmp_path / "run.kdamon"
    with target(data) as (process, _):
        record(process.pid, path, seconds=6)
        with kdamon.open(path) as opened:
            recording = recording_of(select(opened, None, ()))
        where, idle = rows(where_view(recording)), rows(idle_view(recording))
        big, file = largest(where), where["data.bin"]
        assert [(40 * MIB, 0), (0, 10 * MIB)] == [
            (row["anon_bytes"], row["file_bytes"]) for row in (largest(idle), idle["data.bin"])
        ]
        assert pytest.approx(40 * MIB, rel=0.2) == big["anon_bytes"] + big["unknown_bytes"]
        assert pytest.approx(10 * MIB, rel=0.2) == file["file_bytes"] + file["unknown_bytes"]
        assert pytest.approx(20 * MIB, rel=0.2) == largest(idle)["idle_1s_bytes"]
        assert 2 * MIB < idle["data.bin"]["idle_1s_bytes"] < 7 * MIB


def test_memory_that_is_given_back_is_in_memory_no_more(data: Path) -> None:
    """Ten MiB of the idle half by MADV_DONTNEED, and all of the file."""
    with target(data) as (process, base), kdamon.monitor(pid=process.pid, watch=True, aggr_us=100_000) as monitor:
        wait_for(monitor, data, base, (40 * MIB, 10 * MIB))
        order(process, "give back")
        order(process, "unmap")
        wait_for(monitor, data, base, (30 * MIB, 0))


def wait_for(monitor: kdamon.Monitor, data: Path, base: int, wanted: tuple[int, int]) -> None:
    """Until so many bytes of the memory at ``base`` and of the file are in memory."""
    with open(f"/proc/{monitor.config.pid}/maps", encoding="utf-8") as lines:
        places = [line.split()[0].split("-") for line in lines if line.rstrip().endswith(data.name)]
    file = np.array([[int(edge, 16) for edge in place] for place in places], np.uint64).reshape(-1, 2)
    found = None
    for _, snapshot in zip(range(200), monitor, strict=False):
        if snapshot.residency is not None:
            [memory] = snapshot.residency.sums([(base, base + 100 * MIB)])
            found = int(memory["anon"]), int(snapshot.residency.sums(file)["file"].sum())
            if wanted == found:
                return
    assert wanted == found


def record(pid: int, path: Path, seconds: float) -> None:
    made = run("record", "--quiet", "-o", str(path), "--seconds", str(seconds), "--pid", str(pid))
    assert (0, "") == (made.returncode, made.stderr)


def rows(report: Any) -> dict[str, dict[str, Any]]:
    return {row.pop("name"): row for row in report.tables[-1].records()}


def largest(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The row of the 100 MiB."""
    return max(found.values(), key=lambda row: int(row["bytes"]))


def test_the_json_of_a_run_has_it(data: Path) -> None:
    with target(data) as (process, base):
        made = run("run", "--quiet", "--json=lines", "--seconds", "3", "--pid", str(process.pid))
    lines = [validate(json.loads(line), "kdamon.run.lines") for line in made.stdout.splitlines()]
    last = [line for line in lines if line["type"] == "aggregation"][-1]
    big = [one for one in last["regions"] if one["end"] > base and one["start"] < base + 100 * MIB]
    # A region at the edge may have some more.
    assert 40 * MIB <= sum(region["resident_anon"] for region in big) < 50 * MIB
