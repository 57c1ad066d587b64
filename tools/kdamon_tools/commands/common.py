# SPDX-License-Identifier: GPL-2.0-only
"""What several verbs do: they refuse what makes no sense, and prepare this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kdamon.kernel import INT_MAX
from kdamon.producers.socket_file import check_socket_path
from kdamon_tools.errors import CommandError
from kdamon_tools.output.replacement import same_file
from kdamon_tools.snapshot import Config

if TYPE_CHECKING:
    from kdamon.mm.linux.machine import LinuxMachine

__all__ = [
    "FILTERS",
    "SAMPLING",
    "STDOUT",
    "check_files",
    "check_fuse",
    "check_monitoring",
    "check_socket",
    "machine_when_needed",
    "refused",
]

#: Names of fields of :class:`kdamon_tools.snapshot.Config`, and of the options that set them: which accesses count.
FILTERS: Final = ("write_only", "cpus", "tids", "density")
#: The same: intervals and regions.
SAMPLING: Final = ("sample_us", "aggr_us", "min_regions", "max_regions")
#: Where a result goes without a name.
STDOUT: Final = Path("/dev/stdout")


def check_monitoring(config: Config) -> None:
    """Refuse what the core would refuse, before anything is started.

    :raises CommandError: the attributes, filters or ranges of ``config`` make no sense.
    """
    from kdamon.monitoring.context import add_target, new_context  # noqa: PLC0415 (not for --help)

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


def check_fuse() -> None:
    """Refuse a choice of the FUSE binding that is none."""
    from kdamon_fs.fuse_binding import check_choice  # noqa: PLC0415 (the other verbs need it not)

    try:
        check_choice()
    except OSError as error:
        raise CommandError(error.strerror or str(error), 2) from error


def check_socket(path: str | None) -> None:
    """Refuse a name for the socket of reports that can be none.

    :param path: None or empty where none was chosen.
    """
    if not path:
        return
    with refused(f"--reports {path}"):
        check_socket_path(Path(path).absolute())


def machine_when_needed() -> LinuxMachine:
    """This machine, prepared for monitoring; costly enough to be left until something is monitored.

    Whether it can tell accessed bits is found out when a process is to be monitored by them: faults may be all that is
    needed.

    :raises OSError: EOPNOTSUPP or EPERM with a sentence on what is missing.
    """
    from kdamon.mm.linux.machine import linux_machine  # noqa: PLC0415 (not before it is needed)

    return linux_machine("page_fault")
