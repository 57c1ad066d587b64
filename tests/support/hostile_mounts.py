# SPDX-License-Identifier: GPL-2.0-only
"""Runs a command beside a hostile user: ``hostile.py PASSWD SILENT DIRECTORY COMMAND...``, in its own mount namespace.

PASSWD is /etc/passwd there. On the directory SILENT is a file system of user 65534, open to all, that answers until
this process is in DIRECTORY, and then never again: what asks it waits until this process ends. It covers a sysfs, a
debugfs and a tracefs where SILENT has directories of these names.
"""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import sys
import threading

INIT, GETATTR, ACCESS = 26, 3, 34
USER = 65534
MS_BIND = 4096


def mount(source: str, target: str, fstype: str, flags: int, data: str) -> None:
    """``mount(2)``."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(os.fsencode(source), os.fsencode(target), fstype.encode(), flags, data.encode()):
        sys.exit(f"{target}: {os.strerror(ctypes.get_errno())}")


def answer(device: int) -> None:
    """Answer one request for the root directory."""
    request = os.read(device, 1 << 18)
    opcode, unique = struct.unpack_from("=4xIQ", request)
    body = b""
    if opcode == INIT:
        body = struct.pack("=IIIIHHIIHHI28x", 7, 31, 0, 0, 0, 0, 1 << 16, 1, 0, 0, 0)
    elif opcode == GETATTR:
        body = struct.pack("=QIIQ5Q3I7I", 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0o40755, 2, USER, USER, 0, 4096, 0)
    elif opcode != ACCESS:
        sys.exit(f"request {opcode} was not expected")
    os.write(device, struct.pack("=IiQ", 16 + len(body), 0, unique) + body)


def main(passwd: str, silent: str, directory: str, *command: str) -> int:
    """Prepare everything, and run the command."""
    if os.readlink("/proc/self/ns/mnt") == os.environ["OUTSIDE"]:
        sys.exit("this is the machine's mount namespace")
    mount(passwd, "/etc/passwd", "", MS_BIND, "")
    for fstype in ("sysfs", "debugfs", "tracefs"):
        if os.path.isdir(place := os.path.join(silent, fstype)):
            mount(fstype, place, fstype, 0, "")
    device = os.open("/dev/fuse", os.O_RDWR)
    mount("fuse", silent, "fuse", 0, f"fd={device},rootmode=40755,user_id={USER},group_id={USER},allow_other")
    entering = threading.Thread(target=os.chdir, args=(directory,), daemon=True)
    entering.start()
    answer(device)
    os.set_blocking(device, False)
    while entering.is_alive():
        try:
            answer(device)
        except BlockingIOError:
            entering.join(0.01)
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
