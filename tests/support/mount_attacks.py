# SPDX-License-Identifier: GPL-2.0-only
"""Attacks on root's mounting: ``mount_attacks.py ATTACK NAMESPACE`` does one and prints what became of it, as JSON.

NAMESPACE is the mount namespace that must not be harmed: this process has to be in another one, with nothing shared.
What the attacker does, a process of user 65534 does. In /mnt it owns home/ and all in it, and root owns safe/, with a
mount on safe/d that the attacker is after.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

from kdamon.lib.mountinfo import MountEntry, mounts
from kdamon.mm.sim.machine import SimMachine
from kdamon_fs.fuse_binding import load_fuse
from kdamon_fs.mount import MountedTree
from kdamon_fs.mounts import set_parent_death_signal
from kdamon_fs.places import preparing_places
from kdamon_fs.sysfs import damon_sysfs_init

NOBODY: Final = 65534
HOME: Final = "/mnt/home"
SAFE: Final = "/mnt/safe"
#: Where root mounts, and what the attacker wants to be there instead.
TARGET: Final = f"{HOME}/x/d"
#: Numbers of dead trees of root's that the attacker is after.
DECOYS: Final[set[int]] = set()
#: How many points of time each attack is tried at.
POINTS: Final = 24
#: How often it is tried where the time is left to chance.
ROUNDS: Final = 40

_libc = ctypes.CDLL(None, use_errno=True)


def prepare(outer: str) -> None:
    """Make sure that nothing gets out, then make the directories."""
    assert os.readlink("/proc/self/ns/mnt") != outer
    assert not any(entry.shared for entry in mounts())
    for entry in trees():
        # A copy of another test's, which would be in use by this.
        unmount(entry.target)
    mount_tmpfs("/mnt")
    for path in ("/mnt", HOME, SAFE, f"{SAFE}/d"):
        os.makedirs(path, exist_ok=True)
        os.chmod(path, 0o755)
    os.chown(HOME, NOBODY, NOBODY)
    mount_tmpfs(f"{SAFE}/d")


def mount_tmpfs(path: str) -> None:
    """A file system of root's."""
    if _libc.mount(b"victim", os.fsencode(path), b"tmpfs", ctypes.c_ulong(0), None):
        raise OSError(ctypes.get_errno(), path)


def unmount(path: str) -> None:
    """Take the topmost mount away, whatever it is."""
    if _libc.umount2(os.fsencode(path), 2):
        raise OSError(ctypes.get_errno(), path)


def on(path: str) -> list[str]:
    """The types of what is mounted there, the topmost last."""
    return [entry.fstype for entry in mounts() if entry.target == path]


def trees() -> list[MountEntry]:
    """What kdamon mounted, but for the decoy."""
    return [entry for entry in mounts() if entry.fstype == "fuse.kdamon" and entry.number not in DECOYS]


def mount_dead(path: str) -> None:
    """What a kdamon that was killed leaves there."""
    device = os.open("/dev/fuse", os.O_RDWR)
    options = b"fd=%d,rootmode=40000,user_id=0,group_id=0" % device
    if _libc.mount(b"kdamon", os.fsencode(path), b"fuse.kdamon", ctypes.c_ulong(0), options):
        raise OSError(ctypes.get_errno(), path)
    os.close(device)


