# SPDX-License-Identifier: GPL-2.0-only
"""A command in the private namespace sees the tree at the kernel's place, and no other process sees any of it.

Commands write below /sys/kernel/mm/damon only after they made sure that a kdamon is mounted there.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.capabilities import (
    needs_damon_sysfs,
    needs_dev_fuse,
    needs_libfuse,
    needs_mount_namespace,
    needs_root,
)
from tests.support.paths import SUPPORT

pytestmark = [
    pytest.mark.real,
    needs_dev_fuse,
    needs_libfuse,
    needs_root("a mount namespace needs root"),
    needs_mount_namespace,
]


HERE = Path(__file__).parent
DAMON = "/sys/kernel/mm/damon"
MODULES = ("damon_lru_sort", "damon_reclaim", "damon_stat")
MADE_SURE = f"grep -q '^kdamon {DAMON} fuse.kdamon ' /proc/mounts || exit 99\n"


#: For tests whose outcome depends on libfuse.
by_each_binding = pytest.mark.usefixtures("fuse_binding")

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home directory with a file of its user."""
    directory = tmp_path / "home"
    directory.mkdir()
    (directory / "notes").write_text("mine\n")
    return directory


@pytest.fixture
def start(home: Path) -> Iterator[Start]:
    """A starter of commands in a namespace; what is left of them is killed."""
    processes: list[subprocess.Popen[str]] = []

    def begin(
        *command: str, abi: str = "7.3", before: tuple[str, ...] = (), **options: object
    ) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HOME": str(home)}
        settings = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        program = [*before, sys.executable, str(SUPPORT / "run_within.py"), abi, *command]
        processes.append(subprocess.Popen(program, text=True, env=environment, **settings))  # type: ignore[call-overload]
        return processes[-1]

    yield begin
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.wait()


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit status and output."""
    said, _ = process.communicate(timeout=60)
    return process.returncode, said


def outside() -> tuple[list[str], list[str]]:
    """What must not change: the mounts in /sys and the machine's own tree; others may mount things elsewhere."""
    tree = sorted(os.listdir(f"{DAMON}/admin/kdamonds")) if os.path.isdir(f"{DAMON}/admin") else []
    # Names of mounts elsewhere may hold what text takes for the end of a line.
    mounts = Path("/proc/self/mountinfo").read_bytes().decode(errors="surrogateescape").rstrip("\n").split("\n")
    return [line for line in mounts if line.split(" ")[4].startswith("/sys")], tree


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for something that is sure to come."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.02)


@by_each_binding
def test_the_command_finds_the_tree_at_the_kernels_place_and_nobody_else_does(start: Start) -> None:
    """It starts, monitors and stops there; the machine's mounts and its own tree stay as they were."""
    before = outside()
    script = f"""{MADE_SURE}
        cd {DAMON}/admin/kdamonds; echo 2 > nr_kdamonds; ls; cd 0
        echo 1 > contexts/nr_contexts; cd contexts/0
        echo 1 > targets/nr_targets; echo 150 > targets/0/pid_target; cd ../..
        echo on > state; cat state; echo go; read line; echo off > state; cat state"""
    process = start("sh", "-c", script, stdin=subprocess.PIPE)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(5)]
    assert ["0\n", "1\n", "nr_kdamonds\n", "on\n", "go\n"] == lines
    assert outside() == before
    said, _ = process.communicate("\n", timeout=30)
    assert (0, "off\n") == (process.returncode, said)
    assert outside() == before


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (("true",), 0),
        (("sh", "-c", "exit 7"), 7),
        (("sh", "-c", "kill -TERM $$"), 128 + signal.SIGTERM),
        (("sh", "-c", "kill -KILL $$"), 128 + signal.SIGKILL),
        (("there-is-no-such-command",), 127),
        (("/etc/passwd",), 126),
        (("",), 127),
    ],
)
def test_the_exit_status_is_the_commands_as_a_shell_has_it(start: Start, command: tuple[str, ...], status: int) -> None:
    """128 + number for a signal, 127 and 126 for what cannot be run."""
    assert finish(start(*command))[0] == status


