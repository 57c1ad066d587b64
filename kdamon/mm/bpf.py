# SPDX-License-Identifier: GPL-2.0-only
"""Just enough of bpf(2) for small programs that are run by hand: an assembler, a memory-mapped array, a test run.

No compiler and no libbpf: a program of a hundred instructions is written here with labels, and the kernel's
verifier checks it (``Documentation/bpf/standardization/instruction-set.rst``).
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
import struct
from typing import Final

__all__ = [
    "R0",
    "R1",
    "R2",
    "R3",
    "R4",
    "R6",
    "R7",
    "R8",
    "R9",
    "R10",
    "Array",
    "Assembler",
    "Helper",
    "Program",
    "syscall",
]

R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10 = range(11)

_NR_BPF: Final = 321

_MAP_CREATE: Final = 0
_PROG_LOAD: Final = 5
_PROG_TEST_RUN: Final = 10
_BTF_LOAD: Final = 18

_MAP_TYPE_ARRAY: Final = 2
_F_MMAPABLE: Final = 1 << 10
_PROG_TYPE_RAW_TRACEPOINT: Final = 17
_PSEUDO_MAP_VALUE: Final = 2
_PSEUDO_FUNC: Final = 4

_ALU: Final = {"add": 0x00, "mul": 0x20, "or": 0x40, "and": 0x50, "lsh": 0x60, "rsh": 0x70, "mov": 0xB0}
_JUMP: Final = {"jeq": 0x10, "jgt": 0x20, "jge": 0x30, "jset": 0x40, "jne": 0x50, "jlt": 0xA0}
_WIDTH: Final = {1: 0x10, 8: 0x18}

_libc = ctypes.CDLL(None, use_errno=True)
#: syscall(2): the raw result, -1 with ctypes.get_errno() on failure. It lets other Python threads run.
syscall = _libc.syscall
syscall.restype = ctypes.c_long


class Helper:
    """Numbers of the kernel functions that a program calls (``enum bpf_func_id``)."""

    GET_CURRENT_TASK: Final = 35
    PROBE_READ_KERNEL: Final = 113
    LOOP: Final = 181


class Assembler:
    """Collects instructions; a label may be used before it is placed."""

    def __init__(self) -> None:
        self._code: list[tuple[int, int, int, int, int]] = []
        self._labels: dict[str, int] = {}
        self._jumps: dict[int, str] = {}
        self._functions: dict[int, str] = {}

    def _emit(self, op: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> None:
        self._code.append((op, dst, src, off, imm))

    def label(self, name: str) -> None:
        """Place ``name`` at the next instruction."""
        self._labels[name] = len(self._code)

    def position(self, name: str) -> int:
        """The instruction index of label ``name``."""
        return self._labels[name]

    def op(self, name: str, dst: int, imm: int) -> None:
        """``dst = dst <name> imm``, 64 bits; ``imm`` is sign-extended from 32."""
        self._emit(0x07 | _ALU[name], dst, imm=imm)

    def op_reg(self, name: str, dst: int, src: int) -> None:
        """``dst = dst <name> src``, 64 bits."""
        self._emit(0x0F | _ALU[name], dst, src)

    def jump(self, label: str) -> None:
        """Go to ``label``."""
        self._jumps[len(self._code)] = label
        self._emit(0x05)

    def jump_if(self, name: str, dst: int, imm: int, label: str) -> None:
        """Go to ``label`` when ``dst <name> imm``, unsigned."""
        self._jumps[len(self._code)] = label
        self._emit(0x05 | _JUMP[name], dst, imm=imm)

    def jump_if_reg(self, name: str, dst: int, src: int, label: str) -> None:
        """Go to ``label`` when ``dst <name> src``, unsigned."""
        self._jumps[len(self._code)] = label
        self._emit(0x0D | _JUMP[name], dst, src)

    def load(self, dst: int, src: int, off: int) -> None:
        """``dst = *(u64 *)(src + off)``."""
        self._emit(0x61 | _WIDTH[8], dst, src, off)

    def store(self, width: int, dst: int, off: int, src: int) -> None:
        """``*(dst + off) = src``, ``width`` 1 or 8 bytes."""
        self._emit(0x63 | _WIDTH[width], dst, src, off)

    def load_map_value(self, dst: int, map_fd: int) -> None:
        """``dst`` = address of the first value of the array ``map_fd``."""
        self._emit(0x18, dst, _PSEUDO_MAP_VALUE, imm=map_fd)
        self._emit(0)

    def load_function(self, dst: int, label: str) -> None:
        """``dst`` = the function at ``label``, for :data:`Helper.LOOP`."""
        self._functions[len(self._code)] = label
        self._emit(0x18, dst, _PSEUDO_FUNC)
        self._emit(0)

    def call(self, helper: int) -> None:
        """Call kernel function ``helper``; R1 to R5 are lost, the result is in R0."""
        self._emit(0x85, imm=helper)

    def exit(self) -> None:
        """Return R0."""
        self._emit(0x95)

    def assemble(self) -> bytes:
        """The program's bytes, 8 an instruction."""
        out = bytearray()
        for index, (op, dst, src, off, imm) in enumerate(self._code):
            target_off, target_imm = off, imm
            if index in self._jumps:
                target_off = self._labels[self._jumps[index]] - index - 1
            if index in self._functions:
                target_imm = self._labels[self._functions[index]] - index - 1
            out += struct.pack("<BBhI", op, dst | src << 4, target_off, target_imm & 0xFFFFFFFF)
        return bytes(out)


