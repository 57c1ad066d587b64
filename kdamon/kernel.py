# SPDX-License-Identifier: GPL-2.0-only
"""What the kernel gives every subsystem: C integer semantics, random numbers, clocks and kernel threads.

Everything that reads time or sleeps goes through a :class:`Clock`, so that a run on simulated memory takes no
longer than its computations and is repeatable bit for bit.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import mmap
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

__all__ = [
    "ALIGN",
    "ALIGN_DOWN",
    "INT_MAX",
    "NSEC_PER_MSEC",
    "NSEC_PER_USEC",
    "PAGE_SIZE",
    "U8_MAX",
    "UINT_MAX",
    "ULONG_MAX",
    "Clock",
    "RealClock",
    "VirtualClock",
    "is_power_of_2",
    "kthread",
    "mult_frac",
    "rnd_state",
    "time_after_eq",
    "uint",
    "ulong",
    "virtual_kthread",
]

PAGE_SIZE = mmap.PAGESIZE
U8_MAX = 0xFF
INT_MAX = 0x7FFF_FFFF
UINT_MAX = 0xFFFF_FFFF
ULONG_MAX = 0xFFFF_FFFF_FFFF_FFFF
NSEC_PER_USEC = 1000
NSEC_PER_MSEC = 1_000_000

log = logging.getLogger("kdamon")

_libc = ctypes.CDLL(None)
_PR_SET_NAME = 15

U64Array = npt.NDArray[np.uint64]


def ulong(value: int) -> int:
    """Truncate ``value`` as an assignment to ``unsigned long`` does (64 bit)."""
    return value & ULONG_MAX


def uint(value: int) -> int:
    """Truncate ``value`` as an assignment to ``unsigned int`` does (32 bit)."""
    return value & UINT_MAX


def ALIGN_DOWN(value: int, alignment: int) -> int:
    """Round ``value`` down to a multiple of ``alignment`` (any positive number, not only powers of two)."""
    return value - value % alignment


def ALIGN(value: int, alignment: int) -> int:
    """Round ``value`` up to a multiple of ``alignment``; the result does not wrap."""
    return ALIGN_DOWN(value + alignment - 1, alignment)


def is_power_of_2(value: int) -> bool:
    """Tell whether exactly one bit of ``value`` is set (``include/linux/log2.h``)."""
    return value > 0 and value & (value - 1) == 0


def mult_frac(value: int, numerator: int, denominator: int) -> int:
    """``value * numerator / denominator`` in the kernel's two truncating steps (``include/linux/math.h``)."""
    quotient, remainder = divmod(value, denominator)
    return ulong(quotient * numerator + remainder * numerator // denominator)


def time_after_eq(a: int, b: int) -> bool:
    """Tell whether counter ``a`` is at or past ``b``, also when one of them wrapped (``include/linux/jiffies.h``)."""
    return ulong(a - b) < 1 << 63


class rnd_state:
    """Random numbers of one context (kernel: ``struct rnd_state``, ``prandom_u32_state()``).

    The stream is PCG64's, not the kernel's Tausworthe generator: numpy keeps it stable across versions, and only
    the distribution matters.

    :param seed: an integer gives a repeatable stream; ``None`` seeds from the operating system.
    """

    __slots__ = ("_at", "_bits", "_u32")

    def __init__(self, seed: int | None = None) -> None:
        self._bits = np.random.PCG64(seed)
        self._u32: U64Array = np.empty(0, np.uint64)
        self._at = 0

    def u32(self, n: int) -> U64Array:
        """``n`` uniform 32-bit numbers as uint64, shape (n,); the caller must not change them."""
        at = self._at
        if at + n > len(self._u32):
            # A draw costs more than what it draws: draw for many sampling intervals at once.
            self._u32 = self._bits.random_raw(max(n, 4096)) >> np.uint64(32)
            at = 0
        self._at = at + n
        return self._u32[at : at + n]

    def u64(self, n: int) -> U64Array:
        """``n`` uniform 64-bit numbers, shape (n,)."""
        raw: U64Array = self._bits.random_raw(n)
        return raw


class Clock(Protocol):
    """The only source of time and sleep in the port."""

    def now(self) -> int:
        """Nanoseconds since some fixed point; never goes back."""
        ...

    def sleep_until(self, deadline: int, wake: threading.Event) -> None:
        """Return at ``deadline`` (nanoseconds) or soon after ``wake`` is set, whichever is first."""
        ...


class RealClock:
    """CLOCK_MONOTONIC."""

    __slots__ = ()

    def now(self) -> int:
        """Nanoseconds of CLOCK_MONOTONIC."""
        return time.monotonic_ns()

    def sleep_until(self, deadline: int, wake: threading.Event) -> None:
        """Sleep to the absolute ``deadline``; a short sleep is cheaper than a wait that can be woken.

        ``Event.wait()`` costs several times what ``time.sleep()`` does, so the sleep that nobody would notice
        (10 ms) is not interruptible.
        """
        left = deadline - time.monotonic_ns()
        if left > 10_000_000:
            wake.wait(min(left / 1e9, threading.TIMEOUT_MAX))
        elif left > 0:
            time.sleep(left / 1e9)


class VirtualClock:
    """A clock that a sleep moves: simulated time costs nothing and never varies.

    :param end: nanoseconds at which :meth:`expired` becomes true; a simulated kdamond stops there.
    """

    __slots__ = ("_now", "end")

    def __init__(self, end: int = ULONG_MAX) -> None:
        self._now = 0
        self.end = end

    def now(self) -> int:
        """Simulated nanoseconds since the clock was made."""
        return self._now

    def sleep_until(self, deadline: int, wake: threading.Event) -> None:
        """Move the clock to ``deadline``; it never moves back."""
        if not wake.is_set():
            self._now = max(self._now, deadline)

    def expired(self) -> bool:
        """Tell whether the simulated run is over."""
        return self._now >= self.end


class kthread:
    """A kernel thread: named, stoppable, its exception seen (``kernel/kthread.c``).

    :param fn: the thread's function; called with ``arg``.
    :param name: as ``ps`` and ``pgrep`` show it; the kernel keeps 15 characters.
    """

    def __init__(self, fn: Callable[[Any], None], arg: Any, name: str) -> None:
        self.name = name
        self.error: BaseException | None = None
        self.wake = threading.Event()
        self._fn = fn
        self._arg = arg
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def _run(self) -> None:
        # CPython tells the kernel the names of its threads from 3.14 on only.
        _libc.prctl(_PR_SET_NAME, self.name.encode()[:15])
        try:
            self._fn(self._arg)
        except BaseException as error:
            self.error = error
            log.exception("%s ended by an internal error", self.name)

    def start(self) -> None:
        """Start the thread.

        :raises OSError: ENOMEM the system has no room for another thread.
        """
        try:
            self._thread.start()
        except RuntimeError as error:
            raise OSError(errno.ENOMEM, f"there is no room for the thread {self.name}") from error

    def should_stop(self) -> bool:
        """Tell the thread's function whether :meth:`stop` was called."""
        return self.wake.is_set()

    def stop(self) -> None:
        """Ask the thread to end and wait until it did (``kthread_stop()``)."""
        self.wake.set()
        self.join()

    def join(self) -> None:
        """Wait until the thread ended."""
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def alive(self) -> bool:
        """Tell whether the thread's function still runs."""
        return self._thread.is_alive()

    @property
    def pid(self) -> int:
        """The thread's id as the kernel knows it, -1 before it started."""
        return self._thread.native_id or -1


class virtual_kthread(kthread):
    """A thread in simulated time: it runs in its caller's thread and ends with the clock.

    :param clock: the simulated clock; :attr:`VirtualClock.end` is when the thread is asked to stop.
    """

    def __init__(self, fn: Callable[[Any], None], arg: Any, name: str, clock: VirtualClock) -> None:
        super().__init__(fn, arg, name)
        self._clock = clock

    def start(self) -> None:
        """Run to the end."""
        self._fn(self._arg)

    def should_stop(self) -> bool:
        """Tell the thread's function whether it was stopped or its time is over."""
        return self.wake.is_set() or self._clock.expired()

    def join(self) -> None:
        """There is nothing to wait for: the thread is the caller."""

    @property
    def pid(self) -> int:
        """The id of the calling thread."""
        return threading.get_native_id()
