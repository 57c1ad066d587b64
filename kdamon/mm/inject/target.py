# SPDX-License-Identifier: GPL-2.0-only
"""Checks a process before a thread of it is stopped to run system calls (:mod:`kdamon.mm.inject`).

Processes to which a stop could do harm are refused here, by their files in /proc. Only the helper reads their memory
and their program (:mod:`kdamon.mm.inject.gadgets`): these may be on a file system that never answers.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import sys
from collections.abc import Collection, Iterator
from typing import Any, Final

from kdamon.lib.process_status import is_kernel_thread, status_fields
from kdamon.lib.rights import refusal_to_trace
from kdamon.mm.proc.cgroup import frozen, memory_left
from kdamon.mm.proc.maps import NamedMapping

__all__ = ["Momentary", "Target"]

#: Mappings to look into first, since a program keeps them for all its life.
_FIRST: Final = re.compile(r"/(?:libc[.-]|ld[.-]|ld-linux)[^/]*$|^\[vdso\]$")

#: The largest number of code mappings that are searched.
_TEXTS: Final = 4096
#: As many threads are tried at once; one of them can nearly always be stopped.
_CANDIDATES: Final = 64
#: Private memory that may be written to, as /proc/PID/maps has it.
_WRITABLE: Final = ("rw-p", "rwxp")
#: Bytes that the kernel keeps free below the first thread's stack (stack_guard_gap).
_STACK_GAP: Final = 1 << 20
#: Bytes that a control group must have left: a thread, what the kernel keeps of it, and what it has set aside for each
#: CPU. It takes some 30 KiB.
_MEMORY: Final = 1 << 20
#: Functions of the kernel in which a thread sleeps that a control group's freezer stopped.
_FREEZER: Final = (b"get_signal", b"do_freezer_trap", b"__refrigerator")

_INSTEAD: Final = "monitor it by page_table instead"


class Momentary(OSError):
    """A refusal that may be over in a moment: another process traces this one, perhaps another kdamon; threads end."""


class Target:
    """A process whose threads can run system calls for kdamon, as far as this is visible without stopping one.

    :param pid: the process.
    :param stack: closes what this object opens.
    :param unsuitable: threads that are not to be tried.
    :raises OSError: ESRCH, EPERM, EBUSY, EOPNOTSUPP as :func:`kdamon.mm.inject.requests.take_userfaultfd`.
    """

    def __init__(self, pid: int, stack: contextlib.ExitStack, unsuitable: Collection[int] = ()) -> None:
        self._pid = pid
        self._unsuitable = unsuitable
        with _explained(pid):
            #: Open /proc/PID.
            self.directory = directory = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, directory)
            status = _status(directory, "status")
            of_kernel = is_kernel_thread(_read(directory, "stat"))
        if int(status["Tgid"]) != pid:
            raise OSError(errno.ESRCH, f"{pid} is a thread of process {status['Tgid']}; name the process")
        if of_kernel:
            raise OSError(errno.ESRCH, f"process {pid} is a kernel thread without memory of its own; name another one")
        with _explained(pid):
            self._stack_limit = _limit(_read(directory, "limits"), b"Max stack size ")
            groups = os.fsdecode(_read(directory, "cgroup"))
        if frozen(groups):
            raise _frozen(pid)
        if memory_left(groups) < _MEMORY:
            raise OSError(
                errno.EBUSY,
                f"process {pid} has used up the memory of its control group and one more thread might kill it; "
                f"raise that limit or {_INSTEAD}",
            )
        #: The threads to try, none when all of them are unsuitable.
        self.tids = self._threads(directory)
        text = self._open(stack)
        # A name may hold any character but a newline.
        self._mappings = [NamedMapping.parse(line) for line in text.split(b"\n")[:-1]]

    def job(self) -> dict[str, Any]:
        """The information for the helper.

        :returns: pid; tids, the threads to try; program, the name of its file below :attr:`directory`; texts, start and
            end of its code, what is nearly always the right one first; stack, start and end of the first thread's and
            to how many bytes it may grow; anonymous, start and end of private writable memory without a file.
        """
        texts = [
            (mapping.start, mapping.end)
            for mapping in sorted(self._mappings, key=lambda mapping: not _FIRST.search(mapping.name))
            if mapping.permissions == "r-xp" and (mapping.inode or mapping.name == "[vdso]")
        ]
        return {
            "pid": self._pid,
            "tids": self.tids,
            "program": self._program,
            "texts": texts[:_TEXTS],
            "stack": self._stack(),
            "anonymous": self._anonymous(),
        }

    def _threads(self, directory: int) -> list[int]:
        """Some threads to try, those that sleep first."""
        pid = self._pid
        found: list[int] = []
        sleeping = 0
        checked = False
        refusal: OSError | None = None
        for tid in self._listed(directory):
            try:
                status = _status(directory, f"task/{tid}/status")
                if status["State"][0] in "ZX":
                    continue
                _check_state(pid, status)
                _check_thread(pid, status)
                if _sleeps_frozen(directory, tid, status):
                    raise _frozen(pid)
            except (FileNotFoundError, ProcessLookupError):
                continue
            except OSError as error:
                # A tracer or a stop concerns the process as a whole.
                if error.errno == errno.EBUSY:
                    raise
                refusal = error
                continue
            checked = True
            if tid in self._unsuitable:
                continue
            asleep = status["State"][0] == "S"
            found.insert(sleeping if asleep else len(found), tid)
            sleeping += asleep
            if sleeping == _CANDIDATES:
                break
        if not checked:
            raise refusal or self._without_threads()
        return found[:_CANDIDATES]

    def _without_threads(self) -> OSError:
        """The error for a process of which only ended threads were found."""
        with _explained(self._pid):
            # A listing may miss a thread that another one started just before it ended. The number never does.
            threads = int(_status(self.directory, "status")["Threads"])
        return _ended(self._pid) if threads <= 1 else _short_lived(self._pid)

    def _listed(self, directory: int) -> list[int]:
        """All threads, the first one of the process first."""
        with _explained(self._pid):
            listing = os.open("task", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
            try:
                tids = sorted(int(name) for name in os.listdir(listing))
            finally:
                os.close(listing)
        tids.sort(key=lambda tid: tid != self._pid)
        return tids

    def _open(self, stack: contextlib.ExitStack) -> bytes:
        """Open what shows the memory, by a living thread: the first one may have ended, and have none any more.

        :returns: what /proc/PID/maps has.
        """
        for tid in self._listed(self.directory):
            try:
                with _explained(self._pid):
                    #: Open /proc/PID/mem. It stays this program's: after an exec() nothing is accessed by it.
                    self.memory = os.open(f"task/{tid}/mem", os.O_RDWR | os.O_CLOEXEC, dir_fd=self.directory)
                    stack.callback(os.close, self.memory)
                    text = _read(self.directory, f"task/{tid}/maps")
            except ProcessLookupError:
                continue
            if text:
                self._program = f"task/{tid}/exe"
                return text
        raise _short_lived(self._pid)

    def _stack(self) -> tuple[int, int, int]:
        """The first thread's stack: start, end, and bytes to which it may grow."""
        for before, mapping in itertools.pairwise([NamedMapping(0, 0, "", 0, 0, ""), *self._mappings]):
            if mapping.name == "[stack]" and mapping.permissions in _WRITABLE:
                room = mapping.end - before.end - _STACK_GAP
                return mapping.start, mapping.end, min(self._stack_limit, room)
        return 0, 0, 0

    def _anonymous(self) -> list[tuple[int, int]]:
        """Memory in which a page that is not there holds nothing: start and end of neighbours together."""
        found: list[tuple[int, int]] = []
        for mapping in self._mappings:
            if mapping.permissions not in _WRITABLE or mapping.inode:
                continue
            start = found.pop()[0] if found and found[-1][1] == mapping.start else mapping.start
            found.append((start, mapping.end))
        return found


