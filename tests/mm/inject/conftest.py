# SPDX-License-Identifier: GPL-2.0-only
"""What all tests of injection need."""

from __future__ import annotations

import pytest

from kdamon.mm.inject import requests as inject


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may give a helper no CPU for a long time before it begins: that is no refusal."""
    monkeypatch.setattr(inject, "_PATIENCE", 60.0)
