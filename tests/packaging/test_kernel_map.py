# SPDX-License-Identifier: GPL-2.0-only
"""docs/kernel-map.md names exactly the kernel's names that the code has, and things that exist."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs/kernel-map.md").read_text(encoding="utf-8")
#: Module name -> module, as source.
SOURCES = {
    ".".join(path.relative_to(ROOT / root).with_suffix("").parts).removesuffix(".__init__"): path
    for root, package in ((".", "kdamon"), ("fs", "kdamon_fs"), ("tools", "kdamon_tools"))
    for path in (ROOT / root / package).rglob("*.py")
}


def section(title: str) -> str:
    """The text below a heading of the second level."""
    return re.split(rf"^## {title}$", DOCUMENT, flags=re.M)[1].split("\n## ")[0]


def kernel_style(path: Path) -> Iterator[str]:
    """The functions and classes of a module whose names claim to be the kernel's."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            prefixed = re.match(r"(damon|damos|kdamond)(_|$)", node.name)
            if prefixed or (isinstance(node, ast.ClassDef) and node.name[0].islower()):
                yield node.name


def test_kernel_names_are_for_what_the_kernel_names() -> None:
    """The list under "Under the kernel's names" is complete, and the code has all of it."""
    text = section("Under the kernel's names").split("###", 1)[1]
    listed = re.findall(r"`(\w+)(?:\(\))?`[,.]", text)
    assert len(set(listed)) == len(listed)
    assert set(listed) == {name for path in SOURCES.values() for name in kernel_style(path)}


def found(name: str) -> bool:
    """Return whether a dotted name of the column "here" is something: a module, or a thing in one."""
    names = name.split(".")
    candidates = [module for module in SOURCES if module == names[0] or module.split(".")[-len(names) :] == names]
    if candidates:
        return True
    for split in range(1, len(names)):
        head, rest = names[:split], names[split:]
        for module in SOURCES:
            if module.split(".")[-len(head) :] == head or module == ".".join(head):
                thing: object = importlib.import_module(module)
                for part in rest:
                    thing = getattr(thing, part, None)
                if thing is not None:
                    return True
    return any(
        re.search(rf"\b(class|def) {names[0]}\b", path.read_text(encoding="utf-8"))
        and all(re.search(rf"\bdef {part}\b", path.read_text(encoding="utf-8")) for part in names[1:])
        for path in SOURCES.values()
    )


def here() -> list[str]:
    """What the tables name in their columns "here"."""
    names: set[str] = set()
    column = 0
    for line in DOCUMENT.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if "here" in cells:
            column = cells.index("here")
        elif line.startswith("|"):
            names.update(re.findall(r"`([^`]+)`", cells[column]))
    return sorted(names)


@pytest.mark.parametrize("name", here())
def test_what_is_named_exists(name: str) -> None:
    if "/" in name or name.endswith(".py"):
        assert any(list((ROOT / root).glob(name.rstrip("/"))) for root in (".", "kdamon", "fs/kdamon_fs"))
    else:
        assert found(name.removesuffix("()"))
