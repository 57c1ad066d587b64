# SPDX-License-Identifier: GPL-2.0-only
"""Names hold any byte but NUL: one of each kind that kdamon reads or prints, with what parsers take for something else.

Bytes that are not UTF-8, what ends a line for str.splitlines(), a real newline, blanks, and what looks like a field.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kdamon.lib.mountinfo import mounts
from kdamon_tools.output.readable import json_text, readable
from kdamon_tools.process_tree import read_stat

pytestmark = pytest.mark.real


#: As long as a thread's name may be, so that the same one does for all.
NAME = b"\xff\r1 \x1c\n\xc2\x85\xe2\x80\xa8\te"
TEXT = os.fsdecode(NAME)
SHOWN = "\\xff\\x0d1 \\x1c\\x0a\\x85\\u2028\\x09e"

#: Names itself and a thread, maps a file, and writes its memory.
WORKLOAD = """
import ctypes, mmap, os, sys, threading, time
def name():
    ctypes.CDLL(None).prctl(15, os.fsencode(sys.argv[1]), 0, 0, 0)
def thread():
    name()
    while True: time.sleep(0.1)
name()
threading.Thread(target=thread, daemon=True).start()
with open(sys.argv[2], "r+b") as file:
    mapped = mmap.mmap(file.fileno(), 0)
memory = mmap.mmap(-1, 8 << 20)
print(flush=True)
end = time.monotonic() + 120
while time.monotonic() < end:
    memory[::4096] = b"x" * 2048
    mapped[:1]
    time.sleep(0.001)
"""


def needs(*, fuse: bool = False) -> None:
    """Skip where the machine does not let this process do what a test is about."""
    from kdamon.mm.linux.machine import linux_machine
    from kdamon_fs.fuse_binding import Lack, choose_binding, device_lack

    if os.geteuid():
        pytest.skip("the accesses of other processes, mounts and control groups need root")
    try:
        linux_machine().close()
    except OSError as error:
        pytest.skip(error.strerror or str(error))
    if fuse and device_lack() is not None:
        pytest.skip("kernel lacks: /dev/fuse")
    if fuse and isinstance(found := choose_binding(), Lack):
        pytest.skip(found.why)


def kdamon(
    *words: str | Path,
    environment: dict[str, str] | None = None,
    status: int = 0,
    interpreter: str | Path = sys.executable,
) -> str:
    """What kdamon prints; it says nothing of a bug, and its output is text."""
    done = subprocess.run(
        [interpreter, "-P", "-m", "kdamon_tools", *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
        check=False,
    )
    said, complained = done.stdout.decode(), done.stderr.decode()
    assert "internal error" not in complained, complained
    assert done.returncode == status, complained
    return said or complained


def load(text: str) -> Any:
    """A JSON document without surrogates, which strict readers refuse."""
    assert "\\ud" not in text
    document = json.loads(text)
    json.dumps(document, ensure_ascii=False).encode()
    return document


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory with such a name."""
    made = tmp_path / TEXT
    made.mkdir()
    return made


@pytest.fixture
def target(directory: Path) -> Iterator[int]:
    """A process that has such names wherever it can have one: program, thread, mapped file, argument, environment."""
    needs()
    program = directory / TEXT
    shutil.copy(os.path.realpath(sys.executable), program)
    file = directory / "file"
    file.write_bytes(bytes(4096))
    file = file.rename(directory / f"{TEXT} (deleted) 7f00-7f01 rw-p 0 0 0")
    environment = {**os.environ, "PYTHONHOME": sys.base_prefix, TEXT: TEXT}
    process = subprocess.Popen([program, "-S", "-c", WORKLOAD, TEXT, file], stdout=subprocess.PIPE, env=environment)
    try:
        assert process.stdout is not None
        assert b"\n" == process.stdout.readline()
        yield process.pid
    finally:
        process.kill()
        process.wait()


def test_a_process_is_monitored_whatever_its_names_are(target: int, directory: Path) -> None:
    """By accessed bits, with a socket for reports; the file gets the result."""
    output = directory / "o\udcfe.json"
    words = ("run", "--pid", str(target), "--seconds", "2", "--quiet", "--json", "--output", output)
    kdamon(*words, "--reports", directory / "s\udcfe")
    assert load(output.read_text())["summary"]["hot_bytes"] > 1 << 20


