# SPDX-License-Identifier: GPL-2.0-only
"""Access reports in files: kdamon's own recording, and reading it and the texts of other tools.

A recording is what ``numpy.save()`` writes of an array of :data:`RECORD_DTYPE`, so ``numpy.load(FILE)`` reads it.
"""

from __future__ import annotations

import errno
import os
import sys
import tempfile
import threading
import tokenize
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Final

import numpy as np

from kdamon.damon import damon_access_report
from kdamon.kernel import RealClock
from kdamon.reports import REPORT_DTYPE, damon_report_queue, damon_report_subscribe, damon_report_unsubscribe
from kdamon_tools.lackey import DEFAULT_RATE, Lackey, count_accesses
from kdamon_tools.perf_script import PerfScript, count_samples
from kdamon_tools.records import RECORD_DTYPE, Records, TextFormat, TextNotes, line_blocks, new_records, reports_of

__all__ = ["FORMATS", "RECORD_DTYPE", "Recorder", "RecordingWriter", "open_recording", "open_reports", "read_reports"]

#: Names of what can be read.
FORMATS: Final = ("recording", "perf", "lackey")

_MAGIC: Final = b"\x93NUMPY"
_READ_HEAD: Final = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_PERF_DATA: Final = b"PERFILE2"
_BLOCK_BYTES: Final = 1 << 22
_LOOK_BYTES: Final = 1 << 16
_DRAIN_S: Final = 0.05

#: Told how many bytes of a file were read, and how many there are (0: unknown).
Progress = Callable[[int, int], None]


class RecordingWriter:
    """Writes a recording, any number of records at a time.

    The head of the file is brought up to date after each write, so that whoever is killed leaves a valid file.

    :param file: where to, empty and without a buffer; it is not closed.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._written = 0
        self._write_head()

    def _write_head(self) -> None:
        # numpy leaves room in the head for the number to grow.
        head = {"descr": np.lib.format.dtype_to_descr(RECORD_DTYPE), "fortran_order": False, "shape": (self._written,)}
        self._file.seek(0)
        np.lib.format.write_array_header_1_0(self._file, head)

    def write(self, records: Records) -> None:
        """Append ``records``.

        :raises OSError: they cannot be written.
        """
        self._file.seek(0, os.SEEK_END)
        rest = np.ascontiguousarray(records).view(np.uint8).data
        while rest:
            rest = rest[self._file.write(rest) :]
        self._written += len(records)
        self._write_head()


def open_recording(path: Path | str) -> Records:
    """The records of a recording, mapped from the file, shape (n,).

    All whole records that the file holds: when its writer was killed, the number in its head may be another.

    :raises OSError: it cannot be read, or EINVAL it is no recording.
    """
    with open(path, "rb") as file:
        return _map_recording(file, str(path))


def _map_recording(file: IO[bytes], name: str) -> Records:
    try:
        file.seek(0)
        version = np.lib.format.read_magic(file)
        read_head = _READ_HEAD[version]
        _, fortran_order, dtype = read_head(file)
    except (ValueError, KeyError, TypeError, SyntaxError, tokenize.TokenError) as error:
        raise OSError(errno.EINVAL, "this is no array of numpy's that can be read", name) from error
    if dtype != RECORD_DTYPE or fortran_order:
        raise OSError(errno.EINVAL, "this array of numpy's does not hold access reports with their times", name)
    offset = file.tell()
    n = (os.fstat(file.fileno()).st_size - offset) // RECORD_DTYPE.itemsize
    if not n:
        return np.zeros(0, RECORD_DTYPE)
    return np.memmap(file, RECORD_DTYPE, "r", offset, (n,))


class Recorder:
    """Writes every access report of this process to a file while the ``with`` block runs.

    Reports are recorded as they are made, whether or not any context uses them. Memory is bounded: what the recorder
    cannot take is lost and counted.

    :param path: the file; what it held is overwritten.
    :ivar recorded: how many reports were written.
    :raises OSError: the file cannot be written; when it fails within the block, it is told at its end.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.recorded = 0
        self._not_written = 0
        self._queue = damon_report_queue(RealClock())
        self._stop = threading.Event()
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)

    @property
    def lost(self) -> int:
        """How many reports were not recorded."""
        return self._queue.snapshot().dropped + self._not_written

    def __enter__(self) -> Recorder:
        self._file = self.path.open("wb", buffering=0)
        try:
            self._writer = RecordingWriter(self._file)
            damon_report_subscribe(self._queue)
            self._thread.start()
        except BaseException:
            damon_report_unsubscribe(self._queue)
            self._file.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        damon_report_unsubscribe(self._queue)
        self._stop.set()
        self._thread.join()
        try:
            self._file.close()
        except OSError as failure:
            self._error = self._error or failure
        if self._error is not None and error is None:
            raise OSError(self._error.errno, f"the recording is not whole: {self._error.strerror}", str(self.path))

    def _run(self) -> None:
        while not self._stop.wait(_DRAIN_S):
            self._drain()
        self._drain()

    def _drain(self) -> None:
        entries = self._queue.take()
        if not entries:
            return
        parts = [_records(time, entry) for time, entry in entries]
        records = np.concatenate(parts)
        # Every thread has a queue of its own: between them there is no order yet.
        records = records[np.argsort(records["time"], kind="stable")]
        sent = sum(1 if isinstance(entry, damon_access_report) else len(entry) for _, entry in entries)
        self._not_written += sent - len(records)
        if self._error is None:
            try:
                self._writer.write(records)
                self.recorded += len(records)
                return
            except OSError as error:
                # What goes on meanwhile matters more: it is told in the end.
                self._error = error
        self._not_written += len(records)


