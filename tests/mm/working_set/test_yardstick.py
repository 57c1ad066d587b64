# SPDX-License-Identifier: GPL-2.0-only
"""The sampled working set next to the exact one (selftests/damon/sysfs_update_schemes_tried_regions_wss_estimation.py).

The kernel's own test accepts an error of 20 % at the median and at the 75th percentile of the snapshots.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections import deque
from collections.abc import Iterator

import numpy as np
import pytest

import kdamon
from kdamon.mm.working_set.by_faults import FaultObservation
from tests.support.waiting import eventually

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("machine", "faulting")]

#: Writes the same 60 MiB of 200, in one piece, without a pause.
STEADY = """
    import mmap, time
    import numpy as np
    memory = mmap.mmap(-1, 200 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    data = np.frombuffer(memory, dtype=np.uint8)
    data[:] = 1
    used = data[70 << 20 : 130 << 20 : 4096]
    print("ready", flush=True)
    end = time.monotonic() + 600
    while time.monotonic() < end:
        used += 1
"""
MIB = 1 << 20
#: Snapshots that the percentiles are of: five seconds.
SNAPSHOTS = 50
BOUND = 0.2


@pytest.fixture(name="steady")
def _steady() -> Iterator[int]:
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(STEADY)], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert b"ready\n" == process.stdout.readline()
            yield process.pid
        finally:
            process.kill()


def exact(pid: int) -> int:
    """The bytes that the process writes in a window of several rounds."""
    with FaultObservation(pid) as observation:
        observation.begin(lambda: False)
        eventually(lambda: observation.end().total.used >= 60 * MIB, "a round of the workload", pause=0.2)
        return observation.end().total.used


def test_the_sampled_working_set_is_near_the_exact_one(steady: int) -> None:
    """With the defaults of ``kdamon run``, once the regions adapted; what a busy machine disturbs is waited out."""
    expected = exact(steady)
    assert 60 * MIB <= expected < 62 * MIB
    sampled: deque[int] = deque(maxlen=SNAPSHOTS)

    def near() -> bool:
        sampled.extend(snapshot.working_set() for snapshot in monitor.drain())
        errors = np.abs(np.percentile(sampled, (50, 75)) / expected - 1) if len(sampled) == SNAPSHOTS else [1.0]
        return max(errors) <= BOUND

    with kdamon.monitor(pid=steady) as monitor:
        assert eventually(near, pause=0.2), f"exact {expected}, sampled {sorted(sampled)}"
