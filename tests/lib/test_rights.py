# SPDX-License-Identifier: GPL-2.0-only
"""A refusal says what was tried, what is missing and where, and what to do: each sentence is true where it is said."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdamon.lib import rights
from kdamon.lib.rights import OF_PROCESS, OWN, missing_capability, needs_linux, refusal, refused_program
from kdamon.mm.bpf import btf
from tests.support.capabilities import needs_root, needs_user_namespace
from tests.support.paths import ROOT

pytestmark = pytest.mark.real


WITHOUT_BPF = ("setpriv", "--bounding-set=-bpf,-sys_admin", "--inh-caps=-bpf,-sys_admin")
USER_NAMESPACE = ("unshare", "-Ur")
#: Refuses bpf() as a container's filter does: what is to be done about system call 321 is to return EPERM.
FILTER = """
import ctypes, struct
libc = ctypes.CDLL(None)
instructions = ((0x20, 0, 0, 0), (0x15, 0, 1, 321), (6, 0, 0, 0x50001), (6, 0, 0, 0x7FFF0000))
code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *one) for one in instructions))
assert not libc.prctl(38, 1, 0, 0, 0)
assert not libc.prctl(22, 2, ctypes.byref((ctypes.c_uint64 * 2)(4, ctypes.addressof(code))), 0, 0)
"""

root_only = needs_root("only root can give rights away")


def situation(
    monkeypatch: pytest.MonkeyPatch, *, effective: int, root: bool = True, first: bool = True, seccomp: str = "0"
) -> None:
    """Let this process be one with such rights."""
    status = {"CapEff": f"{effective:016x}", "Seccomp": seccomp}
    monkeypatch.setattr(rights, "_status", lambda name: status[name])
    monkeypatch.setattr(rights, "in_first_user_namespace", lambda: first)
    monkeypatch.setattr(os, "geteuid", lambda: 0 if root else 1000)


ALL = (1 << 41) - 1
BPF = 1 << 39


def test_root_without_a_capability_is_not_told_to_be_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """It lacks one, wherever that went."""
    situation(monkeypatch, effective=ALL & ~BPF & ~(1 << 21))
    assert (
        "walking needs CAP_BPF, which root lacks here; start kdamon with that capability, as by a container's --cap-add"
        == refusal("walking needs", "bpf()", "CAP_BPF", "CAP_PERFMON").strerror
    )


def test_a_user_is_told_to_be_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or to get what is missing, or what else would do."""
    situation(monkeypatch, effective=0, root=False)
    assert (
        "walking needs CAP_BPF and CAP_PERFMON; run as root or give these capabilities, or sit"
        == refusal("walking needs", "bpf()", "CAP_BPF", "CAP_PERFMON", otherwise="sit").strerror
    )


@pytest.mark.parametrize("effective", [ALL, ALL & ~BPF])
def test_capabilities_of_another_user_namespace_do_not_count(monkeypatch: pytest.MonkeyPatch, effective: int) -> None:
    """All of them are of no use; where they would count is said."""
    situation(monkeypatch, effective=effective, first=False)
    assert not rights.may("CAP_BPF")
    said = refusal("walking needs", "bpf()", "CAP_BPF").strerror
    assert "walking needs CAP_BPF in the machine's first user namespace, and this process is in another one" in said
    assert OF_PROCESS in refusal("looking needs", "open()", "CAP_SYS_PTRACE", where=OF_PROCESS).strerror
    assert "in another one" not in refusal("mounting needs", "mount()", "CAP_SYS_ADMIN", where=OWN).strerror


@pytest.mark.parametrize(
    ("seccomp", "expected"),
    [("0", "no seccomp filter; look for the rule of a security module"), ("2", "let the seccomp")],
)
def test_a_filter_is_blamed_only_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, seccomp: str, expected: str
) -> None:
    """What was tried, and that no right is missing."""
    situation(monkeypatch, effective=ALL, seccomp=seccomp)
    said = refused_program("walking needs", OSError(errno.EPERM, "bpf() command 5: Operation not permitted")).strerror
    assert said.startswith("walking needs bpf(), which is refused although this process has CAP_BPF and CAP_PERFMON")
    assert expected in said


