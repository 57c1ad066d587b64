# SPDX-License-Identifier: GPL-2.0-only
"""The connection to the kernel's FUSE, through libfuse and its Python package, without their accesses by name.

Their usual entry point, ``fuse_main()``, looks up the mount point by name, mounts there, finally unmounts whatever has
that name, and installs signal handlers. Here, :mod:`kdamon_fs.mount` mounts.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import select
from abc import ABC, abstractmethod
from typing import Any, Final, Protocol

from kdamon.lib.syscalls import libc
from kdamon_fs.fuse_binding import Binding, load_fuse

__all__ = ["Channel", "Operations", "connect"]

#: Options of both versions of libfuse. As in sysfs, content is not cached and inode numbers are the tree's: libfuse 2
#: has options for these, and with libfuse 3 ``init_with_config()`` sets them.
_OPTIONS: Final = "entry_timeout=60,attr_timeout=0"
_OPTIONS_2: Final = f"direct_io,use_ino,big_writes,{_OPTIONS}"
#: The mount options for fusermount.
_MOUNT_OPTIONS: Final = "fsname=kdamon,subtype=kdamon"
#: Maximum number of requests that may wait at a time, such as commands of a kdamond, while others are answered.
#: libfuse 3 has at most ten threads by default; libfuse 2 has no limit.
_MOST_THREADS: Final = 1000


class _fuse_args(ctypes.Structure):
    """``struct fuse_args`` (``fuse_opt.h``)."""

    _fields_ = (("argc", ctypes.c_int), ("argv", ctypes.POINTER(ctypes.c_char_p)), ("allocated", ctypes.c_int))


def _arguments(options: str) -> _fuse_args:
    return _fuse_args(3, (ctypes.c_char_p * 3)(b"kdamon", b"-o", options.encode()), 0)


class Operations(Protocol):
    """The operations of a file system: methods named as the members of ``struct fuse_operations``.

    The kernel handles those that are absent.

    :ivar use_ns: whether times are in nanoseconds.
    """

    use_ns: bool

    def __call__(self, operation: str, *arguments: Any) -> Any:
        """Call an operation by its name, as fusepy does."""
        ...


def connect(operations: Operations, device: int | None = None, directory: str = "") -> Channel:
    """Open a connection; mount if no device is given.

    :param operations: names are in latin-1, which preserves every byte.
    :param device: a descriptor of ``/dev/fuse`` that belongs to a mount; :meth:`Channel.close` closes it.
    :param directory: without a device, the directory's name on which fusermount mounts, for a process without rights.
    :raises OSError: ENOSYS a requirement is missing; EIO libfuse or fusermount failed; its message is on stderr.
    """
    binding = load_fuse()
    return (_Channel3 if binding.version[0] == 3 else _Channel2)(binding, operations, device, directory)


class Channel(ABC):
    """A connection; :meth:`serve` and :meth:`close` may be called once each."""

    def __init__(self, binding: Binding, operations: Operations) -> None:
        self._library = binding.module._libfuse
        self._table = _callbacks(binding, operations)

    def serve(self) -> None:
        """Answer requests in threads of libfuse until the file system is unmounted.

        :raises OSError: EIO libfuse failed; its message is on stderr.
        """
        if self._loop():
            raise OSError(errno.EIO, "libfuse failed; its message is on stderr")

    def connected(self) -> bool:
        """Return whether the file system is still mounted or in use."""
        poll = select.poll()
        poll.register(self._descriptor(), select.POLLERR)
        return not poll.poll(0)

    @abstractmethod
    def close(self) -> None:
        """Close the device; every remaining mount is dead from now on."""

    @abstractmethod
    def _loop(self) -> int:
        """Serve; return 0, or another number for an error."""

    @abstractmethod
    def _descriptor(self) -> int:
        """The descriptor of the device."""


def _callbacks(binding: Binding, operations: Operations) -> ctypes.Structure:
    """``struct fuse_operations`` with those of a package's functions that have an operation here."""
    # Only the package's constructor would mount.
    served = binding.module.FUSE.__new__(binding.module.FUSE)
    served.operations, served.raw_fi, served.use_ns = operations, False, True
    served.encoding, served.errors = "latin-1", "strict"
    # mfusepy sets by itself what the operation init_with_config() sets here.
    served._libfuse2_options_moved_into_libfuse3_config = {}
    table: ctypes.Structure = binding.module.fuse_operations()
    for name, prototype, *_bits in binding.module.fuse_operations._fields_:
        # An operation with "f" in its name (fgetattr) defaults to the one without.
        if hasattr(operations, {"ftruncate": "truncate", "fgetattr": "getattr"}.get(name, name)):
            # mfusepy has some operations with the arguments of either version.
            callback = getattr(served, f"{name}_fuse_{binding.version[0]}", None) or getattr(served, name)
            setattr(table, name, prototype(functools.partial(served._wrapper, callback)))
    return table


