# SPDX-License-Identifier: GPL-2.0-only
"""Long text on a terminal goes through a pager, as git does it."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from kdamon.lib.trusted import find_program
from kdamon_tools.output.terminal import terminal_size

__all__ = ["page", "pager"]

_LESS: Final = "less"
#: What less does unless the user has LESS: end if there is only one screen, keep colours, leave the text there. And it
#: starts no other program and writes no file: kdamon often runs as root, for users who may run nothing else as root.
_OPTIONS: Final = {"LESS": "FRX", "LESSSECURE": "1"}


def pager(output: Path | None) -> list[str]:
    """The command line of the pager for a result.

    For root it is less and nothing else, since the environment may be that of another user, as with ``sudo -E``.

    :param output: where the result goes; None: standard output.
    :returns: empty: there is none, or the result is not for a terminal.
    """
    if output is not None or not sys.stdout.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        return []
    chosen = os.environ.get("KDAMON_PAGER", os.environ.get("PAGER", _LESS))
    try:
        words = shlex.split(chosen)
    except ValueError:
        # A quotation mark without its other half.
        return []
    if not words or words == ["cat"]:
        return []
    if os.geteuid() == 0:
        program, words = find_program(_LESS), [_LESS]
    else:
        program = shutil.which(words[0])
    return [] if program is None else [program, *words[1:]]


def page(text: str, words: list[str]) -> bool:
    """Show ``text`` by the pager ``words`` if it is longer than the terminal; returns whether that was done.

    It is no error if the user leaves it before the end of the text.

    :param words: see :func:`pager`; empty: there is none.
    """
    if not words or len(text.splitlines()) < terminal_size()[1]:
        return False
    # What is in the buffer comes first.
    sys.stdout.flush()
    secure = {"LESSSECURE": "1"} if os.geteuid() == 0 else {}
    try:
        process = subprocess.Popen(words, stdin=subprocess.PIPE, env=_OPTIONS | os.environ | secure)
    except OSError:
        return False
    assert process.stdin is not None
    with _interrupts_for_the_pager(), process:
        # It may end early.
        with suppress(BrokenPipeError):
            process.stdin.write(text.encode("utf-8", "backslashreplace"))
        with suppress(BrokenPipeError):
            process.stdin.close()
    return True


@contextmanager
def _interrupts_for_the_pager() -> Iterator[None]:
    """Leave Ctrl-C to the pager, which uses it: if kdamon ended, the shell would read the same terminal."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # A function is not inherited as SIG_IGN would be.
    before = signal.signal(signal.SIGINT, lambda _number, _frame: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
