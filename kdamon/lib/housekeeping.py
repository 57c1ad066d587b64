# SPDX-License-Identifier: GPL-2.0-only
"""The CPUs that kdamon's own threads run on (``kernel/sched/isolation.c: housekeeping_cpumask()``).

As kernel threads do, they leave isolated and nohz_full CPUs alone, unless these are chosen or there are no others.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import Final

__all__ = ["choose_cpus", "housekeeping_cpus", "parse_cpu_list", "run_there"]

_ISOLATED: Final = ("/sys/devices/system/cpu/isolated", "/sys/devices/system/cpu/nohz_full")

_chosen: frozenset[int] | None = None


def choose_cpus(cpus: frozenset[int] | None) -> None:
    """Let the threads that start from now on run on ``cpus`` only; None: on the default ones.

    :raises OSError: EINVAL this process may use none of them.
    """
    global _chosen  # noqa: PLW0603 -- one choice for the process
    if cpus is not None and not cpus & os.sched_getaffinity(0):
        usable = ", ".join(map(str, sorted(os.sched_getaffinity(0))))
        raise OSError(errno.EINVAL, f"this process may use none of these CPUs; choose among {usable}")
    _chosen = cpus


def housekeeping_cpus() -> frozenset[int]:
    """Those CPUs, of the ones that the calling thread may use."""
    allowed = frozenset(os.sched_getaffinity(0))
    if _chosen is not None:
        return allowed & _chosen or allowed
    kept_free: set[int] = set()
    for path in _ISOLATED:
        try:
            kept_free |= parse_cpu_list(Path(path).read_text(encoding="utf-8"))
        except OSError:
            continue
    return allowed - kept_free or allowed


def parse_cpu_list(text: str) -> set[int]:
    """The numbers in ``text`` as the kernel writes them, such as ``0-3,8``; other words are no CPUs."""
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first.isdigit() and (last or first).isdigit():
            found |= set(range(int(first), int(last or first) + 1))
    return found


def run_there() -> None:
    """Let the calling thread run on :func:`housekeeping_cpus` only."""
    cpus = housekeeping_cpus()
    if cpus != os.sched_getaffinity(0):
        # A cpuset may take them away meanwhile.
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, cpus)
