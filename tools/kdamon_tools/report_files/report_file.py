# SPDX-License-Identifier: GPL-2.0-only
"""Access reports in files: kdamon's own recording, and reading it and the texts of other tools.

A recording is what ``numpy.save()`` writes of an array of :data:`RECORD_DTYPE`, so ``numpy.load(FILE)`` reads it.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Final

import numpy as np

from kdamon.arrays import Records
from kdamon.damon import damon_access_report
from kdamon.kernel import RealClock
from kdamon.lib.capabilities import give_up_capabilities
from kdamon.lib.trusted import open_to_read
from kdamon.reports.deliver import subscribe_reports, unsubscribe_reports
from kdamon.reports.queue import ReportQueue
from kdamon.reports.record import REPORT_DTYPE
from kdamon_tools.defaults import LACKEY_RATE
from kdamon_tools.output.replacement import Replacement
from kdamon_tools.output.streams import stdin_descriptor
from kdamon_tools.output.temporary import temporary_directory, temporary_file
from kdamon_tools.report_files.lackey import Lackey, count_accesses
from kdamon_tools.report_files.perf_script import PerfScript, count_samples
from kdamon_tools.report_files.records import RECORD_DTYPE, TextFormat, TextNotes, line_blocks, new_records, reports_of
from kdamon_tools.report_files.stored_records import HEAD_BYTES, MAGIC, StoredRecords, parse_head

__all__ = ["RECORD_DTYPE", "Recorder", "RecordingWriter", "open_recording", "open_reports", "read_reports"]

#: What begins so is no text, and what to do about it.
_NOT_READ: Final = {
    b"PERFILE2": "this is perf's own file; give what 'perf script' writes about it",
    b"\x1f\x8b": "it is compressed; use zcat FILE | kdamon replay -",
    b"BZh": "it is compressed; use bzcat FILE | kdamon replay -",
    b"\xfd7zXZ\0": "it is compressed; use xzcat FILE | kdamon replay -",
    b"\x28\xb5\x2f\xfd": "it is compressed; use zstdcat FILE | kdamon replay -",
    b"PK\x03\x04": "it is an archive (zip, npz); take what is in it out first",
}
_BLOCK_BYTES: Final = 1 << 22
_DRAIN_S: Final = 0.05
#: Seconds that the rest of a recording may take to be written.
_END_S: Final = 20.0

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
    """The records of a recording, shape (n,), in memory.

    All whole records that the file holds: when its writer was killed, the number in its head may be another.

    :raises OSError: it cannot be read, or EINVAL it is no recording.
    """
    return read_reports(path, "recording")


class Recorder:
    """Writes every access report of this process to a file while the ``with`` block runs.

    Reports are recorded as they are made, whether or not any context uses them. Memory is bounded: what the recorder
    cannot take is lost and counted. What the file held before is replaced at the end, unless an error ended the block
    before anything was recorded; see :class:`kdamon_tools.output.replacement.Replacement`.

    :param path: the file.
    :ivar recorded: how many reports were written.
    :raises OSError: the file cannot be written; when it fails within the block, it is told at its end.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.recorded = 0
        self._not_written = 0
        self._queue = ReportQueue(RealClock())
        self._stop = threading.Event()
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)

    @property
    def lost(self) -> int:
        """How many reports were not recorded."""
        return self._queue.snapshot().dropped + self._not_written

    def __enter__(self) -> Recorder:
        self._replacement = Replacement(self.path)
        try:
            self._writer = RecordingWriter(self._replacement.file)
            subscribe_reports(self._queue)
            self._thread.start()
        except BaseException as error:
            unsubscribe_reports(self._queue)
            self._replacement.discard()
            if isinstance(error, OSError):
                sentence = f"no recording can be written there: {error.strerror}"
                raise OSError(error.errno, sentence, str(self.path)) from error
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        unsubscribe_reports(self._queue)
        self._stop.set()
        self._thread.join(_END_S)
        if self._thread.is_alive():
            # It may go on at any time: the file stays as it is.
            if error is None:
                raise OSError(
                    errno.ETIMEDOUT, "the recording is not whole: writing to it takes too long", str(self.path)
                )
            return
        with self._replacement:
            if error is not None and not self.recorded:
                return
            if self._error is None:
                try:
                    self._replacement.commit()
                except OSError as failure:
                    self._error = failure
            if self._error is not None and error is None:
                raise self._not_whole(self._error)
            self._replacement.keep_part()

    def _not_whole(self, error: OSError) -> OSError:
        part = self._replacement.keep_part()
        left = f"; what was recorded is in {part}" if part not in (None, self.path) else ""
        return OSError(error.errno, f"the recording is not whole: {error.strerror}{left}", str(self.path))

    def _run(self) -> None:
        # The file is open.
        give_up_capabilities()
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
    for begin, sentence in _NOT_READ.items():
        if look.startswith(begin):
            raise OSError(errno.EINVAL, sentence, path)
    if name == "auto":
        samples, accesses = count_samples(look), count_accesses(look)
        if not samples and not accesses:
            sentence = "neither a recording, nor output of perf script, nor a trace of lackey; --format says which"
            raise OSError(errno.EINVAL, sentence if look else "it is empty", path)
        name = "perf" if samples > accesses else "lackey"
    return PerfScript(pid) if name == "perf" else Lackey(pid, rate, instructions)


