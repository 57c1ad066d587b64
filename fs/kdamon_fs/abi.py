# SPDX-License-Identifier: GPL-2.0-only
"""The versions of the tree: which kernel's files it has, and whether it has those that no kernel has.

A file came either with a release of Linux, or is kdamon's own: sample control of the series, which upstream does not
plan to merge in that form, and what shows unknown samples. A release as version is exactly that kernel's tree; two
versions without a number have kdamon's own files besides.
"""

from __future__ import annotations

from typing import Final

__all__ = ["ABI_VERSIONS", "DEFAULT_ABI", "OWN", "known_since"]

#: Oldest first; files older than the first have no version. 7.4 is what was queued for it in October 2026.
_RELEASES: Final = (
    "6.12", "6.13", "6.14", "6.15", "6.16", "6.17", "6.18", "6.19", "7.0", "7.1", "7.2", "7.3", "7.4",
)  # fmt: skip

#: What files of kdamon's own came with.
OWN: Final = "kdamon"

#: The versions that have kdamon's own files, and the release whose files they have besides.
_WITH_OWN: Final = {OWN: "7.3", "next": _RELEASES[-1]}

#: The names of all versions.
ABI_VERSIONS: Final = (*_RELEASES, *_WITH_OWN)

#: The baseline: the files and answers that were measured on Linux 7.3, and kdamon's own files.
#: Deviation: docs/deviations.md#own-files-in-the-default-tree
DEFAULT_ABI: Final = OWN


def known_since(abi: str) -> frozenset[str]:
    """What the files of the version ``abi``, one of :data:`ABI_VERSIONS`, may have come with."""
    release = _WITH_OWN.get(abi, abi)
    known = _RELEASES[: _RELEASES.index(release) + 1]
    return frozenset((*known, OWN) if abi in _WITH_OWN else known)
