# SPDX-License-Identifier: GPL-2.0-only
"""tests/conftest.py: only the kernel excuses a skip, only real tests start processes, and no log has a traceback."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import PYTHONPATH, ROOT
from tests.support.real import is_real_as_a_whole

pytestmark = pytest.mark.real


CONFTEST = ROOT / "tests/conftest.py"
MODULE_SKIPS = "import pytest\npytest.skip({reason!r}, allow_module_level=True)\n"
TEST_SKIPS = "import pytest\ndef test_it():\n    pytest.skip({reason!r})\n"
FIXTURE_SKIPS = """import pytest
@pytest.fixture
def thing():
    pytest.skip({reason!r})
def test_it(thing):
    pass
"""
MARK_SKIPS = "import pytest\n@pytest.mark.skipif(True, reason={reason!r})\ndef test_it():\n    pass\n"
EXPECTED_FAILURE = "import pytest\n@pytest.mark.xfail\ndef test_it():\n    assert False, {reason!r}\n"
FORMS = {"module": MODULE_SKIPS, "test": TEST_SKIPS, "fixture": FIXTURE_SKIPS, "mark": MARK_SKIPS}


def run_tests(
    tmp_path: Path, sources: dict[str, str], reason: str, *arguments: str, **environment: str
) -> tuple[int, str]:
    """Run test files beside the project's conftest.py, with arguments of pytest: (exit status, what was said)."""
    (tmp_path / "conftest.py").write_text(CONFTEST.read_text())
    for name, source in sources.items():
        (tmp_path / f"test_{name}.py").write_text(source.format(reason=reason))
    clean = {name: value for name, value in os.environ.items() if name not in ("CI", "KDAMON_REQUIRE")}
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-ra",
            "-p",
            "no:cacheprovider",
            "--continue-on-collection-errors",
            *arguments,
            ".",
        ],
        env=clean | {"PYTHONPATH": PYTHONPATH} | environment,
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    return result.returncode, result.stdout


def test_a_skip_fails_under_ci_and_says_why(tmp_path: Path) -> None:
    """A test that skips because of a missing package fails, whatever way it skips."""
    status, said = run_tests(tmp_path, FORMS, "damo is not installed", CI="true")
    assert 1 == status
    failures = [line for line in said.splitlines() if line.startswith(("FAILED", "ERROR "))]
    assert sorted(FORMS) == sorted(name for name in FORMS for line in failures if f"test_{name}.py" in line)
    assert "nothing may be skipped in this run: damo is not installed" in said


def test_a_kernel_without_the_feature_excuses_and_is_printed(tmp_path: Path) -> None:
    """What the kernel lacks cannot be installed."""
    status, said = run_tests(tmp_path, FORMS, "kernel lacks: page_idle", KDAMON_REQUIRE="all")
    assert status in (0, 5)  # 5 is pytest's "no test was run"
    assert "4 skipped" in said
    assert "kernel lacks: page_idle" in said


def test_elsewhere_a_skip_is_a_skip(tmp_path: Path) -> None:
    """A developer's machine may lack things; and what is expected to fail is no skip, even under CI."""
    status, said = run_tests(tmp_path, {"test": TEST_SKIPS}, "damo is not installed")
    assert (0, True) == (status, "1 skipped" in said)
    (tmp_path / "test_test.py").unlink()
    status, said = run_tests(tmp_path, {"expected": EXPECTED_FAILURE}, "known", CI="true")
    assert (0, True) == (status, "1 xfailed" in said)


NEEDS = """from tests.support.capabilities import needs_program
@needs_program("no-such-program", "nothing")
def test_it():
    assert False
"""
#: Fails when importing starts a process.
IMPORTS = """
import sys
def refuse(event, _):
    if event in ("subprocess.Popen", "os.fork", "os.posix_spawn", "os.system"):
        raise SystemExit(event)
sys.addaudithook(refuse)
import tests.support.capabilities
"""


