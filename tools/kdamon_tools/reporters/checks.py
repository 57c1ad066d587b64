# SPDX-License-Identifier: GPL-2.0-only
"""The checks of a machine, as a table and as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Final

import attrs

from kdamon.lib.check import Check
from kdamon_tools.checks import Usable
from kdamon_tools.origin import Origin, origin_fields
from kdamon_tools.output.readable import json_text, readable

__all__ = ["DOCTOR", "render_checks", "render_checks_json"]

#: Name and version of the schema.
DOCTOR: Final = "kdamon.doctor/1"


def render_checks(checks: Sequence[Check], usable: Usable, width: int = 80) -> str:
    """A line or more for each check: name, yes or no, why, and the remedy below.

    :param usable: the primitives that processes can be monitored with.
    :param width: maximum columns of a line.
    """
    indent = max((len(check.name) for check in checks), default=0) + 6
    lines = []
    for check in checks:
        text = check.why if check.available or not check.remedy else f"{check.why}; remedy: {check.remedy}"
        wrapped = textwrap.wrap(readable(text), max(20, width - indent), break_on_hyphens=False) or [""]
        lines.append(f"{check.name:<{indent - 6}}  {'yes' if check.available else 'no ':3} {wrapped[0]}".rstrip())
        lines += [" " * indent + line for line in wrapped[1:]]
    return "\n".join([*lines, *textwrap.wrap(_verdict(usable), width)])


def _verdict(usable: Usable) -> str:
    what, by = ("processes", usable.others) if usable.others else ("processes of this user", usable.own)
    if not by:
        return "this machine cannot monitor processes"
    if "page_table" not in by:
        return f"only writes and first touches of {what} can be monitored: use --primitive page_fault"
    verdict = f"this machine can monitor {what}"
    if "page_fault" in by:
        return verdict
    return f"{verdict}, but not by --primitive page_fault (--write-only, --by ...){_own_too(usable)}"


def _own_too(usable: Usable) -> str:
    return ", which works for this user's only" if "page_fault" in usable.own else ""


def render_checks_json(checks: Sequence[Check], usable: Usable, origin: Origin) -> str:
    """One object: the machine, ``possible``, ``primitives``, ``own_primitives``, and ``checks``.

    ``primitives`` work for processes of any user, ``own_primitives`` for those of this user without more capabilities.
    """
    return json_text(
        {
            **origin_fields(DOCTOR, origin),
            "possible": bool(usable),
            "primitives": list(usable.others),
            "own_primitives": list(usable.own),
            "checks": [attrs.asdict(check) for check in checks],
        }
    )
