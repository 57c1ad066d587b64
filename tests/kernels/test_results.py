# SPDX-License-Identifier: GPL-2.0-only
"""tests/kernels/results.py: reports of runs on several kernels become a table."""

from __future__ import annotations

from tests.kernels.results import Outcomes, Run, config_values, read_tests, table

REPORT = """<?xml version="1.0" encoding="utf-8"?>
<testsuites><testsuite name="pytest" errors="1" failures="1" skipped="1" tests="4">
<testcase classname="tests.mm.proc.test_maps" name="test_a" time="0.1" />
<testcase classname="tests.mm.proc.test_maps" name="test_b[1]" time="0.1">
<failure message="assert 1 == 2">text</failure></testcase>
<testcase classname="tests.mm.proc.test_maps" name="test_c" time="0.1"><error message="teardown">text</error></testcase>
<testcase classname="tests.mm.proc.test_maps" name="test_d" time="0.1">
<skipped type="pytest.skip" message="kernel lacks: swap">text</skipped></testcase>
</testsuite></testsuites>
"""


def test_each_test_is_passed_skipped_or_failed() -> None:
    """An error of a fixture is a failure; a skip has its reason."""
    found = read_tests(REPORT)
    name = "tests/mm/proc/test_maps.py::test_"
    assert Outcomes(1, {f"{name}d": "kernel lacks: swap"}, [f"{name}b[1]", f"{name}c"]) == found
    assert "1 passed, 1 skipped, 2 failed" == str(found)


def test_settings_that_a_configuration_does_not_set_are_n() -> None:
    """A kernel that is too old does not even mention them."""
    text = "CONFIG_DAMON_SYSFS=y\n# CONFIG_IDLE_PAGE_TRACKING is not set\n"
    expected = {"CONFIG_DAMON_SYSFS": "y", "CONFIG_IDLE_PAGE_TRACKING": "n", "CONFIG_USERFAULTFD_RWP": "n"}
    assert expected == config_values(text)


def test_the_table_has_a_column_for_each_kernel_and_says_why_not() -> None:
    """A reason that two kernels share is one line; a check that a kernel does not have is empty there."""
    old = Run(
        "6.12.1+deb13-cloud-amd64", config_values(""), {"swap": (False, "none")}, Outcomes(2, {"t": "kernel lacks: x"})
    )
    new = Run(
        "7.3-cloud-amd64", config_values(""), {"swap": (False, "none"), "reads": (True, "")}, Outcomes(3, {}, ["f"])
    )
    expected = """\
|  | 6.12.1+deb13-cloud-amd64 | 7.3-cloud-amd64 |
| --- | --- | --- |
| `CONFIG_DAMON_SYSFS` | n | n |
| `CONFIG_IDLE_PAGE_TRACKING` | n | n |
| `CONFIG_USERFAULTFD_RWP` | n | n |
| swap | no | no |
| reads |  | yes |
| tests passed | 2 | 3 |
| tests skipped | 1 | 0 |
| tests failed | 0 | 1 |

What does not work, and why:

* swap: none (6.12.1, 7.3)

Tests skipped, by reason:

* x: 1 (6.12.1)

Tests failed:

* f (7.3)"""
    assert expected == table([old, new])
