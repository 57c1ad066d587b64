# SPDX-License-Identifier: GPL-2.0-only
"""Standard streams that may be closed, full or broken pipes: what is shown never changes what goes on.

:func:`prepare_streams` is called once, before anything else. Standard error then takes everything, and what cannot be
written there is lost. A result that cannot be written is a failure: :func:`write_result` raises, and whatever is left
in standard output's buffer is given up by :func:`finish_output`, so that the interpreter's end does not fail on it.
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

#: A reader that takes nothing for so long loses what is said, milliseconds: a pager that waits for its user, or a
#: terminal that was stopped (Ctrl-S), must not hold up the monitoring.
_PATIENCE_MS: Final = 1000
#: What a pipe that is ready takes at once (PIPE_BUF).
_PIECE: Final = 4096


class _Tolerant(io.FileIO):
    """A file descriptor on which every write succeeds, whatever becomes of it."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._patience_ms = _PATIENCE_MS

    def write(self, data: ReadableBuffer) -> int:
        """Write ``data``, or lose what cannot be written."""
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
    """Open closed standard streams, and make standard error one that cannot fail.

    Closed ones (``>&-``) are opened so that files of other use do not get their numbers, the wrong way round: reading
    standard input and writing standard output are errors then, as they should be.
    """
    for number, flags in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # As standard error has it: what a locale has no character for is no reason to lose the rest.
        sys.stdout.reconfigure(errors="backslashreplace")
    # What somebody put in its place (a test) stays.
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        encoding = sys.stderr.encoding if sys.stderr is not None else "utf-8"
        raw = cast(BinaryIO, _Tolerant(2))
        # As the interpreter does without buffers (-u): no lock that a thread could hold at the end.
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

    :raises OSError: they cannot be written; BrokenPipeError its reader has enough.
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
    """Flush standard output, or give it up; returns why it could not be written."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OSError(error.errno, error.strerror, "standard output")
    return None
