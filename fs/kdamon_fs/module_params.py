# SPDX-License-Identifier: GPL-2.0-only
"""The parameters of DAMON's modules, as in ``/sys/module/damon_*/parameters`` (``kernel/params.c``).

In the tree, ``/module/damon_stat/parameters`` and so on. The parameters ``monitor_pids`` and ``monitor_cgroup`` are
kdamon's own; a tree of any kernel version has them, because nothing is monitored without them. The results about mostly
unknown memory are kdamon's own, too; only a tree that has kdamon's own files has them.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from operator import attrgetter
from typing import Any, Final

from kdamon.kernel import Clock, RealClock
from kdamon.kstrtox import kstrtobool, kstrtoint, kstrtoul
from kdamon.lru_sort import damon_lru_sort
from kdamon.mm import Machine
from kdamon.module_scope import check_cgroup
from kdamon.modules_common import DamonModule, SchemeModule
from kdamon.reclaim import damon_reclaim
from kdamon.stat import damon_stat
from kdamon_fs.abi import OWN
from kdamon_fs.kobject import Tree, kobj_attribute, kobject
from kdamon_fs.sysfs_common import name_of, text_of

__all__ = ["ModuleParams"]

log = logging.getLogger("kdamon")


def _ulong(name: str, since: str | None = None) -> kobj_attribute:
    """A parameter of type ``ulong``."""

    def show(params: _module_params) -> str:
        return f"{getattr(params.module, name)}\n"

    def store(params: _module_params, text: str) -> None:
        setattr(params.module, name, kstrtoul(text))

    return kobj_attribute(name, show, store, since)


def _bool(name: str, since: str | None = None) -> kobj_attribute:
    """A parameter of type ``bool``."""

    def show(params: _module_params) -> str:
        return "Y\n" if getattr(params.module, name) else "N\n"

    def store(params: _module_params, text: str) -> None:
        setattr(params.module, name, kstrtobool(text))

    return kobj_attribute(name, show, store, since)


def _result(name: str, get: Callable[[Any], object], since: str | None = None) -> kobj_attribute:
    """A read-only parameter; ``get`` computes it from the module."""
    return kobj_attribute(name, lambda params: f"{get(params.module)}\n", since=since)


def _stats(field: str, tried: str, applied: str, exceeds: str) -> tuple[kobj_attribute, ...]:
    """The statistics of a scheme (``DEFINE_DAMON_MODULES_DAMOS_STATS_PARAMS()``).

    :param field: the module's field that holds them.
    :param tried: the file name part for tried regions; likewise ``applied`` and ``exceeds``.
    """
    names = {
        f"nr_{tried}": "nr_tried",
        f"bytes_{tried}": "sz_tried",
        f"nr_{applied}": "nr_applied",
        f"bytes_{applied}": "sz_applied",
        f"nr_{exceeds}": "qt_exceeds",
    }
    return tuple(_result(name, attrgetter(f"{field}.{of}")) for name, of in names.items())


def _doing(params: _module_params, name: str, do: Callable[[], None]) -> None:
    try:
        do()
    except OSError as error:
        # The writer receives the errno only.
        log.warning("%s: %s: %s", params.module.name, name, error.strerror)
        raise


def _enabled_store(params: _module_params, text: str) -> None:
    on = kstrtobool(text)
    _doing(params, "enabled", lambda: params.module.enable(on))


def _commit_inputs_store(params: _module_params, text: str) -> None:
    module = params.module
    assert isinstance(module, SchemeModule)
    if kstrtobool(text):
        _doing(params, "commit_inputs", module.commit_inputs)


def _addr_unit_store(params: _module_params, text: str) -> None:
    unit = kstrtoul(text)
    if not unit:
        raise OSError(errno.EINVAL, "addr_unit cannot be 0")
    assert isinstance(params.module, SchemeModule)
    params.module.addr_unit = unit


def _monitor_pids_store(params: _module_params, text: str) -> None:
    words = text.removesuffix("\n")
    pids = tuple(kstrtoint(word) for word in words.split(",")) if words else ()
    if any(pid <= 0 for pid in pids):
        raise OSError(errno.EINVAL, f"{text[:40]!r} is not a list of process numbers")
    params.module.monitor_pids = pids


def _monitor_cgroup_store(params: _module_params, text: str) -> None:
    path = name_of(text)
    if path:
        _doing(params, "monitor_cgroup", lambda: check_cgroup(params.module.machine(), path))
    params.module.monitor_cgroup = path


_MODULE: Final = (
    kobj_attribute("enabled", lambda params: "Y\n" if params.module.enabled() else "N\n", _enabled_store),
    kobj_attribute(
        "monitor_pids", lambda params: ",".join(map(str, params.module.monitor_pids)) + "\n", _monitor_pids_store
    ),
    kobj_attribute(
        "monitor_cgroup", lambda params: f"{text_of(params.module.monitor_cgroup)}\n", _monitor_cgroup_store
    ),
)

_SCHEMES: Final = (
    *_MODULE,
    kobj_attribute("commit_inputs", lambda params: "N\n", _commit_inputs_store),
    kobj_attribute("addr_unit", lambda params: f"{params.module.addr_unit}\n", _addr_unit_store, "6.18"),
    *map(_ulong, ("sample_interval", "aggr_interval", "min_nr_regions", "max_nr_regions")),
    *map(_ulong, ("quota_ms", "quota_reset_interval_ms")),
    *map(_ulong, ("wmarks_interval", "wmarks_high", "wmarks_mid", "wmarks_low")),
    *map(_ulong, ("monitor_region_start", "monitor_region_end")),
    _result("kdamond_pid", DamonModule.kdamond_pid),
)


class _module_params(kobject):
    """The directory of a module's parameters."""

    __slots__ = ("module",)

    def __init__(self, tree: Tree, module: DamonModule) -> None:
        super().__init__(tree)
        self.module = module


