# SPDX-License-Identifier: GPL-2.0-only
"""Member offsets from the kernel's type information."""

from __future__ import annotations

import errno
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kdamon.mm.bpf.btf import VMLINUX, Btf, vmlinux
from tests.support.capabilities import needs_path

pytestmark = pytest.mark.real


STRINGS = b"\0int\0outer\0plain\0inner\0deep\0flags\0kinds\0first\0second\0array_t\0"
INT, FUNC, FUNC_PROTO, STRUCT, UNION, ENUM, ARRAY, CONST, VAR, DATASEC = 1, 12, 13, 4, 5, 6, 3, 10, 14, 15


def _type(name: str, kind: int, vlen: int, size: int, *rest: int, flag: int = 0) -> bytes:
    offset = STRINGS.index(b"\0" + name.encode() + b"\0") + 1 if name else 0
    return struct.pack(f"<{3 + len(rest)}I", offset, flag << 31 | kind << 24 | vlen, size, *rest)


def _name(name: str) -> int:
    return STRINGS.index(b"\0" + name.encode() + b"\0") + 1


def _blob(*types: bytes) -> bytes:
    body = b"".join(types)
    header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(body), len(body), len(STRINGS))
    return header + body + STRINGS


BLOB = _blob(
    _type("int", INT, 0, 4, 32),  # 1
    _type("", ARRAY, 0, 0, 1, 1, 8),  # 2
    _type("", FUNC_PROTO, 2, 1, 0, 1, 0, 1),  # 3
    # 4: struct { int deep; int flags : 3 } as a bit field
    _type("", STRUCT, 2, 8, _name("deep"), 1, 32, _name("flags"), 1, 3 << 24 | 64, flag=1),
    _type("", CONST, 0, 4),  # 5
    _type("", UNION, 1, 8, 0, 5, 0),  # 6
    _type("", DATASEC, 1, 8, 1, 0, 8),  # 7
    # 8: struct outer { int plain; unnamed union at 8; int inner[] at 24 }
    _type("outer", STRUCT, 3, 32, _name("plain"), 1, 32, 0, 6, 64, _name("inner"), 2, 192),
    _type("kinds", ENUM, 2, 4, _name("first"), 5, _name("second"), 0xFFFFFFFF),  # 9
    _type("plain", VAR, 0, 1, 1),  # 10
)


@pytest.mark.parametrize(("member", "offset"), [("plain", 4), ("deep", 12), ("flags", 16), ("inner", 24)])
def test_members_are_found_through_unnamed_parts(member: str, offset: int) -> None:
    """Through a const unnamed structure in an unnamed union too; the offsets add up."""
    assert Btf(BLOB).offset("outer", member) == offset


def test_sizes_and_enumerators_are_read() -> None:
    """Enumerators are signed."""
    assert 32 == Btf(BLOB).size("outer")
    assert 5 == Btf(BLOB).enumerator("kinds", "first")
    assert -1 == Btf(BLOB).enumerator("kinds", "second")


@pytest.mark.parametrize(("name", "member"), [("outer", "array_t"), ("kinds", "first"), ("absent", "plain")])
def test_what_a_kernel_lacks_is_said(name: str, member: str) -> None:
    """An enum's name is no structure's."""
    with pytest.raises(OSError, match="this kernel's") as caught:
        Btf(BLOB).offset(name, member)
    assert errno.EOPNOTSUPP == caught.value.errno


def test_a_type_that_follows_thousands_of_others_is_found() -> None:
    """Records are read as far as they are needed: for a name, the type of an unnamed member, or one that is absent."""
    count = 20_000
    others = [_type("int", INT, 0, 4, 32)] * count
    outer = _type("outer", STRUCT, 1, 8, 0, count + 2, 32)  # 1, whose member is of the last type but one
    last = [_type("", UNION, 1, 4, _name("deep"), 2, 0), _type("kinds", ENUM, 1, 4, _name("first"), 7)]
    assert 4 == Btf(_blob(outer, *others, *last)).offset("outer", "deep")
    assert 7 == Btf(_blob(outer, *others, *last)).enumerator("kinds", "first")
    with pytest.raises(OSError, match="does not know inner"):
        Btf(_blob(outer, *others, *last)).size("inner")


def test_functions_are_numbered() -> None:
    """As bpf(2) takes them: by their place among all types."""
    blob = _blob(_type("int", INT, 0, 4, 32), _type("plain", VAR, 0, 1, 1), _type("plain", FUNC, 0, 1))
    assert 3 == Btf(blob).function("plain")


@pytest.mark.parametrize("blob", [b"", b"\x7fELF" + bytes(60)])
def test_something_else_is_refused(blob: bytes) -> None:
    """A blob must begin with BTF's magic number."""
    with pytest.raises(OSError, match="unknown format"):
        Btf(blob)


@needs_path(VMLINUX, "BTF")
def test_the_running_kernel_is_read() -> None:
    """Offsets are within the structure."""
    btf = vmlinux()
    assert 0 < btf.offset("mm_struct", "pgd") < btf.size("mm_struct")
    assert 0 < btf.offset("task_struct", "files") < btf.size("task_struct")


@needs_path(VMLINUX, "BTF")
def test_threads_look_types_up_at_once() -> None:
    """Each finds what it looks for, however far the others have read."""
    wanted = [("file", "private_data"), ("mm_struct", "mm_mt"), ("task_struct", "mm"), ("page", "_refcount")]
    blob = Path(VMLINUX).read_bytes()
    expected = [Btf(blob).offset(*one) for one in wanted]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for _ in range(10):
            btf = Btf(blob)
            with ThreadPoolExecutor(len(wanted)) as pool:
                found = list(pool.map(lambda one, btf=btf: btf.offset(*one), wanted))  # type: ignore[misc]
            assert expected == found
    finally:
        sys.setswitchinterval(before)
