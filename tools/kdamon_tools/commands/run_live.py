# SPDX-License-Identifier: GPL-2.0-only
"""What ``kdamon run`` does and shows while it monitors."""

from __future__ import annotations

import argparse
import os
import select
import sys
import threading
import time
from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from attrs import evolve

from kdamon.mm.linux.machine import LinuxMachine
from kdamon.names.process import ProcessNames
from kdamon_tools.cpu_watch import CpuWatch
from kdamon_tools.gathered import Gathered
from kdamon_tools.mapping_history import MappingHistory
from kdamon_tools.output.terminal import LiveView, use_colour
from kdamon_tools.process_tree import family_of
from kdamon_tools.reporters.groups import render_most_active
from kdamon_tools.reporters.table import render_line, render_table
from kdamon_tools.reporters.views import render_view
from kdamon_tools.snapshot import Config, Snapshot
from kdamon_tools.stopping import StopSignals

if TYPE_CHECKING:
    from kdamon import Monitor
    from kdamon.mm import Machine
    from kdamon_tools.child import Command
    from kdamon_tools.run_record import RunRecord

__all__ = ["ENDED", "cpu_watch", "gather", "watch"]

#: Maximum seconds between two checks for a signal or the end of the time.
_TICK_S: Final = 0.1
#: The same until there is something to show.
_FIRST_TICK_S: Final = 0.005
_REDRAW_S: Final = 0.5
_LINE_S: Final = 1.0
#: Seconds until CPU times show whether the process or a child does the work.
_WORK_S: Final = 2.0
#: The reason for the end that is none of kdamon's.
ENDED: Final = "the process ended"


def cpu_watch(pid: int, command: Command | None) -> CpuWatch:
    """A look at which process does the work, of ``command`` or of any process ``pid``."""
    return CpuWatch(pid, command.family if command else partial(family_of, pid))


def gather(  # noqa: PLR0917 -- what a run consists of
    monitor: Monitor,
    config: Config,
    machine: Machine | None,
    birth: int | None,
    record: RunRecord | None,
    stack: ExitStack,
    *,
    json: bool,
) -> Gathered:
    """What is gathered of a monitor that has begun, and of its process.

    :param machine: None: there is no process to look at.
    :param birth: of the process, see :meth:`kdamon.mm.Machine.get_task`; None: any.
    :param record: None where none is written.
    :param stack: closes what is opened.
    :param json: the result has the mappings.
    """
    gathered = Gathered(monitor, config)
    if (json or record is not None) and config.pid and machine is not None:
        changed = None if record is None else record.change_mappings
        gathered.mappings = stack.enter_context(MappingHistory(config.pid, birth, changed=changed))
    if config.pid and isinstance(machine, LinuxMachine):
        # A process that ended meanwhile ends the run by itself.
        with suppress(ProcessLookupError):
            gathered.names = stack.enter_context(ProcessNames(config.pid, birth))
    return gathered


def watch(
    gathered: Gathered, pidfd: int | None, stop: StopSignals, work: CpuWatch | None, arguments: argparse.Namespace
) -> str:
    """Gather snapshots until something ends the run; return the reason."""
    monitor = gathered.monitor
    # A command writes to the same terminal, so nothing may be overwritten.
    in_place = sys.stderr.isatty() and not arguments.command and os.environ.get("TERM") != "dumb"
    view = LiveView(sys.stderr, in_place)
    colour = in_place and use_colour(arguments.color, sys.stderr)
    deadline = monitor.started + arguments.seconds if arguments.seconds else float("inf")
    looked_at = monitor.started
    shown, shown_at = None, float("-inf")
    poller = select.poll()
    if pidfd is not None:
        poller.register(pidfd, select.POLLIN)
    note = ""
    look = threading.Thread()
    while not note:
        left = deadline - time.monotonic()
        tick = _FIRST_TICK_S if gathered.latest is None else _TICK_S
        ended = poller.poll(max(0.0, min(tick, left)) * 1e3)
        gathered.gather()
        if time.monotonic() - looked_at >= monitor.config.update_us / 1e6:
            looked_at = time.monotonic()
            # In a thread: a process can keep its list of mappings locked, and signals must be handled meanwhile.
            if not look.is_alive():
                look = threading.Thread(target=monitor.mapped, name="kdamon-ranges", daemon=True)
                look.start()
        if stop:
            note = "stopped by a signal"
        elif gathered.failure() is not None:
            note = "the result could not be written any more"
        elif ended or not monitor.running():
            note = ENDED if monitor.error() is None else "monitoring failed"
        elif left <= 0:
            note = "the time was over"
        elif work is not None:
            work.look()
        now = time.monotonic()
        latest = gathered.latest
        if latest is not None and not note and not arguments.quiet:
            if work is not None and now - monitor.started >= _WORK_S and (remark := work.sentence_once()):
                view.clear()
                print(f"kdamon: {remark}", file=sys.stderr)
            # In place, the terminal may have another size by now.
            changed = view.in_place or latest is not shown
            if changed and now - shown_at >= (_REDRAW_S if view.in_place else _LINE_S):
                shown, shown_at = latest, now
                _show_live(view, latest, gathered, colour, arguments.view)
    view.clear()
    return note


def _show_live(view: LiveView, snapshot: Snapshot, gathered: Gathered, colour: bool, what: str | None) -> None:
    # Aggregation intervals may be much longer than it takes to estimate that anew.
    snapshot = evolve(snapshot, use=gathered.monitor.use())
    config, since = gathered.monitor.config, gathered.monitor.started
    groups = None if gathered.grouping is None else gathered.grouping.log(shared=False)
    if not view.in_place:
        line = render_line(snapshot, config, since)
        view.show(f"{line}; {render_most_active(groups)}" if groups is not None and groups.groups else line)
        return
    width, height = view.size()
    if what not in (None, "heatmap"):
        view.show(render_view(what, gathered.recent(), width, height))
        return
    names = gathered.present_names()
    size = {"width": width, "height": height}
    view.show(render_table(snapshot, config, since=since, **size, colour=colour, groups=groups, names=names))
