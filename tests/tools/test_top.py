# SPDX-License-Identifier: GPL-2.0-only
"""``kdamon top`` in a terminal emulator: real processes, real keys, and its end."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import kdamon
from tests.support.capabilities import needs_program
from tests.support.cli import ENVIRONMENT, KDAMON, run
from tests.support.terminals import Emulator
from tests.support.waiting import eventually

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("monitoring")]

#: Sequences that begin the full screen, and those that end it.
FULL_SCREEN = b"\x1b[?1049h"
ENDS = (b"\x1b[?1049l", b"\x1b[?25h", b"\x1b[?1000l", b"\x1b[?2004l")
#: A process of two areas of 8 MiB, of which it writes the first one; it ends with its standard input.
TARGET = """
import mmap, sys, threading
areas = [mmap.mmap(-1, 1 << 23) for _ in range(2)]
threading.Thread(target=sys.stdin.read, daemon=False).start()
while threading.active_count() > 1:
    for page in range(0, 1 << 23, 4096):
        areas[0][page] = 1
    threading.Event().wait(0.001)
"""


@pytest.fixture
def target() -> Iterator[subprocess.Popen[bytes]]:
    """A process to monitor."""
    with subprocess.Popen([sys.executable, "-c", TARGET], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


Start = Callable[..., Emulator]


@pytest.fixture
def top(tmp_path: Path) -> Iterator[Start]:
    """Start ``kdamon top`` in terminals, in a directory of the test's; end it afterwards."""
    started = []

    def start(*words: str, columns: int = 80, lines: int = 24, **environment: str) -> Emulator:
        line = f"cd {shlex.quote(str(tmp_path))} && exec {shlex.join([*KDAMON, 'top', *words])}"
        # pyte does not know that protocol of keys.
        environment = {"TEXTUAL_DISABLE_KITTY_KEY": "1"} | environment
        started.append(Emulator(["sh", "-c", line], columns, lines, environment=environment))
        return started[-1]

    yield start
    for terminal in started:
        terminal.close()


def shows(terminal: Emulator, pattern: str) -> None:
    """Wait until a line has ``pattern`` in it."""
    terminal.wait(lambda: any(re.search(pattern, line) for line in terminal.lines()), pattern)


def restored(terminal: Emulator, before: object) -> bool:
    """Whether the terminal is as it was, once the program ended."""
    written = terminal.output
    assert FULL_SCREEN in written
    return before == terminal.settings() and all(written.rfind(end) > written.rfind(FULL_SCREEN) for end in ENDS)


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (60, 20)])
def test_a_process(target: subprocess.Popen[bytes], top: Start, columns: int, lines: int) -> None:
    """Its names, a heatmap of the hot one, and back; the terminal is restored."""
    terminal = top("--pid", str(target.pid), columns=columns, lines=lines)
    before = terminal.settings()
    shows(terminal, r"^ +\d+\.\d MiB .* \[shared anon\]")
    assert f"kdamon: process {target.pid} (python" in terminal.lines()[0]
    assert all(len(line) <= columns for line in terminal.lines())
    assert "Enter heatmap" in terminal.lines()[-1]
    terminal.type("\r")
    shows(terminal, r"^ *[0-9a-f]{8,}  [-+=*#%@.:]+ +\[")
    shows(terminal, r" now$")
    terminal.type("\x1b")
    shows(terminal, r"^ +hot +accessed")
    terminal.type("q")
    assert 0 == terminal.end()
    assert restored(terminal, before)


def test_processes(target: subprocess.Popen[bytes], top: Start) -> None:
    """One in each row, also with commas; each can be looked into."""
    with subprocess.Popen([sys.executable, "-c", TARGET], stdin=subprocess.PIPE) as other:
        terminal = top("--pid", f"{target.pid},{other.pid}", str(target.pid))
        for pid in (target.pid, other.pid):
            shows(terminal, rf"^ *{pid} +\d+\.\d MiB")
        terminal.type("m")
        shows(terminal, r"\[shared anon\]")
        other.kill()
        terminal.type("\x1b")
        shows(terminal, rf"^ *{other.pid} .*ended\)")
        terminal.type("q")
        assert 0 == terminal.end()


def test_threads_and_cpus(target: subprocess.Popen[bytes], top: Start) -> None:
    """Faults show them; names come back with accessed bits."""
    terminal = top("--pid", str(target.pid))
    shows(terminal, r"^ +hot +accessed")
    terminal.type("t")
    terminal.wait(
        lambda: (
            any(re.search(rf"^ +{target.pid} +\d+", line) for line in terminal.lines())
            or any("needs" in line or "cannot" in line for line in terminal.lines())
        ),
        "the thread",
    )
    if not any(re.search(rf"^ +{target.pid} +\d+", line) for line in terminal.lines()):
        pytest.skip(" ".join(terminal.lines()[-4:-1]))
    terminal.type("c")
    shows(terminal, r"^ +cpu +accesses")
    terminal.type("c")
    shows(terminal, r"^ +hot +accessed")
    shows(terminal, "reads and writes")
    terminal.type("q")
    assert 0 == terminal.end()


