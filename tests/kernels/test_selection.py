# SPDX-License-Identifier: GPL-2.0-only
"""tests/kernels/selection.py: what a run selects exists."""

from __future__ import annotations

import re

import pytest

from tests.kernels.selection import DEFAULT
from tests.support.paths import ROOT


@pytest.mark.parametrize("argument", DEFAULT)
def test_a_selected_test_exists(argument: str) -> None:
    """Pytest would notice a test that was renamed only in the guest."""
    file, _, name = argument.partition("::")
    source = (ROOT / file).read_text(encoding="utf-8")
    assert re.search(rf"^def {name}\(" if name else r"^def test_", source, re.MULTILINE)
