# SPDX-License-Identifier: GPL-2.0-only
"""Many system calls in one, without Python in between (x86_64): a page of machine code makes them.

The calls are rows of words in memory of the caller's; other Python threads run meanwhile.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import mmap
import os
import platform
from collections.abc import Callable
from typing import Final

from kdamon.arrays import U64Array
from kdamon.kernel import PAGE_SIZE
from kdamon.lib.syscalls import call, syscall

__all__ = ["RESULT", "WORDS", "make_calls", "runner"]

log = logging.getLogger("kdamon")

#: Words of a row: the number of the system call, six arguments, and what it returned. A negative number ends the batch.
WORDS: Final = 8
RESULT: Final = 7

_SIGN: Final = 1 << 63

#: For each of n rows, make the system call and store what it returned.
_LOOP: Final = bytes.fromhex(
    "f30f1efa"  # endbr64
    "53"  # push rbx
    "4154"  # push r12
    "4889fb"  # mov rbx, rdi
    "4989f4"  # mov r12, rsi
    "4d85e4"  # test r12, r12
    "742f"  # jz end
    "488b03"  # next: mov rax, [rbx]
    "4885c0"  # test rax, rax
    "7827"  # js end
    "488b7b08"  # mov rdi, [rbx + 8]
    "488b7310"  # mov rsi, [rbx + 16]
    "488b5318"  # mov rdx, [rbx + 24]
    "4c8b5320"  # mov r10, [rbx + 32]
    "4c8b4328"  # mov r8, [rbx + 40]
    "4c8b4b30"  # mov r9, [rbx + 48]
    "0f05"  # syscall
    "48894338"  # mov [rbx + 56], rax
    "4883c340"  # add rbx, 64
    "49ffcc"  # dec r12
    "75d1"  # jnz next
    "415c"  # end: pop r12
    "5b"  # pop rbx
    "c3"  # ret
)

#: The page of the loop, for as long as the process lives.
_kept: list[mmap.mmap] = []


@functools.cache
def runner() -> Callable[[int, int], None] | None:
    """A function that makes the calls of rows, by their address and number; None where no memory may be executable."""
    if platform.machine() != "x86_64":
        return None
    memory = mmap.mmap(-1, PAGE_SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.write(_LOOP)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    size = ctypes.c_size_t(PAGE_SIZE)
    if (failed := call("mprotect", ctypes.c_void_p(address), size, mmap.PROT_READ | mmap.PROT_EXEC)) < 0:
        log.info("system calls are not batched: %s", os.strerror(-failed))
        return None
    _kept.append(memory)
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_size_t)(address)


def make_calls(rows: U64Array) -> None:
    """Make the calls of ``rows``, shape (n, WORDS), and store what each returned; negative results are errno."""
    run = runner()
    if run is not None:
        run(rows.ctypes.data, len(rows))
        return
    for row in rows:
        if row[0] >= _SIGN:
            return
        number, *arguments = row[:RESULT].tolist()
        row[RESULT] = syscall(number, *map(ctypes.c_ulong, arguments)) & (2 * _SIGN - 1)
