# SPDX-License-Identifier: GPL-2.0-only
"""Migration between NUMA nodes: which folio goes where, exactly; and what a machine with one node can show."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdamon.arrays import U64Array
from kdamon.mm.actions.migrate import choose_nodes, interleave_index, memory_nodes, page_nodes
from kdamon.mm.linux.machine import LinuxMachine
from tests.support.capabilities import needs_node, needs_root, needs_two_nodes
from tests.support.paths import ROOT
from tests.support.process_memory import PAGE, pages, space_of
from tests.support.tables import effort
from tests.support.workload import Workload

pytestmark = pytest.mark.real


HUGE_ORDER = 9


def u64(*numbers: int) -> U64Array:
    return np.array(numbers, np.uint64)


# Which folio goes where.


def test_folios_take_turns_by_their_weights() -> None:
    """Three to node 0, one to node 2, then again."""
    index = np.arange(8, dtype=np.uint64)
    assert [0, 0, 0, 2, 0, 0, 0, 2] == choose_nodes(index, [(0, 3), (2, 1)]).tolist()


def test_a_node_of_weight_0_gets_nothing() -> None:
    index = np.arange(4, dtype=np.uint64)
    assert [1, 3, 1, 3] == choose_nodes(index, [(0, 0), (1, 1), (2, 0), (3, 1)]).tolist()


@pytest.mark.parametrize("dests", [[], [(0, 0)], [(1, 0), (2, 0)]])
def test_without_weights_nothing_goes_anywhere(dests: list[tuple[int, int]]) -> None:
    assert [-1, -1] == choose_nodes(u64(0, 1), dests).tolist()


def test_small_pages_count_from_the_start_of_what_is_mapped() -> None:
    """The offset of the mapping and the place in it, in pages."""
    addrs = u64(0x10000, 0x11000, 0x15000)
    index = interleave_index(addrs, u64(*[0x10000] * 3), u64(7, 7, 7), u64(0, 0, 0))
    assert [7, 8, 12] == index.tolist()


def test_a_huge_page_counts_as_one() -> None:
    start = 5 << 21
    addrs = u64(start, start + (1 << 21), start + (3 << 21))
    orders = u64(*[HUGE_ORDER] * 3)
    assert [5, 6, 8] == interleave_index(addrs, u64(*[start] * 3), u64(*[start >> 12] * 3), orders).tolist()


@effort(100)
@given(
    st.lists(st.integers(0, 1 << 52), min_size=1, max_size=20),
    st.lists(st.tuples(st.integers(0, 7), st.integers(0, (1 << 32) - 1)), max_size=6),
)
def test_the_choice_is_that_of_the_loop_over_the_weights(index: list[int], dests: list[tuple[int, int]]) -> None:
    """The kernel subtracts weight after weight until one is above what is left."""
    total = sum(weight for _, weight in dests)
    expected = []
    for number in index:
        target = number % total if total else -1
        for node, weight in dests:
            if total and target < weight:
                expected.append(node)
                break
            target -= weight
        else:
            expected.append(-1)
    assert expected == choose_nodes(u64(*index), dests).tolist()


# Real pages.


@pytest.fixture(name="node")
def _node() -> int:
    return min(memory_nodes())


@needs_node
def test_where_pages_are(program: Path, node: int) -> None:
    """What is mapped is on a node, what is not is nowhere."""
    with Workload([program], "untouched", 64) as work:
        work.order("w", range(32))
        found = page_nodes(work.pid, work.addrs(range(64)) & np.uint64(0xFFFF_FFFF_FFFF_F000))
        assert set(found[:32].tolist()) <= memory_nodes()
        assert [-errno.ENOENT] * 32 == found[32:].tolist()


@needs_node
@pytest.mark.parametrize("kind", ["anon", "thp"])
def test_what_is_there_already_does_not_move(machine: LinuxMachine, program: Path, node: int, kind: str) -> None:
    with Workload([program], kind, 1024) as work, space_of(machine, work.pid) as mm:
        work.order("w", range(1024))
        here = page_nodes(work.pid, np.arange(work.base, work.base + 1024 * PAGE, PAGE, dtype=np.uint64))
        elsewhere = PAGE * int(np.count_nonzero(here != node))
        assert mm.migrate(pages(work, 0, 1024), [(node, 1)]).sum() <= elsewhere
        assert 0 == mm.migrate(pages(work, 0, 1024), [(node, 0)]).sum()
        assert 0 == work.spoilt(range(1024))


@needs_two_nodes
def test_pages_move_between_nodes_in_proportion(machine: LinuxMachine, program: Path) -> None:
    nodes = sorted(memory_nodes())[:2]
    with Workload([program], "anon", 1024) as work, space_of(machine, work.pid) as mm:
        work.order("w", range(1024))
        mm.migrate(pages(work, 0, 1024), [(nodes[0], 3), (nodes[1], 1)])
        here = page_nodes(work.pid, np.arange(work.base, work.base + 1024 * PAGE, PAGE, dtype=np.uint64))
        assert abs(int(np.count_nonzero(here == nodes[1])) - 256) < 64
        assert 0 == work.spoilt(range(1024))


def test_a_node_without_memory_is_refused(machine: LinuxMachine, program: Path, node: int) -> None:
    with Workload([program], "anon", 16) as work, space_of(machine, work.pid) as mm:
        for wrong in (-1, max(memory_nodes()) + 1):
            with pytest.raises(OSError, match="has no memory; name another one") as info:
                mm.migrate(pages(work, 0, 16), [(node, 1), (wrong, 1)])
            assert errno.EINVAL == info.value.errno


#: Tries a migration, while the kernel answers move_pages() with an errno if that is not 0.
ATTEMPT = """
import ctypes, os, sys
import numpy as np
from kdamon.mm.actions.advice import Advice
from kdamon.lib.pidfd import pidfd_open
from kdamon.mm.proc.process_files import ProcessFiles
from tests.support.tables import effort
pid, node, number = map(int, sys.argv[1:])
if number:
    class Filter(ctypes.Structure):
        _fields_ = [("n", ctypes.c_ushort), ("p", ctypes.c_void_p)]
    # Load the number of the call; if it is 279, return the errno; else allow.
    code = (ctypes.c_uint64 * 4)(0x20, 279 << 32 | 0x01000015, (0x50000 | number) << 32 | 6, 0x7FFF0000 << 32 | 6)
    libc = ctypes.CDLL(None)
    libc.prctl(38, 1, 0, 0, 0)
    assert libc.prctl(22, 2, ctypes.byref(Filter(4, ctypes.addressof(code)))) == 0
