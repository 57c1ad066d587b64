# SPDX-License-Identifier: GPL-2.0-only
"""tests/kernels/releases.py: which packages of Debian's archive hold a kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernels.releases import Kernel, image_packages, newest
from tests.kernels.root import PYPROJECT, requirements

TRIXIE = """\
linux-image-6.12.107+deb13-cloud-amd64 - Linux 6.12 for x86-64 cloud (signed)
linux-image-6.12.94+deb13-cloud-amd64 - Linux 6.12 for x86-64 cloud (signed)
linux-image-6.12.117+deb13-cloud-amd64 - Linux 6.12 for x86-64 cloud (signed)
linux-image-6.12.200+deb13-amd64 - Linux 6.12 for 64-bit PCs (signed)
"""


def test_the_newest_version_is_not_the_last_word_of_the_alphabet() -> None:
    """6.12.94 comes after 6.12.117 in the alphabet; a kernel that is not of clouds does not count."""
    assert "6.12.117+deb13-cloud-amd64" == newest(TRIXIE, "6.12")


def test_a_point_release_is_newer_than_the_first_one() -> None:
    """The number of bits in the name is no part of the version."""
    listing = "linux-image-7.3-cloud-amd64 - x\nlinux-image-7.3.1+deb14-cloud-amd64 - x\n"
    assert "7.3.1+deb14-cloud-amd64" == newest(listing, "7.3")


@pytest.mark.parametrize("release", ["6.1", "7.3"])
def test_another_release_is_not_taken(release: str) -> None:
    """6.1 is no beginning of 6.12."""
    assert newest(TRIXIE, release) is None


def test_a_kernel_is_one_package_or_three() -> None:
    """Debian 14 divides the kernel."""
    three = "linux-base-7.3-x - a\nlinux-binary-7.3-x - b\nlinux-image-7.3-x - c\nlinux-modules-7.3-x - d\n"
    assert ["linux-image-6.12-x"] == image_packages("6.12-x", "linux-image-6.12-x - a\n")
    assert ["linux-base-7.3-x", "linux-binary-7.3-x", "linux-modules-7.3-x"] == image_packages("7.3-x", three)


def test_the_files_of_a_kernel_are_found_in_boot_as_well(tmp_path: Path) -> None:
    """Debian 13 has the image and the configuration in /boot."""
    modules = tmp_path / "usr/lib/modules/6.12-x"
    (modules / "kernel").mkdir(parents=True)
    (tmp_path / "boot").mkdir()
    for name in ("vmlinuz", "config"):
        (tmp_path / f"boot/{name}-6.12-x").touch()
    expected = Kernel("6.12-x", tmp_path / "boot/vmlinuz-6.12-x", tmp_path / "boot/config-6.12-x", modules)
    assert expected == Kernel.found_below(tmp_path)


def test_a_half_unpacked_kernel_is_an_error(tmp_path: Path) -> None:
    """A directory without an image says what to remove."""
    (tmp_path / "usr/lib/modules/6.12-x/kernel").mkdir(parents=True)
    with pytest.raises(LookupError, match="remove it and try again"):
        Kernel.found_below(tmp_path)


def test_packages_from_pypi_have_the_versions_of_pyproject() -> None:
    """The guest has the same damo as every other test run."""
    found = requirements(PYPROJECT.read_text(encoding="utf-8"))
    assert {"damo", "fusepy", "mfusepy", "shtab"} == {each.split("=")[0].split(">")[0] for each in found}
