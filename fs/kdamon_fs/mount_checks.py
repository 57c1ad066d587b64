# SPDX-License-Identifier: GPL-2.0-only
"""What mounting the tree takes, tried or looked at before: libfuse would only say that it failed."""

from __future__ import annotations

import errno
import shutil

from kdamon.mm.rights import OWN, missing_capability, owns_mount_namespace, refusal

__all__ = ["check_may_mount", "check_may_unshare", "refusal_to_unshare"]


def check_may_mount() -> None:
    """Look whether this process, or fusermount for it, may mount; OSError EPERM what is missing and what to do."""
    if not owns_mount_namespace():
        raise OSError(
            errno.EPERM,
            "mounting needs a mount namespace that belongs to this user namespace, and this one belongs to one above; "
            "make one, as by 'unshare -Urm' instead of 'unshare -Ur', or run kdamon outside",
        )
    if missing_capability("CAP_SYS_ADMIN") and shutil.which("fusermount") is None:
        raise refusal(
            "mounting needs",
            "mount()",
            "CAP_SYS_ADMIN",
            where=OWN,
            otherwise="install fusermount ('apt install fuse'), which mounts for users",
        )


def check_may_unshare() -> None:
    """Look whether this process may make a mount namespace; OSError EPERM what is missing and what to do."""
    if missing_capability("CAP_SYS_ADMIN"):
        raise refusal_to_unshare()


def refusal_to_unshare() -> OSError:
    """The reason why no mount namespace can be made, and what to do about it."""
    return refusal("a mount namespace of its own needs", "unshare()", "CAP_SYS_ADMIN", where=OWN)
