# SPDX-License-Identifier: GPL-2.0-only
"""Many system calls in one, without Python in between (x86_64): a page of machine code makes them.

The calls are rows of words in memory of the caller's; other Python threads run meanwhile. A row can also say which one
is next, so that calls are repeated until one of them, such as a BPF program, changes what the rows say.
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

__all__ = ["RESULT", "STOP", "WORDS", "jump", "make_calls", "runner"]

log = logging.getLogger("kdamon")

#: Words of a row: the number of the system call, six arguments, and what it returned. Instead of a number, :data:`STOP`
#: ends the batch, and :func:`jump` continues at another row.
WORDS: Final = 8
RESULT: Final = 7
STOP: Final = -(1 << 30)

_SIGN: Final = 1 << 63

#: From the first of n rows to the end of the last one: make the system call and store what it returned, or go to the
#: row that a negative number names, the inverse of its own. It ends after as many calls as the third argument allows.
_LOOP: Final = bytes.fromhex(
    "f30f1efa"  # endbr64
    "53"  # push rbx
    "4154"  # push r12
    "4155"  # push r13
    "4156"  # push r14
    "4889fb"  # mov rbx, rdi
    "4989fd"  # mov r13, rdi
    "4989d6"  # mov r14, rdx
    "4989f4"  # mov r12, rsi
    "49c1e406"  # shl r12, 6
    "4901fc"  # add r12, rdi
    "4c39e3"  # next: cmp rbx, r12
    "733f"  # jae end
    "488b03"  # mov rax, [rbx]
    "4885c0"  # test rax, rax
    "7829"  # js other
    "49ffce"  # dec r14
    "7832"  # js end
    "488b7b08"  # mov rdi, [rbx + 8]
    "488b7310"  # mov rsi, [rbx + 16]
    "488b5318"  # mov rdx, [rbx + 24]
    "4c8b5320"  # mov r10, [rbx + 32]
    "4c8b4328"  # mov r8, [rbx + 40]
    "4c8b4b30"  # mov r9, [rbx + 48]
    "0f05"  # syscall
    "48894338"  # mov [rbx + 56], rax
    "4883c340"  # add rbx, 64
    "ebca"  # jmp next
    "48f7d0"  # other: not rax
    "48c1e006"  # shl rax, 6
    "498d5c0500"  # lea rbx, [r13 + rax]
    "ebbc"  # jmp next
    "415e"  # end: pop r14
    "415d"  # pop r13
    "415c"  # pop r12
    "5b"  # pop rbx
    "c3"  # ret
)


@functools.cache
def runner() -> Callable[[int, int, int], None] | None:
    """A function that makes the calls of rows; None where no memory may be executable.

    Its arguments are the rows' address and number, and how many calls it makes at most.
    """
    if platform.machine() != "x86_64":
        return None
    memory = mmap.mmap(-1, PAGE_SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.write(_LOOP)
    # A kdamond may be in it until the process is gone, and later than the modules of Python are.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(memory))
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    size = ctypes.c_size_t(PAGE_SIZE)
    if (failed := call("mprotect", ctypes.c_void_p(address), size, mmap.PROT_READ | mmap.PROT_EXEC)) < 0:
        log.info("system calls are not batched: %s", os.strerror(-failed))
        return None
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)(address)


def jump(row: int) -> int:
    """What a row has instead of the number of a system call if row ``row`` is to be next."""
    return -1 - row


def make_calls(rows: U64Array, most: int | None = None) -> None:
    """Make the calls of ``rows``, and store what each returned; negative results are errno.

    :param rows: shape (n, WORDS).
    :param most: end after so many calls; None for n, which is enough without repetitions.
    """
    run = runner()
    most = len(rows) if most is None else most
    if run is not None:
        run(rows.ctypes.data, len(rows), most)
        return
    at = 0
    while at < len(rows):
        number, *arguments = rows[at, :RESULT].tolist()
        if number >= _SIGN:
            at = 2 * _SIGN - 1 - number
            continue
        if not most:
            return
        most -= 1
        rows[at, RESULT] = syscall(number, *map(ctypes.c_ulong, arguments)) & (2 * _SIGN - 1)
        at += 1
