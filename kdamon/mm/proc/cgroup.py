# SPDX-License-Identifier: GPL-2.0-only
"""The processes of a control group (second version), and limits and freezing by groups of either version."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections import deque
from pathlib import Path
from typing import Final

from kdamon.lib.mountinfo import mounts
from kdamon.lib.once import warn_once

__all__ = ["frozen", "memory_group", "memory_left", "memory_root", "processes"]

#: The largest number of control groups that are read below one.
_MOST_GROUPS: Final = 10_000


def _root(controller: str = "") -> tuple[Path, str]:
    """Where version 2, or a controller of version 1, is mounted, and the group of that directory."""
    for entry in mounts():
        if entry.fstype == ("cgroup" if controller else "cgroup2") and (not controller or controller in entry.options):
            return Path(entry.target), entry.root
    version = f"of the first version with {controller}" if controller else "of the second version"
    raise OSError(errno.ENOENT, f"no control groups {version} are mounted")


def _directory(path: str) -> Path:
    return _below(path, *_root())


def memory_root() -> tuple[Path, str]:
    """Where memory cgroups of either version are mounted, and which of them that directory is.

    :raises OSError: ENOENT they are mounted nowhere.
    """
    for entry in mounts():
        directory = Path(entry.target)
        if entry.fstype == "cgroup" and "memory" in entry.options:
            return directory, entry.root
        if entry.fstype == "cgroup2" and "memory" in (directory / "cgroup.controllers").read_text().split():
            return directory, entry.root
    raise OSError(errno.ENOENT, "no memory cgroups are mounted")


def memory_group(path: str) -> Path:
    """The directory of the memory cgroup ``path``; the path has to be just as the kernel writes it.

    :raises OSError: ENOENT there is none.
    """
    mounted, root = memory_root()
    canonical = path == "/" or (os.path.normpath(path) == path and not path.startswith("//"))
    return _below(path if canonical else "", mounted, root, f"memory cgroup {path!r}")


def _below(path: str, mounted: Path, root: str, what: str = "") -> Path:
    """The directory of a control group, as ``/proc/PID/cgroup`` has it; ENOENT there is none.

    :param what: what there is none of, for the sentence.
    """
    inside = path == root or path.startswith(root.rstrip("/") + "/")
    below = path.removeprefix(root.rstrip("/")).lstrip("/")
    found = mounted / below
    if not (path.startswith("/") and ".." not in path.split("/") and inside and os.path.isdir(found)):
        raise OSError(errno.ENOENT, f"there is no {what or f'control group {path!r}'} below {mounted}")
    return found


def processes(path: str) -> tuple[int, ...]:
    """The processes of the control group ``path`` and of those below, see :meth:`kdamon.mm.Machine.cgroup_processes`.

    :raises OSError: ENOENT there is none.
    """
    pids: set[int] = set()
    groups = deque([os.fspath(_directory(path))])
    # Where groups are delegated to users, these can make any number of nested groups.
    room = _MOST_GROUPS
    while groups:
        directory = groups.popleft()
        try:
            pids.update(map(int, Path(directory, "cgroup.procs").read_text().split()))
            with os.scandir(directory) as entries:
                below = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError as error:
            # The group went, or its processes are those of the threaded group above, or its name is too long.
            if error.errno not in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP, errno.ENAMETOOLONG):
                raise
            continue
        groups += below[:room]
        if len(below) > room:
            warn_once(f"more than {_MOST_GROUPS} control groups are below {path!r}: some of them are left out")
        room -= min(room, len(below))
    # 0 is a process that this PID namespace has no number for.
    return tuple(sorted(pids - {0, os.getpid()}))


def frozen(contents: str) -> bool:
    """Return whether a process is frozen, or being frozen, with its control group of either version.

    :param contents: of its /proc/PID/cgroup. What of its groups cannot be seen from here counts as not frozen.
    """
    for line in filter(None, contents.split("\n")):
        hierarchy, controllers, path = line.split(":", 2)
        with contextlib.suppress(OSError):
            if hierarchy == "0" and _freezing(_directory(path)):
                return True
            if "freezer" in controllers.split(","):
                state = _below(path, *_root("freezer")) / "freezer.state"
                if state.read_text() != "THAWED\n":
                    return True
    return False


def _freezing(directory: Path) -> bool:
    """Return whether a control group of the second version, or one above it, is frozen or about to be."""
    # The topmost one has no such file, nor has what is above it.
    while (directory / "cgroup.freeze").exists():
        if (directory / "cgroup.freeze").read_text() != "0\n":
            return True
        directory = directory.parent
    return False


def memory_left(contents: str) -> int:
    """Bytes for which a process may be charged until one of its control groups' processes is killed for want of memory.

    What the kernel can take back first counts as left.

    :param contents: of its /proc/PID/cgroup. What of its groups cannot be seen from here counts as without a limit.
    """
    left = sys.maxsize
    for line in filter(None, contents.split("\n")):
        hierarchy, controllers, path = line.split(":", 2)
        with contextlib.suppress(OSError):
            if hierarchy == "0":
                left = min(left, _left(_directory(path), "memory.max", "memory.current", ""))
            elif "memory" in controllers.split(","):
                directory = _below(path, *_root("memory"))
                left = min(left, _left(directory, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"))
    return left


def _left(directory: Path, limit: str, usage: str, prefix: str) -> int:
    """The same for a control group and those above it; ``prefix`` is that of sums over groups in memory.stat."""
    left = sys.maxsize
    while (directory / "cgroup.procs").exists():
        # A group need not have the controller, and the topmost one has no limit.
        with contextlib.suppress(FileNotFoundError, ValueError):
            most, used = (int((directory / name).read_text()) for name in (limit, usage))
            words = (line.split() for line in (directory / "memory.stat").read_text().splitlines())
            amounts = {name: int(number) for name, number in words}
            swappable = min(_swap_free(), sum(amounts[f"{prefix}{kind}_anon"] for kind in ("active", "inactive")))
            files = sum(amounts[f"{prefix}{kind}_file"] for kind in ("active", "inactive"))
            left = min(left, most - used + files + swappable)
        directory = directory.parent
    return left


def _swap_free() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("SwapFree:")), 0)
