# SPDX-License-Identifier: GPL-2.0-only
"""On which CPUs threads of an address space run, or are about to: a small BPF program that looks at its threads.

It finds the address space as :mod:`kdamon.mm.bpf.walker` does, through an open /proc/PID/pagemap of this process. The
kernel's own mm_cpumask() would keep a CPU for up to a second (Linux 6.14).
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import threading
from typing import Final

from kdamon.kernel import PAGE_SIZE
from kdamon.lib.file_limit import files_ran_out
from kdamon.mm.bpf.btf import Btf, vmlinux
from kdamon.mm.bpf.program import R0, R1, R3, R7, R8, R9, Array, Assembler, Helper, Program
from kdamon.mm.bpf.shared import Shared

__all__ = ["ANY_CPU", "RunningCpus", "TaskLayout", "find_cpus", "low_half", "read_member", "running_cpus"]

log = logging.getLogger("kdamon")

#: What is found where the CPUs are not known: all bits.
ANY_CPU: Final = (1 << 64) - 1

#: Threads of a process that are looked at.
_THREADS: Final = 16
#: Lower numbers are priorities of real-time threads (include/linux/sched/prio.h).
_MAX_RT_PRIO: Final = 100
#: Where in the program's frame kernel memory is read to.
_SLOT: Final = -8

#: Words of the memory that is shared with the program: the /proc/PID/pagemap, and the CPUs that it found.
_FD: Final = 0
_CPUS: Final = 1


class TaskLayout:
    """Offsets (bytes) in the structures of an address space and of its threads."""

    def __init__(self, btf: Btf) -> None:
        self.users = btf.offset("mm_struct", "mm_users")
        #: None where the kernel does not keep which process an address space belongs to (CONFIG_MEMCG).
        self.owner: int | None = None
        with contextlib.suppress(OSError):
            self.owner = btf.offset("mm_struct", "owner")
        self.signal = btf.offset("task_struct", "signal")
        self.threads = btf.offset("signal_struct", "thread_head")
        self.thread = btf.offset("task_struct", "thread_node")
        self.on_rq = btf.offset("task_struct", "on_rq")
        self.prio = btf.offset("task_struct", "prio")
        self.cpu = btf.offset("task_struct", "thread_info") + btf.offset("thread_info", "cpu")


def read_member(asm: Assembler, offset: int, unreadable: str) -> None:
    """R1 = 8 bytes at ``offset`` in the kernel's structure at R7."""
    asm.op_reg("mov", R3, R7)
    asm.op("add", R3, offset)
    asm.read_kernel(_SLOT, unreadable)


def low_half(asm: Assembler, register: int) -> None:
    """Keep the lower 32 bits of ``register``."""
    asm.op("lsh", register, 32)
    asm.op("rsh", register, 32)


def find_cpus(asm: Assembler, layout: TaskLayout, word: int, done: str) -> None:
    """Set the bits of the CPUs on which threads of the address space at R7 are runnable; R7 and R8 are lost.

    All are set if there are too many threads to look at each, CPUs from 64 on, or a thread of real-time priority.

    :param word: where the bits are, bytes from R9.
    :param done: where to go afterwards.
    """
    assert layout.owner is not None
    read_member(asm, layout.owner, done)
    asm.op_reg("mov", R7, R1)
    read_member(asm, layout.signal, done)
    # R8 is the head of the list, R7 a link in it.
    asm.op("add", R1, layout.threads)
    asm.op_reg("mov", R8, R1)
    asm.op_reg("mov", R7, R1)
    for number in range(_THREADS):
        following = f"thread {number + 1}"
        asm.label(f"thread {number}")
        read_member(asm, 0, done)
        asm.op_reg("mov", R7, R1)
        asm.jump_if_reg("jeq", R7, R8, done)
        read_member(asm, layout.on_rq - layout.thread, done)
        asm.op("lsh", R1, 32)
        asm.jump_if("jeq", R1, 0, following)
        # Beside a thread of real-time priority another one may never run. Deadlines have -1.
        read_member(asm, layout.prio - layout.thread, done)
        asm.op("add", R1, 1)
        low_half(asm, R1)
        asm.jump_if("jlt", R1, _MAX_RT_PRIO + 1, f"thread {_THREADS}")
        read_member(asm, layout.cpu - layout.thread, done)
        low_half(asm, R1)
        asm.jump_if("jgt", R1, 63, f"thread {_THREADS}")
        asm.op("mov", R3, 1)
        asm.op_reg("lsh", R3, R1)
        asm.load(R1, R9, word)
        asm.op_reg("or", R1, R3)
        asm.store(8, R9, word, R1)
    asm.label(f"thread {_THREADS}")
    asm.op("mov", R1, -1)
    asm.store(8, R9, word, R1)


class RunningCpus:
    """Finds the CPUs of one address space in one system call; any thread may use it.

    :raises OSError: EPERM without CAP_BPF and CAP_PERFMON; EOPNOTSUPP the kernel does not show it; EMFILE.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        btf = vmlinux()
        self._layout = TaskLayout(btf)
        self._array = Array(PAGE_SIZE)
        try:
            self._program = Program(self._assemble(btf), "kdamon_cpus")
        except BaseException:
            self._array.close()
            raise
        self._words = (ctypes.c_uint64 * 2).from_buffer(self._array.memory)

    def close(self) -> None:
        """Unload the program and give its memory back."""
        self._program.close()
        self._array.close()

    def of(self, pagemap: int) -> int:
        """The CPUs on which threads of an address space run or are about to, a bit each; 0: all sleep.

        :data:`ANY_CPU` where that cannot be said, or a thread has real-time priority.

        :param pagemap: open /proc/PID/pagemap of the address space.
        """
        if self._layout.owner is None:
            return ANY_CPU
        with self._lock:
            self._words[_FD], self._words[_CPUS] = pagemap, 0
            self._program.run()
            return self._words[_CPUS]

    def _assemble(self, btf: Btf) -> Assembler:
        asm = Assembler()
        asm.load_map_value(R9, self._array.fd)
        asm.call(Helper.GET_CURRENT_TASK)
        asm.op_reg("mov", R7, R0)
        for structure, member in (("task_struct", "files"), ("files_struct", "fdt"), ("fdtable", "fd")):
            read_member(asm, btf.offset(structure, member), "done")
            asm.op_reg("mov", R7, R1)
        asm.load(R1, R9, 8 * _FD)
        asm.op("lsh", R1, 3)
        asm.op_reg("add", R7, R1)
        read_member(asm, 0, "done")
        asm.op_reg("mov", R7, R1)
        read_member(asm, btf.offset("file", "private_data"), "done")
        asm.op_reg("mov", R7, R1)
        if self._layout.owner is not None:
            find_cpus(asm, self._layout, 8 * _CPUS, "done")
        asm.label("done")
        asm.op("mov", R0, 0)
        asm.exit()
        return asm


def _make() -> RunningCpus | None:
    try:
        return RunningCpus()
    except OSError as error:
        # Files may be there the next time.
        if files_ran_out(error):
            raise
        log.debug("it is not known where threads run: %s", error.strerror)
        return None


_shared: Final = Shared(_make)


def running_cpus() -> RunningCpus | None:
    """The one of this process, made when it is first asked for; None where it cannot be had, or not now."""
    try:
        return _shared.get()
    except OSError:
        return None
