# SPDX-License-Identifier: GPL-2.0-only
"""The results of a scheme: the directories ``tried_regions`` and ``stats`` (``mm/damon/sysfs-schemes.c``)."""

from __future__ import annotations

from kdamon.damon import damon_region
from kdamon_fs.abi import OWN
from kdamon_fs.kobject import Tree, kobject
from kdamon_fs.sysfs_common import read_only_attribute, ulong_attribute

__all__ = ["ProbeHitsDirectory", "damon_sysfs_scheme_region", "damon_sysfs_scheme_regions", "damon_sysfs_stats"]


class ProbeHitsDirectory(kobject):
    """The number of samples of a region that matched a probe: the moving sum over one aggregation interval's time."""

    __slots__ = ("hits",)

    default_attributes = (read_only_attribute("hits"),)

    def __init__(self, tree: Tree, hits: int) -> None:
        super().__init__(tree)
        self.hits = hits


class damon_sysfs_scheme_region(kobject):
    """A region that the scheme tried; ``hits`` are those of each probe.

    ``nr_unknown`` is kdamon's own: the number of unknown samples in the time that ``nr_accesses`` covers.
    """

    __slots__ = ("age", "end", "nr_accesses", "nr_unknown", "start", "sz_filter_passed")

    default_attributes = (
        read_only_attribute("start"),
        read_only_attribute("end"),
        read_only_attribute("nr_accesses"),
        read_only_attribute("age"),
        read_only_attribute("sz_filter_passed", since="6.14"),
        read_only_attribute("nr_unknown", since=OWN),
    )

    def __init__(self, tree: Tree, region: damon_region, sz_filter_passed: int, hits: list[int]) -> None:
        super().__init__(tree)
        self.start = region.start
        self.end = region.end
        self.nr_accesses = region.nr_accesses
        self.age = region.age
        self.nr_unknown = region.nr_unknown
        self.sz_filter_passed = sz_filter_passed
        if hits:
            probes = kobject(tree)
            self.add("probes", probes, since="7.2")
            for i, number in enumerate(hits):
                probes.add(str(i), ProbeHitsDirectory(tree, number))


class damon_sysfs_scheme_regions(kobject):
    """The regions that the scheme tried, as of the last update command."""

    __slots__ = ("total_bytes",)

    default_attributes = (read_only_attribute("total_bytes"),)

    def __init__(self, tree: Tree) -> None:
        super().__init__(tree)
        self.total_bytes = 0

    def add_region(self, region: damon_region, sz_filter_passed: int, hits: list[int]) -> None:
        """Add a directory for ``region``, with the next number."""
        self.add(str(len(self.children)), damon_sysfs_scheme_region(self.tree, region, sz_filter_passed, hits))

    def rm_regions(self) -> None:
        """Remove all of them and reset their total (``damon_sysfs_scheme_regions_rm_dirs()``)."""
        children, self.children, self.total_bytes = self.children, {}, 0
        for child in children.values():
            child.remove()
        self.tree.forget_paths()


class damon_sysfs_stats(kobject):
    """The statistics of the scheme, as of the last update; and ``max_nr_snapshots``, an input.

    ``sz_unknown`` is kdamon's own, see :class:`kdamon.damon.damos_stat`.
    """

    __slots__ = (
        "max_nr_snapshots",
        "nr_applied",
        "nr_snapshots",
        "nr_tried",
        "qt_exceeds",
        "sz_applied",
        "sz_ops_filter_passed",
        "sz_tried",
        "sz_unknown",
    )

    default_attributes = (
        read_only_attribute("nr_tried"),
        read_only_attribute("sz_tried"),
        read_only_attribute("nr_applied"),
        read_only_attribute("sz_applied"),
        read_only_attribute("sz_ops_filter_passed", since="6.14"),
        read_only_attribute("qt_exceeds"),
        read_only_attribute("nr_snapshots", since="7.0"),
        ulong_attribute("max_nr_snapshots", since="7.0"),
        read_only_attribute("sz_unknown", since=OWN),
    )

    def __init__(self, tree: Tree) -> None:
        super().__init__(tree)
        self.nr_tried = self.sz_tried = 0
        self.nr_applied = self.sz_applied = 0
        self.sz_ops_filter_passed = 0
        self.qt_exceeds = 0
        self.nr_snapshots = self.max_nr_snapshots = 0
        self.sz_unknown = 0
