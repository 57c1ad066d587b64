# SPDX-License-Identifier: GPL-2.0-only
"""The command that is monitored: all that it started ends with the monitoring, and nothing else does."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from kdamon_tools.cpu_watch import CpuWatch
from kdamon_tools.process_tree import ProcessStat, descendants, family_of, read_stat, read_stats
from tests.support.cli import ENVIRONMENT, KDAMON, REPORTS_ONLY
from tests.support.waiting import eventually

pytestmark = pytest.mark.real


#: A script that writes its number to the file that it gets, else to that of the test, and runs on.
STAY = """#!/bin/sh
echo $$ >> "${1:-$PIDS}"
exec sleep 600 > /dev/null
"""


@pytest.fixture
def pids(tmp_path: Path) -> Iterator[Path]:
    """A file that scripts write their numbers to; whatever is left of them is killed."""
    path = tmp_path / "pids"
    path.touch()
    (tmp_path / "stay").write_text(STAY)
    (tmp_path / "stay").chmod(0o755)
    yield path
    for pid in running(path):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def environment(pids: Path) -> dict[str, str]:
    """For scripts that use STAY and PIDS."""
    return ENVIRONMENT | {"PIDS": str(pids), "STAY": str(pids.with_name("stay"))}


def running(path: Path) -> list[int]:
    """Which of the processes in a file have not ended."""
    stats = {int(pid): read_stat(int(pid)) for pid in path.read_text().split()}
    return [pid for pid, stat in stats.items() if stat is not None and not stat.ended]


def count(path: Path) -> int:
    return len(path.read_text().split())


def run(*words: str, pids: Path, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run ``kdamon run`` as a child of a shell that runs ``before``."""
    return subprocess.run(
        ["sh", "-c", before + ' exec "$@"', "sh", *KDAMON, *REPORTS_ONLY, "--quiet", *words],
        env=environment(pids),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("script", "n"),
    [
        ("$STAY; true", 1),
        ("$STAY & $STAY & wait", 2),
        ("($STAY &); exec $STAY", 2),
        ("trap '' TERM; $STAY; $STAY", 1),
        ("$STAY & pid=$!; sleep 0.3; kill -STOP $pid; wait", 1),
        ("set -m; $STAY & $STAY", 2),
        ('exec setsid sh -c "$STAY; true"', 1),
    ],
    ids=["child", "background", "orphan", "stubborn", "stopped", "own group", "own session"],
)
def test_what_the_command_started_ends_with_it(script: str, n: int, pids: Path) -> None:
    """Whatever became of its parent, and of its process group."""
    done = run("--seconds", "1.5", "--", "sh", "-c", script, pids=pids)
    assert (0, True, []) == (done.returncode, count(pids) >= n, running(pids)), done.stdout


def test_nothing_else_is_ended(pids: Path, tmp_path: Path) -> None:
    """Neither a daemon that made a session of its own, nor what kdamon's own shell started."""
    others = tmp_path / "others"
    others.touch()
    before = f"$STAY {others} & ($STAY {others} &);"
    daemon = f"setsid $STAY {others} & exec $STAY"
    try:
        done = run("--seconds", "1.5", "--", "sh", "-c", daemon, pids=pids, before=before)
        assert (0, [], 3) == (done.returncode, running(pids), len(running(others)))
    finally:
        for pid in running(others):
            os.kill(pid, signal.SIGKILL)


def test_what_a_command_leaves_when_it_ends_by_itself_is_left_and_named(pids: Path) -> None:
    """It may have meant to."""
    script = "$STAY & sleep 0.5; exit 6"
    done = run("--json", "--", "sh", "-c", script, pids=pids)
    (left,) = running(pids)
    assert 6 == done.returncode
    assert [f"the command ended and left running: {left} (sleep)"] == json.loads(done.stdout)["remarks"]


@contextmanager
def in_a_terminal(pids: Path, script: str) -> Iterator[tuple[int, int]]:
    """kdamon on a terminal of its own, as a shell's job in the foreground: (its number, the terminal)."""
    words = [*KDAMON, *REPORTS_ONLY, "--", "sh", "-c", script]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe(words[0], words, environment(pids))
    try:
        yield pid, terminal
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(terminal)


def shown(terminal: int) -> str:
    """What appeared on it until its end."""
    text = b""
    with suppress(OSError):
        while data := os.read(terminal, 65536):
            text += data
    return text.decode()


def test_a_terminal_is_the_commands_too(pids: Path) -> None:
    """It reads from it; Ctrl-C ends both, also what ignores it in the background; the result is shown."""
    script = "$STAY & read line; echo it read $line; echo $$ >> $PIDS; sleep 600"
    with in_a_terminal(pids, script) as (pid, terminal):
        os.write(terminal, b"something\n")
        assert eventually(lambda: count(pids) == 2)
        os.write(terminal, b"\x03")
        text = shown(terminal)
        assert 0 == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert "it read something" in text
    assert "stopped by a signal" in text
    assert [] == running(pids)


