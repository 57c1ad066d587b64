# SPDX-License-Identifier: GPL-2.0-only
"""FUSE: fusepy, libfuse 2 and ``/dev/fuse``; what is missing of them, and how to get it.

Other packages have a Python module ``fuse`` as well, and other libraries can be loaded as libfuse: both are recognized
by what is needed of them. ``kdamon doctor`` and a mount ask the same functions.
"""

from __future__ import annotations

import ctypes
import errno
import importlib
import importlib.metadata
import importlib.util
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Final

from attrs import frozen

from kdamon.lib.path_walk import UntrustedError
from kdamon.lib.trusted import open_trusted

__all__ = ["Lack", "device_lack", "load_fuse", "open_device", "python_fuse"]

_DEVICE: Final = "/dev/fuse"
#: Major and minor number of the device (Documentation/admin-guide/devices.txt).
_DEVICE_NUMBER: Final = os.makedev(10, 229)

#: What fusepy calls of libfuse 2. The first takes other arguments in libfuse 3.
_SYMBOLS: Final = ("fuse_main_real", "fuse_get_context", "fuse_exit", "fuse_version")
#: The versions of libfuse that have what a mount asks for, as fuse_version() answers them: 2.8 and 2.9.
_VERSIONS: Final = range(28, 30)
#: What a mount uses of fusepy, and what no other module of its name has.
_NAMES: Final = ("FUSE", "FuseOSError", "Operations", "fuse_operations")

#: Where fusepy takes the library's name from; without it, it searches by programs of PATH, such as gcc.
_VARIABLE: Final = "FUSE_LIBRARY_PATH"
#: Names of libfuse 2, and of the versions that are none, for the loader.
_LIBRARY: Final = "libfuse.so.2"
_SUCCESSORS: Final = ("libfuse3.so.3", "libfuse3.so.4")
_LIBRARY_PACKAGE: Final = "apt install libfuse2 (libfuse2t64 on newer releases)"


@frozen(slots=True)
class Lack:
    """Something that is missing.

    :ivar number: errno for a mount that fails because of it.
    :ivar why: what is wrong; a sentence without capital and full stop.
    :ivar remedy: what to do.
    """

    number: int
    why: str
    remedy: str

    def error(self, what: str) -> OSError:
        """The error of ``what``, which cannot go on."""
        return OSError(self.number, f"{what}: {self.why}; remedy: {self.remedy}")


def load_fuse() -> ModuleType:
    """fusepy's module, with libfuse 2.

    :raises OSError: ENOSYS: what is missing, and what to do.
    """
    module = python_fuse()
    if isinstance(module, Lack):
        raise module.error("cannot mount")
    return module


def python_fuse() -> ModuleType | Lack:
    """fusepy's module with libfuse 2, or what is missing."""
    if "fuse" not in sys.modules and importlib.util.find_spec("fuse") is None:
        return Lack(errno.ENOSYS, "the Python package fusepy is not installed", "pip install fusepy")
    if lack := _library_lack():
        return lack
    try:
        with _naming_library():
            module = importlib.import_module("fuse")
    except (Exception, SystemExit) as error:
        # The file may be of any package, or a script, and raise anything.
        return _not_fusepy(type(error).__name__)
    if not all(hasattr(module, name) for name in _NAMES):
        return _not_fusepy("")
    return module


@contextmanager
def _naming_library() -> Iterator[None]:
    """Let fusepy load the library by its name instead of searching for it."""
    asked_for = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = asked_for or _LIBRARY
    try:
        yield
    finally:
        del os.environ[_VARIABLE]
        if asked_for is not None:
            os.environ[_VARIABLE] = asked_for


