# SPDX-License-Identifier: GPL-2.0-only
"""Kdamonds of a tree without a mount: machines that can and cannot, threads, commands that are interrupted."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdamon.mm.sim.machine import SimMachine
from kdamon_fs.sysfs import damon_sysfs_init
from tests.support.waiting import eventually

pytestmark = pytest.mark.real


KDAMOND = "/admin/kdamonds/0"
CONTEXT = f"{KDAMOND}/contexts/0"


def test_a_machine_that_cannot_monitor_still_has_a_tree(
    make_session: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Values are kept; only turning on fails, with the machine's errno and its sentence in the log."""

    def cannot() -> SimMachine:
        raise OSError(errno.EOPNOTSUPP, "this kernel has no BPF")

    session = make_session()
    session.tree = damon_sysfs_init(cannot, "7.3")
    session.monitor()
    assert "150\n" == session.read(f"{CONTEXT}/targets/0/pid_target")
    assert session.state("on") == errno.errorcode[errno.EOPNOTSUPP]
    assert ["admin/kdamonds/0: on: this kernel has no BPF"] == [record.getMessage() for record in caplog.records]
    assert "off\n" == session.read(f"{KDAMOND}/state")


def test_the_machine_is_looked_for_when_it_is_needed_and_once(make_session: Callable[..., Any]) -> None:
    """Not by making the tree, but by the first number of a process, which says which one is meant; not again."""
    session = make_session()
    calls: list[int] = []
    session.tree = damon_sysfs_init(lambda: calls.append(1) or session.machine, "7.3")  # type: ignore[func-returns-value]
    session.context()
    assert [] == calls
    session.monitor()
    assert [1] == calls
    assert "OK" == session.state("on")
    assert "OK" == session.state("commit")
    assert [1] == calls
    session.tree.shutdown()


def test_the_kdamond_is_a_thread_of_its_name(session: Any) -> None:
    """pid is the thread's id, and ps shows kdamond.0."""
    session.monitor()
    assert "OK" == session.state("on")
    pid = int(session.read(f"{KDAMOND}/pid"))
    assert "kdamond.0\n" == Path(f"/proc/self/task/{pid}/comm").read_text()
    assert "OK" == session.state("off")
    deadline = time.monotonic() + 60
    while os.path.exists(f"/proc/self/task/{pid}"):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_shutdown_cancels_what_waits_and_lets_nothing_start(session: Any) -> None:
    """A walk that would take a minute is answered at once; on is refused from then on."""
    session.monitor()
    session.put(f"{CONTEXT}/monitoring_attrs/intervals/aggr_us", 60_000_000)
    assert "OK" == session.state("on")
    answers: list[str] = []
    waiting = threading.Thread(target=lambda: answers.append(session.state("update_schemes_tried_regions")))
    waiting.start()
    eventually(lambda: session.read(f"{KDAMOND}/state") == "<EBUSY>", "the walk")
    session.tree.shutdown()
    waiting.join(60)
    assert ["ECANCELED"] == answers
    assert "ESHUTDOWN" == session.state("on")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("kdamond.")]


def test_regions_that_were_written_are_monitored(session: Any) -> None:
    """Initial regions of a fixed address space come back as tried regions, cut to pieces that join up."""
    session.monitor()
    session.put(f"{CONTEXT}/operations", "fvaddr")
    session.put(f"{CONTEXT}/targets/0/regions/nr_regions", 2)
    wanted = [(1 << 20, 8 << 20), (16 << 20, 20 << 20)]
    for place, (start, end) in enumerate(wanted):
        session.put(f"{CONTEXT}/targets/0/regions/{place}/start", start)
        session.put(f"{CONTEXT}/targets/0/regions/{place}/end", end)
    assert "OK" == session.state("on")
    assert "OK" == session.state("update_schemes_tried_regions")
    tried = f"{CONTEXT}/schemes/0/tried_regions"
    pieces = sorted(
        (int(session.read(f"{tried}/{name}/start")), int(session.read(f"{tried}/{name}/end")))
        for name in session.tree.listdir(tried)
        if name.isdecimal()
    )
    joined = [list(pieces[0])]
    for start, end in pieces[1:]:
        if start == joined[-1][1]:
            joined[-1][1] = end
        else:
            joined.append([start, end])
    assert wanted == [tuple(piece) for piece in joined]
    assert int(session.read(f"{tried}/total_bytes")) == sum(end - start for start, end in wanted)


