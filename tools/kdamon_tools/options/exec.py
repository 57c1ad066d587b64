# SPDX-License-Identifier: GPL-2.0-only
"""The options of ``kdamon exec``."""

from __future__ import annotations

from typing import Final

from kdamon_tools.options.common import REPORTS_VARIABLE, TREE_VARIABLES, add_abi, add_monitor_cpus, add_reports
from kdamon_tools.options.parser import COMMAND_STATUSES, STATUSES, About, Parser

__all__ = ["ABOUT", "SUMMARY", "USAGE", "add_options"]

SUMMARY: Final = "run a command that finds the tree at /sys/kernel/mm/damon, visible to that command only"
USAGE: Final = "[OPTION...] -- COMMAND [ARG...]"
ABOUT: Final = About(
    examples=(
        ("open a shell in which damo and other clients use the tree", "kdamon exec -- bash"),
        ("record process 1234 with damo for ten seconds", "kdamon exec -- damo record --timeout 10 1234"),
        (
            "list the files that Linux 6.12 has",
            "kdamon exec --abi 6.12 -- ls /sys/kernel/mm/damon/admin/kdamonds",
        ),
    ),
    statuses=(*STATUSES, ("other", "that of COMMAND"), *COMMAND_STATUSES),
    environment=(
        REPORTS_VARIABLE,
        *TREE_VARIABLES,
        ("HOME", "directory of damo's cache, .damo.sysinfo; COMMAND has one of its own"),
    ),
    files=(
        ("/sys/kernel/mm/damon", "the tree, in the mount namespace of COMMAND"),
        ("/sys/module/damon_*", "parameters of the kernel's modules, likewise"),
        ("/run/kdamon/reports", "default socket of access reports"),
    ),
)


def add_options(parser: Parser) -> None:
    """Add the options of the verb."""
    add_abi(parser.add_argument_group("what to serve"))
    add_reports(parser)
    add_monitor_cpus(parser)
