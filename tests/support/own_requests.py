# SPDX-License-Identifier: GPL-2.0-only
"""Serves a tree and says which requests to it came from its own process: ``own_requests.py exec|mount MOUNTPOINT``.

``exec`` is done in a private namespace at the kernel's place; ``mount`` serves MOUNTPOINT until it was read once.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from kdamon.mm.sim.machine import SimMachine
from kdamon_fs.fuse_binding import load_fuse
from kdamon_fs.mount import MountedTree, _operations
from kdamon_fs.namespace import run_in_namespace
from kdamon_fs.sysfs import damon_sysfs_init


def _watched(name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(operation)
    def watched(self: _operations, *arguments: Any) -> Any:
        # The number is a thread's. The kernel's request to begin has none.
        thread = load_fuse().module.fuse_get_context()[2]
        if os.path.exists(f"/proc/self/task/{thread}"):
            print("own", name, *arguments[:1], flush=True)
        elif thread:
            print("other", name, *arguments[:1], flush=True)
        return operation(self, *arguments)

    return watched


if __name__ == "__main__":
    for name, operation in vars(_operations).copy().items():
        if callable(operation) and not name.startswith("_"):
            setattr(_operations, name, _watched(name, operation))
    if sys.argv[1] == "exec":
        reading = "cat /sys/module/damon_stat/parameters/enabled; cat /sys/kernel/mm/damon/admin/kdamonds/nr_kdamonds"
        sys.exit(run_in_namespace(["sh", "-c", reading], "7.3", SimMachine(seed=1)))
    with MountedTree(damon_sysfs_init(SimMachine(seed=1), "7.3"), sys.argv[2]):
        subprocess.run(["cat", f"{sys.argv[2]}/admin/kdamonds/nr_kdamonds"], check=True)
