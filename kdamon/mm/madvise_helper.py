# SPDX-License-Identifier: GPL-2.0-only
"""Advises about memory for a process that may not wait for a file system, see :mod:`kdamon.mm.madvise_apart`.

It runs as ``python -I -S madvise_helper.py CHANNEL``, with the standard library and nothing else, so that it starts
fast. CHANNEL is an inherited socket that keeps messages apart. Each request is an advice (8 bytes) and pairs of address
and size (8 bytes each), and comes with a pidfd; the answer is what process_madvise(2) returned, or a negative errno.
"""

import ctypes
import os
import socket
import struct
import sys
from typing import Final

__all__ = ["main"]

_NR_PROCESS_MADVISE: Final = 440
#: Seconds for which it waits for a request.
_IDLE: Final = 10.0

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _advised(request: bytes, pidfd: int) -> int:
    (advice,) = struct.unpack_from("<Q", request)
    ranges = ctypes.create_string_buffer(request[8:], len(request) - 8)
    words = (ctypes.c_long(len(ranges) // 16), ctypes.c_long(advice), ctypes.c_long(0))
    result = int(_libc.syscall(ctypes.c_long(_NR_PROCESS_MADVISE), ctypes.c_long(pidfd), ranges, *words))
    return result if result >= 0 else -ctypes.get_errno()


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
        answer = struct.pack("<q", _advised(request, fds[0]))
        os.close(fds[0])
        channel.send(answer)


if __name__ == "__main__":
    main()
