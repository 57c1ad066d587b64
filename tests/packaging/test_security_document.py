# SPDX-License-Identifier: GPL-2.0-only
"""docs/security.md: every claim has tests, and every test that it names exists."""

from __future__ import annotations

import re

from tests.support.paths import ROOT

DOCUMENT = ROOT / "docs/security.md"
#: Its list is of what is not claimed.
WITHOUT_TESTS = "What is not defended"


def claims() -> list[tuple[str, str]]:
    """The items of lists: the heading of each, and its text."""
    found: list[tuple[str, str]] = []
    for section in DOCUMENT.read_text().split("\n## ")[1:]:
        heading, _, text = section.partition("\n")
        # An item goes on in lines that are indented.
        found += [(heading, item) for item in re.findall(r"^\* .*(?:\n  .*)*", text, re.MULTILINE)]
    return found


def named(claim: str) -> list[tuple[str, str]]:
    """The tests that a claim names: file and function."""
    file, tests = "", []
    for word in re.findall(r"`([^`\n]+)`", claim):
        if word.endswith(".py"):
            file = word
        elif word.startswith("test_"):
            tests.append((file, word))
    return tests


def functions(file: str) -> set[str]:
    """The functions of a file below tests/."""
    return set(re.findall(r"^def (\w+)\(", (ROOT / "tests" / file).read_text(), re.MULTILINE))


def test_every_claim_names_a_test() -> None:
    """But for what is not defended."""
    without = [claim for heading, claim in claims() if heading != WITHOUT_TESTS and not named(claim)]
    assert [] == without
    assert len(claims()) > 40


def test_every_test_that_is_named_exists() -> None:
    """In the file that is named before it."""
    tests = [test for _, claim in claims() for test in named(claim)]
    known = {file: functions(file) for file, _ in tests}
    assert [] == [(file, test) for file, test in tests if test not in known[file]]
    assert len(tests) > 120


def test_tables_are_narrow_and_lines_short() -> None:
    """No cell of more than 60 characters, no line of more than 100."""
    lines = DOCUMENT.read_text().splitlines()
    cells = [cell.strip() for line in lines if line.startswith("|") for cell in line.strip("|").split("|")]
    assert [] == [cell for cell in cells if len(cell) > 60]
    assert [] == [line for line in lines if len(line) > 100]


def test_readme_leads_to_it() -> None:
    """It is found."""
    assert "docs/security.md" in (ROOT / "README.md").read_text()
