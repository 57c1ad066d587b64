# SPDX-License-Identifier: GPL-2.0-only
"""Reports from other processes for as long as a tree is served: what the option --reports does."""

from __future__ import annotations

import argparse
import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["find_reports", "serve_reports"]

log = logging.getLogger("kdamon")


def find_reports(arguments: argparse.Namespace) -> None:
    """Let commands that this process starts find the socket that was asked for."""
    if arguments.reports and not arguments.no_reports:
        os.environ["KDAMON_REPORTS"] = os.path.abspath(arguments.reports)


@contextmanager
def serve_reports(arguments: argparse.Namespace) -> Iterator[None]:
    """Serve the socket in a thread. The usual place is a convenience: where it cannot be had, a log line says why.

    :raises OSError: the socket that was asked for cannot be made.
    """
    from kdamon.producers.server import ReportServer  # noqa: PLC0415 (needs more than the other verbs)

    if arguments.no_reports:
        yield
        return
    server = ReportServer(arguments.reports or None)
    try:
        server.start()
    except OSError as error:
        if arguments.reports:
            raise
        # Another kdamon is no trouble worth a line for everybody.
        level = logging.INFO if error.errno == errno.EADDRINUSE else logging.WARNING
        log.log(level, "reports of other processes are not taken: %s", error.strerror)
        yield
        return
    log.info("reports of other processes are taken at %s", server.path)
    try:
        yield
    finally:
        server.close()
