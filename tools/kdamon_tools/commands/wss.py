# SPDX-License-Identifier: GPL-2.0-only
"""``kdamon wss``: measure the exact working set of a process."""

from __future__ import annotations

import argparse
import logging
import select
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kdamon.lib.capabilities import MONITORING
from kdamon.lib.file_limit import raise_file_limit
from kdamon.lib.process_status import status_fields
from kdamon_tools.commands.common import refused
from kdamon_tools.errors import CommandError
from kdamon_tools.origin import this_machine
from kdamon_tools.output.result import ResultFile
from kdamon_tools.output.terminal import terminal_size
from kdamon_tools.privileges import capabilities_for, keep_only
from kdamon_tools.reporters.working_set import Window, describe_cost, render_working_set, render_working_set_json
from kdamon_tools.stopping import StopSignals

if TYPE_CHECKING:
    from kdamon.mm.working_set.observation import Observation

__all__ = ["run"]

log = logging.getLogger("kdamon")

#: Maximum seconds between two looks at the process.
_TICK_S: Final = 0.1


def run(arguments: argparse.Namespace) -> int:
    """Measure and print the result; return the exit status."""
    if arguments.pid is None:
        raise CommandError("the process is missing: use --pid PID", 2)
    with ExitStack() as stack:
        with refused("--output"):
            result = stack.enter_context(ResultFile(arguments.output))
        stop = stack.enter_context(StopSignals())
        keep_only(*MONITORING, *capabilities_for(arguments.output))
        raise_file_limit()
        # The process is let go before the result is written, which may take any time.
        with _observation(arguments) as observation:
            cost = observation.cost(lambda: bool(stop))
            if stop:
                raise KeyboardInterrupt
            for sentence in describe_cost(cost, arguments.primitive, reads=observation.reads):
                print(f"kdamon: {sentence}", file=sys.stderr)
            window = _measure(observation, stop, arguments)
        result.write(lambda: _rendered(window, arguments))
    return 0


def _observation(arguments: argparse.Namespace) -> Observation:
    # Only now: a wrong command line must be reported without the libraries that this needs.
    if arguments.primitive == "page_table":
        from kdamon.mm.working_set.by_accessed_bits import AccessedBitObservation  # noqa: PLC0415

        return AccessedBitObservation(arguments.pid)
    from kdamon.mm.working_set.by_faults import FaultObservation  # noqa: PLC0415

    return FaultObservation(arguments.pid)


def _measure(observation: Observation, stop: StopSignals, arguments: argparse.Namespace) -> Window:
    origin = this_machine()
    begun = started = time.monotonic()
    try:
        observation.begin(lambda: bool(stop))
        if stop:
            raise KeyboardInterrupt
        started = time.monotonic()
        log.debug("process %d: the window has begun", arguments.pid)
        _wait(observation, stop, started, arguments)
        ended = time.monotonic()
        working_set = observation.end()
    except OSError:
        _check_alive(observation, started, arguments.pid)
        raise
    _check_alive(observation, started, arguments.pid)
    return Window(
        arguments.pid,
        arguments.primitive,
        observation.reads,
        origin,
        started - begun,
        ended - started,
        time.monotonic() - ended,
        "stopped by a signal" if stop else "the time was over",
        working_set,
    )


def _wait(observation: Observation, stop: StopSignals, started: float, arguments: argparse.Namespace) -> None:
    """Wait until the time is over, or a signal comes.

    :raises CommandError: the process ended, or began another program.
    """
    deadline = started + arguments.seconds if arguments.seconds else float("inf")
    poller = select.poll()
    poller.register(observation.pidfd, select.POLLIN)
    while not stop and (left := deadline - time.monotonic()) > 0:
        poller.poll(min(_TICK_S, left) * 1e3)
        _check_alive(observation, started, arguments.pid)
        observation.look()


def _check_alive(observation: Observation, started: float, pid: int) -> None:
    """Raise CommandError if the address space is gone, and with it what there was to count."""
    if observation.alive():
        return
    what = "began another program" if _has_memory(observation, pid) else "ended"
    raise CommandError(
        f"process {pid} {what} after {time.monotonic() - started:.1f} s, before its working set was counted: measure "
        "for a shorter time"
    )


def _has_memory(observation: Observation, pid: int) -> bool:
    """Whether the process has an address space: one that is ending has none long before it ended."""
    poller = select.poll()
    poller.register(observation.pidfd, select.POLLIN)
    try:
        return "VmSize" in status_fields(Path(f"/proc/{pid}/status").read_bytes()) and not poller.poll(0)
    except (FileNotFoundError, ProcessLookupError):
        return False


def _rendered(window: Window, arguments: argparse.Namespace) -> Iterator[str]:
    if arguments.json:
        yield render_working_set_json(window)
    else:
        width, height = terminal_size()
        yield render_working_set(window, width=width, height=max(20, height - 8))
    yield "\n"
