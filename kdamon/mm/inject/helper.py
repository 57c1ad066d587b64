# SPDX-License-Identifier: GPL-2.0-only
"""A short-lived helper process that makes a thread of another process run system calls, see :mod:`kdamon.mm.inject`.

It runs as ``python -I -S helper.py``, with the standard library and :mod:`kdamon.mm.inject.gadgets`, so that it
starts fast and that no work of a monitor can delay a stopped thread. A helper that advises stays for further jobs as
long as they come and nothing went wrong: the threads that it traces are released only with its end.

The stopped thread runs one system call only: a clone() of a second thread, and waits for its end as a parent waits
after vfork(). The second thread does the rest in a table of file descriptors of its own. Both go on safely at any
instant without us: the first finds a signal frame that gives it all registers, floating point state and signal mask
back, the second one that makes it exit. So this process may die at any time without leaving anything in the target: no
file descriptor either, since a table of which the second thread was the only user ends with it.

The frames lie in the unused part of the thread's own stack, in a page that nothing was ever written to, or that holds
such frames of an earlier attempt and nothing else. The stack's bounds are what the thread library recorded, or the
kernel's for the first thread: where the stack pointer is elsewhere, the thread is left alone.

These are the states in which the death of this process may leave the two threads for as long as they get no CPU
(frozen, starved). All are left by the threads themselves. Another attempt finds them by the frames' mark near the
stack pointer, or by the code and the blocked signals, and uses neither thread:

=================  ==============================  =====================================================
thread             at                              goes on by
=================  ==============================  =====================================================
first, restoring   rt_sigreturn                    its own frame
first, diverted    syscall, for clone()            clone(), waiting for the second, return to its frame
first, waiting     clone(), cannot be stopped      the second thread's end, return to its frame
second             syscall or after it             at most that call, return to its frame
second, ending     syscall, for exit()             exit()
=================  ==============================  =====================================================

A first thread that was diverted and does not run is put back where it was before this process gives up. In pause() it
stays on its frames until a signal comes; that is no half-done attempt, and can be stopped again.

The process may be hostile. At any time its other threads can change its memory, the code by which the two threads make
calls (also that of [vdso], or of a file that they may not write), and what a seccomp filter makes of a call. So nothing
of that is believed. Right before the kernel carries out a call, this process makes sure that it is the one that was
asked for, with its arguments: nothing else can change it then. Filters cannot be taken off, so that a thread that has
none after its calls had none before. Thus what the kernel answers is true, and a userfaultfd is a new one of the
process's own address space. Before it is passed on, it is checked nevertheless: to close a file that the target chose
may take for ever, and only this process may be lost.

An interrupted system call is repeated by the kernel, timeouts included; calls that return EINTR whenever anything
wakes them (epoll_wait and its kin) begin their timeout anew. Only if this process dies while the thread stands still,
more may show: a relative timeout begins anew; epoll_wait and its kin return EINTR if that was before the first look
at the thread; and a signal that came just then ends calls that wait for one (pause, sigsuspend, ppoll and their kin),
but no other call.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import json
import os
import resource
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from kdamon.mm.inject import gadgets
else:
    # The last place: there are no modules of the standard library's names.
    sys.path.append(os.path.dirname(os.path.abspath(__file__)))
    import gadgets

__all__ = ["main"]

#: Seconds for which a thread may be held: a timer kills us then, also when we are stopped, and the thread goes on. On a
#: slow machine a multiple of that, as :func:`_factor` says.
_HOLD: Final = 0.25
#: CPU seconds that this program may take to begin for each of these: twice what it takes on a usual machine.
_BEGINNING: Final = 0.1
_SLOWEST: Final = 8
#: The same for a command that has not begun; it would not go on but be killed, so there is more time.
_HOLD_AT_EXEC: Final = 10.0
#: Seconds to wait until a thread stops; one in the middle of a disk access or of vfork() does not.
_STOP: Final = 0.05
#: The same for one that waits for a CPU, so that it is there when a call of it would return EINTR.
_STOP_RUNNABLE: Final = 0.15
#: Seconds to wait until a thread that runs again comes to its system call; one that is frozen does not.
_RUN: Final = 0.05
#: Reasons that are given when no thread can be used.
_REASONS: Final = 3
#: Seconds for reading the program and its code; if the file system does not answer, only a kill may end that.
_LOOK: Final = 2.0
#: Seconds for which one that advises waits for another job.
_IDLE: Final = 2.0

_PTRACE_CONT: Final = 7
_PTRACE_GETREGS: Final = 12
_PTRACE_SETREGS: Final = 13
_PTRACE_DETACH: Final = 17
_PTRACE_SYSCALL: Final = 24
_PTRACE_GETEVENTMSG: Final = 0x4201
_PTRACE_GETREGSET: Final = 0x4204
_PTRACE_SEIZE: Final = 0x4206
_PTRACE_INTERRUPT: Final = 0x4207
_PTRACE_LISTEN: Final = 0x4208
_PTRACE_GETSIGMASK: Final = 0x420A
_PTRACE_SETSIGMASK: Final = 0x420B
_PTRACE_GET_SYSCALL_INFO: Final = 0x420E
_PTRACE_GET_RSEQ_CONFIGURATION: Final = 0x420F
_PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG: Final = 0x4211
_PTRACE_O_TRACESYSGOOD: Final = 1
_PTRACE_O_TRACEVFORK: Final = 1 << 2
_PTRACE_O_TRACEEXEC: Final = 1 << 4
_PTRACE_O_EXITKILL: Final = 1 << 20
_PTRACE_EVENT_VFORK: Final = 2
_PTRACE_EVENT_EXEC: Final = 4
_PTRACE_EVENT_STOP: Final = 128
_NT_X86_XSTATE: Final = 0x202
_WALL: Final = 0x40000000
_SYSCALL_STOP: Final = signal.SIGTRAP | 0x80

_NR_CLOSE: Final = 3
_NR_MADVISE: Final = 28
_NR_RT_SIGRETURN: Final = 15
_NR_PAUSE: Final = 34
_NR_CLONE: Final = 56
_NR_EXIT: Final = 60
_NR_RT_SIGSUSPEND: Final = 130
_NR_RESTART_SYSCALL: Final = 219
_NR_TIMER_CREATE: Final = 222
_NR_TIMER_SETTIME: Final = 223
_NR_PROCESS_VM_READV: Final = 310
_NR_USERFAULTFD: Final = 323
_NR_PIDFD_OPEN: Final = 434
_NR_CLOSE_RANGE: Final = 436
_NR_PIDFD_GETFD: Final = 438

#: CLONE_VM, CLONE_FILES, CLONE_SIGHAND, CLONE_VFORK, CLONE_THREAD.
_CLONE_FLAGS: Final = 0x100 | 0x400 | 0x800 | 0x4000 | 0x10000
_PR_SET_PTRACER: Final = 0x59616D61
_CLOSE_RANGE_UNSHARE: Final = 2
_PIDFD_THREAD: Final = os.O_EXCL
#: UFFD_USER_MODE_ONLY: faults of the process itself, which needs no privilege.
_UFFD_FLAGS: Final = os.O_CLOEXEC | os.O_NONBLOCK | 1

_USERFAULTFD: Final = "anon_inode:[userfaultfd]"
_UFFDIO_API: Final = 0xC018AA3F
_API: Final = 0xAA
_FEATURE_WP_ASYNC: Final = 1 << 15
#: UFFD_FEATURE_RWP, UFFD_FEATURE_RWP_ASYNC.
_FEATURES_RWP: Final = 1 << 17 | 1 << 18

#: The beginning of struct ptrace_syscall_info: PTRACE_SYSCALL_INFO_ENTRY, AUDIT_ARCH_X86_64.
_ENTRY: Final = 0xC000003E << 32 | 1
#: Where it has the number of the call; the arguments follow.
_NUMBER: Final = 3

_ERESTARTNOINTR: Final = -513
_ERESTARTNOHAND: Final = -514
_ERESTART_RESTARTBLOCK: Final = -516
#: ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_RESTARTBLOCK: the kernel repeats the call if no handler ran.
_ERESTART: Final = (-512, _ERESTARTNOINTR, _ERESTARTNOHAND, _ERESTART_RESTARTBLOCK)
#: Calls that return EINTR when anything wakes them, with nothing done so far, so that they may be repeated: reads and
#: writes (0, 1, 17-20) and messages (42-47, 288, 299, 307) on sockets with a timeout and on FUSE, semop, semtimedop,
#: rt_sigtimedwait, io_getevents, epoll_wait, epoll_pwait, epoll_pwait2, io_uring_enter.
_EINTR_CALLS: Final = frozenset(
    (0, 1, 17, 18, 19, 20, 42, 43, 44, 45, 46, 47, 65, 128, 208, 220, 232, 281, 288, 299, 307, 426, 441)
)
#: Calls that let signals in while they wait, and end by one: pause, rt_sigsuspend, pselect6, ppoll, epoll_pwait,
#: io_pgetevents, epoll_pwait2.
_SIGNAL_CALLS: Final = frozenset((34, 130, 270, 271, 281, 333, 441))
#: Calls in which a thread cannot be stopped while it waits for a child of vfork(): clone, vfork, clone3.
_VFORK_CALLS: Final = frozenset((56, 58, 435))
#: Calls that show how far they came when they are woken in the middle: write, writev, sendfile, sendto, sendmsg,
#: splice, tee, vmsplice, sendmmsg, pwritev2, copy_file_range, recvmmsg.
_TRANSFERS: Final = frozenset((1, 20, 40, 44, 46, 275, 276, 278, 299, 307, 326, 328))
#: recvfrom and recvmsg with their argument that holds the flags.
_RECEIVES: Final = {45: 3, 47: 2}
_MSG_WAITALL: Final = 0x100

_ALL_SIGNALS: Final = (1 << 64) - 1
#: The signals of it that a thread still blocks. C libraries leave out more, so that no thread blocks all that for long.
_ALL_BLOCKED: Final = _ALL_SIGNALS & ~(1 << signal.SIGKILL - 1 | 1 << signal.SIGSTOP - 1)
_USER_CS: Final = 0x33
_USER_SS: Final = 0x2B
_RED_ZONE: Final = 128
#: struct rt_sigframe without its siginfo, which rt_sigreturn does not read, in multiples of 64 bytes.
_FRAME: Final = 320
#: Where the signal mask is in it.
_FRAME_MASK: Final = 304
#: What a frame of ours has in its reserved words, which the kernel neither reads nor restores, and where they are.
_MARK: Final = b"kdamon: a thread returns by this, and nothing else is here".ljust(64, b"\0")
_FRAME_MARK: Final = 240
#: The second thread's frame, the first one's, another one for pause(); the extended state comes after them.
_FRAMES: Final = 3 * _FRAME
_OWN: Final = _FRAME
_THIRD: Final = 2 * _FRAME
_PAGE: Final = 4096
#: The entry of the auxiliary vector that has the address of random bytes, and their number.
_AT_RANDOM: Final = 25
_RANDOM: Final = 16
#: Bits of an entry of /proc/PID/pagemap: present, swapped.
_POPULATED: Final = 3 << 62
#: Bytes below the frames that a signal handler may need, should it come to run there.
_HANDLER: Final = 16384
#: Bytes above a thread's TCB in its stack, at most; and of the TCB, in which the stack's bounds are looked for.
_ABOVE_TCB: Final = 16384
_TCB: Final = 2304
#: No memory of a process is below (vm.mmap_min_addr).
_LOWEST: Final = 65536
#: Bytes from the start of the first thread's stack in which a place of an earlier attempt is looked for.
_SEARCHED: Final = 1 << 20
#: Bytes by which the first thread's stack may have grown since the job was made.
_GROWTH: Final = 16 << 20
#: UC_FP_XSTATE, UC_SIGCONTEXT_SS, UC_STRICT_RESTORE_SS.
_UC_FLAGS: Final = 7
#: No valid flags of a signal stack: rt_sigreturn leaves the thread's own as it is.
_NO_STACK: Final = 0x7FFFFFFF
_FP_XSTATE_MAGIC1: Final = 0x46505853
_FP_XSTATE_MAGIC2: Final = 0x46505845
#: Where the extended state begins to describe itself, for signal frames and, by its first 8 bytes, for ptrace.
_SW_RESERVED: Final = 464
_XSTATE_BV: Final = 512
_AMX: Final = 3 << 17
#: Bytes of the state below AMX, on all processors that have AMX.
_BELOW_AMX: Final = 2696

_NOT_RUN: Final = "it gets no CPU, or was frozen just now"
_PENDING: Final = "it is still completing an earlier attempt"

#: The fields of ``struct user_regs_struct`` in order.
_REGISTERS: Final = (
    "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss "
    "fs_base gs_base ds es fs gs"
)

_PTRACE_SCOPE: Final = "/proc/sys/kernel/yama/ptrace_scope"


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.restype = ctypes.c_long
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    libc.syscall.restype = ctypes.c_long
    return libc


class _Registers(ctypes.Structure):
    """``struct user_regs_struct``."""

    r15: int
    r14: int
    r13: int
    r12: int
    rbp: int
    rbx: int
    r11: int
    r10: int
    r9: int
    r8: int
    rax: int
    rcx: int
    rdx: int
    rsi: int
    rdi: int
    orig_rax: int
    rip: int
    cs: int
    eflags: int
    rsp: int
    ss: int
    fs_base: int
    gs_base: int
    ds: int
    es: int
    fs: int
    gs: int

    _fields_ = [(name, ctypes.c_uint64) for name in _REGISTERS.split()]


class _Again(Exception):
    """This thread cannot be used at this moment; later or another one can."""


class _Unsuitable(_Again):
    """This thread cannot be used, nor will it soon; another one may be."""

    def __init__(self, why: str, number: int = errno.EBUSY) -> None:
        super().__init__(why)
        self.number = number


class _NoThread(_Again):
    """No thread can be used.

    :param unsuitable: errno and reason for each thread that it makes no sense to try again.
    """

    def __init__(self, reasons: list[str], unsuitable: dict[int, tuple[int, str]]) -> None:
        more = [f"{len(reasons) - _REASONS} more"] if len(reasons) > _REASONS else []
        super().__init__("; ".join(reasons[:_REASONS] + more))
        self.unsuitable = unsuitable


class _Changed(OSError):
    """The target, or another process, interferes with the calls: neither they nor their results can be trusted.

    Its threads may be anywhere, and are released by the end of this process.
    """

    def __init__(self) -> None:
        super().__init__(errno.EPERM, "it interferes with injected system calls; monitor it by page_table instead")


class _Late(Exception):
    """A thread did not get to where it was to be in the time that it was given."""


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _syscall(number: int, *arguments: int) -> int:
    result = int(_libc().syscall(ctypes.c_long(number), *(ctypes.c_long(argument) for argument in arguments)))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _factor(cpu_seconds: float) -> int:
    """How many times :data:`_HOLD` a thread may be held, where this program took ``cpu_seconds`` to begin.

    What is to be done meanwhile takes CPU time, too: on an emulated machine more than :data:`_HOLD`.
    """
    return min(max(int(cpu_seconds / _BEGINNING), 1), _SLOWEST)


class _Deadline:
    """A timer that kills this process, stopped or not: the kernel then lets go of what it traces.

    :ivar factor: see :func:`_factor`.
    """

    def __init__(self) -> None:
        self.factor = _factor(time.process_time())
        event = struct.pack("qii48x", 0, signal.SIGKILL, 0)
        number = ctypes.c_int()
        _syscall(_NR_TIMER_CREATE, time.CLOCK_MONOTONIC, _address(event), ctypes.addressof(number))
        self._number = number.value

    def set(self, seconds: float) -> None:
        """Kill in ``seconds``, never when they are 0."""
        value = struct.pack("4q", 0, 0, int(seconds), int(seconds % 1 * 1e9))
        _syscall(_NR_TIMER_SETTIME, self._number, 0, _address(value), 0)


def _address(data: bytes) -> int:
    """Where ``data`` is; it must be kept while that is used."""
    return ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0


class _Tracee:
    """A thread that this process traces."""

    def __init__(self, tid: int) -> None:
        self.tid = tid

    def request(self, number: int, addr: int = 0, data: int = 0) -> None:
        if _libc().ptrace(number, self.tid, addr, data) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def get_registers(self) -> _Registers:
        registers = _Registers()
        self.request(_PTRACE_GETREGS, 0, ctypes.addressof(registers))
        return registers

    def set_registers(self, registers: _Registers) -> None:
        self.request(_PTRACE_SETREGS, 0, ctypes.addressof(registers))

    def set_mask(self, mask: int) -> None:
        word = ctypes.c_uint64(mask)
        self.request(_PTRACE_SETSIGMASK, 8, ctypes.addressof(word))

    def wait(self, seconds: float | None = None) -> int | None:
        """The next stop: its signal, and from bit 8 its event; None when the thread ended.

        :raises _Late: there was none for so many seconds.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            found, status = os.waitpid(self.tid, _WALL if deadline is None else _WALL | os.WNOHANG)
            if found:
                return status >> 8 if os.WIFSTOPPED(status) else None
            assert deadline is not None
            if signal.sigtimedwait((signal.SIGCHLD,), max(0, deadline - time.monotonic())) is None:
                raise _Late

    def dispatches_system_calls(self) -> bool:
        """Return whether the thread gets SIGSYS for system calls, as Wine's (PR_SET_SYSCALL_USER_DISPATCH)."""
        setting = (ctypes.c_uint64 * 4)()
        self.request(_PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG, ctypes.sizeof(setting), ctypes.addressof(setting))
        return setting[0] != 0

    def event_message(self) -> int:
        message = ctypes.c_ulong()
        self.request(_PTRACE_GETEVENTMSG, 0, ctypes.addressof(message))
        return message.value

    def run(self, request: int, *stops: int, seconds: float | None = None) -> int:
        """Resume until one of ``stops`` (a system call's signal, or an event), past all others.

        :raises _Late: there was none at all for so many seconds.
        """
        stop = 0
        while True:
            found = self.resume(request, stop, seconds)
            if found is None:
                raise ProcessLookupError(errno.ESRCH, "the process ended; nothing is left to monitor")
            stop = found
            reason = stop if stop < 1 << 8 else stop >> 8
            if reason in stops:
                return reason

    def resume(self, request: int, stop: int, seconds: float | None = None) -> int | None:
        """Resume from ``stop`` and wait for the next one, as :meth:`wait` returns them.

        SIGSTOP cannot be blocked: the process gets it, goes on nevertheless, and stops once it is let go.
        """
        self.request(request, 0, stop if stop == signal.SIGSTOP else 0)
        return self.wait(seconds)

    def begin_call(self) -> None:
        """Resume to where the kernel is about to carry out the call that is repeated; _Again: a signal came, let go."""
        try:
            stop = self.resume(_PTRACE_SYSCALL, 0, _RUN)
        except _Late:
            # It repeats the call when it can, as it would without us.
            raise _Again(_NOT_RUN) from None
        if stop == _SYSCALL_STOP:
            return
        if stop is not None:
            self.request(_PTRACE_DETACH, 0, stop if stop < 1 << 8 else 0)
        raise _Again("a signal came")

    def call(self, template: _Registers, number: int, *arguments: int) -> int:
        """Run one system call.

        :param template: registers of which the address of the instruction and the stack matter.
        :returns: what the call returns, a negative errno for a failure.
        """
        self.set_registers(_prepared(template, number, *arguments))
        self.run(_PTRACE_SYSCALL, _SYSCALL_STOP)
        self.expect(number, *arguments)
        self.run(_PTRACE_SYSCALL, _SYSCALL_STOP)
        return _signed(self.get_registers().rax)

    def expect(self, number: int, *arguments: int) -> None:
        """Make sure that the kernel is about to carry out a call, be the code what it may; _Changed: it is not."""
        info = (ctypes.c_uint64 * 16)()
        self.request(_PTRACE_GET_SYSCALL_INFO, ctypes.sizeof(info), ctypes.addressof(info))
        if info[0] != _ENTRY or info[_NUMBER : _NUMBER + 1 + len(arguments)] != [number, *arguments]:
            raise _Changed

    def expect_no_filter(self) -> None:
        """Make sure that nothing but the kernel answered the calls so far; _Changed: a filter may have."""
        with open(f"/proc/{self.tid}/status", "rb") as file:
            if not _seccomp_off(file.read()):
                raise _Changed


