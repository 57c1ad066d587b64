# SPDX-License-Identifier: GPL-2.0-only
"""Log lines on standard error."""

from __future__ import annotations

import logging

from kdamon_tools.output.readable import readable

__all__ = ["log_traceback", "set_up_logs"]


class _Formatter(logging.Formatter):
    """Formats messages with names that may contain any character; a traceback keeps its lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (the base class's name)
        return readable(super().formatMessage(record))


def set_up_logs(debug: bool) -> None:
    """Log warnings, or with ``debug`` everything, to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(
        _Formatter("%(asctime)s %(threadName)s %(name)s: %(message)s" if debug else "kdamon: %(message)s")
    )
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, handlers=[handler])


def log_traceback(error: BaseException) -> None:
    """Log the traceback of ``error``, for ``--debug``."""
    logging.getLogger("kdamon").debug("traceback:", exc_info=error)
