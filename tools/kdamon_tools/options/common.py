# SPDX-License-Identifier: GPL-2.0-only
"""Options that several verbs share."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from kdamon.monitoring.defaults import MAX_REGIONS, MIN_REGIONS
from kdamon_fs.abi import ABI_VERSIONS, DEFAULT_ABI
from kdamon_tools.units import parse_cpus, parse_file, parse_interval, parse_number, parse_range, parse_span, parse_tids

__all__ = [
    "COLOUR_HELP",
    "COLOUR_VARIABLES",
    "PAGER_VARIABLES",
    "REPORTS_VARIABLE",
    "TREE_VARIABLES",
    "add_abi",
    "add_by",
    "add_density",
    "add_filters",
    "add_form",
    "add_monitor_cpus",
    "add_part",
    "add_ranges",
    "add_reports",
    "add_sampling",
    "add_time",
]

#: The variable that names the socket of access reports for producers.
REPORTS_VARIABLE = (
    "KDAMON_REPORTS",
    "socket to which producers send access reports; kdamon sets it for COMMAND",
)
#: The help of the option for colours.
COLOUR_HELP = "colour the heatmap; default: auto, on a terminal unless NO_COLOR is set, or if FORCE_COLOR is set"
#: The variables that choose colours.
COLOUR_VARIABLES = (
    ("NO_COLOR", "if set, nothing is coloured unless --color always is given"),
    ("FORCE_COLOR", "if set, and NO_COLOR is not, colour also what is not written to a terminal"),
)
#: The variables that choose the pager.
PAGER_VARIABLES = (
    (
        "KDAMON_PAGER, PAGER",
        "pager for text that is longer than the terminal; empty or cat: none; default: less, which root always uses, "
        "with LESS=FRX unless LESS is set, and without its commands that start programs (LESSSECURE=1, see less(1))",
    ),
)
#: The environment variables that a served tree reads.
TREE_VARIABLES = (
    ("KDAMON_FUSE", "fusepy or mfusepy, the Python package to mount with; default: the first that works"),
    ("FUSE_LIBRARY_PATH", "file name of libfuse, to load instead of the default one"),
    ("XDG_RUNTIME_DIR", "without root, the default socket of access reports is kdamon/reports in it"),
)


def add_filters(group: argparse._ArgumentGroup, parse_cpus: Callable[[str], tuple[int, ...]]) -> None:
    """Add the filters on accesses.

    :param parse_cpus: reads a list of CPUs.
    """
    group.add_argument("--write-only", action="store_true", help="count writes only")
    group.add_argument("--read-only", action="store_true", help="count reads only")
    group.add_argument(
        "--cpus",
        type=parse_cpus,
        default=(),
        metavar="LIST",
        help="count accesses by these CPUs only, such as 0-3,5",
    )
    group.add_argument(
        "--tids",
        type=parse_tids,
        default=(),
        metavar="LIST",
        help="count accesses by these threads only, such as 12,13; thread IDs as kdamon's own PID namespace has them",
    )


def add_by(group: argparse._ArgumentGroup) -> None:
    """Add the grouping of accesses."""
    group.add_argument(
        "--by",
        choices=("cpu", "thread", "node"),
        default="",
        help="show the accesses of each CPU, thread or NUMA node, and which memory several of them write",
    )


def add_density(group: argparse._ArgumentGroup) -> None:
    """Add the estimate of density."""
    group.add_argument(
        "--density", action="store_true", help="estimate from access reports how densely each region is accessed"
    )


def add_ranges(group: argparse._ArgumentGroup, which: str, default: str = "") -> None:
    """Add ``--range``, which can be repeated.

    :param which: the addresses it stands for.
    :param default: what holds without it.
    """
    group.add_argument(
        "--range",
        type=parse_range,
        action="append",
        default=[],
        dest="ranges",
        metavar="START-END",
        help=f"{which}: hexadecimal, decimal of 14 digits or more, or sizes such as 4G-6G; END is exclusive; can be "
        f"repeated{default and f'; default: {default}'}",
    )


def add_part(group: argparse._ArgumentGroup) -> None:
    """Add the options for a part of a record."""
    add_time(group, "only from A to B")
    add_ranges(group, "only these addresses", "all")


def add_time(group: argparse._ArgumentGroup, what: str) -> None:
    """Add the option for a part of the time of a record."""
    group.add_argument(
        "--time",
        type=parse_span,
        metavar="A-B",
        help=f"{what}, seconds after the start or with a unit, such as 10-20, 1m-, -90s; default: all",
    )


def add_sampling(group: argparse._ArgumentGroup) -> None:
    """Add the intervals and the bounds of the number of regions."""
    group.add_argument(
        "--sample-us",
        type=parse_interval,
        metavar="TIME",
        help="sampling interval, in microseconds or with a unit, such as 5ms, 0.1s, 1m; default: 5ms",
    )
    group.add_argument("--aggr-us", type=parse_interval, metavar="TIME", help="aggregation interval; default: 100ms")
    group.add_argument(
        "--min-regions",
        type=parse_number,
        default=MIN_REGIONS,
        metavar="N",
        help=f"minimum number of regions; default: {MIN_REGIONS}",
    )
    group.add_argument(
        "--max-regions",
        type=parse_number,
        default=MAX_REGIONS,
        metavar="N",
        help=f"maximum number of regions; default: {MAX_REGIONS}",
    )


def add_form(group: argparse._ArgumentGroup) -> None:
    """Add the options for the result's file and colours."""
    group.add_argument(
        "--output", type=parse_file, metavar="FILE", help="write the result to FILE; default: standard output"
    )
    group.add_argument(
        "--color",
        choices=("auto", "always", "never"),
        default="auto",
        help=COLOUR_HELP,
    )


def add_monitor_cpus(parser: argparse.ArgumentParser) -> None:
    """Add the choice of the CPUs that kdamonds run on."""
    parser.add_argument_group("where kdamonds run").add_argument(
        "--monitor-cpus",
        type=parse_cpus,
        default=(),
        metavar="LIST",
        help="CPUs on which kdamonds may run, such as 0-3,5; default: those of this process, without isolated and "
        "nohz_full ones",
    )


def add_abi(group: argparse._ArgumentGroup) -> None:
    """Add the choice of the tree's version."""
    group.add_argument(
        "--abi",
        choices=ABI_VERSIONS,
        default=DEFAULT_ABI,
        metavar="VERSION",
        help="which files the tree has: those of a release of Linux, those of 7.3 and kdamon's own (kdamon), or "
        f"those of 7.4 and kdamon's own (next); one of {', '.join(ABI_VERSIONS)}; default: {DEFAULT_ABI}",
    )


def add_reports(parser: argparse.ArgumentParser) -> None:
    """Add the choice of the socket that hands out rings for access reports."""
    group = parser.add_argument_group("access reports")
    group.add_argument(
        "--reports",
        default="",
        metavar="SOCKET",
        help="socket to which producers send access reports; default: kdamon/reports below /run or XDG_RUNTIME_DIR, "
        "unless another kdamon serves it",
    )
    group.add_argument("--no-reports", action="store_true", help="serve no socket for access reports")
