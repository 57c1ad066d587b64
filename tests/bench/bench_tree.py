# SPDX-License-Identifier: GPL-2.0-only
"""Operations on the mounted tree against a file system of one file that does nothing, also by fusepy.

Each file system is served by a process of its own, and a third process reads and writes: they take turns. The file in
the tree is eight levels below the mount; the other one is the only file there is.
"""

from __future__ import annotations

import argparse
import errno
import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from measure import table

from kdamon_fs.mounts import MNT_DETACH, umount

DEEP = "admin/kdamonds/0/contexts/0/monitoring_attrs/intervals/sample_us"


def serve_tree(directory: str) -> None:
    """Serve the tree on ``directory`` until it is terminated."""
    from kdamon_fs.mount import mount_tree
    from kdamon_fs.sysfs import damon_sysfs_init

    mount_tree(damon_sysfs_init(), directory, ready=lambda: print("ready", flush=True))


def serve_bare(directory: str) -> None:
    """Serve one file that holds a few bytes on ``directory``, until it is unmounted."""
    import fuse

    class Bare(fuse.Operations):  # type: ignore[misc]
        content = b"5000\n"

        def init(self, _path: str) -> None:
            print("ready", flush=True)

        def getattr(self, path: str, _fh: int | None = None) -> dict[str, int]:
            if path == "/":
                return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}
            if path == "/file":
                return {"st_mode": stat.S_IFREG | 0o600, "st_nlink": 1, "st_size": 4096}
            raise fuse.FuseOSError(errno.ENOENT)

        def open(self, _path: str, _flags: int) -> int:
            return 1

        def read(self, _path: str, size: int, offset: int, _fh: int) -> bytes:
            return self.content[offset : offset + size]

        def write(self, _path: str, data: bytes, _offset: int, _fh: int) -> int:
            return len(data)

        def truncate(self, _path: str, _length: int, _fh: int | None = None) -> None:
            pass

    fuse.FUSE(Bare(), directory, foreground=True, direct_io=True)


def client(path: str, kind: str, n: int) -> None:
    """Print the microseconds that one operation on ``path`` takes."""
    flags = os.O_RDONLY if kind == "read" else os.O_WRONLY
    begin = time.perf_counter()
    for _ in range(n):
        fd = os.open(path, flags)
        if kind == "read":
            os.read(fd, 4096)
        else:
            os.write(fd, b"5000")
        os.close(fd)
    print((time.perf_counter() - begin) / n * 1e6)


@contextmanager
def served(what: str) -> Iterator[str]:
    """A directory where ``what`` is mounted."""
    directory = tempfile.mkdtemp()
    server = subprocess.Popen([sys.executable, __file__, "--serve", what, directory], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        if server.stdout.readline() != "ready\n":
            raise OSError(errno.EIO, f"the file system '{what}' could not be mounted; it said why above")
        yield directory
    finally:
        if os.path.ismount(directory):
            umount(directory, MNT_DETACH)
        server.terminate()
        server.wait()
        os.rmdir(directory)


def main() -> int:
    """Print the table, or serve, or be the client."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions: for a look, not for a figure")
    parser.add_argument("--serve", nargs=2, metavar=("WHAT", "DIRECTORY"), help=argparse.SUPPRESS)
    parser.add_argument("--client", nargs=3, metavar=("PATH", "KIND", "N"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        {"tree": serve_tree, "bare": serve_bare}[args.serve[0]](args.serve[1])
        return 0
    if args.client:
        client(args.client[0], args.client[1], int(args.client[2]))
        return 0

    turns, n = (5, 300) if args.quick else (9, 1000)
    with served("tree") as tree, served("bare") as bare:
        for nr in ("kdamonds/nr_kdamonds", "kdamonds/0/contexts/nr_contexts"):
            (Path(tree) / "admin" / nr).write_text("1")
        times: dict[tuple[str, str], list[float]] = {}
        for _ in range(turns):
            for kind in ("read", "write"):
                for name, path in (("bare", f"{bare}/file"), ("tree", f"{tree}/{DEEP}")):
                    command = [sys.executable, __file__, "--client", path, kind, str(n)]
                    done = subprocess.run(command, check=True, capture_output=True, text=True)
                    times.setdefault((kind, name), []).append(float(done.stdout))
    rows = []
    for kind in ("read", "write"):
        bare_us, tree_us = median(times[kind, "bare"]), median(times[kind, "tree"])
        rows.append((f"open, {kind}, close", f"{bare_us:.0f}", f"{tree_us:.0f}", f"{tree_us / bare_us:.2f}x"))
    table("One file operation, microseconds", ("operation", "one bare file", "tree, 8 levels deep", "ratio"), rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
