# SPDX-License-Identifier: GPL-2.0-only
"""A new access source: a C program that the compiler lets report its own accesses, shown as a table of regions."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from kdamon import trace
from kdamon.core import (
    damon_add_target,
    damon_new_ctx,
    damon_new_target,
    damon_select_ops,
    damon_set_attrs,
    damon_set_regions,
    damon_start,
    damon_stop,
)
from kdamon.damon import damon_addr_range, damon_attrs, damon_ctx, damon_ops_id
from kdamon.mm.proc.maps import NamedMapping
from kdamon.regions import damon_regions
from kdamon.reports.apply import damon_report_accesses, damon_report_counters_of, report_array

# The source. -fsanitize=thread calls these functions at each access; instead of looking for races they send the
# addresses away, 500 at once. They never wait: what the monitor does not take in time is lost to it.
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
    """Compile ``program`` with calls at each access, and link it to the functions that are called."""
    (folder / "runtime.c").write_text(RUNTIME)
    subprocess.run(["cc", "-O2", "-g", "-fsanitize=thread", "-c", program, "-o", folder / "program.o"], check=True)
    subprocess.run(["cc", "-O2", folder / "program.o", folder / "runtime.c", "-o", folder / "program"], check=True)
    return folder / "program"


def writable_ranges(pid: int) -> list[damon_addr_range]:
    """What to monitor: the process's writable mappings."""
    with open(f"/proc/{pid}/maps", "rb") as file:
        mappings = [NamedMapping.parse(line) for line in file]
    return [damon_addr_range(one.start, one.end) for one in mappings if one.permissions.startswith("rw")]


def monitor(pid: int, addresses: socket.socket) -> tuple[damon_ctx, damon_regions]:
    """Monitor until the process ends; returns the context, and the regions of the last aggregation interval."""
    snapshots: list[damon_regions] = [damon_regions()]
    trace.damon_aggregated.register(lambda ctx, target, regions: snapshots.append(regions.copy()))
    message = addresses.recv(1 << 16)
    ctx = damon_new_ctx()
    damon_select_ops(ctx, damon_ops_id.DAMON_OPS_REPORTS)
    damon_set_attrs(ctx, damon_attrs(sample_interval=5_000, aggr_interval=100_000))
    target = damon_new_target()
    target.pid = pid
    damon_set_regions(target, writable_ranges(pid), ctx.min_region_sz)
    damon_add_target(ctx, target)
    damon_start([ctx], exclusive=False)
    while message:
        access = np.frombuffer(message, np.uint64)
        damon_report_accesses(report_array(len(access), pid=pid, addr=access >> 1, size=1, write=access & 1 == 1))
        time.sleep(0.001)  # more than the kdamond can look at is worth nothing
        message = addresses.recv(1 << 16)
    damon_stop([ctx])
    return ctx, snapshots[-1]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command, environment = build(Path(sys.argv[1]), Path(folder)), os.environ | {"REPORT_FD": str(theirs.fileno())}
        with subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()]) as process:
            theirs.close()
            context, regions = monitor(process.pid, ours)
    for start, end, accesses in zip(regions.start, regions.end, regions.nr_accesses, strict=True):
        print(f"{start:16x}-{end:x}  {(end - start) // 1024:9} KiB  {'#' * accesses}")
    print(damon_report_counters_of(context))
