# SPDX-License-Identifier: GPL-2.0-only
"""``kdamon record``: whole runs, and those that a kill or a full disk ends."""

from __future__ import annotations

import errno
import itertools
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kdamon
from tests.support.capabilities import needs_mount_namespace, needs_root
from tests.support.cli import ENVIRONMENT, KDAMON, run
from tests.support.records import STARTED, read_all, rows, some_record, with_means
from tests.support.waiting import eventually

pytestmark = pytest.mark.real

#: A run that needs no rights, with regions but without accesses.
REPORTS = ["record", "--ops", "reports", "--range", "1000-9000000", "--sample-us", "1ms", "--aggr-us", "10ms"]
RECORD = [*REPORTS, "--pid", "1"]
MIB = 1 << 20


@pytest.fixture
def workload() -> Iterator[subprocess.Popen[bytes]]:
    """20 of 200 MiB are hot."""
    words = [sys.executable, "-m", "kdamon_tools.workloads.stairs", "--seconds", "90"]
    with subprocess.Popen(words, env=ENVIRONMENT) as started:
        eventually(lambda: "VmRSS" in Path(f"/proc/{started.pid}/status").read_text(), "a program")
        yield started
        started.kill()


def test_a_process_is_recorded(workload: subprocess.Popen[bytes], tmp_path: Path, monitoring: None) -> None:
    """Its snapshots, mappings, names, size, and what the monitoring cost."""
    path = tmp_path / "run.kdamon"
    done = run("record", "--pid", str(workload.pid), "--seconds", "4", "-o", str(path))
    assert 0 == done.returncode, done.stderr
    assert re.search(rf"\nrecorded \d+ snapshots in {path} \([\d.]+ KiB\)\n$", done.stdout), done.stdout
    assert [path] == list(tmp_path.iterdir())
    with kdamon.open(path) as record:
        found, everything = record.run, read_all(record)
    assert (workload.pid, True, "the time was over") == (found.pid, found.complete, found.note)
    assert (os.uname().release, os.cpu_count()) == (found.kernel_release, found.nr_cpus)
    assert (kdamon.__version__, 1) == (found.kdamon_version, found.part)
    snapshots = everything["snapshots"]
    assert len(snapshots) > 10
    assert all(first.time <= second.began for first, second in itertools.pairwise(snapshots))
    hot = snapshots[-1].working_set(found.config.max_nr_accesses / 2)
    assert 10 * MIB <= hot <= 60 * MIB, hot
    assert any("[heap]" == one.mapping.name for one in everything["mappings"][0])
    assert everything["names"][1].named([(snapshots[-1].regions["start"][0], snapshots[-1].regions["end"][0])]) != [""]
    data = everything["process"]
    assert len(data) >= 2
    assert (data["rss_anon"] > 100 * MIB).any()
    assert data["cpu_us"][-1] > data["cpu_us"][0]
    assert everything["counters"][0]["samples"] > 0


def test_writing_threads_are_recorded(workload: subprocess.Popen[bytes], tmp_path: Path, monitoring: None) -> None:
    """With their names."""
    path = tmp_path / "run.kdamon"
    done = run("record", "--pid", str(workload.pid), "--seconds", "3", "--by", "thread", "--quiet", "-o", str(path))
    if "identifying the CPU and thread" in done.stderr:
        pytest.skip(f"kernel lacks: {done.stderr}")
    assert (0, "") == (done.returncode, done.stdout), done.stderr
    with kdamon.open(path) as record:
        groups = [one.groups.regions["group"] for one in record.snapshots() if one.groups is not None]
        threads = record.threads
    writers = set(np.concatenate(groups).tolist())
    assert workload.pid in writers
    assert Path(f"/proc/{workload.pid}/comm").read_text().strip() == threads[workload.pid]


