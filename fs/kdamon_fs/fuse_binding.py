# SPDX-License-Identifier: GPL-2.0-only
"""Finds a usable Python package for FUSE, its libfuse and ``/dev/fuse``, and reports which of them is missing.

There are two bindings: fusepy with libfuse 2, and mfusepy with libfuse 3 for systems without libfuse 2.
:func:`choose_binding` chooses the first that works, or the one that ``KDAMON_FUSE`` names.

Other packages also have a Python module ``fuse``, and other libraries can be loaded as libfuse; the names that kdamon
needs distinguish them. ``kdamon doctor`` and a mount use the same functions.
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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Final, Literal

from attrs import frozen

from kdamon.lib.path_walk import UntrustedError
from kdamon.lib.rights import MissingRights
from kdamon.lib.trusted import open_trusted
from kdamon_fs.fuse_packages import Need, how_to_install

__all__ = [
    "Binding",
    "Lack",
    "check_choice",
    "choose_binding",
    "device_lack",
    "fusermount_of_binding",
    "load_fuse",
    "open_device",
]

_DEVICE: Final = "/dev/fuse"
#: Major and minor number of the device (Documentation/admin-guide/devices.txt).
_DEVICE_NUMBER: Final = os.makedev(10, 229)

#: Names the binding to use.
_CHOICE: Final = "KDAMON_FUSE"
#: Both packages read the library's name from it; without it, they search with programs on PATH, such as gcc.
_VARIABLE: Final = "FUSE_LIBRARY_PATH"
_RUN_AS_ROOT: Final = "run as root"


@frozen(slots=True)
class Lack:
    """A missing requirement.

    :ivar number: errno for a mount that fails because of it.
    :ivar why: the problem; a sentence without capital and full stop.
    :ivar remedy: the remedy, likewise.
    """

    number: int
    why: str
    remedy: str

    def error(self, what: str) -> OSError:
        """The error for the operation ``what``, which needs it."""
        if self.remedy == _RUN_AS_ROOT:
            return MissingRights(f"{what}: {self.why}")
        return OSError(self.number, f"{what}: {self.why}; remedy: {self.remedy}")


@frozen(slots=True)
class Binding:
    """A Python package and the library that it has loaded.

    :ivar package: its name.
    :ivar module: its module.
    :ivar library: the library's name, as passed to the loader.
    :ivar version: major and minor number of libfuse.
    :ivar because: why it is not the first choice; empty if it is.
    """

    package: str
    module: ModuleType
    library: str
    version: tuple[int, int]
    because: str = ""

    def __str__(self) -> str:
        major, minor = self.version
        because = f", because {self.because}" if self.because else ""
        return f"{self.package} with libfuse {major}.{minor} ({self.library}){because}"


@frozen(slots=True)
class _Kind:
    """One of the bindings.

    :ivar package: name of the Python package.
    :ivar module: name of its module.
    :ivar names: the module's names that a mount uses; no other module of the same name has all of them.
    :ivar need: the library that it needs.
    :ivar libraries: names of this library for the loader, newest first.
    :ivar versions: the supported versions: the oldest, and the first that is too new.
    :ivar symbols: the functions that :mod:`kdamon_fs.fuse_channel` calls.
    :ivar needed: the supported versions in words.
    :ivar fusermount: the program with which this library mounts for unprivileged users.
    """

    package: str
    module: str
    names: tuple[str, ...]
    need: Need
    libraries: tuple[str, ...]
    versions: tuple[tuple[int, int], tuple[int, int]]
    needed: str
    symbols: tuple[str, ...]
    fusermount: Literal["fusermount", "fusermount3"]

    def takes(self, version: tuple[int, int]) -> bool:
        oldest, too_new = self.versions
        return oldest <= version < too_new


#: In the order in which they are tried.
_KINDS: Final = (
    _Kind(
        package="fusepy",
        module="fuse",
        names=("FUSE", "FuseOSError", "Operations", "fuse_operations"),
        need="libfuse 2",
        libraries=("libfuse.so.2",),
        versions=((2, 8), (3, 0)),
        needed="2.9",
        symbols=("fuse_main_real", "fuse_new", "fuse_kern_chan_new", "fuse_loop_mt", "fuse_chan_fd"),
        fusermount="fusermount",
    ),
    _Kind(
        package="mfusepy",
        module="mfusepy",
        names=("FUSE", "FuseOSError", "Operations", "fuse_operations", "fuse_config"),
        need="libfuse 3",
        libraries=("libfuse3.so.4", "libfuse3.so.3"),
        # Older versions have a different struct for the loop, and are found only beside libfuse 2.
        versions=((3, 12), (4, 0)),
        needed="3.12 or newer",
        symbols=("fuse_new_31", "fuse_mount", "fuse_loop_mt_312", "fuse_loop_cfg_create", "fuse_session_fd"),
        fusermount="fusermount3",
    ),
)
#: Functions of every libfuse.
_SYMBOLS: Final = ("fuse_get_context", "fuse_exit", "fuse_version")


@frozen(slots=True)
class _Library:
    name: str
    version: tuple[int, int]


def load_fuse() -> Binding:
    """The binding with which this process serves a tree.

    :raises OSError: ENOSYS a requirement is missing, with the remedy; EINVAL ``KDAMON_FUSE`` names no binding.
    """
    found = choose_binding()
    if isinstance(found, Lack):
        raise found.error("cannot mount")
    return found


def check_choice() -> None:
    """Reject a value of ``KDAMON_FUSE`` that names no binding: OSError EINVAL."""
    chosen = os.environ.get(_CHOICE)
    if chosen and chosen not in (kind.package for kind in _KINDS):
        names = " or ".join(kind.package for kind in _KINDS)
        raise OSError(errno.EINVAL, f"{_CHOICE}={chosen!r} names no FUSE binding: set it to {names}, or unset it")


def choose_binding() -> Binding | Lack:
    """The first working binding that ``KDAMON_FUSE`` and ``FUSE_LIBRARY_PATH`` allow, or the missing requirement.

    Loads the library.
    """
    try:
        check_choice()
    except OSError as error:
        why, _, remedy = (error.strerror or "").partition(": ")
        return Lack(errno.EINVAL, why, remedy)
    chosen = os.environ.get(_CHOICE)
    kinds = [kind for kind in _KINDS if chosen in (None, "", kind.package)]
    missing: list[str] = []
    strangers: list[Lack] = []
    for kind in kinds:
        library = _find_library(kind, kinds)
        if isinstance(library, str):
            missing.append(library)
            continue
        module = _import(kind, library)
        if isinstance(module, Lack):
            strangers.append(module)
            continue
        before = [*missing, *(lack.why for lack in strangers)]
        because = f"{_CHOICE} is set" if chosen else before[0] if before else ""
        return Binding(kind.package, module, library.name, library.version, because)
    return strangers[0] if strangers else Lack(errno.ENOSYS, _in_one(missing), _library_remedy(kinds))


def fusermount_of_binding() -> Literal["fusermount", "fusermount3"]:
    """The program with which this process's libfuse mounts for users; without a libfuse, that of the newest one."""
    found = choose_binding()
    package = _KINDS[-1].package if isinstance(found, Lack) else found.package
    return next(kind.fusermount for kind in _KINDS if kind.package == package)


