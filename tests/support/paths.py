# SPDX-License-Identifier: GPL-2.0-only
"""Where things are in the checkout."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["PYTHONPATH", "ROOT", "ROOTS", "SUPPORT"]

ROOT = Path(__file__).resolve().parents[2]
#: What a process of the tests imports from.
ROOTS = [str(ROOT / part) for part in ("", "fs", "tools")]
PYTHONPATH = os.pathsep.join(ROOTS)
#: Programs that tests run, and their sources.
SUPPORT = ROOT / "tests/support"