def test_a_command_is_recorded_to_its_end(tmp_path: Path, monitoring: None) -> None:
    """Its exit status is passed on; without -o the name is free."""
    words = [*KDAMON, "record", "--quiet", "--", "sh", "-c", "sleep 1; exit 7"]
    for name in ("run.kdamon", "run-2.kdamon"):
        done = subprocess.run(words, env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (7, "", "") == (done.returncode, done.stdout, done.stderr)
        with kdamon.open(tmp_path / name) as record:
            assert ("the process ended", words[6:]) == (record.run.note, list(record.run.command))


def test_what_was_mapped_late_has_a_name(tmp_path: Path, monitoring: None) -> None:
    """Names and mappings are read once more at the end, and what was read before stays if the process is gone."""
    (tmp_path / "late.bin").write_bytes(bytes(MIB))
    script = "import mmap, sys; input(); file = open(sys.argv[1]); area = mmap.mmap(file.fileno(), 0, prot=1); "
    words = [sys.executable, "-c", f"{script}print(1, flush=True); input()", str(tmp_path / "late.bin")]
    for gone in (False, True):
        path = tmp_path / f"{gone}.kdamon"
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as target:
            assert target.stdin is not None
            assert target.stdout is not None
            record = [*KDAMON, "record", "--quiet", "--pid", str(target.pid), "-o", str(path)]
            with subprocess.Popen(record, env=ENVIRONMENT) as kdamond:
                eventually(lambda path=path: names_in(path), "names in the record")
                if gone:
                    target.kill()
                else:
                    target.stdin.write(b"\n")
                    target.stdin.flush()
                    assert b"1\n" == target.stdout.readline()
                    kdamond.send_signal(signal.SIGINT)
                assert 0 == kdamond.wait(60)
            target.kill()
        found = names_in(path)
        assert any(name.startswith("libc") for name in found)
        assert gone != ("late.bin" in found)
        with kdamon.open(path) as opened:
            assert gone != any(one.mapping.name.endswith("/late.bin") for one in opened.mappings)


def names_in(path: Path) -> tuple[str, ...]:
    """The names of memory in a record; none before it has some."""
    try:
        with kdamon.open(path) as record:
            return () if record.names is None else record.names.names
    except OSError:
        return ()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["-o", "{tmp}/old"], "--output: {tmp}/old: the file exists: choose another name, or use --force"),
        (["-o", "{tmp}/text", "--force"], "--output: {tmp}/text: the file is no record, so it is not replaced"),
        (["-o", "{tmp}/none/a"], "--output: {tmp}/none/a: No such file or directory"),
        (["-o", "{tmp}"], "--output: {tmp}: Is a directory"),
        (["--keep", "7d"], "--keep removes files of a run that is split: add --split"),
        (["--split", "10ms"], "--split is a second at least"),
        (["--split", "1h", "--force"], "the files of --split have new names: leave --force out"),
    ],
)
def test_a_wrong_command_line(tmp_path: Path, words: list[str], sentence: str) -> None:
    """Is refused before anything is started, and nothing is changed."""
    some_record(tmp_path / "old", 2)
    (tmp_path / "text").write_text("text")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    done = run(*RECORD, *(word.format(tmp=tmp_path) for word in words))
    assert (2, "") == (done.returncode, done.stdout)
    assert done.stderr.startswith(f"kdamon: {sentence.format(tmp=tmp_path)}"), done.stderr
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_a_run_that_cannot_begin_leaves_no_file(tmp_path: Path) -> None:
    """Neither where the command does not exist, nor where the process does not."""
    for words in (["--", "/nonexistent/server"], ["--pid", str(2**22 + 1)]):
        done = run("record", "-o", str(tmp_path / "a"), *words)
        assert 0 != done.returncode
        assert [] == list(tmp_path.iterdir())


def test_an_earlier_record_is_replaced(tmp_path: Path) -> None:
    """With --force."""
    path = some_record(tmp_path / "a", 3)
    done = run(*RECORD, "--seconds", "0.5", "--quiet", "--force", "-o", str(path))
    assert (0, "", "") == (done.returncode, done.stdout, done.stderr)
    with kdamon.open(path) as record:
        assert 1 == record.run.pid


