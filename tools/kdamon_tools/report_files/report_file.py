# SPDX-License-Identifier: GPL-2.0-only
"""Access reports in files: writes kdamon's recordings, and reads them and the texts of other tools.

A recording has the format of ``numpy.save()`` for an array of :data:`RECORD_DTYPE`, so ``numpy.load(FILE)`` reads it.
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

#: First bytes of files that are not text, and the remedy.
_NOT_READ: Final = {
    b"PERFILE2": "this is perf's own file; use the output of 'perf script' for it",
    b"\x1f\x8b": "it is compressed; use zcat FILE | kdamon replay -",
    b"BZh": "it is compressed; use bzcat FILE | kdamon replay -",
    b"\xfd7zXZ\0": "it is compressed; use xzcat FILE | kdamon replay -",
    b"\x28\xb5\x2f\xfd": "it is compressed; use zstdcat FILE | kdamon replay -",
    b"PK\x03\x04": "it is an archive (zip, npz); extract its content first",
}
_BLOCK_BYTES: Final = 1 << 22
_DRAIN_S: Final = 0.05
#: Time limit in seconds for writing the rest of a recording.
_END_S: Final = 20.0

#: Receives the number of bytes read, and the size of the file (0: unknown).
Progress = Callable[[int, int], None]


class RecordingWriter:
    """Writes a recording, any number of records at a time.

    The head of the file is updated after each write, so that a killed process leaves a valid file.

    :param file: an empty, unbuffered file; it is not closed.
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

    All complete records of the file: if its writer was killed, the number in its head may differ.

    :raises OSError: it cannot be read, or EINVAL it is not a recording.
    """
    return read_reports(path, "reports")


class Recorder:
    """Writes every access report of this process to a file while the ``with`` block runs.

    Reports are recorded when they are made, whether or not any context uses them. Memory is bounded: reports that the
    recorder has no room for are lost and counted. The earlier content of the file is replaced at the end, unless an
    error ended the block before anything was recorded; see
    :class:`kdamon_tools.output.replacement.Replacement`.

    :param path: the file.
    :ivar recorded: the number of written reports.
    :raises OSError: the file cannot be written; a failure within the block is raised at its end.
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
        """The number of reports that were not recorded."""
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
                sentence = f"the report file cannot be written there: {error.strerror}"
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
            # The writer may continue at any time, so the file stays unchanged.
            if error is None:
                raise OSError(
                    errno.ETIMEDOUT, "the report file is incomplete: writing to it takes too long", str(self.path)
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
        left = f"; the recorded part is in {part}" if part not in (None, self.path) else ""
        return OSError(error.errno, f"the report file is incomplete: {error.strerror}{left}", str(self.path))

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
                # Monitoring matters more: the error is raised at the end.
                self._error = error
        self._not_written += len(records)


def _records(time: int, entry: damon_access_report | Records) -> Records:
    """The records of one report or of a batch; none for a report whose values do not fit a record."""
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
    """The reader of the text format ``name``; "auto": the format of most lines of ``look``."""
    for begin, sentence in _NOT_READ.items():
        if look.startswith(begin):
            raise OSError(errno.EINVAL, sentence, path)
    if name == "auto":
        samples, accesses = count_samples(look), count_accesses(look)
        if not samples and not accesses:
            sentence = (
                "neither a report file, nor output of perf script, nor a trace of lackey; select the format with "
                "--format"
            )
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
        sentence = (
            f"there is no room for a temporary report file: {error.strerror}; set TMPDIR to a directory with room"
        )
        raise OSError(error.errno, sentence, temporary_directory()) from error


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Add the file name ``name`` to errors without one."""
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
    """The reports in a file, and the statistics of reading it; they are available within the ``with`` block.

    A text, or data from a pipe, is converted to a temporary recording first, so that files of any size can be read.

    :param path: "-" is standard input.
    :param file_format: one of :data:`kdamon_tools.defaults.FORMATS`, or "auto".
    :param pid: the process of reports for which the file names none.
    :param rate: accesses per second in a file without times.
    :param instructions: whether an instruction fetch counts as an access.
    :param opened: called when all necessary files are open, before anything is read.
    :raises OSError: it cannot be read, or EINVAL it has another format.
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
        if file_format == "reports" or (file_format == "auto" and look.startswith(MAGIC)):
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
                    reader.notes.cut = "the last line is incomplete"
                done += len(block)
                if progress is not None:
                    progress(done, status.st_size if regular else 0)
            records, notes = StoredRecords(spool, 0, name), reader.notes
        yield records, notes


def _cut(promised: int, records: StoredRecords) -> str:
    """A sentence on how a recording is truncated, "" if it is complete."""
    if promised > len(records):
        return f"the file has only the first {len(records)} of {promised} reports"
    return "the last report is incomplete" if records.rest else ""


def read_reports(path: Path | str, file_format: str = "auto") -> Records:
    """All reports in a file of any format, shape (n,), in the file's order; see :func:`open_reports`."""
    with open_reports(path, file_format) as (records, _):
        return records[:]
