# SPDX-License-Identifier: GPL-2.0-only
"""Records page faults with thread and CPU: a BPF program on the page fault tracepoints, and a ring for each CPU.

The program returns at once for every process that is not watched. It needs neither tracefs nor a perf event on the
tracepoints, so that it does not disturb other tracing.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import threading
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import numpy as np

from kdamon.arrays import I32Array, Records, U8Array, U64Array
from kdamon.kernel import PAGE_SIZE
from kdamon.lib.file_limit import files_ran_out, too_many_files
from kdamon.lib.rights import refused_program
from kdamon.lib.syscalls import NR_PERF_EVENT_OPEN, checked, syscall
from kdamon.mm import FAULT_DTYPE, Faults
from kdamon.mm.bpf.program import (
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R8,
    R10,
    Array,
    Assembler,
    Hash,
    Helper,
    PerfEvents,
    Program,
)
from kdamon.mm.proc.pid_namespace import Numbers

__all__ = ["FaultRecorder"]

_TRACEPOINTS: Final = ("page_fault_user", "page_fault_kernel")
#: Bytes of records that each CPU can hold until they are read.
_RING_SIZE: Final = 4 << 20
_SMALLEST_RING: Final = 64 << 10
#: Bytes that all rings together may have: they are memory that cannot be swapped out.
_ALL_RINGS: Final = 256 << 20
_MAX_PROCESSES: Final = 1 << 15

_PERF_TYPE_SOFTWARE: Final = 1
_PERF_COUNT_SW_BPF_OUTPUT: Final = 10
_PERF_SAMPLE_RAW: Final = 1 << 10
_PERF_FLAG_FD_CLOEXEC: Final = 8
_PERF_RECORD_SAMPLE: Final = 9
#: Words of the control page that hold the positions of the kernel and of the reader.
_HEAD: Final = 128
_TAIL: Final = 129

_ERROR_WRITE: Final = 2

#: A record of the program, after the kernel's header and the length.
_RECORD_SIZE: Final = 32
_SAMPLE: Final = np.dtype(
    [
        ("type", np.uint32),
        ("misc", np.uint16),
        ("size", np.uint16),
        ("length", np.uint32),
        ("time", np.uint64),
        ("addr", np.uint64),
        ("tid", np.int32),
        ("tgid", np.int32),
        ("cpu", np.int32),
        ("error", np.uint32),
        ("padding", np.uint32),
    ]
)

#: In the first word of a record: its type, and its size.
_KIND: Final = np.uint64(0xFFFF_0000_FFFF_FFFF)
_KIND_OF_SAMPLE: Final = np.uint64(_SAMPLE.itemsize << 48 | _PERF_RECORD_SAMPLE)

_NO_FAULTS: Final[Faults] = np.empty(0, dtype=FAULT_DTYPE)


def _source(numbers: Numbers, watched: Hash, events: PerfEvents, lost: Array) -> Assembler:
    """The program; its arguments are the address, the registers and the error code of the fault."""
    asm = Assembler()
    asm.op_reg("mov", R6, R1)
    # Frame: time -32, addr -24, tid -16, tgid -12, cpu -8, error -4; key -40.
    numbers.load(asm, "out")
    asm.op_reg("mov", R1, R7)
    asm.op("rsh", R1, 32)
    asm.store(4, R10, -40, R1)
    asm.load_map(R1, watched.fd)
    asm.op_reg("mov", R2, R10)
    asm.op("add", R2, -40)
    asm.call(Helper.MAP_LOOKUP_ELEM)
    asm.jump_if("jeq", R0, 0, "out")
    asm.load(R1, R6, 0)
    # The kernel faults in memory of its own, too.
    asm.op_reg("mov", R2, R1)
    asm.op("rsh", R2, 56)
    asm.jump_if("jne", R2, 0, "out")
    asm.store(8, R10, -24, R1)
    asm.load(R8, R6, 16)
    asm.store(4, R10, -4, R8)
    asm.store(8, R10, -16, R7)
    asm.call(Helper.GET_SMP_PROCESSOR_ID)
    asm.store(4, R10, -8, R0)
    asm.call(Helper.KTIME_GET_NS)
    asm.store(8, R10, -32, R0)
    asm.op_reg("mov", R1, R6)
    asm.load_map(R2, events.fd)
    asm.load_number(R3, 0xFFFFFFFF)
    asm.op_reg("mov", R4, R10)
    asm.op("add", R4, -_RECORD_SIZE)
    asm.op("mov", R5, _RECORD_SIZE)
    asm.call(Helper.PERF_EVENT_OUTPUT)
    asm.jump_if("jeq", R0, 0, "out")
    asm.load_map_value(R1, lost.fd)
    asm.op("mov", R2, 1)
    asm.atomic_add(R1, 0, R2)
    asm.label("out")
    asm.op("mov", R0, 0)
    asm.exit()
    return asm


class _Ring:
    """One CPU's records.

    :param size: bytes, a power of two and of pages.
    :raises OSError: EPERM, EACCES without the right.
    """

    def __init__(self, cpu: int, size: int) -> None:
        attr = bytearray(136)
        struct.pack_into(
            "<IIQQQ", attr, 0, _PERF_TYPE_SOFTWARE, len(attr), _PERF_COUNT_SW_BPF_OUTPUT, 1, _PERF_SAMPLE_RAW
        )
        # No thread waits for records: wake up only after more than ever come. The kernel counts them as an int.
        struct.pack_into("<I", attr, 48, 0x7FFFFFFF)
        buffer = ctypes.create_string_buffer(bytes(attr), len(attr))
        self.fd = checked(syscall(NR_PERF_EVENT_OPEN, buffer, -1, cpu, -1, _PERF_FLAG_FD_CLOEXEC), "perf_event_open()")
        try:
            self._memory = mmap.mmap(self.fd, size + PAGE_SIZE)
        except BaseException:
            os.close(self.fd)
            raise
        #: The kernel's and the reader's positions; numbers of Python, as this is looked at in each interval.
        self._control = memoryview(self._memory)[:PAGE_SIZE].cast("Q")
        self._data: U8Array = np.frombuffer(self._memory, dtype=np.uint8, offset=PAGE_SIZE)

    def read(self) -> U8Array | None:
        """Everything that was recorded since the last call, and room for more; None: nothing was."""
        head, tail = self._control[_HEAD], self._control[_TAIL]
        if head == tail:
            return None
        size = len(self._data)
        first, end = tail % size, tail % size + head - tail
        recorded: U8Array = (
            self._data[first:end].copy()
            if end <= size
            else np.concatenate((self._data[first:], self._data[: end - size]))
        )
        self._control[_TAIL] = head
        return recorded

    def close(self) -> None:
        """Give the ring back."""
        self._control.release()
        del self._data
        self._memory.close()
        os.close(self.fd)


def _samples(recorded: U8Array) -> Records:
    """The program's records in what a ring held: between them are the kernel's notes about lost ones."""
    stride = _SAMPLE.itemsize
    if len(recorded) % stride == 0 and (recorded.view(np.uint64)[:: stride // 8] & _KIND == _KIND_OF_SAMPLE).all():
        return recorded.view(_SAMPLE)
    parts = []
    at = 0
    while at + 8 <= len(recorded):
        whole = recorded[at : at + (len(recorded) - at) // stride * stride].view(_SAMPLE)
        others = ((whole["type"] != _PERF_RECORD_SAMPLE) | (whole["size"] != stride)).nonzero()[0]
        count = int(others[0]) if len(others) else len(whole)
        parts.append(recorded[at : at + count * stride])
        at += count * stride
        if at + 8 <= len(recorded):
            at += max(8, int(recorded[at + 6 : at + 8].view(np.uint16)[0]))
    # As bytes: records would be joined field by field.
    joined = parts[0] if len(parts) == 1 else np.concatenate([*parts, recorded[:0]])
    return joined.view(_SAMPLE)


def _nodes(cpus: int) -> I32Array:
    """The NUMA node of each CPU, -1 where there is none."""
    nodes = np.full(cpus, -1, dtype=np.int32)
    for path in Path("/sys/devices/system/node").glob("node[0-9]*/cpulist"):
        for cpu in _numbers(path.read_text(encoding="utf-8")):
            nodes[cpu] = int(path.parent.name.removeprefix("node"))
    return nodes


def _numbers(ranges: str) -> list[int]:
    """The numbers in a list of the kernel's, such as ``0-3,8``."""
    found: list[int] = []
    for part in ranges.strip().split(","):
        if part:
            first, _, last = part.partition("-")
            found += range(int(first), int(last or first) + 1)
    return found


