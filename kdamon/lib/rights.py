# SPDX-License-Identifier: GPL-2.0-only
"""The rights of this process, and the sentences about a refusal: the reason and the remedy, true for this situation.

A capability counts in one user namespace. Most of what monitoring needs, the kernel allows in the machine's first one
only, whatever capabilities a container or ``unshare -U`` gives in another one.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
from collections.abc import Sequence
from typing import Final

from kdamon.lib.capabilities import number_of
from kdamon.lib.process_status import status_fields

__all__ = [
    "FIRST",
    "OF_PROCESS",
    "OTHER_PROCESS",
    "OWN",
    "MissingRights",
    "in_first_user_namespace",
    "locked_down",
    "may",
    "missing_capability",
    "needs_linux",
    "owns_mount_namespace",
    "refusal",
    "refusal_to_trace",
    "refused_program",
]

log = logging.getLogger("kdamon")

#: Capabilities that the kernel accepts instead of one.
_AS_GOOD: Final = {
    "CAP_DAC_READ_SEARCH": "CAP_DAC_OVERRIDE",
    "CAP_PERFMON": "CAP_SYS_ADMIN",
    "CAP_BPF": "CAP_SYS_ADMIN",
}

#: Where a capability counts: in the machine's first user namespace, in that of the process that is read, or in
#: this process's own.
FIRST: Final = "the machine's first user namespace"
OF_PROCESS: Final = "the user namespace of the process that is monitored"
OWN: Final = "its own user namespace"

#: A way out where a process is refused.
OTHER_PROCESS: Final = "choose a process of this user and user namespace that has no more capabilities"

#: The number of the first user namespace's file (PROC_USER_INIT_INO).
_FIRST_NAMESPACE: Final = 0xEFFFFFFD
_NS_GET_USERNS: Final = 0xB701
_PTRACE_SCOPE: Final = "/proc/sys/kernel/yama/ptrace_scope"
_LOCKDOWN: Final = "/sys/kernel/security/lockdown"


class MissingRights(PermissionError):
    """A refusal because this process has not the rights of root, or because root itself lacks some here.

    :param what: the impossible operation and "needs", the beginning of the sentence.
    :param capabilities: what is missing; empty where no capability stands for it.
    :param otherwise: another way out, which follows "or"; empty if there is none.
    """

    def __init__(self, what: str, capabilities: Sequence[str] = (), otherwise: str = "") -> None:
        self.what = what
        self.capabilities = tuple(capabilities)
        self.otherwise = otherwise
        or_else = f", or {otherwise}" if otherwise else ""
        if not capabilities:
            sentence = f"{what}; run as root{or_else}"
        elif os.geteuid() == 0:
            sentence = (
                f"{self.needs()}, which root lacks here; start kdamon with {_them(capabilities)}, as by a container's "
                f"--cap-add{or_else}"
            )
        else:
            sentence = f"{self.needs()}; run as root or give {_them(capabilities)}{or_else}"
        super().__init__(errno.EPERM, sentence)

    def needs(self) -> str:
        """The problem, without the remedy."""
        return f"{self.what} {_and(self.capabilities)}" if self.capabilities else self.what

    def or_else(self, otherwise: str) -> MissingRights:
        """The same with another way out."""
        return MissingRights(
            self.what, self.capabilities, f"{self.otherwise}, or {otherwise}" if self.otherwise else otherwise
        )


def _status(name: str) -> str:
    """A line of this thread's status, "" where this kernel has none."""
    with open("/proc/thread-self/status", "rb") as file:
        return status_fields(file.read()).get(name, "")


def missing_capability(*names: str) -> list[str]:
    """The ``names`` (``CAP_...``) that this thread lacks, and that nothing equivalent in its namespace replaces."""
    effective = int(_status("CapEff"), 16)

    def has(name: str) -> bool:
        return bool(effective >> number_of(name) & 1)

    return [name for name in names if not has(name) and not has(_AS_GOOD.get(name, name))]


def in_first_user_namespace() -> bool:
    """Return whether this process is in the machine's first user namespace."""
    try:
        return os.stat("/proc/self/ns/user").st_ino == _FIRST_NAMESPACE
    except FileNotFoundError:
        # A kernel that has no other ones.
        return True


def may(*capabilities: str) -> bool:
    """Return whether this process has all ``capabilities`` in the machine's first user namespace."""
    return in_first_user_namespace() and not missing_capability(*capabilities)


