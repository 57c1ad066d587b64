# SPDX-License-Identifier: GPL-2.0-only
"""The names of this distribution's packages for FUSE, for messages.

``/etc/os-release`` identifies the distribution. Debian renames packages between releases, so apt is asked which names
this release has.
"""

from __future__ import annotations

import glob
import platform
import subprocess
from collections.abc import Sequence
from typing import Final, Literal

__all__ = ["Need", "how_to_install"]

#: The possible requirements; "libfuse" stands for any version that kdamon can use.
Need = Literal["libfuse", "libfuse 2", "libfuse 3", "fusermount", "fusermount3"]

#: The command that installs packages, by the ID of os-release.
_COMMANDS: Final = {"debian": "apt install", "fedora": "dnf install", "arch": "pacman -S"}

#: Packages by distribution. Where Debian has several names, the newest comes first.
_PACKAGES: Final[dict[str, dict[Need, tuple[str, ...]]]] = {
    "debian": {
        "libfuse": ("libfuse2t64", "libfuse2", "libfuse3-4", "libfuse3-3"),
        "libfuse 2": ("libfuse2t64", "libfuse2"),
        "libfuse 3": ("libfuse3-4", "libfuse3-3"),
        "fusermount": ("fuse",),
        "fusermount3": ("fuse3",),
    },
    "fedora": {
        "libfuse": ("fuse3-libs",),
        "libfuse 2": ("fuse-libs",),
        "libfuse 3": ("fuse3-libs",),
        "fusermount": ("fuse",),
        "fusermount3": ("fuse3",),
    },
    "arch": {
        "libfuse": ("fuse3",),
        "libfuse 2": ("fuse2",),
        "libfuse 3": ("fuse3",),
        "fusermount": ("fuse2",),
        "fusermount3": ("fuse3",),
    },
}

#: Attributes of nixpkgs. NixOS has no directory of libraries, so a variable has to name the file.
_NIX_LIBRARIES: Final[dict[Need, str]] = {
    "libfuse": "fuse3.out)/lib/libfuse3.so",
    "libfuse 2": "fuse.out)/lib/libfuse.so.2",
    "libfuse 3": "fuse3.out)/lib/libfuse3.so",
}

_APT_CACHE: Final = "/usr/bin/apt-cache"
_APT_LISTS: Final = "/var/lib/apt/lists/*_Packages*"
#: Time limit in seconds for apt to look up names: it takes about one, more on a busy machine.
_PATIENCE: Final = 60


def how_to_install(need: Need) -> str:
    """The remedy on this distribution for a missing requirement; a sentence without capital and full stop."""
    distribution = _distribution()
    if distribution == "nixos":
        if library := _NIX_LIBRARIES.get(need):
            return f"export FUSE_LIBRARY_PATH=$(nix-build --no-out-link '<nixpkgs>' -A {library}"
        return "set 'programs.fuse.enable = true' in the configuration"
    if distribution is None:
        what = "libfuse 3 (libfuse3.so.3 or libfuse3.so.4)" if need == "libfuse" else need
        return f"install {what} with the package manager of this system"
    names = _PACKAGES[distribution][need]
    if len(names) > 1 and (known := _known_to_apt()) is not None:
        names = tuple(name for name in names if name in known)[:1]
        if not names:
            return f"this release has no package with {need}"
    first, *others = names
    command = f"{_COMMANDS[distribution]} {first}"
    return f"{command} (or {_any_of(others)}, whichever this release has)" if others else command


def _any_of(names: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _distribution() -> str | None:
    """This distribution's key in the tables, or that of one named in its ``ID_LIKE``; None if there is none."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return None
    names = (release.get("ID", ""), *release.get("ID_LIKE", "").split())
    # Ubuntu and its derivatives are like Debian, RHEL and its rebuilds like Fedora.
    return next((name for name in names if name == "nixos" or name in _PACKAGES), None)


def _known_to_apt() -> set[str] | None:
    """The packages with libfuse in this release; None if unknown."""
    # Without package lists, apt knows the installed packages only.
    if not glob.glob(_APT_LISTS):
        return None
    try:
        # apt runs without the caller's environment, which root may have inherited from another user.
        done = subprocess.run(
            [_APT_CACHE, "pkgnames", "libfuse"],
            env={},
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return set(done.stdout.split())