def test_writes_only(target: subprocess.Popen[bytes], top: Start) -> None:
    """And all accesses again."""
    terminal = top("--pid", str(target.pid))
    shows(terminal, "reads and writes")
    terminal.type("w")
    terminal.wait(
        lambda: re.search(r"\), writes,", terminal.lines()[0]) or "userfaultfd" in " ".join(terminal.lines()), "writes"
    )
    if "userfaultfd" in " ".join(terminal.lines()):
        pytest.skip("page faults cannot be sampled here")
    shows(terminal, r"^ +\d+\.\d MiB .* \[shared anon\]")
    terminal.type("w")
    shows(terminal, "reads and writes")
    terminal.type("q")
    assert 0 == terminal.end()


def test_what_cannot_be_counted_is_a_sentence(target: subprocess.Popen[bytes], top: Start) -> None:
    """And monitoring goes on as before."""
    terminal = top("--pid", str(target.pid), "--primitive", "page_table")
    shows(terminal, r"^ +hot +accessed")
    terminal.type("w")
    shows(terminal, "accessed bits do not identify CPU, thread, reads and writes")
    shows(terminal, "reads and writes")
    terminal.type("q")
    assert 0 == terminal.end()


def test_a_record(target: subprocess.Popen[bytes], top: Start, tmp_path: Path) -> None:
    """It begins and ends with the key, and holds that part of the run alone; a second one ends with the screen."""
    terminal = top("--pid", str(target.pid))
    shows(terminal, r"^ +hot +accessed")
    terminal.type("r")
    shows(terminal, "recording in run.kdamon")
    assert eventually(lambda: len(kdamon.open(str(tmp_path / "run.kdamon")).times()) > 3)
    terminal.type("r")
    shows(terminal, r"recorded \d+ snapshots in run.kdamon")
    terminal.type("r")
    shows(terminal, "recording in run-2.kdamon")
    terminal.type("q")
    assert 0 == terminal.end()
    assert "snapshots in run-2.kdamon" in "".join(terminal.all_lines())
    with kdamon.open(str(tmp_path / "run.kdamon")) as record:
        found = record.run
        assert (target.pid, True, "the key r ended it") == (found.config.pid, found.complete, found.note)
        assert found.started <= record.times()["time"][0]
        assert record.counters["missed_intervals"] <= found.seconds * 1e6 / found.config.sample_us + 1
        assert 0 < record.counters["samples"]
        assert any("[shared anon]" in name for name in record.names.names)
        assert len(record.mappings) > 3
    with kdamon.open(str(tmp_path / "run-2.kdamon")) as record:
        assert (True, "kdamon top ended") == (record.run.complete, record.run.note)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_it(target: subprocess.Popen[bytes], top: Start, number: int) -> None:
    """With the terminal restored."""
    terminal = top("--pid", str(target.pid))
    before = terminal.settings()
    shows(terminal, r"^ +hot +accessed")
    os.kill(terminal.pid, number)
    assert 0 == terminal.end()
    assert restored(terminal, before)


def test_ctrl_c_ends_it(target: subprocess.Popen[bytes], top: Start) -> None:
    """As a key, as the terminal sends no signal then."""
    terminal = top("--pid", str(target.pid))
    before = terminal.settings()
    shows(terminal, r"^ +hot +accessed")
    terminal.type("\x03")
    assert 0 == terminal.end()
    assert restored(terminal, before)


def test_a_closed_window_ends_it(target: subprocess.Popen[bytes], top: Start) -> None:
    """Nothing of it is left, and the process goes on."""
    terminal = top("--pid", str(target.pid))
    shows(terminal, r"^ +hot +accessed")
    terminal.hang_up()
    terminal.end()
    assert target.poll() is None