def owns_mount_namespace() -> bool:
    """Return whether capabilities in this process's user namespace count in its mount namespace."""
    namespace = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.close(fcntl.ioctl(namespace, _NS_GET_USERNS))
    except PermissionError:
        # It belongs to one above.
        return False
    except OSError as error:
        # A kernel without user namespaces.
        log.debug("the owner of the mount namespace is not known: %s", error)
    finally:
        os.close(namespace)
    return True


def locked_down() -> bool:
    """Return whether the kernel lets nothing read its memory (lockdown=confidentiality)."""
    try:
        with open(_LOCKDOWN, encoding="utf-8") as lockdown:
            return "[confidentiality]" in lockdown.read()
    except OSError:
        return False


def refusal(what: str, tried: str, *capabilities: str, where: str = FIRST, otherwise: str = "") -> OSError:
    """The reason why ``tried`` was refused to this process, and what to do about it.

    :param what: the impossible operation and "needs", the beginning of the sentence.
    :param tried: the call or the file that was refused.
    :param capabilities: what it takes.
    :param where: where these count, :data:`FIRST`, :data:`OF_PROCESS` or :data:`OWN`.
    :param otherwise: another way out, which follows "or".
    :returns: EPERM with "what is wrong; what to do"; :class:`MissingRights` where root has what is missing.
    """
    missing = missing_capability(*capabilities)
    or_else = f", or {otherwise}" if otherwise else ""
    if where != OWN and not in_first_user_namespace():
        return OSError(
            errno.EPERM,
            f"{what} {_and(missing or capabilities)} in {where}, and this process is in another one; run kdamon there, "
            f"outside of the container or of 'unshare -U'{or_else}",
        )
    if missing:
        return MissingRights(what, missing, otherwise)
    return OSError(errno.EPERM, f"{what} {tried}, which is refused although {_in_spite(capabilities)}{or_else}")


def refusal_to_trace(pid: int) -> OSError:
    """The reason why no thread of process ``pid`` may be stopped, and what to do about it."""
    own = OTHER_PROCESS
    try:
        with open(_PTRACE_SCOPE, encoding="ascii") as file:
            scope = file.read().strip()
    except OSError:
        scope = "0"
    if scope != "0":
        own += f", with 0 instead of {scope} in {_PTRACE_SCOPE}"
    return refusal(
        f"stopping a thread of process {pid} needs",
        f"/proc/{pid}/mem",
        *("CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE"),
        where=OF_PROCESS,
        otherwise=own,
    )


def _in_spite(capabilities: Sequence[str]) -> str:
    has = f"this process has {_and(capabilities)}"
    if _status("Seccomp") in ("", "0"):
        return f"{has} and no seccomp filter; look for the rule of a security module (SELinux, AppArmor) in its log"
    return f"{has}; let the seccomp filter that is in force, as a container's, allow it"


def refused_program(what: str, error: OSError) -> OSError:
    """The reason why a BPF program, or a resource that it needs, is not available, and the remedy.

    :param what: as for :func:`refusal`.
    :param error: the failure of the attempt.
    """
    tried = (error.strerror or "").partition(":")[0].split(" ")[0]
    needed = ("CAP_BPF", "CAP_PERFMON")
    if not may(*needed):
        return refusal(what, tried, *needed)
    if locked_down():
        return OSError(
            errno.EPERM,
            f"{what} programs that read kernel memory, and the kernel is locked down (lockdown=confidentiality); boot "
            "with lockdown=integrity or none",
        )
    if error.errno == errno.EPERM:
        return refusal(what, tried, *needed)
    return OSError(
        errno.EOPNOTSUPP,
        f"{what} a BPF program that this kernel does not accept ({error.strerror}); {needs_linux('5.10')}",
    )


def needs_linux(release: str) -> str:
    """The remedy where the kernel lacks something that Linux ``release``, such as ``6.9``, introduced.

    A newer kernel that lacks it was built without it, or a system call filter hides it.
    """
    running = os.uname().release
    if _numbers(running) < _numbers(release):
        return f"Linux {release} or later is needed"
    if _status("Seccomp") in ("", "0"):
        return f"Linux has it since {release}, and this one ({running}) was built without it"
    return f"Linux has it since {release}: a seccomp filter, as a container's, may hide it and must allow it"


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", release)[:2]))


def _and(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _them(names: Sequence[str]) -> str:
    return "that capability" if len(names) == 1 else "these capabilities"