def _in_one(missing: Sequence[str]) -> str:
    """The problem of each library, in one sentence."""
    needs = [kind.need for kind in _KINDS]
    if list(missing) == [_not_installed(need) for need in needs]:
        return f"neither {' nor '.join(needs)} is installed"
    return ", and ".join(dict.fromkeys(missing))


def _library_remedy(kinds: Sequence[_Kind]) -> str:
    """The remedy where no library of these bindings can be used."""
    if os.environ.get(_VARIABLE):
        return f"unset {_VARIABLE}, or let it name {' or '.join(kind.need for kind in kinds)}"
    if len(kinds) < len(_KINDS):
        return f"{how_to_install(kinds[0].need)}, or unset {_CHOICE}"
    return how_to_install("libfuse")


def _not_installed(need: Need) -> str:
    return f"{need} is not installed"


def _find_library(kind: _Kind, kinds: Sequence[_Kind]) -> _Library | str:
    """The library for a binding, or its problem.

    :param kinds: the allowed bindings, for a sentence about the variable.
    """
    if asked_for := os.environ.get(_VARIABLE):
        found = _untrusted(asked_for) or _judge(asked_for, kinds)
        if isinstance(found, _Library) and not kind.takes(found.version):
            # It is for the other binding.
            found = _wrong_version(found.version, [kind])
        return found if isinstance(found, _Library) else f"{_VARIABLE} names {asked_for}, which {found}"
    name = next(filter(_loads, kind.libraries), None)
    if name is None:
        return _not_installed(kind.need)
    found = _judge(name, [kind])
    return found if isinstance(found, _Library) else f"{name} {found}"


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def _untrusted(path: str) -> str | None:
    """The problem of a file whose code this process would run; the loader looks up a name without a slash."""
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


