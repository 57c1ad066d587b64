# SPDX-License-Identifier: GPL-2.0-only
"""A process whose memory is half anonymous, half a file's."""

from __future__ import annotations

__all__ = ["HALF", "SCRIPT"]

HALF = 8 << 20

#: Maps a file over the second half of anonymous memory, and looks at all of it.
SCRIPT = """
import ctypes, mmap, sys
half = int(sys.argv[2])
memory = mmap.mmap(-1, 2 * half, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_NOHUGEPAGE)
base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
file = open(sys.argv[1], "rb")
MAP_PRIVATE_FIXED = 0x12
assert libc.mmap(base + half, half, mmap.PROT_READ, MAP_PRIVATE_FIXED, file.fileno(), 0) == base + half
for page in range(0, half, 4096):
    memory[page] = 1
    assert memory[half + page] == 7
print(base, flush=True)
sys.stdin.read()
"""
