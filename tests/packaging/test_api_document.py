# SPDX-License-Identifier: GPL-2.0-only
"""The public API: docs/api.md names all of it, its examples run as they stand, and print what it shows."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kdamon
from tests.support.cli import ENVIRONMENT
from tests.support.paths import ROOT

pytestmark = pytest.mark.real


DOCUMENT = (ROOT / "docs" / "api.md").read_text()
#: Examples by their names, and what the document shows of the output of each.
EXAMPLES = {
    re.match(r"# (\S+)\n", code)[1]: code  # type: ignore[index]
    for code in re.findall(r"^```python\n(.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE)
}
SHOWN = dict(re.findall(r"^    [$#] python (\S+)[^\n]*\n((?:    [^\n]*\n)+)", DOCUMENT, re.MULTILINE))


def pattern(line: str) -> str:
    """A line without its numbers."""
    return re.sub(r"(?<=-)\s+|\s+(?=\s)", "", re.sub(r"0x[0-9a-f]+|\d[\d.]*", "N", line)).strip()


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    """A directory with all examples."""
    for name, code in EXAMPLES.items():
        (tmp_path / name).write_text(code)
    return tmp_path


@pytest.fixture(name="target")
def _target() -> Iterator[subprocess.Popen[str]]:
    """A process to monitor."""
    command = [sys.executable, Path(__file__).with_name("api_target.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert "ready\n" == process.stdout.readline()
            yield process
        finally:
            process.kill()


def example(name: str, folder: Path, *words: str) -> subprocess.Popen[str]:
    """Start an example."""
    command = [sys.executable, name, *words]
    return subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)


def check(name: str, output: str) -> None:
    """Compare output with what the document shows, but for the numbers."""
    shown = {pattern(line) for line in SHOWN[name].splitlines()} - {"..."}
    assert {pattern(line) for line in output.splitlines()} == shown


@pytest.mark.real
@pytest.mark.parametrize("name", ["reports.py", "serve.py", "guest.py"])
def test_example(name: str, folder: Path) -> None:
    """Those that need no process besides."""
    with example(name, folder) as process:
        output, _ = process.communicate(timeout=120)
    assert 0 == process.returncode
    check(name, output)


@pytest.mark.real
@pytest.mark.parametrize("name", ["columns.py", "page_out.py"])
def test_example_with_a_process(name: str, folder: Path, target: subprocess.Popen[str]) -> None:
    """Those that end by themselves."""
    with example(name, folder, str(target.pid)) as process:
        output, _ = process.communicate(timeout=120)
    assert 0 == process.returncode
    check(name, output)
    assert target.poll() is None


@pytest.mark.real
def test_example_that_ends_with_the_process(folder: Path, target: subprocess.Popen[str]) -> None:
    """Though it is not reaped until then."""
    with example("watch.py", folder, str(target.pid)) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        target.kill()
        output, _ = process.communicate(timeout=120)
    assert 0 == process.returncode
    check("watch.py", first + output)


def test_all_examples_are_run_and_shown() -> None:
    """The producer runs in another one."""
    assert {*EXAMPLES} == {*SHOWN, "producer.py"}
    assert {"reports.py", "serve.py", "guest.py", "columns.py", "page_out.py", "watch.py"} == {*SHOWN}


def test_the_document_names_all_of_it() -> None:
    """Every exported name, but for the version."""
    words = set(re.findall(r"\w+", DOCUMENT))
    assert set() == {*kdamon.__all__} - words - {"__version__"}


def test_names_are_those_that_type_checkers_see() -> None:
    """The imports for type checkers and the table that is used agree, and no module of the package has such a name."""
    tree = ast.parse(Path(kdamon.__file__).read_text())
    seen = {
        alias.name: node.module
        for branch in tree.body
        if isinstance(branch, ast.If)
        for node in branch.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert kdamon._MODULES == seen
    assert sorted(kdamon.__all__) == sorted([*seen, "__version__"])
    for name in kdamon.__all__:
        assert getattr(kdamon, name) is not None
    modules = {path.stem for path in Path(kdamon.__file__).parent.iterdir()}
    assert set() == modules & {*kdamon.__all__}
    with pytest.raises(AttributeError, match="has no attribute 'damon_start'"):
        _ = kdamon.damon_start  # type: ignore[attr-defined]
