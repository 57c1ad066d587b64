# SPDX-License-Identifier: GPL-2.0-only
"""``kdamon doctor``: what a machine has, why not, and the remedy."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

from kdamon.lib.check import Check
from kdamon_fs import fuse_binding, fuse_packages, mount_checks
from kdamon_tools import cli
from kdamon_tools.checks import Usable, own_checks, tool_checks
from kdamon_tools.commands import doctor
from kdamon_tools.origin import this_machine
from kdamon_tools.reporters.checks import render_checks, render_checks_json
from tests.support.json_schemas import validate

pytestmark = pytest.mark.real


CHECKS = [
    Check("page table walk", True, "the program loads"),
    Check("page_idle", False, "this kernel was built without CONFIG_IDLE_PAGE_TRACKING"),
    Check("mkold", False, "CAP_SYS_NICE is missing", "run as root"),
]


BOTH = Usable(("page_table", "page_fault"), ("page_table", "page_fault"))


def by_name(found: Sequence[Check]) -> dict[str, Check]:
    """Checks by the first word of their names."""
    return {check.name.split()[0]: check for check in found}


def test_a_table_for_people() -> None:
    """Name, yes or no, why, and the remedy where there is one."""
    assert [
        "page table walk  yes the program loads",
        "page_idle        no  this kernel was built without CONFIG_IDLE_PAGE_TRACKING",
        "mkold            no  CAP_SYS_NICE is missing; remedy: run as root",
        "this machine cannot monitor processes",
    ] == render_checks(CHECKS, Usable()).splitlines()


@pytest.mark.parametrize("width", [50, 60, 100])
def test_long_reasons_are_wrapped_below_their_column(width: int) -> None:
    """Nothing is cut off, and the columns stay."""
    lines = render_checks(CHECKS, BOTH, width).splitlines()
    assert max(map(len, lines)) <= width
    assert "CONFIG_IDLE_PAGE_TRACKING" in " ".join(line.strip() for line in lines)


def test_json_for_programs() -> None:
    """The same as the table."""
    usable = Usable(("page_table", "page_fault"), ("page_table",))
    document = validate(json.loads(render_checks_json(CHECKS[:1], usable, this_machine())), "kdamon.doctor")
    expected = {"name": "page table walk", "available": True, "why": "the program loads", "remedy": ""}
    assert {
        "possible": True,
        "primitives": ["page_table"],
        "own_primitives": ["page_table", "page_fault"],
        "checks": [expected],
    }.items() <= document.items()


@pytest.mark.parametrize(
    ("own", "others", "expected"),
    [
        ("tf", "tf", "this machine can monitor processes"),
        (
            "tf",
            "t",
            "this machine can monitor processes, but not by --primitive page_fault (--write-only, --by ...), "
            "which works for this user's only",
        ),
        (
            "t",
            "t",
            "this machine can monitor processes, but not by --primitive page_fault (--write-only, --by ...)",
        ),
        (
            "f",
            "f",
            "only writes and first touches of processes can be monitored: use --primitive page_fault",
        ),
        ("tf", "", "this machine can monitor processes of this user"),
        (
            "f",
            "",
            "only writes and first touches of processes of this user can be monitored: use --primitive page_fault",
        ),
        ("", "", "this machine cannot monitor processes"),
    ],
)
def test_what_can_be_monitored_and_whose(own: str, others: str, expected: str) -> None:
    """An unprivileged user can see writes of programs of his own."""
    names = {"t": "page_table", "f": "page_fault"}
    usable = Usable(tuple(names[x] for x in own), tuple(names[x] for x in others))
    assert expected == render_checks([], usable, 200)


@pytest.mark.parametrize(("usable", "expected"), [(BOTH, 0), (Usable(("page_fault",)), 0), (Usable(), 1)])
def test_the_exit_status_says_whether_monitoring_is_possible(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], usable: Usable, expected: int
) -> None:
    """For scripts."""
    monkeypatch.setattr(doctor, "monitor_checks", lambda: (CHECKS, usable))
    assert expected == cli.main(["doctor"])
    assert "mkold" in capsys.readouterr().out
    assert expected == cli.main(["doctor", "--json"])
    assert bool(usable) == validate(json.loads(capsys.readouterr().out), "kdamon.doctor")["possible"]


@pytest.mark.real
def test_every_no_of_the_tools_has_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without libfuse 2, the device, root and damo, each line says how to get it."""
    monkeypatch.setattr(fuse_binding, "_loads", lambda _: False)
    monkeypatch.setattr(fuse_packages, "_known_to_apt", lambda: {"libfuse2", "libfuse3-3"})
    monkeypatch.setattr(fuse_packages.platform, "freedesktop_os_release", lambda: {"ID": "debian"})
    monkeypatch.delenv("FUSE_LIBRARY_PATH", raising=False)
    monkeypatch.setattr(fuse_binding, "_DEVICE", "/nowhere/fuse")
    monkeypatch.setattr(fuse_binding, "_kernel_has_fuse", lambda: False)
    monkeypatch.setattr(mount_checks, "missing_capability", lambda *names: list(names))
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    found = by_name(tool_checks())
    assert {"libfuse", "/dev/fuse", "mounting", "mount", "damo"} == set(found)
    assert [] == [check for check in found.values() if check.available or not check.remedy]
    assert "install libfuse2" in found["libfuse"].remedy
    assert "modprobe fuse" in found["/dev/fuse"].remedy


def test_own_files_that_another_user_can_change(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Root would run what that user likes: as the interpreter, a module, or one that is not there yet."""
    (good := tmp_path / "good").mkdir(mode=0o755)
    (bad := tmp_path / "bad").mkdir()
    bad.chmod(0o777)
    (bad / "python").touch()
    (good / "module.py").touch()
    monkeypatch.setattr(sys, "executable", "/bin/sh")
    monkeypatch.setattr(sys, "path", [str(good), str(tmp_path / "nothing")])
    module = ModuleType("module")
    monkeypatch.setattr(sys, "modules", {"sys": sys, "module": module})
    module.__file__ = str(good / "module.py")
    assert [Check("kdamon's own files", True, "no other user can change them")] == own_checks()

    (good / "module.py").chmod(0o666)
    (check,) = own_checks()
    assert (False, f"{good}/module.py: other users can write to {good}/module.py") == (check.available, check.why)
    (good / "module.py").chmod(0o644)
    os.chown(good, 65534, -1)
    (check,) = own_checks()
    assert (False, f"{good}: user 65534 owns {good}") == (check.available, check.why)
    os.chown(good, 0, -1)
    (shared := tmp_path / "shared").mkdir()
    shared.chmod(0o1777)
    for path, why in (
        (bad, f"{bad}: other users can write to {bad}"),
        (shared, f"{shared}: other users can write to it"),
    ):
        for place in (path, path / "python312.zip"):
            monkeypatch.setattr(sys, "path", [str(good), str(place)])
            (check,) = own_checks()
            assert (False, why) == (check.available, check.why.replace(f"{bad}/python312.zip", str(bad)))
    monkeypatch.setattr(sys, "path", [str(good)])
    monkeypatch.setattr(sys, "executable", str(bad / "python"))
    (check,) = own_checks()
    assert (False, f"{bad}/python: other users can write to {bad}") == (check.available, check.why)
    assert check.remedy