def until(condition: Callable[[], object]) -> None:
    """Wait for something that is sure to come."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Attacker:
    """A process of the user, which runs lines of Python when it is asked to."""

    def __init__(self) -> None:
        self._lines, theirs = socket.socketpair()
        if os.fork() == 0:
            # Python itself may be where the user cannot start it.
            self._lines.close()
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            set_parent_death_signal(signal.SIGKILL)
            while line := theirs.recv(4096):
                try:
                    exec(line)
                    theirs.send(b"done")
                except OSError as error:
                    theirs.send((error.strerror or "").encode())
            os._exit(0)
        theirs.close()

    def do(self, line: str) -> str:
        """Run it; "done" or why that was refused."""
        self.send(line)
        return self.answer()

    def send(self, line: str) -> None:
        """Have it run, and do not wait."""
        self._lines.send(line.encode())

    def answer(self) -> str:
        """Wait until that is done."""
        return self._lines.recv(4096).decode()

    def make_target(self) -> None:
        """The directory as root finds it, without what earlier attacks left."""
        for path in (f"{HOME}/x", TARGET):
            self.do(f"os.path.islink({path!r}) and os.unlink({path!r})")
        self.do(f"os.rename('{HOME}/y', '{HOME}/x')")
        self.do(f"os.rename('{HOME}/e', '{TARGET}')")
        self.do(f"os.makedirs('{TARGET}', exist_ok=True)")
        assert "done" == self.do(f"os.stat('{TARGET}')")


#: What the attacker may do at any time.
MOVES: Final = {
    "link above": f"os.rename('{HOME}/x', '{HOME}/y'); os.symlink('{SAFE}', '{HOME}/x')",
    "link itself": f"os.rename('{TARGET}', '{HOME}/e'); os.symlink('{SAFE}/d', '{TARGET}')",
    "another directory": f"os.rename('{TARGET}', '{HOME}/e'); os.mkdir('{TARGET}')",
    "removed": f"os.rmdir('{TARGET}')",
}


class _at:
    """While it is entered, ``action`` is done before line ``point`` of kdamon's; counts the lines.

    :param which: whether those of a call count; by default all do.
    """

    def __init__(
        self, point: int, action: Callable[[], object], which: Callable[[FrameType], bool] = lambda _frame: True
    ) -> None:
        self.lines = 0
        self._which = which
        self._point, self._action = point, action

    def _trace(self, frame: FrameType, event: str, _argument: object) -> Any:
        if event == "call" and not ("/kdamon" in frame.f_code.co_filename and self._which(frame)):
            return None
        if event == "line":
            if self.lines == self._point:
                self._action()
            self.lines += 1
        return self._trace

    def __enter__(self) -> _at:
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_exception: object) -> None:
        sys.settrace(None)


def make_tree(path: str = TARGET) -> MountedTree:
    """A tree of simulated processes, to be mounted there."""
    return MountedTree(damon_sysfs_init(SimMachine(seed=1)), path)


def start(tree: MountedTree) -> str:
    """Mount it; returns where, or the beginning of the reason."""
    try:
        tree.start()
    except OSError as error:
        assert not trees()
        return (error.strerror or "").partition(":")[0]
    (entry,) = trees()
    return entry.target


def at_points(
    prepare_one: Callable[[], None],
    act: Callable[[], str],
    disturb: Callable[[], object],
    which: Callable[[FrameType], bool] = lambda _frame: True,
) -> list[str]:
    """Act again and again, disturbed at one point of time after the other; what became of it, each once.

    :param which: in which calls there are such points; by default in all.
    """
    prepare_one()
    with _at(-1, lambda: None, which) as counted:
        act()
    seen = set()
    for point in range(0, counted.lines, max(1, counted.lines // POINTS)):
        prepare_one()
        with _at(point, disturb, which) as at:
            became = act()
        # Where a thread waits a shorter time, there are fewer lines, and the last point may not come.
        if at.lines > point:
            seen.add(became)
    return sorted(seen)


class _Round:
    """A tree that is mounted on the target and unmounted, with root's own mount beside it."""

    def __init__(self, attacker: Attacker) -> None:
        self.attacker = attacker
        self.tree = make_tree()

    def prepare(self) -> None:
        self.attacker.make_target()
        self.tree = make_tree()

    def prepare_started(self) -> None:
        self.prepare()
        assert TARGET == start(self.tree)

    def start(self) -> str:
        where = start(self.tree)
        return "outside" if where.startswith(SAFE) else "mounted" if where.startswith(HOME) else "refused"

    def stop(self) -> str:
        self.tree.stop()
        return f"{on(f'{SAFE}/d')} {len(trees())}"

    def start_and_stop(self) -> str:
        return f"{self.start()} {self.stop()}"


