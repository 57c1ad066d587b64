# SPDX-License-Identifier: GPL-2.0-only
"""tests/kernels/__main__.py: commands for the guest, and mistakes of the user."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernels.__main__ import UNUSABLE, command_for_tests, main
from tests.kernels.selection import DEFAULT


def test_selected_tests_run_alone_and_all_of_them_after_the_doctor() -> None:
    """Words stay words for the guest's shell."""
    pytest_run = "python3 -m pytest -p no:cacheprovider --junitxml=$RESULTS/tests.xml"
    assert f"{pytest_run} tests/mm -k 'a or b'" == command_for_tests(["tests/mm", "-k", "a or b"])
    doctor, everything = command_for_tests([]).splitlines()
    assert doctor.startswith("python3 -m kdamon_tools doctor --json")
    assert everything.split()[-len(DEFAULT) :] == DEFAULT


def test_without_results_there_is_no_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert UNUSABLE == main(["table", "--cache", str(tmp_path)])
    assert "there are no results; first run: make test-kernel KERNEL=7.3\n" == capsys.readouterr().err


def test_missing_programs_are_named_by_their_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert UNUSABLE == main(["7.3", "--cache", str(tmp_path)])
    assert "programs are missing: apt-get install qemu-system-x86 debootstrap cpio kmod" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["6.1"], [], ["7.3", "--run", "true", "--tests", "tests/mm"]])
def test_a_wrong_command_line_has_the_same_status(words: list[str]) -> None:
    """6.1 is not known, a release is missing, a command and tests exclude each other."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert UNUSABLE == ended.value.code
