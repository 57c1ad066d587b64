# SPDX-License-Identifier: GPL-2.0-only
"""Long text on a terminal goes through a pager, with all names; short text, and text elsewhere, does not."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import tempfile
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.capabilities import needs_program, needs_root
from tests.support.cli import ENVIRONMENT, KDAMON
from tests.support.views import MIB, name_table, recording, write_record

pytestmark = pytest.mark.real

NAMES = 60
#: Nobody; the interpreter and the modules may be in root's own directory.
USER = 65534
AS_A_USER = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
AS_A_USER += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
#: Numbers the lines that it gets, and says what its environment is.
PAGER = """#!/bin/sh
echo "paged by $0 $* LESS=$LESS LESSSECURE=$LESSSECURE"
exec cat -n
"""


@pytest.fixture(scope="module", name="folder")
def _folder() -> Iterator[Path]:
    """A directory of another user than root: any pager is used there."""
    with tempfile.TemporaryDirectory() as name:
        if os.geteuid() == 0:
            os.chown(name, USER, USER)
        yield Path(name)


@pytest.fixture(scope="module", name="record")
def _record(folder: Path) -> str:
    """A record of many names."""
    path = folder / "run.kdamon"
    names = name_table(*((at * MIB, (at + 1) * MIB, f"name {at}") for at in range(NAMES)))
    write_record(str(path), recording([[(at * MIB, (at + 1) * MIB, 20, 0, 0) for at in range(NAMES)]] * 3, names))
    if os.geteuid() == 0:
        os.chown(path, USER, USER)
    return str(path)


@pytest.fixture(scope="module", name="script")
def _script(folder: Path) -> str:
    path = folder / "my pager"
    path.write_text(PAGER)
    path.chmod(0o755)
    return str(path)


class Terminal:
    """kdamon on a terminal of 24 lines.

    :param root: whether it stays root, if the tests are.
    """

    def __init__(self, *words: str, lines: int = 24, root: bool = False, **environment: str | None) -> None:
        self.text = ""
        master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (lines, 100))
        given = {"TERM": "xterm", "COLUMNS": None, "LINES": None, "LESS": None, "LESSSECURE": None}
        given |= {"PAGER": None, "KDAMON_PAGER": None, "NO_COLOR": None, "FORCE_COLOR": None} | environment
        whole = {name: value for name, value in (ENVIRONMENT | given).items() if value is not None}
        self._master = master
        user = [] if root or os.geteuid() else AS_A_USER
        self.process = subprocess.Popen(
            ["setsid", "--ctty", "--wait", *user, *KDAMON, *words],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=whole,
        )
        os.close(slave)

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def read(self) -> bool:
        """Read what is there; False: it is the end."""
        try:
            data = os.read(self._master, 1 << 16)
        except OSError:
            data = b""
        self.text += data.decode("utf-8", "replace").replace("\r\n", "\n")
        return bool(data)

    def wait_for(self, text: str) -> None:
        while text not in self.text and self.read():
            pass
        assert text in self.text

    def end(self) -> int:
        """All output, and the exit status."""
        while self.read():
            pass
        os.close(self._master)
        return self.process.wait(60)


def shown(*words: str, **options: object) -> str:
    """What a terminal shows of kdamon without an error."""
    terminal = Terminal(*words, **options)  # type: ignore[arg-type]
    assert 0 == terminal.end(), terminal.text
    return terminal.text


def test_a_long_table_has_all_names(record: str, script: str) -> None:
    """And no line that sums up the others; the variable may have options."""
    text = shown("report", record, "where", KDAMON_PAGER=f"'{script}' -x 'a b'", PAGER="false")
    assert f"paged by {script} -x a b LESS=FRX LESSSECURE=1\n" in text
    assert NAMES == text.count("name ")
    assert "more names" not in text


def test_a_short_table_and_other_forms_are_not_paged(record: str, script: str, folder: Path) -> None:
    for words in (["summary"], ["where", "--json"], ["where", "-o", str(folder / "x")]):
        assert "paged by" not in shown("report", record, *words, KDAMON_PAGER=f"'{script}'", lines=50)
    assert "paged by" not in shown("report", record, "where", KDAMON_PAGER=f"'{script}'", TERM="dumb")
    assert "more names" in (folder / "x").read_text()


def test_pager_is_the_second_choice_and_the_user_knows_less(record: str, script: str) -> None:
    text = shown("diff", record, record, PAGER=f"'{script}'", LESS="S", LESSSECURE="0")
    assert f"paged by {script}  LESS=S LESSSECURE=0\n" in text
    assert NAMES == text.count("name ")


@pytest.mark.parametrize("pager", ["", "cat", "/nonexistent/pager", "'"])
def test_without_a_pager_the_rest_is_summed_up(record: str, pager: str) -> None:
    text = shown("report", record, "where", KDAMON_PAGER=pager)
    assert "more names" in text
    assert text.count("\n") <= 24


def test_a_program_that_is_none_loses_no_text(record: str, folder: Path) -> None:
    (folder / "none").write_bytes(b"\x00")
    (folder / "none").chmod(0o755)
    assert NAMES == shown("report", record, "where", KDAMON_PAGER=str(folder / "none")).count("name ")


@needs_root("to be root")
@needs_program("less", "less")
def test_root_uses_less_alone(record: str, script: str, folder: Path) -> None:
    """Whatever the variables say, and wherever another user's PATH leads."""
    (folder / "less").write_text(PAGER)
    (folder / "less").chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    for variables in ({"KDAMON_PAGER": f"'{script}'"}, {"PAGER": "sh -c 'echo paged by; cat'"}, {"PATH": path}):
        terminal = Terminal("report", record, "where", root=True, LESSSECURE="0", **variables)
        terminal.wait_for("name 1")
        terminal.press("!")
        terminal.wait_for("Command not available")
        terminal.press("\nq")
        assert 0 == terminal.end()
        assert "paged by" not in terminal.text


def test_a_user_who_leaves_early_is_no_error(record: str) -> None:
    assert "Broken" not in shown("report", record, "where", KDAMON_PAGER="true")


@needs_program("less", "less")
def test_less_shows_the_table_until_q(record: str) -> None:
    """Ctrl-C does not end it, and its commands that start programs are off."""
    terminal = Terminal("report", record, "where")
    terminal.wait_for("name 1")
    assert "more names" not in terminal.text
    terminal.press("!")
    terminal.wait_for("Command not available")
    terminal.press("\n")
    terminal.press("G")
    terminal.wait_for("(END)")
    assert f"name {NAMES - 1}" in terminal.text
    terminal.press("\x03")
    terminal.press("g")
    terminal.press("q")
    assert 0 == terminal.end()


@needs_program("less", "less")
def test_colours_pass_less(record: str) -> None:
    terminal = Terminal("report", record, "heatmap", lines=10)
    terminal.wait_for("\x1b[48;5;")
    terminal.press("q")
    assert 0 == terminal.end()
    assert "ESC[48" not in terminal.text


def test_the_handler_of_interrupts_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from kdamon_tools.output.pager import page

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("kdamon_tools.output.pager.terminal_size", lambda: (80, 2))
    assert page("1\n2\n3\n", ["true"])
    assert before is signal.getsignal(signal.SIGINT)
