# SPDX-License-Identifier: GPL-2.0-only
"""What each verb may still do once it has started: every thread of a real kdamon is looked at."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from kdamon.lib.capabilities import MONITORING, number_of
from kdamon_tools.report_files.report_file import RECORD_DTYPE
from tests.support.capabilities import needs_dev_fuse, needs_root
from tests.support.cli import ENVIRONMENT
from tests.support.paths import ROOT
from tests.support.terminals import Emulator

NOBODY = 65534
#: As another user's program, whose files in /proc that user owns.
TARGET = f"""
    import ctypes, mmap, os, sys
    os.setgroups([])
    os.setresgid({NOBODY}, {NOBODY}, {NOBODY})
    os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
    assert not ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
    memory = mmap.mmap(-1, 16 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[:] = bytes(len(memory))
    print("ready", flush=True)
    while True:
        memory[::4096] = b"x" * (len(memory) // 4096)
"""
#: Names of threads, and the capabilities of each: which may be had, and which programs can get.
Threads = list[tuple[str, str, str]]

pytestmark = [
    pytest.mark.real,
    needs_root("only root has capabilities to give up"),
    needs_dev_fuse,
]


def mask(*names: str) -> str:
    """Those of ``names`` that this machine gives to root, as /proc shows them."""
    own = int(status(os.getpid(), str(os.getpid()))["CapEff"], 16)
    return f"{sum({1 << number_of(name) for name in names}) & own:016x}"


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for something that is sure to come."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.05)


def status(pid: int, thread: str) -> dict[str, str]:
    """/proc's status of a thread."""
    lines = Path(f"/proc/{pid}/task/{thread}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


SERVING = mask(*MONITORING)
REPLACING = mask(*MONITORING, "CAP_FOWNER")
LOOKING = mask("CAP_SYS_PTRACE")
NONE = mask()


def held(pid: int) -> set[str]:
    """The capabilities that some thread of a process has, and whether it may gain others."""
    found = set()
    for thread in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            fields = status(pid, thread)
            lost = ("1", NONE, NONE) == tuple(fields[name] for name in ("NoNewPrivs", "CapInh", "CapAmb"))
            found.add(fields["CapPrm"] if lost else f"{fields['CapPrm']} and more by programs")
    return found


def stays(pid: int, *expected: str) -> bool:
    """Return whether the threads of a process have these and no other capabilities, and can gain none."""
    return set(expected) == held(pid)


def threads(pid: int) -> int:
    """How many threads a process has; 0 once it ended."""
    try:
        return len(os.listdir(f"/proc/{pid}/task"))
    except FileNotFoundError:
        return 0


def stopped_child(pid: int) -> str:
    """The child of a process that is stopped, or nothing."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        if "T (stopped)" == status(int(child), child)["State"]:
            return child
    return ""


@pytest.fixture
def target() -> Iterator[int]:
    """A process of another user that writes to its memory."""
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(TARGET)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert b"ready\n" == process.stdout.readline()
        try:
            yield process.pid
        finally:
            process.kill()


@contextlib.contextmanager
def kdamon(*words: str, **options: object) -> Iterator[subprocess.Popen[str]]:
    """A verb that runs; it is asked to end, and must have nothing to complain about."""
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": ENVIRONMENT, **options}
    with subprocess.Popen([sys.executable, "-m", "kdamon_tools", *words], **settings) as process:  # type: ignore[call-overload]
        try:
            yield process
            process.send_signal(signal.SIGTERM)
            _, complained = process.communicate(timeout=60)
            assert "capabilit" not in complained, complained
            assert 0 == process.returncode, complained
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("options", "kept", "expected"),
    [
        # Main thread, kdamond, and the one that watches pages.
        (("--pid", "{pid}"), 3, {SERVING}),
        (("--pid", "{pid}", "--primitive", "page_fault", "--reports-to", "{tmp}/r.npy"), 3, {SERVING, NONE}),
        (("--pid", "{pid}", "--reports", "{tmp}/r.sock"), 4, {SERVING, LOOKING}),
        (("--pid", "{pid}", "--output", "{theirs}/result"), 3, {REPLACING}),
        (("--pid", "{pid}", "--truth", "{theirs}/truth"), 3, {SERVING}),
        # One waits for the end of the helper process.
        (("--ops", "paddr"), 3, {SERVING}),
        (("--pid", "{pid}", "--ops", "reports", "--range", "0-1M", "--reports", "{tmp}/r.sock"), 3, {NONE, LOOKING}),
    ],
)
def test_run_keeps_what_monitoring_takes(
    tmp_path: Path, target: int, options: Sequence[str], kept: int, expected: set[str]
) -> None:
    """The thread that reads reports may look at processes, and one that writes the recording may do nothing.

    Files in a directory of another user take more, and some of what monitoring takes as well.
    """
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    os.chown(theirs, NOBODY, NOBODY)
    (theirs / "truth").write_text('{"event": "hot", "time": 0.0, "start": 4096, "end": 8192}\n')
    words = [word.format(pid=target, tmp=tmp_path, theirs=theirs) for word in options]
    with kdamon("run", "--quiet", *words) as process:
        until(lambda: threads(process.pid) == kept, f"{kept} threads")
        until(partial(stays, process.pid, *expected), f"{expected}")


def test_top_keeps_what_monitoring_takes(target: int) -> None:
    """Threads of the screen, too."""
    words = [sys.executable, "-m", "kdamon_tools", "top", "--pid", str(target)]
    terminal = Emulator(words, 80, 24, environment={"TEXTUAL_DISABLE_KITTY_KEY": "1"})
    try:
        terminal.wait(lambda: any("in memory" in line for line in terminal.lines()), "the screen")
        assert threads(terminal.pid) > 3
        until(partial(stays, terminal.pid, SERVING), SERVING)
        terminal.type("q")
        assert 0 == terminal.end()
    finally:
        terminal.close()


@pytest.mark.parametrize("primitive", ["page_table", "page_fault"])
def test_wss_keeps_what_monitoring_takes(target: int, primitive: str) -> None:
    """And that is enough for another user's process."""
    with kdamon("--debug", "wss", "--pid", str(target), "--primitive", primitive) as process:
        assert process.stderr is not None
        while "has begun" not in (line := process.stderr.readline()):
            assert line, "it ended"
        until(partial(stays, process.pid, SERVING), SERVING)


@pytest.mark.parametrize("primitive", ["page_table", "page_fault"])
def test_a_command_gets_all_that_it_would_have_had(tmp_path: Path, primitive: str) -> None:
    """run and exec give up nothing in its place, and it may gain privileges as set-user-ID programs do."""
    names = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs")
    own = status(os.getpid(), str(os.getpid()))
    script = f"cat /proc/self/status > {tmp_path}/part; mv {tmp_path}/part {tmp_path}/status; kill -STOP $$"
    kept = mask(*MONITORING, "CAP_KILL")
    # The thread that serves DAMON's events does nothing else.
    for words, expected in (
        (["run", "--quiet", "--primitive", primitive], {kept}),
        (["exec", "--no-reports"], {kept, NONE}),
    ):
        with kdamon(*words, "--", "sh", "-c", script) as process:
            until((tmp_path / "status").exists, "the command's status")
            until(partial(stays, process.pid, *expected), "what is kept")
            lines = (tmp_path / "status").read_text().splitlines()
            command = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
            assert {name: own[name] for name in names} == {name: command[name] for name in names}
            until(partial(stopped_child, process.pid), "a command that is stopped")
            os.kill(int(stopped_child(process.pid)), signal.SIGCONT)
            if words[0] == "exec":
                # Its status is the command's, which a signal would end.
                process.wait(60)
        (tmp_path / "status").unlink()


def test_root_of_a_container_keeps_what_its_neighbours_have(tmp_path: Path) -> None:
    """Without CAP_SYS_PTRACE it may look at processes that have no more capabilities; it gives up being one of them."""
    usual = "+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,+net_raw,+sys_chroot,+mknod,+setfcap"
    drop = ["setpriv", "--inh-caps=-all", f"--bounding-set=-all,{usual}"]
    options = ("--primitive", "page_fault", "--seconds", "3", "--json", "--reports", str(tmp_path / "r.sock"))
    with subprocess.Popen([*drop, "sleep", "600"]) as neighbour:
        try:
            done = subprocess.run(
                [*drop, sys.executable, "-m", "kdamon_tools", "run", "--pid", str(neighbour.pid), *options],
                env=ENVIRONMENT,
                capture_output=True,
                text=True,
                check=False,
            )
        finally:
            neighbour.kill()
    assert 0 == done.returncode, done.stderr
    assert json.loads(done.stdout)["snapshots"]


def test_replay_keeps_nothing(tmp_path: Path) -> None:
    """A recording may come from anywhere; all threads are without any capability while it is read."""
    pipe = tmp_path / "reports"
    os.mkfifo(pipe)
    with kdamon("replay", str(pipe), "--output", str(tmp_path / "result")) as process:
        with pipe.open("wb"):
            until(partial(stays, process.pid, NONE), "an end of all capabilities")
        _, complained = process.communicate(timeout=60)
        assert 1 == process.returncode, complained
        process.returncode = 0


def recorded() -> np.ndarray:
    """Some seconds of reports."""
    records = np.zeros(4000, RECORD_DTYPE)
    records["pid"], records["addr"], records["size"], records["nr_accesses"] = 7, 0x1000, 64, 1
    records["time"] = np.arange(4000) * 1_000_000
    return records


def test_replay_of_a_users_file_by_a_users_installation(tmp_path: Path) -> None:
    """All directories are private to another user, whose result takes the place of the earlier one."""
    home = tmp_path / "home"
    shutil.copytree(ROOT / "kdamon", home / "lib/kdamon")
    shutil.copytree(ROOT / "fs/kdamon_fs", home / "lib/kdamon_fs")
    shutil.copytree(ROOT / "tools/kdamon_tools", home / "lib/kdamon_tools")
    np.save(home / "r.npy", recorded())
    (home / "result").write_text("earlier\n")
    for directory, _, names in os.walk(home):
        for path in (directory, *(os.path.join(directory, name) for name in names)):
            os.chown(path, NOBODY, NOBODY)
            os.chmod(path, 0o700)
    for output in ([], ["--output", str(home / "result")]):
        done = subprocess.run(
            [sys.executable, "-m", "kdamon_tools", "replay", "--json", str(home / "r.npy"), *output],
            env=os.environ | {"PYTHONPATH": str(home / "lib"), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (0, "") == (done.returncode, done.stderr)
        shown = (home / "result").read_text() if output else done.stdout
        assert '"pid": 7' in shown or '"pid":7' in shown
    assert NOBODY == (home / "result").stat().st_uid


#: A kdamon that says which modules it loads once it gave up what may be needed to read them.
LOADING = """
    import sys
    from kdamon_tools import privileges
    privileges.begin()
    from kdamon.lib import capabilities
    give_up = capabilities.give_up_capabilities
    loaded = []
    def give_up_and_note(*keep, **options):
        loaded.append(set(sys.modules))
        give_up(*keep, **options)
    capabilities.give_up_capabilities = give_up_and_note
    from kdamon_tools import cli
    assert 0 == cli.main(sys.argv[1:])
    print(*sorted(set(sys.modules) - loaded[-1]), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "words",
    [
        ("replay", "{tmp}/r.npy", "--output", "{tmp}/out"),
        ("replay", "{data}/perf_script_mem.txt", "--json"),
        ("replay", "{data}/lackey_trace.txt", "--density"),
        ("run", "--pid", "{pid}", "--ops", "reports", "--range", "0-1M", "--seconds", "0.5", "--quiet"),
        ("run", "--pid", "{pid}", "--ops", "reports", "--range", "0-1M", "--seconds", "0.5", "--reports", "{tmp}/s"),
    ],
)
def test_nothing_is_loaded_once_nothing_is_kept(tmp_path: Path, words: Sequence[str]) -> None:
    """Modules may be below another user's directory, also those of Python itself."""
    np.save(tmp_path / "r.npy", recorded())
    places = {"tmp": tmp_path, "data": ROOT / "tests/tools/data", "pid": os.getpid()}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LOADING), *(word.format_map(places) for word in words)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (0, "") == (done.returncode, done.stderr.splitlines()[-1])


def test_doctor_finds_that_what_is_kept_is_enough() -> None:
    """It gives up as much as the other verbs, and then tries everything."""
    script = "import sys; from kdamon_tools import cli; sys.exit(cli.main(['doctor', '--json']))"
    keeping, having = (
        json.loads(subprocess.run([sys.executable, *words], env=ENVIRONMENT, capture_output=True, check=True).stdout)
        for words in (("-m", "kdamon_tools", "doctor", "--json"), ("-c", script))
    )
    assert (True, having["primitives"]) == (keeping["possible"], keeping["primitives"])
    found = [[(check["name"], check["available"]) for check in one["checks"]] for one in (having, keeping)]
    assert found[0] == found[1]


def test_all_that_mount_does_works_with_what_it_keeps(tmp_path: Path, target: int) -> None:
    """Faults, advice from without and from within, migration, physical memory, and a commit with another target."""
    top = tmp_path / "damon"
    top.mkdir()
    kdamonds = top / "admin/kdamonds"
    with kdamon("mount", "--reports", str(tmp_path / "r.sock"), str(top)) as process:
        until(kdamonds.exists, "the tree")
        until((tmp_path / "r.sock").exists, "the socket")
        (kdamonds / "nr_kdamonds").write_text("3")
        for number, ops in enumerate(("vaddr", "vaddr", "paddr")):
            (kdamonds / f"{number}/contexts/nr_contexts").write_text("1")
            context = kdamonds / f"{number}/contexts/0"
            (context / "operations").write_text(ops)
            (context / "targets/nr_targets").write_text("1")
            if ops == "vaddr":
                (context / "targets/0/pid_target").write_text(str(target))
        faults = kdamonds / "0/contexts/0/monitoring_attrs/sample/primitives"
        (faults / "page_table").write_text("N")
        (faults / "page_fault").write_text("Y")
        context = kdamonds / "1/contexts/0"
        actions = ("cold", "hugepage", "nohugepage", "migrate_cold")
        (context / "schemes/nr_schemes").write_text(str(len(actions)))
        for number, action in enumerate(actions):
            scheme = context / f"schemes/{number}"
            (scheme / "action").write_text(action)
            (scheme / "target_nid").write_text("0")
            for bound in ("sz", "nr_accesses", "age"):
                (scheme / f"access_pattern/{bound}/max").write_text(str(2**64 - 1))
        for number in range(3):
            (kdamonds / f"{number}/state").write_text("on")

        def applied(number: int) -> int:
            (kdamonds / "1/state").write_text("update_schemes_stats")
            return int((context / f"schemes/{number}/stats/sz_applied").read_text())

        for number, action in enumerate(actions[:3]):
            until(lambda: applied(number) > 0, action)  # noqa: B023 (at once)
        until(lambda: int((context / "schemes/3/stats/sz_tried").read_text()) > 0, "migration")
        with subprocess.Popen(["sleep", "600"], user=NOBODY, group=NOBODY, extra_groups=[]) as other:
            for number in (0, 1):
                targets = kdamonds / f"{number}/contexts/0/targets"
                (targets / "nr_targets").write_text("2")
                (targets / "0/pid_target").write_text(str(target))
                (targets / "1/pid_target").write_text(str(other.pid))
                (kdamonds / f"{number}/state").write_text("commit")
            other.kill()
        assert ["on\n"] * 3 == [(kdamonds / f"{number}/state").read_text() for number in range(3)]
        assert {SERVING, LOOKING} == held(process.pid)
    assert not os.path.ismount(top)