def _repeated(registers: _Registers) -> int:
    """The number of the interrupted call that the kernel will repeat, -1 for none."""
    return _signed(registers.orig_rax) if _signed(registers.rax) in _ERESTART else -1


def _prepared(template: _Registers, number: int, *arguments: int) -> _Registers:
    registers = _Registers.from_buffer_copy(template)
    registers.rax = number
    registers.orig_rax = _ALL_SIGNALS
    for name, argument in zip(("rdi", "rsi", "rdx", "r10", "r8", "r9"), arguments, strict=False):
        setattr(registers, name, argument)
    return registers


def _frame(registers: _Registers, mask: int, sigreturn: int, fpstate: int) -> bytes:
    """``struct rt_sigframe`` that sets all registers and the signal mask (``arch/x86/kernel/signal_64.c``)."""
    return struct.pack(
        "<Q QQ QiiQ 18Q 4H 4Q Q 64s Q",
        *(sigreturn, _UC_FLAGS if fpstate else _UC_FLAGS & ~1, 0, 0, _NO_STACK, 0, 0),
        *(registers.r8, registers.r9, registers.r10, registers.r11, registers.r12, registers.r13, registers.r14),
        *(registers.r15, registers.rdi, registers.rsi, registers.rbp, registers.rbx, registers.rdx, registers.rax),
        *(registers.rcx, registers.rsp, registers.rip, registers.eflags, registers.cs, 0, 0, registers.ss),
        *(0, 0, 0, 0, fpstate, _MARK, mask),
    ).ljust(_FRAME, b"\0")


