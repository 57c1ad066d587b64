# SPDX-License-Identifier: GPL-2.0-only
"""Waits for threads count the time in which the process runs, and say where a thread is that does not end."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kdamon.lib.threads import join_for, where_is
from tests.support.waiting import eventually

#: Prints a line, and then whether work of half a second ended within two, by each of the waits.
WAITS = """
import sys, threading, time
from kdamon.kernel import kthread, kthread_stop
from kdamon.lib.threads import join_for
from kdamon_tools.stopping import StopSignals

def work(kdamond=None):
    if kdamond is not None:
        kdamond[0].wake.wait()
    for _ in range(25):
        time.sleep(0.02)

if sys.argv[1] == "join_for":
    thread = threading.Thread(target=work)
    thread.start()
    print("waits", flush=True)
    print(join_for(thread, 2))
elif sys.argv[1] == "wait_for":
    print("waits", flush=True)
    print(StopSignals().wait_for(work, 2))
else:
    itself = []
    itself.append(kthread(work, itself, "kdamond.0"))
    itself[0].start()
    print("waits", flush=True)
    print(not kthread_stop(itself, 2))
"""


@pytest.mark.real
@pytest.mark.parametrize("wait", ["join_for", "wait_for", "kthread_stop"])
def test_time_in_which_the_process_is_stopped_does_not_count(wait: str) -> None:
    """Neither ^Z nor a machine that stands still is a reason to give up work that is about to end."""
    with subprocess.Popen([sys.executable, "-c", WAITS, wait], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "waits\n" == process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        time.sleep(2.5)
        process.send_signal(signal.SIGCONT)
        assert "True\n" == process.stdout.read()


def test_a_thread_that_does_not_end_in_time() -> None:
    over = threading.Event()
    thread = threading.Thread(target=over.wait, daemon=True)
    thread.start()
    assert not join_for(thread, 0.01)
    over.set()
    assert join_for(thread, 60)


def test_where_a_thread_is(caplog: pytest.LogCaptureFixture) -> None:
    """The function and line, and the place in the kernel; the whole stack is in the log."""
    reader, writer = os.pipe()

    def reads() -> None:
        os.read(reader, 1)

    thread = threading.Thread(target=reads, name="some work", daemon=True)
    thread.start()
    waiting = Path(f"/proc/self/task/{thread.native_id}/stat")
    eventually(lambda: waiting.read_text().rpartition(")")[2].split()[0] == "S", "a thread that waits")
    with caplog.at_level(logging.DEBUG, "kdamon"):
        found = where_is(thread)
    assert found.startswith(f"some work (thread {thread.native_id}) in reads() at test_threads.py:")
    assert ", state S" in found
    assert "os.read(reader, 1)" in caplog.text
    os.write(writer, b"x")
    thread.join()
    assert where_is(thread).endswith("has ended")
    os.close(reader)
    os.close(writer)
