# SPDX-License-Identifier: GPL-2.0-only
"""The options of ``kdamon record``."""

from __future__ import annotations

from typing import Final

from kdamon_tools.options.common import REPORTS_VARIABLE
from kdamon_tools.options.parser import COMMAND_STATUSES, STATUSES, About, Parser
from kdamon_tools.options.run import add_monitoring
from kdamon_tools.units import parse_file, parse_seconds

__all__ = ["ABOUT", "SUMMARY", "USAGE", "add_options"]

SUMMARY: Final = "monitor as run does, and keep every snapshot, mapping and name in a file"
USAGE: Final = "[OPTION...] (--pid PID | --ops paddr | -- COMMAND [ARG...])"
ABOUT: Final = About(
    examples=(
        ("record process 1234 until Ctrl-C", "kdamon record --pid 1234"),
        ("record a command for 30 seconds", "kdamon record -o server.kdamon --seconds 30 -- ./server --port 8080"),
        ("keep the last week of a service, an hour in each file", "kdamon record --pid 1234 --split 1h --keep 7d"),
    ),
    statuses=(*STATUSES, ("other", "that of COMMAND, if COMMAND ended by itself"), *COMMAND_STATUSES[2:]),
    environment=(REPORTS_VARIABLE,),
    files=(
        ("run.kdamon", "the record without -o; if it exists, run-2.kdamon and so on"),
        ("FILE-wal, FILE-shm", "belong to FILE while it is written, and after kdamon was killed"),
    ),
)


def add_options(parser: Parser) -> None:
    """Add the options of the verb."""
    add_monitoring(parser)
    group = parser.add_argument_group("output")
    group.add_argument(
        "-o",
        "--output",
        type=parse_file,
        dest="record_file",
        metavar="FILE",
        help="the record; must not exist; default: run.kdamon, or run-2.kdamon and so on if that exists",
    )
    group.add_argument("--force", action="store_true", help="replace FILE if it is a record")
    group.add_argument(
        "--split",
        type=parse_seconds,
        metavar="TIME",
        help="begin another file after each TIME, such as 1h: FILE-20261201T120000Z.kdamon and so on",
    )
    group.add_argument(
        "--keep",
        type=parse_seconds,
        metavar="TIME",
        help="with --split: remove the files of this name, also of earlier runs, that are older than TIME, such as 7d",
    )
    group.add_argument("--quiet", action="store_true", help="print nothing but errors")
    # What run has besides.
    parser.set_defaults(json=None, view=None, output=None, color="auto", reports_to=None, truth=None)
