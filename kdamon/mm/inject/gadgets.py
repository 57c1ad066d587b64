# SPDX-License-Identifier: GPL-2.0-only
"""Checks the program of a target process, and finds the code in it that makes system calls.

A part of the helper (:mod:`kdamon.mm.inject.helper`), with the standard library alone. A process decides from where its
program and its memory are read, such as a FUSE file system that never answers. The helper may wait for that, because
kdamon waits for the helper with a time limit; kdamon itself may not.
"""

from __future__ import annotations

import errno
import os
import re
import struct
from collections.abc import Iterator, Sequence
from typing import Any, Final

__all__ = ["check_program", "find_code", "is_go"]

#: syscall; ret
_GADGET: Final = (b"\x0f\x05\xc3",)
#: mov $15, %rax (or %eax); syscall: what C libraries have signal handlers return to.
_SIGRETURN: Final = (b"\x48\xc7\xc0\x0f\0\0\0\x0f\x05", b"\xb8\x0f\0\0\0\x0f\x05")
_CHUNK: Final = 1 << 20
#: Bytes by which chunks overlap, so that no code is cut in two.
_OVERLAP: Final = 16

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


def check_program(program: int) -> None:
    """Refuse an open program in which no call can be made safely: OSError EOPNOTSUPP."""
    header = os.pread(program, 64, 0)
    if len(header) < 64 or header[:6] != _ELF64_LITTLE_ENDIAN or header[18:20] != _EM_X86_64:
        raise OSError(errno.EOPNOTSUPP, f"it is no 64-bit x86 program; {_INSTEAD}")
    if is_go(program, header):
        raise OSError(
            errno.EOPNOTSUPP,
            f"it is a Go program, whose small stacks have no room for this; start it by kdamon, or {_INSTEAD}",
        )


def is_go(program: int, header: bytes) -> bool:
    """Return whether Go made a program, by its build id, its build information or the names of its sections."""
    segments, sections = struct.unpack_from("<QQ", header, 32)
    segment_size, segment_count, section_size, section_count, names = struct.unpack_from("<5H", header, 54)
    for number in range(segment_count):
        segment = _read(program, 56, segments + number * segment_size)
        if len(segment) < 56:
            break
        kind, flags, offset, _, _, size = struct.unpack_from("<IIQQQQ", segment)
        if kind == _PT_NOTE and _GO_NOTE.search(_read(program, min(size, _GO_DATA), offset)):
            return True
        if kind == _PT_LOAD and flags & _PF_W and _GO_BUILDINFO in _read(program, min(size, _GO_DATA), offset):
            return True
    section = _read(program, 64, sections + names * section_size) if names < section_count else b""
    if len(section) < 64:
        return False
    offset, size = struct.unpack_from("<QQ", section, 24)
    strings = _read(program, min(size, _GO_DATA), offset)
    return any(name in strings for name in _GO_SECTIONS)


def _read(file: int, size: int, offset: int) -> bytes:
    """A part of a file, empty outside of it: the headers of a program may contain any numbers."""
    return os.pread(file, size, offset) if offset < 1 << 63 else b""


def find_code(memory: int, texts: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Find code by which system calls can be made.

    :param memory: open /proc/PID/mem.
    :param texts: start and end of the code, addresses.
    :returns: gadget and sigreturn, addresses of ``syscall; ret`` and of a call of rt_sigreturn; codes, what is at each
        of them, in hexadecimal.
    :raises OSError: EOPNOTSUPP there is none.
    """
    gadget = sigreturn = None
    for start, end in texts:
        for addr, code in _chunks(memory, start, end):
            gadget = gadget or _find(_GADGET, addr, code)
            sigreturn = sigreturn or _find(_SIGRETURN, addr, code)
            if gadget and sigreturn:
                return {"gadget": gadget[0], "sigreturn": sigreturn[0], "codes": [gadget, sigreturn]}
    raise OSError(
        errno.EOPNOTSUPP,
        f"it has no code to return from signals, by which a system call could be made safely; {_INSTEAD}",
    )


def _chunks(memory: int, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """The code in a mapping, piece by piece, each with its address."""
    for addr in range(start, end, _CHUNK):
        try:
            yield addr, os.pread(memory, min(_CHUNK + _OVERLAP, end - addr), addr)
        except OSError:
            return


def _find(wanted: tuple[bytes, ...], addr: int, code: bytes) -> tuple[int, str] | None:
    """The address of one of ``wanted`` in ``code``, which begins at ``addr``, and which one it is."""
    for one in wanted:
        found = code.find(one)
        if found >= 0:
            return addr + found, one.hex()
    return None
