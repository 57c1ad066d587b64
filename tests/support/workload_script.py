# SPDX-License-Identifier: GPL-2.0-only
"""A workload in Python, with the orders 'r' and 'w' of ``workload.c``."""

from __future__ import annotations

import ctypes
import mmap
import struct
import sys


def main() -> None:
    pages = int(sys.argv[2])
    memory = mmap.mmap(-1, pages * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    for page in range(pages):
        memory[page * 4096] = 1
    print(ctypes.addressof(ctypes.c_char.from_buffer(memory)), pages, flush=True)
    while kind := sys.stdin.buffer.read(1):
        (count,) = struct.unpack("<I", sys.stdin.buffer.read(4))
        for page in struct.unpack(f"<{count}I", sys.stdin.buffer.read(4 * count)):
            if kind == b"w":
                memory[page * 4096 + 128] = page % 256
            else:
                _ = memory[page * 4096 + 128]
        sys.stdout.buffer.write(b".")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