def start_disturbed(attacker: Attacker, move: str) -> list[str]:
    """Mount while the user does ``move`` at one point of time or another."""
    one = _Round(attacker)
    return at_points(one.prepare, one.start_and_stop, lambda: attacker.do(MOVES[move]))


def stop_disturbed(attacker: Attacker, move: str) -> list[str]:
    """Unmount while the user does ``move``."""
    one = _Round(attacker)
    return at_points(one.prepare_started, one.stop, lambda: attacker.do(MOVES[move]))


def exchanged_all_the_time(attacker: Attacker) -> list[str]:
    """Mount and unmount while the user exchanges the directory above for a link and back, as fast as possible."""
    attacker.make_target()
    attacker.do(f"os.symlink('{SAFE}', '{HOME}/link')")
    exchange = f"ctypes.CDLL(None).renameat2(-100, b'{HOME}/x', -100, b'{HOME}/link', 2)"
    attacker.send(f"while not os.path.exists('{SAFE}/stop'): {exchange}")
    one, seen = _Round(attacker), set()
    for _ in range(ROUNDS):
        one.tree = make_tree()
        seen.add(one.start_and_stop())
    with open(f"{SAFE}/stop", "x", encoding="ascii"):
        assert "done" == attacker.answer()
    return sorted(seen)


def take_over_disturbed(attacker: Attacker, move: str) -> list[str]:
    """Take over a dead tree while the user has the name lead to another one."""
    mount_dead(f"{SAFE}/d")
    DECOYS.update(entry.number for entry in trees())
    one = _Round(attacker)

    def prepare_dead() -> None:
        for entry in trees():
            unmount(entry.target)
        one.prepare()
        mount_dead(TARGET)

    def take_over() -> str:
        with contextlib.suppress(OSError):
            one.tree.start()
        one.tree.stop()
        return str(on(f"{SAFE}/d"))

    return at_points(prepare_dead, take_over, lambda: attacker.do(MOVES[move]))


def mounted_upon(_attacker: Attacker, place: str) -> list[str]:
    """Root mounts on the tree or in it; what is left of that when kdamon ends."""
    os.makedirs(TARGET)
    tree = make_tree()
    tree.start()
    mount_tmpfs(os.path.join(TARGET, place))
    tree.stop()
    return on(os.path.normpath(os.path.join(TARGET, place)))


def mounted_meanwhile(attacker: Attacker) -> list[str]:
    """Root mounts something else on the directory at one point of time or another; what is left of that."""
    one = _Round(attacker)

    def prepare_bare() -> None:
        while on(TARGET):
            unmount(TARGET)
        one.prepare()

    def act() -> str:
        with contextlib.suppress(OSError):
            one.tree.start()
        one.tree.stop()
        return str([fstype for fstype in on(TARGET) if fstype != "fuse.kdamon"])

    def before_the_last_look(frame: FrameType) -> bool:
        # The kernel has no call that unmounts only what nothing is mounted on.
        calls: FrameType | None = frame
        while calls is not None and calls.f_code.co_name != "detach":
            calls = calls.f_back
        return calls is None or not calls.f_code.co_filename.endswith("watcher.py")

    return at_points(prepare_bare, act, lambda: mount_tmpfs(TARGET), before_the_last_look)[:2]


def killed(attacker: Attacker, move: str) -> list[list[str]]:
    """A server is killed when the name leads to a dead tree of another one; what is left of both."""
    mount_dead(f"{SAFE}/d")
    DECOYS.update(entry.number for entry in trees())
    attacker.make_target()
    serve_and_die(TARGET, lambda: attacker.do(MOVES[move]))
    until(lambda: not trees())
    return [on(f"{SAFE}/d"), [entry.target for entry in trees()]]


def serve_and_die(path: str, action: Callable[[], object]) -> None:
    """A process mounts there, does something, and is killed."""
    if (pid := os.fork()) == 0:
        make_tree(path).start()
        action()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)


