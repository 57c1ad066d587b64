# SPDX-License-Identifier: GPL-2.0-only
"""The CPUs that kdamonds run on by default, and by choice."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdamon.kernel import kthread
from kdamon.lib import housekeeping
from kdamon.lib.housekeeping import choose_cpus, housekeeping_cpus, parse_cpu_list

OWN = frozenset(os.sched_getaffinity(0))


@pytest.fixture(autouse=True)
def _chosen() -> Iterator[None]:
    yield
    choose_cpus(None)


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("", set()), ("\n", set()), ("(null)\n", set()), ("3\n", {3}), ("0-2,7,9-10\n", {0, 1, 2, 7, 9, 10})],
)
def test_the_kernels_lists_of_cpus_are_read(text: str, cpus: set[int]) -> None:
    """Also where there are none: nohz_full says so in words."""
    assert cpus == parse_cpu_list(text)


def test_isolated_cpus_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless there are no others."""
    isolated = tmp_path / "isolated"
    monkeypatch.setattr(housekeeping, "_ISOLATED", (str(isolated), str(tmp_path / "missing")))
    assert OWN == housekeeping_cpus()
    isolated.write_text(f"{max(OWN)},4000-4001\n")
    assert (OWN - {max(OWN)} or OWN) == housekeeping_cpus()
    isolated.write_text("0-5000\n")
    assert OWN == housekeeping_cpus()


def test_chosen_cpus_may_be_isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user knows."""
    isolated = tmp_path / "isolated"
    isolated.write_text(f"{min(OWN)}\n")
    monkeypatch.setattr(housekeeping, "_ISOLATED", (str(isolated),))
    choose_cpus(frozenset({min(OWN), 5000}))
    assert {min(OWN)} == housekeeping_cpus()


def test_cpus_of_others_cannot_be_chosen() -> None:
    """The error names those that can."""
    with pytest.raises(OSError, match=rf"none of these CPUs; choose among {min(OWN)}"):
        choose_cpus(frozenset({5000}))
    assert OWN == housekeeping_cpus()


def test_a_kernel_thread_starts_there() -> None:
    """And no other thread of the process moves."""
    choose_cpus(frozenset({max(OWN)}))
    found: list[set[int]] = []
    done = threading.Event()

    def look(_: object) -> None:
        found.append(os.sched_getaffinity(0))
        done.set()

    thread = kthread(look, None, "kdamond.0")
    thread.start()
    assert done.wait(60)
    assert thread.join(60)
    assert [{max(OWN)}] == found
    assert OWN == os.sched_getaffinity(0)
