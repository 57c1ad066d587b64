# SPDX-License-Identifier: GPL-2.0-only
"""What a machine has, as a table and as JSON."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence

import attrs

from kdamon_tools.checks import Check

__all__ = ["render_checks", "render_checks_json"]


def render_checks(checks: Sequence[Check], usable: Sequence[str], width: int = 80) -> str:
    """A line or more for each check: name, yes or no, why, and the remedy below.

    :param usable: the primitives that processes can be monitored by.
    :param width: columns that a line may take.
    """
    indent = max((len(check.name) for check in checks), default=0) + 6
    lines = []
    for check in checks:
        text = check.why if check.available or not check.remedy else f"{check.why}; remedy: {check.remedy}"
        wrapped = textwrap.wrap(text, max(20, width - indent), break_on_hyphens=False) or [""]
        lines.append(f"{check.name:<{indent - 6}}  {'yes' if check.available else 'no ':3} {wrapped[0]}".rstrip())
        lines += [" " * indent + line for line in wrapped[1:]]
    return "\n".join([*lines, *textwrap.wrap(_verdict(usable), width)])


def _verdict(usable: Sequence[str]) -> str:
    if "page_table" in usable:
        return "this machine can monitor processes"
    if "page_fault" in usable:
        return "only writes and first touches of processes can be monitored: use --primitive page_fault"
    return "this machine cannot monitor processes"


def render_checks_json(checks: Sequence[Check], usable: Sequence[str]) -> str:
    """One object: ``possible``, ``primitives`` that work, and ``checks`` with name, available, why and remedy."""
    return json.dumps(
        {"possible": bool(usable), "primitives": list(usable), "checks": [attrs.asdict(check) for check in checks]}
    )
