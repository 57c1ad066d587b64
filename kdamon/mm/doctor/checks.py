# SPDX-License-Identifier: GPL-2.0-only
"""Checks what monitoring can use on this machine, by trying it, and names the remedy for each missing part."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from collections.abc import Callable
from contextlib import closing
from typing import Final

import numpy as np

from kdamon.arrays import U64Array
from kdamon.kernel import PAGE_SIZE
from kdamon.lib.check import Check
from kdamon.lib.pidfd import pidfd_open
from kdamon.lib.rights import locked_down, refusal
from kdamon.mm import OLD, UNKNOWN, YOUNG
from kdamon.mm.actions.madvise import drain_lru
from kdamon.mm.bpf.btf import vmlinux
from kdamon.mm.bpf.walk_program import PRESENT
from kdamon.mm.bpf.walker import shared_walker
from kdamon.mm.doctor.processes import Refusals, refusals
from kdamon.mm.doctor.schemes import SCHEME_PROBES, loaded_child
from kdamon.mm.inject.requests import take_userfaultfd
from kdamon.mm.linux.machine import LinuxMachine, check_cold, linux_machine
from kdamon.mm.proc.kpageflags import Folios
from kdamon.mm.proc.pagemap import entries_at, frames
from kdamon.mm.sampling.fault_recorder import FaultRecorder
from kdamon.mm.sampling.page_idle import BITMAP
from kdamon.mm.sampling.placement import take_real_time
from kdamon.mm.sampling.uffd import ACCESSED, WRITTEN, Pages, Userfaultfd, reads_fault

__all__ = ["examine"]

_PAGES: Final = 64
#: Samples of page frames that move while they are sampled are taken again, this often in all.
_ATTEMPTS: Final = 3

_OTHERS: Final = "other users' processes"

#: The accesses that the primitive page_fault observes.
_READS: Final = (
    "reads and writes of anonymous and shared memory, writes of other files; writes alone where only they are counted"
)
_WRITES: Final = (
    "writes and first touches only, not reads of mapped memory: this kernel has no userfaultfd RWP, which Linux 7.3 "
    "brings"
)


class _Unavailable(Exception):
    """A probe failed: the reason and the remedy."""

    def __init__(self, why: str, remedy: str) -> None:
        super().__init__(why)
        self.why = why
        self.remedy = remedy


def examine() -> tuple[list[Check], tuple[str, ...], tuple[str, ...]]:
    """Probe everything; takes a second or two, and removes all that it made.

    :returns: the results; and the primitives (``page_table``, ``page_fault``) by which processes of this user, and
        those of other users, can be monitored.
    """
    found = {name: _probed(name, probe) for name, probe in (_PROBES | SCHEME_PROBES).items()}
    own, others = refusals()
    found[_OTHERS] = _probed(_OTHERS, lambda: _other_users(own, others))
    return list(found.values()), _works(own), _works(others)


def _works(tried: Refusals) -> tuple[str, ...]:
    return tuple(name for name, error in tried.items() if error is None)


def _probed(name: str, probe: Callable[[], str]) -> Check:
    try:
        return Check(name, True, probe())
    except _Unavailable as bad:
        return Check(name, False, bad.why, bad.remedy)
    except OSError as error:
        # Sentences of this package are "what is wrong; what to do".
        why, _, remedy = (error.strerror or str(error)).partition("; ")
        if not remedy and isinstance(error, PermissionError):
            remedy = "run as root" if os.geteuid() else "start kdamon with all of root's capabilities"
        return Check(name, False, why, remedy)


class _OwnMemory:
    """Touched pages of this process."""

    def __enter__(self) -> _OwnMemory:
        self._memory = mmap.mmap(-1, _PAGES * PAGE_SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._memory.madvise(mmap.MADV_NOHUGEPAGE)
        anchor = ctypes.c_char.from_buffer(self._memory)
        base = ctypes.addressof(anchor)
        del anchor
        self.addrs: U64Array = np.uint64(base) + np.arange(_PAGES, dtype=np.uint64) * np.uint64(PAGE_SIZE)
        self.range: U64Array = np.array([[base, base + _PAGES * PAGE_SIZE]], dtype=np.uint64)
        self.touch(1)
        drain_lru()
        return self

    def __exit__(self, *_: object) -> None:
        self._memory.close()

    def frames(self) -> U64Array:
        """The physical addresses of the pages, shape (_PAGES,)."""
        fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return frames(entries_at(fd, self.addrs)) * np.uint64(PAGE_SIZE)
        finally:
            os.close(fd)

    def touch(self, stride: int) -> None:
        """Write to each ``stride``-th page."""
        for page in range(0, _PAGES, stride):
            self._memory[page * PAGE_SIZE] = 1

    def read(self, stride: int) -> int:
        """Read each ``stride``-th page; how many were written before."""
        return sum(self._memory[page * PAGE_SIZE] for page in range(0, _PAGES, stride))


def _btf() -> str:
    vmlinux().offset("mm_struct", "pgd")
    return "the kernel describes the layout of its structures"


def _lockdown() -> str:
    if locked_down():
        raise _Unavailable(
            "lockdown=confidentiality forbids programs that read kernel memory", "boot with lockdown=integrity"
        )
    return "as far as this kernel shows, no lockdown forbids it"


def _page_table_test() -> str:
    walker = shared_walker()
    with _OwnMemory() as own:
        fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        try:
            flags, _ = walker.walk(fd, own.addrs)
        finally:
            os.close(fd)
    if not (flags & PRESENT).all():
        raise _Unavailable("the page table walk does not find this process's own pages", "")
    return f"a BPF program walked the page tables of {_PAGES} own pages"


def _samples_are_right(machine: LinuxMachine) -> str:
    """Monitor own pages, of which every second one is touched."""
    with closing(machine), _OwnMemory() as own:
        task = machine.get_task(os.getpid())
        try:
            mm = task.get_mm()
            if mm is None:
                raise _Unavailable("this process's own memory was not found", "")
            mm.begin_sample(own.addrs)
            before = mm.end_sample(own.addrs)
            mm.begin_sample(own.addrs)
            own.touch(2)
            after = mm.end_sample(own.addrs)
        finally:
            task.put()
    known = after != UNKNOWN
    if known.sum() < _PAGES // 2 or (before[known] != OLD).any():
        raise _Unavailable("accessed bits of this process's own pages were not cleared", "")
    seen = int((after[::2] == YOUNG).sum())
    if seen < _PAGES // 4 or (after[1::2] == YOUNG).any():
        raise _Unavailable("accesses to this process's own pages were reported wrongly", "")
    return f"{seen} of {_PAGES // 2} accesses to own pages were seen, and no other"


def _page_table_clear() -> str:
    return _samples_are_right(linux_machine("page_table"))


def _page_idle() -> str:
    try:
        return _samples_are_right(linux_machine("page_idle"))
    except FileNotFoundError:
        raise _Unavailable(
            f"{BITMAP} is missing", "a kernel with CONFIG_IDLE_PAGE_TRACKING=y; page_table works without it"
        ) from None
    except PermissionError as error:
        if error.filename is None:
            raise
        raise refusal(f"{BITMAP} needs", "opening it", "CAP_DAC_OVERRIDE") from None


def _process_madvise() -> str:
    with loaded_child() as pid:
        pidfd = pidfd_open(pid)
        try:
            check_cold(pidfd)
        finally:
            os.close(pidfd)
    return "the kernel takes advice about a child process"


def _real_time() -> str:
    """Let a thread of its own take it: this one keeps what it has."""
    failed: list[OSError] = []

    def take() -> None:
        try:
            take_real_time()
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    if failed:
        raise refusal(
            "without real-time priority samples are missed beside a busy process; it needs",
            "sched_setscheduler()",
            "CAP_SYS_NICE",
        )
    return "kdamonds sample with it, so that they wake up in time beside a busy process"


def _frame_numbers() -> str:
    with _OwnMemory() as own:
        fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        try:
            raw = os.pread(fd, 8, int(own.addrs[0]) // PAGE_SIZE * 8)
        finally:
            os.close(fd)
    if not int.from_bytes(raw, "little") & ((1 << 55) - 1):
        raise refusal("the numbers of page frames, from /proc/PID/pagemap, need", "seeing them", "CAP_SYS_ADMIN")
    return "/proc/PID/pagemap shows them"


def _page_flags() -> str:
    with closing(Folios()) as folios:
        # Without them accesses to large folios of files are not known.
        folios.table(np.ones(1, np.uint64))
    return "/proc/kpageflags shows which pages belong to one folio"


def _other_users(own: Refusals, others: Refusals) -> str:
    # Other lines give the reason for a primitive that does not even work for this user's processes.
    for name in _works(own) or tuple(others):
        error = others[name]
        if error is not None:
            raise OSError(error.errno, f"by {name}: {error.strerror}")
    return f"another user's process can be monitored by {' and '.join(_works(others))}"


def _physical() -> str:
    """Monitor own pages by their physical addresses, of which every second one is touched."""
    with closing(linux_machine()) as machine, _OwnMemory() as own:
        memory = machine.physical_memory()
        try:
            for _ in range(_ATTEMPTS):
                where = own.frames()
                memory.update()
                memory.begin_sample(where)
                own.touch(2)
                answers = memory.end_sample(where)
                if np.array_equal(where, own.frames()):
                    break
                # NUMA balancing moved pages to the node of this CPU.
            known, reachable = (size >> 20 for size in memory.known())
        finally:
            memory.put()
    seen = int((answers[::2] == YOUNG).sum())
    if seen < _PAGES // 4 or (answers[1::2] == YOUNG).any():
        raise _Unavailable("accesses to this process's own page frames were reported wrongly", "")
    return (
        f"{seen} of {_PAGES // 2} accesses to own page frames were seen; of {reachable} MiB that processes and files "
        f"have, accesses to {known} MiB can be observed"
    )


def _page_fault_arm() -> str:
    reads = reads_fault()
    right = _writes_fault() and (not reads or _accesses_fault())
    if not right:
        raise _Unavailable("accesses to this process's own pages were reported wrongly", "")
    return (
        f"{_READS if reads else _WRITES}; userfaultfd reports which pages were {'accessed' if reads else 'written'}, "
        "but neither thread nor CPU"
    )


def _writes_fault() -> bool:
    """Whether of write-protected own pages, of which every second one is written, just those are reported."""
    with _OwnMemory() as own, open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        pages = Pages(pagemap.fileno())
        with closing(Userfaultfd.own()) as userfaultfd:
            userfaultfd.register(own.range)
            armed = pages.arm(own.addrs)
            own.touch(2)
            written = (pages.categories(own.addrs) & np.uint64(WRITTEN)) != 0
    return bool(armed.all() and written[::2].all() and not written[1::2].any())


def _accesses_fault() -> bool:
    """The same of pages that may not be accessed, of which every second one is read."""
    with _OwnMemory() as own, open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        pages = Pages(pagemap.fileno(), reads=True)
        with closing(Userfaultfd.own()) as userfaultfd:
            userfaultfd.register_reads(own.range)
            userfaultfd.protect(own.range)
            armed = pages.guarded(own.addrs)
            own.read(2)
            accessed = (pages.categories(own.addrs) & np.uint64(ACCESSED)) != 0
    return bool(armed.all() and accessed[::2].all() and not accessed[1::2].any())


def _page_fault_take() -> str:
    with loaded_child() as pid:
        os.close(take_userfaultfd(pid))
    return "a userfaultfd was taken from a child process"


def _page_fault_attribute() -> str:
    with closing(FaultRecorder()) as recorder:
        recorder.watch(os.getpid())
        with _OwnMemory() as own:
            faults = recorder.read()
            recorder.unwatch(os.getpid())
            mine = faults[(faults["addr"] >= own.addrs[0]) & (faults["tid"] == threading.get_native_id())]
    if len(mine) < _PAGES or not mine["write"].any():
        raise _Unavailable("page faults of this process were not recorded", "")
    return "a BPF program reports thread and CPU, and distinguishes writes from first reads"


_PROBES: Final[dict[str, Callable[[], str]]] = {
    "kernel type information (BTF)": _btf,
    "lockdown": _lockdown,
    "page_table: test": _page_table_test,
    "page_table: clear": _page_table_clear,
    "page_idle": _page_idle,
    "process_madvise": _process_madvise,
    "real-time priority": _real_time,
    "page frame numbers": _frame_numbers,
    "page flags": _page_flags,
    "physical addresses": _physical,
    _OTHERS: lambda: "",
    "page_fault: arm": _page_fault_arm,
    "page_fault: take": _page_fault_take,
    "page_fault: attribute": _page_fault_attribute,
}
