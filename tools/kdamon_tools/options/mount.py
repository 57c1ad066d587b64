# SPDX-License-Identifier: GPL-2.0-only
"""The options of ``kdamon mount``."""

from __future__ import annotations

from typing import Final

from kdamon_tools.options.common import REPORTS_VARIABLE, TREE_VARIABLES, add_abi, add_monitor_cpus, add_reports
from kdamon_tools.options.parser import STATUSES, About, Parser

__all__ = ["ABOUT", "SUMMARY", "USAGE", "add_options"]

SUMMARY: Final = "serve the tree of /sys/kernel/mm/damon in a directory, until interrupted or unmounted"
USAGE: Final = "[OPTION...] DIRECTORY"
ABOUT: Final = About(
    examples=(
        ("serve the tree in an existing directory until Ctrl-C", "kdamon mount /run/damon"),
        ("serve the files that Linux 6.12 has", "kdamon mount --abi 6.12 /run/damon"),
        ("take access reports at a socket of your choice", "kdamon mount --reports /run/damon.sock /run/damon"),
    ),
    statuses=(("0", "interrupted or unmounted"), *STATUSES[1:]),
    environment=(REPORTS_VARIABLE, *TREE_VARIABLES),
    files=(
        ("DIRECTORY/admin/kdamonds", "the tree, as in /sys/kernel/mm/damon/admin/kdamonds"),
        ("DIRECTORY/module", "parameters of the modules damon_stat, damon_reclaim and damon_lru_sort"),
        ("/run/kdamon/reports", "default socket of access reports"),
    ),
)


def add_options(parser: Parser) -> None:
    """Add the options of the verb."""
    tree = parser.add_argument_group("what to serve")
    tree.add_argument(
        "directory",
        metavar="DIRECTORY",
        help="an existing directory; the tree appears as DIRECTORY/admin and DIRECTORY/module",
    )
    add_abi(tree)
    add_reports(parser)
    add_monitor_cpus(parser)
