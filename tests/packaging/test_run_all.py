# SPDX-License-Identifier: GPL-2.0-only
"""tests/run_all.py: both parts count, and few real tests that fail are repeated once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

pytestmark = pytest.mark.real

INI = "[pytest]\nmarkers =\n    real: on processes\n"
PURE = "def test_pure():\n    assert {good}\n"
#: Fails the first time.
FLAKY = """
import pathlib, pytest
@pytest.mark.real
def test_flaky():
    seen = pathlib.Path("seen")
    before = seen.exists()
    seen.touch()
    assert before
"""
BROKEN = """
import pytest
@pytest.mark.real
@pytest.mark.parametrize("number", range({count}))
def test_broken(number):
    assert False
"""
REPEATED = "once more, alone"


def run_all(directory: Path, *sources: str) -> tuple[int, str]:
    """Exit status and output of a run over test files of these contents."""
    (directory / "pytest.ini").write_text(INI)
    for number, source in enumerate(sources):
        (directory / f"test_{number}.py").write_text(source)
    done = subprocess.run(
        [sys.executable, ROOT / "tests/run_all.py"], cwd=directory, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout


def test_what_passes_when_repeated_is_listed(tmp_path: Path) -> None:
    status, said = run_all(tmp_path, PURE.format(good=True), FLAKY)
    assert 0 == status, said
    assert "Failed once, passed when repeated:\n  test_1.py::test_flaky\n" in said


def test_what_fails_again_fails_the_run(tmp_path: Path) -> None:
    """What passed meanwhile is listed nevertheless."""
    status, said = run_all(tmp_path, FLAKY, BROKEN.format(count=1))
    assert 1 == status
    assert "2 failed: once more, alone" in said
    assert "Failed once, passed when repeated:\n  test_0.py::test_flaky\n" in said
    assert "tests on real processes: FAILED" in said


def test_many_failures_are_not_repeated(tmp_path: Path) -> None:
    status, said = run_all(tmp_path, PURE.format(good=True), BROKEN.format(count=6))
    assert (1, False) == (status, REPEATED in said)


def test_pure_tests_are_not_repeated(tmp_path: Path) -> None:
    """They depend on nothing that could be better the next time."""
    status, said = run_all(tmp_path, PURE.format(good=False), FLAKY.replace("assert before", ""))
    assert (1, False) == (status, REPEATED in said)
    assert "pure tests: FAILED" in said
    assert "tests on real processes: passed" in said
