# SPDX-License-Identifier: GPL-2.0-only
"""Numbers of processes and threads in the PID namespace of this process (``kernel/pid.c``).

A thread has a number in its own PID namespace and in each one above. A BPF program sees the first namespace's number at
once; bpf_get_ns_current_pid_tgid() gives another namespace's, but only for threads of exactly that one. Numbers of
threads in namespaces below it are read from the kernel's ``struct pid``.
"""

from __future__ import annotations

import errno
import os
import threading
from contextlib import closing
from typing import Final

import numpy as np

from kdamon.kernel import PAGE_SIZE
from kdamon.mm.bpf.btf import Btf, vmlinux
from kdamon.mm.bpf.program import R0, R1, R2, R3, R7, R8, R9, R10, Array, Assembler, Helper, Program

__all__ = ["Numbers", "in_first_pid_namespace"]

#: The number of the first PID namespace's file (PROC_PID_INIT_INO).
_FIRST: Final = 0xEFFFFFFC
_POINTER: Final = 8
#: Bytes of the frame, below its top, where the programs read kernel memory to.
_SLOT: Final = -8


def in_first_pid_namespace() -> bool:
    """Return whether this process is in the machine's own PID namespace, not in a container's."""
    return os.stat("/proc/self/ns/pid").st_ino == _FIRST


class _Layout:
    """Offsets (bytes) in the structures that lead from a thread to its numbers."""

    def __init__(self, btf: Btf) -> None:
        self.thread = btf.offset("task_struct", "thread_pid")
        self.signal = btf.offset("task_struct", "signal")
        self.process = btf.offset("signal_struct", "pids") + _POINTER * btf.enumerator("pid_type", "PIDTYPE_TGID")
        self.level = btf.offset("pid", "level")
        self.numbers = btf.offset("pid", "numbers")
        self.number_size = btf.size("upid")
        self.number = btf.offset("upid", "nr")
        self.namespace = btf.offset("upid", "ns")


class Numbers:
    """How a program finds the present thread's numbers.

    :raises OSError: EPERM without CAP_BPF and CAP_PERFMON; EOPNOTSUPP this kernel keeps them in an unknown way.
    """

    def __init__(self) -> None:
        self._layout: _Layout | None = None
        if not in_first_pid_namespace():
            self._layout = _Layout(vmlinux())
            self._namespace, self._level = _own_namespace(self._layout)

    def load(self, asm: Assembler, outside: str) -> None:
        """R7 = numbers of the present process (upper half) and thread; R1 to R5, R8 and the frame's top are lost.

        :param outside: where to go with a thread that this namespace has no number for.
        """
        layout = self._layout
        if layout is None:
            asm.call(Helper.GET_CURRENT_PID_TGID)
            asm.op_reg("mov", R7, R0)
            return
        asm.call(Helper.GET_CURRENT_TASK)
        asm.op_reg("mov", R7, R0)
        _follow(asm, R7, layout.signal, outside)
        _follow(asm, R1, layout.process, outside)
        self._number(asm, layout, outside)
        asm.op_reg("mov", R8, R1)
        asm.op("lsh", R8, 32)
        asm.store(8, R10, 2 * _SLOT, R8)
        _follow(asm, R7, layout.thread, outside)
        self._number(asm, layout, outside)
        asm.load(R7, R10, 2 * _SLOT)
        asm.op_reg("or", R7, R1)

    def _number(self, asm: Assembler, layout: _Layout, outside: str) -> None:
        """R1 = the number of the ``struct pid`` at R1 in this namespace; R8 is lost."""
        place = layout.numbers + layout.number_size * self._level
        asm.op_reg("mov", R8, R1)
        _follow(asm, R8, layout.level, outside)
        _lower_half(asm)
        # A pid has as many numbers as its level says, and one.
        asm.jump_if("jlt", R1, self._level, outside)
        _follow(asm, R8, place + layout.namespace, outside)
        asm.load_number(R2, self._namespace)
        asm.jump_if_reg("jne", R1, R2, outside)
        _follow(asm, R8, place + layout.number, outside)
        _lower_half(asm)


def _follow(asm: Assembler, base: int, offset: int, unreadable: str) -> None:
    """R1 = the 8 bytes at ``offset`` from kernel address ``base`` (a register)."""
    asm.op_reg("mov", R3, base)
    asm.op("add", R3, offset)
    asm.read_kernel(_SLOT, unreadable)


def _lower_half(asm: Assembler) -> None:
    asm.op("lsh", R1, 32)
    asm.op("rsh", R1, 32)


def _own_namespace(layout: _Layout) -> tuple[int, int]:
    """The address of the ``struct pid_namespace`` of this process, and how many namespaces are above it."""
    with closing(Array(PAGE_SIZE)) as array:
        try:
            asm = _find_namespace(layout, array.fd)
            with closing(Program(asm, "kdamon_numbers")) as program:
                program.run()
            words: list[int] = np.frombuffer(array.memory, dtype=np.uint64, count=4).tolist()
        finally:
            array.memory.close()
    namespace, level, process, thread = words
    if (process, thread) != (os.getpid(), threading.get_native_id()):
        raise OSError(
            errno.EOPNOTSUPP, "this kernel keeps the numbers of processes in PID namespaces in an unknown way"
        )
    return namespace, level


def _find_namespace(layout: _Layout, array_fd: int) -> Assembler:
    """A program that writes namespace, level, and the numbers of the present process and thread to an array."""
    asm = Assembler()
    asm.load_map_value(R9, array_fd)
    asm.call(Helper.GET_CURRENT_TASK)
    asm.op_reg("mov", R7, R0)
    for word, path in ((2, (layout.signal, layout.process)), (3, (layout.thread,))):
        asm.op_reg("mov", R1, R7)
        for offset in path:
            _follow(asm, R1, offset, "out")
        asm.op_reg("mov", R8, R1)
        _follow(asm, R8, layout.level, "out")
        _lower_half(asm)
        asm.store(8, R9, 8, R1)
        # The last number is the one in the thread's own namespace.
        asm.op("mul", R1, layout.number_size)
        asm.op_reg("add", R8, R1)
        _follow(asm, R8, layout.numbers + layout.namespace, "out")
        asm.store(8, R9, 0, R1)
        _follow(asm, R8, layout.numbers + layout.number, "out")
        _lower_half(asm)
        asm.store(8, R9, 8 * word, R1)
    asm.label("out")
    asm.op("mov", R0, 0)
    asm.exit()
    return asm
