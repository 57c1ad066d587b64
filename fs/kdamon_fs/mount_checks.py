# SPDX-License-Identifier: GPL-2.0-only
"""Checks the requirements of a mount before libfuse is called, which would not report the reason of a failure."""

from __future__ import annotations

import errno
import os
import shutil

from kdamon.lib.rights import OWN, missing_capability, needs_linux, owns_mount_namespace, refusal
from kdamon_fs.fuse_binding import fusermount_of_binding
from kdamon_fs.fuse_packages import how_to_install

__all__ = ["check_may_mount", "check_may_unshare", "mounts_by_helper", "refusal_to_mount", "refusal_to_unshare"]


def check_may_mount() -> None:
    """Check that this process, or fusermount for it, may mount; else OSError EPERM with problem and remedy."""
    if not owns_mount_namespace():
        raise OSError(
            errno.EPERM,
            "mounting needs a mount namespace of this user namespace, and the present one belongs to a parent; "
            "create one ('unshare -Urm' instead of 'unshare -Ur'), or run kdamon outside",
        )
    if not mounts_by_helper():
        return
    # root does not need fusermount, and root's PATH may contain another user's directories.
    if os.geteuid() == 0:
        raise refusal("mounting needs", "mount()", "CAP_SYS_ADMIN", where=OWN)
    fusermount = fusermount_of_binding()
    if shutil.which(fusermount) is None:
        raise refusal(
            "mounting needs",
            "mount()",
            "CAP_SYS_ADMIN",
            where=OWN,
            otherwise=f"install {fusermount}, which mounts for users ({how_to_install(fusermount)})",
        )


def mounts_by_helper() -> bool:
    """Return whether only fusermount can mount for this process, which may not itself."""
    return bool(missing_capability("CAP_SYS_ADMIN"))


def refusal_to_mount(number: int) -> OSError:
    """The error, with remedy, after a privileged process got the errno ``number``, EPERM or ENOSYS, from a mount."""
    if number == errno.ENOSYS:
        return OSError(number, f"mounting needs fsopen(); {needs_linux('5.2')}")
    return refusal("mounting needs", "fsopen()", "CAP_SYS_ADMIN", where=OWN)


def check_may_unshare() -> None:
    """Check that this process may create a mount namespace; else OSError EPERM with problem and remedy."""
    if missing_capability("CAP_SYS_ADMIN"):
        raise refusal_to_unshare()


def refusal_to_unshare() -> OSError:
    """The error, with remedy, where no mount namespace can be created."""
    return refusal("a mount namespace of its own needs", "unshare()", "CAP_SYS_ADMIN", where=OWN)
