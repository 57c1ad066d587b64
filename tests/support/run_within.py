# SPDX-License-Identifier: GPL-2.0-only
"""Runs a command for the tests of the namespace: ``run_within.py ABI COMMAND...``; the processes are simulated."""

from __future__ import annotations

import logging
import sys

from kdamon.mm.sim.machine import SimMachine
from kdamon_fs.namespace import run_in_namespace

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="log: %(message)s")
    machine = SimMachine(seed=1)
    machine.spawn([(1 << 20, 40 << 20), (1 << 32, (1 << 32) + (40 << 20)), (1 << 46, (1 << 46) + (1 << 20))], 150)
    sys.exit(run_in_namespace(sys.argv[2:], sys.argv[1], machine))