def _bpf(command: int, attr: bytes) -> int:
    result = int(syscall(_NR_BPF, command, ctypes.c_char_p(attr), len(attr)))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"bpf() command {command}: {os.strerror(number)}")
    return result


class Array:
    """Memory that the program and this process share (BPF_MAP_TYPE_ARRAY of one element, BPF_F_MMAPABLE).

    :param size: bytes.
    :raises OSError: EPERM without CAP_BPF.
    """

    def __init__(self, size: int) -> None:
        attr = struct.pack("<IIIII", _MAP_TYPE_ARRAY, 4, size, 1, _F_MMAPABLE)
        try:
            self.fd = _bpf(_MAP_CREATE, attr)
        except PermissionError:
            # Kernels before 5.11 charge the array to RLIMIT_MEMLOCK, which is 64 KiB by default.
            limits = resource.getrlimit(resource.RLIMIT_MEMLOCK)
            try:
                resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            except (OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_MEMLOCK, (limits[1], limits[1]))
            self.fd = _bpf(_MAP_CREATE, attr)
        try:
            self.memory = mmap.mmap(self.fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        except BaseException:
            os.close(self.fd)
            raise

    def close(self) -> None:
        """Give the file descriptor back; the memory goes with the last view of it."""
        os.close(self.fd)


class Program:
    """A loaded raw tracepoint program, never attached: it runs only when :meth:`run` says so.

    :param assembler: the program; ``callback`` labels a function in it that bpf_loop() calls.
    :param name: at most 15 letters, digits or ``_``; shown by bpftool.
    :raises OSError: EPERM without CAP_BPF and CAP_PERFMON; what the verifier says otherwise (EINVAL, EACCES).
    """

    def __init__(self, assembler: Assembler, name: str, callback: str | None = None) -> None:
        code = assembler.assemble()
        instructions = ctypes.create_string_buffer(code, len(code))
        licence = ctypes.create_string_buffer(b"GPL")
        attr = bytearray(144)
        struct.pack_into(
            "<IIQQ",
            attr,
            0,
            _PROG_TYPE_RAW_TRACEPOINT,
            len(code) // 8,
            ctypes.addressof(instructions),
            ctypes.addressof(licence),
        )
        attr[48 : 48 + len(name)] = name.encode("ascii")
        btf_fd = -1
        try:
            if callback is not None:
                types = _two_functions()
                blob = ctypes.create_string_buffer(types, len(types))
                btf_fd = _bpf(_BTF_LOAD, struct.pack("<QQIII", ctypes.addressof(blob), 0, len(types), 0, 0))
                info = struct.pack("<IIII", 0, 3, assembler.position(callback), 4)
                functions = ctypes.create_string_buffer(info, len(info))
                struct.pack_into("<IIQI", attr, 72, btf_fd, 8, ctypes.addressof(functions), 2)
            self.fd = _bpf(_PROG_LOAD, bytes(attr))
        finally:
            if btf_fd >= 0:
                os.close(btf_fd)
        run = bytearray(80)
        struct.pack_into("<I", run, 0, self.fd)
        self._run_attr = ctypes.create_string_buffer(bytes(run), len(run))
        self._run_args = (
            ctypes.c_long(_NR_BPF),
            ctypes.c_long(_PROG_TEST_RUN),
            self._run_attr,
            ctypes.c_long(len(run)),
        )

    def run(self) -> None:
        """Run the program once, here and now, on this thread (BPF_PROG_TEST_RUN)."""
        while syscall(*self._run_args) < 0:
            number = ctypes.get_errno()
            if number not in (errno.EINTR, errno.EAGAIN):
                raise OSError(number, f"running a BPF program failed: {os.strerror(number)}")

    def close(self) -> None:
        """Unload the program."""
        os.close(self.fd)


def _two_functions() -> bytes:
    """BTF of two static functions ``int()``: the verifier asks for the types of a program that has a callback."""
    strings = b"\0int\0main\0callback\0"
    types = struct.pack("<IIII", strings.index(b"int\0"), 1 << 24, 4, 1 << 24 | 32)
    types += struct.pack("<III", 0, 13 << 24, 1)
    for name in (b"main\0", b"callback\0"):
        types += struct.pack("<III", strings.index(name), 12 << 24, 2)
    return struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings)) + types + strings
