# SPDX-License-Identifier: GPL-2.0-only
"""Where nothing may be skipped, a skipped test is a failure; tests that mount do so by each binding of FUSE.

Under ``CI=true`` or ``KDAMON_REQUIRE=all`` a test may be skipped only because the running kernel lacks a feature, and
its reason then starts with ``kernel lacks: ``; a missing package or permission is the run's mistake.

Property tests try a tenth of their examples, under ``CI=true`` all of them, or KDAMON_EFFORT times as many.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from typing import Any

import pytest

from tests.support.fuse_bindings import bindings, usable

pytest_plugins = ["tests.support.capabilities", "tests.support.logs", "tests.support.real"]

KERNEL_LACKS = "kernel lacks: "


def _everything_required() -> bool:
    return os.environ.get("CI", "").lower() in ("true", "1") or os.environ.get("KDAMON_REQUIRE") == "all"


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Make a skip a failure, unless its reason is the kernel; an expected failure is no skip."""
    if report.outcome != "skipped" or hasattr(report, "wasxfail") or not _everything_required():
        return
    longrepr = report.longrepr
    reason = longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)
    reason = reason.removeprefix("Skipped: ")
    if not reason.startswith(KERNEL_LACKS):
        report.outcome = "failed"
        report.longrepr = f"skipped, but nothing may be skipped in this run: {reason}"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, None]:
    """Look at the report of each test's set-up, call and tear-down."""
    result = yield
    _refuse_skip(result.get_result())


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report() -> Generator[None, Any, None]:
    """Look at modules that skip themselves as a whole."""
    result = yield
    _refuse_skip(result.get_result())


def pytest_report_header() -> list[str]:
    """Which bindings the tests mount by."""
    return [f"FUSE: {getattr(found, 'why', found)}" for found in bindings().values()]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what asks for the fixture once for each binding whose library is installed."""
    if "fuse_binding" in metafunc.fixturenames:
        metafunc.parametrize("fuse_binding", usable(), indirect=True, scope="module")


@pytest.fixture(scope="module")
def fuse_binding(request: pytest.FixtureRequest) -> Iterator[str]:
    """The package by which this process, and those that it starts, mount.

    For a whole module: ``pytestmark = pytest.mark.usefixtures("fuse_binding")``. A fixture of wider scope than a
    function that mounts has to ask for it.
    """
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("KDAMON_FUSE", request.param)
        yield request.param
