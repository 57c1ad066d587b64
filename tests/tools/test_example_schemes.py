# SPDX-License-Identifier: GPL-2.0-only
"""The example of a scheme from Python: what it shows of a real process is true, and it leaves nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from kdamon.mm.linux.machine import linux_machine
from tests.support.capabilities import skip_because
from tests.support.cli import ENVIRONMENT
from tests.support.paths import ROOT

pytestmark = pytest.mark.real


EXAMPLE = ROOT / "tools" / "kdamon_tools" / "examples" / "cold_memory.py"
COMMAND = (sys.executable, str(EXAMPLE))


@pytest.fixture(scope="module", autouse=True)
def _possible() -> None:
    try:
        linux_machine("page_table").close()
    except OSError as error:
        skip_because(error)


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *options], env=ENVIRONMENT, check=False, capture_output=True, text=True, timeout=120
    )


def test_what_the_document_shows_is_in_it() -> None:
    """In fewer than 150 lines."""
    source = EXAMPLE.read_text()
    assert len(source.splitlines()) < 150
    (shown,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/schemes.md").read_text(), re.DOTALL | re.MULTILINE)
    lines = {line.strip() for line in source.splitlines()}
    assert {line.strip() for line in shown.splitlines()} <= lines


def test_a_goal_steers_by_the_formula() -> None:
    """The quota that the kdamond uses is what the formula gives; what the workload uses stays in memory."""
    done = run("--goal", "12", "--seconds", "9")
    assert 0 == done.returncode, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()[1:] if re.match(r" +\d+ ", line)]
    assert len(rows) >= 3
    for row in rows:
        assert row[6] == row[7]
        assert float(row[2]) > 120
    assert int(rows[-1][6]) > int(rows[0][6])
    parts = dict(re.findall(r"^(\w+): (\S+) of 64 MiB in memory$", done.stdout, re.MULTILINE))
    assert ["writes", "reads", "cold"] == list(parts)
    # RSS fell by what was applied, but for memory that the workload took meanwhile.
    assert float(rows[0][1]) - float(rows[-1][1]) == pytest.approx(float(rows[-1][4]), abs=1)
    assert re.search(r"^sweeps a second: [1-9]", done.stdout, re.MULTILINE)


def test_what_is_not_written_is_shown_as_well() -> None:
    """By faults; an end of the process is no error."""
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        with subprocess.Popen(
            [*COMMAND, "--write-only", "--pid", str(process.pid)], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
        ) as example:
            assert example.stdout is not None
            assert "RSS MiB" in example.stdout.readline()
            assert "nan" in example.stdout.readline()
            process.stdin.close()
            process.wait()
            assert 0 == example.wait(60)


def test_its_workload_ends_with_it() -> None:
    with subprocess.Popen([*COMMAND, "--seconds", "60"], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as example:
        assert example.stdout is not None
        example.stdout.readline()
        children = Path(f"/proc/{example.pid}/task/{example.pid}/children").read_text().split()
        assert children
        example.terminate()
        assert 128 + 15 == example.wait(60)
    assert not any(Path(f"/proc/{child}").exists() for child in children)


@pytest.mark.parametrize("options", [("--pid", "4194304"), ("--seconds", "never"), ("--goal", "0"), ("--pid", "x")])
def test_it_says_in_a_sentence_what_is_wrong(options: tuple[str, ...]) -> None:
    done = run(*options)
    assert done.returncode in {1, 2}
    assert done.stderr.splitlines()[-1].startswith("cold_memory")
    assert not done.stdout
