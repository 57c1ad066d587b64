# SPDX-License-Identifier: GPL-2.0-only
"""Options that several verbs have."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from kdamon.kernel import INT_MAX
from kdamon.report_socket import check_socket_path
from kdamon_tools.errors import CommandError
from kdamon_tools.replacement import same_file
from kdamon_tools.snapshot import Config
from kdamon_tools.units import parse_interval, parse_number, parse_tids

__all__ = [
    "FILTERS",
    "SAMPLING",
    "STDOUT",
    "add_filters",
    "add_sampling",
    "check_files",
    "check_monitoring",
    "check_socket",
    "refused",
]

#: Names of the fields of :class:`kdamon_tools.snapshot.Config` that :func:`add_filters` sets.
FILTERS: Final = ("write_only", "cpus", "tids", "density")
#: The same for :func:`add_sampling`.
SAMPLING: Final = ("sample_us", "aggr_us", "min_regions", "max_regions")
#: Where a result goes without a name.
STDOUT: Final = Path("/dev/stdout")


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
    """Add the intervals and the bounds of the number of regions."""
    defaults = Config(pid=0)
    for name, metavar, parse, text in (
        ("sample_us", "TIME", parse_interval, "sampling interval: microseconds, or with a unit: 5ms, 0.1s, 1m"),
        ("aggr_us", "TIME", parse_interval, "aggregation interval"),
        ("min_regions", "N", parse_number, "regions at least"),
        ("max_regions", "N", parse_number, "regions at most"),
    ):
        option = "--" + name.replace("_", "-")
        group.add_argument(option, type=parse, default=getattr(defaults, name), metavar=metavar, help=text)


def check_monitoring(config: Config) -> None:
    """Refuse what the core would refuse, before anything is started.

    :raises CommandError: the attributes, filters or ranges of ``config`` make no sense.
    """
    from kdamon_tools.monitor import add_target, new_context  # noqa: PLC0415 (not for --help)

    if config.max_nr_accesses > INT_MAX:
        raise CommandError("the aggregation interval is too long: a region could not count so many accesses", 2)
    try:
        add_target(new_context(config), config)
    except OSError as error:
        raise CommandError(error.strerror or str(error), 2) from error


def check_files(*files: tuple[str, Path | None]) -> None:
    """Refuse one file for two uses: one of them would destroy the other.

    :param files: the option of each, and what was given, None nothing.
    """
    given = [(option, path) for option, path in files if path is not None]
    for at, (option, path) in enumerate(given):
        for other, same in given[:at]:
            if same_file(path, same):
                raise CommandError(f"{other} and {option} are the same file, {path}: name another one", 2)


@contextmanager
def refused(what: str) -> Iterator[None]:
    """Make what cannot be opened, within the block and before anything was started, a mistake on the command line.

    :param what: the option.
    """
    try:
        yield
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        raise CommandError(f"{what}: {name}{error.strerror}", 2) from error


def check_socket(path: str | None) -> None:
    """Refuse a name for the socket of reports that can be none.

    :param path: None or empty where none was chosen.
    """
    if not path:
        return
    with refused(f"--reports {path}"):
        check_socket_path(Path(path).absolute())