def test_ctrl_z_stops_both_and_both_go_on(pids: Path) -> None:
    """As any job of a shell."""
    with in_a_terminal(pids, "sleep 0.1; exec $STAY") as (pid, terminal):
        assert eventually(lambda: count(pids) == 1)
        (child,) = running(pids)
        # The leader of a session is not stopped by its terminal, so this is what a shell's job gets.
        os.killpg(pid, signal.SIGSTOP)
        assert eventually(
            lambda: all((stat := read_stat(one)) is not None and stat.state == "T" for one in (pid, child))
        )
        os.killpg(pid, signal.SIGCONT)
        assert eventually(
            lambda: all((stat := read_stat(one)) is not None and stat.state != "T" for one in (pid, child))
        )
        os.kill(pid, signal.SIGTERM)
        assert "stopped by a signal" in shown(terminal)
    assert [] == running(pids)


def test_descent_is_found_in_any_order() -> None:
    """Parents come first, and other processes not at all."""
    stats = {
        pid: ProcessStat(pid, "", "S", parent, 1, 0, 0.0, 0.0)
        for pid, parent in [(9, 5), (5, 7), (7, 1), (8, 1), (6, 5)]
    }
    assert [7, 5, 9, 6] == [stat.pid for stat in descendants(stats, [7, 5])]
    assert [] == list(descendants(stats, [4]))


def test_a_process_is_read_whatever_its_name_is(tmp_path: Path) -> None:
    """With parentheses, blanks and bytes that are no text in it; sentences show it on one line."""
    program = os.path.join(os.fsencode(tmp_path), b"a) R 1 (\xff\n")
    os.symlink("/bin/sleep", program)
    with subprocess.Popen([program, b"60"]) as process:
        try:
            assert eventually(lambda: (stat := read_stat(process.pid)) is not None and "R 1" in stat.name)
            stat = read_stats()[process.pid]
            assert (os.getpid(), os.getsid(0), "a) R 1 (\\xff\\x0a") == (stat.parent, stat.session, stat.name)
        finally:
            process.kill()


def family(own: float, *children: tuple[int, float], waited: float = 0.0) -> list[ProcessStat]:
    """A process 10 and its children, with the CPU time that each took."""
    rest = [ProcessStat(pid, f"child{pid}", "R", 10, 1, 100 + pid, cpu, 0.0) for pid, cpu in children]
    return [ProcessStat(10, "sh", "S", 1, 1, 100, own, waited), *rest]


@pytest.mark.parametrize(
    ("looks", "expected"),
    [
        ([family(0.0), family(0.0, (11, 0.1))], ""),
        ([family(0.0), family(3.0, (11, 2.0))], ""),
        # What was there before does not count.
        ([family(0.0, (11, 50.0)), family(1.0, (11, 50.5))], ""),
        ([family(0.0), family(0.5, (11, 4.0))], "most of it 11 (child11); the process itself took 0.5 s"),
        ([family(0.0), family(0.5, (11, 4.0), (12, 1.0))], "took 5.0 s of CPU time, most of it 11 (child11)"),
        # It ended, and cannot be monitored any more.
        ([family(0.0), family(0.0, (11, 4.0)), family(0.0, waited=4.5)], "took 4.5 s of CPU time, most of it 11 (chi"),
        # Many that were never seen.
        ([family(0.0), family(0.0, (11, 0.2), waited=8.0)], "took 8.0 s of CPU time; the process"),
        # The process itself ended.
        ([family(0.0), family(0.0, (11, 4.0)), []], "took 4.0 s"),
    ],
)  # fmt: skip
def test_who_does_the_work_is_said(looks: list[list[ProcessStat]], expected: str) -> None:
    """Once while it runs, where children take more CPU time than the process, and enough to matter."""
    rest = iter(looks)
    watch = CpuWatch(10, lambda: next(rest))
    for _ in looks[1:]:
        watch.look(at_once=True)
    assert expected in watch.sentence()
    assert bool(expected) == bool(watch.sentence())
    assert [bool(expected), False] == [bool(watch.sentence_once()), bool(watch.sentence_once())]
    alive = bool(looks[-1]) and len(looks[-1]) > 1
    assert ("use --pid 11" in watch.sentence()) == (alive and "most of it" in expected)
    assert "use --pid" not in watch.sentence(lives_on=False)


def test_what_monitors_is_no_child_of_what_is_monitored() -> None:
    """As where the monitored process is the shell that kdamon was started from."""
    child = subprocess.Popen(["sleep", "600"])
    try:
        mine = {os.getpid(), child.pid}
        assert {os.getppid()} == {os.getppid(), *mine} & {stat.pid for stat in family_of(os.getppid())}
    finally:
        child.kill()
        child.wait()
