# SPDX-License-Identifier: GPL-2.0-only
"""Prepares the kernel's paths of DAMON in a private mount namespace: room for the tree, the kernel's DAMON covered.

``with preparing_places(modules, events)`` covers every path to the kernel's DAMON, which may be in use:

* ``/sys/kernel/mm`` and ``/sys/module``, by read-only copies with directories for the tree. No process can create a
  directory in sysfs itself. After the tree's mount ended, by ``umount`` or with kdamon, an empty directory of the copy
  remains. Modules that are loaded later do not appear in the copy.
* ``damon`` in any debugfs, and the same paths in any other mounted sysfs, whole or in part;
* DAMON's events in any tracefs: their directory, the files that can enable them by name or together with all others,
  and the other instances, which have all of them again. The list of events names those that kdamon serves
  (:mod:`kdamon_fs.trace_server`).

Not covered: file systems that are mounted later, and the kernel's paths once ``/sys/kernel/mm`` or ``/sys/module``
itself is unmounted. Both require root and intention.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from kdamon.lib.mountinfo import MountEntry, mounts
from kdamon.lib.replaceable import open_place
from kdamon.lib.watcher import mount_number
from kdamon_fs.mounts import (
    MS_BIND,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    mount,
)

__all__ = ["DAMON_DIRECTORY", "MODULE_DIRECTORY", "OWN_DIRECTORY", "preparing_places"]

log = logging.getLogger("kdamon")

#: The path of the kernel's own tree.
DAMON_DIRECTORY: Final = "/sys/kernel/mm/damon"

#: The path of the kernel's modules and their parameters.
MODULE_DIRECTORY: Final = "/sys/module"

#: Files for the command alone: this mount ends with the namespace, however kdamon ends.
OWN_DIRECTORY: Final = "/sys/kernel/mm/.kdamon"

#: Names of the kernel's directories for DAMON and its modules, also of those of an outer kdamon.
_MACHINES: Final = re.compile(r"damon(?:_.*)?$|\.kdamon$", re.DOTALL)

_TRACEFS_DIRECTORIES: Final = ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")


@contextlib.contextmanager
def preparing_places(modules: Sequence[str], events: Iterable[str]) -> Iterator[None]:
    """Cover the paths of the kernel's DAMON, and create the directories for the tree and its modules.

    Inside the context, the caller may put files for the command into :data:`OWN_DIRECTORY`; it is read-only afterwards.

    :param modules: names of the modules whose parameters the tree has.
    :param events: served tracepoints, such as ``damon:damon_aggregated``.
    :raises OSError: a directory cannot be created or covered.
    """
    parent = os.path.dirname(DAMON_DIRECTORY)
    _mount_tracefs()
    _copy_directory(parent, [os.path.basename(DAMON_DIRECTORY), os.path.basename(OWN_DIRECTORY)])
    _copy_directory(MODULE_DIRECTORY, modules)
    _hide_elsewhere(events)
    yield
    for copy in (parent, MODULE_DIRECTORY):
        mount("tmpfs", copy, flags=MS_REMOUNT | MS_RDONLY)


def _mount_tracefs() -> None:
    """Mount a tracefs, which damo needs, if there is none; if that fails, damo reports it itself."""
    for entry in mounts():
        if entry.fstype == "debugfs":
            with _opened(entry) as place:
                # The kernel automounts a tracefs there at the first access.
                os.path.exists(f"{place}/tracing/events")
    if any(entry.fstype == "tracefs" for entry in mounts()):
        return
    for directory in _TRACEFS_DIRECTORIES:
        if os.path.isdir(directory):
            try:
                mount("tracefs", directory, "tracefs")
            except OSError as error:
                log.warning("%s; damo needs it", error.strerror)
            return


def _copy_directory(parent: str, made: Sequence[str]) -> None:
    """Cover ``parent`` with a copy of its entries that has empty directories ``made`` in place of the kernel's."""
    try:
        covered = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            names = os.listdir(covered)
            mount("tmpfs", parent, "tmpfs", data="mode=755")
            for name in names:
                if not _MACHINES.match(name):
                    # Only this descriptor still reaches the covered directory.
                    _bind(f"/proc/self/fd/{covered}/{name}", os.path.join(parent, name))
        finally:
            os.close(covered)
        for name in made:
            os.mkdir(os.path.join(parent, name), 0o755)
    except OSError as error:
        raise OSError(error.errno, f"cannot create {made[0]} in {parent}: {error.strerror}") from None


