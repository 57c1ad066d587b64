# SPDX-License-Identifier: GPL-2.0-only
"""Checks whether processes of this and of other users can be monitored, as ``kdamon run`` would do it.

A part of :mod:`kdamon.mm.doctor`. A process of this user may work where another user's does not, and not only because
of missing rights: so both are tried, on processes made for the test.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Final, TypeVar

from kdamon.lib.process_status import status_fields
from kdamon.lib.rights import may, refusal_to_trace
from kdamon.mm import Primitive
from kdamon.mm.apart.looked_at import looking_at
from kdamon.mm.apart.objects import Apart, HeldUpError
from kdamon.mm.doctor.schemes import loaded_child
from kdamon.mm.linux.machine import LinuxMachine, linux_machine
from kdamon.mm.proc.pid_namespace import in_first_pid_namespace
from kdamon.mm.proc.process_files import ProcessFiles

__all__ = ["Refusals", "refusals"]

_NOBODY: Final = 65534
#: Processes that block every read of their memory, before no others are tried.
_HELD_UP: Final = 4
_PRIMITIVES: Final = (Primitive.PAGE_TABLE, Primitive.PAGE_FAULT)

_What = TypeVar("_What")

#: For each primitive, why a process cannot be monitored by it; None where it can.
Refusals = dict[str, OSError | None]


def refusals() -> tuple[Refusals, Refusals]:
    """Try each primitive on a process of this user, and on one of another user."""
    with closing(linux_machine(Primitive.PAGE_FAULT)) as machine, _quietly():
        with loaded_child() as pid:
            own = _tried(machine, pid)
        try:
            # If this process runs as nobody, it needs another one.
            with loaded_child(_NOBODY if os.geteuid() != _NOBODY else _NOBODY - 1) as pid:
                return own, _apart("tried", pid)
        except (OSError, ValueError, HeldUpError):
            # Making such a process needs a right of its own: without it an existing one is only read.
            return own, _looked_at(own)


class Attempts:
    """The part that runs in a helper process, because other users' processes may let it wait for ever."""

    def __init__(self) -> None:
        self._machine = linux_machine(Primitive.PAGE_FAULT)

    def tried(self, pid: int) -> Refusals:
        """Try each primitive on process ``pid``."""
        looking_at(pid)
        return _tried(self._machine, pid)

    def looked_at(self, pid: int) -> Refusals:
        """As :meth:`tried`, but do nothing to the process."""
        looking_at(pid)
        page_table = _refusal(lambda pid: self._machine.get_task(pid, Primitive.PAGE_TABLE).put(), pid)
        return {Primitive.PAGE_TABLE: page_table, Primitive.PAGE_FAULT: _refusal(_open_memory, pid)}


def _apart(method: str, pid: int) -> Refusals:
    found: Refusals
    if not may("CAP_SYS_PTRACE"):
        # The kernel refuses it before anything waits.
        found = getattr(Attempts(), method)(pid)
        return found
    attempts = Apart(__name__, "Attempts")
    try:
        found = attempts.call(method, pid)
        return found
    finally:
        attempts.close()


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Log no warnings: another line of the doctor names the requirement for faults with thread and CPU."""
    log = logging.getLogger("kdamon")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _tried(machine: LinuxMachine, pid: int) -> Refusals:
    """The first steps of :class:`kdamon.Monitor`."""
    return {name: _refusal(lambda name: machine.get_task(pid, name).put(), name) for name in _PRIMITIVES}


def _refusal(attempt: Callable[[_What], None], what: _What) -> OSError | None:
    try:
        attempt(what)
    except OSError as error:
        return error
    return None


def _looked_at(own: Refusals) -> Refusals:
    held_up = 0
    for pid in _strangers():
        try:
            found = _apart("looked_at", pid)
        except HeldUpError:
            held_up += 1
            if held_up >= _HELD_UP:
                break
            continue
        page_table = found[Primitive.PAGE_TABLE]
        if (page_table is None or page_table.errno != errno.EBUSY) and os.path.exists(f"/proc/{pid}"):
            return {**found, Primitive.PAGE_FAULT: own[Primitive.PAGE_FAULT] or found[Primitive.PAGE_FAULT]}
    return own


def _strangers() -> Iterator[int]:
    """Processes of other users; after them those of this user that are in another user namespace or may do more."""
    alike = []
    for name in sorted(filter(str.isdecimal, os.listdir("/proc")), key=int):
        with contextlib.suppress(OSError):
            status = _status(name)
            # The machine's first process may have a protection of its own.
            if "VmSize" not in status or (name == "1" and in_first_pid_namespace()):
                continue
            if int(status["Uid"].split()[1]) != os.geteuid():
                yield int(name)
            elif int(status["CapPrm"], 16) & ~int(_status("self")["CapPrm"], 16) or not _in_own_user_namespace(name):
                alike.append(int(name))
    yield from alike


def _in_own_user_namespace(name: str) -> bool:
    try:
        return os.path.samestat(os.stat(f"/proc/{name}/ns/user"), os.stat("/proc/self/ns/user"))
    except PermissionError:
        # Of a process in it, this user could see it.
        return False


def _status(name: str) -> dict[str, str]:
    with open(f"/proc/{name}/status", "rb") as file:
        return status_fields(file.read())


def _open_memory(pid: int) -> None:
    """The steps of page_fault before it stops a thread of the process."""
    directory = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        ProcessFiles(directory).close()
        os.close(os.open("mem", os.O_RDWR | os.O_CLOEXEC, dir_fd=directory))
    except PermissionError:
        raise refusal_to_trace(pid) from None
    finally:
        os.close(directory)
