# SPDX-License-Identifier: GPL-2.0-only
"""What runs on several kernels found, as one table: the doctor's answers and the tests."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

from attrs import field, frozen

__all__ = ["Checks", "Outcomes", "Run", "config_values", "read_run", "read_tests", "table"]

#: Settings that decide what can be tested.
_SETTINGS: Final = ("CONFIG_DAMON_SYSFS", "CONFIG_IDLE_PAGE_TRACKING", "CONFIG_USERFAULTFD_RWP")
#: A reason that is the kernel's, not a missing package.
_KERNEL_LACKS: Final = "kernel lacks: "

#: Whether each check of the doctor succeeded, and why, by its name.
Checks = dict[str, tuple[bool, str]]


@frozen
class Outcomes:
    """The outcome of a run of pytest."""

    passed: int = 0
    #: Reasons, by the name of the test.
    skipped: dict[str, str] = field(factory=dict)
    failed: list[str] = field(factory=list)

    def __str__(self) -> str:
        return f"{self.passed} passed, {len(self.skipped)} skipped, {len(self.failed)} failed"


@frozen
class Run:
    """What was found on one kernel.

    :ivar kernel: ``uname -r``.
    :ivar settings: the kernel's configuration, y, m or n by name.
    :ivar tests: None where the time was over before them.
    """

    kernel: str
    settings: dict[str, str]
    checks: Checks
    tests: Outcomes | None


def read_tests(text: str) -> Outcomes:
    """Read a report of pytest's ``--junitxml``."""
    passed, skipped, failed = 0, {}, []
    for case in ElementTree.fromstring(text).iter("testcase"):
        name = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name', '')}"
        skip = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(name)
        elif skip is not None:
            skipped[name] = skip.get("message", "")
        else:
            passed += 1
    return Outcomes(passed, skipped, failed)


def config_values(text: str) -> dict[str, str]:
    """The values of what the table shows, in a kernel's configuration; n where it is not mentioned."""
    found = dict(re.findall(r"^(CONFIG_\w+)=(.*)$", text, re.MULTILINE))
    return {name: found.get(name, "n") for name in _SETTINGS}


def read_run(results: Path, config: Path) -> Run:
    """Read what a run on a kernel left: the doctor's answers, and the outcome of tests if it got that far."""
    doctor = json.loads((results / "doctor.json").read_text(encoding="utf-8"))
    checks = {check["name"]: (check["available"], check["why"]) for check in doctor["checks"]}
    report = results / "tests.xml"
    tests = read_tests(report.read_text(encoding="utf-8")) if report.exists() else None
    return Run(doctor["kernel_release"], config_values(config.read_text(encoding="utf-8")), checks, tests)


_COUNTS: Final[dict[str, Callable[[Outcomes], int]]] = {
    "passed": lambda tests: tests.passed,
    "skipped": lambda tests: len(tests.skipped),
    "failed": lambda tests: len(tests.failed),
}


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _by_kernel(runs: Iterable[Run], reasons: Callable[[Run], Iterable[str]]) -> list[str]:
    """An item of a list for each reason, with the kernels that have it; 100 columns, as all documents."""
    kernels: dict[str, list[str]] = {}
    for run in runs:
        for reason in dict.fromkeys(reasons(run)):
            kernels.setdefault(reason, []).append(run.kernel.partition("-")[0].partition("+")[0])
    lines = [f"* {reason} ({', '.join(found)})" for reason, found in kernels.items()]
    return [textwrap.fill(line, 100, subsequent_indent="  ", break_on_hyphens=False) for line in lines]


def _missing(run: Run) -> list[str]:
    return [f"{name}: {why}" for name, (available, why) in run.checks.items() if not available]


def _skips(run: Run) -> list[str]:
    skipped = run.tests.skipped if run.tests else {}
    reasons = [reason.removeprefix(_KERNEL_LACKS) for reason in skipped.values()]
    return [f"{reason}: {reasons.count(reason)}" for reason in reasons]


def table(runs: list[Run]) -> str:
    """Markdown: kernels by what works, then why the rest does not."""
    names = list(dict.fromkeys(name for run in runs for name in run.checks))
    lines = [_row("", *(run.kernel for run in runs)), _row("---", *("---" for _ in runs))]
    lines += [_row(f"`{name}`", *(run.settings[name] for run in runs)) for name in _SETTINGS]
    for name in names:
        answers = [run.checks.get(name) for run in runs]
        lines.append(_row(name, *("" if answer is None else "yes" if answer[0] else "no" for answer in answers)))
    for outcome, count in _COUNTS.items() if any(run.tests for run in runs) else ():
        lines.append(_row(f"tests {outcome}", *("" if run.tests is None else str(count(run.tests)) for run in runs)))
    for title, reasons in (
        ("What does not work, and why:", _missing),
        ("Tests skipped, by reason:", _skips),
        ("Tests failed:", lambda run: run.tests.failed if run.tests else []),
    ):
        if found := _by_kernel(runs, reasons):
            lines += ["", title, "", *found]
    return "\n".join(lines)
