# SPDX-License-Identifier: GPL-2.0-only
"""Metrics for goals and watermarks, against what the kernel's files say."""

from __future__ import annotations

import errno
import mmap
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdamon.kernel import PAGE_SIZE
from kdamon.mm.linux.machine import linux_machine
from kdamon.mm.proc.cgroup import memory_root
from kdamon.mm.proc.metrics import memcg_id, metric, share_bp
from tests.support.capabilities import needs_memory_cgroup, needs_psi

pytestmark = pytest.mark.real


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


def numbers(path: str) -> dict[str, int]:
    """A meminfo file by hand."""
    found = re.findall(r"^(?:Node \d+ )?(\S+):\s+(\d+)", Path(path).read_text(), re.MULTILINE)
    return {name: int(value) for name, value in found}


def share(part: int, whole: int, unit: int = 10000) -> int:
    return part * unit // whole


def by_hand(name: str) -> int:
    """What a metric is, from the kernel's files."""
    info, node = numbers("/proc/meminfo"), numbers("/sys/devices/system/node/node0/meminfo")
    if name == "some_mem_psi_us":
        found = re.match(r"some .* total=(\d+)$", Path("/proc/pressure/memory").read_text(), re.MULTILINE)
        assert found
        return int(found[1])
    lists = {kind: info[f"{kind}(anon)"] + info[f"{kind}(file)"] for kind in ("Active", "Inactive")}
    huge = sum(info.get(kind, 0) for kind in ("AnonHugePages", "ShmemHugePages", "FileHugePages"))
    return {
        "node_mem_used_bp": share(node["MemTotal"] - node["MemFree"], node["MemTotal"]),
        "node_mem_free_bp": share(node["MemFree"], node["MemTotal"]),
        "active_mem_bp": share(lists["Active"], sum(lists.values())),
        "inactive_mem_bp": share(lists["Inactive"], sum(lists.values())),
        "hugepage_mem_bp": share(huge, info["MemTotal"] - info["MemFree"]),
        "free_mem_rate": share(info["MemFree"], info["MemTotal"], 1000),
    }[name]


@pytest.mark.parametrize(
    "name",
    [
        *(*NODE_METRICS, "active_mem_bp", "inactive_mem_bp", "hugepage_mem_bp", "free_mem_rate"),
        pytest.param("some_mem_psi_us", marks=needs_psi),
    ],
)
def test_metrics_are_what_the_kernels_files_say(name: str) -> None:
    """Exactly, where these said the same before and after; with some memory in huge pages."""
    with mmap.mmap(-1, 16 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        memory[::PAGE_SIZE] = bytes(len(memory) // PAGE_SIZE)
        seen = []
        for _ in range(100):
            before, value, after = by_hand(name), metric(name), by_hand(name)
            seen.append((before, value, after))
            if before == after:
                break
        assert before == value == after, seen


@pytest.mark.parametrize("nid", [-1, 1023])
def test_a_node_that_is_not_there_is_free(nid: int) -> None:
    assert [0, 10000] == [metric(name, nid=nid) for name in NODE_METRICS]
    assert 0 == metric("node_memcg_used_bp", nid=nid, memcg="/")
    assert 10000 == metric("node_memcg_free_bp", nid=nid, memcg="/")


@needs_psi
@pytest.mark.parametrize(
    ("used", "total", "used_bp", "free_bp"),
    [(30, 100, 3000, 7000), (1, 3, 3333, 6666), (0, 0, 0, 10000), (-5, 100, 0, 10000), (101, 100, 10000, 0)],
)
def test_shares_of_a_node_whose_numbers_do_not_fit_together(used: int, total: int, used_bp: int, free_bp: int) -> None:
    """More is free than there is, or a cgroup has more than that; a node that is not there has nothing used."""
    assert (used_bp, free_bp) == (share_bp(used, total, free=False), share_bp(used, total, free=True))


def test_stall_time_never_goes_back() -> None:
    first = metric("some_mem_psi_us")
    assert first <= metric("some_mem_psi_us")


def test_unknown_names_are_refused() -> None:
    assert errno.EINVAL == errno_of(metric, "user_input")


# Memory cgroups.


@pytest.fixture
def memcg() -> Iterator[str]:
    """The path of a memory cgroup of the test's own."""
    directory, root = memory_root()
    path = f"kdamon-test-{os.getpid()}"
    (directory / path).mkdir()
    yield f"{root.rstrip('/')}/{path}"
    (directory / path).rmdir()


@needs_memory_cgroup
def test_a_cgroup_has_the_number_of_its_directory(memcg: str) -> None:
    directory, root = memory_root()
    assert (directory / memcg.removeprefix(root).lstrip("/")).stat().st_ino == memcg_id(memcg)
    assert directory.stat().st_ino == memcg_id(root)
    assert 0 == metric("node_memcg_used_bp", memcg=memcg)
    assert 10000 == metric("node_memcg_free_bp", memcg=memcg)
    assert 0 < metric("node_memcg_used_bp", memcg=root) <= 10000


@needs_memory_cgroup
def test_a_cgroups_share_is_what_its_statistics_say(memcg: str) -> None:
    """Of all nodes: on a machine with one. The root group and all below it, at a quiet moment."""
    if os.path.exists("/sys/devices/system/node/node1"):
        pytest.skip("kernel lacks: a single NUMA node")
    directory, root = memory_root()

    def by_statistics() -> tuple[int, int]:
        found = dict(line.split() for line in (directory / "memory.stat").read_text().splitlines())
        prefix = "total_" if "total_active_anon" in found else ""
        lists = (f"{prefix}{kind}_{of}" for kind in ("active", "inactive") for of in ("anon", "file"))
        used = sum(int(found[name]) for name in lists) >> 10
        total = numbers("/sys/devices/system/node/node0/meminfo")["MemTotal"]
        return share(used, total), share(total - used, total)

    seen = []
    for _ in range(100):
        before = by_statistics()
        values = tuple(metric(f"node_memcg_{kind}_bp", memcg=root) for kind in ("used", "free"))
        after = by_statistics()
        seen.append((before, values, after))
        if before == after:
            break
    assert before == values == after, seen


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
