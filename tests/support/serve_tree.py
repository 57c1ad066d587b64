# SPDX-License-Identifier: GPL-2.0-only
"""A server for the tests of the mount: ``serve.py MOUNTPOINT [ABI]`` serves simulated processes 1, 141 and 150.

Says "ready" once the tree can be used, and "ended" when it was unmounted properly.
"""

from __future__ import annotations

import logging
import sys

from kdamon.mm.sim.machine import SimMachine
from kdamon_fs.mount import mount_tree
from kdamon_fs.sysfs import damon_sysfs_init

MEBI = 1 << 20


def main(mountpoint: str, abi: str = "7.3") -> int:
    """Serve until a signal comes; errors are one line on stderr."""
    logging.basicConfig(level=logging.INFO, format="log: %(message)s")
    machine = SimMachine(seed=1)
    for pid in (1, 141, 150):
        ranges = [(MEBI, 40 * MEBI), (1 << 32, (1 << 32) + 40 * MEBI), (1 << 46, (1 << 46) + MEBI)]
        machine.spawn(ranges, pid)
    try:
        mount_tree(damon_sysfs_init(machine, abi), mountpoint, lambda: print("ready", flush=True))
    except OSError as error:
        print(f"refused: {error.strerror}", file=sys.stderr)
        return 1
    print("ended", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
