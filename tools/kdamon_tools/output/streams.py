# SPDX-License-Identifier: GPL-2.0-only
"""Makes standard streams safe that may be closed, full or broken pipes: output never disturbs the monitoring.

:func:`prepare_streams` is called once, before anything else. Writes to standard error then always succeed; text that
cannot be written is lost. A result that cannot be written is a failure: :func:`write_result` raises, and
:func:`finish_output` drops the rest of standard output's buffer, so that the interpreter's end does not fail on it.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, BinaryIO, Final, cast

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["finish_output", "prepare_streams", "stdin_descriptor", "write_result"]

#: Time limit in milliseconds after which text is lost to a reader that does not read: a pager that waits for its user,
#: or a stopped terminal (Ctrl-S), must not delay the monitoring.
_PATIENCE_MS: Final = 1000
#: Number of bytes that a writable pipe accepts at once (PIPE_BUF).
_PIECE: Final = 4096


class _Tolerant(io.FileIO):
    """A file descriptor on which every write succeeds, even if the data are lost."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._patience_ms = _PATIENCE_MS

    def write(self, data: ReadableBuffer) -> int:
        """Write ``data``; drop the part that cannot be written."""
        whole = rest = memoryview(data).cast("B")
        with contextlib.suppress(OSError):
            while rest and self._ready():
                rest = rest[super().write(rest[:_PIECE]) or 0 :]
        return len(whole)

    def _ready(self) -> bool:
        # One for each write: threads must not poll the same one.
        poller = select.poll()
        poller.register(self.fileno(), select.POLLOUT)
        ready = bool(poller.poll(self._patience_ms))
        self._patience_ms = _PATIENCE_MS if ready else 0
        return ready


def prepare_streams() -> None:
    """Open closed standard streams, and make standard error a stream that cannot fail.

    Closed ones (``>&-``) are opened so that other files do not get their numbers, but in the wrong direction: reading
    standard input and writing standard output still fail then.
    """
    for number, flags in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # As on standard error: a character that the locale does not have must not lose the rest.
        sys.stdout.reconfigure(errors="backslashreplace")
    # A replacement, by a test, stays.
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        encoding = sys.stderr.encoding if sys.stderr is not None else "utf-8"
        raw = cast(BinaryIO, _Tolerant(2))
        # Unbuffered, as with python -u: without a lock that a thread could hold at the end.
        sys.stderr = io.TextIOWrapper(raw, encoding, errors="backslashreplace", write_through=True)


def stdin_descriptor() -> int:
    """The number of standard input.

    :raises OSError: EBADF it is closed.
    """
    try:
        os.read(0, 0)
    except OSError as error:
        if error.errno == errno.EBADF:
            raise OSError(errno.EBADF, "it is closed", "standard input") from None
    return 0


def write_result(parts: Iterable[str]) -> None:
    """Write ``parts`` to standard output.

    :raises OSError: they cannot be written; BrokenPipeError: its reader ended.
    """
    try:
        for part in parts:
            sys.stdout.write(part)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from error


def finish_output() -> OSError | None:
    """Flush standard output, or drop its content; return the error if it could not be written."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OSError(error.errno, error.strerror, "standard output")
    return None