def _library_lack() -> Lack | None:
    """What is wrong with the library that fusepy is going to load."""
    asked_for = os.environ.get(_VARIABLE)
    if asked_for:
        remedy = f"unset {_VARIABLE}, or let it name libfuse.so.2"
        wrong = _untrusted(asked_for) or _wrong_with(asked_for)
        return None if wrong is None else Lack(errno.ENOSYS, f"{_VARIABLE} names {asked_for}, which {wrong}", remedy)
    if not _loads(_LIBRARY):
        only = "libfuse 3 is, and it is no substitute" if any(map(_loads, _SUCCESSORS)) else "it is what fusepy loads"
        return Lack(errno.ENOSYS, f"libfuse 2 is not installed ({only})", _LIBRARY_PACKAGE)
    wrong = _wrong_with(_LIBRARY)
    return None if wrong is None else Lack(errno.ENOSYS, f"{_LIBRARY} {wrong}", _LIBRARY_PACKAGE)


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def _untrusted(path: str) -> str | None:
    """What is wrong with a file whose code this process is to run; a name without a slash is one of the loader's."""
    if "/" not in path:
        return None
    try:
        os.close(open_trusted(os.path.abspath(path)))
    except UntrustedError as error:
        return f"is not trusted ({error.strerror})"
    except (OSError, ValueError):
        # It cannot be loaded.
        return None
    return None


def _wrong_with(path: str) -> str | None:
    # The loader would wait for a writer of a FIFO. A name without a slash is looked up among libraries.
    if "/" in path and os.path.exists(path) and not os.path.isfile(path):
        return "cannot be loaded (it is no regular file)"
    try:
        library = ctypes.CDLL(path)
    except (OSError, ValueError) as error:
        return f"cannot be loaded ({error})"
    if not all(hasattr(library, symbol) for symbol in _SYMBOLS):
        return "is not libfuse"
    version: int = library.fuse_version()
    if version not in _VERSIONS:
        # libfuse 3 counts in hundreds since 3.10.
        major, minor = divmod(version, 100 if version >= 100 else 10)
        return f"is libfuse {major}.{minor}, where 2.9 is needed"
    return None


def _not_fusepy(problem: str) -> Lack:
    spec = getattr(sys.modules.get("fuse"), "__spec__", None) or importlib.util.find_spec("fuse")
    places = [] if spec is None else [spec.origin, *(spec.submodule_search_locations or ())]
    file = next((place for place in places if place), "fuse")
    why = f"{file} is not fusepy" + (f" (it raises {problem})" if problem else "")
    owners = set(importlib.metadata.packages_distributions().get("fuse", ()))
    strangers = sorted(owners - {"fusepy"})
    if strangers:
        remedy = f"pip uninstall {' '.join(strangers)}, then pip install --force-reinstall fusepy"
    elif owners:
        remedy = "move that file away, or pip install --force-reinstall fusepy"
    else:
        remedy = "move that file away, and pip install fusepy"
    return Lack(errno.ENOSYS, why, remedy)


def open_device() -> int:
    """Open ``/dev/fuse``, for a file system that this process mounts itself."""
    return os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)


def device_lack() -> Lack | None:
    """What keeps this process from using ``/dev/fuse``."""
    try:
        device = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        why = f"{_DEVICE} cannot be opened ({error.strerror})"
        return Lack(error.errno or errno.EIO, why, _device_remedy(error.errno))
    try:
        status = os.fstat(device)
    finally:
        os.close(device)
    if not stat.S_ISCHR(status.st_mode) or status.st_rdev != _DEVICE_NUMBER:
        return Lack(errno.ENODEV, f"{_DEVICE} is something else than the FUSE device", _device_remedy(errno.ENOENT))
    return None


def _device_remedy(number: int | None) -> str:
    """What to do about a device that cannot be opened: it depends on who denies it."""
    in_container = "a container has to be started with it, as by --device /dev/fuse"
    if number in (errno.EACCES, errno.EPERM):
        return in_container if os.geteuid() == 0 else "run as root"
    if number == errno.ENOENT and _kernel_has_fuse():
        return f"make it by 'mknod {_DEVICE} c 10 229'; {in_container}"
    return "load it with 'modprobe fuse'"


def _kernel_has_fuse() -> bool:
    try:
        with open("/proc/filesystems", "rb") as lines:
            return any(line.split()[-1:] == [b"fuse"] for line in lines)
    except OSError:
        return False
