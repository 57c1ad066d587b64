# SPDX-License-Identifier: GPL-2.0-only
"""``kdamon top``: a full screen that shows live which memory of processes is accessed."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kdamon.lib.capabilities import MONITORING
from kdamon.lib.file_limit import raise_file_limit
from kdamon_tools import interpreter
from kdamon_tools.child import Command
from kdamon_tools.commands.common import machine_when_needed
from kdamon_tools.commands.run import birth_of_process, by_what_works, check_rights, pidfd_of
from kdamon_tools.commands.run_checks import check_command_line, config_of
from kdamon_tools.errors import CommandError
from kdamon_tools.output.readable import readable
from kdamon_tools.output.terminal import use_colour
from kdamon_tools.privileges import capabilities_for, keep_only
from kdamon_tools.snapshot import Config
from kdamon_tools.stopping import StopSignals
from kdamon_tools.top.session import Session
from kdamon_tools.top.target import Target

if TYPE_CHECKING:
    from kdamon_tools.top.app import TopApp

__all__ = ["run"]

#: Processes at most: each has a kdamond, which takes a few percent of a CPU, in this process.
_MOST: Final = 16
#: Time limit in seconds for the end of monitoring.
_END_S: Final = 60.0
#: Log messages that are printed at the end.
_MESSAGES: Final = 1000


def run(arguments: argparse.Namespace) -> int:
    """Monitor and show, and return the exit status: the command's if it ended by itself, else 0."""
    pids = _check(arguments)
    app_of = _screen()
    machine = machine_when_needed()
    with ExitStack() as stack:
        stop = stack.enter_context(StopSignals())
        check_rights(config_of(_of_one(arguments, pids[0] if pids else None), 0), machine)
        births = {pid: birth_of_process(pid) for pid in pids}
        command = None
        if arguments.command:
            faults = machine if config_of(_of_one(arguments, None), 0).primitive == "page_fault" else None
            command = stack.enter_context(Command(arguments.command, dict(os.environ), faults, silent=True))
            births[command.pid] = None
        raise_file_limit()
        keep_only(*MONITORING, *(["CAP_KILL"] if command else []), *capabilities_for(Path("run.kdamon")))

        def configure(pid: int, *, write_only: bool, by: str) -> Config:
            one = argparse.Namespace(**{**vars(arguments), "write_only": write_only, "by": by})
            one.pid = None if command else pid
            check_command_line(one)
            return by_what_works(config_of(one, pid), one)

        targets = []
        for pid, birth in births.items():
            with pidfd_of(pid):
                config = configure(pid, write_only=arguments.write_only, by="")
                targets.append(Target(config, machine, birth))
        session = Session(targets, configure, arguments.write_only, command)
        said: list[str] = []
        with _monitored(targets, session, stop, said):
            interpreter.ready()
            _show(app_of, session, stop, arguments)
            if command is not None:
                command.released = targets[0].ended
        for sentence in said:
            print(f"kdamon: {readable(sentence)}", file=sys.stderr)
        _check_end(session)
        if command is not None and command.released:
            if left := command.left_running():
                print(f"kdamon: {left}", file=sys.stderr)
            return command.status() or 0
    return 0


def _check(arguments: argparse.Namespace) -> list[int]:
    """Reject what makes no sense; return the processes, each once."""
    pids = list(dict.fromkeys(pid for some in arguments.pids for pid in some))
    if bool(pids) == bool(arguments.command):
        raise CommandError("the target is missing: use either --pid PID, or -- and a command", 2)
    if len(pids) > _MOST:
        raise CommandError(f"{len(pids)} processes are too many: a screen has {_MOST} at most", 2)
    for given, option in ((arguments.ranges, "--range"), (arguments.tids, "--tids")):
        if given and len(pids) > 1:
            raise CommandError(f"{option} is about one process: name only one with --pid", 2)
    if arguments.ranges:
        arguments.ops = "fvaddr"
    for pid in pids or [None]:
        check_command_line(_of_one(arguments, pid))
    for stream, name in ((sys.stdin, "input"), (sys.stdout, "output"), (sys.stderr, "error")):
        if stream is None or not stream.isatty():
            raise CommandError(f"standard {name} is not a terminal: use kdamon run", 2)
    if os.environ.get("TERM", "dumb") == "dumb":
        raise CommandError("the terminal (TERM) has no full screen: use kdamon run", 2)
    return pids


def _of_one(arguments: argparse.Namespace, pid: int | None) -> argparse.Namespace:
    """The command line as if it named one process."""
    return argparse.Namespace(**{**vars(arguments), "pid": pid})


def _screen() -> type[TopApp]:
    try:
        from kdamon_tools.top.app import TopApp  # noqa: PLC0415 (an extra)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("textual", "rich"):
            raise
        raise CommandError("kdamon top needs textual: install it with pip install 'kdamon[tui]'") from error
    return TopApp


@contextmanager
def _monitored(targets: list[Target], session: Session, stop: StopSignals, said: list[str]) -> Iterator[None]:
    """Monitor within the block, and end even if a target cannot be released.

    :param said: gets sentences for the user, at the end.
    """
    try:
        for target in targets:
            target.begin()
        stop.protect()
        yield
    finally:
        try:
            if not stop.wait_for(lambda: said.extend(session.stop()), _END_S):
                raise CommandError("monitoring did not end: it took too long")
        finally:
            stop.let_through()


def _show(app_of: type[TopApp], session: Session, stop: StopSignals, arguments: argparse.Namespace) -> None:
    """Show the screen until the user, a signal or the time ends it."""
    deadline = time.monotonic() + arguments.seconds if arguments.seconds else float("inf")
    colour = use_colour(arguments.color, sys.stdout)
    with _no_color(not colour), _Messages() as messages:
        app = app_of(session, lambda: stop or session.failure or time.monotonic() >= deadline, colour)
        session.show, session.say = app.show, app.say
        messages.say = app.say
        session.start()
        app.run()
    if app.return_code:
        raise CommandError("the screen ended by an internal error")


@contextmanager
def _no_color(wanted: bool) -> Iterator[None]:
    """Let textual use no colours within the block, or use them, whatever the environment says."""
    before = os.environ.pop("NO_COLOR", None)
    if wanted:
        os.environ["NO_COLOR"] = "1"
    try:
        yield
    finally:
        os.environ.pop("NO_COLOR", None)
        if before is not None:
            os.environ["NO_COLOR"] = before


class _Messages(logging.Handler):
    """Shows log messages on the screen within the ``with`` block, and prints them after it."""

    def __init__(self) -> None:
        super().__init__()
        self.say: Any = lambda _: None
        self._kept: deque[logging.LogRecord] = deque(maxlen=_MESSAGES)

    def emit(self, record: logging.LogRecord) -> None:
        """Show a message, and keep it."""
        self._kept.append(record)
        if record.levelno >= logging.WARNING:
            self.say(record.getMessage())

    def __enter__(self) -> _Messages:
        root = logging.getLogger()
        self._before, root.handlers[:] = root.handlers[:], [self]
        return self

    def __exit__(self, *_: object) -> None:
        root = logging.getLogger()
        root.handlers[:] = self._before
        for record in self._kept:
            root.handle(record)


def _check_end(session: Session) -> None:
    """Raise CommandError where an error ended monitoring or what computes the screen."""
    for error in [*filter(None, [session.failure]), *session.errors()]:
        raise CommandError(f"monitoring ended by an internal error: {error!r}") from error
