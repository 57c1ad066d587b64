# SPDX-License-Identifier: GPL-2.0-only
"""What ``kdamon top`` monitors, in a thread of its own: it computes what the screen shows, once a second."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

from attrs import evolve, frozen

from kdamon_tools.defaults import BY
from kdamon_tools.errors import CommandError
from kdamon_tools.snapshot import Config
from kdamon_tools.top.heatmap import Wanted, heatmap_of
from kdamon_tools.top.tables import Heading, Sizes, names_table, processes_table
from kdamon_tools.top.target import Target
from kdamon_tools.views.actors import actors_view
from kdamon_tools.views.table import Table

if TYPE_CHECKING:
    from kdamon_tools.child import Command

__all__ = ["Content", "Session"]

#: Seconds between two computations.
_PERIOD_S: Final = 1.0
#: The same until there is something to show.
_FIRST_PERIOD_S: Final = 0.1


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


class Configure(Protocol):
    """Makes the request to monitor a process; raises CommandError where that makes no sense."""

    def __call__(self, pid: int, *, write_only: bool, by: str) -> Config: ...


class Session:
    """Monitors processes; a thread of it computes what is wanted and passes it on.

    :param targets: the processes; they are monitored already.
    :param configure: makes the request to monitor one of them in another way.
    :param write_only: whether only writes count at first.
    :param command: the command that was started, None where none was.
    """

    def __init__(
        self, targets: Sequence[Target], configure: Configure, write_only: bool, command: Command | None
    ) -> None:
        self._targets = {target.pid: target for target in targets}
        self._configure = configure
        self._write_only = write_only
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
            try:
                target.stop()
            except OSError as error:
                said.append(_sentence(error))
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
        if self._monitor_by(wanted, self._write_only):
            self.wanted = wanted

    def _toggle_writes(self) -> None:
        if self._monitor_by(self.wanted, not self._write_only):
            self._write_only = not self._write_only

    def _monitor_by(self, wanted: Wanted, write_only: bool) -> bool:
        """Monitor each process as the view ``wanted`` needs it; return whether that works."""
        for target in self._targets.values():
            by = BY.get(wanted.view, "") if target.pid == wanted.pid else ""
            try:
                config = self._configure(target.pid, write_only=write_only, by=by)
                if target.config == config or target.ended:
                    continue
                self.say(f"monitoring of process {target.pid} begins again, to count other accesses")
                if sentence := target.begin_again(config):
                    self.say(sentence)
            except (OSError, CommandError) as error:
                self.say(_sentence(error))
                return False
        return True

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
            return content if recording is None else evolve(content, heatmap=heatmap_of(recording, wanted))
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
            intervals=sum(target.aggregations * target.config.max_nr_accesses for target in targets),
            cpu=None if None in cpu or seconds <= 0 else sum(filter(None, cpu)) / seconds,
        )

    def _ended(self, target: Target) -> str:
        if target.error() is not None or not target.gone:
            return "monitoring ended"
        status = None if self._command is None else self._command.status()
        return "ended" if status is None else f"ended with status {status}"


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
