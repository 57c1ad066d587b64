# SPDX-License-Identifier: GPL-2.0-only
"""A process with code and data on a file system of its own that never answers a read: ``silent_fuse.py DIRECTORY UID``.

It mounts the file system in a mount namespace of its own, becomes that user, maps the code so that it is the first one
that is looked at, and the data at twice its address, prints "ready" and sleeps. With options for the mount after UID,
nothing is answered any more then.
"""

import ctypes
import errno
import os
import struct
import sys
import threading
import time

CLONE_NEWNS = 0x20000
MS_REC_PRIVATE = 0x4000 | 0x40000
PROT_READ_EXEC, MAP_PRIVATE_FIXED = 5, 0x10 | 2
#: Above the heap of a program that is not position independent, which begins somewhere in the first GiB after it.
PLACE = 0x100000000
PROT_READ_WRITE, MAP_SHARED_FIXED = 3, 0x10 | 1
SIZE = 1 << 26
FORGET, LOOKUP, GETATTR, OPEN, READ, INIT, BATCH_FORGET = 2, 1, 3, 14, 15, 26, 42

libc = ctypes.CDLL(None, use_errno=True)
quiet = threading.Event()


def must(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def attributes(node):
    mode, size = (0o40755, 0) if node == 1 else (0o100755, SIZE)
    return struct.pack("<6Q10I", node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def answer(opcode, node):
    if opcode == INIT:
        return struct.pack("<IIIIHHIIHHI28x", 7, 31, 0, 0, 1, 1, 4096, 1, 1, 0, 0)
    if opcode == LOOKUP:
        return struct.pack("<4QII", 2, 0, 3600, 3600, 0, 0) + attributes(2)
    if opcode == GETATTR:
        return struct.pack("<QII", 3600, 0, 0) + attributes(node)
    if opcode == OPEN:
        return struct.pack("<QII", 0, 0, 0)
    return None


def serve(device):
    while True:
        request = os.read(device, 1 << 17)
        _, opcode, unique, node = struct.unpack_from("<IIQQ", request)
        if quiet.is_set() or opcode in (FORGET, READ, BATCH_FORGET):
            continue
        content = answer(opcode, node)
        error = 0 if content is not None else -errno.ENOSYS
        content = content or b""
        os.write(device, struct.pack("<IiQ", 16 + len(content), error, unique) + content)


def mounted(directory, uid, options=()):
    """Mount it in a mount namespace of our own; returns what it is served by."""
    must(libc.unshare(CLONE_NEWNS))
    must(libc.mount(b"none", b"/", None, ctypes.c_ulong(MS_REC_PRIVATE), None))
    device = os.open("/dev/fuse", os.O_RDWR)
    words = ",".join((f"fd={device},rootmode=40000,user_id={uid},group_id={uid}", *options)).encode()
    must(libc.mount(b"silent", os.fsencode(directory), b"fuse", ctypes.c_ulong(0), words))
    return device


def become(uid):
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    # PR_SET_DUMPABLE, which the change of user took.
    must(libc.prctl(4, 1, 0, 0, 0))


def mapped(file):
    """Map code of an open file; returns where."""
    libc.mmap.restype = ctypes.c_long
    place = libc.mmap(ctypes.c_void_p(PLACE), 4096, PROT_READ_EXEC, MAP_PRIVATE_FIXED, file, ctypes.c_long(0))
    must(place)
    return place


def main():
    directory, uid = sys.argv[1], int(sys.argv[2])
    device = mounted(directory, uid, sys.argv[3:])
    become(uid)
    threading.Thread(target=serve, args=(device,), daemon=True).start()
    code = os.open(f"{directory}/libc-silent.so", os.O_RDONLY)
    mapped(code)
    data = os.open(f"{directory}/libc-silent.so", os.O_RDWR)
    place = ctypes.c_void_p(2 * PLACE)
    must(libc.mmap(place, ctypes.c_size_t(SIZE), PROT_READ_WRITE, MAP_SHARED_FIXED, data, ctypes.c_long(0)))
    # Their ends would wait for an answer to a flush, which it gives itself.
    os.close(code)
    os.close(data)
    if sys.argv[3:]:
        quiet.set()
    print("ready", flush=True)
    time.sleep(3600)


if __name__ == "__main__":
    main()
