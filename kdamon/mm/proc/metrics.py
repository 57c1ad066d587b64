# SPDX-License-Identifier: GPL-2.0-only
"""Metrics of scheme goals and watermarks, read from files of ``/proc``, ``/sys`` and the memory cgroups.

=========================  ===========================================================================================
metric                     meaning (the kernel's own computations, in ``mm/damon/core.c``)
=========================  ===========================================================================================
some_mem_psi_us            time for which some task stalled for memory since boot, microseconds
node_mem_used_bp, free_bp  share of a NUMA node's memory, 1/10000
node_memcg_used_bp         share of a NUMA node's memory that the cgroup has on LRU lists; free_bp: the rest
active_mem_bp              share of the active among all pages on LRU lists; inactive_mem_bp: the rest
hugepage_mem_bp            share of transparent huge pages in the used memory
free_mem_rate              share of free memory, 1/1000
=========================  ===========================================================================================

A node or cgroup that is not there has nothing used and all free, as in the kernel.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Final

from kdamon.kernel import PAGE_SIZE, mult_frac
from kdamon.mm.proc.cgroup import memory_group

__all__ = ["memcg_id", "metric", "share_bp"]

_BP: Final = 10000
_LRU_LISTS: Final = ("active_anon", "inactive_anon", "active_file", "inactive_file")


def metric(name: str, *, nid: int = 0, memcg: str = "") -> int:
    """Measure ``name``, see :meth:`kdamon.mm.Machine.metric`.

    :raises OSError: EINVAL an unknown name; EOPNOTSUPP this kernel does not measure it.
    """
    if name == "some_mem_psi_us":
        return _stalled_us()
    if name in ("node_mem_used_bp", "node_mem_free_bp"):
        return _node_bp(nid, free=name == "node_mem_free_bp")
    if name in ("node_memcg_used_bp", "node_memcg_free_bp"):
        return _node_memcg_bp(nid, memcg, free=name == "node_memcg_free_bp")
    if name in ("active_mem_bp", "inactive_mem_bp"):
        info = _meminfo(Path("/proc/meminfo"))
        part = info["Active" if name == "active_mem_bp" else "Inactive"]
        return mult_frac(part, _BP, info["Active"] + info["Inactive"] or 1)
    if name == "hugepage_mem_bp":
        info = _meminfo(Path("/proc/meminfo"))
        huge = sum(info.get(kind, 0) for kind in ("AnonHugePages", "ShmemHugePages", "FileHugePages"))
        return mult_frac(huge, _BP, info["MemTotal"] - info["MemFree"] or 1)
    if name == "free_mem_rate":
        info = _meminfo(Path("/proc/meminfo"))
        return info["MemFree"] * 1000 // (info["MemTotal"] or 1)
    raise OSError(errno.EINVAL, f"there is no metric {name} of this machine")


def _meminfo(path: Path) -> dict[str, int]:
    """The numbers of a meminfo file by their names, mostly KiB."""
    info = {}
    for line in path.read_text().splitlines():
        key, _, value = line.rpartition(":")
        info[key.split()[-1]] = int(value.split()[0])
    return info


def _stalled_us() -> int:
    try:
        some = Path("/proc/pressure/memory").read_text().splitlines()[0]
    except OSError as error:
        raise OSError(
            errno.EOPNOTSUPP, "the kernel does not report how long tasks stall for memory; boot it with psi=1"
        ) from error
    return int(some.rpartition("total=")[2])


def _node(nid: int) -> dict[str, int] | None:
    try:
        return _meminfo(Path(f"/sys/devices/system/node/node{nid}/meminfo"))
    except OSError:
        return None


def _node_bp(nid: int, free: bool) -> int:
    node = _node(nid)
    if node is None:
        return share_bp(0, 0, free=free)
    return share_bp(node["MemTotal"] - node["MemFree"], node["MemTotal"], free=free)


def _node_memcg_bp(nid: int, path: str, free: bool) -> int:
    node = _node(nid)
    try:
        used = _on_lru_lists(memory_group(path), nid) // 1024
    except OSError:
        used = 0
    return share_bp(used, 0 if node is None else node["MemTotal"], free=free)


def share_bp(used: int, total: int, *, free: bool) -> int:
    """The share of ``used`` in ``total``, or of the rest, 1/10000; the numbers change while memory is plugged.

    :param used: counts as nothing if it is negative, because more is free than there is, and as all if it exceeds
        ``total``.
    :param total: 0 if there is no such node: nothing is used of it, all is free.
    """
    if not total:
        return _BP if free else 0
    used = min(max(used, 0), total)
    return mult_frac(total - used if free else used, _BP, total)


# Memory cgroups.


def memcg_id(path: str) -> int:
    """The number of a memory cgroup, see :meth:`kdamon.mm.Machine.memcg_id`.

    :raises OSError: ENOENT there is none.
    """
    return memory_group(path).stat().st_ino


def _on_lru_lists(directory: Path, nid: int) -> int:
    """Memory of a cgroup and of those below on the LRU lists of a node, bytes."""
    used = 0
    for line in (directory / "memory.numa_stat").read_text().splitlines():
        key, *nodes = line.split()
        # The first version counts pages: "hierarchical_anon=12 N0=12"; the second bytes: "active_anon N0=12".
        if key in _LRU_LISTS:
            unit = 1
        elif key.startswith(("hierarchical_anon=", "hierarchical_file=")):
            unit = PAGE_SIZE
        else:
            continue
        used += unit * sum(int(node.partition("=")[2]) for node in nodes if node.startswith(f"N{nid}="))
    return used
