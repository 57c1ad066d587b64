# SPDX-License-Identifier: GPL-2.0-only
"""Writes the result of a verb to standard output, or to a file that is replaced when the result is complete."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from kdamon_tools.output.replacement import Replacement
from kdamon_tools.output.streams import write_result

__all__ = ["ResultFile"]

Render = Callable[[], Iterable[str]]


class ResultFile:
    """The destination of the result; a context manager.

    :param path: None is standard output.
    :raises OSError: on entering, the file cannot be written.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._replacement: Replacement | None = None

    def __enter__(self) -> ResultFile:
        self._replacement = None if self._path is None else Replacement(self._path)
        return self

    def __exit__(self, *_error: object) -> None:
        if self._replacement is not None:
            self._replacement.discard()

    def isatty(self) -> bool:
        """Return whether it is a terminal."""
        return sys.stdout.isatty() if self._replacement is None else self._replacement.isatty()

    def append(self, text: str) -> None:
        """Write a part of the result at once, without a buffer whose lock another thread could hold.

        :raises OSError: it cannot be written; BrokenPipeError: its reader ended.
        """
        self.append_bytes(text.encode("utf-8", "backslashreplace"))

    def append_bytes(self, data: bytes) -> None:
        """The same for bytes."""
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._descriptor(), rest) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._name()) from error

    def no_reader(self) -> OSError | None:
        """The error that the reader of the result, a pipe, ended; None otherwise."""
        poller = select.poll()
        poller.register(self._descriptor(), 0)
        if any(events & select.POLLERR for _, events in poller.poll(0)):
            return BrokenPipeError(errno.EPIPE, "its reader ended", self._name())
        return None

    def commit(self) -> None:
        """Replace the file by the appended content; may be repeated.

        :raises OSError: the content is not in its place.
        """
        if self._replacement is not None:
            self._replacement.commit()
            self._replacement = None

    def keep_part(self) -> None:
        """Keep the appended part: it may have taken hours."""
        if self._replacement is not None:
            kept = self._replacement.keep_part()
            if kept is not None:
                print(f"kdamon: the part of the result that could be written is {kept}", file=sys.stderr)

    def _descriptor(self) -> int:
        return sys.stdout.fileno() if self._replacement is None else self._replacement.file.fileno()

    def _name(self) -> str:
        return "standard output" if self._path is None else str(self._path)

    def write(self, render: Render) -> None:
        """Write the result; if that fails, write it elsewhere, because it may have taken hours.

        :param render: returns its parts, at each call again.
        :raises OSError: it could not be written to its destination.
        """
        if self._replacement is None:
            _write_to_output(render)
            return
        try:
            for part in render():
                rest = memoryview(part.encode("utf-8", "backslashreplace"))
                while rest:
                    rest = rest[self._replacement.file.write(rest) or 0 :]
            self._replacement.commit()
        except OSError as error:
            sentence = error.strerror
            with contextlib.suppress(OSError):
                _write_to_output(render)
                sentence = f"{sentence}; the result is on standard output instead"
            raise OSError(error.errno, sentence, str(self._path)) from error


def _write_to_output(render: Render) -> None:
    try:
        write_result(render())
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.errno == errno.EBADF:
            raise
        for part in render():
            sys.stderr.write(part)
        sentence = f"{error.strerror}; the result is on standard error instead"
        raise OSError(error.errno, sentence, error.filename) from error
