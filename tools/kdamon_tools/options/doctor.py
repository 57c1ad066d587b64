# SPDX-License-Identifier: GPL-2.0-only
"""The options of ``kdamon doctor``."""

from __future__ import annotations

from typing import Final

from kdamon_tools.options.parser import About, Parser

__all__ = ["ABOUT", "SUMMARY", "USAGE", "add_options"]

SUMMARY: Final = "check what this machine supports, what is missing, and how to get it"
USAGE: Final = "[--json]"
ABOUT: Final = About(
    examples=(
        ("check what this user can monitor", "kdamon doctor"),
        ("check what root can monitor", 'sudo "$(which kdamon)" doctor'),
        ("write the result for a program", "kdamon doctor --json > doctor.json"),
    ),
    statuses=(
        ("0", "this user can monitor processes"),
        ("1", "this user can monitor no process"),
        ("2", "the command line is wrong"),
    ),
)


def add_options(parser: Parser) -> None:
    """Add the options of the verb."""
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