def _bind(source: str, target: str) -> None:
    if os.path.isdir(source):
        os.mkdir(target)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o600))
    mount(source, target, flags=MS_BIND | MS_REC)


def _hide_elsewhere(events: Iterable[str]) -> None:
    """Cover the other paths of the kernel's DAMON, each with an entry of a directory of kdamon's own."""
    nothing, no_text = (os.path.join(OWN_DIRECTORY, name) for name in ("nothing", "no_text"))
    os.mkdir(nothing, 0o555)
    _write(no_text, b"")
    for number, entry in enumerate(mounts()):
        if entry.fstype not in ("sysfs", "debugfs", "tracefs"):
            continue
        with _opened(entry) as place:
            if place is None:
                continue
            hidden = ["/damon"]
            if entry.fstype == "sysfs":
                hidden = [] if entry.target == "/sys" else ["/kernel/mm/damon", *_machines_modules(entry, place)]
            elif entry.fstype == "tracefs":
                hidden = ["/events/damon", "/instances", "/set_event", "/events/enable"]
                if shown := _shown_at(entry, place, "/available_events"):
                    available = os.path.join(OWN_DIRECTORY, f"available_events.{number}")
                    _write(available, _available_events(shown, events))
                    mount(available, shown, flags=MS_BIND)
            for name in hidden:
                if shown := _shown_at(entry, place, name):
                    mount(nothing if os.path.isdir(shown) else no_text, shown, flags=MS_BIND)


@contextlib.contextmanager
def _opened(entry: MountEntry) -> Iterator[str | None]:
    """The path of a mount root's descriptor: users may move directories above it, and replace them by links.

    None where its name does not lead to it, because another mount covers it.
    """
    if entry.target.startswith("/sys/"):
        # No other user can change these names, and the copies have hundreds of them.
        yield entry.target
        return
    try:
        place = open_place(entry.target)
    except OSError as error:
        log.debug("%s is out of reach: %s", entry.target, error.strerror)
        yield None
        return
    try:
        yield f"/proc/self/fd/{place}" if mount_number(place) == entry.number else None
    finally:
        os.close(place)


def _shown_at(entry: MountEntry, path: str, place: str) -> str | None:
    """The path of ``place`` in a mount that may show only a part of its file system; the root if that is below it.

    :param path: the path of the mount's root.
    """
    if f"{entry.root}/".startswith(f"{place}/"):
        return path
    below = os.path.relpath(place, entry.root)
    shown = os.path.join(path, below)
    return shown if not below.startswith("..") and os.path.exists(shown) else None


def _machines_modules(entry: MountEntry, path: str) -> list[str]:
    """The paths of the modules in a sysfs that is mounted whole or in part."""
    if entry.root.startswith("/module/"):
        names = [entry.root.split("/")[2]]
    else:
        directory = _shown_at(entry, path, "/module")
        names = [] if directory is None else os.listdir(directory)
    return [f"/module/{name}" for name in names if _MACHINES.match(name)]


def _available_events(path: str, events: Iterable[str]) -> bytes:
    """The event list of a tracefs, with the served events of DAMON instead of the kernel's."""
    try:
        with open(path, "rb") as lines:
            others = [line for line in lines if not line.startswith(b"damon:")]
    except OSError:
        others = []
    return b"".join([*others, *(f"{event}\n".encode() for event in events)])


def _write(path: str, content: bytes) -> None:
    with open(path, "xb") as file:
        file.write(content)
