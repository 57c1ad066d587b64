# SPDX-License-Identifier: GPL-2.0-only
"""The options of ``kdamon report``."""

from __future__ import annotations

from typing import Final

from kdamon_tools.defaults import VIEWS
from kdamon_tools.options.common import COLOUR_HELP, COLOUR_VARIABLES, PAGER_VARIABLES, add_part
from kdamon_tools.options.parser import STATUSES, About, Parser
from kdamon_tools.units import parse_file, parse_seconds

__all__ = ["ABOUT", "SUMMARY", "USAGE", "add_options"]

SUMMARY: Final = "show what a record holds: which memory was in use, which was idle, as text, numbers or pictures"
USAGE: Final = "[OPTION...] FILE [VIEW]"
ABOUT: Final = About(
    examples=(
        ("which named memory was hot and which was cold", "kdamon report run.kdamon where"),
        ("a picture to zoom in a browser, in one file", "kdamon report run.kdamon -o run.html"),
        ("the regions one minute after the start, for a program", "kdamon report run.kdamon regions --at 1m --json"),
    ),
    statuses=(*STATUSES, ("130", "interrupted before there was a result")),
    environment=(*COLOUR_VARIABLES, *PAGER_VARIABLES),
    files=(("FILE.RANDOM.part", "a result that is not complete; it replaces the file of --output when it is"),),
)


def add_options(parser: Parser) -> None:
    """Add the options of the verb."""
    what = parser.add_argument_group("what to show")
    what.add_argument("file", type=parse_file, metavar="FILE", help="a record of kdamon record, or of damo record")
    what.add_argument(
        "view",
        nargs="?",
        choices=VIEWS,
        metavar="VIEW",
        help="summary; heatmap; where, hot and cold bytes in memory by name; wss, memory used within 1 s, 10 s and "
        "1 min over time; idle, for how long how much in memory was idle, by name; regions; threads and cpus, which of "
        "them access what; default: summary",
    )
    add_part(what)
    what.add_argument(
        "--at", type=parse_seconds, metavar="SECONDS", help="regions: the time after the start; default: the end"
    )
    form = parser.add_argument_group("output")
    form.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    form.add_argument("--raw", action="store_true", help="print bytes, seconds and shares as plain numbers")
    form.add_argument(
        "-o",
        "--output",
        type=parse_file,
        metavar="FILE",
        help="write the result to FILE: a picture if its name ends with .html, .svg or .png, a table if it ends with "
        ".csv; default: standard output",
    )
    form.add_argument(
        "--color",
        choices=("auto", "always", "never"),
        default="auto",
        help=COLOUR_HELP,
    )
