# SPDX-License-Identifier: GPL-2.0-only
"""Receives reports from other processes, and records all reports, while monitoring runs."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from kdamon.producers.server import ReportServer
    from kdamon_tools.report_files.report_file import Recorder

__all__ = ["ReportSources"]


class ReportSources:
    """Records while the ``with`` block runs, or until :meth:`close`, and serves producers from :meth:`serve` on.

    :param socket: the socket for producers, "" is the default one; None serves none.
    :param record: the file for a recording; None makes none.
    :raises OSError: on entering, the file cannot be created; at the end, the report file is incomplete.
    """

    def __init__(self, socket: str | None, record: Path | None) -> None:
        # Most runs need neither.
        self._server: ReportServer | None = None
        if socket is not None:
            from kdamon.producers.server import ReportServer  # noqa: PLC0415

            self._server = ReportServer(socket or None)
        self._recorder: Recorder | None = None
        if record is not None:
            from kdamon_tools.report_files.report_file import Recorder  # noqa: PLC0415

            self._recorder = Recorder(record)
        self._stack = ExitStack()
        self._closing = False

    def __enter__(self) -> ReportSources:
        if self._recorder is not None:
            self._stack.enter_context(self._recorder)
        return self

    def serve(self) -> None:
        """Serve producers from now on, if selected.

        :raises OSError: the socket cannot be created.
        """
        if self._server is not None:
            self._stack.enter_context(self._server)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if not self._closing:
            self._closing = True
            self._stack.__exit__(kind, error, where)

    def close(self) -> None:
        """Read the reports of producers up to now, and end the recording; may be repeated, even before it is done."""
        self.__exit__(None, None, None)

    def environment(self) -> dict[str, str]:
        """The environment for a command, with the socket for its producers."""
        return os.environ | ({} if self._server is None else {"KDAMON_REPORTS": str(self._server.path.absolute())})

    def producers(self) -> dict[str, int]:
        """The counters of the rings, by name; empty if none were served."""
        return {} if self._server is None else attrs.asdict(self._server.counters())

    def recorded(self) -> dict[str, int]:
        """The numbers of reports ``written`` to the file and ``lost``; empty without a file."""
        if self._recorder is None:
            return {}
        return {"written": self._recorder.recorded, "lost": self._recorder.lost}
