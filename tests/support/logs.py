# SPDX-License-Identifier: GPL-2.0-only
"""No log of kdamon holds a traceback, in a test's own process or in one that it started.

kdamon logs a traceback only of what was not foreseen, and goes on: only the log shows such a bug. A test that provokes
one says so with the marker ``traceback_expected``.
"""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

_TRACEBACK = "Traceback (most recent call last)"
#: Programs of the tests that are what kdamon is.
_SERVERS = ("hostile_mounts.py", "mount_attacks.py", "own_requests.py", "run_within.py", "serve_tree.py")


def _is_kdamon(word: str) -> bool:
    """Return whether a word of a command line names kdamon."""
    if " " in word:
        # A script, which may name files of kdamon.
        return False
    return word.partition(".")[0] == "kdamon_tools" or os.path.basename(word) in ("kdamon", *_SERVERS)


class _Scanner(logging.Handler):
    """Keeps what is logged with a traceback."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[str] = []
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Look at a record."""
        text = self.format(record)
        if _TRACEBACK in text:
            self.found.append(text)

    def scan(self, command: Any, output: str | bytes | None) -> None:
        """Look at what a process said on standard error.

        :param command: of the process; others than kdamon, and kdamon with --debug, may have tracebacks.
        """
        words = [
            os.fsdecode(word) for word in ([command] if isinstance(command, str | bytes | os.PathLike) else command)
        ]
        text = output.decode("utf-8", "backslashreplace") if isinstance(output, bytes) else output or ""
        if any(map(_is_kdamon, words)) and "--debug" not in words and _TRACEBACK in text:
            self.found.append(f"{shlex.join(words)}\n{text}")


@pytest.fixture(autouse=True)
def no_traceback_is_logged(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail the test if a log has a traceback in the end."""
    scanner = _Scanner()
    communicate = subprocess.Popen.communicate

    def communicate_and_scan(self: subprocess.Popen[Any], *arguments: Any, **options: Any) -> tuple[Any, Any]:
        out, err = communicate(self, *arguments, **options)
        scanner.scan(self.args, err)
        return out, err

    # subprocess.run() calls it too.
    monkeypatch.setattr(subprocess.Popen, "communicate", communicate_and_scan)
    log = logging.getLogger("kdamon")
    log.addHandler(scanner)
    yield
    log.removeHandler(scanner)
    if request.node.get_closest_marker("traceback_expected") is None:
        assert [] == scanner.found, "\n".join(scanner.found)
