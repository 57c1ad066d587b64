# SPDX-License-Identifier: GPL-2.0-only
"""Capabilities of threads: their names, those that a thread has, and how to give them up (``capabilities(7)``).

A thread hands its capabilities to the threads and programs that it starts; no thread can change another one's. So a
process gives capabilities up before it starts threads, or each thread does it for itself.
"""

from __future__ import annotations

import ctypes
import errno
import logging
from typing import Final

from kdamon.lib.syscalls import call, checked, prctl

__all__ = ["MONITORING", "give_up_capabilities", "number_of"]

log = logging.getLogger("kdamon")

#: All of them, each at the place of its number (include/uapi/linux/capability.h).
_NAMES: Final = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
    "CHECKPOINT_RESTORE",
)  # fmt: skip

_CAP_SYS_PTRACE: Final = 1 << _NAMES.index("SYS_PTRACE")

#: The capabilities that are needed to read other processes and to act on their memory:
#: their files in /proc, one of which is written to; their memory; advice about it, and migration; page frames, mounts;
#: programs that walk page tables, and before Linux 5.11 the memory of those programs.
MONITORING: Final = (
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_SYS_PTRACE",
    "CAP_SYS_NICE",
    "CAP_SYS_ADMIN",
    "CAP_BPF",
    "CAP_PERFMON",
    "CAP_SYS_RESOURCE",
)

_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_LOWER: Final = 3
#: With this version the kernel takes 64 bits of each set, in two pieces.
_LINUX_CAPABILITY_VERSION_3: Final = 0x20080522


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Piece(ctypes.Structure):
    _fields_ = [("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32)]


def number_of(name: str) -> int:
    """The number of capability ``name`` (``CAP_...``)."""
    return _NAMES.index(name.removeprefix("CAP_"))


def give_up_capabilities(*keep: str, new_privileges: bool = False) -> None:
    """Give up all capabilities but ``keep``, of the calling thread and of what it starts from now on, for good.

    What is given up leaves all sets: effective, permitted, inheritable, ambient, and bounding. Where the system refuses
    that (a filter of system calls, say), a log line says so.

    If CAP_SYS_PTRACE is to be kept but the thread does not have it, the thread keeps all that it has: without
    CAP_SYS_PTRACE a process may read only those processes of its user that have no more capabilities than itself.

    :param keep: names, ``CAP_...``, any of them more than once; one that the thread does not have it does not get.
    :param new_privileges: whether programs that it starts may gain privileges, as set-user-ID programs do.
    """
    kept = sum({1 << number_of(name) for name in keep})
    try:
        if not new_privileges:
            checked(prctl(_PR_SET_NO_NEW_PRIVS, 1))
        pieces = _get()
        if kept & ~(pieces[0].effective | pieces[1].effective << 32) & _CAP_SYS_PTRACE:
            return
        for number in range(64):
            if not kept >> number & 1 and not _leave_sets_of_programs(number):
                break
        for place, piece in enumerate(pieces):
            mask = kept >> 32 * place & 0xFFFFFFFF
            piece.effective &= mask
            piece.permitted &= mask
            piece.inheritable &= mask
        checked(call("capset", ctypes.byref(_header()), pieces))
    except OSError as error:
        log.warning("capabilities that are not needed stay: %s", error.strerror)


def _leave_sets_of_programs(number: int) -> bool:
    """Take a capability away from programs that the thread starts; False: there is none of that number."""
    try:
        checked(prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_LOWER, number))
        checked(prctl(_PR_CAPBSET_DROP, number))
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        # Without CAP_SETPCAP the bounding set stays, but gives nothing to those that may gain nothing.
        if error.errno != errno.EPERM:
            raise
    return True


def _header() -> _Header:
    return _Header(_LINUX_CAPABILITY_VERSION_3, 0)


def _get() -> ctypes.Array[_Piece]:
    pieces = (_Piece * 2)()
    checked(call("capget", ctypes.byref(_header()), pieces))
    return pieces
