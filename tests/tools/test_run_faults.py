# SPDX-License-Identifier: GPL-2.0-only
"""``kdamon run`` by page_fault on a real process whose threads read and write different memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kdamon_tools.report_files.report_file import open_recording
from tests.support.capabilities import needs_read_faults
from tests.support.paths import PYTHONPATH
from tests.support.speed import slowness

pytestmark = [pytest.mark.real, pytest.mark.timeout(300 * slowness())]


ENVIRONMENT = os.environ | {"PYTHONPATH": PYTHONPATH, "COLUMNS": "100", "LINES": "30"}
READWRITE = [sys.executable, "-m", "kdamon_tools.workloads.readwrite"]
MIB = 1 << 20


@pytest.fixture(scope="module", autouse=True)
def page_fault(workload: dict[str, Any]) -> None:
    """Skip where faults cannot be sampled, with the machine's own reason."""
    from kdamon.mm.linux.machine import linux_machine

    machine = linux_machine("page_fault")
    try:
        machine.get_task(workload["pid"], "page_fault").put()
        attributed = machine.attributes_faults
    except OSError as error:
        pytest.skip(f"kernel lacks: page_fault: {error.strerror}")
    finally:
        machine.close()
    if not attributed:
        pytest.skip("kernel lacks: a way to attribute page faults")


@pytest.fixture(scope="module")
def workload() -> Iterator[dict[str, Any]]:
    """The bundled workload, and what it says of itself."""
    seconds = str(300 * slowness())
    with subprocess.Popen([*READWRITE, "--seconds", seconds], env=ENVIRONMENT, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())
        finally:
            process.kill()


def kdamon(*words: str) -> subprocess.CompletedProcess[str]:
    """Run kdamon as people do: a process of its own."""
    command = [sys.executable, "-m", "kdamon_tools", *words]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)


def hot_parts(snapshot: dict[str, Any], parts: list[dict[str, Any]]) -> tuple[str, int]:
    """The parts of which most is hot, and how many bytes are hot elsewhere."""
    hot = [(r["start"], r["end"]) for r in snapshot["regions"] if r["nr_accesses"] > 10]
    found, elsewhere = "", sum(end - start for start, end in hot)
    for part in parts:
        covered = sum(max(0, min(end, part["end"]) - max(start, part["start"])) for start, end in hot)
        elsewhere -= covered
        found += part["name"] if covered > 0.8 * (part["end"] - part["start"]) else ""
    return found, elsewhere


def paced(seconds: float) -> list[str]:
    """Options for intervals that this machine can keep, and for as many of them as ``seconds`` have by default."""
    slow = slowness()
    us = {"--sample-us": 5000 * slow, "--aggr-us": 100_000 * slow, "--update-us": 1_000_000 * slow}
    return [*(word for name, value in us.items() for word in (name, f"{value:.0f}")), "--seconds", str(seconds * slow)]


def settled(workload: dict[str, Any], wanted: str, *options: str) -> dict[str, Any]:
    """What a run says once it finds the ``wanted`` parts hot: a busy machine may need longer."""
    for seconds in (3, 6, 12):
        result = kdamon("run", "--pid", str(workload["pid"]), "--json", "--quiet", *paced(seconds), *options)
        assert (0, "") == (result.returncode, result.stderr)
        document: dict[str, Any] = json.loads(result.stdout)
        found, elsewhere = hot_parts(document["snapshots"][-1], workload["parts"])
        if found == wanted and elsewhere < 10 * MIB:
            return document
    pytest.fail(f"{found} instead of {wanted} is hot, and {elsewhere} bytes elsewhere")


def test_only_writes_by_a_cpu_and_what_was_recorded_of_them(workload: dict[str, Any], tmp_path: Path) -> None:
    """The part that is only read stays cold; each recorded fault has its thread and CPU."""
    recording = tmp_path / "faults.npy"
    parts = {part["name"]: part for part in workload["parts"]}
    document = settled(workload, "AB", "--write-only", "--reports-to", str(recording))
    counters = document["counters"]
    reports = counters["reports"]
    assert reports["accepted"] == sum(reports.values()) - reports["accepted"] - reports["dropped"] > 0
    assert 0 == counters["recorded"]["lost"]
    records = open_recording(recording)
    assert len(records) == counters["recorded"]["written"] >= reports["accepted"]
    assert {workload["pid"]} == set(records["pid"].tolist())
    for name in "AB":
        part = parts[name]
        inside = records[(records["addr"] >= part["start"]) & (records["addr"] < part["end"])]
        assert len(inside) > 50
        assert {(part["cpu"], part["tid"])} == set(zip(inside["cpu"].tolist(), inside["tid"].tolist(), strict=True))
        # A page that the kernel just moved elsewhere faults when it is read, too.
        assert inside["write"].mean() > 0.95