def _append(spool: IO[bytes], data: bytes | memoryview) -> None:
    """Write all of ``data`` to a temporary file."""
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[spool.write(rest) :]
    except OSError as error:
        sentence = f"there is no room for a temporary recording: {error.strerror}; set TMPDIR to where there is"
        raise OSError(error.errno, sentence, temporary_directory()) from error


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Errors that name no file are about the one called ``name``."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, name) from error


def _open(path: Path | str, piped: bool) -> IO[bytes]:
    if piped:
        return open(stdin_descriptor(), "rb", closefd=False)
    return open(open_to_read(path), "rb")


@contextmanager
def open_reports(
    path: Path | str,
    file_format: str = "auto",
    *,
    pid: int | None = None,
    rate: int = LACKEY_RATE,
    instructions: bool = False,
    progress: Progress | None = None,
    opened: Callable[[], None] = lambda: None,
) -> Iterator[tuple[StoredRecords, TextNotes]]:
    """The reports in a file, and what became of it; they are there within the ``with`` block.

    A text, and what comes through a pipe, is put into a temporary recording first, so that files of any size fit into
    memory.

    :param path: "-" is standard input.
    :param file_format: one of :data:`kdamon_tools.defaults.FORMATS`, or "auto".
    :param pid: the process of reports of which the file does not tell it.
    :param rate: accesses that make a second in a file without times.
    :param instructions: whether fetching an instruction is an access.
    :param opened: called when all files are open that are needed, before anything is read.
    :raises OSError: it cannot be read, or EINVAL it is of another format.
    """
    piped = str(path) == "-"
    name = "standard input" if piped else str(path)
    with ExitStack() as stack:
        stream = stack.enter_context(_open(path, piped))
        status = os.fstat(stream.fileno())
        regular = stat.S_ISREG(status.st_mode)
        spool = stack.enter_context(temporary_file())
        opened()
        from_start = regular and stream.tell() == 0
        with _named(name):
            look = stream.read(HEAD_BYTES)
        if file_format == "recording" or (file_format == "auto" and look.startswith(MAGIC)):
            head = parse_head(look, name)
            if from_start:
                records = StoredRecords(stream, head.offset, name)
            else:
                # Without its head.
                part = look[head.offset :]
                while part:
                    _append(spool, part)
                    part = stream.read(_BLOCK_BYTES)
                records = StoredRecords(spool, 0, name)
            notes = TextNotes(recording=True, cut=_cut(head.promised, records))
        else:
            reader = _text_format(file_format, look, name, pid=pid, rate=rate, instructions=instructions)
            done = 0
            for block in line_blocks(stream, _BLOCK_BYTES, look):
                if block.endswith(b"\n"):
                    _append(spool, np.ascontiguousarray(reader.parse(block)).view(np.uint8).data)
                else:
                    reader.notes.cut = "the last line has no end"
                done += len(block)
                if progress is not None:
                    progress(done, status.st_size if regular else 0)
            records, notes = StoredRecords(spool, 0, name), reader.notes
        yield records, notes


def _cut(promised: int, records: StoredRecords) -> str:
    """How a recording ends earlier than it should, "" where it does not."""
    if promised > len(records):
        return f"of {promised} reports only the first {len(records)} are there"
    return "the last report is there only in part" if records.rest else ""


def read_reports(path: Path | str, file_format: str = "auto") -> Records:
    """All reports in a file of any format, shape (n,), in the file's order; see :func:`open_reports`."""
    with open_reports(path, file_format) as (records, _):
        return records[:]
