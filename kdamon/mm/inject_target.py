# SPDX-License-Identifier: GPL-2.0-only
"""What must be known of a process before a thread of it may be stopped to run system calls (:mod:`kdamon.mm.inject`).

Whatever could do harm to the process is refused here, by what /proc and its program file show.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import struct
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from kdamon.mm.rights import refusal_to_trace

__all__ = ["Target", "Traced"]

#: syscall; ret
_GADGET: Final = (b"\x0f\x05\xc3",)
#: mov $15, %rax (or %eax); syscall: what C libraries have signal handlers return to.
_SIGRETURN: Final = (b"\x48\xc7\xc0\x0f\0\0\0\x0f\x05", b"\xb8\x0f\0\0\0\x0f\x05")
_CHUNK: Final = 1 << 20
#: Bytes by which chunks overlap, so that no code is cut in two.
_OVERLAP: Final = 16
#: Mappings to look into first, since a program keeps them for all its life.
_FIRST: Final = re.compile(r"/(?:libc[.-]|ld[.-]|ld-linux)[^/]*$|^\[vdso\]$")

_MAPPING: Final = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ (\d+) *(.*)$", re.MULTILINE)

#: As many threads are looked at; one of them can nearly always be stopped.
_CANDIDATES: Final = 16

_PF_KTHREAD: Final = 0x00200000
_ELF64_LITTLE_ENDIAN: Final = b"\x7fELF\x02\x01"
_EM_X86_64: Final = b"\x3e\0"
_PT_LOAD: Final = 1
_PT_NOTE: Final = 4
_PF_W: Final = 2
_GO_SECTIONS: Final = (b"\0.go.buildinfo\0", b"\0.note.go.buildid\0")
#: struct elf64_note: sizes of name and description, type 4, then the name.
_GO_NOTE: Final = re.compile(rb"\x04\0\0\0....\x04\0\0\0Go\0\0", re.DOTALL)
_GO_BUILDINFO: Final = b"\xff Go buildinf:"
#: Bytes at the start of the data in which Go keeps its build information.
_GO_DATA: Final = 1 << 16

_INSTEAD: Final = "monitor it by page_table instead"


class Traced(OSError):
    """Somebody else traces the process: a debugger, or one that does what we do and is done in a moment."""


class _Mapping(NamedTuple):
    start: int
    end: int
    permissions: str
    inode: int
    name: str


class Target:
    """A process that can have system calls injected, as far as can be told without stopping it.

    :param pid: the process.
    :param stack: closes what this object opens.
    :raises OSError: ESRCH, EPERM, EBUSY, EOPNOTSUPP as :func:`kdamon.mm.inject.take_userfaultfd`.
    """

    def __init__(self, pid: int, stack: contextlib.ExitStack) -> None:
        self._pid = pid
        with _explained(pid):
            directory = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, directory)
            status = _status(directory, "status")
            # Field 9; the name in field 2 may hold anything.
            flags = int(_read(directory, "stat").rpartition(b")")[2].split()[6])
        if int(status["Tgid"]) != pid:
            raise OSError(errno.ESRCH, f"{pid} is a thread of process {status['Tgid']}; name the process")
        if flags & _PF_KTHREAD:
            raise OSError(errno.ESRCH, f"process {pid} is a kernel thread without memory of its own; name another one")
        self._tids = self._threads(directory)
        # The first thread may have ended, and have no memory any more, while others go on.
        thread = f"task/{self._tids[0]}"
        with _explained(pid):
            program = os.open(f"{thread}/exe", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
            stack.callback(os.close, program)
            #: Open /proc/PID/mem. It stays this program's: after an exec() nothing is read or written by it.
            self.memory = os.open(f"{thread}/mem", os.O_RDWR | os.O_CLOEXEC, dir_fd=directory)
            stack.callback(os.close, self.memory)
            text = _read(directory, f"{thread}/maps").decode("utf-8", "surrogateescape")
        _check_program(pid, program)
        self._mappings = [
            _Mapping(int(start, 16), int(end, 16), permissions, int(inode), name)
            for start, end, permissions, inode, name in _MAPPING.findall(text)
        ]

    def job(self) -> dict[str, Any]:
        """What the helper must know.

        :returns: pid; tids, the threads to try; gadget and sigreturn, addresses of ``syscall; ret`` and of a call of
            rt_sigreturn; codes, what is there, in hexadecimal; stacks, start and end of mappings on which a frame may
            be put.
        :raises OSError: EOPNOTSUPP when the program has no such code.
        """
        gadget = sigreturn = None
        for mapping in sorted(self._mappings, key=lambda mapping: not _FIRST.search(mapping.name)):
            if mapping.permissions != "r-xp" or not (mapping.inode or mapping.name == "[vdso]"):
                continue
            for addr, code in self._chunks(mapping):
                gadget = gadget or _find(_GADGET, addr, code)
                sigreturn = sigreturn or _find(_SIGRETURN, addr, code)
                if gadget and sigreturn:
                    return {
                        "pid": self._pid,
                        "tids": self._tids,
                        "gadget": gadget[0],
                        "sigreturn": sigreturn[0],
                        "codes": [gadget, sigreturn],
                        "stacks": self._stacks(),
                    }
        raise OSError(
            errno.EOPNOTSUPP,
            f"the program of process {self._pid} has no code to return from signals, by which a system call could be "
            f"made safely; {_INSTEAD}",
        )

    def _threads(self, directory: int) -> list[int]:
        """The threads to try, the first one of the process first."""
        pid = self._pid
        with _explained(pid):
            listing = os.open("task", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
            try:
                tids = sorted(int(name) for name in os.listdir(listing))
            finally:
                os.close(listing)
        tids.sort(key=lambda tid: tid != pid)
        found = []
        for tid in tids:
            try:
                status = _status(directory, f"task/{tid}/status")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if status["State"][0] in "ZX":
                continue
            _check_thread(pid, status)
            found.append(tid)
            if len(found) == _CANDIDATES:
                break
        if not found:
            raise _ended(pid)
        return found

    def _chunks(self, mapping: _Mapping) -> Iterator[tuple[int, bytes]]:
        """The code in a mapping, piece by piece, each with its address."""
        for addr in range(mapping.start, mapping.end, _CHUNK):
            try:
                yield addr, os.pread(self.memory, min(_CHUNK + _OVERLAP, mapping.end - addr), addr)
            except OSError:
                return

    def _stacks(self) -> list[tuple[int, int]]:
        """Mappings that are stacks and nothing else: what is below the stack pointer in them is nobody's.

        The kernel names the first thread's; the others are known by the guard below them. Elsewhere (signal stacks,
        coroutines on the heap, Go) something may live right below.
        """
        stacks = []
        before: _Mapping | None = None
        for mapping in self._mappings:
            guarded = before is not None and before.end == mapping.start and before.permissions == "---p"
            if mapping.permissions in ("rw-p", "rwxp") and (guarded or mapping.name == "[stack]"):
                stacks.append((mapping.start, mapping.end))
            before = mapping
        return stacks


def _find(wanted: tuple[bytes, ...], addr: int, code: bytes) -> tuple[int, str] | None:
    """Where one of ``wanted`` is in ``code``, which begins at ``addr``, and which one."""
    for one in wanted:
        found = code.find(one)
        if found >= 0:
            return addr + found, one.hex()
    return None


@contextlib.contextmanager
def _explained(pid: int) -> Iterator[None]:
    """Say in a sentence what the kernel refuses."""
    try:
        yield
    except (FileNotFoundError, ProcessLookupError):
        raise _ended(pid) from None
    except PermissionError as error:
        raise refusal_to_trace(pid) from error


def _ended(pid: int) -> OSError:
    return OSError(errno.ESRCH, f"process {pid} ended; name a running one")


def _read(directory: int, name: str) -> bytes:
    with open(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory), "rb") as file:
        return file.read()


def _status(directory: int, name: str) -> dict[str, str]:
    lines = _read(directory, name).decode("utf-8", "replace").splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _check_thread(pid: int, status: dict[str, str]) -> None:
    """Refuse what a thread's status shows to be unsafe."""
    if status["TracerPid"] != "0":
        raise Traced(
            errno.EBUSY, f"process {pid} is traced by process {status['TracerPid']} already; end that one first"
        )
    if status["State"][0] in "Tt":
        raise OSError(errno.EBUSY, f"process {pid} is stopped; continue it (kill -CONT {pid}) and try again")
    if status.get("Seccomp", "0") != "0":
        raise OSError(
            errno.EPERM,
            f"process {pid} filters its system calls (seccomp) and might be killed for one more; {_INSTEAD}",
        )
    if "shstk" in status.get("x86_Thread_features", "").split():
        raise OSError(errno.EOPNOTSUPP, f"process {pid} has a shadow stack, which forbids to call anything; {_INSTEAD}")


