# SPDX-License-Identifier: GPL-2.0-only
"""The command ``kdamon`` from the checkout, as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.support.paths import PYTHONPATH, ROOT

__all__ = ["DATA", "ENVIRONMENT", "KDAMON", "REPORTS_ONLY", "run"]

ENVIRONMENT = os.environ | {"PYTHONPATH": PYTHONPATH}
KDAMON = [sys.executable, "-m", "kdamon_tools"]
#: Recordings to replay.
DATA = ROOT / "tests/tools/data"
#: Words of a command line that needs no rights.
REPORTS_ONLY = ["run", "--ops", "reports", "--range", "1000-9000", "--sample-us", "1ms", "--aggr-us", "10ms"]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """Run kdamon to its end."""
    return subprocess.run([*KDAMON, *words], env=ENVIRONMENT, capture_output=True, text=True, check=False)