def _exit_frame(gadget: int, sigreturn: int) -> bytes:
    """The signal frame that makes the second thread exit."""
    registers = _Registers()
    registers.rax, registers.rip, registers.eflags = _NR_EXIT, gadget, 0x202
    registers.cs, registers.ss = _USER_CS, _USER_SS
    return _frame(registers, _ALL_SIGNALS, sigreturn, 0)


def _floating_point(thread: _Tracee) -> bytes:
    """The thread's extended state in the form that rt_sigreturn takes."""
    room = ctypes.create_string_buffer(1 << 15)
    vector = (ctypes.c_uint64 * 2)(ctypes.addressof(room), len(room))
    thread.request(_PTRACE_GETREGSET, _NT_X86_XSTATE, ctypes.addressof(vector))
    state = bytearray(room.raw[: vector[1]])
    (features,) = struct.unpack_from("<Q", state, _SW_RESERVED)
    (used,) = struct.unpack_from("<Q", state, _XSTATE_BV)
    if used & _AMX:
        raise _Unsuitable("it uses AMX tiles, which cannot be restored", errno.EOPNOTSUPP)
    if features & _AMX:
        # A thread without permission for AMX has no room for it in its frames.
        del state[_BELOW_AMX:]
        features &= ~_AMX
    size = len(state)
    struct.pack_into("<IIQI28x", state, _SW_RESERVED, _FP_XSTATE_MAGIC1, size + 4, features, size)
    return bytes(state) + struct.pack("<I", _FP_XSTATE_MAGIC2)


