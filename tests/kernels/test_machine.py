# SPDX-License-Identifier: GPL-2.0-only
"""tests/kernels/machine.py: guests that end, take too long, or never begin, by programs in the place of QEMU."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernels.machine import wait

pytestmark = pytest.mark.real


@pytest.mark.parametrize(
    ("script", "limits", "expected"),
    [
        ("echo started >$0; echo output", (60.0, 60.0), (True, b"output\n")),
        ("echo started >$0; echo output; exec sleep 60", (1.0, 60.0), (False, b"output\n")),
        ("echo started >$0; sleep 1; echo output", (60.0, 0.1), (True, b"output\n")),
        ("exec sleep 60", (60.0, 0.1), (True, b"")),
    ],
    ids=["it ends", "too long", "begun", "never begun"],
)
def test_a_guest(
    tmp_path: Path,
    capfdbinary: pytest.CaptureFixture[bytes],
    script: str,
    limits: tuple[float, float],
    expected: tuple[bool, bytes],
) -> None:
    """Its output is copied; one that says nothing at its boot is stopped, though its time is not over."""
    console = tmp_path / "console"
    console.touch()
    timeout, boot = limits
    in_time = wait(["sh", "-c", script, str(console)], timeout, tmp_path / "stderr", console, boot)
    assert expected == (in_time, capfdbinary.readouterr().out)
