# SPDX-License-Identifier: GPL-2.0-only
"""Many system calls in one: by machine code, and by Python where no memory may be executable."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from kdamon.arrays import U64Array
from kdamon.mm import syscall_batch
from kdamon.mm.syscall_batch import RESULT, STOP, WORDS, jump, make_calls
from tests.support.cli import ENVIRONMENT

NR_READ, NR_WRITE, NR_MMAP, NR_MUNMAP, NR_GETPID = 0, 1, 9, 11, 39


@pytest.fixture(autouse=True, params=["machine code", "Python"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if request.param == "Python":
        monkeypatch.setattr(syscall_batch, "runner", lambda: None)
    else:
        assert syscall_batch.runner() is not None
    yield


def rows(*calls: tuple[int, ...]) -> U64Array:
    """Rows of calls, each with the result 1234."""
    table = np.zeros((len(calls), WORDS), np.int64)
    table[:, RESULT] = 1234
    for row, call in zip(table, calls, strict=True):
        row[: len(call)] = call
    return table.view(np.uint64)


def results(table: U64Array) -> list[int]:
    """What the calls returned."""
    return table[:, RESULT].view(np.int64).tolist()


def test_calls_are_made_in_their_order() -> None:
    """Each result is stored; an error is a negative number and stops nothing."""
    data, read = np.frombuffer(b"abcdef", np.uint8), np.zeros(6, np.uint8)
    out, into = os.pipe()
    table = rows(
        (NR_WRITE, into, data.ctypes.data, 4),
        (NR_READ, 1 << 20, read.ctypes.data, 6),
        (NR_READ, out, read.ctypes.data, 6),
        (NR_GETPID,),
    )
    make_calls(table)
    os.close(out)
    os.close(into)
    assert [4, -errno.EBADF, 4, os.getpid()] == results(table)
    assert b"abcd\0\0" == read.tobytes()


def test_six_arguments_arrive() -> None:
    """mmap() has as many."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    table = rows((NR_MMAP, 0, 8192, mmap.PROT_READ, flags, -1, 0))
    make_calls(table)
    (address,) = results(table)
    assert address > 0
    assert 0 == address % mmap.PAGESIZE
    undo = rows((NR_MUNMAP, address, 8192))
    make_calls(undo)
    assert [0] == results(undo)


def test_a_batch_can_be_stopped() -> None:
    """What comes after it is not done."""
    table = rows((NR_GETPID,), (STOP,), (NR_GETPID,))
    make_calls(table)
    assert [os.getpid(), 1234, 1234] == results(table)


def test_a_row_can_say_which_one_is_next() -> None:
    """After it, or before it; here until a call changed the row that begins anew."""
    data = np.array([STOP], np.int64)
    table = rows(
        (NR_WRITE, 0, 0, 1),
        (jump(3),),
        (NR_GETPID,),
        (NR_READ, 0, 0, 8),
        (jump(0),),
    )
    out, into = os.pipe()
    more, changes = os.pipe()
    table[0, 1:3] = into, data.ctypes.data
    table[3, 1:3] = more, table[0:].ctypes.data
    os.write(changes, np.array([NR_WRITE], np.int64).tobytes() + data.tobytes())
    make_calls(table, 99)
    assert [1, 1234, 1234, 8, 1234] == results(table)
    assert 2 == len(os.read(out, 99))
    for fd in (out, into, more, changes):
        os.close(fd)


def test_a_batch_that_never_ends_is_ended() -> None:
    """After as many calls as were asked for."""
    out, into = os.pipe()
    table = rows((NR_WRITE, into, 0, 1), (jump(0),))
    table[0, 2] = table.ctypes.data
    make_calls(table, 5)
    os.close(into)
    with open(out, "rb") as written:
        assert 5 == len(written.read())


@pytest.mark.real
def test_the_machine_code_stays_where_it_is() -> None:
    """A thread may be in it while Python's modules are taken down."""
    script = """
import ctypes, gc
from kdamon.mm import syscall_batch
place = ctypes.cast(syscall_batch.runner(), ctypes.c_void_p).value
syscall_batch.runner.cache_clear()
syscall_batch.__dict__.clear()
gc.collect()
with open("/proc/self/maps") as maps:
    print([line.split()[1] for line in maps if line.startswith(f"{place:x}-")])
"""
    assert "['r-xp']\n" == subprocess.check_output([sys.executable, "-c", script], text=True, env=ENVIRONMENT)


def test_no_calls() -> None:
    """Nothing happens."""
    make_calls(rows())
