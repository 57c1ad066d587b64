# SPDX-License-Identifier: GPL-2.0-only
"""Checks which actions schemes can use on this machine, by trying them on a child process.

A part of :mod:`kdamon.mm.doctor`. Each probe returns a sentence about its success, or raises OSError with "problem;
remedy".
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

import numpy as np

from kdamon.lib.pidfd import pidfd_open
from kdamon.lib.rights import needs_linux, refusal
from kdamon.lib.trusted import find_program
from kdamon.mm.actions.advice import has_swap
from kdamon.mm.actions.madvise import Adviser
from kdamon.mm.actions.migrate import memory_nodes
from kdamon.mm.inject.requests import inject_madvise
from kdamon.mm.mman import MADV_COLLAPSE, MADV_NOHUGEPAGE
from kdamon.mm.proc import maps
from kdamon.mm.proc.kpageflags import Folios
from kdamon.mm.proc.metrics import memcg_id, metric

__all__ = ["SCHEME_PROBES", "loaded_child"]


@contextmanager
def loaded_child(user: int | None = None) -> Iterator[int]:
    """A child process, whose program and libraries are loaded, that waits: its number.

    :param user: whose it is to be; OSError EPERM where this process may not give it away. None: this user's.
    """
    groups: list[int] | None = None if user is None else []
    program = find_program("cat")
    if program is None:
        raise OSError(errno.ENOENT, "there is no program cat on PATH that other users cannot change; set PATH")
    with subprocess.Popen(
        [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, user=user, group=user, extra_groups=groups
    ) as child:
        try:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write(b"\n")
            child.stdin.flush()
            child.stdout.read(1)
            yield child.pid
        finally:
            # Without the right to, it ends with its standard input.
            with suppress(PermissionError):
                child.kill()


def _pageout() -> str:
    if not has_swap():
        raise OSError(
            errno.EOPNOTSUPP,
            "there is no swap, so only memory of files is paged out; add a swap device or file (swapon)",
        )
    return "swap space is available"


def _collapse() -> str:
    with loaded_child() as pid:
        pidfd = pidfd_open(pid)
        try:
            Adviser(pidfd).check(MADV_COLLAPSE)
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise OSError(
                    errno.EOPNOTSUPP,
                    f"the kernel collapses no other process's memory into huge pages; {needs_linux('6.1')}",
                ) from None
            if error.errno == errno.EPERM:
                what = "collapsing another process's memory needs"
                raise refusal(what, "process_madvise()", "CAP_SYS_NICE") from None
            raise
        finally:
            os.close(pidfd)
    return "the kernel accepted this advice for a child process"


def _huge_pages() -> str:
    with loaded_child() as pid:
        ((start, end), *_) = maps.parse(Path(f"/proc/{pid}/maps").read_bytes()).tolist()
        inject_madvise(pid, [(start, end)], MADV_NOHUGEPAGE, lambda: True)
    return "a child process, stopped for a moment, advised its own memory"


def _migrate() -> str:
    nodes = sorted(memory_nodes())
    if len(nodes) < 2:
        raise OSError(errno.EOPNOTSUPP, "the memory is all on one NUMA node, so there is nowhere to migrate it to")
    return f"there is memory on the NUMA nodes {', '.join(map(str, nodes))}"


def _memory_cgroups() -> str:
    try:
        memcg_id("/")
    except OSError:
        raise OSError(
            errno.ENOENT, "no memory cgroups are mounted; mount -t cgroup2 none /sys/fs/cgroup, with memory enabled"
        ) from None
    with closing(Folios()) as folios:
        folios.cgroups(np.ones(1, np.uint64))
    return "they are mounted, and /proc/kpagecgroup shows their pages"


def _pressure() -> str:
    metric("some_mem_psi_us")
    return "/proc/pressure/memory reports how long tasks stalled"


SCHEME_PROBES: Final[dict[str, Callable[[], str]]] = {
    "schemes: pageout, anonymous": _pageout,
    "schemes: collapse": _collapse,
    "schemes: hugepage, nohugepage": _huge_pages,
    "schemes: migrate_hot, _cold": _migrate,
    "schemes: memory cgroups": _memory_cgroups,
    "schemes: goal some_mem_psi_us": _pressure,
}
