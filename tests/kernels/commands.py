# SPDX-License-Identifier: GPL-2.0-only
"""Programs of this machine that the laboratory uses."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

__all__ = ["missing_packages", "output_of", "run"]

#: Debian's package for each program.
_PACKAGES: Final = {
    "qemu-system-x86_64": "qemu-system-x86",
    "debootstrap": "debootstrap",
    "cpio": "cpio",
    "depmod": "kmod",
    "mke2fs": "e2fsprogs",
    "mkswap": "util-linux",
    "dpkg-deb": "dpkg",
}


def missing_packages() -> list[str]:
    """Debian's packages that have to be installed first."""
    return [package for program, package in _PACKAGES.items() if shutil.which(program) is None]


def run(*words: str, cwd: Path | None = None) -> None:
    """Run a command and show it and its output on the standard error.

    :raises subprocess.CalledProcessError: it failed.
    """
    print("+", shlex.join(words), file=sys.stderr, flush=True)
    subprocess.run(words, check=True, cwd=cwd, stdin=subprocess.DEVNULL, stdout=sys.stderr.fileno())


def output_of(*words: str, cwd: Path | None = None) -> str:
    """Run a command and return its output.

    :raises subprocess.CalledProcessError: it failed.
    """
    return subprocess.check_output(words, cwd=cwd, stdin=subprocess.DEVNULL, text=True)
