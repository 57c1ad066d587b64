# SPDX-License-Identifier: GPL-2.0-only
"""A live process whose hot memory is known, and commands in ``kdamon exec``."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

MEBI = 1 << 20
HOT = 20 * MEBI
COLD = 100 * MEBI

WORKLOAD = f"""
import mmap, sys
hot, cold = mmap.mmap(-1, {HOT}), mmap.mmap(-1, {COLD})
for memory in (hot, cold):
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    memory[::4096] = b"x" * (len(memory) // 4096)
print(flush=True)
while True:
    hot[::4096]
"""

KdamonExec = Callable[..., "subprocess.CompletedProcess[str]"]


def _machine_lacks() -> str | None:
    if not os.path.exists("/dev/fuse"):
        return "kernel lacks: /dev/fuse"
    if os.geteuid():
        return "a namespace and the accesses of other processes need root"
    try:
        from kdamon.mm.linux.machine import linux_machine
        from kdamon_fs.fuse_binding import load_fuse

        load_fuse()
        linux_machine().close()
    except OSError as error:
        return error.strerror or str(error)
    return None


@pytest.fixture(scope="session")
def kdamon_exec() -> KdamonExec:
    """Runs ``kdamon exec`` with a home of its own; skips where processes cannot be monitored."""
    if lacks := _machine_lacks():
        pytest.skip(lacks)

    def run(
        home: Path, *command: str, abi: str | None = None, options: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        version = () if abi is None else ("--abi", abi)
        return subprocess.run(
            [sys.executable, "-P", "-m", "kdamon_tools", "exec", *version, *options, "--", *command],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HOME": str(home)},
            capture_output=True,
            text=True,
            timeout=270,
            check=False,
        )

    return run


@pytest.fixture(scope="module")
def workload() -> Iterator[int]:
    """A process that reads 20 MiB all the time and has 100 MiB that it does not."""
    process = subprocess.Popen([sys.executable, "-c", WORKLOAD], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def sizes() -> tuple[int, int]:
    """Bytes that the workload reads all the time, and bytes that it does not."""
    return HOT, COLD
