# SPDX-License-Identifier: GPL-2.0-only
"""The connection with the kernel's FUSE, by libfuse 2 and fusepy, without what these do by name.

Their usual way in, ``fuse_main()``, looks the mount point up by its name, mounts there, unmounts whatever has that name
at the end, and installs signal handlers. Here, :mod:`kdamon_fs.mount` mounts.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import select
from typing import Any, Final

from kdamon_fs.fuse_binding import load_fuse

__all__ = ["Channel"]

#: Options of libfuse: as sysfs has it, nothing is cached, and inode numbers are the tree's.
_OPTIONS: Final = "direct_io,use_ino,big_writes,entry_timeout=60,attr_timeout=0"


class _fuse_args(ctypes.Structure):
    """``struct fuse_args`` (``fuse_opt.h``)."""

    _fields_ = (("argc", ctypes.c_int), ("argv", ctypes.POINTER(ctypes.c_char_p)), ("allocated", ctypes.c_int))


_fuse_new = ctypes.CFUNCTYPE(
    ctypes.c_void_p, ctypes.c_void_p, ctypes.POINTER(_fuse_args), ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p
)


def _newest_fuse_new(library: ctypes.CDLL) -> Any:
    """``fuse_new()`` with the arguments that it has had since libfuse 2.6."""
    # The library has it four times, and dlsym() finds the oldest: that one has no version.
    with contextlib.suppress(AttributeError):
        dlvsym = ctypes.CDLL(None).dlvsym
        dlvsym.restype = ctypes.c_void_p
        if address := dlvsym(ctypes.c_void_p(library._handle), b"fuse_new", b"FUSE_2.6"):
            return _fuse_new(address)
    return _fuse_new(("fuse_new", library))


def _arguments(options: str) -> _fuse_args:
    return _fuse_args(3, (ctypes.c_char_p * 3)(b"kdamon", b"-o", options.encode()), 0)


class Channel:
    """A connection, to be made, served and closed once each.

    :param device: a descriptor of ``/dev/fuse`` that belongs to a mount; :meth:`close` closes it.
    :param directory: instead of it, the name of where fusermount is to mount, for a process that may not.
    :param settings: options of that mount.
    :raises OSError: EIO fusermount refuses; it says why on stderr.
    """

    def __init__(self, device: int | None = None, directory: str = "", settings: str = "") -> None:
        self._fuse = load_fuse()
        self._library = self._fuse._libfuse
        self._session = ctypes.c_void_p()
        self._library.fuse_kern_chan_new.restype = self._library.fuse_mount.restype = ctypes.c_void_p
        if device is not None:
            channel = self._library.fuse_kern_chan_new(device)
        else:
            channel = self._library.fuse_mount(os.fsencode(directory), ctypes.byref(_arguments(settings)))
        if not channel:
            raise OSError(errno.EIO, f"cannot mount on {directory}: fusermount refused; it said why on stderr")
        self._channel = ctypes.c_void_p(channel)

    def serve(self, operations: Any) -> None:
        """Answer requests, in threads of libfuse, until the file system is unmounted.

        :param operations: as for fusepy's class FUSE; names are in latin-1, which gives every byte back as it came.
        :raises OSError: EIO libfuse gave up; it says why on stderr.
        """
        # The constructor is what mounts.
        served = self._fuse.FUSE.__new__(self._fuse.FUSE)
        served.operations, served.raw_fi, served.encoding, served.use_ns = operations, False, "latin-1", True
        table = self._fuse.fuse_operations()
        for name, prototype, *_bits in table._fields_:
            # fusepy does these two by the operations that have no "f".
            if hasattr(operations, {"ftruncate": "truncate", "fgetattr": "getattr"}.get(name, name)):
                setattr(table, name, prototype(functools.partial(served._wrapper, getattr(served, name))))
        new, arguments = _newest_fuse_new(self._library), _arguments(_OPTIONS)
        self._session.value = new(self._channel, arguments, ctypes.byref(table), ctypes.sizeof(table), None)
        if not self._session or self._library.fuse_loop_mt(self._session):
            raise OSError(errno.EIO, "FUSE gave up; it said why on stderr")

    def connected(self) -> bool:
        """Return whether the file system is mounted, or in use, still."""
        poll = select.poll()
        poll.register(self._library.fuse_chan_fd(self._channel), select.POLLERR)
        return not poll.poll(0)

    def close(self) -> None:
        """Close the device; what is mounted still is dead from now on."""
        if self._session:
            self._library.fuse_destroy(self._session)
        else:
            self._library.fuse_chan_destroy(self._channel)
