# SPDX-License-Identifier: GPL-2.0-only
"""Options that several verbs have."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Final

from kdamon_tools.snapshot import Config
from kdamon_tools.units import parse_positive, parse_tids, parse_unsigned

__all__ = ["FILTERS", "SAMPLING", "add_filters", "add_sampling"]

#: Names of the fields of :class:`kdamon_tools.snapshot.Config` that :func:`add_filters` sets.
FILTERS: Final = ("write_only", "cpus", "tids", "density")
#: The same for :func:`add_sampling`.
SAMPLING: Final = ("sample_us", "aggr_us", "min_regions", "max_regions")


def add_filters(group: argparse._ArgumentGroup, parse_cpus: Callable[[str], tuple[int, ...]]) -> None:
    """Add what says which accesses count, and how.

    :param parse_cpus: reads a list of CPUs.
    """
    group.add_argument("--write-only", action="store_true", help="only writes")
    group.add_argument(
        "--cpus", type=parse_cpus, default=(), metavar="LIST", help="only those made by these CPUs, such as 0-3,5"
    )
    group.add_argument(
        "--tids",
        type=parse_tids,
        default=(),
        metavar="LIST",
        help="only those made by these threads, such as 12,13: their numbers where kdamon runs, not those that a "
        "container below it has for them",
    )
    group.add_argument(
        "--density", action="store_true", help="estimate from reports how densely each region is accessed"
    )


def add_sampling(group: argparse._ArgumentGroup) -> None:
    """Add the intervals, microseconds, and the bounds of the number of regions."""
    defaults = Config(pid=0)
    for name, metavar, parse, text in (
        ("sample_us", "US", parse_positive, "sampling interval"),
        ("aggr_us", "US", parse_positive, "aggregation interval"),
        ("min_regions", "N", parse_unsigned, "regions at least"),
        ("max_regions", "N", parse_unsigned, "regions at most"),
    ):
        option = "--" + name.replace("_", "-")
        group.add_argument(option, type=parse, default=getattr(defaults, name), metavar=metavar, help=text)
