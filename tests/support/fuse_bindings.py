# SPDX-License-Identifier: GPL-2.0-only
"""Which bindings of FUSE this machine has; tests that mount do so by each (fixture ``fuse_binding``)."""

from __future__ import annotations

import functools
import os

from pytest import MonkeyPatch

from kdamon_fs.fuse_binding import Binding, Lack, choose_binding

PACKAGES = ("fusepy", "mfusepy")


@functools.cache
def bindings() -> dict[str, Binding | Lack]:
    """What each package finds; of one that ``KDAMON_FUSE`` names, only that."""
    found = {}
    for package in PACKAGES:
        if os.environ.get("KDAMON_FUSE") in (None, "", package):
            with MonkeyPatch.context() as environment:
                environment.setenv("KDAMON_FUSE", package)
                found[package] = choose_binding()
    return found


def usable() -> list[str]:
    """The packages whose library is installed."""
    return [package for package, binding in bindings().items() if isinstance(binding, Binding)]