class _damon_stat_params(_module_params):
    __slots__ = ()

    default_attributes = (
        *_MODULE,
        _result("estimated_memory_bandwidth", attrgetter("estimated_memory_bandwidth")),
        _result("memory_idle_ms_percentiles", lambda module: ",".join(map(str, module.memory_idle_ms_percentiles))),
        _result("aggr_interval_us", attrgetter("aggr_interval_us"), "6.18"),
        _result("unknown_mem_bp", attrgetter("unknown_mem_bp"), OWN),
        _result("kdamond_pid", DamonModule.kdamond_pid, "7.2"),
    )


class _damon_reclaim_params(_module_params):
    __slots__ = ()

    default_attributes = (
        *_SCHEMES,
        *map(_ulong, ("min_age", "quota_sz", "quota_mem_pressure_us", "quota_autotune_feedback")),
        _bool("skip_anon"),
        _bool("autotune_monitoring_intervals", "7.2"),
        *_stats("stat", "reclaim_tried_regions", "reclaimed_regions", "quota_exceeds"),
        _result("bytes_reclaim_unknown_regions", attrgetter("stat.sz_unknown"), OWN),
    )


class _damon_lru_sort_params(_module_params):
    __slots__ = ()

    default_attributes = (
        *_SCHEMES,
        *map(_ulong, ("hot_thres_access_freq", "cold_min_age")),
        _ulong("active_mem_bp", "7.0"),
        _bool("autotune_monitoring_intervals", "7.0"),
        _bool("filter_young_pages", "7.0"),
        *_stats("hot_stat", "lru_sort_tried_hot_regions", "lru_sorted_hot_regions", "hot_quota_exceeds"),
        *_stats("cold_stat", "lru_sort_tried_cold_regions", "lru_sorted_cold_regions", "cold_quota_exceeds"),
        _result("bytes_lru_sort_unknown_cold_regions", attrgetter("cold_stat.sz_unknown"), OWN),
    )


class ModuleParams(kobject):
    """A directory of modules (``/sys/module``).

    :param machine: returns the machine whose processes are monitored.
    :param clock: the clock of the modules' contexts; None is the real one.
    :ivar modules: the modules.
    """

    __slots__ = ("modules",)

    def __init__(self, tree: Tree, machine: Callable[[], Machine], clock: Clock | None) -> None:
        super().__init__(tree)
        clock = clock or RealClock()
        stat = damon_stat(machine=machine, clock=clock)
        reclaim = damon_reclaim(machine=machine, clock=clock)
        lru_sort = damon_lru_sort(machine=machine, clock=clock)
        self.modules: tuple[DamonModule, ...] = (stat, reclaim, lru_sort)
        self._add_module(_damon_stat_params(tree, stat), "6.17")
        self._add_module(_damon_reclaim_params(tree, reclaim))
        self._add_module(_damon_lru_sort_params(tree, lru_sort))

    def _add_module(self, params: _module_params, since: str | None = None) -> None:
        directory = kobject(self.tree)
        directory.add("parameters", params)
        self.add(params.module.name, directory, since)

    def shutdown(self) -> None:
        """Disable all modules, for good."""
        for module in self.modules:
            module.shutdown()
