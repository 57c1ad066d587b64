# SPDX-License-Identifier: GPL-2.0-only
"""The text of DAMON's events is the kernel's (``include/trace/events/damon.h``), and no client holds a kdamond up."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from kdamon import trace
from kdamon.core import damon_add_scheme
from kdamon.damon import damon_ctx, damos
from kdamon.damon import damon_probe as probe
from kdamon.regions import DAMON_MAX_PROBES, Regions
from kdamon_fs import trace_server
from kdamon_fs.trace_server import EVENTS, TraceServer
from tests.support.tables import ctx_of


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    """The socket of a server of all events."""
    name = str(tmp_path / "events")
    with TraceServer(name, list(EVENTS)):
        yield name
    assert not any(getattr(trace, event).enabled() for event in EVENTS)


@contextmanager
def recording(path: str, request: str) -> Iterator[socket.socket]:
    """A client whose events are being recorded."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(60)
        client.connect(path)
        client.sendall(request.encode() + b"\n")
        assert b"ok\n" == client.recv(3)
        yield client


def rest(client: socket.socket) -> str:
    """What is left, once the client has enough."""
    client.shutdown(socket.SHUT_WR)
    with client.makefile("r") as lines:
        return lines.read()


@pytest.fixture
def ctx() -> damon_ctx:
    """Two targets; the second has two regions with accesses, and a scheme was applied to it."""
    table = Regions([4096, 1 << 40], [8192, (1 << 40) + 4096])
    table.nr_accesses[:] = 3, 20
    table.last_nr_accesses[:] = 3, 20
    table.age[:] = 7, 0
    table.probe_hits = np.zeros((2, DAMON_MAX_PROBES), np.uint8)
    table.probe_hits[:, :2] = (20, 0), (255, 1)
    made = ctx_of(Regions(), table)
    for _ in range(2):
        damon_add_scheme(made, damos())
    stat = made.schemes[1].stat
    stat.nr_tried, stat.sz_tried, stat.nr_applied, stat.sz_applied = 1, 2, 3, 4
    stat.sz_ops_filter_passed, stat.qt_exceeds, stat.nr_snapshots = 5, 6, 7
    made.probes = [probe(), probe()]
    return made


def fire(name: str, ctx: damon_ctx) -> None:
    """Let an event happen, as the core does."""
    target, scheme = ctx.adaptive_targets[1], ctx.schemes[1]
    arguments = {
        "damon_aggregated": (1, target.regions),
        "damon_region_aggregated": (1, target.regions),
        "damon_monitor_intervals_tune": (80000,),
        "damos_before_apply": (target, 1, scheme),
        "damos_esz": (scheme, 1 << 40),
        "damos_stat_after_apply_interval": (scheme,),
    }
    getattr(trace, name)(ctx, *arguments[name])


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        (
            "damon_aggregated",
            [
                "target_id=1 nr_regions=2 4096-8192: 3 7",
                "target_id=1 nr_regions=2 1099511627776-1099511631872: 20 0",
            ],
        ),
        (
            "damon_region_aggregated",
            [
                "target_id=1 nr_regions=2 4096-8192: 3 7 probe_hits=14 00",
                "target_id=1 nr_regions=2 1099511627776-1099511631872: 20 0 probe_hits=ff 01",
            ],
        ),
        ("damon_monitor_intervals_tune", ["sample_us=80000"]),
        (
            "damos_before_apply",
            ["ctx_idx=0 scheme_idx=1 target_idx=1 nr_regions=2 1099511627776-1099511631872: 20 0"],
        ),
        ("damos_esz", ["ctx_idx=0 scheme_idx=1 esz=1099511627776"]),
        (
            "damos_stat_after_apply_interval",
            [
                "ctx_idx=0 scheme_idx=1 nr_tried=1 sz_tried=2 nr_applied=3 sz_applied=4 sz_ops_filter_passed=5 "
                "qt_exceeds=6 nr_snapshots=7"
            ],
        ),
    ],
)
def test_an_event_reads_as_the_kernels(path: str, ctx: damon_ctx, name: str, texts: list[str]) -> None:
    """With the task and the time of it, in perf script's form; events of other users are not among them."""
    with recording(path, name) as client:
        before = time.monotonic()
        for event in EVENTS:
            fire(event, ctx)
        after = time.monotonic()
        lines = rest(client).splitlines()
    task = f"{threading.current_thread().name} {threading.get_native_id()}"
    found = [re.fullmatch(rf" {task} \[\d{{3}}\] (\d+\.\d{{6}}): damon:{name}: (.*)", line) for line in lines]
    assert texts == [match[2] for match in found if match]
    assert len(texts) == len(lines)
    # Microseconds are cut off.
    assert all(before - 1e-6 <= float(match[1]) <= after for match in found if match)


def measured_formats() -> dict[str, str]:
    """What Linux 7.3 prints of each event, as regular expressions by the events' names."""
    text = (Path(__file__).parent / "data/trace-formats-7.3.txt").read_text()
    formats = re.findall(r'^name: (\w+)$.*?^print fmt: "([^"]*)"', text, re.MULTILINE | re.DOTALL)
    return {name: re.sub("%l?u", r"\\d+", form.replace("%s", "[0-9a-f]{2}( [0-9a-f]{2})*")) for name, form in formats}


def test_formats_are_those_that_linux_7_3_shows(path: str, ctx: damon_ctx) -> None:
    """Of every event, and no other is served."""
    formats = measured_formats()
    assert EVENTS.keys() == formats.keys()
    for name, form in formats.items():
        with recording(path, name) as client:
            fire(name, ctx)
            lines = rest(client).splitlines()
        assert lines
        assert all(re.search(rf": damon:{name}: {form}$", line) for line in lines)


def test_patterns_name_events_and_what_there_is_not_is_said(path: str, ctx: damon_ctx) -> None:
    """In one line, and the connection is over."""
    with recording(path, "damos_* damon_monitor*") as client:
        for event in EVENTS:
            fire(event, ctx)
        names = re.findall(r"damon:(\w+):", rest(client))
    assert sorted(names) == sorted(name for name in EVENTS if not name.endswith("aggregated"))
    for request in ("nothing damos_esz", "", "\xff"):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            client.sendall(request.encode() + b"\n")
            with client.makefile("r") as lines:
                (line,) = lines.readlines()
        assert line.endswith(f"there are {', '.join(EVENTS)}\n")


def test_a_client_that_does_not_read_loses_events_and_learns_how_many(
    path: str, ctx: damon_ctx, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kdamond goes on."""
    monkeypatch.setattr(trace_server, "_MOST_WAITING", 10)
    monkeypatch.setattr(trace_server, "_PERIOD", 30.0)
    with recording(path, "damos_esz") as client:
        for _ in range(25):
            fire("damos_esz", ctx)
        lines = rest(client).splitlines()
    assert (11, "# lost 15") == (len(lines), lines[-1])