#: Names that look like parts of what the kernel says of mounts.
NAMES: Final = (
    b"a b\\040\\012c\nd\te#",
    b"x (deleted)",
    b"d\x0b-\x0bfuse.kdamon\x0bx\r1 1 0:1 \\ - fuse.kdamon",
    b"\xff\xfe\x80",
    b"n" * 255,
)


def odd_names(attacker: Attacker) -> list[str]:
    """Mount in directories with such names, unmount, and be killed; the names that something was left on."""
    left = []
    for name in NAMES:
        path = os.path.join(HOME, os.fsdecode(name))
        attacker.do(f"os.mkdir({path!r})")
        tree = make_tree(path)
        tree.start()
        assert ["fuse.kdamon"] == on(path)
        tree.stop()
        left += on(path)
        serve_and_die(path, lambda: None)
        until(lambda path=path: not on(path))  # type: ignore[misc]
    return left


def long_path(attacker: Attacker) -> list[int]:
    """Mount where the path is longer than any that the kernel takes; how many are left, unmounted and killed."""
    os.chdir(HOME)
    attacker.do(f"os.chdir({HOME!r})")
    for _ in range(20):
        attacker.do(f"os.mkdir({'l' * 250!r})")
        attacker.do(f"os.chdir({'l' * 250!r})")
        os.chdir("l" * 250)
    attacker.do("os.mkdir('d')")
    tree = make_tree("d")
    tree.start()
    assert [True] == [len(entry.target) > 4096 for entry in trees()]
    tree.stop()
    left = len(trees())
    serve_and_die("d", lambda: None)
    until(lambda: not trees())
    return [left, len(trees())]


def propagation(attacker: Attacker) -> list[list[int]]:
    """A namespace that gets what is mounted here; how many trees are in both, before, while, and after."""
    assert 0 == _libc.mount(None, b"/mnt", None, ctypes.c_ulong(1 << 20), None)
    attacker.make_target()
    ready, begun = os.pipe()
    if (pid := os.fork()) == 0:
        assert 0 == _libc.unshare(0x20000)
        os.write(begun, b"x")
        signal.pause()
    os.read(ready, 1)

    def count() -> list[int]:
        with open(f"/proc/{pid}/mountinfo", "rb") as lines:
            return [len(trees()), sum(b" - fuse.kdamon " in line for line in lines)]

    seen = [count()]
    with make_tree():
        seen.append(count())
    seen.append(count())
    os.kill(pid, signal.SIGKILL)
    return seen


def sentences(attacker: Attacker) -> list[str]:
    """What root is answered to names that lead through what users made."""
    attacker.make_target()
    attacker.do(f"os.symlink('{SAFE}', '{HOME}/link')")
    os.makedirs("/mnt/shared")
    os.chmod("/mnt/shared", 0o1777)
    attacker.do(f"os.symlink('{SAFE}', '/mnt/shared/theirs')")
    os.symlink(SAFE, "/mnt/shared/ours")
    os.makedirs(f"{SAFE}/free")
    answers = []
    for path in (f"{HOME}/link/d", "/mnt/shared/theirs/d", "/mnt/shared/ours/free", f"{SAFE}/../safe/./free/", "/"):
        tree = make_tree(path)
        try:
            tree.start()
            answers.append(trees()[0].target)
        except OSError as error:
            answers.append(error.strerror or "")
        tree.stop()
    return answers


def aborted(attacker: Attacker) -> list[str]:
    """Root ends the connection, as for processes that are stuck in it; what is left when kdamon has ended."""
    attacker.make_target()
    os.makedirs(f"{SAFE}/control")
    assert 0 == _libc.mount(b"none", f"{SAFE}/control".encode(), b"fusectl", ctypes.c_ulong(0), None)
    tree = make_tree()
    tree.start()
    with open(f"{SAFE}/control/{os.minor(trees()[0].device)}/abort", "w", encoding="ascii") as abort:
        abort.write("1")
    until(lambda: not tree.alive())
    tree.stop()
    return [entry.target for entry in trees()]


