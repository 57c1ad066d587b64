# SPDX-License-Identifier: GPL-2.0-only
"""The directory ``monitoring_attrs/probes`` of a context (``mm/damon/sysfs.c``): page attributes to count."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable
from typing import Final

from kdamon.damon import (
    DAMON_MAX_PROBES,
    damon_ctx,
    damon_filter,
    damon_filter_type,
    damon_prep_action,
    damon_probe,
    damon_size_range,
)
from kdamon.mm import Machine
from kdamon.probes import (
    damon_add_filter,
    damon_add_prep,
    damon_add_probe,
    damon_new_filter,
    damon_new_prep,
    damon_new_probe,
)
from kdamon_fs.kobject import NumberedDirectories, Tree, kobject, nr_attribute
from kdamon_fs.sysfs_common import (
    bool_attribute,
    keyword_attribute,
    memcg_id_of,
    text_attribute,
    uint_attribute,
    ulong_attribute,
)

__all__ = ["damon_sysfs_probes", "damon_sysfs_set_probes"]

#: The filter types of Linux 7.2; the others came later.
_FIRST_TYPES: Final = ("anon", "memcg")


def _filter_types(f: damon_sysfs_filter) -> tuple[str, ...]:
    return tuple(kind.value for kind in damon_filter_type if kind.value in _FIRST_TYPES or f.tree.has("7.4"))


class damon_sysfs_filter(kobject):
    """A condition of a probe on pages."""

    __slots__ = ("allow", "matching", "max", "min", "path", "type")

    default_attributes = (
        keyword_attribute("type", _filter_types),
        bool_attribute("matching"),
        bool_attribute("allow"),
        text_attribute("path"),
        ulong_attribute("min", since="7.4"),
        ulong_attribute("max", since="7.4"),
    )

    def __init__(self, tree: Tree) -> None:
        super().__init__(tree)
        self.type = "anon"
        self.matching = self.allow = False
        self.path = ""
        self.min = self.max = 0

    def build(self, machine: Callable[[], Machine]) -> damon_filter:
        """The filter that the files describe.

        :raises OSError: EINVAL there is no such memory cgroup.
        """
        f = damon_new_filter(damon_filter_type(self.type), self.matching, self.allow)
        if f.type is damon_filter_type.DAMON_FILTER_TYPE_MEMCG:
            f.memcg_id = memcg_id_of(self, "path", self.path, machine)
        elif f.type is damon_filter_type.DAMON_FILTER_TYPE_HUGEPAGE_SIZE:
            f.sz_range = damon_size_range(self.min, self.max)
        return f


class damon_sysfs_filters(NumberedDirectories[damon_sysfs_filter]):
    """The conditions of a probe."""

    __slots__ = ()

    default_attributes = (nr_attribute("nr_filters"),)

    def new_child(self) -> damon_sysfs_filter:
        """A filter."""
        return damon_sysfs_filter(self.tree)


class damon_sysfs_prep(kobject):
    """An action on a page before it is sampled."""

    __slots__ = ("prep_action",)

    default_attributes = (keyword_attribute("prep_action", tuple(action.value for action in damon_prep_action)),)

    def __init__(self, tree: Tree) -> None:
        super().__init__(tree)
        self.prep_action = "set_pgidle"


class damon_sysfs_preps(NumberedDirectories[damon_sysfs_prep]):
    """The actions on pages before they are sampled for a probe."""

    __slots__ = ()

    default_attributes = (nr_attribute("nr_preps"),)

    def new_child(self) -> damon_sysfs_prep:
        """A preparation."""
        return damon_sysfs_prep(self.tree)


class damon_sysfs_probe(kobject):
    """An attribute of sampled pages to count for each region, besides accesses."""

    __slots__ = ("filters", "preps", "weight")

    default_attributes = (uint_attribute("weight", since="7.3"),)

    def __init__(self, tree: Tree) -> None:
        super().__init__(tree)
        self.weight = 0
        self.preps = damon_sysfs_preps(tree)
        self.filters = damon_sysfs_filters(tree)
        self.add("preps", self.preps, since="7.4")
        self.add("filters", self.filters)

    def build(self, machine: Callable[[], Machine]) -> damon_probe:
        """The probe that the directories describe.

        :raises OSError: as :meth:`damon_sysfs_filter.build`.
        """
        probe = damon_new_probe()
        probe.weight = self.weight
        for prep in self.preps:
            damon_add_prep(probe, damon_new_prep(damon_prep_action(prep.prep_action)))
        for f in self.filters:
            damon_add_filter(probe, f.build(machine))
        return probe


class damon_sysfs_probes(NumberedDirectories[damon_sysfs_probe]):
    """The probes."""

    __slots__ = ()

    default_attributes = (nr_attribute("nr_probes"),)

    def new_child(self) -> damon_sysfs_probe:
        """A probe."""
        return damon_sysfs_probe(self.tree)

    def check(self, nr: int) -> None:
        """Reject more probes than a region has counters for; from 7.4 on ``on`` and ``commit`` do.

        :raises OSError: EINVAL.
        """
        if nr < 0 or (nr > DAMON_MAX_PROBES and not self.tree.has("7.4")):
            raise OSError(errno.EINVAL, f"there can be 0 to {DAMON_MAX_PROBES} probes, not {nr}")


def damon_sysfs_set_probes(ctx: damon_ctx, probes: damon_sysfs_probes, machine: Callable[[], Machine]) -> None:
    """Add the probes that the directories describe to ``ctx``.

    :param machine: returns the machine that resolves memory cgroups, called when a filter needs it.
    :raises OSError: as :meth:`damon_sysfs_filter.build`.
    """
    # One too many is enough for the core to refuse them.
    for probe in itertools.islice(probes, DAMON_MAX_PROBES + 1):
        damon_add_probe(ctx, probe.build(machine))
