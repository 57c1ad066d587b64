# SPDX-License-Identifier: GPL-2.0-only
"""Runs an object in a helper process; its parent calls the methods, see :mod:`kdamon.mm.apart`."""

from __future__ import annotations

import fcntl
import importlib
import logging
import os
import pickle
import signal
import sys
import time
from multiprocessing.connection import Connection

from kdamon.mm.apart.looked_at import Looks, show_looks

__all__ = ["main"]


class _Kept(logging.Handler):
    """Keeps log records until they are fetched."""

    def __init__(self) -> None:
        super().__init__()
        self._said: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """See :class:`logging.Handler`."""
        self._said.append((record.levelno, record.getMessage()))

    def fetch(self) -> list[tuple[int, str]]:
        """Level and text of each record since the last call."""
        said, self._said = self._said, []
        return said


def _end_with(life: int) -> None:
    """Be killed once the other end of ``life``, a pipe, is closed, also while waiting for a lock of the kernel."""
    fcntl.fcntl(life, fcntl.F_SETOWN, os.getpid())
    # F_SETSIG
    fcntl.fcntl(life, 10, signal.SIGKILL)
    fcntl.fcntl(life, fcntl.F_SETFL, fcntl.fcntl(life, fcntl.F_GETFL) | os.O_ASYNC | os.O_NONBLOCK)
    try:
        gone = not os.read(life, 1)
    except BlockingIOError:
        gone = False
    if gone:
        # It was closed before.
        sys.exit()


def main() -> None:
    """Serve until the other process ends: the arguments are three descriptors and the log level."""
    channel, life, shared, level = map(int, sys.argv[1:])
    _end_with(life)
    show_looks(Looks(shared))
    kept = _Kept()
    log = logging.getLogger("kdamon")
    log.addHandler(kept)
    log.setLevel(level)
    connection = Connection(channel)
    module, name, arguments = pickle.loads(connection.recv_bytes())
    service: object = None
    answer: tuple[str, object]
    while True:
        try:
            if service is None:
                service = getattr(importlib.import_module(module), name)(*arguments)
                answer = "value", None
            else:
                method, arguments = pickle.loads(connection.recv_bytes())
                answer = "value", getattr(service, method)(*arguments)
        except EOFError:
            return
        except OSError as error:
            answer = "error", (error.errno, error.strerror or str(error))
        connection.send_bytes(pickle.dumps((*answer, kept.fetch(), time.process_time()), pickle.HIGHEST_PROTOCOL))
