# SPDX-License-Identifier: GPL-2.0-only
"""What ``kdamon top`` monitors, in a thread of its own: it computes what the screen shows, once a second."""

from __future__ import annotations

import argparse
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from attrs import evolve, frozen

from kdamon.kernel import ULONG_MAX
from kdamon_tools.commands.run_checks import check_command_line, config_of
from kdamon_tools.defaults import BY
from kdamon_tools.errors import CommandError
from kdamon_tools.recorded.selection import clipped
from kdamon_tools.reporters.heatmap import render_heatmap
from kdamon_tools.snapshot import Recording
from kdamon_tools.top.tables import Heading, Sizes, names_table, processes_table
from kdamon_tools.top.target import HEATMAP_S, Target
from kdamon_tools.views.actors import actors_view
from kdamon_tools.views.regions import NO_NAME
from kdamon_tools.views.table import Table

if TYPE_CHECKING:
    from kdamon_tools.child import Command

__all__ = ["Content", "Session", "Wanted"]

#: Seconds between two computations.
_PERIOD_S: Final = 1.0
#: The same until there is something to show.
_FIRST_PERIOD_S: Final = 0.1
#: The smallest heatmap.
_LEAST_WIDTH: Final = 28


@frozen
class Wanted:
    """What the screen is to show.

    :ivar view: ``processes``, ``names``, ``threads`` or ``cpus``.
    :ivar pid: the process; None: all of them, as a table.
    :ivar heatmap: whether it is a heatmap, of all of the process or of ``part`` of it.
    :ivar part: name of memory, number of a thread or a CPU; None: all.
    :ivar width: columns of a heatmap, and ``height`` its lines.
    """

    view: str
    pid: int | None = None
    heatmap: bool = False
    part: str | None = None
    width: int = 80
    height: int = 20
    colour: bool = False


@frozen
class Content:
    """What the screen shows.

    :ivar wanted: what was wanted.
    :ivar heading: what is monitored, and how it goes.
    :ivar table: None: nothing is known yet, or a heatmap is shown.
    :ivar heatmap: empty: a table is shown.
    :ivar ended: whether all processes ended.
    """

    wanted: Wanted
    heading: Heading
    table: Table | None = None
    heatmap: str = ""
    ended: bool = False