def test_lockdown_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """For every program that reads kernel memory, but not to whom has no right to load one anyway."""
    lockdown = tmp_path / "lockdown"
    monkeypatch.setattr(rights, "_LOCKDOWN", str(lockdown))
    assert not rights.locked_down()
    lockdown.write_text("none integrity [confidentiality]\n", encoding="ascii")
    refused = OSError(errno.EINVAL, "bpf() command 5: Invalid argument")
    situation(monkeypatch, effective=ALL)
    assert "lockdown=confidentiality" in refused_program("recording needs", refused).strerror
    situation(monkeypatch, effective=0)
    assert "lockdown" not in refused_program("recording needs", refused).strerror
    lockdown.write_text("none [integrity] confidentiality\n", encoding="ascii")
    situation(monkeypatch, effective=ALL)
    assert "does not accept (bpf() command 5: Invalid argument)" in refused_program("recording needs", refused).strerror


def test_a_newer_kernel_is_advised_where_it_would_be_newer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the kernel was built without it, or a filter hides it."""
    assert "Linux 999.0 or later is needed" == needs_linux("999.0")
    situation(monkeypatch, effective=ALL)
    assert f"Linux has it since 2.6, and this one ({os.uname().release}) was built without it" == needs_linux("2.6")
    situation(monkeypatch, effective=ALL, seccomp="2")
    assert "seccomp filter" in needs_linux("2.6")


def test_what_is_as_good_as_a_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    """CAP_SYS_ADMIN stands for the newer ones, CAP_DAC_OVERRIDE for the right to read."""
    situation(monkeypatch, effective=1 << 21 | 1 << 1)
    assert ["CAP_SYS_NICE"] == missing_capability("CAP_BPF", "CAP_PERFMON", "CAP_DAC_READ_SEARCH", "CAP_SYS_NICE")


SAY = """
from kdamon.mm.sampling.fault_recorder import FaultRecorder
from kdamon.mm.linux.machine import linux_machine
walk, physical = lambda: linux_machine("page_table"), linux_machine("page_fault").physical_memory
for attempt in (FaultRecorder, walk, physical):
    try:
        attempt()
    except OSError as error:
        print(error.strerror)
"""


def say(*prefix: str, before: str = "") -> list[str]:
    """What faults, page tables and physical memory say in a process that ``prefix`` starts."""
    words = [*prefix, sys.executable, "-c", before + SAY]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "" == done.stderr
    return done.stdout.splitlines()


@root_only
@needs_user_namespace
def test_faults_page_tables_and_physical_memory_say_the_same() -> None:
    """Physical memory is not to be monitored by page_fault, so that this is no way out."""
    for said, expected in (
        (say(*WITHOUT_BPF), "needs CAP_BPF, which root lacks here"),
        (say(*USER_NAMESPACE), "in the machine's first user namespace"),
        (
            say(before=FILTER),
            "needs bpf(), which is refused although this process has CAP_BPF and CAP_PERFMON; let the ",
        ),
    ):
        assert 3 == len(said)
        assert [] == [line for line in said if expected not in line or "page_fault" in line]


@root_only
@pytest.mark.parametrize(
    ("cover", "expected"), [("/dev/null", "unknown format"), ("directory", "cannot be read (is a")]
)
def test_type_information_that_cannot_be_read_has_a_remedy(tmp_path: Path, cover: str, expected: str) -> None:
    """As where a container covers it: this kernel's file, seen by one process alone."""
    script = "from kdamon.mm.bpf.btf import vmlinux; vmlinux()"
    source = "/dev/null" if cover == "/dev/null" else str(tmp_path)
    target = btf.VMLINUX if cover == "/dev/null" else str(Path(btf.VMLINUX).parent)
    if cover == "directory":
        (tmp_path / "vmlinux").mkdir()
    words = ["unshare", "-m", "sh", "-c", 'mount --bind "$1" "$2" && exec "$3" -c "$4"', "sh"]
    done = subprocess.run(
        [*words, source, target, sys.executable, script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert expected in done.stderr
    assert "; let" in done.stderr


def test_capabilities_are_listed_as_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """With commas between the first ones."""
    situation(monkeypatch, effective=0, root=False)
    said = refusal("all need", "it", "CAP_BPF", "CAP_PERFMON", "CAP_SYS_NICE").strerror
    assert "all need CAP_BPF, CAP_PERFMON and CAP_SYS_NICE; run as root or give these capabilities" == said
