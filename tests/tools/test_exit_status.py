# SPDX-License-Identifier: GPL-2.0-only
"""The exit statuses that docs/usage.md, help and man pages list, verb by verb."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.cli import ENVIRONMENT

pytestmark = pytest.mark.real


#: Verb and arguments, a shell's words, and the status.
LINES = [
    ("run --pid $$ --ops reports --range 0-1M --seconds 0.1 --quiet", 0),
    ("run --ops reports --range 0-1M --quiet -- true", 0),
    ("run --ops reports --range 0-1M --quiet -- sh -c 'exit 7'", 7),
    ("run --ops reports --range 0-1M --quiet -- sh -c 'kill -TERM $$'", 128 + 15),
    ("run --ops reports --range 0-1M --quiet -- /nonexistent", 1),
    ("run --pid 4194305", 1),
    ("run --pid x", 2),
    ("top", 2),
    ("top --pid $$ </dev/null", 2),
    ("wss --pid 4194305", 1),
    ("wss", 2),
    ("report /nonexistent", 1),
    ("report", 2),
    ("report /nonexistent nonsense", 2),
    ("diff /nonexistent /nonexistent", 1),
    ("diff /nonexistent", 2),
    ("replay /nonexistent", 1),
    ("replay", 2),
    ("mount /nonexistent", 1),
    ("mount", 2),
    ("exec", 2),
    ("doctor nonsense", 2),
    ("completion zsh", 0),
    ("completion tcsh", 2),
    ("fly", 2),
    ("--version", 0),
    ("--help", 0),
]


@pytest.mark.parametrize(("line", "expected"), LINES)
def test_exit_status(line: str, expected: int) -> None:
    """One sentence where it is a failure, and no traceback."""
    words = ["sh", "-c", f'exec "$0" -m kdamon_tools {line}', sys.executable]
    done = subprocess.run(words, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    assert expected == done.returncode, done.stderr
    failed = expected in (1, 2)
    assert (b"kdamon: " if failed else b"") == done.stderr[: 8 if failed else None], done.stderr