class Session:
    """Monitors processes; a thread of it computes what is wanted and passes it on.

    :param targets: the processes; they are monitored already.
    :param arguments: the command line, with ``pid`` of each of them in turn.
    :param command: the command that was started, None where none was.
    """

    def __init__(self, targets: Sequence[Target], arguments: argparse.Namespace, command: Command | None) -> None:
        self._targets = {target.pid: target for target in targets}
        self._arguments = arguments
        self._command = command
        self._actions: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="kdamon-top", daemon=True)
        self.wanted = Wanted("processes") if len(targets) > 1 else Wanted("names", targets[0].pid)
        #: Receive what to show, and sentences.
        self.show: Callable[[Content], None] = lambda _: None
        self.say: Callable[[str], None] = lambda _: None
        #: The error that ended the thread.
        self.failure: BaseException | None = None

    @property
    def one(self) -> bool:
        """Whether only one process is monitored."""
        return len(self._targets) == 1

    def start(self) -> None:
        """Begin to compute."""
        self._thread.start()

    def stop(self) -> list[str]:
        """End the thread, the records and monitoring; return sentences about the records."""
        self._stopped = True
        self._actions.put(lambda: None)
        if self._thread.ident is not None:
            self._thread.join()
        said = [target.end_record("kdamon top ended") for target in self._targets.values()]
        for target in self._targets.values():
            target.stop()
        return [sentence for sentence in said if sentence]

    def errors(self) -> list[BaseException]:
        """The exceptions that ended monitoring."""
        return [error for target in self._targets.values() if (error := target.error()) is not None]

    # Requests of the screen, from any thread.

    def want(self, wanted: Wanted) -> None:
        """Show ``wanted`` from now on. A process is monitored by thread or CPU as long as its view is that."""
        self._actions.put(lambda: self._want(wanted))

    def toggle_writes(self) -> None:
        """Count only writes, or all accesses again."""
        self._actions.put(self._toggle_writes)

    def toggle_records(self) -> None:
        """Begin a record of each process, or end those that are being written."""
        self._actions.put(self._toggle_records)

    # The thread.

    def _run(self) -> None:
        try:
            due = time.monotonic()
            while not self._stopped:
                self._compute()
                waits = _FIRST_PERIOD_S if any(one.sizes is None for one in self._targets.values()) else _PERIOD_S
                due = max(due + waits, time.monotonic())
                with suppress(queue.Empty):
                    self._actions.get(timeout=max(0.001, due - time.monotonic()))()
        except BaseException as error:
            self.failure = error

    def _compute(self) -> None:
        for target in self._targets.values():
            if sentence := target.gather():
                self.say(sentence)
        self.show(self._content())

    def _want(self, wanted: Wanted) -> None:
        by = BY.get(wanted.view, "")
        if not self._again(wanted.pid, by=by):
            wanted = evolve(wanted, view=self.wanted.view, pid=self.wanted.pid, heatmap=False)
        self.wanted = wanted

    def _toggle_writes(self) -> None:
        self._arguments.write_only = not self._arguments.write_only
        if not self._again(self.wanted.pid, by=BY.get(self.wanted.view, "")):
            self._arguments.write_only = not self._arguments.write_only

    def _again(self, pid: int | None, by: str) -> bool:
        """Monitor each process as it has to be, those that are not monitored so yet; return whether that works.

        :param by: what the accesses of process ``pid`` are grouped by; those of others are not grouped.
        """
        for target in self._targets.values():
            wanted = self._arguments_of(target, by if target.pid == pid else "")
            try:
                check_command_line(wanted)
                config = _config(wanted, target)
                if target.config == config or target.ended:
                    continue
                self.say(f"monitoring of process {target.pid} begins again, to count other accesses")
                if sentence := target.begin_again(config):
                    self.say(sentence)
            except (OSError, CommandError) as error:
                self.say(_sentence(error))
                return False
        return True

    def _arguments_of(self, target: Target, by: str) -> argparse.Namespace:
        found = argparse.Namespace(**vars(self._arguments))
        found.pid, found.by = (None if self._command is not None else target.pid), by
        return found

    def _toggle_records(self) -> None:
        targets = [target for target in self._targets.values() if not target.ended]
        recording = [target for target in targets if target.record]
        said = []
        for target in recording or targets:
            try:
                said.append(
                    target.end_record("the key r ended it") if recording else f"recording in {target.begin_record()}"
                )
            except OSError as error:
                said.append(_sentence(error))
        self.say("; ".join(said) or "the process ended: there is nothing to record")

    # What is shown.

    def _content(self) -> Content:
        wanted = self.wanted
        targets = list(self._targets.values())
        if wanted.pid is not None:
            targets = [self._targets[wanted.pid]]
        rows = [target.process() for target in targets]
        content = Content(
            wanted, self._heading(wanted, targets), ended=all(one.ended for one in self._targets.values())
        )
        if wanted.pid is None:
            return evolve(content, table=processes_table(rows))
        (target,) = targets
        if wanted.heatmap:
            recording = target.minute()
            return content if recording is None else evolve(content, heatmap=_heatmap(wanted, recording))
        recent = target.recent()
        if recent is None:
            return content
        if wanted.view in BY:
            return evolve(content, table=actors_view(wanted.view, target.groups(recent)).tables[0])
        return evolve(content, table=names_table(recent))

    def _heading(self, wanted: Wanted, targets: Sequence[Target]) -> Heading:
        first = targets[0]
        counters = [target.monitor.counters() for target in targets]
        known = [target.sizes for target in targets if target.sizes is not None]
        seconds = max(target.seconds for target in targets)
        cpu = [counter.cpu_s for counter in counters]
        states = [_part_of(wanted)] if wanted.heatmap else []
        if len(targets) == 1 and first.ended:
            states.append(self._ended(first))
        states += [f"recording in {target.record}" for target in targets if target.record][:1]
        resident = [target.resident for target in targets]
        return Heading(
            what=f"process {first.pid} ({first.name})" if len(targets) == 1 else f"{len(targets)} processes",
            accesses=_accesses(first),
            seconds=seconds,
            states=tuple(filter(None, states)),
            sizes=_sum(known) if known else None,
            resident=None if None in resident else sum(filter(None, resident)),
            missed=sum(counter.missed_intervals for counter in counters),
            intervals=sum(int(target.seconds * 1e6 / max(1, target.config.sample_us)) for target in targets),
            cpu=None if None in cpu or seconds <= 0 else sum(filter(None, cpu)) / seconds,
        )

    def _ended(self, target: Target) -> str:
        if target.error() is not None:
            return "monitoring failed"
        status = None if self._command is None else self._command.status()
        return "ended" if status is None else f"ended with status {status}"


