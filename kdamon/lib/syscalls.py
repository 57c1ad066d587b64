# SPDX-License-Identifier: GPL-2.0-only
"""System calls that Python has no function for: through the C library, with errno as an exception.

The only place for them, except for the programs that run alone under ``python -I -S`` and cannot import this package:
:mod:`kdamon.mm.inject.helper`, :mod:`kdamon.mm.apart.madvise_helper` and :mod:`kdamon.lib.watcher` have their own.
Nothing is loaded before the first call. All calls let other Python threads run.
"""

from __future__ import annotations

import ctypes
import functools
import os
from typing import Any, Final

__all__ = [
    "NR_BPF",
    "NR_CACHESTAT",
    "NR_FSCONFIG",
    "NR_FSMOUNT",
    "NR_FSOPEN",
    "NR_FUTEX",
    "NR_GETPID",
    "NR_IOCTL",
    "NR_MADVISE",
    "NR_MOVE_MOUNT",
    "NR_MOVE_PAGES",
    "NR_PERF_EVENT_OPEN",
    "NR_PIDFD_OPEN",
    "NR_PROCESS_MADVISE",
    "NR_PROCESS_VM_WRITEV",
    "NR_USERFAULTFD",
    "call",
    "checked",
    "libc",
    "prctl",
    "syscall",
]

NR_IOCTL: Final = 16
NR_MADVISE: Final = 28
NR_GETPID: Final = 39
NR_FUTEX: Final = 202
NR_MOVE_PAGES: Final = 279
NR_PERF_EVENT_OPEN: Final = 298
NR_PROCESS_VM_WRITEV: Final = 311
NR_BPF: Final = 321
NR_USERFAULTFD: Final = 323
# From here on the numbers are those of every architecture but alpha.
NR_MOVE_MOUNT: Final = 429
NR_FSOPEN: Final = 430
NR_FSCONFIG: Final = 431
NR_FSMOUNT: Final = 432
NR_PIDFD_OPEN: Final = 434
NR_PROCESS_MADVISE: Final = 440
NR_CACHESTAT: Final = 451


@functools.cache
def libc() -> ctypes.CDLL:
    """The C library that is loaded in this process already."""
    library = ctypes.CDLL(None, use_errno=True)
    library.syscall.restype = ctypes.c_long
    return library


def syscall(number: int, *arguments: Any) -> int:
    """``syscall(2)``.

    :param arguments: integers, bytes or None as pointers, and whatever else ctypes passes.
    :returns: the result of the system call, -errno when it failed.
    """
    plain = (ctypes.c_long(value) if isinstance(value, int) else value for value in arguments)
    result = int(libc().syscall(ctypes.c_long(number), *plain))
    return result if result >= 0 else -ctypes.get_errno()


def call(function: str, *arguments: Any) -> int:
    """A system call that the C library has a function for.

    :param function: its name, such as ``umount2``; it returns an ``int``.
    :param arguments: integers of type ``int``, bytes or None as pointers, and whatever else ctypes passes.
    :returns: its result, -errno when it failed.
    """
    result = int(getattr(libc(), function)(*arguments))
    return result if result >= 0 else -ctypes.get_errno()


def prctl(option: int, *values: int) -> int:
    """``prctl(2)`` with up to four more arguments; returns its result, -errno when it failed."""
    return call("prctl", option, *(ctypes.c_ulong(value) for value in (*values, 0, 0, 0, 0)[:4]))


def checked(result: int, what: str = "") -> int:
    """``result`` of a call above, unless it failed.

    :param what: what failed, for the sentence; without it the sentence is the system's alone.
    :raises OSError: with the call's errno.
    """
    if result < 0:
        reason = os.strerror(-result)
        raise OSError(-result, f"{what}: {reason}" if what else reason)
    return result
