# SPDX-License-Identifier: GPL-2.0-only
"""The processes of a control group of the second version."""

from __future__ import annotations

import errno
import os
from pathlib import Path

__all__ = ["processes"]


def _root() -> tuple[Path, str]:
    """Where the second version is mounted, and which group that directory is."""
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        mount, _, filesystem = line.partition(" - ")
        if filesystem.startswith("cgroup2 "):
            root, directory = mount.split(" ")[3:5]
            return Path(directory), root
    raise OSError(errno.ENOENT, "no control groups of the second version are mounted")


def _directory(path: str) -> Path:
    mounted, root = _root()
    inside = path == root or path.startswith(root.rstrip("/") + "/")
    below = path.removeprefix(root.rstrip("/")).lstrip("/")
    found = mounted / below
    if not (path.startswith("/") and ".." not in path.split("/") and inside and found.is_dir()):
        raise OSError(errno.ENOENT, f"there is no control group {path!r} below {mounted}")
    return found


def processes(path: str) -> tuple[int, ...]:
    """The processes of the control group ``path`` and of those below, see :meth:`kdamon.mm.Machine.cgroup_processes`.

    :raises OSError: ENOENT there is none.
    """
    pids: set[int] = set()
    for directory, _directories, _files in os.walk(_directory(path)):
        try:
            pids.update(map(int, Path(directory, "cgroup.procs").read_text().split()))
        except OSError as error:
            # The group went, or its processes are those of the threaded group above.
            if error.errno not in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
                raise
    # 0 is a process that this PID namespace has no number for.
    return tuple(sorted(pids - {0, os.getpid()}))
