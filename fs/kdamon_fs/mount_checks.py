# SPDX-License-Identifier: GPL-2.0-only
"""What mounting the tree takes, tried or looked at before: libfuse would only say that it failed."""

from __future__ import annotations

import errno
import os
import shutil

from kdamon.lib.rights import OWN, missing_capability, needs_linux, owns_mount_namespace, refusal
from kdamon_fs.fuse_binding import fusermount_of_binding
from kdamon_fs.fuse_packages import how_to_install

__all__ = ["check_may_mount", "check_may_unshare", "mounts_by_helper", "refusal_to_mount", "refusal_to_unshare"]


def check_may_mount() -> None:
    """Look whether this process, or fusermount for it, may mount; OSError EPERM what is missing and what to do."""
    if not owns_mount_namespace():
        raise OSError(
            errno.EPERM,
            "mounting needs a mount namespace that belongs to this user namespace, and this one belongs to one above; "
            "make one, as by 'unshare -Urm' instead of 'unshare -Ur', or run kdamon outside",
        )
    if not mounts_by_helper():
        return
    # The helper gives root nothing, and PATH may be another user's.
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
    """Return whether this process may not mount, so that fusermount has to."""
    return bool(missing_capability("CAP_SYS_ADMIN"))


def refusal_to_mount(number: int) -> OSError:
    """The reason why the kernel answered ``number``, EPERM or ENOSYS, to a process that may mount; and what to do."""
    if number == errno.ENOSYS:
        return OSError(number, f"mounting needs fsopen(); {needs_linux('5.2')}")
    return refusal("mounting needs", "fsopen()", "CAP_SYS_ADMIN", where=OWN)


def check_may_unshare() -> None:
    """Look whether this process may make a mount namespace; OSError EPERM what is missing and what to do."""
    if missing_capability("CAP_SYS_ADMIN"):
        raise refusal_to_unshare()


def refusal_to_unshare() -> OSError:
    """The reason why no mount namespace can be made, and what to do about it."""
    return refusal("a mount namespace of its own needs", "unshare()", "CAP_SYS_ADMIN", where=OWN)
