# SPDX-License-Identifier: GPL-2.0-only
"""The options of ``kdamon top``."""

from __future__ import annotations

from typing import Final

from kdamon_tools.options.common import add_filters, add_monitor_cpus, add_ranges
from kdamon_tools.options.parser import COMMAND_STATUSES, STATUSES, About, Parser
from kdamon_tools.options.run import add_primitive, add_regions
from kdamon_tools.units import parse_cpus, parse_pids, parse_seconds

__all__ = ["ABOUT", "SUMMARY", "USAGE", "add_options"]

SUMMARY: Final = "show live, on the whole terminal, which named memory of processes is hot, warm, idle and unknown"
USAGE: Final = "[OPTION...] (--pid PID... | -- COMMAND [ARG...])"
ABOUT: Final = About(
    examples=(
        ("which memory of process 1234 is hot; ? lists the keys", "kdamon top --pid 1234"),
        ("all processes of a service, one in each row", "kdamon top --pid $(pgrep nginx)"),
        ("a command, whose output goes to a file", "kdamon top -- sh -c 'exec ./server >server.log 2>&1'"),
    ),
    statuses=(*STATUSES, ("other", "that of COMMAND, if COMMAND ended by itself"), *COMMAND_STATUSES[2:]),
    environment=(
        ("NO_COLOR", "if set, nothing is coloured unless --color always is given"),
        ("TERM", "type of the terminal; dumb has no full screen"),
    ),
    files=(("run.kdamon", "the record that the key r begins; if it exists, run-2.kdamon and so on"),),
)


def add_options(parser: Parser) -> None:
    """Add the options of the verb."""
    what = parser.add_argument_group("what to monitor")
    what.add_argument(
        "--pid",
        type=parse_pids,
        nargs="+",
        action="extend",
        default=[],
        dest="pids",
        metavar="PID",
        help="monitor these processes, such as 12 13 or 12,13; with one, its memory is shown by name; COMMAND has no "
        "terminal: what it prints there is lost",
    )
    add_ranges(what, "only these addresses of the process", "all of its memory")
    what.add_argument(
        "--seconds",
        type=parse_seconds,
        metavar="SECONDS",
        help="stop after SECONDS, such as 30, 0.5 or 2m, and terminate COMMAND; default: until q is pressed",
    )
    which = parser.add_argument_group("which accesses count")
    add_primitive(which)
    add_filters(which, parse_cpus)
    add_regions(parser.add_argument_group("intervals and regions"))
    add_monitor_cpus(parser)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--color",
        choices=("auto", "always", "never"),
        default="auto",
        help="use colours; default: auto, unless NO_COLOR is set",
    )
    # What run has besides.
    parser.set_defaults(
        ops="vaddr",
        by="",
        reports=None,
        density=False,
        json=None,
        view=None,
        output=None,
        reports_to=None,
        truth=None,
        quiet=True,
    )