def test_older_kernels_files_can_be_asked_for(start: Start) -> None:
    """The abi reaches the tree."""
    script = f"{MADE_SURE} cd {DAMON}/admin/kdamonds; echo 1 > nr_kdamonds; ls 0"
    assert (0, "contexts\npid\nstate\n") == finish(start("sh", "-c", script, abi="6.12"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_go_to_the_command(start: Start, number: signal.Signals) -> None:
    """Which may handle them; its status is what counts."""
    name = number.name.removeprefix("SIG")
    process = start("bash", "-c", f"trap 'echo {name}; exit 5' {name}; echo ready; while :; do sleep 0.05; done")
    assert process.stdout is not None
    assert "ready\n" == process.stdout.readline()
    process.send_signal(number)
    assert finish(process) == (5, f"{name}\n")


def test_a_terminals_interrupt_reaches_the_command_once(start: Start) -> None:
    """The terminal sends it to the command as well, so it is not passed on."""
    master, slave = pty.openpty()
    script = "n=0; trap 'n=$((n+1))' INT; echo ready; for i in 1 2 3 4 5 6 7 8; do sleep 0.1; done; echo got $n"
    process = start(
        *("bash", "-c", script),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(slave)
    said = b""
    while b"ready" not in said:
        said += os.read(master, 1000)
    os.write(master, b"\x03")
    while b"got" not in said:
        said += os.read(master, 1000)
    assert re.search(rb"got 1\b", said)
    assert 0 == process.wait(30)
    os.close(master)


@by_each_binding
def test_the_command_does_not_outlive_a_kdamon_that_is_killed(start: Start) -> None:
    """And no mount is left."""
    before = outside()
    process = start("sh", "-c", f"{MADE_SURE} echo $$; exec sleep 600")
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    process.kill()
    process.wait()
    until(lambda: not os.path.exists(f"/proc/{pid}"), "the end of the command")
    assert outside() == before


@by_each_binding
@pytest.mark.parametrize("verb", ["exec", "mount"])
def test_what_serves_the_tree_does_not_ask_it(verb: str, home: Path, tmp_path: Path) -> None:
    """Killed while it waits for its own answer, it would hang for ever: the request keeps the FUSE device open."""
    (tmp_path / "tree").mkdir()
    words = ["unshare", "--mount", sys.executable, str(SUPPORT / "own_requests.py"), verb, str(tmp_path / "tree")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HOME": str(home)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert (0, "") == (done.returncode, done.stderr)
    asked = done.stdout.splitlines()
    assert [] == [line for line in asked if line.startswith("own ")]
    assert "other read /admin/kdamonds/nr_kdamonds" in asked


@by_each_binding
def test_what_the_command_leaves_behind_loses_the_tree(start: Start) -> None:
    """A background process lives on, without the tree."""
    process = start("sh", "-c", f"{MADE_SURE} sleep 600 > /dev/null 2>&1 & echo $!")
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    try:
        assert 0 == finish(process)[0]
        assert b"kdamon /sys" not in Path(f"/proc/{pid}/mounts").read_bytes()
    finally:
        os.kill(pid, signal.SIGKILL)


#: To be left in the background: says at what moment it looks, and what it finds then. It writes nothing anywhere.
LOOKS = """
    look() {
        echo $1; ls -A /sys/kernel/mm/damon; ls /sys/module/damon_*
        [ -e /sys/kernel/mm/damon/admin ] && echo OPEN
    }
    until [ -e go ]; do sleep 0.05; done
    look after
    for place in /sys/kernel/mm/damon /sys/module/damon_*; do while umount $place; do :; done; done
    look unmounted
    touch /sys/kernel/mm/damon/file /sys/kernel/mm/file /sys/module/file && echo WRITABLE
    mv said.new said
"""


@needs_damon_sysfs
@by_each_binding
@pytest.mark.parametrize("end", ["exit", "umount", "kill"])
def test_what_outlives_the_tree_does_not_find_the_machines(start: Start, tmp_path: Path, end: str) -> None:
    """Neither at the places of the tree, nor below them, nor with kdamon killed; the directories are empty."""
    before = outside()
    (tmp_path / "looks.sh").write_text(LOOKS)
    unmount = f"umount -l {DAMON}" if end == "umount" else "true"
    script = f"""{MADE_SURE} cd {tmp_path}
        setsid sh looks.sh > said.new 2> /dev/null < /dev/null &
        {unmount}; echo ready; read line"""
    process = start("sh", "-c", script, stdin=subprocess.PIPE)
    assert process.stdout is not None
    assert "ready\n" == process.stdout.readline()
    if end == "kill":
        process.kill()
        process.wait()
    else:
        process.communicate("\n", timeout=60)
    (tmp_path / "go").touch()
    until((tmp_path / "said").exists, "what is left")
    empty = "".join(f"/sys/module/{name}:\n\n" for name in MODULES).removesuffix("\n")
    # The mount that kdamon leaves when it is killed is dead: nothing can be listed in it.
    dead = end == "kill"
    assert (tmp_path / "said").read_text() == f"after\n{'' if dead else empty}unmounted\n{empty}"
    assert outside() == before


def test_the_machines_modules_do_not_show_up_in_any_version(start: Start, tmp_path: Path) -> None:
    """Neither those that the version had not yet, nor those that kdamon has not at all."""
    wrap = covering(
        tmp_path, "/sys/module", "damon_stat/parameters", "damon_sample_wsse/parameters", "damon_new", "zoo"
    )
    before = outside()
    for abi, names in (("6.12", {"damon_lru_sort", "damon_reclaim"}), ("next", {*MODULES})):
        status, said = finish(start("sh", "-c", f"{MADE_SURE} ls /sys/module", abi=abi, before=wrap))
        assert 0 == status
        found = set(said.split())
        assert {name for name in found if name.startswith("damon")} == names
        assert "zoo" in found
    assert outside() == before


@needs_damon_sysfs
def test_another_sysfs_does_not_lead_to_the_machines_tree(start: Start, tmp_path: Path) -> None:
    """As a container's directory has one."""
    wrapper, other = tmp_path / "outer.sh", tmp_path / "sys"
    other.mkdir()
    wrapper.write_text(f'#!/bin/bash -e\nmount -t sysfs sysfs {other}\nexec "$@"\n')
    wrap = ("unshare", "--mount", "--propagation", "private", "bash", str(wrapper))
    script = f"{MADE_SURE} ls -A {other}/kernel/mm/damon | wc -l; ls {other}/kernel | grep -c '^mm$'"
    assert (0, "0\n1\n") == finish(start("sh", "-c", script, before=wrap))


@needs_damon_sysfs
@pytest.mark.parametrize("directory", ["/sys/kernel/mm", DAMON, f"{DAMON}/admin/kdamonds", "/sys/module"])
def test_a_working_directory_does_not_lead_to_the_machines_tree(start: Start, directory: str) -> None:
    """Where the command begins: it is found again by its name."""
    script = f"{MADE_SURE} pwd; [ . -ef {directory} ] && echo same"
    assert finish(start("sh", "-c", script, cwd=directory)) == (0, f"{directory}\nsame\n")


def test_a_working_directory_that_the_tree_lacks_is_refused(start: Start) -> None:
    """Rather than that the command begins in the machine's."""
    directory = "/sys/kernel/mm/damon/admin/kdamonds/0"
    if not os.path.isdir(directory):
        pytest.skip("kernel lacks: a kdamond of the machine's own")
    process = start("true", cwd=directory)
    _, complained = process.communicate(timeout=60)
    assert 126 == process.returncode
    assert f"the working directory, {directory}, does not exist in the tree" in complained


def test_a_working_directory_that_was_removed_is_no_obstacle(start: Start, tmp_path: Path) -> None:
    """As without kdamon."""
    gone = tmp_path / "gone"
    gone.mkdir()
    process = start("sh", "-c", "cat; stat -c %h .", cwd=gone, stdin=subprocess.PIPE)
    gone.rmdir()
    assert "go\n0\n" == process.communicate("go\n", timeout=60)[0]
    assert 0 == process.returncode


@needs_damon_sysfs
@pytest.mark.parametrize("part", ["kernel", "kernel/mm", "kernel/mm/damon", "kernel/mm/damon/admin"])
def test_a_part_of_a_sysfs_does_not_lead_to_the_machines_tree(start: Start, tmp_path: Path, part: str) -> None:
    """Mounted elsewhere."""
    wrapper, other = tmp_path / "outer.sh", tmp_path / "part"
    other.mkdir()
    wrapper.write_text(f'#!/bin/bash -e\nmount --bind /sys/{part} {other}\nexec "$@"\n')
    wrap = ("unshare", "--mount", "--propagation", "private", "bash", str(wrapper))
    assert (0, "") == finish(start("sh", "-c", f"find {other} -name kdamonds", before=wrap))


def covering(directory: Path, place: str, *made: str) -> tuple[str, ...]:
    """A wrapper that runs a command where ``place`` has directories ``made`` in addition, and none of DAMON else."""
    script = directory / "covering.sh"
    script.write_text(
        f"""#!/bin/bash -e
        [ "$(readlink /proc/self/ns/mnt)" != "$OUTSIDE" ]
        cover=$(mktemp -d); mount -t tmpfs tmpfs $cover
        for child in {place}/*; do
            name=${{child##*/}}
            case $name in damon*) continue;; esac
            if [ -d $child ]; then mkdir $cover/$name; else touch $cover/$name; fi
            mount --bind $child $cover/$name
        done
        (cd $cover; [ -z "{" ".join(made)}" ] || mkdir -p {" ".join(made)})
        mount --move $cover {place}; rmdir $cover
        exec "$@"
        """
    )
    outer = os.readlink("/proc/self/ns/mnt")
    return ("unshare", "--mount", "--propagation", "private", "env", f"OUTSIDE={outer}", "bash", str(script))


def test_a_kernel_without_damon_gets_a_place_for_the_tree(start: Start, tmp_path: Path) -> None:
    """Beside everything else that is in the directory."""
    before = outside()
    others = [name for name in os.listdir("/sys/kernel/mm") if name != "damon"]
    wrap = covering(tmp_path, "/sys/kernel/mm")
    script = f"{MADE_SURE} ls /sys/kernel/mm; cat {DAMON}/admin/kdamonds/nr_kdamonds; ls /sys/kernel/mm/*/ | wc -l"
    status, said = finish(start("sh", "-c", script, before=wrap))
    assert 0 == status
    *names, number, _ = said.splitlines()
    assert sorted(names) == sorted(["damon", *others])
    assert "0" == number
    assert outside() == before


def test_what_others_unmount_does_not_stay_in_use(start: Start, tmp_path: Path) -> None:
    """Where the machine's mounts are shared, as systemd makes them."""
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    outer = tmp_path / "outer.sh"
    outer.write_text(
        f"""#!/bin/bash -e
        mount -t tmpfs tmpfs {mounted}
        "$@" &
        until [ -e {tmp_path}/running ]; do sleep 0.05; done
        umount {mounted}; touch {tmp_path}/unmounted; wait $!
        """
    )
    wrap = ("unshare", "--mount", "--propagation", "shared", "bash", str(outer))
    script = f"""{MADE_SURE}
        grep -c {mounted} /proc/mounts; touch {tmp_path}/running
        until [ -e {tmp_path}/unmounted ]; do sleep 0.05; done
        grep -c {mounted} /proc/mounts"""
    assert "1\n0\n" == finish(start("sh", "-c", script, before=wrap))[1]


@by_each_binding
def test_one_command_can_run_another(start: Start) -> None:
    """Each has a tree of its own."""
    if shutil.which("env") is None:
        pytest.skip("env(1) is not installed")
    tree = f"{DAMON}/admin/kdamonds"
    inner = (
        f"{sys.executable} {SUPPORT / 'run_within.py'} 7.3 sh -c 'echo 5 > {tree}/nr_kdamonds; cat {tree}/nr_kdamonds'"
    )
    script = f"{MADE_SURE} echo 3 > {tree}/nr_kdamonds; {inner}; cat {tree}/nr_kdamonds"
    assert (0, "5\n3\n") == finish(start("sh", "-c", script))


# What damo needs.


def test_a_tracefs_is_there(start: Start) -> None:
    """damo does not start without one that it can read."""
    script = f"{MADE_SURE} set -- $(grep -w tracefs /proc/mounts | head -1); head -c1 $2/available_events | wc -c"
    assert (0, "1\n") == finish(start("sh", "-c", script))


@pytest.mark.parametrize("debugfs", [False, True])
def test_a_tracefs_names_the_events_that_are_served_and_has_none_of_the_machines(
    start: Start, tmp_path: Path, debugfs: bool
) -> None:
    """In each place where one is mounted; nothing can enable the machine's either."""
    wrapper = tmp_path / "outer.sh"
    wrapper.write_text('#!/bin/bash -e\nmount -t debugfs debugfs /sys/kernel/debug\nexec "$@"\n')
    wrap = ("unshare", "--mount", "--propagation", "private", "bash", str(wrapper)) if debugfs else ()
    script = f"""{MADE_SURE}
        for place in $(grep -w tracefs /proc/mounts | cut -d' ' -f2); do
            cd $place; ls -d events/sched; ls -A events/damon instances; grep damon: available_events
            for name in set_event events/enable instances; do [ -w $name ] && echo CAN; done; true
        done"""
    status, said = finish(start("sh", "-c", script, abi="6.12", before=wrap))
    assert 0 == status
    shown = "events/sched\nevents/damon:\n\ninstances:\ndamon:damon_aggregated\ndamon:damos_before_apply\n"
    assert "" == said.replace(shown, "")
    assert said


RECORD = f"""{MADE_SURE}
    cd {DAMON}/admin/kdamonds; echo 1 > nr_kdamonds; cd 0; echo 1 > contexts/nr_contexts
    echo 1 > contexts/0/targets/nr_targets; echo 150 > contexts/0/targets/0/pid_target; echo on > state
    cat pid; cd "$HOME"
"""


def test_perf_records_the_trees_events(start: Start, home: Path) -> None:
    """As damo calls it: a whole table of regions for each aggregation interval, in order, with the kdamond's pid."""
    script = f"""{RECORD}
        perf record -a -o events -e damon:damon_aggregated -e damon:damon_monitor_intervals_tune & recorder=$!
        until [ "$(wc -l < events)" -gt 30 ]; do sleep 0.1; done
        kill -INT $recorder; wait $recorder || exit 98
        perf script --force -i events > text"""
    # A shell's background processes ignore SIGINT, but the wanted handler is the program's own.
    status, said = finish(start("bash", "-m", "-c", script))
    assert 0 == status
    pid = said.split()[0]
    lines = (home / "text").read_text().splitlines()
    begin = r" kdamond\.0 (\d+) \[\d{3}\] (\d+\.\d{6}): damon:damon_aggregated: "
    found = [re.fullmatch(begin + r"target_id=0 nr_regions=(\d+) (\d+)-(\d+): \d+ \d+", line) for line in lines]
    events = [match.groups() for match in found if match]
    assert len(events) == len(lines)
    assert {event[0] for event in events} == {pid}
    tables: dict[str, list[tuple[str, ...]]] = {}
    for event in events:
        tables.setdefault(event[1], []).append(event)
    assert list(tables) == sorted(tables, key=float)
    for table in tables.values():
        assert [int(event[2]) for event in table] == [len(table)] * len(table)
        bounds = [(int(event[3]), int(event[4])) for event in table]
        assert bounds == sorted(bounds)
        assert all(start < end for start, end in bounds)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("stat -e damon:damon_aggregated true", "stat does not"),
        ("record -e damon:damos_esz -e cycles true", "record cycles with a separate perf command"),
        ("record -e damon:damos_esz,cycles true", "record cycles with a separate perf command"),
        ("record -e damon:nothing true", "DAMON has no event nothing here; there are damon_aggregated, "),
        ("record -g -e damon:damos_esz true", "which does not support -g for them"),
        ("record -o /nowhere/file -edamon:damos_esz true", "/nowhere/file: No such file or directory"),
        ("report --input=events", "'perf script' prints them"),
        ("script -F time -i events", "which does not support -F for them"),
    ],
)
def test_perf_refuses_what_it_would_record_wrongly(start: Start, words: str, said: str) -> None:
    """In one sentence."""
    script = f"perf record -q --output events --event=damon:damos_esz -- true; perf {words} 2>&1"
    status, answer = finish(start("sh", "-c", f'cd "$HOME"; {script}'))
    assert 1 == status
    assert answer.startswith("perf: ")
    assert said in answer
    assert 1 == answer.count("\n")


def test_perf_is_the_machines_for_everything_else(start: Start, home: Path) -> None:
    """Where there is one; without it the sentence says so, and the version can be asked for."""
    machines = home / "bin" / "perf"
    machines.parent.mkdir()
    machines.write_text('#!/bin/sh\necho the machine "$@"\n')
    machines.chmod(0o755)
    script = f"""
        PATH=${{PATH%%:*}}:{machines.parent}:$PATH
        perf record -o x.profile; perf --version; perf script -i notes; perf
        PATH=${{PATH%%:*}}
        perf --version; perf record 2>&1"""
    status, said = finish(start("sh", "-c", f'cd "$HOME"; {script}'))
    assert said.splitlines() == [
        *("the machine record -o x.profile", "the machine --version", "the machine script -i notes", "the machine"),
        "perf version kdamon",
        "perf: it is not installed; kdamon serves DAMON's events alone",
    ]
    assert 1 == status


def test_perf_says_that_kdamon_ended(start: Start, home: Path) -> None:
    """To what is left of the command."""
    script = """cd "$HOME"; (
        until [ -e go ]; do sleep 0.05; done
        perf record -e damon:damos_esz true; mv said.new said) > said.new 2>&1 < /dev/null &"""
    assert 0 == finish(start("sh", "-c", script))[0]
    (home / "go").touch()
    until((home / "said").exists, "what perf says")
    assert "perf: kdamon exec serves no events any more (Connection refused)\n" == (home / "said").read_text()


@pytest.mark.parametrize("cached", [None, "what damo knows about the machine\n"])
def test_damos_cache_is_private_and_the_rest_of_home_is_not(start: Start, home: Path, cached: str | None) -> None:
    """It begins without what it held for each command; the user's own is neither seen nor changed nor made."""
    cache = home / ".damo.sysinfo"
    if cached is not None:
        cache.write_text(cached)
    script = (
        f"{MADE_SURE} grep -c 'damo knows' ~/.damo.sysinfo; echo tree > ~/.damo.sysinfo; cat ~/.damo.sysinfo ~/notes"
        "; echo x > ~/new"
    )
    assert (0, "0\ntree\nmine\n") == finish(start("sh", "-c", script))
    assert (cache.read_text() if cache.exists() else None) == cached
    assert "x\n" == (home / "new").read_text()


def test_nothing_is_left_in_home_when_kdamon_is_killed(start: Start, home: Path) -> None:
    """The place for damo's cache is taken away again."""
    process = start("sh", "-c", f"{MADE_SURE} echo tree > ~/.damo.sysinfo; echo ready; exec sleep 600")
    assert process.stdout is not None
    assert "ready\n" == process.stdout.readline()
    process.kill()
    process.wait()
    until(lambda: sorted(os.listdir(home)) == ["notes"], "the end of what was made in the home directory")


def test_commands_at_the_same_time_do_not_take_the_cache_from_each_other(start: Start, home: Path) -> None:
    """Whichever ends first; the last one takes away what the first one made."""
    script = f"{MADE_SURE} echo mine > ~/.damo.sysinfo; echo ready; read line; cat ~/.damo.sysinfo"
    processes = [start("sh", "-c", script, stdin=subprocess.PIPE) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        assert "ready\n" == process.stdout.readline()
    for process in processes:
        assert "mine\n" == process.communicate("\n", timeout=30)[0]
    assert ["notes"] == sorted(os.listdir(home))


def test_the_command_gets_the_limits_as_kdamon_got_them(start: Start) -> None:
    """Although kdamon itself may open many more files, one for each process that it monitors and some more."""
    script = "ulimit -n; ulimit -Hn; grep 'Max open files' /proc/$PPID/limits"
    wrap = ("sh", "-c", 'ulimit -Sn 100; ulimit -Hn 3000; exec "$@"', "sh")
    status, said = finish(start("sh", "-c", script, before=wrap))
    assert (0, ["100", "3000", "Max", "open", "files", "3000", "3000", "files"]) == (status, said.split())


def test_the_command_gets_the_signals_as_kdamon_got_them(start: Start) -> None:
    """Python ignores some and kdamon blocks some, neither of which is the command's."""
    script = "grep -E 'Sig(Blk|Ign)' /proc/self/status"
    with_kdamon = finish(start("sh", "-c", script))[1]
    without = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout
    assert with_kdamon == without
