# SPDX-License-Identifier: GPL-2.0-only
"""The sections of the programs and libraries that a process maps, from their ELF headers.

Files are the processes', who may be hostile: only regular files are opened, and only those that answer without another
user's process; only headers and the names of sections are read, with limits; what is not understood has no sections.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import stat
import time
from collections.abc import Iterator
from typing import Any, Final

from attrs import frozen

from kdamon.lib.path_walk import walk
from kdamon.mm.proc.file_systems import answers

__all__ = ["Section", "open_mapped", "sections_of"]

log = logging.getLogger("kdamon")

#: Sections of a file, bytes of their names, and bytes that are read of a file at most.
_MOST_SECTIONS: Final = 512
_MOST_NAME_BYTES: Final = 1 << 16
_MOST_READ: Final = 1 << 18


@frozen
class Section:
    """A section that is in memory while the program runs.

    :ivar name: such as ``.data``.
    :ivar offset: where it begins in the file, bytes.
    :ivar address: where it begins in memory, relative to where the file is loaded, bytes.
    :ivar size: bytes.
    :ivar writable: it can be written.
    :ivar empty: it takes no room in the file: ``.bss``.
    """

    name: str
    offset: int
    address: int
    size: int
    writable: bool
    empty: bool


class _Headers(io.RawIOBase):
    """A file of which a limited part is read.

    :param fd: stays the caller's.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._size = os.fstat(fd).st_size
        self._at = 0
        self._left = _MOST_READ

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = min(max(base + offset, 0), self._size)
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int | None = -1, /) -> bytes:
        """As of files.

        :raises ValueError: more than the limit is read.
        """
        count = self._size - self._at if size is None or size < 0 else min(size, self._size - self._at)
        if count > self._left:
            raise ValueError("the headers are too large")
        self._left -= count
        data = os.pread(self._fd, count, self._at)
        self._at += len(data)
        return data


def sections_of(fd: int) -> tuple[Section, ...]:
    """The sections in memory of an ELF file, in the order of the file; none of what is no such file.

    :param fd: an open regular file; stays the caller's.
    """
    try:
        return tuple(_sections(_Headers(fd)))
    except Exception as error:
        # The parser meets what other users made.
        log.debug("a file is no ELF file that can be read: %r", error)
    return ()


def _sections(headers: _Headers) -> Iterator[Section]:
    if headers.read(4) != b"\x7fELF":
        return
    # Not before the first file: it takes some 50 ms.
    from elftools.common.utils import struct_parse  # noqa: PLC0415
    from elftools.elf.constants import SH_FLAGS  # noqa: PLC0415
    from elftools.elf.elffile import ELFFile  # noqa: PLC0415

    # A file in all that is used.
    stream: Any = headers
    file: Any = ELFFile(stream)
    header = file.header
    count, size, first = header["e_shnum"], header["e_shentsize"], header["e_shoff"]
    # Not the methods for sections: they read what hash tables and notes claim to hold.
    parse = file.structs.Elf_Shdr
    if not 0 < count <= _MOST_SECTIONS or size != parse.sizeof() or header["e_shstrndx"] >= count:
        return
    found = []
    for number in range(count):
        found.append(struct_parse(parse, stream, first + number * size))
        time.sleep(0)
    table = found[header["e_shstrndx"]]
    stream.seek(table["sh_offset"])
    names = stream.read(min(table["sh_size"], _MOST_NAME_BYTES))
    for one in found:
        if not one["sh_flags"] & SH_FLAGS.SHF_ALLOC or not one["sh_size"] or one["sh_flags"] & SH_FLAGS.SHF_TLS:
            continue
        name = names[one["sh_name"] :].partition(b"\0")[0] if one["sh_name"] < len(names) else b""
        if name:
            writable, empty = bool(one["sh_flags"] & SH_FLAGS.SHF_WRITE), one["sh_type"] == "SHT_NOBITS"
            place = one["sh_offset"], one["sh_addr"], one["sh_size"]
            yield Section(os.fsdecode(name[:255]), *place, writable, empty)


def open_mapped(pid: int, addresses: str, path: bytes, inode: int) -> int | None:
    """Open a file that a process maps.

    Without CAP_SYS_ADMIN and CAP_CHECKPOINT_RESTORE it is opened by its path.

    :param pid: the process.
    :param addresses: of the mapping, as in /proc/PID/map_files.
    :param path: as the process sees it.
    :param inode: its number.
    :returns: a file descriptor, the caller's to close; None where it is no regular file or another one, where kdamon
        has no right to read it, or would wait for another user's process.
    """
    try:
        found = _look(pid, addresses, path)
    except OSError:
        return None
    try:
        # Opening a device has side effects.
        if not answers(pid, found):
            return None
        status = os.fstat(found)
        if not stat.S_ISREG(status.st_mode) or status.st_ino != inode:
            return None
        return os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return None
    finally:
        os.close(found)


def _look(pid: int, addresses: str, path: bytes) -> int:
    """A descriptor of the file (``O_PATH``)."""
    with contextlib.suppress(PermissionError):
        return os.open(f"/proc/{pid}/map_files/{addresses}", os.O_PATH | os.O_CLOEXEC)
    with walk(f"/proc/{pid}/root{os.fsdecode(path)}", lambda _step: None) as place:
        if place.found < 0:
            raise FileNotFoundError(path)
        return place.take()
