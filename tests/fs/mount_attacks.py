# SPDX-License-Identifier: GPL-2.0-only
"""Attacks on root's mounting: ``mount_attacks.py ATTACK NAMESPACE`` does one and prints what became of it, as JSON.

NAMESPACE is the mount namespace that must not be harmed: this process has to be in another one, with nothing shared.
What the attacker does, a process of user 65534 does. In /mnt it owns home/ and all in it, and root owns safe/, with a
mount on safe/d that the attacker is after.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import socket
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

from kdamon.mm.mountinfo import mount_entry, mounts
from kdamon.mm.sim import SimMachine
from kdamon_fs.mount import mounted_tree
from kdamon_fs.sysfs import damon_sysfs_init

NOBODY: Final = 65534
HOME: Final = "/mnt/home"
SAFE: Final = "/mnt/safe"
#: Where root mounts, and what the attacker wants to be there instead.
TARGET: Final = f"{HOME}/x/d"
#: How many points of time each attack is tried at.
POINTS: Final = 24

_libc = ctypes.CDLL(None, use_errno=True)


def prepare(outer: str) -> None:
    """Make sure that nothing gets out, then make the directories."""
    assert os.readlink("/proc/self/ns/mnt") != outer
    assert not any(entry.shared for entry in mounts())
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


def trees() -> list[mount_entry]:
    """What kdamon mounted."""
    return [entry for entry in mounts() if entry.fstype == "fuse.kdamon"]


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
        self._lines.send(line.encode())
        return self._lines.recv(4096).decode()

    def make_target(self) -> None:
        """The directory as root finds it, without what earlier attacks left."""
        for path in (f"{HOME}/x", TARGET):
            self.do(f"os.path.islink({path!r}) and os.unlink({path!r})")
        self.do(f"os.rename('{HOME}/y', '{HOME}/x')")
        self.do(f"os.rename('{HOME}/e', '{TARGET}')")
        self.do(f"os.makedirs('{TARGET}', exist_ok=True)")
        assert self.do(f"os.stat('{TARGET}')") == "done"


#: What the attacker may do at any time.
MOVES: Final = {
    "link above": f"os.rename('{HOME}/x', '{HOME}/y'); os.symlink('{SAFE}', '{HOME}/x')",
    "link itself": f"os.rename('{TARGET}', '{HOME}/e'); os.symlink('{SAFE}/d', '{TARGET}')",
    "another directory": f"os.rename('{TARGET}', '{HOME}/e'); os.mkdir('{TARGET}')",
    "removed": f"os.rmdir('{TARGET}')",
}


class _at:
    """While it is entered, ``action`` is done before line ``point`` of kdamon's; counts the lines."""

    def __init__(self, point: int, action: Callable[[], object]) -> None:
        self.lines = 0
        self._point, self._action = point, action

    def _trace(self, frame: FrameType, event: str, _argument: object) -> Any:
        if "/kdamon" not in frame.f_code.co_filename:
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


def make_tree(path: str = TARGET) -> mounted_tree:
    """A tree of simulated processes, to be mounted there."""
    return mounted_tree(damon_sysfs_init(SimMachine(seed=1)), path)


def start(tree: mounted_tree) -> str:
    """Mount it; returns where, or the beginning of the reason."""
    try:
        tree.start()
    except OSError as error:
        assert not trees()
        return (error.strerror or "").partition(":")[0]
    (entry,) = trees()
    return entry.target


def at_points(prepare_one: Callable[[], None], act: Callable[[], str], disturb: Callable[[], object]) -> list[str]:
    """Act again and again, disturbed at one point of time after the other; what became of it, each once."""
    prepare_one()
    with _at(-1, lambda: None) as counted:
        act()
    seen = set()
    for point in range(0, counted.lines, max(1, counted.lines // POINTS)):
        prepare_one()
        with _at(point, disturb):
            seen.add(act())
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
        assert start(self.tree) == TARGET

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


def main(attack: str, outer: str, *arguments: str) -> None:
    """Do one attack and print what was seen."""
    logging.basicConfig(level=logging.WARNING, format="log: %(message)s")
    prepare(outer)
    print(json.dumps(globals()[attack](Attacker(), *arguments)))


if __name__ == "__main__":
    main(*sys.argv[1:])