def _judge(path: str, kinds: Sequence[_Kind]) -> _Library | str:
    """A library that one of ``kinds`` supports, or its problem."""
    # The loader would block on a FIFO without a writer. It searches its library path for a name without a slash.
    if "/" in path and os.path.exists(path) and not os.path.isfile(path):
        return "cannot be loaded (it is not a regular file)"
    try:
        library = ctypes.CDLL(path)
    except (OSError, ValueError) as error:
        return f"cannot be loaded ({error})"
    if not all(hasattr(library, symbol) for symbol in _SYMBOLS):
        return "is not libfuse"
    number: int = library.fuse_version()
    # libfuse 3 counts in hundreds since 3.10.
    version = divmod(number, 100 if number >= 100 else 10)
    kind = next((kind for kind in kinds if kind.takes(version)), None)
    if kind is None:
        return _wrong_version(version, kinds)
    if not all(hasattr(library, symbol) for symbol in kind.symbols):
        return "is not libfuse"
    return _Library(path, version)


def _wrong_version(version: tuple[int, int], kinds: Sequence[_Kind]) -> str:
    needed = " (or ".join(kind.needed for kind in kinds) + ")" * (len(kinds) - 1)
    return f"is libfuse {version[0]}.{version[1]}, where {needed} is needed"


def _import(kind: _Kind, library: _Library) -> ModuleType | Lack:
    """The module of a binding, which loads the library; or its problem."""
    if kind.module not in sys.modules and importlib.util.find_spec(kind.module) is None:
        why = f"the Python package {kind.package} is not installed"
        return Lack(errno.ENOSYS, why, f"pip install {kind.package}")
    try:
        with _naming(library):
            module = importlib.import_module(kind.module)
    except (Exception, SystemExit) as error:
        # The file may belong to any package, or be a script, and raise any exception.
        return _stranger(kind, type(error).__name__)
    if not all(hasattr(module, name) for name in kind.names):
        return _stranger(kind, "")
    return module


@contextmanager
def _naming(library: _Library) -> Iterator[None]:
    """Let a package load the library by its name instead of searching for it."""
    before = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = library.name
    try:
        yield
    finally:
        del os.environ[_VARIABLE]
        if before is not None:
            os.environ[_VARIABLE] = before


def _stranger(kind: _Kind, problem: str) -> Lack:
    package = kind.package
    spec = getattr(sys.modules.get(kind.module), "__spec__", None) or importlib.util.find_spec(kind.module)
    places = [] if spec is None else [spec.origin, *(spec.submodule_search_locations or ())]
    file = next((place for place in places if place), kind.module)
    why = f"{file} is not {package}" + (f" (it raises {problem})" if problem else "")
    owners = set(importlib.metadata.packages_distributions().get(kind.module, ()))
    strangers = sorted(owners - {package})
    if strangers:
        remedy = f"pip uninstall {' '.join(strangers)}, then pip install --force-reinstall {package}"
    elif owners:
        remedy = f"move that file away, or pip install --force-reinstall {package}"
    else:
        remedy = f"move that file away, and pip install {package}"
    return Lack(errno.ENOSYS, why, remedy)


def open_device() -> int:
    """Open ``/dev/fuse`` for a file system that this process mounts itself."""
    return os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)


def device_lack() -> Lack | None:
    """The reason why this process cannot use ``/dev/fuse``; None if it can."""
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
        return Lack(errno.ENODEV, f"{_DEVICE} is not the FUSE device", _device_remedy(errno.ENOENT))
    return None


def _device_remedy(number: int | None) -> str:
    """The remedy for a device that cannot be opened; it depends on the error."""
    in_container = "a container needs it from its start, for example with --device /dev/fuse"
    if number in (errno.EACCES, errno.EPERM):
        return in_container if os.geteuid() == 0 else _RUN_AS_ROOT
    if number == errno.ENOENT and _kernel_has_fuse():
        return f"create it with 'mknod {_DEVICE} c 10 229'; {in_container}"
    return "load it with 'modprobe fuse'"


def _kernel_has_fuse() -> bool:
    try:
        with open("/proc/filesystems", "rb") as lines:
            return any(line.split()[-1:] == [b"fuse"] for line in lines)
    except OSError:
        return False
