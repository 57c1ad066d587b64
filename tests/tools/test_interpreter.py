# SPDX-License-Identifier: GPL-2.0-only
"""The interpreter of a process that only runs the command line."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from kdamon_tools import cli, interpreter
from tests.support.paths import PYTHONPATH

pytestmark = pytest.mark.real

SCRIPT = """
import gc, sys
from kdamon_tools import __main__, commands
from kdamon_tools.commands import completion
def look(arguments):
    print(gc.isenabled(), gc.get_freeze_count() > 1000, sys.getswitchinterval() < 0.0002)
    return 0
completion.run = look
sys.argv[1:] = ["completion", "bash"]
sys.exit(__main__.main())
"""


def test_the_command_yields_soon_and_collects_little() -> None:
    """A kdamond waits for a tenth of a millisecond, and never while all modules are searched for garbage."""
    environment = {"PYTHONPATH": PYTHONPATH, "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False)
    assert (0, "True True True\n", "") == (done.returncode, done.stdout, done.stderr)


def test_another_programs_interpreter_is_left_alone() -> None:
    """A program that calls the command line as a function keeps its settings."""
    before = (gc.isenabled(), gc.get_freeze_count(), sys.getswitchinterval())
    interpreter.ready()
    assert 0 == cli.main(["completion", "bash"])
    assert before == (gc.isenabled(), gc.get_freeze_count(), sys.getswitchinterval())
