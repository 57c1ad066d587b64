# SPDX-License-Identifier: GPL-2.0-only
"""The running machine, shared by all monitors of this process: several can monitor one process by faults."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdamon.mm.linux.machine import LinuxMachine

__all__ = ["get_machine", "put_machine"]

_lock = threading.Lock()
#: The machine and how many use it.
_shared: list[LinuxMachine] = []
_users = [0]


def get_machine() -> LinuxMachine:
    """The running machine; :func:`put_machine` gives it back.

    :raises OSError: EOPNOTSUPP /proc is missing or that of another PID namespace.
    """
    from kdamon.mm.linux.machine import linux_machine  # noqa: PLC0415 (other machines and reports do without)

    with _lock:
        if not _shared:
            _shared.append(linux_machine("page_fault"))
        _users[0] += 1
        return _shared[0]


def put_machine() -> None:
    """Undo :func:`get_machine`; the last user closes the machine."""
    with _lock:
        _users[0] -= 1
        if not _users[0]:
            _shared.pop().close()