def in_chroot(_attacker: Attacker) -> list[str]:
    """Mount below a root directory whose own mount is out of sight; where it is, and what is left."""
    for directory in ("proc", "dev", "d"):
        os.makedirs(f"{SAFE}/root/{directory}")
    assert 0 == _libc.mount(b"/proc", f"{SAFE}/root/proc".encode(), None, ctypes.c_ulong(4096 | 16384), None)
    assert 0 == _libc.mount(b"/dev", f"{SAFE}/root/dev".encode(), None, ctypes.c_ulong(4096 | 16384), None)
    # What they import is out of sight, too.
    load_fuse()
    tree = make_tree("/d")
    os.chroot(f"{SAFE}/root")
    os.chdir("/")
    with tree:
        where = [entry.target for entry in trees()]
    return where + [entry.target for entry in trees()]


def places_elsewhere(attacker: Attacker) -> list[str]:
    """``kdamon exec`` hides a sysfs that root mounted below the user's directory, who has its name lead elsewhere.

    What was covered there, of directories of root's.
    """
    attacker.make_target()
    assert 0 == _libc.mount(b"sysfs", TARGET.encode(), b"sysfs", ctypes.c_ulong(0), None)
    names = [name for name in os.listdir("/sys/module") if name.startswith("damon")]
    for path in ("kernel/mm/damon", *(f"module/{name}" for name in names)):
        os.makedirs(f"{SAFE}/e/{path}")
    attacker.do(f"os.symlink('{SAFE}/e', '{HOME}/d')")
    # So that x/d is the sysfs, and with x exchanged for the directory above, a link to root's directory.
    exchange = f"os.rename('{HOME}/x', '/mnt/home/y'); os.symlink('{HOME}', '{HOME}/x')"

    def of_target(frame: FrameType) -> bool:
        return any(value == TARGET or getattr(value, "target", "") == TARGET for value in frame.f_locals.values())

    counted, seen, point = 1, set(), -1
    while point < counted:
        answer, theirs = os.pipe()
        if os.fork() == 0:
            assert 0 == _libc.unshare(0x20000)
            at = _at(point, lambda: attacker.do(exchange), of_target)
            with contextlib.suppress(OSError), at, preparing_places([], []):
                pass
            covered = [entry.target for entry in mounts() if entry.target.startswith(f"{SAFE}/e")]
            os.write(theirs, json.dumps([at.lines, covered]).encode())
            os._exit(0)
        os.close(theirs)
        with os.fdopen(answer, "rb") as lines:
            lines_now, covered = json.loads(lines.read())
        counted = max(counted, lines_now)
        seen.update(covered)
        attacker.do(f"os.unlink('{HOME}/x'); os.rename('{HOME}/y', '{HOME}/x')")
        point += max(1, counted // POINTS)
    return sorted(seen)


def hanging_server(attacker: Attacker) -> list[str]:
    """Root is to mount in a file system that the user serves, who never answers."""
    attacker.do(f"os.mkdir('{HOME}/fs')")
    device = os.open("/dev/fuse", os.O_RDWR)
    options = b"fd=%d,rootmode=40000,user_id=%d,group_id=%d,allow_other" % (device, NOBODY, NOBODY)
    assert 0 == _libc.mount(b"theirs", f"{HOME}/fs".encode(), b"fuse.kdamon", ctypes.c_ulong(0), options)
    if (pid := os.fork()) == 0:
        signal.pause()
    os.close(device)
    served, answers = os.open(f"{HOME}/fs", os.O_PATH), []
    for path in (f"{HOME}/fs/d", f"/proc/self/fd/{served}/d"):
        try:
            make_tree(path).start()
        except OSError as error:
            answers.append(error.strerror or "")
    os.kill(pid, signal.SIGKILL)
    return answers


def main(attack: str, outer: str, *arguments: str) -> None:
    """Do one attack and print what was seen."""
    logging.basicConfig(level=logging.WARNING, format="log: %(message)s")
    prepare(outer)
    print(json.dumps(globals()[attack](Attacker(), *arguments)))


if __name__ == "__main__":
    main(*sys.argv[1:])
