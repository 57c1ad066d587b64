# SPDX-License-Identifier: GPL-2.0-only
"""Metrics for goals and watermarks, against what the kernel's files say."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdamon.mm import metrics
from kdamon.mm.linux import linux_machine
from kdamon.mm.metrics import memcg_id, metric

NODE_METRICS = ("node_mem_used_bp", "node_mem_free_bp")


def errno_of(fn: object, *args: object) -> int | None:
    with pytest.raises(OSError) as error:
        fn(*args)  # type: ignore[operator]
    return error.value.errno


@pytest.mark.parametrize(
    ("one", "other"),
    [("node_mem_used_bp", "node_mem_free_bp"), ("active_mem_bp", "inactive_mem_bp")],
)
def test_what_is_a_share_of_a_whole_adds_up_to_it(one: str, other: str) -> None:
    """Memory comes and goes between the two looks."""
    assert abs(10000 - metric(one) - metric(other)) < 500


@pytest.mark.parametrize("name", ["active_mem_bp", "inactive_mem_bp", "hugepage_mem_bp", *NODE_METRICS])
def test_shares_lie_between_nothing_and_all(name: str) -> None:
    assert 0 <= metric(name) <= 10000


def test_free_memory_is_counted_in_thousandths() -> None:
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free, total = (int(lines[key].split()[0]) for key in ("MemFree", "MemTotal"))
    assert abs(free * 1000 // total - metric("free_mem_rate")) < 50


def test_used_memory_of_a_node_grows_by_what_a_process_takes() -> None:
    size = 256 << 20
    (total,) = (
        int(line.split()[3]) << 10
        for line in Path("/sys/devices/system/node/node0/meminfo").read_text().splitlines()
        if "MemTotal" in line
    )
    before = metric("node_mem_used_bp")
    with mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        for page in range(0, size, mmap.PAGESIZE):
            memory[page] = 1
        assert metric("node_mem_used_bp") - before > size * 10000 // total // 2


@pytest.mark.parametrize("nid", [-1, 1023])
def test_a_node_that_is_not_there_is_free(nid: int) -> None:
    assert [0, 10000] == [metric(name, nid=nid) for name in NODE_METRICS]
    assert 0 == metric("node_memcg_used_bp", nid=nid, memcg="/")
    assert 10000 == metric("node_memcg_free_bp", nid=nid, memcg="/")


def test_stall_time_never_goes_back() -> None:
    if not os.path.exists("/proc/pressure/memory"):
        pytest.skip("kernel lacks: pressure stall information")
    first = metric("some_mem_psi_us")
    assert first <= metric("some_mem_psi_us")


def test_unknown_names_are_refused() -> None:
    assert errno.EINVAL == errno_of(metric, "user_input")


# Memory cgroups.


@pytest.fixture
def memcg() -> Iterator[str]:
    """The path of a memory cgroup of the test's own."""
    try:
        directory, root = metrics._memcg_root()
        path = f"kdamon-test-{os.getpid()}"
        (directory / path).mkdir()
    except OSError as error:
        pytest.skip(f"kernel lacks: a memory cgroup of the test's own ({error.strerror})")
    yield f"{root.rstrip('/')}/{path}"
    (directory / path).rmdir()


def test_a_cgroup_has_the_number_of_its_directory(memcg: str) -> None:
    directory, root = metrics._memcg_root()
    assert (directory / memcg.removeprefix(root).lstrip("/")).stat().st_ino == memcg_id(memcg)
    assert directory.stat().st_ino == memcg_id(root)
    assert 0 == metric("node_memcg_used_bp", memcg=memcg)
    assert 10000 == metric("node_memcg_free_bp", memcg=memcg)
    assert 0 < metric("node_memcg_used_bp", memcg=root) <= 10000


@pytest.mark.parametrize("change", ["{}/", " {}", "/{}", "{}\n", "{}x", "", "/proc", "{}/../", "{}/."])
def test_a_path_has_to_be_as_the_kernel_writes_it(memcg: str, change: str) -> None:
    assert errno.ENOENT == errno_of(memcg_id, change.format(memcg))


def test_a_cgroup_that_is_gone_uses_nothing() -> None:
    assert [0, 10000] == [metric(f"node_memcg_{kind}_bp", memcg="/gone") for kind in ("used", "free")]


def test_the_machine_tells_them() -> None:
    machine = linux_machine("page_fault")
    try:
        assert 0 <= machine.metric("free_mem_rate") <= 1000
        assert errno.ENOENT == errno_of(machine.memcg_id, "/gone")
    finally:
        machine.close()
