# SPDX-License-Identifier: GPL-2.0-only
"""Checks the command line of ``kdamon run`` before anything is started."""

from __future__ import annotations

import argparse
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from attrs import evolve

from kdamon.lib.trusted import open_to_read
from kdamon.monitoring.defaults import LONGEST_SAMPLE_US
from kdamon_tools.addresses import check_physical_addresses, check_user_addresses
from kdamon_tools.commands.common import (
    FILTERS,
    REGIONS,
    STDOUT,
    check_files,
    check_monitoring,
    check_socket,
    intervals_of,
)
from kdamon_tools.defaults import BY
from kdamon_tools.errors import CommandError
from kdamon_tools.snapshot import Config, Range

if TYPE_CHECKING:
    from kdamon.mm.linux.machine import LinuxMachine

#: The longest sampling interval where it is tuned: tables that change less often than every ten seconds are of no use.
_LONGEST_US: Final = 500_000
#: With an end it is this part of the time at most, so that there are some aggregations.
_PART: Final = 400

__all__ = ["check_command_line", "check_memory", "config_of"]


def config_of(arguments: argparse.Namespace, pid: int) -> Config:
    """The monitoring request for process ``pid``, or for physical memory if it is 0."""
    names = ("ops", "vaddr_regions", *REGIONS, *FILTERS)
    config = Config(pid=pid, **{name: getattr(arguments, name) for name in names}, **intervals_of(arguments))
    config = evolve(config, command=tuple(arguments.command), ranges=tuple(arguments.ranges))
    if arguments.update_us is not None:
        config = evolve(config, update_us=arguments.update_us)
    if config.ops == "reports":
        return evolve(config, primitive="")
    config = evolve(config, primitive=arguments.primitive or ("page_fault" if config.needs_faults else "page_table"))
    config = evolve(config, watch=config.primitive == "page_table" and config.ops != "paddr")
    return _with_intervals(config, arguments)


def _with_intervals(config: Config, arguments: argparse.Namespace) -> Config:
    """Tune the intervals, unless they were given, or reports say how often memory is accessed."""
    given = arguments.sample_us is not None or arguments.aggr_us is not None
    intervals = arguments.intervals or ("fixed" if given or config.density else "tuned")
    longest = _LONGEST_US if not arguments.seconds else int(arguments.seconds * 1e6 / _PART)
    longest = max(config.sample_us, min(longest, LONGEST_SAMPLE_US))
    return evolve(config, intervals=intervals, longest_sample_us=longest)


def check_command_line(arguments: argparse.Namespace) -> None:
    """Reject contradictory options.

    :raises CommandError: with the exit status 2.
    """
    config = config_of(arguments, arguments.pid or 0)
    if config.ops == "paddr":
        _check_physical(arguments, config)
    else:
        _check_process(arguments, config)
    if config.density and config.primitive == "page_fault":
        raise CommandError(
            "faults come from one page of each region, so density cannot be estimated: leave --density out, or use "
            "--ops reports with a source that samples accesses",
            2,
        )
    if config.density and config.ops != "reports" and arguments.reports is None:
        raise CommandError("--density needs access reports, and none would arrive: add --reports", 2)
    if arguments.view and arguments.json == "lines":
        raise CommandError("--json=lines has a line for each aggregation, not a view: leave one of them out", 2)
    if arguments.view in BY and config.by != BY[arguments.view]:
        raise CommandError(f"--view {arguments.view} needs --by {BY[arguments.view]}", 2)
    if arguments.view and arguments.truth is not None:
        raise CommandError("--truth is compared below the heatmap: leave --view out", 2)
    check_monitoring(config)
    check_socket(arguments.reports)
    output = ("--output", arguments.output) if arguments.output is not None else ("standard output", STDOUT)
    check_files(output, ("--reports-to", arguments.reports_to), ("--truth", arguments.truth))
    if arguments.truth is not None:
        _check_truth(arguments.truth, written_meanwhile=bool(arguments.command))


def _check_process(arguments: argparse.Namespace, config: Config) -> None:
    if (arguments.pid is None) == (not arguments.command):
        raise CommandError("the target is missing: use either --pid PID, or -- and a command", 2)
    if bool(config.ranges) != (config.ops != "vaddr"):
        ops = "fvaddr" if config.ops == "vaddr" else config.ops
        raise CommandError(f"--ops {ops} and --range START-END go together", 2)
    if config.ops == "fvaddr":
        check_user_addresses(config.ranges)
    if config.tids and config.command and config.ops != "reports":
        raise CommandError("--tids needs running threads, and COMMAND has none yet: use --pid", 2)
    if config.ops == "reports" and arguments.primitive:
        raise CommandError("--ops reports does not sample: leave --primitive out", 2)
    if config.ops == "reports" and arguments.update_us is not None:
        raise CommandError("--ops reports does not read mappings: leave --update-us out", 2)
    if arguments.primitive == "page_table" and config.needs_faults:
        raise CommandError("accessed bits do not identify CPU, thread, reads and writes: use --primitive page_fault", 2)


def _check_physical(arguments: argparse.Namespace, config: Config) -> None:
    for given, option in (
        (arguments.pid, "--pid"),
        (config.needs_faults, "--write-only, --read-only, --cpus, --tids and --by"),
        (arguments.primitive == "page_fault", "--primitive page_fault"),
        (arguments.truth, "--truth"),
    ):
        if given:
            raise CommandError(f"--ops paddr monitors the machine's memory, not a process: leave {option} out", 2)


def check_memory(ranges: Sequence[Range], machine: LinuxMachine) -> None:
    """Reject ranges beyond the machine's memory, if its size is known."""
    memory = machine.physical_memory()
    try:
        with suppress(PermissionError):
            check_physical_addresses(ranges, memory.ram())
    finally:
        memory.put()


def _check_truth(path: Path, *, written_meanwhile: bool) -> None:
    """Reject a truth file that can never be read; one that does not exist yet may be written by the command."""
    from kdamon_tools.workloads.truth import load_truth  # noqa: PLC0415 (most runs have none)

    try:
        if not written_meanwhile:
            load_truth(path)
            return
        found = open_to_read(path, os.O_PATH)
        regular = stat.S_ISREG(os.fstat(found).st_mode)
        os.close(found)
        if not regular:
            raise CommandError(f"--truth {path}: it is not a regular file", 2)
    except IsADirectoryError as error:
        raise CommandError(f"--truth {path}: it is not a regular file", 2) from error
    except FileNotFoundError as error:
        if not (written_meanwhile and path.parent.is_dir()):
            raise CommandError(f"--truth {path}: {error.strerror}", 2) from error
    except OSError as error:
        raise CommandError(f"--truth {path}: {error.strerror}", 2) from error
    except ValueError as error:
        raise CommandError(f"--truth {error}", 2) from error