def test_a_new_number_of_kdamonds_gives_back_what_the_old_ones_held(session: Any) -> None:
    """The processes of a context that ran are released with it."""
    session.monitor()
    assert "OK" == session.state("on")
    kdamond = session.tree.kdamonds.present()[0]
    assert "OK" == session.state("off")
    assert kdamond.damon_ctx is not None
    session.put("/admin/kdamonds/nr_kdamonds", 1)
    assert kdamond.damon_ctx is None
    assert kdamond.removed


@pytest.mark.real
def test_a_command_that_comes_to_a_removed_kdamond_starts_nothing(session: Any) -> None:
    """It passed the check of its open file just before the directory went; nothing could turn it off afterwards."""
    session.monitor()
    kdamond = session.tree.kdamonds.present()[0]
    session.put("/admin/kdamonds/nr_kdamonds", 1)
    for command in ("on", "commit", "off", "update_schemes_stats"):
        with pytest.raises(OSError, match="was removed") as info:
            kdamond.command(command)
        assert errno.ENODEV == info.value.errno
    assert not kdamond.running()


def test_what_is_written_while_processes_are_opened(session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No other command for this kdamond, nor its end; a number written then is the next start's, as it is written."""
    session.monitor()
    opening, go_on = threading.Event(), threading.Event()
    get_task = session.machine.get_task

    def get_task_late(*words: Any) -> Any:
        opening.set()
        assert go_on.wait(60)
        return get_task(*words)

    monkeypatch.setattr(session.machine, "get_task", get_task_late)
    answers: list[str] = []
    starting = threading.Thread(target=lambda: answers.append(session.state("on")))
    starting.start()
    assert opening.wait(60)
    assert ["EBUSY"] * 4 == [session.state(name) for name in ("on", "commit", "off", "update_schemes_stats")]
    assert "EBUSY" == session.write("/admin/kdamonds/nr_kdamonds", "0")
    session.put(f"{CONTEXT}/targets/0/pid_target", 141)
    go_on.set()
    starting.join(60)
    assert ["OK"] == answers
    kdamond = session.tree.kdamonds.present()[0]
    assert [150] == [t.pid for t in kdamond.damon_ctx.adaptive_targets]
    assert "OK" == session.state("off")
    assert "OK" == session.state("on")
    assert [141] == [t.pid for t in kdamond.damon_ctx.adaptive_targets]


def test_two_thousand_directories_come_into_being_when_they_are_looked_at(session: Any) -> None:
    """Any of them, with any file, at once."""
    session.context()
    session.put(f"{CONTEXT}/schemes/nr_schemes", 2000)
    schemes = f"{CONTEXT}/schemes"
    assert 2001 == len(session.tree.listdir(schemes))
    assert 2002 == session.tree.getattr(schemes)["st_nlink"]
    session.put(f"{schemes}/1999/action", "cold")
    assert "cold\n" == session.read(f"{schemes}/1999/action")
    assert "<ENOENT>" == session.read(f"{schemes}/2000/action")
    assert "<ENOENT>" == session.read(f"{schemes}/01/action")
    assert "<ENOTDIR>" == session.read(f"{schemes}/1/action/x")


def test_writers_at_once_get_one_machine() -> None:
    """It is looked over once, by the one that comes first."""
    made = []
    both = threading.Barrier(2)

    def make() -> SimMachine:
        made.append(1)
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(1)
        return SimMachine(seed=1)

    tree = damon_sysfs_init(make)
    writers = [threading.Thread(target=tree.machine) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [1] == made
