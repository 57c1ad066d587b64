# SPDX-License-Identifier: GPL-2.0-only
"""``kdamon doctor``: what a machine has, why not, and the remedy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence

import pytest

from kdamon.mm import walker
from kdamon_fs import fuse_binding
from kdamon_tools import cli
from kdamon_tools.checks import Check, tool_checks
from kdamon_tools.commands import doctor
from kdamon_tools.reporters.checks import render_checks, render_checks_json

CHECKS = [
    Check("page table walk", True, "the program loads"),
    Check("page_idle", False, "this kernel was built without CONFIG_IDLE_PAGE_TRACKING"),
    Check("mkold", False, "CAP_SYS_NICE is missing", "run as root"),
]


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
    ] == render_checks(CHECKS, ()).splitlines()


@pytest.mark.parametrize("width", [50, 60, 100])
def test_long_reasons_are_wrapped_below_their_column(width: int) -> None:
    """Nothing is cut off, and the columns stay."""
    lines = render_checks(CHECKS, ("page_table",), width).splitlines()
    assert max(map(len, lines)) <= width
    assert "CONFIG_IDLE_PAGE_TRACKING" in " ".join(line.strip() for line in lines)


def test_json_for_programs() -> None:
    """The same as the table."""
    document = json.loads(render_checks_json(CHECKS[:1], ("page_table",)))
    expected = {"name": "page table walk", "available": True, "why": "the program loads", "remedy": ""}
    assert {"possible": True, "primitives": ["page_table"], "checks": [expected]} == document


def test_what_is_possible_by_faults_only_is_said() -> None:
    """An unprivileged user can do that much."""
    verdicts = {usable: render_checks([], usable) for usable in [("page_table", "page_fault"), ("page_fault",)]}
    assert list(verdicts.values()) == [
        "this machine can monitor processes",
        "only writes and first touches of processes can be monitored: use --primitive\npage_fault",
    ]


@pytest.mark.parametrize(("usable", "expected"), [(("page_table", "page_fault"), 0), (("page_fault",), 0), ((), 1)])
def test_the_exit_status_says_whether_monitoring_is_possible(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], usable: tuple[str, ...], expected: int
) -> None:
    """For scripts."""
    monkeypatch.setattr(doctor, "monitor_checks", lambda: (CHECKS, usable))
    assert expected == cli.main(["doctor"])
    assert "mkold" in capsys.readouterr().out
    assert expected == cli.main(["doctor", "--json"])
    assert bool(usable) == json.loads(capsys.readouterr().out)["possible"]


def test_every_no_of_the_tools_has_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without libfuse 2, the device, root and damo, each line says how to get it."""
    monkeypatch.setattr(fuse_binding, "find_library", lambda _: None)
    monkeypatch.delenv("FUSE_LIBRARY_PATH", raising=False)
    monkeypatch.setattr(fuse_binding, "_DEVICE", "/nowhere/fuse")
    monkeypatch.setattr(fuse_binding, "_kernel_has_fuse", lambda: False)
    monkeypatch.setattr(walker, "missing_capability", lambda *names: list(names))
    monkeypatch.setattr(shutil, "which", lambda _: None)
    found = by_name(tool_checks())
    assert {"libfuse", "/dev/fuse", "mount", "damo"} == set(found)
    assert [] == [check for check in found.values() if check.available or not check.remedy]
    assert "libfuse2" in found["libfuse"].remedy
    assert "modprobe fuse" in found["/dev/fuse"].remedy


def test_it_agrees_with_what_run_does(capsys: pytest.CaptureFixture[str]) -> None:
    """On this very machine: status 0 exactly if a process can be monitored, and every no says why."""
    from kdamon.mm.linux import linux_machine

    try:
        linux_machine().close()
        possible = True
    except OSError:
        possible = False
    assert (0 if possible else 1) == cli.main(["doctor", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert possible == document["possible"]
    assert len(document["checks"]) > len(tool_checks())
    assert [] == [check for check in document["checks"] if not check["why"]]