def test_a_run_that_cannot_begin_replaces_nothing(tmp_path: Path) -> None:
    """The earlier record stays."""
    path = some_record(tmp_path / "a", 3)
    before = path.read_bytes()
    for words in (["--", "/nonexistent/server"], ["--pid", str(2**22 + 1)]):
        assert 0 != run("record", "--force", "-o", str(path), *words).returncode
        assert ([path], before) == (list(tmp_path.iterdir()), path.read_bytes())


def test_a_killed_run_stays_readable(tmp_path: Path) -> None:
    """Up to about the last second, whenever it was killed."""
    random.seed(os.getpid())
    for number in range(4):
        path = tmp_path / f"{number}.kdamon"
        with subprocess.Popen([*KDAMON, *RECORD, "--quiet", "-o", str(path)], env=ENVIRONMENT) as recording:
            eventually(lambda path=path: os.path.exists(f"{path}-wal"), "a record")
            time.sleep(random.uniform(0, 3))
            recording.kill()
        with kdamon.open(path) as record:
            found = list(record.snapshots())
            try:
                everything = read_all(record)
            except OSError as error:
                assert (errno.ENODATA, []) == (error.errno, found)
                continue
        assert (False, len(found)) == (everything["run"].complete, len(everything["snapshots"]))
        starts = [snapshot.began for snapshot in found]
        assert sorted(starts) == starts


WRITER = """
import sys
from tests.support.records import *
from kdamon import Snapshot
record, number = writer(sys.argv[1]), 0
while True:
    number += 1
    record.add(Snapshot.of(STARTED + number, rows(number % 1000)))
    record.add_counters(STARTED + number, {"samples": number})
    record.flush()
    print(number, flush=True)
"""


