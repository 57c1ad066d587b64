# SPDX-License-Identifier: GPL-2.0-only
"""Functions that several verbs share: checks of the command line, and the preparation of this machine."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kdamon.kernel import INT_MAX
from kdamon_tools.errors import CommandError
from kdamon_tools.output.replacement import same_file
from kdamon_tools.snapshot import Config

if TYPE_CHECKING:
    from kdamon.mm.linux.machine import LinuxMachine

__all__ = [
    "FILTERS",
    "REGIONS",
    "STDOUT",
    "check_files",
    "check_fuse",
    "check_monitoring",
    "check_socket",
    "intervals_of",
    "machine_when_needed",
    "refused",
]

#: Fields of :class:`kdamon_tools.snapshot.Config` with their options: which accesses count.
FILTERS: Final = ("write_only", "read_only", "cpus", "tids", "by", "density")
#: The same: bounds of the number of regions.
REGIONS: Final = ("min_regions", "max_regions")
#: The file name that stands for standard output.
STDOUT: Final = Path("/dev/stdout")


def intervals_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The intervals of the command line, as fields of :class:`kdamon_tools.snapshot.Config`."""
    given = {"sample_us": arguments.sample_us, "aggr_us": arguments.aggr_us}
    return {name: interval for name, interval in given.items() if interval is not None}


def check_monitoring(config: Config) -> None:
    """Reject before anything is started what the core would reject.

    :raises CommandError: the attributes, filters or ranges of ``config`` are invalid.
    """
    from kdamon.monitoring.context import add_target, new_context  # noqa: PLC0415 (not for --help)

    if config.write_only and config.read_only:
        raise CommandError("--write-only and --read-only exclude each other: leave one of them out", 2)
    if config.by and config.density:
        raise CommandError(f"--density estimates for all accesses together: leave --density or --by {config.by} out", 2)
    if config.max_nr_accesses > INT_MAX:
        raise CommandError("the aggregation interval is too long: the access counter of a region would overflow", 2)
    try:
        add_target(new_context(config), config)
    except OSError as error:
        raise CommandError(error.strerror or str(error), 2) from error


def check_files(*files: tuple[str, Path | None]) -> None:
    """Reject the same file for two purposes: one use would destroy the other.

    :param files: each option with its file, None without one.
    """
    given = [(option, path) for option, path in files if path is not None]
    for at, (option, path) in enumerate(given):
        for other, same in given[:at]:
            if same_file(path, same):
                raise CommandError(f"{other} and {option} are the same file, {path}: name another one", 2)


@contextmanager
def refused(what: str) -> Iterator[None]:
    """Report a file that cannot be opened within the block, before anything was started, as a wrong command line.

    :param what: the option.
    """
    try:
        yield
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        raise CommandError(f"{what}: {name}{error.strerror}", 2) from error


def check_fuse() -> None:
    """Reject an invalid choice of the FUSE binding."""
    from kdamon_fs.fuse_binding import check_choice  # noqa: PLC0415 (the other verbs need it not)

    try:
        check_choice()
    except OSError as error:
        raise CommandError(error.strerror or str(error), 2) from error


def check_socket(path: str | None) -> None:
    """Reject an impossible name for the socket of reports.

    :param path: None or empty for the default.
    """
    if not path:
        return
    from kdamon.producers.socket_file import check_socket_path  # noqa: PLC0415 (few runs serve one)

    with refused(f"--reports {path}"):
        check_socket_path(Path(path).absolute())


def machine_when_needed() -> LinuxMachine:
    """This machine, prepared for monitoring. This is slow, so call it only when something is to be monitored.

    Access to accessed bits is checked when a process is monitored with them: page faults may be enough.

    :raises OSError: EOPNOTSUPP, EPERM a requirement is missing; the message names it.
    """
    from kdamon.mm.linux.machine import linux_machine  # noqa: PLC0415 (not before it is needed)

    return linux_machine("page_fault")
