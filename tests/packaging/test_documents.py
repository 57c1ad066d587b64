# SPDX-License-Identifier: GPL-2.0-only
"""The form of README and docs/: narrow tables, short lines, and links that lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.paths import ROOT

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WIDEST_CELL = 60
LONGEST_LINE = 100

every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def prose(document: Path) -> list[str]:
    """The lines outside of code blocks, fenced or indented (not those that go on with an item of a list)."""
    lines: list[str] = []
    fenced = indented = False
    before = ""
    for line in document.read_text().splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif not fenced:
            if not line.strip():
                indented = False
            elif not before.strip() and re.match(r" {4}|\t", line):
                indented = True
            if not indented:
                lines.append(line)
        # A block of code goes on after an empty line.
        before = line if line.strip() or not indented else ""
    return lines


def anchors(document: Path) -> set[str]:
    """The anchors of a document's headings, as Markdown makes them."""
    headings = [line.lstrip("#").strip() for line in prose(document) if re.match(r"#+ ", line)]
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


@every_document
def test_cells_of_tables_are_narrow(document: Path) -> None:
    """What needs more words gets a heading, or an item of a list."""
    rows = [re.split(r"(?<!\\)\|", line.strip().strip("|")) for line in prose(document) if line.startswith("|")]
    # What a link leads to is not shown.
    cells = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", cell.strip()) for row in rows for cell in row]
    assert [] == [cell for cell in cells if len(cell) > WIDEST_CELL]


@every_document
def test_lines_are_short(document: Path) -> None:
    """But for tables, and for links and code that cannot be broken."""
    lines = [line for line in prose(document) if not line.startswith("|") and "://" not in line]
    whole = [re.sub(r"`[^`]*`", lambda code: "x" * len(code[0]), line) for line in lines]
    assert [] == [line for line in whole if len(line) > LONGEST_LINE and " " in line[:LONGEST_LINE].strip("-* ")]


@every_document
def test_links_lead_somewhere(document: Path) -> None:
    """To a file that is there, and to a heading in it."""
    text = "\n".join(re.sub(r"`[^`]*`", "", line) for line in prose(document))
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = (document.parent / name).resolve() if name else document
        if not file.exists() or (anchor and anchor not in anchors(file)):
            dead.append(target)
    assert [] == dead


def test_the_index_leads_to_every_document() -> None:
    """But for itself and the logs of benchmarks, which have an index of their own."""
    index = (ROOT / "docs/index.md").read_text()
    missing = [path.name for path in (ROOT / "docs").glob("*.md") if path.name != "index.md" and path.name not in index]
    assert [] == missing


def test_the_example_of_a_source_is_shown_whole() -> None:
    """As it is run."""
    text = (ROOT / "docs/new-access-source.md").read_text()
    (shown,) = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert (ROOT / "tools/kdamon_tools/examples/instrumented.py").read_text() == shown


@every_document
def test_modules_that_are_named_exist(document: Path) -> None:
    """With a folder before them: from the root, from a package in it, or from tests/."""
    named = set(re.findall(r"`((?:[\w*]+/)+[\w*]+\.py)`", "\n".join(prose(document))))
    named |= set(re.findall(r"`((?:kdamon|fs/kdamon_fs|tools|tests)/(?:\w+/)*)`", "\n".join(prose(document))))
    bases = [ROOT, ROOT / "kdamon", ROOT / "kdamon/mm", ROOT / "tools", ROOT / "tests"]
    assert [] == [name for name in sorted(named) if not any(list(base.glob(name.rstrip("/"))) for base in bases)]
