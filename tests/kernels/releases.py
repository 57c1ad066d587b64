# SPDX-License-Identifier: GPL-2.0-only
"""Kernels for virtual machines that Debian's archive has, as packages of the newest version of a release.

Apt fetches and checks them by lists of its own: those of this machine stay as they are.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import Final

from attrs import frozen

from tests.kernels.commands import output_of, run

__all__ = ["MIRROR", "RELEASES", "Kernel", "fetch_kernel", "image_packages", "newest"]

MIRROR: Final = "http://deb.debian.org/debian"
#: Debian's suite for each release of the kernel.
RELEASES: Final = {"6.12": "trixie", "7.2": "sid", "7.3": "experimental"}
#: A kernel for virtual machines, without the drivers of real hardware.
_IMAGE: Final = re.compile(r"linux-image-(?P<version>[0-9]\S*-cloud-amd64) ")


@frozen
class Kernel:
    """An unpacked kernel."""

    #: ``uname -r``.
    version: str
    image: Path
    config: Path
    #: The directory with ``modules.dep``.
    modules: Path

    @classmethod
    def found_below(cls, directory: Path) -> Kernel:
        """The kernel of the packages that were unpacked there.

        :raises LookupError: the packages have other files than expected.
        """
        found = [path for path in directory.glob("usr/lib/modules/*") if (path / "kernel").is_dir()]
        if len(found) != 1:
            raise LookupError(f"no kernel below {directory}: remove the directory and try again")
        modules, version = found[0], found[0].name
        # Debian 14 moves the files from /boot to the modules.
        candidates = {name: [modules / name, directory / f"boot/{name}-{version}"] for name in ("vmlinuz", "config")}
        files = {name: next((path for path in paths if path.exists()), None) for name, paths in candidates.items()}
        image, config = files["vmlinuz"], files["config"]
        if image is None or config is None:
            raise LookupError(f"no kernel image or configuration below {directory}: remove it and try again")
        return cls(version, image, config, modules)


class _Archive:
    """Package lists of one suite, in a directory of their own."""

    def __init__(self, suite: str, directory: Path) -> None:
        sources = directory / "sources.list"
        for name in ("lists/partial", "archives/partial"):
            (directory / name).mkdir(parents=True)
        keys = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"
        sources.write_text(f"deb {keys} {MIRROR} {suite} main\n", encoding="ascii")
        options = {
            "Dir::Etc::sourcelist": str(sources),
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::State::lists": str(directory / "lists"),
            "Dir::Cache": str(directory),
            # Its user cannot reach a private directory.
            "APT::Sandbox::User": "root",
        }
        self._options = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        run("apt-get", *self._options, "update", "-q")

    def names(self, pattern: str) -> str:
        """What apt-cache prints for the packages whose names match."""
        return output_of("apt-cache", *self._options, "search", "--names-only", pattern)

    def download(self, packages: list[str], directory: Path) -> list[Path]:
        """Fetch packages into an empty directory."""
        run("apt-get", *self._options, "download", "-q", *packages, cwd=directory)
        return sorted(directory.glob("*.deb"))


def newest(listing: str, release: str) -> str | None:
    """The newest version of a release, of the packages that apt-cache lists; None where there is none."""
    versions = [found["version"] for found in map(_IMAGE.match, listing.splitlines()) if found]
    of_release = [version for version in versions if re.match(rf"{re.escape(release)}[.+~-]", version)]
    return max(of_release, key=_numbers, default=None)


def _numbers(version: str) -> list[int]:
    # Of 6.12.117+deb13-cloud-amd64 not the last number.
    return [int(part) for part in re.findall(r"\d+", version.split("-", maxsplit=1)[0])]


def image_packages(version: str, names: str) -> list[str]:
    """The packages that hold a kernel: one, or since Debian 14 three.

    :param names: what apt-cache lists for this version.
    """
    parts = [f"linux-{part}-{version}" for part in ("base", "binary", "modules")]
    available = {line.split(" ", 1)[0] for line in names.splitlines()}
    return parts if available.issuperset(parts) else [f"linux-image-{version}"]


def fetch_kernel(release: str, directory: Path) -> Kernel:
    """Fetch and unpack the newest kernel of a release, unless the directory has one.

    :param release: of :data:`RELEASES`.
    :raises LookupError: the archive has none.
    :raises subprocess.CalledProcessError: apt-get or dpkg-deb failed, and printed why.
    """
    if not directory.exists():
        suite = RELEASES[release]
        with tempfile.TemporaryDirectory(dir=directory.parent) as name:
            scratch = Path(name)
            archive = _Archive(suite, scratch / "apt")
            version = newest(archive.names("^linux-image-[0-9].*-cloud-amd64$"), release)
            if version is None:
                raise LookupError(f"Debian's {suite} has no kernel {release} any more")
            packages = scratch / "packages"
            packages.mkdir()
            for package in archive.download(image_packages(version, archive.names(re.escape(version))), packages):
                run("dpkg-deb", "-x", str(package), str(scratch / "kernel"))
            found = Kernel.found_below(scratch / "kernel")
            run("depmod", "-b", str(scratch / "kernel/usr"), found.version)
            shutil.move(scratch / "kernel", directory)
    return Kernel.found_below(directory)