# Deviation: docs/deviations.md#first-touches-are-reported
class FaultRecorder:
    """Records the page faults of the processes that are watched; any thread may use it.

    :param ring_size: bytes of records that each CPU can hold, a power of two; less where the limit on locked memory
        allows less.
    :raises OSError: EPERM or EOPNOTSUPP with a sentence on what is missing; EMFILE.
    """

    def __init__(self, ring_size: int = _RING_SIZE) -> None:
        self._lock = threading.Lock()
        self._watchers: Counter[int] = Counter()
        self._rings: dict[int, _Ring] = {}
        try:
            self._stack = self._open(ring_size)
        except OSError as error:
            raise _explained(error) from error

    def _open(self, ring_size: int) -> ExitStack:
        with ExitStack() as stack:
            possible = _numbers(Path("/sys/devices/system/cpu/possible").read_text(encoding="utf-8"))
            self._nodes = _nodes(possible[-1] + 1)
            self._lost_array = Array(PAGE_SIZE)
            stack.callback(self._lost_array.close)
            self._lost: U64Array = np.frombuffer(self._lost_array.memory, dtype=np.uint64, count=1)
            self._watched = Hash(_MAX_PROCESSES)
            stack.callback(self._watched.close)
            self._events = PerfEvents(possible[-1] + 1)
            stack.callback(self._events.close)
            stack.callback(self._close_rings)
            self._open_rings(ring_size)
            program = Program(_source(Numbers(), self._watched, self._events, self._lost_array), "kdamon_faults")
            try:
                for name in _TRACEPOINTS:
                    stack.callback(os.close, program.attach(name))
            finally:
                program.close()
            return stack.pop_all()

    def _open_rings(self, size: int) -> None:
        """Give each CPU that is online a ring of ``size`` bytes, or of as much as may be locked."""
        online = _numbers(Path("/sys/devices/system/cpu/online").read_text(encoding="utf-8"))
        while size * len(online) > _ALL_RINGS and size > _SMALLEST_RING:
            size //= 2
        try:
            for cpu in online:
                ring = self._rings[cpu] = _Ring(cpu, size)
                self._events.put(cpu, ring.fd)
        except PermissionError:
            if size <= _SMALLEST_RING:
                raise
            self._close_rings()
            self._open_rings(size // 2)

    def _close_rings(self) -> None:
        for ring in self._rings.values():
            ring.close()
        self._rings.clear()

    def close(self) -> None:
        """Record nothing any more and give everything back."""
        with self._lock:
            self._stack.close()
            self._lost = self._lost.copy()
            self._lost_array.memory.close()

    def watch(self, pid: int) -> None:
        """Record the faults of process ``pid``, until :meth:`unwatch` was called as often."""
        with self._lock:
            self._watched.add(pid)
            self._watchers[pid] += 1

    def unwatch(self, pid: int) -> None:
        """See :meth:`watch`."""
        with self._lock:
            self._watchers[pid] -= 1
            if not self._watchers[pid]:
                del self._watchers[pid]
                self._watched.discard(pid)

    @property
    def watching(self) -> bool:
        """Return whether any process is watched."""
        with self._lock:
            return bool(self._watchers)

    @property
    def lost(self) -> int:
        """How many faults did not fit into the rings so far, or happened on a CPU that came later."""
        return int(self._lost[0])

    def read(self) -> Faults:
        """All faults of watched processes since the last call, see :meth:`kdamon.mm.Machine.faults`."""
        with self._lock:
            parts = [part for ring in self._rings.values() if (part := ring.read()) is not None]
        if not parts:
            return _NO_FAULTS
        # Each ring gives whole records.
        found = _samples(parts[0] if len(parts) == 1 else np.concatenate(parts))
        faults = np.empty(len(found), dtype=FAULT_DTYPE)
        for theirs, ours in (("time", "time"), ("tgid", "pid"), ("addr", "addr"), ("cpu", "cpu"), ("tid", "tid")):
            faults[ours] = found[theirs]
        faults["node_id"] = self._nodes[found["cpu"]]
        faults["write"] = (found["error"] & _ERROR_WRITE) != 0
        return faults


def _explained(error: OSError) -> OSError:
    """``error`` of getting ready, with the reason and what to do about it."""
    if files_ran_out(error):
        return too_many_files(error, "page faults cannot be recorded")
    if "; " in (error.strerror or ""):
        # It says so itself, as where BTF is missing.
        return error
    return refused_program("recording page faults with thread and CPU needs", error)