def _check_program(pid: int, program: int) -> None:
    header = os.pread(program, 64, 0)
    if len(header) < 64 or header[:6] != _ELF64_LITTLE_ENDIAN or header[18:20] != _EM_X86_64:
        raise OSError(errno.EOPNOTSUPP, f"process {pid} runs no 64-bit x86 program; {_INSTEAD}")
    if _is_go(program, header):
        raise OSError(
            errno.EOPNOTSUPP,
            f"process {pid} is a Go program, whose stacks have no room for what is below them; start it by kdamon, or "
            f"{_INSTEAD}",
        )


def _is_go(program: int, header: bytes) -> bool:
    """Tell by its build id, its build information or the names of its sections that Go made a program."""
    segments, sections = struct.unpack_from("<QQ", header, 32)
    segment_size, segment_count, section_size, section_count, names = struct.unpack_from("<5H", header, 54)
    for number in range(segment_count):
        segment = os.pread(program, 56, segments + number * segment_size)
        if len(segment) < 56:
            break
        kind, flags, offset, _, _, size = struct.unpack_from("<IIQQQQ", segment)
        if kind == _PT_NOTE and _GO_NOTE.search(os.pread(program, min(size, _GO_DATA), offset)):
            return True
        if kind == _PT_LOAD and flags & _PF_W and _GO_BUILDINFO in os.pread(program, min(size, _GO_DATA), offset):
            return True
    section = os.pread(program, 64, sections + names * section_size) if names < section_count else b""
    if len(section) < 64:
        return False
    offset, size = struct.unpack_from("<QQ", section, 24)
    strings = os.pread(program, min(size, _GO_DATA), offset)
    return any(name in strings for name in _GO_SECTIONS)
