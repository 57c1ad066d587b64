# SPDX-License-Identifier: GPL-2.0-only
"""Receives reports from other processes while a tree is served: the option --reports."""

from __future__ import annotations

import argparse
import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from kdamon_tools import interpreter

__all__ = ["find_reports", "serve_reports"]

log = logging.getLogger("kdamon")


def find_reports(arguments: argparse.Namespace) -> None:
    """Pass the selected socket on to commands that this process starts."""
    if arguments.reports and not arguments.no_reports:
        os.environ["KDAMON_REPORTS"] = os.path.abspath(arguments.reports)


@contextmanager
def serve_reports(arguments: argparse.Namespace) -> Iterator[None]:
    """Serve the socket in a thread. The default one is optional: if it cannot be created, a log line gives the reason.

    :raises OSError: the selected socket cannot be created.
    """
    from kdamon.producers.server import ReportServer  # noqa: PLC0415 (needs more than the other verbs)

    interpreter.ready()
    if arguments.no_reports:
        yield
        return
    server = ReportServer(arguments.reports or None)
    try:
        server.start()
    except OSError as error:
        if arguments.reports:
            raise
        # That another kdamon serves the default socket is common, and no reason for a warning.
        level = logging.INFO if error.errno == errno.EADDRINUSE else logging.WARNING
        log.log(level, "access reports of other processes are not received: %s", error.strerror)
        yield
        return
    log.info("access reports of other processes are received at %s", server.path)
    try:
        yield
    finally:
        server.close()
