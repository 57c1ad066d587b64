# SPDX-License-Identifier: GPL-2.0-only
"""Watermarks: they activate and deactivate schemes (the ``damos_wmark_*`` functions of ``mm/damon/core.c``)."""

from __future__ import annotations

import logging

from kdamon.damon import damon_ctx, damos, damos_watermarks, damos_wmark_metric

__all__ = ["commit_watermarks", "damos_wmark_wait_us"]

log = logging.getLogger("kdamon")


def commit_watermarks(dst: damos_watermarks, src: damos_watermarks) -> None:
    """Make ``dst`` what ``src`` is."""
    if dst.metric is not src.metric:
        dst.activated = True
    # Kernel: a commit activates every scheme, until the metric is measured again. Here: the state survives, because
    # between mid and high nothing would deactivate a scheme again.
    # (docs/deviations.md#watermark-state-survives-a-commit)
    dst.metric, dst.interval = src.metric, src.interval
    dst.high, dst.mid, dst.low = src.high, src.mid, src.low


def _metric_value(ctx: damon_ctx, wmarks: damos_watermarks) -> int | None:
    """The metric's value, None where it cannot be measured."""
    if wmarks.metric is damos_wmark_metric.DAMOS_WMARK_NONE or ctx.machine is None:
        return None
    try:
        return ctx.machine.metric(wmarks.metric.value)
    except OSError as error:
        log.debug("watermarks: %s cannot be measured: %s", wmarks.metric.value, error.strerror)
        return None


def damos_wmark_wait_us(ctx: damon_ctx, s: damos) -> int:
    """Activate or deactivate ``s``; returns the time until the next check, microseconds, 0 if it is active."""
    wmarks = s.wmarks
    metric = _metric_value(ctx, wmarks)
    if metric is None:
        return 0
    if metric > wmarks.high or metric < wmarks.low:
        if wmarks.activated:
            log.debug("a scheme is deactivated: %s is %d", wmarks.metric.value, metric)
        wmarks.activated = False
        return wmarks.interval
    if metric >= wmarks.mid and not wmarks.activated:
        return wmarks.interval
    wmarks.activated = True
    return 0
