# SPDX-License-Identifier: GPL-2.0-only
"""The worked example of a new access source: what the document shows is what runs, and its output is true."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.capabilities import needs_compiler
from tests.support.paths import ROOT

pytestmark = pytest.mark.real


DOCUMENT = (ROOT / "docs" / "new-access-source.md").read_text()
EXAMPLE = ROOT / "tools" / "kdamon_tools" / "examples" / "instrumented.py"


def code_blocks(language: str) -> list[str]:
    """What the document shows in ``language``."""
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE)


def test_the_document_shows_the_program_that_is_here() -> None:
    """All of it, in fewer than a hundred lines."""
    assert [EXAMPLE.read_text()] == code_blocks("python")
    assert len(EXAMPLE.read_text().splitlines()) < 100


@pytest.mark.real
@needs_compiler
def test_it_finds_what_is_hot(tmp_path: Path) -> None:
    """In the document's own C program, which says where its hot quarter is."""
    (tmp_path / "quarter.c").write_text(code_blocks("c")[0])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tools")))}
    command = [sys.executable, "-m", "kdamon_tools.examples.instrumented", str(tmp_path / "quarter.c")]
    result = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=60)
    start, end = (int(word, 16) for word in re.findall(r"hot: (\w+)-(\w+)", result.stdout)[0])
    rows = re.findall(r"^ *([0-9a-f]+)-([0-9a-f]+) +\d+ KiB +(#*)$", result.stdout, re.MULTILINE)
    inside = outside = total = 0
    for row_start, row_end, accesses in ((int(a, 16), int(b, 16), len(c)) for a, b, c in rows):
        overlap = max(0, min(row_end, end) - max(row_start, start))
        inside += overlap * accesses
        outside += (row_end - row_start - overlap) * accesses
        total += row_end - row_start
    assert total > 4 * (end - start)
    # Accesses a byte, in the hot quarter and elsewhere; of 20 sampling intervals.
    assert inside / (end - start) > 1
    assert outside / (total - (end - start)) < 0.1 * inside / (end - start)
    counters = dict(re.findall(r"(\w+)=(\d+)", result.stdout.splitlines()[-1]))
    assert int(counters["applied"]) > 0.5 * int(counters["accepted"]) > 0
