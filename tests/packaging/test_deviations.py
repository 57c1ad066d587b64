# SPDX-License-Identifier: GPL-2.0-only
"""docs/deviations.md and the code: each cites the other, and each heading has the three parts."""

from __future__ import annotations

import io
import re
import tokenize
from collections import Counter
from pathlib import Path

from tests.support.paths import ROOT

DOCUMENT = ROOT / "docs/deviations.md"
#: A heading that no single place in the code decides says so.
NOWHERE = "*in no one place*"


def anchor(heading: str) -> str:
    """The anchor that Markdown makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def headings() -> dict[str, str]:
    """The text below each deviation's heading, by the anchor of the heading."""
    sections = re.split(r"^### ", DOCUMENT.read_text(), flags=re.MULTILINE)[1:]
    assert {} == {name: n for name, n in Counter(anchor(s.partition("\n")[0]) for s in sections).items() if n > 1}
    return {anchor(heading): text for heading, _, text in (section.partition("\n") for section in sections)}


def sources() -> list[Path]:
    """The modules that are shipped."""
    return [path for folder in ("kdamon", "fs", "tools") for path in sorted((ROOT / folder).rglob("*.py"))]


def remarks(source: str) -> list[str]:
    """The comments and docstrings of a module: comments in lines that follow each other are one."""
    found: list[str] = []
    last = -1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            line = token.start[0]
            if line == last + 1:
                found[-1] += " " + token.string.lstrip("#: ")
            else:
                found.append(token.string.lstrip("#: "))
            last = line
        elif token.type == tokenize.STRING and token.string.startswith('"""'):
            found.append(token.string)
    return found


def test_every_heading_says_what_differs_and_why() -> None:
    """Kernel, or the series that is the baseline; here; because."""
    parts = re.compile(r"^- (Kernel|Series): .+^- Here: .+^- Because: ", re.MULTILINE | re.DOTALL)
    assert [] == [heading for heading, text in headings().items() if not parts.search(text)]
    assert len(headings()) > 100


def test_every_citation_has_a_heading() -> None:
    """In shipped modules."""
    cited = {name: path for path in sources() for name in re.findall(r"deviations\.md#([\w-]+)", path.read_text())}
    known = headings()
    assert {} == {name: path for name, path in cited.items() if name not in known}


def test_every_heading_is_cited() -> None:
    """But for those that no single place decides."""
    cited = {name for path in sources() for name in re.findall(r"deviations\.md#([\w-]+)", path.read_text())}
    missing = [name for name, text in headings().items() if name not in cited and NOWHERE not in text]
    assert [] == missing


def test_every_remark_on_a_deviation_cites_one() -> None:
    """A comment that says what the kernel does and what is done here."""
    without = [
        (str(path.relative_to(ROOT)), remark)
        for path, source in ((path, path.read_text()) for path in sources())
        if "Kernel:" in source and "Here:" in source
        for remark in remarks(source)
        if "Kernel: " in remark and "Here: " in remark and "deviations.md#" not in remark
    ]
    assert [] == without
