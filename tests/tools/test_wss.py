# SPDX-License-Identifier: GPL-2.0-only
"""``kdamon wss`` measures real processes, and says what it costs, what it does not see, and why it cannot."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from kdamon.mm.doctor.checks import examine
from kdamon.mm.proc.maps import NamedMapping
from kdamon.mm.working_set.observation import Cost
from kdamon.mm.working_set.sets import Counts, MappingCounts, WorkingSet
from kdamon_tools.origin import Origin
from kdamon_tools.reporters.working_set import Window, describe_cost, render_working_set, render_working_set_json
from tests.support.cli import ENVIRONMENT, KDAMON, run
from tests.support.json_schemas import validate
from tests.support.waiting import eventually

pytestmark = pytest.mark.real

MIB = 1 << 20
#: Writes 4 MiB of 16, and reads 4 others, in each round.
TARGET = """
    import mmap, os, sys, time
    memory = mmap.mmap(-1, 16 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    memory[:] = bytes(len(memory))
    print("ready", flush=True)
    end = time.monotonic() + 300
    while time.monotonic() < end:
        for at in range(0, 4 << 20, 4096):
            memory[at] = 1
            memory[(4 << 20) + at]
        time.sleep(0.01)
"""

TOTAL = Counts(16 * MIB, 0, 14 * MIB, None, 4 * MIB, MIB, 4096, 2 * MIB, 0, 0, 8192)
HEAP = Counts(10 * MIB, 0, 8 * MIB, None, 4 * MIB, MIB, 4096, 2 * MIB, 0, 0, 0)
IDLE = Counts(6 * MIB, 0, 6 * MIB, None, 0, 0, 0, 0, 0, 0, 0)
FOUND = WorkingSet(
    15 * MIB,
    TOTAL,
    (
        MappingCounts(NamedMapping(0x1000, 0x2000, "rw-p", 0, 0, "[heap]"), HEAP),
        MappingCounts(NamedMapping(0x4000, 0x5000, "r--p", 4096, 7, "/lib/libx.so"), IDLE),
    ),
)
WINDOW = Window(42, "page_fault", False, Origin(), 0.02, 10.0, 0.01, "the time was over", FOUND)


# What is shown.


def test_the_table() -> None:
    """Mappings that are in use or unknown, the sums, and what is not seen."""
    assert textwrap.dedent(
        """
            process 42: writes by page_fault in 10.0 s, the time was over
                written        new    unknown  in memory  mapping
                4.0 MiB    1.0 MiB    2.0 MiB   10.0 MiB          1000 rw-p [heap]

            in use: 5.0 MiB of 16.0 MiB in memory (31.3 %):
                4.0 MiB written, 1.0 MiB came into memory, 4.0 KiB mapped since
            unknown: 2.0 MiB: 2.0 MiB huge pages, 8.0 KiB pages that left memory meanwhile
            page_fault observes writes and first touches; other reads need Linux 7.3
            20 ms to begin, 10 ms to count
            """
    ).strip() == render_working_set(WINDOW)


def test_mappings_without_room_are_summed_up() -> None:
    """Those with most memory in use, or unknown, come first."""
    nothing = Counts(0, 0, 0, 0, None, 0, 0, 0, 0, 0, 0)
    rows = tuple(
        MappingCounts(NamedMapping(at << 12, at + 1 << 12, "rw-p", 0, 0, ""), evolve(nothing, **{name: 4096 * at}))
        for at, name in ((1, "touched"), (3, "unknown_huge"), (2, "touched"))
    )
    window = Window(1, "page_table", True, Origin(), 0, 1, 0, "", WorkingSet(0, nothing, rows))
    lines = render_working_set(window, height=2).splitlines()
    assert ["12.0 KiB 0", "8.0 KiB 0"] == [" ".join(line.split()[:3]) for line in lines[2:4]]
    assert "and 1 more mapping: 4.0 KiB in use, 0 B unknown" == lines[4]
    assert "    0 B read or written, 0 B came into memory, 0 B mapped since" == lines[7]


def test_names_cannot_move_the_cursor() -> None:
    """A file may have any name."""
    mapping = NamedMapping(0x1000, 0x2000, "rw-p", 0, 0, "/tmp/\x1b[2J\udcff")
    rows = (MappingCounts(mapping, HEAP),)
    window = Window(1, "page_fault", False, Origin(), 0, 1, 0, "", WorkingSet(0, TOTAL, rows))
    assert "rw-p \\x1b[2J\\xff" in render_working_set(window)
    validate(json.loads(render_working_set_json(window)), "kdamon.wss")


def test_the_object_is_valid() -> None:
    """As docs/schemas has it; what is not seen is null."""
    document = validate(json.loads(render_working_set_json(WINDOW)), "kdamon.wss")
    assert (None, 4 * MIB, 2 * MIB + 8192, 5 * MIB + 4096) == tuple(
        document["total"][f"{name}_bytes"] for name in ("touched", "written", "unknown", "used")
    )


def test_the_cost_is_said() -> None:
    """Faults, and what cannot be observed; or the pages that move on their list."""
    cost = Cost(16 * MIB, 12 * MIB, 4 * MIB, 3072)
    faults, writes = describe_cost(cost, "page_fault", reads=False)
    assert (
        "of 16.0 MiB in memory, 12.0 MiB are armed: the process has a fault at its first write of each page, 3072 at "
        "most, of one or two microseconds each; 4.0 MiB cannot be observed"
    ) == faults
    assert writes.endswith("need Linux 7.3, or --primitive page_table")
    (faults,) = describe_cost(cost, "page_fault", reads=True)
    assert "at its first use of each page, 3072" in faults
    (moved,) = describe_cost(Cost(16 * MIB, 12 * MIB, 0, 0), "page_table", reads=True)
    assert "12.0 MiB were accessed lately and move to the inactive list" in moved


# Real processes.


@contextmanager
def target() -> Iterator[subprocess.Popen[str]]:
    """A process with a known working set."""
    words = [sys.executable, "-c", textwrap.dedent(TARGET)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert "ready\n" == process.stdout.readline()
            yield process
        finally:
            process.kill()


@functools.cache
def usable() -> tuple[str, ...]:
    """The primitives for this user's processes."""
    return examine()[1]


def need(primitive: str) -> None:
    """Skip where processes cannot be observed by ``primitive``."""
    if primitive not in usable():
        pytest.skip(f"kernel lacks: monitoring by {primitive}, or its rights are missing")


@pytest.mark.parametrize("primitive", ["page_fault", "page_table"])
def test_a_working_set_is_measured(primitive: str, tmp_path: Path) -> None:
    """In its mapping: what is written, or all that is used."""
    need(primitive)
    with target() as process:
        words = ["wss", "--pid", str(process.pid), "--seconds", "2", "--primitive", primitive]
        done = run(*words, "--json", "--output", str(tmp_path / "wss.json"))
        assert (0, "") == (done.returncode, done.stdout), done.stderr
        found = validate(json.loads((tmp_path / "wss.json").read_text()), "kdamon.wss")
        table = run(*words)
    (row,) = [row for row in found["mappings"] if row["resident_bytes"] == 16 * MIB]
    used = 8 * MIB if found["reads"] else 4 * MIB
    # A DAMON of the machine may make pages old meanwhile.
    assert used - MIB // 2 <= row["used_bytes"] <= used
    assert (process.pid, primitive, "the time was over") == (found["pid"], found["primitive"], found["note"])
    assert 2 <= found["seconds"]
    assert all(line.startswith("kdamon: ") for line in done.stderr.splitlines())
    assert "in memory" in done.stderr.splitlines()[0]
    assert (0, f"process {process.pid}:") == (table.returncode, table.stdout[: len(f"process {process.pid}:")])


@contextmanager
def measuring(*words: str) -> Iterator[subprocess.Popen[str]]:
    """kdamon wss, in the middle of its window; it ends with the context."""
    process = subprocess.Popen(
        [*KDAMON, "--debug", "wss", *words], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def armed(pid: int) -> bool:
    """Whether some page of a process is armed: VmFlags show which mappings are registered."""
    return " uw" in Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8", errors="replace")


def test_ctrl_c_ends_it_early() -> None:
    """With the result so far, and nothing armed afterwards."""
    need("page_fault")
    with target() as process:
        with measuring("--pid", str(process.pid), "--json") as measure:
            eventually(lambda: armed(process.pid), "the window")
            assert measure.stderr is not None
            while "begun" not in measure.stderr.readline():
                pass
            measure.send_signal(signal.SIGINT)
            out, _ = measure.communicate(timeout=120)
            assert 0 == measure.returncode
        assert "stopped by a signal" == validate(json.loads(out), "kdamon.wss")["note"]
        assert not armed(process.pid)


def test_a_kdamon_that_is_killed_leaves_nothing() -> None:
    """Whatever it was doing."""
    need("page_fault")
    with target() as process, measuring("--pid", str(process.pid)) as measure:
        eventually(lambda: armed(process.pid), "the window")
        measure.kill()
        measure.wait()
        eventually(lambda: not armed(process.pid), "the end of it")


@pytest.mark.parametrize("primitive", ["page_fault", "page_table"])
@pytest.mark.parametrize("what", ["ended", "began another program"])
def test_a_process_that_ends_in_between(primitive: str, what: str) -> None:
    """One sentence says so: its memory is gone."""
    need(primitive)
    script = "import os, sys; sys.stdin.readline(); os.execlp('sleep', 'sleep', '300')"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, text=True) as process:
        try:
            with measuring("--pid", str(process.pid), "--primitive", primitive) as measure:
                assert measure.stderr is not None
                while "begun" not in measure.stderr.readline():
                    pass
                if what == "ended":
                    process.kill()
                else:
                    assert process.stdin is not None
                    process.stdin.write("\n")
                    process.stdin.flush()
                out, err = measure.communicate(timeout=120)
        finally:
            process.kill()
    assert (1, "") == (measure.returncode, out)
    last = err.splitlines()[-1]
    assert last.startswith(f"kdamon: process {process.pid} {what} after "), err
    assert last.endswith("before its working set was counted: measure for a shorter time")


def one_sentence(*words: str) -> tuple[int, str]:
    """The status, and the sentence on standard error."""
    done = run("wss", *words)
    assert "" == done.stdout
    (line,) = done.stderr.splitlines()
    return done.returncode, line


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        ([], 2, "kdamon: the process is missing: use --pid PID"),
        (["1234"], 2, "kdamon: to measure process 1234: kdamon wss --pid 1234"),
        (["--pid", "0"], 2, "is not a number from 1 on; see kdamon wss --help"),
        (["--pid", "4194305"], 1, "kdamon: there is no process 4194305"),
        (["--pid", "2"], 1, "kdamon: process 2 is a kernel thread: it has no memory of its own"),
        (["--pid", "1", "--primitive", "page_idle"], 2, "see kdamon wss --help"),
        (["--pid", "1", "--output", "/nonexistent/file"], 2, "kdamon: --output: /nonexistent"),
        (["--pid", "1", "--secs", "3"], 2, "kdamon: unrecognized option: --secs; did you mean --seconds?"),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence(words: list[str], status: int, sentence: str) -> None:
    """With the remedy."""
    if status == 1 and os.geteuid():
        pytest.skip("only root may look at every process")
    returned, line = one_sentence(*words)
    assert status == returned, line
    assert sentence in line


def test_a_thread_is_refused() -> None:
    """With the process to name."""
    need("page_fault")
    script = """if True:
        import threading, time
        thread = threading.Thread(target=time.sleep, args=(300,), daemon=True)
        thread.start()
        print(thread.native_id, flush=True)
        time.sleep(300)
    """
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            tid = int(process.stdout.readline())
            status, line = one_sentence("--pid", str(tid))
        finally:
            process.kill()
    assert 1 == status
    assert f"is a thread of process {process.pid}" in line


def documents() -> dict[str, Any]:
    """What docs/json.md lists."""
    text = (Path(__file__).parents[2] / "docs/json.md").read_text()
    return {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `kdamon")}


def test_the_schema_is_listed() -> None:
    """Where the others are."""
    assert "kdamon.wss-1.json" in documents()["kdamon wss --json"]
