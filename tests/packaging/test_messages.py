# SPDX-License-Identifier: GPL-2.0-only
"""The words of what kdamon prints and logs: docs/glossary.md has the field's words for these."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for top in ("kdamon", "fs", "tools") for path in (ROOT / top).rglob("*.py"))

#: "Tell" for observe, detect and attribute; "who" for a thread, a user or a program; "behind" for after.
OTHER_WORDS = re.compile(r"\b(tells?|told|who|whoever|nobody|somebody|behind|go(es)? by|go(es)? over)\b", re.IGNORECASE)


def strings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and text of each string of a module that is no docstring."""
    statements = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in statements:
            yield node.lineno, node.value


def test_messages_have_the_words_of_the_glossary() -> None:
    """No message says "tell", "who" or "behind"; comments and docstrings are not looked at."""
    assert [] == [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path in SOURCES
        for line, text in strings(ast.parse(path.read_text()))
        if OTHER_WORDS.search(text)
    ]


def test_other_words_are_found() -> None:
    """Also in a part of a formatted string; a docstring is no message."""
    tree = ast.parse('"""It tells."""\nlog(f"{pid}: told wrong")\n')
    assert [(2, ": told wrong")] == [found for found in strings(tree) if OTHER_WORDS.search(found[1])]
