# SPDX-License-Identifier: GPL-2.0-only
"""Where things are in the checkout."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["PYTHONPATH", "ROOT", "ROOTS", "SUPPORT", "public_directory"]

ROOT = Path(__file__).resolve().parents[2]
#: What a process of the tests imports from.
ROOTS = [str(ROOT / part) for part in ("", "fs", "tools")]
PYTHONPATH = os.pathsep.join(ROOTS)
#: Programs that tests run, and their sources.
SUPPORT = ROOT / "tests/support"


@contextmanager
def public_directory(mode: int = 0o755) -> Iterator[Path]:
    """A directory on a disk that every user reaches, as those of pytest are not; removed at the end."""
    with tempfile.TemporaryDirectory(prefix="kdamon-test-", dir="/var/tmp") as name:
        Path(name).chmod(mode)
        yield Path(name)
