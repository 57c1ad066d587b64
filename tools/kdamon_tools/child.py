# SPDX-License-Identifier: GPL-2.0-only
"""The monitored command: started on this process's terminal, and ended together with its descendants.

The command stays in this process's own process group. A command in a separate group would not receive Ctrl-C and
Ctrl-Z and could not read the terminal, unless kdamon made it the foreground group, as a shell does; a shell script that
runs kdamon would then lose the terminal if kdamon was killed. So the command's processes are identified by descent:
while it runs, this process adopts descendants whose parents end. Processes in a session of their own, such as daemons,
are meant to outlive the command and are left alone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Final

from kdamon_fs.mounts import set_child_subreaper
from kdamon_tools.process_tree import ProcessStat, descendants, read_stat, read_stats

if TYPE_CHECKING:
    from kdamon.mm.linux.machine import LinuxMachine

__all__ = ["Command"]

#: Time limits in seconds: from SIGTERM to SIGKILL, and from SIGKILL to the end of a process.
_GRACE_S: Final = 5.0
_LOOK_S: Final = 0.05
#: Time limit in seconds for processes that end together with the command.
_SETTLE_S: Final = 0.2
#: Maximum number of processes to name in a sentence.
_MOST_NAMES: Final = 5


class Command:
    """A command while the ``with`` block runs; none of its descendants in this session outlives the block.

    :param argv: the command and its arguments.
    :param environment: its environment.
    :param faults: monitors its page faults from the first instruction on; None: it is monitored in another way.
    :param silent: it reads nothing, and nothing that it prints is kept; else it has the streams of this process.
    :ivar released: set it after the command ended by itself: descendants that still run are left alone then.
    :raises OSError: on entering, it cannot be started.
    """

    def __init__(
        self, argv: Sequence[str], environment: dict[str, str], faults: LinuxMachine | None, silent: bool = False
    ) -> None:
        self._argv = list(argv)
        self._environment = environment
        self._faults = faults
        #: Its standard streams, None: those of this process.
        self._stream = subprocess.DEVNULL if silent else None
        self._adopting = False
        self._session = os.getsid(0)
        self.released = False

    def __enter__(self) -> Command:
        # A process with earlier children would adopt their descendants, too.
        self._adopting = not any(stat.parent == os.getpid() for stat in read_stats().values())
        if self._adopting:
            set_child_subreaper(True)
        try:
            self._process = self._start()
        except BaseException:
            self._stop_adopting()
            raise
        self.pid = self._process.pid
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        try:
            if not self.released:
                self._end()
        finally:
            self._stop_adopting()

    def _start(self) -> subprocess.Popen[bytes]:
        stream = self._stream
        if self._faults is None:
            return subprocess.Popen(self._argv, env=self._environment, stdin=stream, stdout=stream, stderr=stream)
        from kdamon.mm.inject.requests import launch  # noqa: PLC0415 (few need it)

        launched = launch(self._argv, env=self._environment, stdin=stream, stdout=stream, stderr=stream)
        # Otherwise it is opened like any other process, and that error names the obstacle.
        if launched.fd is not None:
            self._faults.adopt_userfaultfd(launched.pid, launched.fd)
        return launched

    def _stop_adopting(self) -> None:
        if self._adopting:
            set_child_subreaper(False)
            self._adopting = False

    def status(self) -> int | None:
        """Its exit status, 128 + number for a signal; None while it runs."""
        code = self._process.poll()
        return 128 - code if code is not None and code < 0 else code

    def family(self) -> list[ProcessStat]:
        """The command and its descendants in its session; reaps those that ended."""
        stats = read_stats()
        adopted = [stat.pid for stat in stats.values() if stat.parent == os.getpid()] if self._adopting else []
        # Once it was reaped, another process may have its number.
        roots = [self.pid, *adopted] if self._process.returncode is None else adopted
        # It may have created a session itself, as setsid(1) does.
        sessions = {self._session, self.pid}
        members = [stat for stat in descendants(stats, roots) if stat.session in sessions]
        for stat in members:
            if stat.ended and stat.pid in adopted and stat.pid != self.pid:
                with suppress(ChildProcessError):
                    os.waitpid(stat.pid, os.WNOHANG)
        return members

    def left_running(self) -> str:
        """A sentence about descendants that still run after the command ended; empty if there are none."""
        known = {stat.identity for stat in self._running(())}
        if known:
            # The rest of a pipeline, say, needs a moment.
            time.sleep(_SETTLE_S)
        left = [f"{stat.pid} ({stat.name})" for stat in self._running(()) if stat.identity in known]
        if not left:
            return ""
        others = f" and {len(left) - _MOST_NAMES} others" if len(left) > _MOST_NAMES else ""
        return f"the command ended and left running: {', '.join(left[:_MOST_NAMES])}{others}"

    def _end(self) -> None:
        """Terminate all of its processes, and kill those that do not end."""
        known: set[tuple[int, int]] = set()
        for number in (signal.SIGTERM, signal.SIGKILL):
            give_up = time.monotonic() + _GRACE_S
            with suppress(KeyboardInterrupt):
                while time.monotonic() < give_up:
                    running = self._running(known)
                    if not running:
                        return
                    for stat in running:
                        # Processes started meanwhile get SIGTERM as well, each once; SIGKILL is repeated.
                        if number == signal.SIGKILL or stat.identity not in known:
                            known.add(stat.identity)
                            _send(stat, number)
                    time.sleep(_LOOK_S)

    def _running(self, known: Iterable[tuple[int, int]]) -> list[ProcessStat]:
        """The family, and those of ``known`` that are no longer descendants."""
        found = {stat.identity: stat for stat in self.family()}
        self._process.poll()
        for identity in known:
            if identity not in found and (stat := read_stat(identity[0])) is not None and stat.identity == identity:
                found[identity] = stat
        return [stat for stat in found.values() if not stat.ended]


def _send(stat: ProcessStat, number: signal.Signals) -> None:
    """Send signal ``number`` to the process that ``stat`` identifies, and SIGCONT so that a stopped one handles it."""
    try:
        pidfd = os.pidfd_open(stat.pid)
    except OSError:
        return
    try:
        now = read_stat(stat.pid)
        if now is not None and now.identity == stat.identity:
            with suppress(OSError):
                signal.pidfd_send_signal(pidfd, number)
                signal.pidfd_send_signal(pidfd, signal.SIGCONT)
    finally:
        os.close(pidfd)