def test_a_terminal_that_takes_nothing(target: subprocess.Popen[bytes], top: Start) -> None:
    """As of a connection that stalls: a signal ends it all the same."""
    terminal = top("--pid", str(target.pid), "--seconds", "600", lines=200, columns=300)
    shows(terminal, "in memory")
    # Each key redraws the screen, and nothing is read.
    for _ in range(300):
        terminal.type("?\x1b[A\x1b[B?")
        time.sleep(0.005)
    os.kill(terminal.pid, signal.SIGTERM)
    assert eventually(lambda: Path(f"/proc/{terminal.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
    assert 0 == terminal.end()
    assert target.poll() is None


def test_standard_error_is_free(target: subprocess.Popen[bytes], top: Start, tmp_path: Path) -> None:
    """The screen is on standard output, and messages can go to a file."""
    script = tmp_path / "script"
    script.write_text(f"exec {shlex.join(KDAMON)} --debug top --pid {target.pid} 2>messages\n")
    terminal = Emulator(["sh", "-c", f"cd {shlex.quote(str(tmp_path))}; . ./script"], 80, 24)
    try:
        shows(terminal, r"^ +hot +accessed")
        terminal.type("q")
        assert 0 == terminal.end()
    finally:
        terminal.close()
    messages = (tmp_path / "messages").read_text()
    assert ("MainThread" in messages, "\x1b" in messages) == (True, False)


def test_the_end_of_the_process(target: subprocess.Popen[bytes], top: Start) -> None:
    """The last state stays until a key is pressed."""
    terminal = top("--pid", str(target.pid))
    shows(terminal, r"^ +\d+\.\d MiB .* \[shared anon\]")
    target.kill()
    target.wait()
    shows(terminal, "ended")
    shows(terminal, r"^ +\d+\.\d MiB .* \[shared anon\]")
    terminal.type("r")
    shows(terminal, "there is nothing to record")
    terminal.type("q")
    assert 0 == terminal.end()


def test_a_command(top: Start) -> None:
    """What it prints is not on the screen, and its status is kdamon's."""
    program = """
import mmap, sys, time
print("noise" * 9, sys.stdin.read())
area = mmap.mmap(-1, 1 << 23)
end = time.monotonic() + 3
while time.monotonic() < end:
    area[:] = bytes(1 << 23)
sys.exit(7)
"""
    terminal = top("--", sys.executable, "-c", program)
    shows(terminal, r"\(python")
    shows(terminal, "ended with status 7")
    assert "noise" not in "".join(terminal.all_lines())
    terminal.type("q")
    assert 7 == terminal.end()


def test_a_command_ends_with_it(top: Start) -> None:
    """As with ``kdamon run``."""
    terminal = top("--", sys.executable, "-c", TARGET.replace("sys.stdin.read", "threading.Event().wait"))
    shows(terminal, r"\[shared anon\]")
    children = Path(f"/proc/{terminal.pid}/task/{terminal.pid}/children")
    (pid,) = map(int, children.read_text().split())
    terminal.type("q")
    assert 0 == terminal.end()
    assert not Path(f"/proc/{pid}").exists()


def test_the_time_is_over(target: subprocess.Popen[bytes], top: Start) -> None:
    """It ends by itself."""
    terminal = top("--pid", str(target.pid), "--seconds", "2")
    before = terminal.settings()
    assert 0 == terminal.end()
    assert restored(terminal, before)


def test_no_colours(target: subprocess.Popen[bytes], top: Start) -> None:
    """With NO_COLOR, not even in a heatmap; --color always has them all the same."""
    for words, wanted in (((), False), (("--color", "always"), True)):
        terminal = top("--pid", str(target.pid), *words, NO_COLOR="1")
        shows(terminal, r"^ +hot +accessed")
        terminal.type("\r")
        shows(terminal, r" now$")
        terminal.type("q")
        assert 0 == terminal.end()
        colours = re.findall(rb"\x1b\[[0-9;]*(?:3[0-7]|4[0-7]|9[0-7]|38;5;\d+)(?=[;m])", terminal.output)
        assert wanted == bool(colours)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("", "the target is missing: use either --pid PID, or -- and a command"),
        ("--pid 1 -- true", "the target is missing: use either --pid PID, or -- and a command"),
        ("--pid x", "argument --pid: 'x' is not a process, or a list of them, such as 12,13; see kdamon top --help"),
        ("--pid 1,,2", "argument --pid: '1,,2' is not a process, or a list of them, such as 12,13"),
        (f"--pid {' '.join(map(str, range(1, 18)))}", "17 processes are too many: a screen has 16 at most"),
        ("--pid 1 2 --range 0-1M", "--range is about one process: name only one with --pid"),
        ("--pid 1 2 --tids 3", "--tids is about one process: name only one with --pid"),
        ("--pid 1 --write-only --read-only", "--write-only and --read-only exclude each other"),
        ("--pid 1 --primitive page_table --write-only", "accessed bits do not identify CPU, thread, reads and writes"),
        ("--pid 1", "standard output is not a terminal: use kdamon run"),
    ],
)
def test_a_wrong_command_line(words: str, sentence: str) -> None:
    """One sentence, and status 2."""
    master, slave = os.openpty()
    done = subprocess.run(
        [*KDAMON, "top", *shlex.split(words)], env=ENVIRONMENT, stdin=slave, capture_output=True, text=True, check=False
    )
    os.close(master)
    os.close(slave)
    assert (2, 1) == (done.returncode, done.stderr.count("\n")), done.stderr
    assert done.stderr.startswith(f"kdamon: {sentence}")


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        (["--pid", "4194305"], 1, "kdamon: process 4194305"),
        (["--pid", "2"], 1, "kdamon: process 2 is a kernel thread"),
        (["--", "/nonexistent/command"], 1, "/nonexistent/command"),
    ],
)
def test_a_target_that_cannot_be_monitored(top: Start, words: list[str], status: int, sentence: str) -> None:
    """A sentence before there is a full screen."""
    if words == ["--pid", "2"] and not os.path.exists("/proc/2/status"):
        pytest.skip("this PID namespace has no kernel threads")
    terminal = top(*words)
    assert status == terminal.end()
    assert sentence in "\n".join(terminal.lines())
    assert FULL_SCREEN not in terminal.output
    assert "Traceback" not in "\n".join(terminal.all_lines())


