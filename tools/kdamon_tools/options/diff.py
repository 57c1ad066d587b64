# SPDX-License-Identifier: GPL-2.0-only
"""The options of ``kdamon diff``."""

from __future__ import annotations

import argparse
import re
from typing import Final, NamedTuple

from kdamon_tools.defaults import FIGURES
from kdamon_tools.options.common import PAGER_VARIABLES, add_time
from kdamon_tools.options.parser import STATUSES, About, Parser
from kdamon_tools.units import parse_file, parse_size

__all__ = ["ABOUT", "SUMMARY", "USAGE", "Condition", "add_options"]

SUMMARY: Final = "compare two records, by name: which memory is in use, hot or idle in one of them and not in the other"
USAGE: Final = "[OPTION...] A B"
ABOUT: Final = About(
    examples=(
        ("what a change did to a program's memory", "kdamon diff before.kdamon after.kdamon"),
        ("fail if the working set grew by a tenth", "kdamon diff --fail-if 'wss > +10%' before.kdamon after.kdamon"),
        ("fail if 64 MiB more are hot", "kdamon diff --fail-if 'hot > +64M' before.kdamon after.kdamon"),
    ),
    statuses=(*STATUSES, ("3", "a condition of --fail-if is met"), ("130", "interrupted before there was a result")),
    environment=PAGER_VARIABLES,
    files=(("FILE.RANDOM.part", "a result that is not complete; it replaces the file of --output when it is"),),
)
_CONDITION: Final = re.compile(r"\s*([a-z]+)\s*([<>])\s*([+-])\s*([0-9.]+)\s*(%|[KMGT]?(?:i?B)?)\s*")


class Condition(NamedTuple):
    """A condition of ``--fail-if``.

    :ivar text: as it was given.
    :ivar figure: one of :data:`FIGURES`.
    :ivar above: whether it is met by a change above the limit; else by one below it.
    :ivar limit: a share of the first record's figure if ``relative``, else bytes; negative for less.
    """

    text: str
    figure: str
    above: bool
    limit: float
    relative: bool


def add_options(parser: Parser) -> None:
    """Add the options of the verb."""
    what = parser.add_argument_group("what to compare")
    what.add_argument("before", type=parse_file, metavar="A", help="a record of kdamon record")
    what.add_argument("after", type=parse_file, metavar="B", help="the record to compare with it")
    add_time(what, "only from A to B of both")
    what.add_argument(
        "--fail-if",
        type=_parse_condition,
        action="append",
        default=[],
        metavar="CONDITION",
        help=f"exit with status 3 if a figure of B differs from that of A by more, such as 'wss > +10%%' or "
        f"'idle < -64M'; one of {', '.join(FIGURES)}; can be repeated",
    )
    form = parser.add_argument_group("output")
    form.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    form.add_argument("--raw", action="store_true", help="print bytes and shares as plain numbers")
    form.add_argument(
        "-o",
        "--output",
        type=parse_file,
        metavar="FILE",
        help="write the result to FILE, a table if its name ends with .csv; default: standard output",
    )


def _parse_condition(text: str) -> Condition:
    match = _CONDITION.fullmatch(text)
    if not match or match[1] not in FIGURES:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a condition such as 'wss > +10%' or 'hot > +64M', with one of {', '.join(FIGURES)}"
        )
    name, sign, plus, number, unit = match.groups()
    try:
        size = float(number) / 100 if unit == "%" else parse_size(number + unit)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: {number!r} is not a number") from None
    return Condition(text.strip(), name, sign == ">", size if plus == "+" else -size, unit == "%")
