# SPDX-License-Identifier: GPL-2.0-only
"""A new access source: a C program, instrumented by the compiler, reports its accesses; a table shows the regions."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from kdamon import monitor, report_accesses, report_array
from kdamon.mm.proc.maps import NamedMapping

# The access source. -fsanitize=thread calls these functions at each access; instead of detecting races they send the
# addresses, 500 at once. They never wait: accesses that the monitor does not receive in time are lost.
RUNTIME = r"""
#include <stdlib.h>
#include <sys/socket.h>
static _Thread_local unsigned long sent[500], last[2], n;
static void note(void *p, unsigned long write)
{
    unsigned long access = (unsigned long)p << 1 | write;
    if ((access ^ last[write]) >> 13 == 0)  /* the same page again */
        return;
    sent[n++] = last[write] = access;
    if (n == 500)
        n = 0, send(atoi(getenv("REPORT_FD")), sent, sizeof(sent), MSG_DONTWAIT | MSG_NOSIGNAL);
}
#define ACCESS(size) void __tsan_read##size(void *p) { note(p, 0); } void __tsan_write##size(void *p) { note(p, 1); } \
    void __tsan_unaligned_read##size(void *p) { note(p, 0); } void __tsan_unaligned_write##size(void *p) { note(p, 1); }
ACCESS(1) ACCESS(2) ACCESS(4) ACCESS(8) ACCESS(16)
void __tsan_init(void) {}  void __tsan_func_entry(void *caller) {}  void __tsan_func_exit(void) {}
"""


def build(program: Path, folder: Path) -> Path:
    """Compile ``program`` with a function call at each access, and link it to these functions."""
    (folder / "runtime.c").write_text(RUNTIME)
    subprocess.run(["cc", "-O2", "-g", "-fsanitize=thread", "-c", program, "-o", folder / "program.o"], check=True)
    subprocess.run(["cc", "-O2", folder / "program.o", folder / "runtime.c", "-o", folder / "program"], check=True)
    return folder / "program"


def writable_ranges(pid: int) -> list[tuple[int, int]]:
    """The ranges to monitor: the process's writable mappings."""
    with open(f"/proc/{pid}/maps", "rb") as file:
        mappings = [NamedMapping.parse(line) for line in file]
    return [(one.start, one.end) for one in mappings if one.permissions.startswith("rw")]


def report(pid: int, message: bytes) -> None:
    """Report the accesses in a message of the process."""
    access = np.frombuffer(message, np.uint64)
    batch = report_array(len(access), pid=pid, addr=access >> 1, size=1, write=access & 1 == 1)
    report_accesses(batch)
    time.sleep(0.001)  # drop messages that the kdamond cannot process in time


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command, environment = build(Path(sys.argv[1]), Path(folder)), os.environ | {"REPORT_FD": str(theirs.fileno())}
        with subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()]) as process:
            theirs.close()
            message = ours.recv(1 << 16)  # now its memory is mapped
            with monitor(process.pid, ops="reports", ranges=writable_ranges(process.pid)) as m:
                while message:
                    report(process.pid, message)
                    message = ours.recv(1 << 16)
    *_, last = m.drain()
    for start, end, accesses, *_ in last.regions.tolist():
        print(f"{start:16x}-{end:x}  {(end - start) // 1024:9} KiB  {'#' * int(accesses)}")
    print(*(f"{name}={number}" for name, number in m.counters().reports.items()))