try:
    files = ProcessFiles(os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY))
except PermissionError:
    sys.exit()
try:
    print(*Advice(files, pidfd_open(pid)).migrate(np.array([[0, 1 << 47]], np.uint64), [(node, 1)]))
except OSError as error:
    print(error.errno, error.strerror)
"""


@needs_root("needs root, to give capabilities up")
@pytest.mark.parametrize(
    ("lacking", "number", "expected", "words"),
    [
        # CAP_PERFMON lets a process read all memory, not move it.
        (
            ["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"],
            0,
            errno.EPERM,
            "needs CAP_SYS_PTRACE, which root lacks here; start",
        ),
        (
            [],
            errno.EPERM,
            errno.EPERM,
            "needs move_pages(), which is refused although",
        ),
        ([], errno.ENOSYS, errno.EOPNOTSUPP, "this kernel has no move_pages(), so pages stay; use another action"),
    ],
)
def test_a_refusal_says_why(  # noqa: PLR0917 -- the case and the fixtures
    program: Path, node: int, lacking: list[str], number: int, expected: int, words: str
) -> None:
    with Workload([program], "anon", 16) as work:
        said = subprocess.run(
            [*lacking, sys.executable, "-c", ATTEMPT, str(work.pid), str(node), str(number)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    if not said:
        pytest.skip("kernel lacks: a look at all memory by CAP_PERFMON")
    assert said.startswith(f"{expected} ")
    assert words in said


def test_a_process_that_ended_has_nothing_to_migrate(machine: LinuxMachine, program: Path, node: int) -> None:
    with Workload([program], "anon", 16) as work, space_of(machine, work.pid) as mm:
        work.process.kill()
        work.process.wait()
        assert 0 == mm.migrate(pages(work, 0, 16), [(node, 1)]).sum()
    assert not os.path.exists(f"/proc/{work.pid}")