@pytest.fixture
def endless(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that writes a record, and after each transaction says how many there were."""
    words = [sys.executable, "-c", WRITER, str(tmp_path / "run.kdamon")]
    with subprocess.Popen(words, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("attempt", range(3))
def test_what_was_written_survives_a_kill(endless: Any, tmp_path: Path, attempt: int) -> None:
    """Every transaction that had ended, at whatever instant the kill came."""
    for _ in range(random.Random(attempt + os.getpid()).randint(1, 200)):
        last = int(endless.stdout.readline())
    endless.kill()
    last = max([last, *map(int, endless.stdout.read().split())])
    with kdamon.open(tmp_path / "run.kdamon") as record:
        found = list(record.snapshots())
        samples = record.counters["samples"]
    assert last <= len(found) <= last + 1
    assert len(found) == samples
    assert [with_means(rows(number % 1000)) for number in range(1, len(found) + 1)] == [
        one.regions.tolist() for one in found
    ]


MAKER = """
import sys
from tests.support.records import writer
for number in range(1, 1 << 20):
    record = writer(f"{sys.argv[1]}/{number}")
    print(number, flush=True)
    record.flush()
    record.close(ended=1001.0)
"""


@pytest.mark.parametrize("attempt", range(4))
def test_a_kill_while_files_are_made_or_ended(tmp_path: Path, attempt: int) -> None:
    """Leaves an empty file, or a record that can be read."""
    words = [sys.executable, "-c", MAKER, str(tmp_path)]
    with subprocess.Popen(words, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as making:
        assert making.stdout is not None
        making.stdout.readline()
        time.sleep(random.Random(attempt + os.getpid()).uniform(0.01, 0.2))
        making.kill()
    numbers = sorted(int(path.name) for path in tmp_path.iterdir() if path.name.isdecimal())
    for path in (tmp_path / str(number) for number in numbers[-3:]):
        if path.stat().st_size == 0:
            continue
        with kdamon.open(path) as record:
            assert [] == list(record.snapshots())


def test_two_readers_while_it_is_written(endless: Any, tmp_path: Path) -> None:
    """Each sees at least what was there when it began, and whole transactions."""
    path = tmp_path / "run.kdamon"
    endless.stdout.readline()
    with kdamon.open(path) as one, kdamon.open(path) as other:
        for _ in range(20):
            last = int(endless.stdout.readline())
            for record in (one, other):
                found = list(record.snapshots(STARTED + last - 3, STARTED + last))
                numbers = [round(snapshot.time - STARTED) for snapshot in found]
                assert list(range(max(1, last - 2), last + 1)) == numbers
                assert [with_means(rows(number % 1000)) for number in numbers] == [
                    snapshot.regions.tolist() for snapshot in found
                ]
    assert endless.poll() is None


FULL = """
mount -t tmpfs -o size=200k none "$1" || exit 99
cd "$1"; shift
"$@"; echo "status $?"
exec {python} -c 'import kdamon
with kdamon.open("a.kdamon") as record:
    found = list(record.snapshots())
    print(len(found) == len(record.times()) > 20, record.run.complete, found[-1].time > found[0].time)'
"""


@needs_root("mounting needs root")
@needs_mount_namespace
def test_a_full_disk(tmp_path: Path) -> None:
    """One sentence, status 1, and what was written stays readable, on the full disk as well."""
    words = [*KDAMON, *RECORD, "--quiet", "-o", "a.kdamon", "--seconds", "120"]
    script = FULL.format(python=sys.executable)
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", str(tmp_path), *words],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ["status 1", "True False True"] == done.stdout.splitlines(), done.stderr
    assert "kdamon: a.kdamon: the record ends before the run: No space left on device\n" == done.stderr


def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    """As a full disk; a command that was started goes on."""
    words = [*KDAMON, *REPORTS, "--quiet", "-o", str(tmp_path / "a"), "--", "sleep", "120"]
    limited = ["sh", "-c", 'ulimit -f 140; exec "$@"', "sh", *words]
    # Not a pipe, which the command keeps open.
    with (tmp_path / "err").open("w") as err:
        done = subprocess.run(limited, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=err, check=False)
    sentence = f"kdamon: {tmp_path / 'a'}: the record ends before the run: File too large\n"
    assert (1, sentence) == (done.returncode, (tmp_path / "err").read_text())
    with kdamon.open(tmp_path / "a") as record:
        assert (True, False) == (len(record.times()) > 20, record.run.complete)
        pid = record.run.pid
    assert "sleep\n" == Path(f"/proc/{pid}/comm").read_text()
    os.kill(pid, signal.SIGKILL)


def test_a_signal_ends_it(tmp_path: Path) -> None:
    """As Ctrl-C does: the record is whole."""
    words = [*KDAMON, *RECORD, "--quiet", "-o", str(tmp_path / "a")]
    with subprocess.Popen(words, env=ENVIRONMENT) as process:
        eventually((tmp_path / "a-wal").exists, "a record")
        time.sleep(1.5)
        process.send_signal(signal.SIGINT)
        assert 0 == process.wait()
    with kdamon.open(tmp_path / "a") as record:
        assert (True, "stopped by a signal") == (record.run.complete, record.run.note)
    assert ["a"] == os.listdir(tmp_path)


def test_a_run_in_parts(tmp_path: Path) -> None:
    """Each is a whole record, and no snapshot is missing between them; old ones are removed."""
    words = ["--split", "1s", "-o", str(tmp_path / "run.kdamon"), "--quiet"]
    done = run(*RECORD, *words, "--seconds", "4.5")
    assert (0, "") == (done.returncode, done.stderr)
    paths = sorted(tmp_path.iterdir())
    assert len(paths) >= 3
    assert all(re.fullmatch(r"run-\d{8}T\d{6}Z\.kdamon", path.name) for path in paths)
    runs, snapshots = [], []
    for path in paths:
        with kdamon.open(path) as record:
            runs.append(record.run)
            snapshots += list(record.snapshots())
    assert list(range(1, len(paths) + 1)) == [one.part for one in runs]
    assert 1 == len({one.started for one in runs})
    assert all(one.complete for one in runs)
    assert f"{paths[1].name} is the next part" == runs[0].note
    pauses = [second.began - first.time for first, second in itertools.pairwise(snapshots)]
    assert all(pause >= 0 for pause in pauses)
    # An interval of 10 ms may be missed, but none is lost between files.
    assert max(pauses) < 0.9, max(pauses)
    old = paths[0]
    os.utime(old, (0, 0))
    done = run(*RECORD, *words, "--keep", "1h", "--seconds", "2.5")
    assert (0, False, True) == (done.returncode, old.exists(), paths[1].exists())
