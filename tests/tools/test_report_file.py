# SPDX-License-Identifier: GPL-2.0-only
"""Recordings of reports: plain numpy reads them, and a killed recorder leaves what it recorded."""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import os
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdamon.damon import damon_access_report
from kdamon.reports import deliver as reports_module
from kdamon.reports.deliver import damon_report_access, report_accesses
from kdamon.reports.record import REPORT_DTYPE, report_array
from kdamon_tools.report_files.records import line_blocks
from kdamon_tools.report_files.report_file import (
    RECORD_DTYPE,
    Recorder,
    RecordingWriter,
    open_recording,
    open_reports,
    read_reports,
)
from tests.support.cli import DATA
from tests.support.paths import ROOT
from tests.support.recordings import head, some_records
from tests.support.waiting import eventually


def write_recording(path: Path, *batches: Any) -> None:
    with path.open("wb", buffering=0) as file:
        writer = RecordingWriter(file)
        for batch in batches:
            writer.write(batch)


def test_a_record_is_a_report_and_its_time() -> None:
    """The fields of a report in their order, after nanoseconds, where the document says that they are."""
    assert RECORD_DTYPE.names == ("time", *(REPORT_DTYPE.names or ()))
    assert np.dtype("<u8") == RECORD_DTYPE["time"]
    fields = RECORD_DTYPE.fields or {}
    # Lines end where there is room.
    documented = " ".join((ROOT / "docs" / "replay.md").read_text().split())
    for name, (dtype, offset, *_) in fields.items():
        kind = {"u": "u64", "i": "i32", "b": "bool"}[dtype.kind]
        assert f"| {offset} | `{name}` | {kind} |" in documented
    assert f"a C struct of {RECORD_DTYPE.itemsize} bytes" in documented


@pytest.mark.parametrize("batches", [[], [0], [1], [10, 0, 1000], [3] * 50])
def test_numpy_reads_it_and_so_do_we(tmp_path: Path, batches: list[int]) -> None:
    """However the records were written."""
    path = tmp_path / "r.npy"
    records = [some_records(n) for n in batches]
    write_recording(path, *records)
    expected = np.concatenate([np.zeros(0, RECORD_DTYPE), *records])
    assert expected.tolist() == np.load(path).tolist() == open_recording(path).tolist()
    assert RECORD_DTYPE == np.load(path).dtype


def test_what_numpy_saved_is_a_recording(tmp_path: Path) -> None:
    """A researcher's own script may make one."""
    np.save(tmp_path / "r.npy", some_records(5))
    assert some_records(5).tolist() == read_reports(tmp_path / "r.npy").tolist()


@pytest.mark.parametrize("cut", [1, RECORD_DTYPE.itemsize, RECORD_DTYPE.itemsize * 3 + 7])
def test_a_file_that_ends_early_gives_its_whole_records(tmp_path: Path, cut: int) -> None:
    """The head promises more than there is."""
    path = tmp_path / "r.npy"
    write_recording(path, some_records(10))
    os.truncate(path, path.stat().st_size - cut)
    whole = 10 - -(-cut // RECORD_DTYPE.itemsize)
    assert some_records(whole).tolist() == open_recording(path).tolist()


def test_a_file_whose_head_was_not_brought_up_to_date_gives_all_records(tmp_path: Path) -> None:
    """The writer was killed between the records and the head."""
    path = tmp_path / "r.npy"
    write_recording(path, some_records(10))
    with path.open("ab") as file:
        file.write(some_records(2).tobytes() + b"half")
    assert 12 == len(open_recording(path))
    assert 10 == len(np.load(path))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "it is empty"),
        (b"hello\n", "neither a report file, nor output of perf script"),
        (b"PERFILE2" + bytes(100), "this is perf's own file; use the output of 'perf script'"),
        (b"\x93NUMPY", "not a readable numpy array"),
        (b"\x93NUMPY\x01\x00\x10\x00{'broken", "not a readable numpy array"),
        (b"\x93NUMPY\x01\x00\x10\x00{'a': (((((((((\n", "not a readable numpy array"),
        (b"\x93NUMPY\x01\x00\x10\x00{1, ((), [], {}) }", "not a readable numpy array"),
        (b"\x93NUMPY\x09\x00\x10\x00", "not a readable numpy array"),
    ],
)
def test_other_files_are_refused_in_one_sentence(tmp_path: Path, content: bytes, sentence: str) -> None:
    """With the file's name."""
    path = tmp_path / "r.npy"
    path.write_bytes(content)
    with pytest.raises(OSError, match=sentence) as error:
        read_reports(path)
    assert (errno.EINVAL, str(path)) == (error.value.errno, error.value.filename)


