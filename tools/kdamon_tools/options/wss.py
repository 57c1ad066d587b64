# SPDX-License-Identifier: GPL-2.0-only
"""The options of ``kdamon wss``."""

from __future__ import annotations

from functools import partial
from typing import Final

from kdamon_tools.options.parser import STATUSES, About, Parser
from kdamon_tools.units import parse_file, parse_number, parse_seconds

__all__ = ["ABOUT", "SUMMARY", "USAGE", "add_options"]

SUMMARY: Final = "measure the exact working set of a process: every page that it uses in a time, mapping by mapping"
USAGE: Final = "[OPTION...] --pid PID"
ABOUT: Final = About(
    examples=(
        ("which memory process 1234 writes in 10 seconds", "kdamon wss --pid 1234 --seconds 10"),
        ("which memory it reads or writes", "kdamon wss --pid 1234 --seconds 10 --primitive page_table"),
        ("write the result for a program", "kdamon wss --pid 1234 --seconds 10 --json > wss.json"),
    ),
    statuses=(*STATUSES, ("130", "interrupted before there was a result")),
    files=(("FILE.RANDOM.part", "a result that is not complete; it replaces the file of --output when it is"),),
)


def add_options(parser: Parser) -> None:
    """Add the options of the verb."""
    what = parser.add_argument_group("what to measure")
    what.add_argument("--pid", type=partial(parse_number, least=1), metavar="PID", help="measure this process")
    what.add_argument(
        "--seconds",
        type=parse_seconds,
        metavar="SECONDS",
        help="measure for SECONDS, such as 30, 0.5 or 2m; default: until Ctrl-C",
    )
    what.add_argument(
        "--primitive",
        choices=("page_table", "page_fault"),
        default="page_fault",
        help="page_fault arms all pages once, each costs the process a fault at most; page_table sees reads and writes "
        "on every kernel, but moves all pages that are in use to the inactive list once; default: page_fault",
    )
    form = parser.add_argument_group("output")
    form.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    form.add_argument(
        "--output", type=parse_file, metavar="FILE", help="write the result to FILE; default: standard output"
    )