@contextlib.contextmanager
def _explained(pid: int) -> Iterator[None]:
    """Turn a refusal of the kernel into a sentence."""
    try:
        yield
    except (FileNotFoundError, ProcessLookupError):
        raise _ended(pid) from None
    except PermissionError as error:
        raise refusal_to_trace(pid) from error


def _ended(pid: int) -> OSError:
    return OSError(errno.ESRCH, f"process {pid} ended; name a running one")


def _short_lived(pid: int) -> OSError:
    return Momentary(errno.EBUSY, f"the threads of process {pid} end during the check; {_INSTEAD}")


def _frozen(pid: int) -> OSError:
    return OSError(errno.EBUSY, f"process {pid} is frozen with its control group; thaw that and try again")


def _sleeps_frozen(directory: int, tid: int, status: dict[str, str]) -> bool:
    """Return whether a thread sleeps where the freezer has it sleep, also where its control group cannot be seen."""
    # A kernel without names of its functions has no such file.
    with contextlib.suppress(FileNotFoundError):
        return status["State"][0] in "SD" and _read(directory, f"task/{tid}/wchan") in _FREEZER
    return False


def _read(directory: int, name: str) -> bytes:
    with open(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory), "rb") as file:
        return file.read()


def _limit(contents: bytes, name: bytes) -> int:
    """The soft limit of a name in /proc/PID/limits."""
    words = next((line[len(name) :].split() for line in contents.split(b"\n") if line.startswith(name)), [b"0"])
    return sys.maxsize if words[0] == b"unlimited" else int(words[0])


def _status(directory: int, name: str) -> dict[str, str]:
    return status_fields(_read(directory, name))


def _check_state(pid: int, status: dict[str, str]) -> None:
    """Refuse a process that is traced or stopped, by the status of a thread."""
    if status["TracerPid"] != "0":
        raise Momentary(
            errno.EBUSY, f"process {pid} is traced by process {status['TracerPid']} already; end that one first"
        )
    if status["State"][0] in "Tt":
        raise OSError(errno.EBUSY, f"process {pid} is stopped; continue it (kill -CONT {pid}) and try again")


def _check_thread(pid: int, status: dict[str, str]) -> None:
    """Refuse a thread that its status shows to be unsafe."""
    if status.get("Seccomp", "0") != "0":
        raise OSError(
            errno.EPERM,
            f"process {pid} filters its system calls (seccomp), and one more might kill it; {_INSTEAD}",
        )
    if "shstk" in status.get("x86_Thread_features", "").split():
        raise OSError(errno.EOPNOTSUPP, f"process {pid} has a shadow stack, which forbids injected calls; {_INSTEAD}")