def test_other_arrays_are_refused(tmp_path: Path) -> None:
    """Among them any that would need pickle."""
    for array in (np.zeros(3), np.zeros(3, REPORT_DTYPE), np.array([object()])):
        np.save(tmp_path / "r.npy", array, allow_pickle=True)
        with pytest.raises(OSError, match="does not hold access reports with their times"):
            read_reports(tmp_path / "r.npy")


@pytest.mark.parametrize(
    ("shape", "fortran"),
    [((-5,), False), ((5, 2), False), ((), False), ((5,), True), (("5",), False), ((5.0,), False)],
)
def test_arrays_of_other_shapes_are_refused(shape: tuple[Any, ...], fortran: bool, tmp_path: Path) -> None:
    """Whatever their rows are."""
    path = tmp_path / "r.npy"
    descr = np.lib.format.dtype_to_descr(RECORD_DTYPE)
    path.write_bytes(head(repr({"descr": descr, "fortran_order": fortran, "shape": shape})) + bytes(1000))
    with pytest.raises(OSError, match=r"not a readable numpy array|does not hold access reports"):
        read_reports(path)


def test_a_head_is_believed_as_far_as_it_is_there(tmp_path: Path) -> None:
    """No memory for a gigabyte of head or rows without number; an expression in it is not evaluated."""
    path = tmp_path / "r.npy"
    for content in (head("{" * 100, 1 << 30), head("-" * 9000 + "1"), head("{'descr': '|V99999999999999999'}")):
        path.write_bytes(content)
        tracemalloc.start()
        with pytest.raises(OSError, match="not a readable numpy array"):
            read_reports(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 64 << 20
    descr = np.lib.format.dtype_to_descr(RECORD_DTYPE)
    whole = repr({"descr": descr, "fortran_order": False, "shape": (1 << 70,)})
    path.write_bytes(head(whole) + some_records(3).tobytes())
    with open_reports(path) as (records, notes):
        assert some_records(3).tolist() == records[:].tolist()
        assert f"the file has only the first 3 of {1 << 70} reports" == notes.cut


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (gzip.compress(b"x"), "zcat FILE"),
        (bz2.compress(b"x"), "bzcat FILE"),
        (lzma.compress(b"x"), "xzcat FILE"),
        (b"PK\x03\x04" + bytes(100), "an archive"),
    ],
    ids=["gzip", "bzip2", "xz", "zip"],
)
def test_what_is_packed_is_to_be_unpacked(content: bytes, sentence: str, tmp_path: Path) -> None:
    """With the program for it."""
    path = tmp_path / "r.npy.packed"
    path.write_bytes(content)
    with pytest.raises(OSError, match=sentence):
        read_reports(path)


def test_an_earlier_recording_is_replaced_at_the_end(tmp_path: Path) -> None:
    """A recorder that fails before anything was recorded leaves it, and so does one that is at work."""
    path = tmp_path / "r.npy"
    write_recording(path, some_records(10))
    with pytest.raises(ZeroDivisionError), Recorder(path):
        raise ZeroDivisionError
    with Recorder(path) as recorder:
        report_accesses(report_array(3, pid=6))
        assert eventually(lambda: recorder.recorded == 3)
        assert 10 == len(read_reports(path))
    assert ([path], 3) == (list(tmp_path.iterdir()), len(read_reports(path)))


@pytest.mark.parametrize(
    ("name", "n"), [("perf_script_mem.txt", 4), ("perf_script_threads.txt", 24), ("lackey_trace.txt", 58)]
)
def test_the_format_is_found_out(name: str, n: int) -> None:
    """Each text is what most of its first lines are."""
    assert n == len(read_reports(DATA / name))


def test_a_format_may_be_insisted_on() -> None:
    """Whatever the file looks like."""
    assert 0 == len(read_reports(DATA / "lackey_trace.txt", "perf"))
    with pytest.raises(OSError, match="not a readable numpy array"):
        read_reports(DATA / "lackey_trace.txt", "reports")


def test_a_line_without_end_is_cut() -> None:
    """A file that is no text must not fill the memory."""
    stream = io.BytesIO(b" L 1000,8\n" + bytes(10 << 20) + b"\n L 2000,8")
    blocks = list(line_blocks(stream, 1 << 16))
    assert max(map(len, blocks)) < 2 << 20
    assert (b" L 1000,8\n", b" L 2000,8") == (blocks[0], blocks[-1])
    assert all(block.endswith(b"\n") for block in blocks[:-1])


def test_reading_a_text_tells_how_far_it_is_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its temporary recording has no name."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    shown: list[tuple[int, int]] = []
    path = DATA / "lackey_trace.txt"
    with open_reports(path, progress=lambda done, size: shown.append((done, size))) as (records, notes):
        assert (58, 215) == (len(records), notes.lines if notes else 0)
        assert [] == list(tmp_path.iterdir())
    assert (path.stat().st_size, path.stat().st_size) == shown[-1]


