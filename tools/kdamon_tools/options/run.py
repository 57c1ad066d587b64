# SPDX-License-Identifier: GPL-2.0-only
"""The options of ``kdamon run``."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Final

from kdamon_tools.defaults import VIEWS
from kdamon_tools.options.common import (
    COLOUR_VARIABLES,
    REPORTS_VARIABLE,
    add_by,
    add_density,
    add_filters,
    add_form,
    add_monitor_cpus,
    add_ranges,
    add_sampling,
)
from kdamon_tools.options.parser import COMMAND_STATUSES, STATUSES, About, Parser
from kdamon_tools.units import parse_cpus, parse_file, parse_interval, parse_number, parse_seconds

__all__ = ["ABOUT", "SUMMARY", "USAGE", "add_monitoring", "add_options", "add_primitive", "add_regions"]

SUMMARY: Final = "monitor a process, a command or physical memory, and show which memory is accessed"
USAGE: Final = "[OPTION...] (--pid PID | --ops paddr | -- COMMAND [ARG...])"
ABOUT: Final = About(
    examples=(
        ("monitor process 1234 until Ctrl-C, then show a heatmap", "kdamon run --pid 1234"),
        ("start a command and monitor it for 30 seconds", "kdamon run --seconds 30 -- ./server --port 8080"),
        ("show what each thread writes, and what several threads write", "kdamon run --pid 1234 --by thread"),
    ),
    statuses=(
        *STATUSES,
        ("130", "interrupted before there was a result"),
        ("other", "that of COMMAND, if COMMAND ended by itself"),
        *COMMAND_STATUSES[2:],
    ),
    environment=(
        REPORTS_VARIABLE,
        *COLOUR_VARIABLES,
        ("TMPDIR", "directory for a result whose own directory cannot be written; default: /tmp"),
    ),
    files=(("FILE.RANDOM.part", "a result, or a file of reports, that is not complete; it replaces FILE when it is"),),
)


def add_options(parser: Parser) -> None:
    """Add the options of the verb."""
    add_monitoring(parser)
    _add_output(parser.add_argument_group("output"))


def add_monitoring(parser: Parser) -> None:
    """Add the options that say what is monitored, and how."""
    _add_target(parser.add_argument_group("what to monitor"))
    _add_counting(parser.add_argument_group("which accesses count"))
    add_regions(parser.add_argument_group("intervals and regions"))
    add_monitor_cpus(parser)


def _add_target(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--pid", type=partial(parse_number, least=1), metavar="PID", help="monitor this process")
    group.add_argument(
        "--ops",
        choices=("vaddr", "fvaddr", "paddr", "reports"),
        default="vaddr",
        help="operations set: vaddr, all memory of the process; fvaddr, the memory in --range; paddr, physical memory, "
        "or --range of it; reports, access reports on --range, without sampling; default: vaddr",
    )
    add_ranges(group, "addresses to monitor")
    group.add_argument(
        "--seconds",
        type=parse_seconds,
        metavar="SECONDS",
        help="stop after SECONDS, such as 30, 0.5 or 2m, and terminate COMMAND; default: until it exits",
    )


def _add_counting(group: argparse._ArgumentGroup) -> None:
    add_primitive(group)
    add_filters(group, parse_cpus)
    add_by(group)
    add_density(group)
    group.add_argument(
        "--reports",
        nargs="?",
        const="",
        metavar="SOCKET",
        help="also count access reports that other processes send to SOCKET; COMMAND finds it in KDAMON_REPORTS",
    )


def add_primitive(group: argparse._ArgumentGroup) -> None:
    """Add the choice of what is sampled."""
    group.add_argument(
        "--primitive",
        choices=("page_table", "page_fault"),
        help="page_table samples accessed bits; page_fault samples faults, which identify CPU and thread, and see "
        "writes only before Linux 7.3; default: page_fault with --write-only, --read-only, --cpus, --tids or --by, "
        "else page_table",
    )


def add_regions(group: argparse._ArgumentGroup) -> None:
    """Add intervals, bounds of the number of regions, and the memory that they cover."""
    group.add_argument(
        "--intervals",
        choices=("tuned", "fixed"),
        help="tuned: the kernel's algorithm lengthens both intervals until 4%% of all possible accesses are found; "
        "sampling intervals are between 5 ms and 500 ms then; fixed: both stay as they are; default: tuned, unless an "
        "interval is given or --density or --ops reports is used",
    )
    add_sampling(group)
    group.add_argument(
        "--update-us", type=parse_interval, metavar="TIME", help="interval at which mappings are read; default: 1s"
    )
    group.add_argument(
        "--vaddr-regions",
        choices=("mappings", "kernel"),
        default="mappings",
        help="mappings covers the populated parts of all mappings; kernel covers three regions around all mappings, as "
        "the kernel does; default: mappings",
    )


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--json",
        nargs="?",
        const="object",
        choices=("object", "lines"),
        metavar="lines",
        help="print one JSON object instead of the heatmap; --json=lines: one for each aggregation, as it ends",
    )
    group.add_argument(
        "--view",
        choices=VIEWS,
        metavar="VIEW",
        help="show a view of kdamon report, of the last seconds while monitoring and of the whole run at the end: "
        "summary; where, hot and cold bytes by name; wss; idle; regions; threads and cpus, with --by; default: live "
        "regions, then a heatmap",
    )
    add_form(group)
    group.add_argument("--quiet", action="store_true", help="print nothing while monitoring, only the result")
    group.add_argument(
        "--reports-to", type=parse_file, metavar="FILE", help="write all access reports to FILE, for kdamon replay"
    )
    # For developers: the truth file of a bundled workload, to compare the result with.
    group.add_argument("--truth", type=parse_file, metavar="FILE", help=argparse.SUPPRESS)
