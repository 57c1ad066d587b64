# SPDX-License-Identifier: GPL-2.0-only
"""What tests of producers need: a directory for sockets and programs, and a producer in C."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import SUPPORT, public_directory
from tests.support.reporter import compile_c


@pytest.fixture(scope="module")
def public() -> Iterator[Path]:
    """A directory that every user may look into."""
    with public_directory() as directory:
        yield directory


@pytest.fixture(scope="module")
def program(public: Path) -> Path:
    """The producer in C."""
    return compile_c(SUPPORT / "reporter.c", public / "reporter")
