# SPDX-License-Identifier: GPL-2.0-only
"""DAMON's tracepoints (``include/trace/events/damon.h``).

A kernel module attaches probes to a tracepoint; so does Python code here. Probes run in the kdamond: they must be
quick, and they must copy what they keep.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, ParamSpec

if TYPE_CHECKING:
    from kdamon.damon import damon_ctx, damon_target, damos
    from kdamon.regions import Regions

__all__ = [
    "damon_aggregated",
    "damon_monitor_intervals_tune",
    "damon_region_aggregated",
    "damos_before_apply",
    "damos_esz",
    "damos_stat_after_apply_interval",
    "tracepoint",
]

P = ParamSpec("P")


class tracepoint(Generic[P]):
    """A place in the code that calls its probes with the event; without probes it costs one test."""

    __slots__ = ("_lock", "_probes")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._probes: tuple[Callable[P, None], ...] = ()

    def register(self, probe: Callable[P, None]) -> None:
        """Call ``probe`` from now on."""
        with self._lock:
            self._probes = (*self._probes, probe)

    def unregister(self, probe: Callable[P, None]) -> None:
        """Do not call ``probe`` any more; it may still be running when this returns."""
        # Not by identity: every look at a method makes an object of its own.
        with self._lock:
            self._probes = tuple(p for p in self._probes if p != probe)

    def enabled(self) -> bool:
        """Return whether anything is attached."""
        return bool(self._probes)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> None:
        for probe in self._probes:
            probe(*args, **kwargs)


#: (ctx, target index, regions) for each target at the end of each aggregation interval, counters complete. The
#: kernel's event is one for each region.
damon_aggregated: tracepoint[[damon_ctx, int, Regions]] = tracepoint()
#: The same in a context with probes, for tracepoints that show their hits.
damon_region_aggregated: tracepoint[[damon_ctx, int, Regions]] = tracepoint()
#: (ctx, new sampling interval in microseconds) when the intervals auto-tuning changed the intervals.
damon_monitor_intervals_tune: tracepoint[[damon_ctx, int]] = tracepoint()
#: (ctx, target, row of its region table, scheme) before the scheme's action is applied to the region.
damos_before_apply: tracepoint[[damon_ctx, damon_target, int, damos]] = tracepoint()
#: (ctx, scheme, effective quota) when a new charge window changed it.
damos_esz: tracepoint[[damon_ctx, damos, int]] = tracepoint()
#: (ctx, scheme) after each application of a scheme, statistics complete.
damos_stat_after_apply_interval: tracepoint[[damon_ctx, damos]] = tracepoint()
