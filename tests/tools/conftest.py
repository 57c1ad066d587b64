# SPDX-License-Identifier: GPL-2.0-only
"""What tests of the tools share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdamon_tools.checks import tool_checks
from tests.support.capabilities import skip_because
from tests.support.paths import public_directory


@pytest.fixture(scope="module")
def fuse() -> None:
    """Skip where nothing can be mounted, with the reason."""
    if not os.path.exists("/dev/fuse"):
        pytest.skip("kernel lacks: /dev/fuse")
    for check in tool_checks():
        if not check.available and not check.name.startswith("damo"):
            pytest.skip(f"{check.name}: {check.why}")


@pytest.fixture(scope="module")
def monitoring() -> None:
    """Skip where this machine cannot monitor, with its own reason."""
    from kdamon.mm.linux.machine import linux_machine

    try:
        linux_machine().close()
    except OSError as error:
        skip_because(error, "monitoring is not possible: ")


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A directory that other users can pass through, as those of pytest's are not."""
    with public_directory(0o711) as directory:
        yield directory