def test_faults_of_such_a_process_are_recorded_and_replayed(target: int, directory: Path) -> None:
    """All that asks a process for its userfaultfd reads its names; and kdamon's own interpreter has such a name."""
    recording = directory / "r\udcfe.npy"
    environment = {"PYTHONHOME": sys.base_prefix}
    words = ("run", "--pid", str(target), "--primitive", "page_fault", "--seconds", "2", "--quiet", "--json")
    said = kdamon(*words, "--reports-to", recording, interpreter=directory / TEXT, environment=environment)
    assert load(said)["summary"]["hot_bytes"] > 1 << 20
    assert load(kdamon("replay", recording, "--json"))["snapshots"]


def test_a_command_has_such_words_and_shows_them(directory: Path) -> None:
    """In JSON a byte that is no text is spelled out, and so it is in a sentence."""
    needs()
    program = directory / TEXT
    program.symlink_to(shutil.which("sleep") or "/bin/sleep")
    environment = {"PATH": f"{directory}:{os.environ['PATH']}", TEXT: TEXT}
    words = ("run", "--quiet", "--json", "--")
    document = load(kdamon(*words, TEXT, "1", environment=environment))
    assert document["config"]["command"] == [TEXT.replace("\udcff", "\\xff"), "1"]
    document = load(kdamon("run", "--primitive", "page_fault", *words[1:], TEXT, "1", environment=environment))
    assert "1" == document["config"]["command"][1]
    assert SHOWN in kdamon(*words, f"/nowhere/{TEXT}", status=1)


@pytest.mark.parametrize(
    "words",
    [
        ("run", "--pid", "1", "--output", f"/nowhere/{TEXT}"),
        ("run", "--pid", "1", "--reports-to", f"/nowhere/{TEXT}"),
        ("run", "--quiet", "--truth", f"/nowhere/{TEXT}", "--", "true"),
        ("replay", f"/nowhere/{TEXT}"),
        ("mount", f"/nowhere/{TEXT}"),
        ("mount", TEXT),
    ],
)
def test_a_sentence_on_such_a_name_is_one_line(words: tuple[str, ...]) -> None:
    """And the name can be read from it."""
    needs(fuse=True)
    said = kdamon(*words, status=2 if words[0] == "run" else 1)
    assert 1 == said.count("\n")
    assert SHOWN in said


@pytest.mark.parametrize("kill", [False, True])
def test_such_a_directory_can_be_mounted_on(directory: Path, kill: bool) -> None:
    """It is found among the mounts, and after SIGKILL the mount goes."""
    needs(fuse=True)
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "kdamon_tools", "mount", directory],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        assert f"the tree is at {readable(str(directory))}/admin" in process.stderr.readline()
        assert ["fuse.kdamon"] == [entry.fstype for entry in mounts() if entry.target == str(directory)]
        assert "another kdamon serves" in kdamon("mount", directory, status=1)
        assert "0\n" == (directory / "admin/kdamonds/nr_kdamonds").read_text()
        process.send_signal(signal.SIGKILL if kill else signal.SIGINT)
        process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    deadline = time.monotonic() + 30
    while any(entry.target == str(directory) for entry in mounts()):
        assert time.monotonic() < deadline, "the mount stays"
        time.sleep(0.05)


def test_a_command_in_the_namespace_gets_such_names(directory: Path) -> None:
    """As they are: of the directory for temporary files, of one on PATH, of its home, its argument and variables."""
    needs(fuse=True)
    environment = {"TMPDIR": str(directory), "PATH": f"{directory}:{os.environ['PATH']}", "HOME": str(directory)}
    script = 'grep -q "fuse.kdamon" /proc/mounts && [ "$1" = "$2" ] && [ "$TMPDIR" = "$HOME" ] && perf --version'
    said = kdamon("exec", "--", "sh", "-c", script, "sh", TEXT, TEXT, environment=environment)
    assert said.startswith("perf version ")
    assert [] == list(directory.iterdir())
    assert SHOWN in kdamon("exec", "--", TEXT, environment=environment, status=127)


@pytest.fixture
def group() -> Iterator[tuple[str, Path]]:
    """A control group with such a name, but for the newline, which the kernel refuses: its path and its directory."""
    needs(fuse=True)
    for entry in mounts():
        if entry.fstype == "cgroup2":
            path = Path(entry.target, TEXT.replace("\n", "") + str(os.getpid()))
            path.mkdir()
            yield f"{entry.root.rstrip('/')}/{path.name}", path
            path.rmdir()
            return
    pytest.skip("kernel lacks: control groups of the second version, or nobody mounted them")