def test_only_one_cpu_and_thread(workload: dict[str, Any]) -> None:
    """What is written by the others stays cold, and their faults are counted as filtered."""
    parts = {part["name"]: part for part in workload["parts"]}
    if parts["A"]["cpu"] == parts["B"]["cpu"]:
        pytest.skip("kernel lacks: a second CPU")
    document = settled(workload, "A", "--cpus", str(parts["A"]["cpu"]), "--tids", str(parts["A"]["tid"]))
    assert document["counters"]["reports"]["filtered"] > 0


def overlap(one: dict[str, Any], other: dict[str, Any]) -> int:
    """Bytes that two ranges have in common."""
    return max(0, min(one["end"], other["end"]) - max(one["start"], other["start"]))


@pytest.mark.parametrize(("by", "key"), [("thread", "tid"), ("cpu", "cpu")])
def test_each_writer_has_its_part(workload: dict[str, Any], by: str, key: str) -> None:
    """Its faults lie there, and it has the name that it gave itself; nobody else writes the parts."""
    parts = {part["name"]: part for part in workload["parts"]}
    if by == "cpu" and parts["A"]["cpu"] == parts["B"]["cpu"]:
        pytest.skip("kernel lacks: a second CPU")
    document = settled(workload, "AB", "--write-only", "--by", by, "--ops", "fvaddr", "--range", workload["range"])
    for name in "AB":
        part = parts[name]
        inside = {
            group["number"]: sum(
                region["nr_reports"]
                for region in group["regions"]
                if 2 * overlap(region, part) > region["end"] - region["start"]
            )
            for group in document["snapshots"][-1]["groups"]
        }
        assert {part[key]} == {number for number, count in inside.items() if count}
        if by == "thread":
            [group] = [group for group in document["groups"] if group["number"] == part["tid"]]
            assert f"writes {name}" == group["name"]
    assert [] == document["shared"]


