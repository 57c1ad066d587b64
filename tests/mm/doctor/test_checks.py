# SPDX-License-Identifier: GPL-2.0-only
"""What the machine can do is found out by doing it."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdamon.lib.check import Check
from kdamon.mm.doctor import checks
from kdamon.mm.doctor.checks import examine
from kdamon.mm.linux.machine import LinuxMachine
from kdamon.mm.sampling.page_idle import BITMAP
from kdamon.mm.sampling.uffd import reads_fault
from tests.support.capabilities import needs_root
from tests.support.paths import ROOT

pytestmark = pytest.mark.real


@pytest.fixture(name="found", scope="module")
def _found() -> dict[str, Check]:
    primitives, own, others = examine()
    if os.geteuid() == 0:
        assert ("page_table", "page_fault") == own == others
    return {primitive.name: primitive for primitive in primitives}


def test_every_primitive_says_why(found: dict[str, Check]) -> None:
    """A sentence without capital and full stop, for a table."""
    for primitive in found.values():
        assert primitive.why
        assert not primitive.why.endswith(".")
        assert not (primitive.available and primitive.remedy)


def test_what_monitors_here_is_available(machine: LinuxMachine, found: dict[str, Check]) -> None:
    """The probe of the page table walk agrees with the machine."""
    assert "page_table" == machine.primitive
    assert found["page_table: test"].available
    assert found["page_table: clear"].available
    assert found["process_madvise"].available
    assert found["kernel type information (BTF)"].available


def test_physical_addresses_are_tried(machine: LinuxMachine, found: dict[str, Check]) -> None:
    """On own page frames, and how much of the machine's memory is known."""
    machine.physical_memory().put()
    assert found["physical addresses"].available
    assert "of 32 accesses to own page frames were seen" in found["physical addresses"].why


@needs_root("only root sees page frames")
def test_own_page_frames_may_move(monkeypatch: pytest.MonkeyPatch) -> None:
    """NUMA balancing moves pages to the node of the CPU that touches them, so that other frames are touched."""

    class Moving(checks._OwnMemory):
        others: mmap.mmap | None = None

        def touch(self, stride: int) -> None:
            if stride == 2 and self.others is None:
                self._memory.madvise(mmap.MADV_DONTNEED)
                # They take the frames that became free.
                self.others = mmap.mmap(-1, 4 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
                self.others.madvise(mmap.MADV_NOHUGEPAGE)
                self.others[::4096] = b"1" * (len(self.others) // 4096)
                super().touch(1)
            super().touch(stride)

    monkeypatch.setattr(checks, "_OwnMemory", Moving)
    assert "of 32 accesses to own page frames were seen" in checks._physical()


def test_the_idle_bitmap_is_told_by_its_file(found: dict[str, Check]) -> None:
    """Where it is missing the remedy names the kernel option."""
    if os.path.exists(BITMAP):
        assert found["page_idle"].available == (os.geteuid() == 0)
    else:
        assert not found["page_idle"].available
        assert "CONFIG_IDLE_PAGE_TRACKING" in found["page_idle"].remedy


def test_what_page_fault_does_not_see_is_said(found: dict[str, Check]) -> None:
    """Each of its parts was tried: arming, taking another process's userfaultfd, and attributing faults."""
    assert {name for name in found if name.startswith("page_fault")} == {
        f"page_fault: {x}" for x in ("arm", "take", "attribute")
    }
    arm = found["page_fault: arm"]
    if not arm.available:
        assert "Linux 6.7 or later" in arm.remedy
        pytest.skip("kernel lacks: userfaultfd with asynchronous write protection")
    if reads_fault():
        assert arm.why.startswith(
            "reads and writes of anonymous and shared memory, writes of other files; writes alone where only they are "
            "counted; "
        )
    else:
        assert arm.why.startswith(
            "writes and first touches only, not reads of mapped memory: this kernel has no userfaultfd RWP, which "
            "Linux 7.3 brings; "
        )
    assert found["page_fault: take"].available
    assert found["page_fault: attribute"].available


def test_probing_leaves_nothing_open(found: dict[str, Check]) -> None:
    """A second round opens nothing that stays."""
    before = len(os.listdir("/proc/self/fd"))
    again, _, _ = examine()
    assert len(os.listdir("/proc/self/fd")) == before
    assert [primitive.name for primitive in again] == list(found)


@needs_root("only root can become another user")
def test_without_privileges_everything_has_a_remedy() -> None:
    """What only root can do is said to be so."""
    script = """if True:
        import os
        from kdamon.mm.doctor.checks import examine
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        primitives, own, others = examine()
        print("page_table" in own, others)
        found = {primitive.name: primitive for primitive in primitives}
        names = ("page_table: test", "process_madvise", "page frame numbers", "other users' processes")
        for name in (*names, "physical addresses", "page_fault: attribute"):
            print(found[name].available, "root" in found[name].remedy)
    """
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["False ()", *["False True"] * 6]


def test_what_schemes_can_do_is_told(found: dict[str, Check]) -> None:
    """Swap and NUMA nodes as the kernel shows them; advice was really given."""
    swaps = Path("/proc/swaps").read_text(encoding="ascii").splitlines() if os.path.exists("/proc/swaps") else []
    assert found["schemes: pageout, anonymous"].available == (len(swaps) > 1)
    nodes = Path("/sys/devices/system/node/has_memory")
    several = nodes.exists() and not nodes.read_text(encoding="ascii").strip().isdecimal()
    assert found["schemes: migrate_hot, _cold"].available == several
    if os.geteuid() == 0:
        assert found["schemes: collapse"].available
        assert found["schemes: hugepage, nohugepage"].available