class _Injection:
    """Runs system calls in one address space.

    :param job: the information of :mod:`kdamon.mm.inject` about the process.
    :param memory: open /proc/PID/mem. It stays that address space's: after an exec() nothing can be written by it.
    """

    def __init__(self, job: dict[str, Any], memory: int) -> None:
        self._pid: int = job["pid"]
        code = job["code"]
        self._gadget: int = code["gadget"]
        self._sigreturn: int = code["sigreturn"]
        self._codes = [(addr, bytes.fromhex(content)) for addr, content in code["codes"]]
        #: Start and end of the first thread's stack, and bytes to which it may grow.
        self._stack: list[int] = job["stack"]
        #: Start and end of what is private, anonymous and may be written to.
        self._anonymous: list[list[int]] = job["anonymous"]
        self._memory = memory

    def stop(self, tid: int) -> tuple[_Tracee, _Registers]:
        """Stop a thread where it is; its registers are such that a detach continues as if it had not been stopped."""
        if _transferring(self._pid, tid):
            raise _Again("it is in the middle of a transfer that a stop would cut short")
        thread = _Tracee(tid)
        try:
            thread.request(_PTRACE_SEIZE, 0, _PTRACE_O_TRACESYSGOOD | _PTRACE_O_TRACEVFORK)
            thread.request(_PTRACE_INTERRUPT)
        except ProcessLookupError:
            raise _Again("it ended") from None
        except PermissionError:
            raise _not_traceable(self._pid, tid) from None
        seconds = _STOP
        while True:
            try:
                stop = thread.wait(seconds)
            except _Late:
                if seconds == _STOP and _runnable(self._pid, tid):
                    seconds = _STOP_RUNNABLE - _STOP
                    continue
                raise _Again("it did not stop, since it waits in the kernel or for a CPU") from None
            if stop is None:
                raise _Again("it ended")
            if stop >> 8 != _PTRACE_EVENT_STOP:
                # A signal about to be delivered, which the thread is to get.
                thread.request(_PTRACE_CONT, 0, stop & 0xFF)
            elif stop & 0xFF != signal.SIGTRAP:
                thread.request(_PTRACE_DETACH)
                raise _Again("a signal stopped it")
            else:
                return thread, self._undisturbed(thread)

    def with_second_thread(
        self, thread: _Tracee, registers: _Registers, work: Callable[[_Tracee, _Registers], int]
    ) -> int:
        """Run ``work`` on a second thread of the process of ``thread``, which :meth:`stop` gave; let go of both."""
        at_call = _repeated(registers) in _SIGNAL_CALLS
        mask, place = self._prepare(thread, registers, at_call=at_call)
        template = self._divert(thread, registers, place, at_call=at_call)
        if not at_call:
            self._begin_clone(thread, registers, mask, place)
        thread.expect(_NR_CLONE, _CLONE_FLAGS, place, 0, 0, 0)
        with _then(functools.partial(self._let_go, thread, registers, mask)):
            second = self._clone(thread)
            template.rsp = place
            with _then(functools.partial(_end, second)):
                return work(second, template)

    def _prepare(self, thread: _Tracee, registers: _Registers, *, at_call: bool) -> tuple[int, int]:
        """Write the frames of a stopped thread, in which nothing is changed yet; it is let go where that is refused.

        :param at_call: it repeats a call that lets signals in; it is where the kernel is about to begin that then.
        :returns: its signal mask, and the address of the second thread's frame, see :meth:`_write_frames`.
        """
        mask = ctypes.c_uint64()
        try:
            thread.request(_PTRACE_GETSIGMASK, 8, ctypes.addressof(mask))
            self._check(thread, registers, mask.value)
            place = self._write_frames(thread, registers, mask.value)
            if at_call:
                # Were a signal let in now, it would be gone before the call is repeated. None is where the kernel is
                # about to begin a call. One that is there already ends the call, but not by way of us: it would be
                # lost with us.
                if _signal_pending(self._pid, thread.tid):
                    raise _Again("a signal came")
                thread.begin_call()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                thread.request(_PTRACE_DETACH)
            raise
        return mask.value, place

    @staticmethod
    def _clone(thread: _Tracee) -> _Tracee:
        """Have the kernel carry out the clone() that a diverted thread is about to make.

        :returns: the second thread, stopped before its first instruction; the first one waits for its end.
        :raises OSError: there may be no further thread; the first one is at the end of its call.
        :raises _Again: a signal interrupted it; the first one is there, too.
        """
        if thread.run(_PTRACE_SYSCALL, _SYSCALL_STOP, _PTRACE_EVENT_VFORK) == _SYSCALL_STOP:
            thread.expect_no_filter()
            raise _clone_error(_signed(thread.get_registers().rax))
        second = _Tracee(thread.event_message())
        second.wait()
        return second

    @staticmethod
    def _let_go(thread: _Tracee, registers: _Registers, mask: int) -> None:
        """Put the first thread back where it was."""
        # Stop it on its way back to user mode: there the kernel itself repeats an interrupted system call. But pause()
        # has no mask of its own to let signals in with: its frames do that.
        if _repeated(registers) != _NR_PAUSE:
            thread.request(_PTRACE_INTERRUPT)
            thread.run(_PTRACE_CONT, _PTRACE_EVENT_STOP)
            thread.set_mask(mask)
            thread.set_registers(registers)
        thread.request(_PTRACE_DETACH)

    def _divert(self, thread: _Tracee, registers: _Registers, place: int, *, at_call: bool) -> _Registers:
        """Make a stopped thread call clone() next; at each instant it must be able to go on by itself.

        :returns: registers with which it makes a call at the same place.
        """
        # So first it gets to where it restores itself, ...
        template = self._restoring(registers, place)
        if at_call:
            template.orig_rax = _NR_RT_SIGRETURN
        thread.set_registers(template)
        # ... then no handler may run any more on the frames: signals wait until the mask is back, ...
        thread.set_mask(_ALL_SIGNALS)
        # ... and only then it makes a call.
        template.rip, template.rsp = self._gadget, place + _OWN
        clone = _prepared(template, _NR_CLONE, _CLONE_FLAGS, place, 0, 0, 0)
        if at_call:
            clone.rip, clone.orig_rax = self._gadget + 2, _NR_CLONE
        thread.set_registers(clone)
        return template

    def _restoring(self, registers: _Registers, place: int) -> _Registers:
        """The registers with which the first thread restores itself by its frame."""
        restoring = _Registers.from_buffer_copy(registers)
        restoring.rip, restoring.rsp, restoring.orig_rax = self._sigreturn, place + _OWN + 8, _ALL_SIGNALS
        return restoring

    def _begin_clone(self, thread: _Tracee, registers: _Registers, mask: int, place: int) -> None:
        """Let a diverted thread run until the kernel is about to carry out clone().

        :raises _Again: it does not run; it is where it was, and let go.
        """
        try:
            thread.run(_PTRACE_SYSCALL, _SYSCALL_STOP, seconds=_RUN)
            return
        except _Late:
            thread.request(_PTRACE_INTERRUPT)
        # Where this never comes, our timer ends us, and the thread makes the call when it can.
        if thread.wait() == _SYSCALL_STOP:
            # Only now it came there; it is stopped once more, which the kernel makes a failure of clone().
            return
        # As in the beginning, backwards; should we die, its frame restores it.
        thread.set_registers(self._restoring(registers, place))
        thread.set_mask(mask)
        thread.set_registers(registers)
        thread.request(_PTRACE_DETACH)
        raise _Again(_NOT_RUN)

    def _undisturbed(self, thread: _Tracee) -> _Registers:
        """Let the kernel repeat also what returns EINTR when anything wakes it, unless a handler runs."""
        registers = thread.get_registers()
        if _signed(registers.orig_rax) in _EINTR_CALLS and _signed(registers.rax) == -errno.EINTR:
            registers.rax = _ERESTARTNOHAND & _ALL_SIGNALS
            thread.set_registers(registers)
        abort = self._restartable_sequence(thread, registers.rip)
        if abort:
            registers.rip = abort
            thread.set_registers(registers)
        return registers

    def _restartable_sequence(self, thread: _Tracee, rip: int) -> int:
        """Where the restartable sequence at ``rip`` goes on after a preemption, 0 when there is none (rseq(2))."""
        setting = ctypes.create_string_buffer(24)
        try:
            thread.request(_PTRACE_GET_RSEQ_CONFIGURATION, 24, ctypes.addressof(setting))
        except OSError:
            return 0
        (area,) = struct.unpack_from("<Q", setting)
        if not area:
            return 0
        sequence = self._read(8, area + 8)
        if len(sequence) < 8 or not any(sequence):
            return 0
        description = self._read(32, *struct.unpack("<Q", sequence))
        if len(description) < 32:
            return 0
        start, size, abort = struct.unpack_from("<3Q", description, 8)
        return int(abort) if start <= rip < start + size else 0

    def _read(self, size: int, addr: int) -> bytes:
        """Read memory at an address that the process chose, be it none at all; less where there is less."""
        with contextlib.suppress(OSError, OverflowError):
            return os.pread(self._memory, size, addr)
        return b""

    def _check(self, thread: _Tracee, registers: _Registers, mask: int) -> None:
        """Look again, now that nothing changes any more, at what may have changed since the job was made."""
        if registers.cs != _USER_CS:
            raise _Unsuitable("it runs 32-bit code", errno.EOPNOTSUPP)
        if self._half_done(registers, mask):
            raise _Again(_PENDING)
        with open(f"/proc/{self._pid}/task/{thread.tid}/status", "rb") as file:
            status = file.read()
        if not _seccomp_off(status):
            raise _Unsuitable("it began to filter its system calls", errno.EPERM)
        if thread.dispatches_system_calls():
            raise _Unsuitable("it dispatches system calls in user space, and one more might be its end", errno.EPERM)
        same = self._is_memory_of(thread.tid)
        if not same or any(self._read(len(code), addr) != code for addr, code in self._codes):
            raise _Again("it began another program")

    def _is_memory_of(self, tid: int) -> bool:
        """Return whether a thread lives in this address space, which may go on without it, as a parent's after vfork().

        Each exec() draws random bytes (AT_RANDOM), which no other address space has at that place.
        """
        with open(f"/proc/{tid}/auxv", "rb") as file:
            content = file.read()
        # That of a 32-bit program may end in the middle.
        vector = dict(struct.iter_unpack("<QQ", content[: len(content) & -16]))
        place = vector.get(_AT_RANDOM, 0)
        with open(f"/proc/{tid}/mem", "rb", buffering=0) as memory, contextlib.suppress(OSError, OverflowError):
            return self._read(_RANDOM, place) == os.pread(memory.fileno(), _RANDOM, place)
        return False

    def _half_done(self, registers: _Registers, mask: int) -> bool:
        """Return whether a thread is on its way through an attempt, ours or another kdamon's, whose helper is gone."""
        frame = next((addr for addr in (registers.rsp, registers.rsp - 8) if self._marked(addr)), 0)
        if frame and _repeated(registers) == _NR_RT_SIGSUSPEND:
            # It waits in the pause() in which it was, see _pause(), for as long as the program likes.
            return False
        at_code = registers.rip in (self._gadget, self._gadget + 2) or 0 <= registers.rip - self._sigreturn < 10
        return bool(frame) or (at_code and mask == _ALL_BLOCKED)

    def _marked(self, frame: int) -> bool:
        """Return whether there is a frame of ours at an address."""
        return self._read(len(_MARK), frame + _FRAME_MARK) == _MARK

    def _write_frames(self, thread: _Tracee, registers: _Registers, mask: int) -> int:
        """Put the signal frames into memory of the thread's own stack in which nothing lives.

        :returns: the address of the second thread's frame; that of ``thread`` and another one follow it.
        """
        state = _floating_point(thread)
        filled = -(-(_FRAMES + len(state)) // len(_MARK)) * len(_MARK)
        size = -(-(filled + 1) // _PAGE) * _PAGE
        # Where the marks are and nothing but them, the next attempt can do the same.
        marks = _MARK * ((size - filled) // len(_MARK))
        place = self._place(thread, registers, size, marks)
        resumed = self._resumed(registers)
        frames = _frame(resumed, mask, self._sigreturn, place + _FRAMES) * 2
        if _repeated(registers) == _NR_PAUSE:
            frames = self._pause(registers, mask, place + _THIRD, place + _FRAMES)
        data = (_exit_frame(self._gadget, self._sigreturn) + frames + state).ljust(filled, b"\0") + marks
        # It fails where a stack may not grow, and where a userfaultfd of the program's is to fill a page. To read such
        # a page would wait for that.
        with contextlib.suppress(OSError):
            # It is read again as the thread will read it: writing makes light of protections.
            if os.pwrite(self._memory, data, place) == size and _read_as(thread.tid, place, size) == data:
                return place
        raise _Unsuitable("its stack has no room")

    def _place(self, thread: _Tracee, registers: _Registers, size: int, marks: bytes) -> int:
        """An address at which ``size`` bytes can be written because no data of the program can be there.

        That is neither right below the stack pointer, where there is the rest of the stack if the thread runs in a
        signal handler or a coroutine on an array in it, nor in what a program uses as a stack by itself.

        :param marks: what an earlier attempt left at the end of such a place.
        """
        with open(f"/proc/{self._pid}/task/{thread.tid}/pagemap", "rb", buffering=0) as pagemap:
            for place in self._places(thread, registers, size):
                room = place + size <= registers.rsp - _RED_ZONE
                if room and self._unused(pagemap.fileno(), place, size, marks):
                    return place
        raise _Unsuitable("its stack has no room that was never used")

    def _places(self, thread: _Tracee, registers: _Registers, size: int) -> list[int]:
        """Addresses of pages in the thread's own stack, the best ones first."""
        low, high = self._recorded_stack(registers)
        if low < high:
            if _repeated(registers) == _NR_PAUSE:
                # A handler will run below the frames, and has less room there than the program gave it.
                raise _Unsuitable("it waits in pause() on a stack that does not grow")
            # Far from what the thread uses, with room for a handler: a quarter of the stack above its end at first.
            distances = [(high - low) >> shift for shift in (*range(2, 32), 1)]
            return [low + distance & -_PAGE for distance in distances if distance >= _HANDLER + _PAGE]
        start, end, limit = self._stack
        if thread.tid != self._pid or not start - _GROWTH <= registers.rsp < end:
            raise _Unsuitable("it runs on a signal stack, a stack of the program's own making or one without room")
        if registers.rsp < start:
            raise _Again("its stack grew just now")
        # What an earlier attempt used may have something below it by now: a handler's data, for as long as the thread
        # was in pause(). What is below the start is no memory yet, and becomes the stack's when it is written to.
        pages = range(start, min(registers.rsp, start + _SEARCHED), _PAGE)
        used = [page for page in pages if self._marked(page + _THIRD)]
        below = (min(start, registers.rsp - _RED_ZONE) - size) & -_PAGE
        # A handler has at least half of the room there that it has now.
        room = max(_HANDLER, (limit - (end - registers.rsp)) // 2)
        return [place for place in (start, *used, below) if limit - (end - place) >= room]

    def _recorded_stack(self, registers: _Registers) -> tuple[int, int]:
        """The bounds of the thread's stack as the C library recorded them in its TCB; (0, 0) if it did not.

        glibc: stackblock, stackblock_size, guardsize, reported_guardsize (nptl/descr.h), with the TCB at the end of the
        stack. musl: map_base, map_size, stack (its upper end), stack_size, guard_size (src/internal/pthread_impl.h),
        with the TCB after the stack; what a program gave itself is not recorded there.
        """
        tcb, rsp = registers.fs_base, registers.rsp
        content = self._read(_TCB, tcb)
        words = [word for (word,) in struct.iter_unpack("<Q", content[: len(content) & -8])]
        for base, size, third, fourth, fifth in zip(*(words[number:] for number in range(5)), strict=False):
            if not (_LOWEST <= base <= rsp < tcb < base + size <= tcb + _ABOVE_TCB):
                continue
            if fourth <= third < size and not (third | fourth) % _PAGE:
                low, high = base + third, tcb
            elif third <= tcb and third - fourth == base + fifth:
                low, high = base + fifth, third
            else:
                continue
            # All of it is one piece of memory; words that are no stack's bounds do not come to that.
            if low <= rsp < high and any(start <= low and high <= end for start, end in self._anonymous):
                return low, high
        return 0, 0

    def _unused(self, pagemap: int, place: int, size: int, marks: bytes) -> bool:
        """Return whether nothing was ever written to pages of an anonymous mapping but by an attempt as this one."""
        entries = os.pread(pagemap, size // _PAGE * 8, place // _PAGE * 8)
        if not any(entry & _POPULATED for (entry,) in struct.iter_unpack("<Q", entries)):
            return len(entries) == size // _PAGE * 8
        content = self._read(size, place)
        # Below the third frame there may be what a handler left that ran in pause().
        return content.endswith(marks) and content.startswith(_MARK, _THIRD + _FRAME_MARK)

    def _pause(self, registers: _Registers, mask: int, addr: int, fpstate: int) -> bytes:
        """Two frames that repeat pause() such that a signal which came meanwhile ends it.

        The first calls rt_sigsuspend() while all signals are still blocked, the second, at ``addr``, returns EINTR.
        """
        waiting = _Registers.from_buffer_copy(registers)
        waiting.rax, waiting.rdi, waiting.rsi = _NR_RT_SIGSUSPEND, addr + _FRAME_MASK, 8
        waiting.rip, waiting.rsp = self._gadget, addr
        ended = _Registers.from_buffer_copy(registers)
        ended.rax = -errno.EINTR & _ALL_SIGNALS
        return _frame(waiting, _ALL_SIGNALS, self._sigreturn, fpstate) + _frame(ended, mask, self._sigreturn, fpstate)

    def _resumed(self, registers: _Registers) -> _Registers:
        """The registers with which a signal frame repeats an interrupted system call.

        Calls with a relative time begin it anew. The kernel would go on with the rest of it, but it forgets that on
        each return from a signal. It takes our death in the middle to come to this.
        """
        resumed = _Registers.from_buffer_copy(registers)
        if _repeated(registers) < 0:
            return resumed
        resumed.rax = registers.orig_rax
        resumed.rip -= 2
        if registers.orig_rax == _NR_RESTART_SYSCALL:
            # Interrupted for a second time: which call it was may stand before it, as mov $NUMBER, %eax.
            code = self._read(5, resumed.rip - 5)
            if code[:1] == b"\xb8":
                resumed.rax = int.from_bytes(code[1:], "little")
        return resumed


@contextlib.contextmanager
def _then(done: Callable[[], None]) -> Iterator[None]:
    """Call ``done`` at the end, but not where threads may be anywhere."""
    try:
        yield
    except _Changed:
        raise
    except BaseException:
        done()
        raise
    done()


def _end(second: _Tracee) -> None:
    """Let the second thread exit by its frame. What stops the whole process must not stop it before that."""
    stop: int | None = 0
    while stop is not None:
        stop = second.resume(_PTRACE_CONT, stop)


def _system_call(pid: int, tid: int) -> list[bytes]:
    """Number and arguments of the call that a thread waits in; the number is -1 when there is none."""
    try:
        with open(f"/proc/{pid}/task/{tid}/syscall", "rb") as file:
            words = file.read().split()
    except OSError:
        words = []
    return words if len(words) >= 7 else [b"-1"]


def _runnable(pid: int, tid: int) -> bool:
    """Return whether a thread runs or waits for a CPU."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{tid}/status", "rb") as file:
        return b"\nState:\tR" in file.read()
    return False


def _read_as(tid: int, addr: int, size: int) -> bytes:
    """Read memory of a thread that it may itself read, less when there is less."""
    room = ctypes.create_string_buffer(size)
    ours, its = (struct.pack("2Q", base, size) for base in (ctypes.addressof(room), addr))
    try:
        length = _syscall(_NR_PROCESS_VM_READV, tid, _address(ours), 1, _address(its), 1, 0)
    except OSError:
        length = 0
    return room.raw[:length]


def _signal_pending(pid: int, tid: int) -> bool:
    """Return whether the thread is about to get a signal."""
    with open(f"/proc/{pid}/task/{tid}/status", "rb") as file:
        status = dict(line.split(b":", 1) for line in file.read().split(b"\n") if line)
    own, shared, blocked = (int(status[name], 16) for name in (b"SigPnd", b"ShdPnd", b"SigBlk"))
    return bool((own | shared) & ~blocked)


def _transferring(pid: int, tid: int) -> bool:
    """Return whether the thread waits in the middle of a call that may have done a part of its work."""
    words = _system_call(pid, tid)
    number = int(words[0])
    flags = _RECEIVES.get(number)
    return number in _TRANSFERS or (flags is not None and bool(int(words[1 + flags], 16) & _MSG_WAITALL))


def _reluctance(pid: int, tid: int) -> int:
    """How much better it were to stop another thread."""
    number = int(_system_call(pid, tid)[0])
    if number in _VFORK_CALLS:
        return 2
    # Were we killed right after its stop, it would see an error that it need not see.
    return int(number in _EINTR_CALLS)


def _seccomp_off(status: bytes) -> bool:
    return b"\nSeccomp:\t0" in status or b"\nSeccomp:" not in status


def _not_traceable(pid: int, tid: int) -> Exception:
    try:
        with open(f"/proc/{pid}/task/{tid}/status", "rb") as file:
            status = file.read()
    except OSError:
        return _Again("it ended")
    if b"\nState:\tZ" in status or b"\nState:\tX" in status:
        return _Again("it ended")
    if b"\nTracerPid:\t0\n" not in status:
        return _Again("another process traces it")
    scope = _ptrace_scope()
    if scope != "0" and not _may_trace():
        return OSError(errno.EPERM, f"it may not be traced with {scope} in {_PTRACE_SCOPE}; run as root or set it to 0")
    # Its memory was opened, which takes the same right: another tracer was there just now, or a rule forbids it.
    return _Again("it may not be traced now, because of another tracer or by a rule of a security module")


def _ptrace_scope() -> str:
    """The scope of ptrace: 0 lets processes of one user trace each other, more only ancestors, or no process."""
    try:
        with open(_PTRACE_SCOPE) as file:
            return file.read().strip()
    except OSError:
        return "0"


def _may_trace() -> bool:
    """Return whether this process has CAP_SYS_PTRACE."""
    with open("/proc/self/status", "rb") as status:
        effective = next(int(line.split()[1], 16) for line in status if line.startswith(b"CapEff:"))
    return bool(effective >> 19 & 1)


def _clone_error(number: int) -> Exception:
    if number == _ERESTARTNOINTR:
        return _Again("a signal came")
    return OSError(
        -number,
        "it may not have one thread more, not even for a moment: "
        f"{os.strerror(-number).lower()}; raise its limit of tasks or monitor page_table instead",
    )


def _userfaultfd(second: _Tracee, template: _Registers) -> int:
    """Make the second thread create a userfaultfd, and take it.

    The other threads never see it, nor does a child that they fork: the second thread has a table of its own by then.
    """
    unshared = second.call(template, _NR_CLOSE_RANGE, 0, (1 << 32) - 1, _CLOSE_RANGE_UNSHARE)
    result = second.call(template, _NR_USERFAULTFD, _UFFD_FLAGS) if unshared == 0 else unshared
    second.expect_no_filter()
    if unshared < 0:
        raise OSError(-unshared, f"unsharing file descriptors: {os.strerror(-unshared).lower()}")
    if result < 0:
        raise _refusal(-result)
    pidfd = _syscall(_NR_PIDFD_OPEN, second.tid, _PIDFD_THREAD)
    return _with_api(_syscall(_NR_PIDFD_GETFD, pidfd, result, 0))


def _with_api(fd: int) -> int:
    """Choose the API of a new userfaultfd, and return it; _Changed: it is none."""
    if os.readlink(f"/proc/self/fd/{fd}") != _USERFAULTFD:
        raise _Changed
    # A refusal chooses nothing, so that there may be another attempt.
    with contextlib.suppress(OSError):
        fcntl.ioctl(fd, _UFFDIO_API, struct.pack("<QQQ", _API, _FEATURE_WP_ASYNC | _FEATURES_RWP, 0))
        return fd
    try:
        fcntl.ioctl(fd, _UFFDIO_API, struct.pack("<QQQ", _API, _FEATURE_WP_ASYNC, 0))
    except OSError as error:
        raise OSError(
            errno.EOPNOTSUPP, "the kernel's userfaultfd knows no asynchronous write protection; it needs Linux 6.7"
        ) from error
    return fd


def _refusal(number: int) -> OSError:
    if number == errno.ENOSYS:
        return OSError(errno.EOPNOTSUPP, "the kernel has no userfaultfd(); it needs CONFIG_USERFAULTFD")
    return OSError(number, f"it may not call userfaultfd(): {os.strerror(number).lower()}")


def _advise(channel: socket.socket, deadline: _Deadline) -> None:
    """Make processes advise their kernel about ranges of their memory, each job at one stop."""
    kept = True
    while kept:
        deadline.set(_IDLE)
        job, fds = _receive(channel)
        answers: list[int] = []
        advise = functools.partial(_madvise, ranges=job["ranges"], advice=job["advice"], answers=answers)
        _, kept = _by_any_thread(job, fds, channel, deadline, advise)
        for fd in fds:
            os.close(fd)
        refusal = next(filter(None, answers), 0)
        known = {"taken": answers.count(0), "refusal": refusal, "kept": kept, "code": job["code"]}
        _send(channel, {"errno": 0} | known)


def _madvise(second: _Tracee, template: _Registers, *, ranges: list[list[int]], advice: int, answers: list[int]) -> int:
    """Make the second thread advise; each range's errno goes to ``answers``."""
    answers.extend(-second.call(template, _NR_MADVISE, start, end - start, advice) for start, end in ranges)
    second.expect_no_filter()
    return 0


def _by_any_thread(
    job: dict[str, Any],
    fds: list[int],
    channel: socket.socket,
    deadline: _Deadline,
    work: Callable[[_Tracee, _Registers], int],
) -> tuple[int, bool]:
    """Run ``work`` on a second thread of the process, by way of the first of its threads that can be stopped.

    :returns: what ``work`` does, and whether no thread is left that did not stop and will as soon as it can.
    """
    memory, directory = fds
    deadline.set(_LOOK)
    if "code" not in job:
        job["code"] = _code(job, memory, directory)
    injection = _Injection(job, memory)
    reasons: list[str] = []
    unsuitable: dict[int, tuple[int, str]] = {}
    tids = sorted(job["tids"], key=lambda tid: _reluctance(job["pid"], tid))
    # From here to the answer, or to our end, a thread may stand still.
    channel.sendall(bytes([deadline.factor]))
    hold = _HOLD * deadline.factor
    deadline.set(hold)
    end = time.monotonic() + hold - _STOP_RUNNABLE
    for tid in tids:
        try:
            thread, registers = injection.stop(tid)
            return injection.with_second_thread(thread, registers, work), not reasons
        except _Again as error:
            reasons.append(f"thread {tid}: {error}")
            if isinstance(error, _Unsuitable):
                unsuitable[tid] = error.number, str(error)
        if time.monotonic() > end:
            break
    raise _NoThread(reasons, unsuitable)


def _code(job: dict[str, Any], memory: int, directory: int) -> dict[str, Any]:
    """Find code by which system calls can be made, see :func:`gadgets.find_code`."""
    try:
        program = os.open(job["program"], os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
        gadgets.check_program(program)
        os.close(program)
    except FileNotFoundError as error:
        raise ProcessLookupError(errno.ESRCH, "it ended; name a running one") from error
    except PermissionError as error:
        raise OSError(errno.EACCES, "its program cannot be read; monitor it by page_table instead") from error
    return gadgets.find_code(memory, job["texts"])


def _take_at_exec(pid: int, channel: socket.socket, deadline: _Deadline) -> int:
    """A userfaultfd of the program that process ``pid``, a child of the monitor's, is about to start.

    There is nothing to lose yet: should we die in the middle, the process is killed before its first instruction.
    """
    command = _Tracee(pid)
    command.request(_PTRACE_SEIZE, 0, _PTRACE_O_TRACESYSGOOD | _PTRACE_O_TRACEEXEC | _PTRACE_O_EXITKILL)
    _send(channel, {"errno": 0})
    while (stop := command.wait()) is not None and stop >> 8 != _PTRACE_EVENT_EXEC:
        if stop >> 8 == _PTRACE_EVENT_STOP:
            # SIGSTOP and its kin stop it as they would without us.
            command.request(_PTRACE_LISTEN)
        else:
            command.request(_PTRACE_CONT, 0, stop & 0xFF)
    if stop is None:
        raise ProcessLookupError(errno.ESRCH, "it did not start")
    deadline.set(_HOLD_AT_EXEC)
    mask = ctypes.c_uint64()
    command.request(_PTRACE_GETSIGMASK, 8, ctypes.addressof(mask))
    command.set_mask(_ALL_SIGNALS)
    command.run(_PTRACE_SYSCALL, _SYSCALL_STOP)
    registers = command.get_registers()
    try:
        return _take_directly(command, registers)
    finally:
        command.set_mask(mask.value)
        command.set_registers(registers)
        command.request(_PTRACE_DETACH)


def _take_directly(command: _Tracee, registers: _Registers) -> int:
    """As :func:`_userfaultfd`, by the only thread there is."""
    with open(f"/proc/{command.tid}/status", "rb") as file:
        status = file.read()
    if registers.cs != _USER_CS:
        raise OSError(errno.EOPNOTSUPP, "it is a 32-bit program; monitor it by page_table instead")
    if not _seccomp_off(status):
        raise OSError(errno.EPERM, "system calls are filtered here (seccomp); monitor it by page_table instead")
    template = _Registers.from_buffer_copy(registers)
    template.rip = _system_call_in(command.tid)
    result = command.call(template, _NR_USERFAULTFD, _UFFD_FLAGS)
    if result < 0:
        raise _refusal(-result)
    try:
        return _with_api(_syscall(_NR_PIDFD_GETFD, os.pidfd_open(command.tid), result, 0))
    finally:
        command.call(template, _NR_CLOSE, result)


def _system_call_in(pid: int) -> int:
    """The address of a ``syscall`` instruction of a process; [vdso] has one, and is among the last mappings."""
    with open(f"/proc/{pid}/maps", "rb") as file:
        mappings = [line.split() for line in file]
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for words in reversed(mappings):
            start, end = (int(word, 16) for word in words[0].split(b"-"))
            if b"x" in words[1] and end >> 63 == 0:
                found = os.pread(memory.fileno(), end - start, start).find(b"\x0f\x05")
                if found >= 0:
                    return start + found
    raise OSError(errno.EOPNOTSUPP, "it has no code that makes a system call; monitor it by page_table instead")


def _exec(channel: socket.socket, tracer: int) -> None:
    """Become a command, once the tracer may look: ``argv`` and ``env`` come then. An answer reports a failure."""
    # As in a child of subprocess: what Python itself ignores or handles is back to the default.
    for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
        if number != signal.SIGINT or signal.getsignal(number) is signal.default_int_handler:
            signal.signal(number, signal.SIG_DFL)
    _libc().prctl(_PR_SET_PTRACER, ctypes.c_ulong(tracer), 0, 0, 0)
    channel.set_inheritable(False)
    channel.sendall(b"r")
    job, _ = _receive(channel)
    try:
        os.execvpe(job["argv"][0], job["argv"], job["env"])
    except OSError as error:
        _send(channel, {"errno": error.errno})
    os._exit(127)


def _receive(channel: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """A job, which is a line, and the file descriptors that came with it."""
    data, fds, _, _ = socket.recv_fds(channel, 1 << 16, 2)
    while not data.endswith(b"\n"):
        part = channel.recv(1 << 16)
        if not part:
            # No more jobs can come.
            sys.exit(1)
        data += part
    return json.loads(data), fds


def _send(channel: socket.socket, answer: dict[str, Any], *fds: int) -> None:
    # The requester may have ended meanwhile.
    with contextlib.suppress(ConnectionError):
        socket.send_fds(channel, [json.dumps(answer).encode()], fds)


def main() -> None:
    """Serve one job: ``take CHANNEL``, ``launch CHANNEL`` or ``exec CHANNEL TRACER``; or many: ``advise CHANNEL``.

    CHANNEL is an inherited file descriptor; open /proc/PID/mem and /proc/PID come with a job for ``take`` and
    ``advise``. An answer is an object with ``errno``, 0 for success. Then a file descriptor comes with it; or it has
    ``taken``, how many ranges were, ``refusal``, the errno of one that was not (0 when there is none), ``kept``,
    whether another job may follow, and ``code``, which that job may have. Else it has ``why``, ``again``, whether
    another attempt may succeed, and ``unsuitable``, threads that this is not true of, with errno and reason of each;
    and it is the last one. Before ``take`` and ``advise`` stop a thread for a job they send a byte, the
    number of quarters of a second after which they let it go at the latest; a refusal may come without one.
    """
    verb, channel = sys.argv[1], socket.socket(fileno=int(sys.argv[2]))
    if verb == "exec":
        _exec(channel, int(sys.argv[3]))
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGCHLD,))
    # The sooner it is over the better for a process that stands still.
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -20)
    # For the kernel, it is we who have the stack of a process grow.
    _, most = resource.getrlimit(resource.RLIMIT_STACK)
    resource.setrlimit(resource.RLIMIT_STACK, (most, most))
    deadline = _Deadline()
    try:
        if verb == "advise":
            _advise(channel, deadline)
            return
        job, fds = _receive(channel)
        if verb == "take":
            fd, _ = _by_any_thread(job, fds, channel, deadline, _userfaultfd)
        else:
            fd = _take_at_exec(job["pid"], channel, deadline)
        deadline.set(0)
        _send(channel, {"errno": 0}, fd)
    except (_Again, ProcessLookupError, ChildProcessError) as error:
        unsuitable = error.unsuitable if isinstance(error, _NoThread) else {}
        _send(channel, {"errno": errno.EBUSY, "why": str(error), "again": True, "unsuitable": unsuitable})
    except OSError as error:
        _send(channel, {"errno": error.errno, "why": error.strerror})


if __name__ == "__main__":
    main()
