# SPDX-License-Identifier: GPL-2.0-only
"""``kdamon run`` ends and shows what it saw, whatever a producer, a source or the monitored process does."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

from kdamon.producers.client import ReportClient
from kdamon.reports.record import report_array
from tests.support.capabilities import needs_root
from tests.support.cli import ENVIRONMENT
from tests.support.paths import SUPPORT
from tests.support.waiting import eventually

pytestmark = pytest.mark.real

#: Linux 6.16: descriptors are refused (SO_PASSRIGHTS).
REFUSED = tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 16)
SENDER = SUPPORT / "hostile_sender.py"
PID = 4_194_305  # no process has this number
WORDS = ("run", "--json", "--quiet", "--ops", "reports", "--pid", str(PID), "--range", "0-100000")

#: kdamon, with a part of it that waits for ever, and the limits of others as given.
STUCK = """
import os, sys, threading
from kdamon import core
from kdamon.producers import connections as report_connections
from kdamon.producers import server as report_server
from kdamon_tools.cli import main
from kdamon_tools.stopping import StopSignals
what, limit = sys.argv.pop(1), float(sys.argv.pop(1))
core._END = report_server._END = limit
wait_for = StopSignals.wait_for

def say_and_wait(*arguments):
    os.write(2, b"waits\\n")
    return wait_for(*arguments)

def for_ever():
    os.write(2, b"is stuck\\n")
    threading.Event().wait()

StopSignals.wait_for = say_and_wait
if what == "older kernel":
    report_connections._refuse_descriptors = lambda bound: False
elif what == "producers":
    report_server.ReportServer._hang_up_on_the_silent = lambda server: for_ever()
elif what == "kdamond":
    reset = core.kdamond_reset_aggregated
    core.kdamond_reset_aggregated = lambda ctx: for_ever() if ctx.passed_sample_intervals > 50 else reset(ctx)
sys.exit(main())
"""


@contextlib.contextmanager
def started(*command: str) -> Iterator[subprocess.Popen[str]]:
    """A process that is gone in the end."""
    with subprocess.Popen(
        [sys.executable, *command], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def place() -> Iterator[str]:
    """Where every user reaches a socket."""
    with tempfile.TemporaryDirectory(prefix="kdamon-test-", dir="/var/tmp") as directory:
        os.chmod(directory, 0o755)
        yield f"{directory}/reports"


def result(process: subprocess.Popen[str]) -> tuple[int, dict[str, Any], str]:
    """Its status, what it saw, and what it says."""
    said, complaints = process.communicate(timeout=120)
    return process.returncode, json.loads(said), complaints


def report(place: str) -> None:
    """Be a producer of three reports, which are read."""
    with ReportClient(place) as client:
        client.report(report_array(3, pid=PID, size=8))
        eventually(lambda: client.pending == 0, "reports that are read")


def connect(place: str) -> None:
    """Give the thread of reports something to do, once there is one."""
    eventually(lambda: os.path.exists(place), "the socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        eventually(lambda: connection.connect_ex(place) == 0, "a server at the socket")


@needs_root("another user is needed: run as root")
@pytest.mark.parametrize("kernel", ["this kernel", "older kernel"])
@pytest.mark.parametrize("how", ["hello", "second", "queued", "many", "hangup"])
def test_descriptors_that_a_user_sends_do_not_keep_it_from_ending(place: str, how: str, kernel: str) -> None:
    """They take an hour to close. Other producers' reports count, and the result comes."""
    with started("-c", STUCK, kernel, "60", *WORDS, "--reports", place) as process:
        connect(place)
        report(place)
        # What is sent must have no other owner when it is looked at.
        process.send_signal(signal.SIGSTOP)
        with started(str(SENDER), place, how) as sender:
            assert sender.stdout is not None
            assert (sender.stdout.readline() == "0\n") == (kernel == "older kernel" or not REFUSED)
            process.send_signal(signal.SIGCONT)
            report(place)
            process.send_signal(signal.SIGTERM)
            status, seen, complaints = result(process)
    assert (0, 6) == (status, seen["counters"]["producers"]["received"])
    assert {"waits"} == set(complaints.splitlines())


def test_a_thread_of_reports_that_waits_for_ever_is_left(place: str) -> None:
    with started("-c", STUCK, "producers", "0.5", *WORDS, "--reports", place, "--seconds", "1") as process:
        connect(place)
        status, seen, complaints = result(process)
    assert 0 == status
    assert "the time was over" == seen["note"]
    assert "the thread that reads reports does not end" in complaints


def test_a_kdamond_that_waits_for_ever_is_left(place: str) -> None:
    """What it had seen is shown, and that it did not end is an error."""
    with started("-c", STUCK, "kdamond", "0.5", *WORDS, "--reports", place, "--seconds", "3") as process:
        status, seen, complaints = result(process)
    assert 1 == status
    assert seen["snapshots"]
    assert "monitoring did not end: kdamond.0 did not end within 0.5 seconds" in complaints
    assert re.search(r" \(kdamond\.0 \(thread \d+\) in wait\(\) at threading\.py:\d+, state S", complaints), complaints


@pytest.mark.parametrize(
    ("what", "waits", "sentence", "status"),
    [
        ("kdamond", 1, "monitoring did not end: a signal came again; kdamond.0 (thread ", 1),
        ("producers", 2, "of --reports-to, did not arrive in time", 0),
    ],
)
def test_a_second_signal_shows_the_result_at_once(
    place: str, what: str, waits: int, sentence: str, status: int
) -> None:
    """It cuts every wait short: nothing that was seen is lost to impatience."""
    with started("-c", STUCK, what, "3600", *WORDS, "--reports", place) as process:
        assert process.stderr is not None
        connect(place)
        assert "is stuck\n" == process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert ["waits\n"] * waits == [process.stderr.readline() for _ in range(waits)]
        process.send_signal(signal.SIGTERM)
        ended, seen, complaints = result(process)
    assert (status, "stopped by a signal") == (ended, seen["note"])
    assert sentence in complaints
