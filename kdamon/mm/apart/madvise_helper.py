# SPDX-License-Identifier: GPL-2.0-only
"""The helper program that makes calls which may wait for a file system, see :mod:`kdamon.mm.apart.madvise`.

It runs as ``python -I -S madvise_helper.py CHANNEL``, with the standard library and nothing else, so that it starts
fast. CHANNEL is an inherited socket that keeps messages apart. Each request is the number of a system call, an argument
and pairs of address and size (8 bytes each). The call is process_madvise(2), with the advice and a pidfd; or
process_vm_writev(2), with the process's number: one for each pair, from memory that cannot be read, until one returns
something else than EFAULT; each is of 2 MiB at most. The answer is what the last call returned, or a negative errno.
"""

import ctypes
import errno
import functools
import os
import socket
import struct
import sys
from typing import Final

__all__ = ["main"]

_NR_PROCESS_VM_WRITEV: Final = 311
_NR_PROCESS_MADVISE: Final = 440
_NR_MMAP: Final = 9
_PROT_NONE: Final = 0
_MAP_PRIVATE_ANONYMOUS: Final = 0x22
#: Bytes that one call writes at most.
_MOST: Final = 1 << 21
#: Seconds for which it waits for a request.
_IDLE: Final = 10.0


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return libc


def _called(number: int, *arguments: int) -> int:
    result = int(_libc().syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments)))
    return result if result >= 0 else -ctypes.get_errno()


def _advised(pidfd: int, advice: int, ranges: bytes) -> int:
    vector = ctypes.create_string_buffer(ranges, len(ranges))
    return _called(_NR_PROCESS_MADVISE, pidfd, ctypes.addressof(vector), len(ranges) // 16, advice, 0)


@functools.cache
def _unreadable() -> int:
    """Where this process has :data:`_MOST` bytes without access to them."""
    return _called(_NR_MMAP, 0, _MOST, _PROT_NONE, _MAP_PRIVATE_ANONYMOUS, -1, 0)


def _written(pid: int, ranges: bytes) -> int:
    result = -errno.EFAULT
    for addr, size in struct.iter_unpack("<QQ", ranges):
        source = (ctypes.c_uint64 * 2)(_unreadable(), size)
        target = (ctypes.c_uint64 * 2)(addr, size)
        result = _called(_NR_PROCESS_VM_WRITEV, pid, ctypes.addressof(source), 1, ctypes.addressof(target), 1, 0)
        if result != -errno.EFAULT:
            break
    return result


def main() -> None:
    """Serve requests for as long as they come."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    channel.settimeout(_IDLE)
    while True:
        try:
            request, fds, _, _ = socket.recv_fds(channel, 1 << 16, 1)
        except TimeoutError:
            return
        if not request:
            return
        number, argument = struct.unpack_from("<QQ", request)
        ranges = request[16:]
        result = _written(argument, ranges) if number == _NR_PROCESS_VM_WRITEV else _advised(fds[0], argument, ranges)
        for fd in fds:
            os.close(fd)
        channel.send(struct.pack("<q", result))


if __name__ == "__main__":
    main()