def _records(time: int, entry: damon_access_report | Records) -> Records:
    """The records of one report or of a batch; none for a report whose values fit no record."""
    if isinstance(entry, damon_access_report):
        values = tuple(getattr(entry, name) for name in REPORT_DTYPE.names or ())
        try:
            return np.array([(time, *values)], RECORD_DTYPE)
        except (OverflowError, TypeError, ValueError):
            return np.zeros(0, RECORD_DTYPE)
    records = new_records(len(entry), time=time)
    reports_of(records)[:] = entry
    return records


def _text_format(name: str, look: bytes, path: str, *, pid: int | None, rate: int, instructions: bool) -> TextFormat:
    """The reader of the text format ``name``; "auto" is what most lines of ``look`` are."""
    if look.startswith(_PERF_DATA):
        raise OSError(errno.EINVAL, "this is perf's own file; give what 'perf script' writes about it", path)
    if name == "auto":
        samples, accesses = count_samples(look), count_accesses(look)
        if not samples and not accesses:
            sentence = "neither a recording, nor output of perf script, nor a trace of lackey; --format says which"
            raise OSError(errno.EINVAL, sentence, path)
        name = "perf" if samples > accesses else "lackey"
    return PerfScript(pid) if name == "perf" else Lackey(pid, rate, instructions)


def _spool(writer: RecordingWriter, records: Records) -> None:
    try:
        writer.write(records)
    except OSError as error:
        sentence = f"there is no room for a temporary recording: {error.strerror}; set TMPDIR to where there is"
        raise OSError(error.errno, sentence, tempfile.gettempdir()) from error


@contextmanager
def open_reports(
    path: Path | str,
    file_format: str = "auto",
    *,
    pid: int | None = None,
    rate: int = DEFAULT_RATE,
    instructions: bool = False,
    progress: Progress | None = None,
) -> Iterator[tuple[Records, TextNotes | None]]:
    """The reports in a file, and for a text what became of its lines; they are there within the ``with`` block.

    A text is turned into a temporary recording first, so that files of any size fit into memory.

    :param path: "-" is standard input.
    :param file_format: one of :data:`FORMATS`, or "auto".
    :param pid: the process of reports of which the file does not tell it.
    :param rate: accesses that make a second in a file without times.
    :param instructions: whether fetching an instruction is an access.
    :raises OSError: it cannot be read, or EINVAL it is of another format.
    """
    piped = str(path) == "-"
    name = "standard input" if piped else str(path)
    with open(sys.stdin.fileno() if piped else path, "rb", closefd=not piped) as stream:
        look = stream.read(_LOOK_BYTES)
        if file_format == "recording" or (file_format == "auto" and look.startswith(_MAGIC)):
            if piped:
                raise OSError(errno.EINVAL, "a recording has to be given by its name", name)
            yield open_recording(path), None
            return
        reader = _text_format(file_format, look, name, pid=pid, rate=rate, instructions=instructions)
        size, done = os.fstat(stream.fileno()).st_size, 0
        # Without a name, so that nothing is left behind whatever happens.
        with tempfile.TemporaryFile(prefix="kdamon-", buffering=0) as spool:
            writer = RecordingWriter(spool)
            for block in line_blocks(stream, _BLOCK_BYTES, look):
                _spool(writer, reader.parse(block))
                done += len(block)
                if progress is not None:
                    progress(done, size)
            yield _map_recording(spool, name), reader.notes


def read_reports(path: Path | str, file_format: str = "auto") -> Records:
    """All reports in a file of any format, shape (n,), in the file's order; see :func:`open_reports`."""
    with open_reports(path, file_format) as (records, _):
        return np.array(records)