def test_a_recorder_records_every_report_of_the_process(tmp_path: Path) -> None:
    """Single ones and batches, of all threads, with the clock's time and every field."""
    path = tmp_path / "r.npy"
    before = time.monotonic_ns()
    with Recorder(path) as recorder:
        damon_report_access(damon_access_report(1, 0x1000, 8, 2, 3, True, 4, 5))
        thread = threading.Thread(target=lambda: report_accesses(report_array(1000, pid=6, addr=np.arange(1000))))
        thread.start()
        thread.join()
        assert eventually(lambda: recorder.recorded == 1001)
        report_accesses(report_array(5, pid=7))
    after = time.monotonic_ns()
    damon_report_access(damon_access_report(8, 0x1000, 8))
    records = np.load(path)
    assert (1006, 0, 1006) == (recorder.recorded, recorder.lost, len(records))
    assert (1, 0x1000, 8, 2, 3, True, 4, 5) == records[0].tolist()[1:]
    assert list(range(1000)) == records["addr"][records["pid"] == 6].tolist()
    times = records["time"]
    assert before <= times[0] <= times[-1] <= after
    assert (np.diff(times.astype(np.int64)) >= 0).all()


def test_what_a_recorder_cannot_take_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A burst beyond the queue's room, and values that fit no record."""
    monkeypatch.setattr(reports_module, "DAMON_ACCESS_REPORTS_CAP", 1000)
    with Recorder(tmp_path / "r.npy") as recorder:
        report_accesses(report_array(1500))
        damon_report_access(damon_access_report(1 << 40, 0, 1))
    lost = recorder.lost
    assert (1501, lost) == (recorder.recorded + recorder.lost, 1501 - len(np.load(tmp_path / "r.npy")))
    assert lost >= 500


FULL = """
import resource, sys, time
from kdamon.reports.deliver import report_accesses
from kdamon.reports.record import report_array
from kdamon_tools.report_files.report_file import Recorder
resource.setrlimit(resource.RLIMIT_FSIZE, (1000 * 56, 1000 * 56))
try:
    with Recorder(sys.argv[1]) as recorder:
        while not recorder.lost:
            report_accesses(report_array(100, addr=range(100)))
            time.sleep(0.001)
        report_accesses(report_array(100))
finally:
    print(recorder.recorded, recorder.lost)
"""


@pytest.mark.real
def test_a_recorder_that_finds_no_room_says_so_at_the_end(tmp_path: Path) -> None:
    """What goes on meanwhile goes on; what was written is there, and what was not is counted."""
    path = tmp_path / "r.npy"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tools")))}
    command = [sys.executable, "-c", FULL, str(path)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert "the report file is incomplete: File too large" in ended.stderr.splitlines()[-1]
    recorded, lost = map(int, ended.stdout.split())
    assert (0, True) == ((recorded + lost) % 100, lost >= 100)
    records = read_reports(path)
    assert recorded <= len(records) <= 1000
    assert [n % 100 for n in range(len(records))] == records["addr"].tolist()


def test_a_recorder_that_cannot_begin_leaves_nothing(tmp_path: Path) -> None:
    """No thread, and nothing subscribed."""
    before = threading.active_count()
    for path in (tmp_path / "no" / "r.npy", Path("/dev/full")):
        with pytest.raises(OSError, match=r"No such file|No space left"), Recorder(path):
            pass
    assert (before, ()) == (threading.active_count(), reports_module._subscribers)


KILLED = """
import sys, time
from kdamon.reports.deliver import report_accesses
from kdamon.reports.record import report_array
from kdamon_tools.report_files.report_file import Recorder
with Recorder(sys.argv[1]) as recorder:
    n = 0
    while True:
        report_accesses(report_array(100, pid=9, addr=range(n, n + 100)))
        n += 100
        time.sleep(0.001)
"""


@pytest.mark.real
def test_a_recorder_that_is_killed_leaves_a_recording(tmp_path: Path) -> None:
    """For numpy as well as for us, without a gap or half a record."""
    path = tmp_path / "r.npy"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tools")))}
    with subprocess.Popen([sys.executable, "-c", KILLED, str(path)], env=environment) as process:
        try:
            assert eventually(lambda: path.exists() and path.stat().st_size and len(np.load(path)) >= 2000)
        finally:
            process.kill()
    records = read_reports(path)
    assert len(records) >= 2000
    assert list(range(len(records))) == records["addr"].tolist()
    loaded = np.load(path)
    assert loaded.tolist() == records[: len(loaded)].tolist()
    assert len(loaded) >= 2000


def test_an_error_of_reading_names_the_file() -> None:
    # Nothing is mapped at address 0.
    with pytest.raises(OSError) as error, open_reports("/proc/self/mem"):
        pass
    assert (errno.EIO, "/proc/self/mem") == (error.value.errno, error.value.filename)
