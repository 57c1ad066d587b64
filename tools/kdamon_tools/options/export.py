# SPDX-License-Identifier: GPL-2.0-only
"""The options of ``kdamon export``."""

from __future__ import annotations

from typing import Final

from kdamon_tools.options.parser import STATUSES, About, Parser
from kdamon_tools.units import parse_file, parse_range, parse_span

__all__ = ["ABOUT", "FORMS", "SUMMARY", "USAGE", "add_options"]

#: The forms that a record can be exported to.
FORMS: Final = ("damo", "json", "csv", "parquet", "folded", "perfetto")
SUMMARY: Final = "write a record as a file of another tool"
USAGE: Final = "--to FORM [OPTION...] FILE"
ABOUT: Final = About(
    examples=(
        (
            "for damo report heatmap --input damon.data, and damo's other reports",
            "kdamon export run.kdamon --to damo -o damon.data",
        ),
        ("a flame graph of the memory by name", "kdamon export run.kdamon --to folded | flamegraph.pl > run.svg"),
        ("a table of seconds 10 to 20", "kdamon export run.kdamon --to csv --time 10-20 > regions.csv"),
    ),
    statuses=(*STATUSES, ("130", "interrupted before there was a result")),
    environment=(("TMPDIR", "directory for temporary files; default: /tmp"),),
    files=(("FILE.RANDOM.part", "a result that is not complete; it replaces the file of --output when it is"),),
)


def add_options(parser: Parser) -> None:
    """Add the options of the verb."""
    what = parser.add_argument_group("what to export")
    what.add_argument("file", type=parse_file, metavar="FILE", help="a record of kdamon record")
    what.add_argument(
        "--time",
        type=parse_span,
        metavar="A-B",
        help="only from A to B, seconds after the start or with a unit, such as 10-20, 1m-, -90s; default: all",
    )
    what.add_argument(
        "--range",
        type=parse_range,
        action="append",
        default=[],
        dest="ranges",
        metavar="START-END",
        help="only these addresses: hexadecimal, decimal of 14 digits or more, or sizes such as 4G-6G; END is "
        "exclusive; can be repeated; default: all",
    )
    form = parser.add_argument_group("output")
    form.add_argument(
        "--to",
        choices=FORMS,
        required=True,
        help="damo, for damo report; json, the lines of kdamon run --json=lines; csv and parquet, a table with a row "
        "for each region; folded, stacks for flamegraph.pl and speedscope; perfetto, counters for ui.perfetto.dev",
    )
    form.add_argument("-o", "--output", type=parse_file, metavar="FILE", help="write to FILE; default: standard output")
