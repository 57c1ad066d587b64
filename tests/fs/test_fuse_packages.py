# SPDX-License-Identifier: GPL-2.0-only
"""The package that each distribution has, by its own words in os-release."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from kdamon_fs import fuse_packages
from kdamon_fs.fuse_packages import Need, how_to_install

pytestmark = pytest.mark.real


TRIXIE = {"libfuse2t64", "libfuse3-4", "libfuse-dev"}
FORKY = {"libfuse3-4"}


@pytest.mark.parametrize(
    ("release", "known", "need", "expected"),
    [
        ({"ID": "debian"}, {"libfuse2", "libfuse3-3"}, "libfuse", "apt install libfuse2"),
        ({"ID": "debian"}, TRIXIE, "libfuse 2", "apt install libfuse2t64"),
        ({"ID": "debian"}, TRIXIE, "libfuse 3", "apt install libfuse3-4"),
        ({"ID": "debian"}, FORKY, "libfuse", "apt install libfuse3-4"),
        ({"ID": "debian"}, FORKY, "libfuse 2", "this release has no package with libfuse 2"),
        ({"ID": "debian"}, None, "libfuse 3", "apt install libfuse3-4 (or libfuse3-3, whichever this release has)"),
        ({"ID": "debian"}, None, "fusermount3", "apt install fuse3"),
        ({"ID": "linuxmint", "ID_LIKE": "ubuntu debian"}, {"libfuse3-3"}, "libfuse 3", "apt install libfuse3-3"),
        ({"ID": "fedora"}, None, "libfuse", "dnf install fuse3-libs"),
        ({"ID": "rocky", "ID_LIKE": "rhel centos fedora"}, None, "libfuse 2", "dnf install fuse-libs"),
        ({"ID": "arch"}, None, "libfuse", "pacman -S fuse3"),
        ({"ID": "arch"}, None, "libfuse 2", "pacman -S fuse2"),
        (
            {"ID": "nixos"},
            None,
            "libfuse 3",
            "export FUSE_LIBRARY_PATH=$(nix-build --no-out-link '<nixpkgs>' -A fuse3.out)/lib/libfuse3.so",
        ),
        ({"ID": "nixos"}, None, "fusermount3", "set 'programs.fuse.enable = true' in the configuration"),
        ({"ID": "plan9"}, None, "libfuse 2", "install libfuse 2 with the package manager of this system"),
        ({}, None, "fusermount", "install fusermount with the package manager of this system"),
    ],
)
def test_the_package_of_a_distribution(
    monkeypatch: pytest.MonkeyPatch, release: dict[str, str], known: set[str] | None, need: Need, expected: str
) -> None:
    """Of the names in Debian, the one that this release has."""
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: release)
    monkeypatch.setattr(fuse_packages, "_known_to_apt", lambda: known)
    assert expected == how_to_install(need)


def test_a_machine_without_os_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the smallest containers."""

    def missing() -> dict[str, str]:
        raise FileNotFoundError

    monkeypatch.setattr(platform, "freedesktop_os_release", missing)
    sentence = "install libfuse 3 (libfuse3.so.3 or libfuse3.so.4) with the package manager of this system"
    assert sentence == how_to_install("libfuse")


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ('[ -z "$APT_CONFIG" ] && [ "$*" = "pkgnames libfuse" ] && echo libfuse3-4', {"libfuse3-4"}),
        ("exit 100", None),
    ],
)
def test_apt_is_asked_without_the_callers_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, expected: set[str] | None
) -> None:
    """A variable of it names a configuration, which can name programs; an apt that fails knows nothing."""
    apt = tmp_path / "apt-cache"
    apt.write_text(f"#!/bin/sh\n{script}\n")
    apt.chmod(0o755)
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "theirs"))
    monkeypatch.setattr(fuse_packages, "_APT_CACHE", str(apt))
    monkeypatch.setattr(fuse_packages, "_APT_LISTS", str(tmp_path / "*_Packages*"))
    assert fuse_packages._known_to_apt() is None
    (tmp_path / "debian_Packages.lz4").touch()
    assert expected == fuse_packages._known_to_apt()
