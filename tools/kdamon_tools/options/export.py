# SPDX-License-Identifier: GPL-2.0-only
"""The options of ``kdamon export``."""

from __future__ import annotations

from typing import Final

from kdamon_tools.options.common import add_part
from kdamon_tools.options.parser import STATUSES, About, Parser
from kdamon_tools.units import parse_file

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
        (
            "a flame graph of the memory by name",
            "kdamon export run.kdamon --to folded | flamegraph.pl --countname bytes > run.svg",
        ),
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
    add_part(what)
    form = parser.add_argument_group("output")
    form.add_argument(
        "--to",
        choices=FORMS,
        required=True,
        help="damo, for damo report; json, the lines of kdamon run --json=lines; csv and parquet, a table with a row "
        "for each region; folded, stacks for flamegraph.pl and speedscope; perfetto, counters for ui.perfetto.dev",
    )
    form.add_argument("-o", "--output", type=parse_file, metavar="FILE", help="write to FILE; default: standard output")
