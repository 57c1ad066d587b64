# SPDX-License-Identifier: GPL-2.0-only
"""Standard streams that are closed, full or broken pipes: what is shown never changes what goes on."""

from __future__ import annotations

import json
import os
import select
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.capabilities import needs_root
from tests.support.cli import DATA, ENVIRONMENT, KDAMON, REPORTS_ONLY

pytestmark = pytest.mark.real


BROKEN = {"closed": "{n}>&-", "full": "{n}>/dev/full", "broken": "{n}>&9"}

#: Command lines that need no rights, and their status where standard output can be written, or is not.
VERBS = {
    "run command": ([*REPORTS_ONLY, "--", "sh", "-c", "sleep 0.2; exit 7"], 7, 1),
    "run output": ([*REPORTS_ONLY, "--pid", "1", "--seconds", "0.1", "--output", "{tmp}/result"], 0, 0),
    "replay notes": (["replay", str(DATA / "perf_script_mem.txt"), "--json", "--debug"], 0, 1),
    "doctor": (["doctor"], -1, 1),
    "help": (["run", "--help"], 0, 1),
    "wrong": (["fly"], 2, 2),
}


@pytest.fixture
def broken_pipe() -> Iterator[int]:
    """The writing end of a pipe without a reader."""
    read, write = os.pipe()
    os.close(read)
    yield write
    os.close(write)


def shell(words: list[str], redirections: str, pipe: int, **streams: int) -> subprocess.CompletedProcess[bytes]:
    """Run kdamon with redirections of a shell, in which descriptor 9 is ``pipe``."""
    script = f'exec 9>&{pipe} {pipe}>&-; exec "$@" {redirections} 9>&-'
    command = ["bash", "-c", script, "bash", *KDAMON, *words]
    return subprocess.run(command, env=ENVIRONMENT, pass_fds=[pipe], check=False, **streams)  # type: ignore[call-overload]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("how", BROKEN)
def test_the_status_is_what_is_documented(verb: str, how: str, broken_pipe: int, tmp_path: Path) -> None:
    """Standard error never matters; standard output where the result goes there; no traceback, no status 120."""
    words, good, without_output = VERBS[verb]
    words = [word.format(tmp=tmp_path) for word in words]
    if good < 0:
        good = subprocess.run([*KDAMON, *words], env=ENVIRONMENT, capture_output=True, check=False).returncode
    cases = [((2,), good), ((1, 2), without_output)] + [((1,), without_output)] * (how == "full")
    for numbers, expected in cases:
        redirections = " ".join(BROKEN[how].format(n=n) for n in numbers) + (" <&-" if how == "closed" else "")
        done = shell(words, redirections, broken_pipe, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert expected == done.returncode, (numbers, done.stderr)
        assert b"Exception ignored" not in done.stderr
        if numbers == (1,) and how == "full" and without_output == 1 and good != 1:
            assert done.stderr.splitlines()[-1].startswith(b"kdamon: standard output: No space left on device")


@pytest.mark.parametrize("how", BROKEN)
def test_the_result_is_whole_without_standard_error(how: str, broken_pipe: int, tmp_path: Path) -> None:
    """And the command is left alone, and ends by itself."""
    ended = tmp_path / "ended"
    words = [*REPORTS_ONLY, "--json", "--", "sh", "-c", f"sleep 1.5; echo it did > {ended}; exit 5"]
    done = shell(words, BROKEN[how].format(n=2), broken_pipe, stdout=subprocess.PIPE)
    assert (5, "it did\n") == (done.returncode, ended.read_text())
    assert "the process ended" == json.loads(done.stdout)["note"]


def test_a_result_that_finds_no_room_is_shown_elsewhere(broken_pipe: int) -> None:
    """It may have taken hours."""
    words = [*REPORTS_ONLY, "--pid", "1", "--seconds", "0.1"]
    done = shell(words, ">/dev/full", broken_pipe, stderr=subprocess.PIPE)
    assert done.stderr.endswith(b": No space left on device; the result is on standard error instead\n")
    assert (1, True) == (done.returncode, b"monitored pid 1 for" in done.stderr)
    done = shell([*words, "--output", "/dev/full"], "", broken_pipe, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert (1, True) == (done.returncode, b"monitored pid 1 for" in done.stdout)
    assert done.stderr.splitlines()[-1].startswith(b"kdamon: /dev/full: No space left on device")


def test_nobody_has_to_read_standard_error() -> None:
    """A pager that waits for its user, or a terminal that was stopped, holds up nothing: the pipe is full already."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    filled = 0
    while select.select([], [write], [], 0)[1]:
        filled += os.write(write, bytes(4096))
    os.set_blocking(write, True)
    words = [*REPORTS_ONLY, "--pid", "1", "--seconds", "1.5", "--json"]
    try:
        done = subprocess.run(
            [*KDAMON, *words], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=write, timeout=60, check=False
        )
    finally:
        os.close(read)
        os.close(write)
    assert (0, "the time was over") == (done.returncode, json.loads(done.stdout)["note"])


@pytest.mark.parametrize("how", BROKEN)
@needs_root("namespaces need root")
@pytest.mark.usefixtures("fuse")
def test_a_tree_is_served_without_standard_streams(how: str, broken_pipe: int, tmp_path: Path) -> None:
    """``mount`` until it is unmounted; ``exec`` for its command, whose status it passes on."""
    redirections = " ".join(BROKEN[how].format(n=n) for n in (1, 2))
    read = f"cat /sys/kernel/mm/damon/admin/kdamonds/nr_kdamonds > {tmp_path}/read 2> {tmp_path}/error; exit 4"
    done = shell(["exec", "--no-reports", "--", "sh", "-c", read], redirections, broken_pipe)
    assert (4, "0\n") == (done.returncode, (tmp_path / "read").read_text()), (tmp_path / "error").read_text()
    tree = tmp_path / "tree"
    tree.mkdir()
    script = 'until [ -d "$1/admin" ]; do sleep 0.05; done; cat "$1/admin/kdamonds/nr_kdamonds"; umount "$1"'
    looking = subprocess.Popen(["sh", "-c", script, "sh", str(tree)], stdout=subprocess.PIPE)
    assert 0 == shell(["mount", "--no-reports", str(tree)], redirections, broken_pipe).returncode
    assert (b"0\n", 0) == (looking.communicate()[0], looking.returncode)