def _config(arguments: argparse.Namespace, target: Target) -> Any:
    from kdamon_tools.commands.run import by_what_works  # noqa: PLC0415 (it loads what monitoring needs)

    return by_what_works(config_of(arguments, target.pid), arguments)


def _sentence(error: OSError | CommandError) -> str:
    if isinstance(error, CommandError):
        return str(error)
    text = error.strerror or str(error)
    return f"{error.filename}: {text}" if error.filename else text


def _accesses(target: Target) -> str:
    """Which accesses count, in words."""
    config = target.config
    seen = target.monitor.counters().faults_of_reads
    if config.write_only or (config.primitive == "page_fault" and not seen):
        found = "writes"
    else:
        found = "reads" if config.read_only else "reads and writes"
    return f"{found} of some {'CPUs' if config.cpus else 'threads'}" if config.cpus or config.tids else found


def _sum(sizes: Sequence[Sizes]) -> Sizes:
    idle = [one.idle for one in sizes]
    return Sizes(
        sum(one.monitored for one in sizes),
        sum(one.hot for one in sizes),
        sum(one.working_set for one in sizes),
        None if None in idle else sum(filter(None, idle)),
        sum(one.unknown for one in sizes),
    )


def _part_of(wanted: Wanted) -> str:
    """What a heatmap is of, raw."""
    if wanted.part is None:
        return "all of its memory"
    return {"threads": "thread {}", "cpus": "CPU {}"}.get(wanted.view, "{}").format(wanted.part)


def _heatmap(wanted: Wanted, recording: Recording) -> str:
    """The heatmap of a process, or of a part of it."""
    part = wanted.part
    if part is not None and wanted.view in BY:
        snapshots = [snapshot.of_groups([int(part)]) for snapshot in recording.snapshots]
        recording = evolve(recording, snapshots=snapshots)
    elif part is not None:
        recording = _of_name(recording, part, wanted.height)
        if not any(len(snapshot.regions) for snapshot in recording.snapshots):
            return f"nothing with this name was monitored in the last {HEATMAP_S:.0f} s"
    return render_heatmap(
        recording,
        width=max(_LEAST_WIDTH, wanted.width),
        height=max(4, wanted.height - 3),
        colour=wanted.colour,
        show_legend=False,
        until_now=True,
    )


def _of_name(recording: Recording, name: str, height: int) -> Recording:
    """What lies where ``name`` does; all of it is drawn if there are lines for that."""
    table = recording.names
    if table is None:
        return recording
    rows, all_names = table.rows, name == NO_NAME
    if not all_names:
        which = [number for number, one in enumerate(table.names) if one == name]
        rows = rows[np.isin(rows["name"], which)]
    ranges: list[tuple[int, int]] = []
    for start, end in zip(rows["start"].tolist(), rows["end"].tolist(), strict=True):
        if ranges and ranges[-1][1] == start:
            ranges[-1] = (ranges[-1][0], end)
        else:
            ranges.append((start, end))
    if all_names:
        edges = [0, *(edge for one in ranges for edge in one), ULONG_MAX]
        ranges = [(start, end) for start, end in zip(edges[::2], edges[1::2], strict=True) if start < end]
    if not ranges:
        return evolve(recording, snapshots=[])
    snapshots = [evolve(one, regions=clipped(one.regions, ranges)) for one in recording.snapshots]
    drawn = tuple(ranges) if len(ranges) <= height // 2 and not all_names else ()
    return evolve(recording, snapshots=snapshots, config=evolve(recording.config, ranges=drawn))
