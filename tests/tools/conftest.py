# SPDX-License-Identifier: GPL-2.0-only
"""What tests of the tools share."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A directory that other users can pass through, as those of pytest's are not."""
    directory = Path(tempfile.mkdtemp(prefix="kdamon-test-"))
    directory.chmod(0o711)
    yield directory
    shutil.rmtree(directory)
