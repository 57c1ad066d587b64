# SPDX-License-Identifier: GPL-2.0-only
"""A process that holds the lock of its memory for ever: ``lock_holder.py DIRECTORY UID``.

One thread reads the process's memory by /proc/self/mem, which is of a file system that never answers, and has the
mmap_lock; another one waits for it, to unmap something: so does a reader of its mappings.

The process that is started serves the file system; its child becomes the user UID. The child's number is printed; after
the next line of the standard input it does what it is for. When the server ends, so does the child.
"""

import ctypes
import os
import sys
import threading
import time

import silent_fuse

PR_SET_PDEATHSIG, SIGKILL = 1, 9
PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS = 3, 0x22


def hold_memory(file):
    place = silent_fuse.mapped(file)
    anonymous = silent_fuse.libc.mmap(
        None, ctypes.c_size_t(1 << 20), PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS, -1, ctypes.c_long(0)
    )
    silent_fuse.must(anonymous)
    # So that samples are taken of it.
    ctypes.memset(anonymous, 1, 1 << 20)
    memory = os.open("/proc/self/mem", os.O_RDONLY)
    threading.Thread(target=os.pread, args=(memory, 1, place), daemon=True).start()
    time.sleep(0.2)
    silent_fuse.libc.munmap(ctypes.c_void_p(anonymous), ctypes.c_size_t(4096))


def main():
    directory, uid = sys.argv[1], int(sys.argv[2])
    # So that nothing stays, whatever ends the test.
    silent_fuse.must(silent_fuse.libc.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0))
    device = silent_fuse.mounted(directory, uid)
    if os.fork():
        silent_fuse.serve(device)
    os.close(device)
    silent_fuse.become(uid)
    silent_fuse.must(silent_fuse.libc.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0))
    file = os.open(f"{directory}/libc-silent.so", os.O_RDONLY)
    print(os.getpid(), flush=True)
    sys.stdin.readline()
    hold_memory(file)


main()
