# SPDX-License-Identifier: GPL-2.0-only
"""Serves a tree and says which requests to it came from its own process: ``own_requests.py exec|mount MOUNTPOINT``.

``exec`` is done in a private namespace at the kernel's place; ``mount`` serves MOUNTPOINT until it was read once.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import fuse

from kdamon.mm.sim.machine import SimMachine
from kdamon_fs.mount import _operations, mounted_tree
from kdamon_fs.namespace import run_in_namespace
from kdamon_fs.sysfs import damon_sysfs_init

_serve = _operations.__call__


def _watched(self: _operations, operation: str, *arguments: Any) -> Any:
    # The number is a thread's. The kernel's request to begin has none.
    thread = fuse.fuse_get_context()[2]
    if os.path.exists(f"/proc/self/task/{thread}"):
        print("own", operation, *arguments[:1], flush=True)
    elif thread:
        print("other", operation, *arguments[:1], flush=True)
    return _serve(self, operation, *arguments)


if __name__ == "__main__":
    _operations.__call__ = _watched  # type: ignore[method-assign]
    if sys.argv[1] == "exec":
        reading = "cat /sys/module/damon_stat/parameters/enabled; cat /sys/kernel/mm/damon/admin/kdamonds/nr_kdamonds"
        sys.exit(run_in_namespace(["sh", "-c", reading], "7.2", SimMachine(seed=1)))
    with mounted_tree(damon_sysfs_init(SimMachine(seed=1), "7.2"), sys.argv[2]):
        subprocess.run(["cat", f"{sys.argv[2]}/admin/kdamonds/nr_kdamonds"], check=True)