def test_a_missing_capability_skips_its_test_with_the_reason(tmp_path: Path) -> None:
    status, said = run_tests(tmp_path, {"needs": NEEDS}, "")
    assert (0, True) == (status, "1 skipped" in said)
    assert "no-such-program is missing: apt-get install nothing" in said


def test_importing_the_capabilities_starts_no_process() -> None:
    """Conditions are looked at when a test with the decorator begins."""
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    done = subprocess.run([sys.executable, "-c", IMPORTS], env=environment, capture_output=True, text=True, check=False)
    assert (0, "") == (done.returncode, done.stderr)


STARTS = """import subprocess, pytest
@pytest.mark.real
def test_real():
    subprocess.run(["true"])
def test_pure():
    subprocess.run(["true"])
def test_hidden():
    try:
        subprocess.run(["true"])
    except BaseException:
        pass
"""
LOGS = """import logging, pytest, subprocess, sys
def bug():
    try:
        1 / 0
    except ZeroDivisionError:
        logging.getLogger("kdamon").exception("an internal error")
def test_logged():
    bug()
@pytest.mark.traceback_expected
def test_expected():
    bug()
@pytest.mark.real
def test_said():
    subprocess.run([sys.executable, "-c", "1 / 0", "kdamon"], capture_output=True)
"""
MARKERS = "[pytest]\nmarkers =\n    real: on processes\n    traceback_expected: on purpose\n"


def test_only_real_tests_start_processes(tmp_path: Path) -> None:
    """The others fail, also where they catch everything."""
    (tmp_path / "pytest.ini").write_text(MARKERS)
    status, said = run_tests(tmp_path, {"starts": STARTS}, "")
    assert 1 == status
    found = {line.split(" - ")[0] for line in said.splitlines() if line.startswith(("FAILED ", "ERROR test_"))}
    pure, hidden = "test_starts.py::test_pure", "test_starts.py::test_hidden"
    assert {f"FAILED {pure}", f"ERROR {pure}", f"ERROR {hidden}"} == found


def test_a_traceback_fails_the_test_that_logs_it(tmp_path: Path) -> None:
    """In its own process or in kdamon's, unless the test expects it."""
    (tmp_path / "pytest.ini").write_text(MARKERS)
    status, said = run_tests(tmp_path, {"logs": LOGS}, "")
    assert 1 == status
    found = {line.split(" - ")[0] for line in said.splitlines() if line.startswith(("FAILED ", "ERROR test_"))}
    assert {"ERROR test_logs.py::test_logged", "ERROR test_logs.py::test_said"} == found


REAL_MODULE = """import pytest
pytestmark = {mark}
open({seen!r}, "a").close()
def test_real():
    pass
"""


@pytest.mark.parametrize("mark", ["pytest.mark.real", "[pytest.mark.real]", "[\n    pytest.mark.real,\n]"])
def test_a_module_of_real_tests_is_imported_only_for_them(tmp_path: Path, mark: str) -> None:
    """A module with tests of both kinds is imported anyway: its other tests run."""
    (tmp_path / "pytest.ini").write_text(MARKERS)
    seen = tmp_path / "seen"
    sources = {"module": REAL_MODULE.replace("{mark}", mark).replace("{seen!r}", repr(str(seen))), "mixed": STARTS}
    status, said = run_tests(tmp_path, sources, "", "-m", "not real", "-k", "not hidden")
    assert (1, False, True) == (status, seen.exists(), "test_mixed.py::test_pure" in said)
    status, said = run_tests(tmp_path, sources, "", "-m", "real")
    assert (0, True, True) == (status, seen.exists(), "2 passed" in said)


def test_modules_that_are_left_out_have_no_other_tests() -> None:
    """The words that mark a module are its own statement, not a line of a string."""
    left_out = 0
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        source = path.read_text(encoding="utf-8")
        marks = [
            ast.unparse(node.value)
            for node in ast.parse(source).body
            if isinstance(node, ast.Assign) and "pytestmark" in map(ast.unparse, node.targets)
        ]
        assert any("pytest.mark.real" in mark for mark in marks) == is_real_as_a_whole(source), path
        left_out += is_real_as_a_whole(source)
    assert left_out > 100
