# SPDX-License-Identifier: GPL-2.0-only
"""BPF instructions, and the page table walk that is made of them."""

from __future__ import annotations

import mmap
import os

import numpy as np
import pytest

from kdamon.mm.bpf.program import R0, R1, R2, R6, R9, R10, Assembler, Helper
from kdamon.mm.bpf.walk_program import LEVEL, PRESENT
from kdamon.mm.bpf.walker import Walker, shared_walker
from kdamon.mm.linux.machine import LinuxMachine

pytestmark = pytest.mark.real


def test_instructions_are_encoded_as_specified() -> None:
    """Opcode, registers, offset, immediate: values from the instruction set's document."""
    asm = Assembler()
    asm.op("mov", R0, -1)
    asm.op_reg("add", R1, R2)
    asm.load(R6, R9, 16)
    asm.store(8, R10, -8, R1)
    asm.store(1, R1, 3, R2)
    asm.call(Helper.PROBE_READ_KERNEL)
    asm.exit()
    expected = [
        "b700 0000 ffffffff",
        "0f21 0000 00000000",
        "7996 1000 00000000",
        "7b1a f8ff 00000000",
        "7321 0300 00000000",
        "8500 0000 71000000",
        "9500 0000 00000000",
    ]
    assert asm.assemble().hex() == "".join(expected).replace(" ", "")


def test_labels_are_resolved_in_both_directions() -> None:
    """Jumps count instructions from the next one; a 64-bit load counts as two."""
    asm = Assembler()
    asm.label("start")
    asm.jump_if("jeq", R1, 7, "end")
    asm.load_map_value(R9, 5)
    asm.load_function(R2, "end")
    asm.jump("start")
    asm.label("end")
    asm.exit()
    expected = [
        "1501 0500 07000000",
        "1829 0000 05000000",
        "0000 0000 00000000",
        "1842 0000 02000000",
        "0000 0000 00000000",
        "0500 faff 00000000",
        "9500 0000 00000000",
    ]
    assert asm.assemble().hex() == "".join(expected).replace(" ", "")
    assert 6 == asm.position("end")


@pytest.mark.parametrize("looped", [True, False])
def test_both_loops_find_the_same(machine: LinuxMachine, looped: bool) -> None:
    """The program for kernels without bpf_loop() walks as the other one does, in smaller batches."""
    assert "page_table" == machine.primitive
    walker = Walker(looped)
    mapping = mmap.mmap(-1, 3001 * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # The kernel would make huge pages of it at any time.
    mapping.madvise(mmap.MADV_NOHUGEPAGE)
    memory = np.frombuffer(mapping, dtype=np.uint8)
    memory[: 3000 * 4096 : 4096] = 1
    addrs = np.uint64(memory.ctypes.data) + np.arange(4000, dtype=np.uint64) * np.uint64(4096)
    fd = os.open("/proc/self/pagemap", os.O_RDONLY)
    try:
        flags, entries = walker.walk(fd, addrs)
        expected_flags, expected_entries = shared_walker().walk(fd, addrs)
    finally:
        os.close(fd)
        walker.close()
    mapped = (flags & PRESENT) != 0
    assert mapped[:3000].all()
    assert np.array_equal(flags & (LEVEL | PRESENT), expected_flags & (LEVEL | PRESENT))
    assert np.array_equal(walker.pfns(entries)[:3000], shared_walker().pfns(expected_entries)[:3000])
