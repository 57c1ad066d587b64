# SPDX-License-Identifier: GPL-2.0-only
"""How large a process is, and how much it and the machine are delayed by memory, from /proc."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from types import TracebackType
from typing import Final

from kdamon.lib.process_status import stat_fields, status_fields
from kdamon.mm.proc.process_files import birth_of_directory, no_such_process, open_directory

__all__ = ["ProcessData", "program_name"]

_US_A_TICK: Final = 1_000_000 // os.sysconf("SC_CLK_TCK")
_LONGEST: Final = 1 << 14
_PRESSURE: Final = Path("/proc/pressure/memory")
#: Fields of /proc/PID/status, KiB.
_SIZES: Final = {"rss_anon": "RssAnon", "rss_file": "RssFile", "rss_shmem": "RssShmem", "swap": "VmSwap"}
#: Fields of /proc/PID/stat, as proc_pid_stat(5) counts them.
_MINOR_FAULTS, _MAJOR_FAULTS, _USER, _SYSTEM, _THREADS = 10, 12, 14, 15, 20


class ProcessData:
    """Reads the data of one process, also when its number is used again; a context manager.

    :param pid: the process.
    :param birth: see :func:`kdamon.mm.proc.process_files.birth_of`; None: the process that has the number now.
    :raises OSError: ESRCH there is no such process.
    """

    def __init__(self, pid: int, birth: int | None = None) -> None:
        self._directory = open_directory(pid)
        if birth is not None and birth_of_directory(self._directory) != birth:
            os.close(self._directory)
            raise no_such_process(pid)

    def __enter__(self) -> ProcessData:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        os.close(self._directory)

    def read(self) -> dict[str, int | None]:
        """The present values by the names of :data:`kdamon.records.schema.PROCESS`; empty when the process ended.

        None of these files waits for the process's memory lock.
        """
        try:
            status, stat = status_fields(self._contents("status")), stat_fields(self._contents("stat"))
        except OSError:
            return {}
        if not stat or stat[0] in (b"Z", b"X"):
            return {}
        values: dict[str, int | None] = {}
        for name, label in _SIZES.items():
            size = status.get(label, "").split()
            values[name] = int(size[0]) << 10 if size else None
        values["minor_faults"], values["major_faults"] = int(stat[_MINOR_FAULTS - 3]), int(stat[_MAJOR_FAULTS - 3])
        values["cpu_us"] = (int(stat[_USER - 3]) + int(stat[_SYSTEM - 3])) * _US_A_TICK
        values["threads"] = int(stat[_THREADS - 3])
        return values | _stalled()

    def _contents(self, name: str) -> bytes:
        descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._directory)
        try:
            return os.read(descriptor, _LONGEST)
        finally:
            os.close(descriptor)


def _stalled() -> dict[str, int | None]:
    """How long tasks of the machine have stalled for memory since it booted, microseconds; None without PSI."""
    values: dict[str, int | None] = {"stalled_some_us": None, "stalled_full_us": None}
    with contextlib.suppress(OSError):
        for line in _PRESSURE.read_text(encoding="ascii").splitlines():
            kind, _, rest = line.partition(" ")
            values[f"stalled_{kind}_us"] = int(rest.rpartition("total=")[2])
    return values


def program_name(pid: int) -> str | None:
    """The name of a process's program, None if it ended."""
    try:
        return os.fsdecode(Path(f"/proc/{pid}/comm").read_bytes().removesuffix(b"\n"))
    except OSError:
        return None