def test_a_control_group_with_such_a_name_is_followed(group: tuple[str, Path], tmp_path: Path) -> None:
    """The tree takes its bytes, gives them back, and finds its processes."""
    path, directory = group
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            (directory / "cgroup.procs").write_text(str(process.pid))
            script = """
                cd /sys/module/damon_stat/parameters; printf '%s\\n' "$1" > monitor_cgroup; cat monitor_cgroup
                echo Y > enabled; cat enabled kdamond_pid; echo N > enabled"""
            said = kdamon_bytes("exec", "--", "sh", "-c", script, "sh", path, home=tmp_path)
        finally:
            process.kill()
    *name, enabled, pid = said.splitlines(keepends=True)
    assert b"".join(name) == os.fsencode(path) + b"\n"
    assert b"Y\n" == enabled
    assert int(pid) > 0


def kdamon_bytes(*words: str, home: Path) -> bytes:
    """What a command prints, byte by byte."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "kdamon_tools", *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HOME": str(home)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        timeout=120,
        check=True,
    ).stdout


def test_a_control_group_mount_with_such_a_name_is_found(tmp_path: Path) -> None:
    """Where that is the only one."""
    needs()
    place = tmp_path / TEXT
    place.mkdir()
    question = """
import os, sys
from kdamon.mm.proc import cgroup
from kdamon.lib.mountinfo import mounts
(entry,) = (entry for entry in mounts() if entry.fstype == "cgroup2")
assert os.fsencode(entry.target) == os.fsencode(sys.argv[1]), entry
print(len(cgroup.processes("/")) > 0)
"""
    script = """
        for place in $(grep -w cgroup2 /proc/mounts | cut -d' ' -f2); do umount -l "$place"; done
        mount -t cgroup2 none "$1" || exit 77
        exec "$2" -P -c "$3" "$1"
    """
    done = subprocess.run(
        ["unshare", "--mount", "--cgroup", "sh", "-c", script, "sh", place, sys.executable, question],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode == 77:
        pytest.skip("kernel lacks: control groups of the second version")
    assert "True\n" == done.stdout, done.stderr


def test_readable_text_and_json() -> None:
    """What stands for a byte and what moves a cursor is spelled out; all other text is left alone."""
    assert SHOWN == readable(TEXT)
    assert "a\N{DECIDUOUS TREE}é\\ \\x1b[2J" == readable("a\N{DECIDUOUS TREE}é\\ \x1b[2J")
    document = {TEXT: [TEXT, ("é\N{DECIDUOUS TREE}",), 1, None], "\ud800": True}
    text = TEXT.replace("\udcff", "\\xff")
    assert json.loads(json_text(document)) == {text: [text, ["é\N{DECIDUOUS TREE}"], 1, None], "\\ud800": True}


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_output_in_any_encoding(encoding: str) -> None:
    """What it has no character for is spelled out, and the rest is shown."""
    needs()
    environment = {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = kdamon_any("doctor", environment=environment)
    assert b"this machine can monitor" in done
    assert kdamon_any("run", "--quiet", "--", "sleep", "1", environment=environment)


def kdamon_any(*words: str, environment: dict[str, str]) -> bytes:
    """What kdamon prints in another encoding."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "kdamon_tools", *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        timeout=120,
        check=True,
    ).stdout


def test_the_name_of_a_hostile_process_does_nothing_to_a_terminal() -> None:
    """Another user's process has a name that would set a title, clear the screen or turn the text beside it around."""
    script = """
import ctypes, sys, time
ctypes.CDLL(None).prctl(15, sys.argv[1].encode() + b"\\x1b[2J\\x07\\x9d\\xff", 0, 0, 0)
print(flush=True)
time.sleep(60)
"""
    words = ["/usr/bin/python3", "-c", script, "\u202e\u2066"]
    with subprocess.Popen(words, user=65534, group=65534, extra_groups=[], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert b"\n" == process.stdout.readline()
            stat = read_stat(process.pid)
        finally:
            process.kill()
    assert stat is not None
    assert "\\u202e\\u2066\\x1b[2J\\x07\\x9d\\xff" == stat.name
