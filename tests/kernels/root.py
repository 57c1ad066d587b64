# SPDX-License-Identifier: GPL-2.0-only
"""What a guest boots from, made once in the cache: a Debian root, the kernel's modules, swap and an initramfs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Final

from tests.kernels.commands import run
from tests.kernels.releases import MIRROR, Kernel

__all__ = ["GUEST", "initramfs", "modules_image", "root_image", "swap_image"]

#: What the guest runs as its first processes.
GUEST: Final = Path(__file__).parent / "guest"
PYPROJECT: Final = Path(__file__).parents[2] / "pyproject.toml"
_SUITE: Final = "trixie"
_PACKAGES: Final = (
    "busybox-static,fuse3,gcc,iproute2,kmod,libc6-dev,libfuse2t64,libfuse3-4,musl-tools,procps,python3,python3-attr,"
    "python3-hypothesis,python3-jsonschema,python3-numpy,python3-pyelftools,python3-pyte,python3-pytest,"
    "python3-pytest-timeout,python3-pytest-xdist,util-linux"
)
#: What Debian lacks, or has too old: all of it is pure Python. pyproject.toml has the versions.
_FROM_PYPI: Final = frozenset({"damo", "fusepy", "mfusepy", "shtab"})
_PURE: Final = "usr/local/lib/python3.13/dist-packages"


def requirements(text: str) -> list[str]:
    """The requirements of :data:`_FROM_PYPI` in a pyproject.toml.

    :param text: its content.
    """
    project = tomllib.loads(text)["project"]
    named = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    return [each for each in named if re.split(r"[^\w-]", each, maxsplit=1)[0] in _FROM_PYPI]


def _image(path: Path, size: str, source: Path) -> None:
    # Whole or not at all: a run that is interrupted leaves nothing that looks complete.
    scratch = path.with_suffix(".new")
    scratch.unlink(missing_ok=True)
    run("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", str(source), str(scratch), size)
    scratch.rename(path)


def root_image(cache: Path) -> Path:
    """A file system with Debian, Python and what the tests import.

    :raises subprocess.CalledProcessError: a program failed, and printed why.
    """
    path = cache / "root.ext4"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=cache) as name:
            root = Path(name) / "root"
            run("debootstrap", "--variant=minbase", f"--include={_PACKAGES}", _SUITE, str(root), MIRROR)
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
            run(*pip, "--target", str(root / _PURE), *requirements(PYPROJECT.read_text("utf-8")))
            # The tests look for the programs of packages beside the interpreter.
            damo = root / "usr/bin/damo"
            damo.write_text("#!/usr/bin/python3\nfrom damo import damo\ndamo.main()\n", encoding="ascii")
            damo.chmod(0o755)
            shutil.rmtree(root / "var/lib/apt/lists")
            shutil.rmtree(root / "var/cache/apt")
            _image(path, "2G", root)
            # The initramfs takes it, and the machine needs none of its own.
            shutil.copy(root / "usr/bin/busybox", cache / "busybox")
    return path


def modules_image(kernel: Kernel, path: Path) -> Path:
    """A file system to mount on ``/usr/lib/modules``."""
    if not path.exists():
        _image(path, "256M", kernel.modules.parent)
    return path


def swap_image(path: Path, size: int) -> Path:
    """Swap, in a sparse file.

    :param size: bytes.
    """
    if not path.exists():
        scratch = path.with_suffix(".new")
        with scratch.open("wb") as file:
            file.truncate(size)
        run("mkswap", "-q", str(scratch))
        scratch.rename(path)
    return path


def initramfs(kernel: Kernel, cache: Path, path: Path) -> Path:
    """What loads the driver of the disks and starts Debian; made for each run, it takes no time.

    :raises LookupError: the kernel has no such driver.
    """
    driver = kernel.modules / "kernel/drivers/block/virtio_blk.ko.xz"
    if not driver.exists():
        raise LookupError(f"kernel {kernel.version} has no {driver.name}")
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        for directory in ("bin", "dev", "proc", "root", "sys"):
            (top / directory).mkdir()
        shutil.copy(cache / "busybox", top / "bin/busybox")
        shutil.copy(driver, top / driver.name)
        shutil.copy(GUEST / "initramfs.sh", top / "init")
        names = "\n".join(sorted(str(file.relative_to(top)) for file in top.rglob("*")))
        with path.open("wb") as archive:
            words = ["cpio", "--create", "--format=newc", "--quiet"]
            subprocess.run(words, input=names.encode(), stdout=archive, check=True, cwd=top)
    return path