def test_one_of_two_cannot_be_monitored(target: subprocess.Popen[bytes], top: Start) -> None:
    """The other one is released, and a sentence says why."""
    with subprocess.Popen([sys.executable, "-c", TARGET], stdin=subprocess.PIPE) as other:
        other.send_signal(signal.SIGSTOP)
        terminal = top("--pid", str(target.pid), str(other.pid), "--write-only")
        assert 1 == terminal.end()
        other.kill()
    assert FULL_SCREEN not in terminal.output
    assert 1 == terminal.output.count(b"kdamon: ")
    assert target.poll() is None


def test_the_children_do_the_work(top: Start) -> None:
    """A sentence names the one to monitor."""
    loop = "end = __import__('time').monotonic() + 20\nwhile end > __import__('time').monotonic(): pass"
    terminal = top("--", "sh", "-c", f"{shlex.join([sys.executable, '-c', loop])}; true")
    shows(terminal, r"the children of process \d+ \(sh\) took")
    terminal.type("q")
    assert 0 == terminal.end()


def test_a_terminal_without_a_full_screen(target: subprocess.Popen[bytes], top: Start) -> None:
    """A sentence."""
    terminal = top("--pid", str(target.pid), TERM="dumb")
    assert 2 == terminal.end()
    assert "kdamon: the terminal (TERM) has no full screen: use kdamon run" in terminal.lines()


def test_without_textual(target: subprocess.Popen[bytes], top: Start, tmp_path: Path) -> None:
    """The command that installs it."""
    (tmp_path / "textual.py").write_text("raise ModuleNotFoundError(name='textual')")
    terminal = top("--pid", str(target.pid), PYTHONPATH=f"{tmp_path}:{ENVIRONMENT['PYTHONPATH']}")
    assert 1 == terminal.end()
    sentence = "kdamon: kdamon top needs textual: install it with pip install 'kdamon[tui]'"
    assert [sentence] == [line for line in terminal.lines()[1:] if line]


@needs_program("tmux", "tmux")
def test_in_tmux(target: subprocess.Popen[bytes], tmp_path: Path) -> None:
    """A real terminal multiplexer, at 60x20: all of it can be seen, and the shell is back afterwards."""
    tmux = ["tmux", "-S", str(tmp_path / "socket"), "-f", "/dev/null"]
    line = shlex.join([*KDAMON, "top", "--pid", str(target.pid)])
    subprocess.run(
        [*tmux, "new-session", "-d", "-x", "60", "-y", "20", f"echo before; {line}; echo status $?; exec cat"],
        env=ENVIRONMENT,
        check=True,
    )

    def lines() -> list[str]:
        return subprocess.run(
            [*tmux, "capture-pane", "-p"], capture_output=True, text=True, check=True
        ).stdout.splitlines()

    try:
        assert eventually(lambda: any(re.search(r"^ +\d+\.\d MiB .* \[shared anon\]", line) for line in lines()))
        seen = lines()
        assert (20, True) == (len(seen), max(map(len, seen)) <= 60)
        assert f"kdamon: process {target.pid}" in seen[0]
        assert seen[-1].startswith("? help  q quit")
        subprocess.run([*tmux, "send-keys", "q"], check=True)
        assert eventually(lambda: "status 0" in lines())
        assert "before" in lines()
    finally:
        subprocess.run([*tmux, "kill-server"], check=False)


def test_help_has_the_keys() -> None:
    """At least where to find them."""
    assert "? lists the keys" in run("top", "--help").stdout
