# SPDX-License-Identifier: GPL-2.0-only
"""What tests of the tools share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdamon_tools.checks import tool_checks
from tests.support.paths import public_directory


@pytest.fixture(scope="module")
def fuse() -> None:
    """Skip where nothing can be mounted, with the reason."""
    if not os.path.exists("/dev/fuse"):
        pytest.skip("kernel lacks: /dev/fuse")
    for check in tool_checks():
        if not check.available and not check.name.startswith("damo"):
            pytest.skip(f"{check.name}: {check.why}")


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A directory that other users can pass through, as those of pytest's are not."""
    with public_directory(0o711) as directory:
        yield directory
