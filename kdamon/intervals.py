# SPDX-License-Identifier: GPL-2.0-only
"""Many sampling intervals of an operations set in one callback (no kernel counterpart).

In user space a sampling interval costs more by the calls that it takes than by the pages that it looks at. Where
nothing but sampling happens, a :class:`kdamon.mm.IntervalSampler` takes several intervals with the random numbers that
they would have had one by one, so that the regions come out the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from kdamon.arrays import U64Array
from kdamon.damon import SamplingIntervals, damon_ctx, damon_operations, damon_target, no_op
from kdamon.kernel import time_after_eq, ulong
from kdamon.mm import AddressSpace, IntervalSampler, IntervalTarget

__all__ = [
    "Intervals",
    "begin_intervals",
    "interrupt",
    "is_wanted",
    "make_placement",
    "make_sampler",
    "quiet_intervals",
    "rest",
    "take_place",
]


#: Microseconds of sampling intervals that are taken as a whole: how long a repeated call and a watermark may wait.
_QUIET: Final = 1_000_000


def quiet_intervals(ctx: damon_ctx, ops: damon_operations) -> int:
    """How many of the next sampling intervals nothing but sampling happens in, but for the last of them (0 none)."""
    if ops.sample_intervals is no_op or ctx.probes or ctx.report_counts or is_wanted(ctx):
        return 0
    passed = ctx.passed_sample_intervals
    # A scheme that is not activated stays due, and nothing is done about it.
    applied = (s.next_apply_sis for s in ctx.schemes if s.wmarks.activated)
    left = min(_left(passed, event) for event in (ctx.next_aggregation_sis, ctx.next_ops_update_sis, *applied))
    return max(min(left, _QUIET // (ctx.attrs.sample_interval or 1)) - 1, 0)


def _left(passed: int, event: int) -> int:
    """How many sampling intervals there are until ``event``; 0: it is due."""
    return 0 if time_after_eq(passed, event) else ulong(event - passed)


def is_wanted(ctx: damon_ctx) -> bool:
    """Return whether anything is to be done at the end of this sampling interval but to count its samples."""
    return ctx.walk_control is not None or _is_called(ctx) or (ctx.reports is not None and ctx.reports.pending())


def _is_called(ctx: damon_ctx) -> bool:
    """Return whether some caller waits for its function to be called."""
    for control in ctx.call_controls:  # noqa: SIM110 -- twenty times between two aggregations
        if not control.repeat:
            return True
    return False


def interrupt(ctx: damon_ctx) -> None:
    """Let the kdamond see at the end of the present sampling interval that it is wanted; any thread may call this.

    What it is wanted for must be visible before.
    """
    sampler = ctx.interval_sampler
    if sampler is not None:
        sampler.interrupt()


def take_place(ctx: damon_ctx, spaces: Sequence[AddressSpace], pages: int) -> None:
    """Samples of ``spaces`` by ``page_fault`` are about to begin: be where they cost least, until :func:`rest`."""
    make_placement(ctx)
    if ctx.placement is not None:
        ctx.placement.begin(spaces, pages)


def rest(ctx: damon_ctx) -> None:
    """Work that may take long follows, or none: what the thread has for its samples it gives back."""
    if ctx.placement is not None:
        ctx.placement.rest()
    if ctx.interval_sampler is not None:
        ctx.interval_sampler.rest()


def make_placement(ctx: damon_ctx) -> None:
    """Make what :func:`take_place` needs, which takes some milliseconds."""
    if ctx.placement is None and ctx.machine is not None:
        ctx.placement = ctx.machine.placement()


def make_sampler(ctx: damon_ctx) -> None:
    """Make what :func:`begin_intervals` needs: to do so takes longer than a sampling interval."""
    if ctx.interval_sampler is None and ctx.machine is not None:
        ctx.interval_sampler = ctx.machine.interval_sampler()


def begin_intervals(ctx: damon_ctx, targets: Sequence[damon_target], nr: int) -> Intervals | None:
    """Begin a sample of every region of ``targets``, which can be followed by up to ``nr`` more.

    :param targets: with address spaces and regions.
    :returns: None if there is no :class:`kdamon.mm.IntervalSampler` for them; then nothing is begun.
    """
    rows = sum(len(t.regions) for t in targets)
    if not rows:
        return None
    make_sampler(ctx)
    sampler = ctx.interval_sampler
    nr = min(nr + 1, sampler.at_once(rows)) if sampler is not None else 0
    if sampler is None or not nr:
        return None
    parts = [IntervalTarget(t.mm, t.regions.start, t.regions.sizes(), t.regions.wide()) for t in targets if t.mm]
    if not sampler.begin(parts, random := _random_numbers(ctx, targets, nr)):
        _give_back(ctx, targets, nr)
        return None
    return Intervals(ctx, sampler, targets, len(random))


class Intervals:
    """Sampling intervals under way.

    :ivar left: how many more samples :meth:`follow` may begin.
    :ivar taken: how many it began when it was last called.
    """

    def __init__(self, ctx: damon_ctx, sampler: IntervalSampler, targets: Sequence[damon_target], nr: int) -> None:
        self.left = nr - 1
        self.taken = 0
        self._ctx = ctx
        self._sampler = sampler
        self._targets = targets
        self._followed = 0
        for t in targets:
            t.answers = t.sampled = None
        ctx.end_intervals = self._end

    def follow(self, intervals: SamplingIntervals, most: int) -> bool:
        """End the present sample, count it, and begin another one, up to ``most`` times in time.

        :returns: False if a process ended; then its sample is not counted, no other is begun, and :meth:`give_up` is
            to follow.
        """
        sampler = self._sampler
        lives = sampler.follow(*intervals.ahead(min(most, self.left)))
        self.taken = sampler.taken
        self._followed += self.taken
        self.left -= self.taken
        intervals.took(self.taken, sampler.woken)
        return lives

    def give_up(self, ended: Sequence[damon_target]) -> None:
        """Give the counts to the regions; no sample is under way.

        :param ended: those of the targets whose last sample is unknown.
        """
        self._count(self._sampler.addrs)
        for t in ended:
            t.regions.nr_unknown += np.uint32(1)
            self._ctx.nr_samples -= len(t.regions)
        _give_back(self._ctx, self._targets, self.left + 1)

    def _end(self) -> frozenset[int]:
        """End the last sample: give its answers to the targets, and the counts of those before to the regions.

        :returns: the id() of each target whose address space was there until now: it has its answers.
        """
        answers = self._sampler.end()
        self._count(self._sampler.addrs)
        first = 0
        answered = []
        for t, lives in zip(self._targets, self._sampler.lives, strict=True):
            if lives:
                t.answers = answers[first : first + len(t.regions)]
                answered.append(id(t))
            first += len(t.regions)
        _give_back(self._ctx, self._targets, self.left)
        return frozenset(answered)

    def _count(self, addrs: U64Array) -> None:
        ctx, accessed, unknown = self._ctx, self._sampler.accessed, self._sampler.unknown
        ctx.end_intervals = None
        nr_unknown = int(unknown.sum())
        first = 0
        for t in self._targets:
            regions = t.regions
            rows = slice(first, first + len(regions))
            regions.sampling_addr = addrs[rows]
            regions.nr_accesses += accessed[rows]
            if nr_unknown:
                regions.nr_unknown += unknown[rows]
            first = rows.stop
        ctx.nr_samples += first * self._followed
        ctx.nr_unknown += nr_unknown


def _random_numbers(ctx: damon_ctx, targets: Sequence[damon_target], nr: int) -> U64Array:
    """What :func:`kdamon.core.damon_rand` would draw for each interval and region, shape (nr, n)."""
    n32, n64 = _widths(targets)
    if not n64:
        return ctx.rnd.u32(nr * n32).reshape(nr, n32)
    columns = np.repeat([t.regions.wide() for t in targets], [len(t.regions) for t in targets])
    numbers = np.empty((nr, n32 + n64), np.uint64)
    numbers[:, ~columns] = ctx.rnd.u32(nr * n32).reshape(nr, n32)
    numbers[:, columns] = ctx.rnd.u64(nr * n64).reshape(nr, n64)
    return numbers


def _give_back(ctx: damon_ctx, targets: Sequence[damon_target], nr: int) -> None:
    n32, n64 = _widths(targets)
    ctx.rnd.give_back(nr * n32, nr * n64)


def _widths(targets: Sequence[damon_target]) -> tuple[int, int]:
    """How many regions are chosen in by numbers of 32 bits, and by numbers of 64."""
    n64 = sum(len(t.regions) for t in targets if t.regions.wide())
    return sum(len(t.regions) for t in targets) - n64, n64