def test_a_page_that_two_threads_write() -> None:
    """It is found with both, and with the cache line in which each of them writes a place of its own."""
    script = """
import mmap, os, sys, threading
memory = mmap.mmap(-1, 4096)
import ctypes
start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
def write(offset):
    while True:
        memory[offset] = 1
threads = [threading.Thread(target=write, args=(offset,), daemon=True) for offset in (0, 8)]
for thread in threads:
    thread.start()
print(start, *(thread.native_id for thread in threads), flush=True)
sys.stdin.read()
os._exit(0)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdin is not None
        start, *tids = map(int, process.stdout.readline().split())
        words = ["--ops", "fvaddr", "--range", f"{start:x}-{start + 4096:x}", "--by", "thread", "--json", "--quiet"]
        for seconds in (2, 8, 30):
            result = kdamon("run", "--pid", str(process.pid), *words, *paced(seconds), "--write-only")
            assert (0, "") == (result.returncode, result.stderr)
            shared = json.loads(result.stdout)["shared"]
            if shared:
                break
        process.stdin.close()
    [found] = shared
    assert (start, start + 4096) == (found["start"], found["end"])
    assert set(tids) == {writer["number"] for writer in found["writers"]}
    assert (1, 1, 1) == (found["lines"], found["shared_lines"], found["apart"])


@needs_read_faults
def test_reads_have_a_cpu_and_a_thread(workload: dict[str, Any]) -> None:
    """The part that is only read is its reader's and its CPU's; those that write read what they add to."""
    parts = {part["name"]: part for part in workload["parts"]}
    settled(workload, "C", "--tids", str(parts["C"]["tid"]))
    settled(workload, "ABC", "--read-only")
    if parts["A"]["cpu"] != parts["B"]["cpu"]:
        settled(workload, "BC", "--cpus", str(parts["C"]["cpu"]))
    settled(workload, "ABC", "--primitive", "page_fault")


def test_a_thread_that_is_not_the_process_s_is_refused(workload: dict[str, Any]) -> None:
    """With the number: nothing would be seen, which looks like memory that is cold."""
    tid = str(workload["parts"][0]["tid"])
    result = kdamon("run", "--pid", str(workload["pid"]), "--tids", f"{tid},{os.getpid()}", "--seconds", "1", "--quiet")
    assert (1, "") == (result.returncode, result.stdout)
    assert f"kdamon: process {workload['pid']} has no thread {os.getpid()}, or it ended; name threads" in result.stderr
    assert tid not in result.stderr.replace(str(workload["pid"]), "").replace(str(os.getpid()), "")


@pytest.mark.parametrize("wrapper", [[], ["sh", "-c", 'exec "$@"', "sh"]], ids=["itself", "by exec"])
def test_a_command_is_monitored_by_faults_from_its_start(tmp_path: Path, wrapper: list[str]) -> None:
    """Also if it calls exec for the program that matters; its exit status is passed on."""
    output = tmp_path / "result.json"
    for seconds in (4, 12):
        *pace, _, length = paced(seconds)
        words = [*wrapper, *READWRITE, "--seconds", length]
        result = kdamon("run", *pace, "--write-only", "--quiet", "--json", "--output", str(output), "--", *words)
        assert (0, "") == (result.returncode, result.stderr)
        parts = json.loads(result.stdout)["parts"]
        snapshots = json.loads(output.read_text())["snapshots"]
        found = [hot_parts(snapshot, parts) for snapshot in snapshots]
        if any(names == "AB" and elsewhere < 10 * MIB for names, elsewhere in found):
            return
    pytest.fail(f"what was hot is {found[-5:]}")


#: Allows every system call from now on, by a filter.
FILTERED = """
import ctypes, time
libc = ctypes.CDLL(None)
assert not libc.prctl(38, 1, 0, 0, 0)
allow = ctypes.create_string_buffer((6).to_bytes(4, "little") + (0x7FFF0000).to_bytes(4, "little"), 8)
program = (ctypes.c_uint64 * 2)(1, ctypes.addressof(allow))
assert not libc.prctl(22, 2, ctypes.byref(program), 0, 0)
print(flush=True)
time.sleep(60)
"""


def test_a_process_that_cannot_be_asked_is_refused_with_the_reason() -> None:
    """One sentence, status 1, and it goes on as if nothing had been."""
    with subprocess.Popen([sys.executable, "-c", FILTERED], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert b"\n" == process.stdout.readline()
            result = kdamon("run", "--pid", str(process.pid), "--write-only", "--seconds", "1", "--quiet")
            assert (1, "", 1) == (result.returncode, result.stdout, result.stderr.count("\n"))
            assert "seccomp" in result.stderr
            assert process.poll() is None
        finally:
            process.kill()


#: A second thread writes 64 pages all the time, and the first one ends.
WITHOUT_FIRST_THREAD = """
import ctypes, mmap, threading, time
memory = mmap.mmap(-1, 64 * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_NOHUGEPAGE)
def write():
    while True:
        memory[::4096] = bytes(64)
        time.sleep(0.001)
threading.Thread(target=write).start()
base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
print(base, flush=True)
ctypes.CDLL(None).syscall(60, 0)
"""


def test_a_process_whose_first_thread_ended_is_monitored_by_its_faults() -> None:
    """Without an option; page_table, where it is asked for, is refused."""
    with subprocess.Popen([sys.executable, "-c", WITHOUT_FIRST_THREAD], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            base = int(process.stdout.readline())
            stat = Path(f"/proc/{process.pid}/stat")
            while b") Z " not in stat.read_bytes():
                time.sleep(0.01)
            result = kdamon("run", "--pid", str(process.pid), "--json", "--seconds", "3")
            assert 0 == result.returncode
            assert "its accessed bits cannot be cleared; page_fault is used instead" in result.stderr
            document = json.loads(result.stdout)
            part = {"name": "written", "start": base, "end": base + 64 * 4096}
            assert any("written" in hot_parts(snapshot, [part])[0] for snapshot in document["snapshots"])
            refused = kdamon("run", "--pid", str(process.pid), "--primitive", "page_table", "--seconds", "3")
            assert (1, "") == (refused.returncode, refused.stdout)
            assert "use page_fault (--primitive page_fault)" in refused.stderr
        finally:
            process.kill()