class _Channel2(Channel):
    """A connection through libfuse 2."""

    def __init__(self, binding: Binding, operations: Operations, device: int | None, directory: str) -> None:
        super().__init__(binding, operations)
        library = self._library
        library.fuse_kern_chan_new.restype = library.fuse_mount.restype = ctypes.c_void_p
        if device is not None:
            channel = library.fuse_kern_chan_new(device)
        else:
            options = _MOUNT_OPTIONS + (",nonempty" if os.listdir(directory) else "")
            channel = library.fuse_mount(os.fsencode(directory), ctypes.byref(_arguments(options)))
        if not channel:
            raise _refused(directory)
        self._channel = ctypes.c_void_p(channel)
        new, table = _newest_fuse_new(library), self._table
        session = new(self._channel, _arguments(_OPTIONS_2), ctypes.byref(table), ctypes.sizeof(table), None)
        self._session = ctypes.c_void_p(session)
        if not session:
            library.fuse_chan_destroy(self._channel)
            raise OSError(errno.EIO, "libfuse rejected its options; its message is on stderr")

    def _loop(self) -> int:
        return int(self._library.fuse_loop_mt(self._session))

    def _descriptor(self) -> int:
        return int(self._library.fuse_chan_fd(self._channel))

    def close(self) -> None:
        self._library.fuse_destroy(self._session)


def _refused(directory: str) -> OSError:
    return OSError(errno.EIO, f"cannot mount on {directory}: fusermount failed; its message is on stderr")


_fuse_new = ctypes.CFUNCTYPE(
    ctypes.c_void_p, ctypes.c_void_p, ctypes.POINTER(_fuse_args), ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p
)


def _newest_fuse_new(library: ctypes.CDLL) -> Any:
    """``fuse_new()`` with the arguments that it has had since libfuse 2.6."""
    # The library exports four versions, and dlsym() finds the oldest, which has no symbol version.
    with contextlib.suppress(AttributeError):
        dlvsym = libc().dlvsym
        dlvsym.restype = ctypes.c_void_p
        if address := dlvsym(ctypes.c_void_p(library._handle), b"fuse_new", b"FUSE_2.6"):
            return _fuse_new(address)
    return _fuse_new(("fuse_new", library))


class _Channel3(Channel):
    """A connection through libfuse 3. Functions with a number in their name keep their arguments in all versions."""

    def __init__(self, binding: Binding, operations: Operations, device: int | None, directory: str) -> None:
        super().__init__(binding, operations)
        library, table = self._library, self._table
        library.fuse_new_31.restype = library.fuse_get_session.restype = ctypes.c_void_p
        library.fuse_loop_cfg_create.restype = ctypes.c_void_p
        options = _OPTIONS if device is not None else f"{_OPTIONS},{_MOUNT_OPTIONS}"
        session = library.fuse_new_31(
            ctypes.byref(_arguments(options)), ctypes.byref(table), ctypes.c_size_t(ctypes.sizeof(table)), None
        )
        self._session = ctypes.c_void_p(session)
        # With this name, libfuse uses the mounted device and looks up no path (fuse_session_mount()).
        where = f"/dev/fd/{device}" if device is not None else directory
        if not session:
            raise OSError(errno.EIO, "libfuse rejected its options; its message is on stderr")
        if library.fuse_mount(self._session, os.fsencode(where)):
            library.fuse_destroy(self._session)
            raise _refused(where)

    def _loop(self) -> int:
        library = self._library
        config = ctypes.c_void_p(library.fuse_loop_cfg_create())
        library.fuse_loop_cfg_set_max_threads(config, ctypes.c_uint(_MOST_THREADS))
        try:
            return int(library.fuse_loop_mt_312(self._session, config))
        finally:
            library.fuse_loop_cfg_destroy(config)

    def _descriptor(self) -> int:
        return int(self._library.fuse_session_fd(ctypes.c_void_p(self._library.fuse_get_session(self._session))))

    def close(self) -> None:
        self._library.fuse_destroy(self._session)
