# SPDX-License-Identifier: GPL-2.0-only
"""The running machine, shared by all monitors of this process: several can monitor one process by faults.

A process that forks goes on with it; its child makes another one, because the kernel maps no ring of faults into it.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from kdamon.mm import Primitive

if TYPE_CHECKING:
    from kdamon.mm.linux.machine import LinuxMachine

__all__ = ["get_machine", "put_machine"]


class _Shared:
    """The machine and how many use it.

    :ivar pid: the process that has it.
    """

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self.machine: LinuxMachine | None = None
        self.users = 0


_shared = [_Shared()]


def _mine() -> _Shared:
    """That of this process; a parent's stays as it is, with a lock that may have been held."""
    if _shared[-1].pid != os.getpid():
        _shared.append(_Shared())
    return _shared[-1]


def get_machine() -> LinuxMachine:
    """The running machine; :func:`put_machine` gives it back.

    :raises OSError: EOPNOTSUPP /proc is missing or that of another PID namespace.
    """
    from kdamon.mm.linux.machine import linux_machine  # noqa: PLC0415 (other machines and reports do without)

    shared = _mine()
    with shared.lock:
        if shared.machine is None:
            shared.machine = linux_machine(Primitive.PAGE_FAULT)
        shared.users += 1
        return shared.machine


def put_machine() -> None:
    """Undo :func:`get_machine`; the last user closes the machine."""
    shared = _mine()
    with shared.lock:
        shared.users -= 1
        if not shared.users and shared.machine is not None:
            machine, shared.machine = shared.machine, None
            machine.close()
