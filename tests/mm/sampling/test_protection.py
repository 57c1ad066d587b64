# SPDX-License-Identifier: GPL-2.0-only
"""The protection that the monitors of a process share, and its change between writes and all accesses."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest

from kdamon.mm.linux.machine import LinuxMachine
from kdamon.mm.proc.maps import Mappings
from kdamon.mm.sampling import protection
from kdamon.mm.sampling.page_fault import PageFaultSpace
from kdamon.mm.sampling.uffd import Pages
from tests.support.sampling import armed, mm_of, task_of
from tests.support.workload import Workload

pytestmark = pytest.mark.real

PAGES = 256


def test_nothing_stays_registered_when_a_change_cannot_go_in_steps(
    faulting: LinuxMachine, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel would refuse mappings that it has in the other mode, and what was armed would stay so."""

    def fail(_pid: int, _mappings: Mappings) -> None:
        raise OSError(errno.EMFILE, "too many open files")

    with (
        Workload([program], "anon", PAGES) as work,
        task_of(faulting, work.pid, "page_fault_writes") as task,
        open(f"/proc/{work.pid}/pagemap", "rb") as pagemap,
    ):
        space, table, addrs = mm_of(task), Pages(pagemap.fileno()), work.base + 4096 * np.arange(PAGES, dtype=np.uint64)
        assert isinstance(space, PageFaultSpace)
        space.begin_sample(addrs)
        assert table.registered(addrs).all()
        assert PAGES == len(armed(work))
        # Whether the kernel lets reads fault or not: what they need registers nothing where it does not.
        monkeypatch.setattr(space.protection, "_can_track_reads", True)
        with monkeypatch.context() as full:
            full.setattr(protection, "shared_memory", fail)
            space.protection.join(None, reads=True)
        assert not table.registered(addrs).any()
        assert not len(armed(work))
        space.protection.leave(None)
        space.begin_sample(addrs)
        assert PAGES == len(armed(work))
