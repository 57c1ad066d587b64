# SPDX-License-Identifier: GPL-2.0-only
"""Compares the result of monitoring with the truth.

A region counts as found hot if nr_accesses is at least half of its maximum. Recall is the share of the truly hot bytes
that were found, precision the share of the found bytes that are truly hot; both are means over snapshots, without the
beginning of a run and the time after a move, when no monitor can have found the hot memory yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from attrs import frozen

from kdamon.arrays import F64Array
from kdamon_tools.snapshot import Config, Range, Recording, Snapshot
from kdamon_tools.views.measures import aggr_seconds
from kdamon_tools.workloads.truth import Event

__all__ = ["Accuracy", "Phase", "PhaseResult", "compare", "phases"]

#: The first seconds of a run are not judged: regions are still adapting.
WARM_UP_S: Final = 3.0
#: Number of aggregation intervals after a move that are not judged either.
_SETTLE_AGGRS: Final = 2.5
#: Time limit for the detection of a move.
_MOVE_S: Final = 1.0
#: Snapshots and moves closer than this are the same moment.
_SAME_MOMENT_S: Final = 0.05


@frozen
class Phase:
    """The place of the hot window, with its begin and end (CLOCK_MONOTONIC seconds)."""

    begin: float
    end: float
    hot: Range


@frozen
class PhaseResult:
    """The accuracy while the hot window was in one place.

    :ivar begin: CLOCK_MONOTONIC seconds.
    :ivar hot: the truly hot range, bytes.
    :ivar found_bytes: mean of the bytes found hot; None where no snapshot was judged, as the next two.
    :ivar recall: mean recall.
    :ivar precision: mean precision.
    :ivar delay_s: from the move to the first snapshot in which half of the window was found; None for a phase that
        was not a move, or not seen.
    """

    begin: float
    hot: Range
    found_bytes: float | None
    recall: float | None
    precision: float | None
    delay_s: float | None


@frozen
class Accuracy:
    """The accuracy of a recording.

    :ivar recall: mean over the judged snapshots, 0 to 1; None where none was judged, as precision.
    :ivar precision: likewise.
    :ivar nr_judged: the number of judged snapshots.
    :ivar phases: each place of the hot window.
    :ivar nr_moves: moves that could be detected.
    :ivar nr_moves_missed: moves that no snapshot showed.
    """

    recall: float | None
    precision: float | None
    nr_judged: int
    phases: tuple[PhaseResult, ...]
    nr_moves: int
    nr_moves_missed: int

    @property
    def delays_s(self) -> list[float]:
        """Detection delay of each move that was seen, seconds."""
        return [phase.delay_s for phase in self.phases if phase.delay_s is not None]


def phases(events: Sequence[Event]) -> list[Phase]:
    """The places of the hot window, from a workload's events."""
    hot = [event for event in events if event.event == "hot"]
    over = [event.time for event in events if event.event == "end"]
    ends = [event.time for event in hot[1:]] + (over or [float("inf")])
    return [Phase(event.time, end, (event.start, event.end)) for event, end in zip(hot, ends, strict=False)]


def _found(snapshot: Snapshot, config: Config, hot: Range) -> tuple[float, float]:
    """The bytes found hot, and the number of them in ``hot``."""
    regions = snapshot.regions[snapshot.regions["nr_accesses"] >= config.max_nr_accesses / 2]
    starts, ends = regions["start"], regions["end"]
    inside = np.minimum(ends, np.uint64(hot[1])).astype(np.float64) - np.maximum(starts, np.uint64(hot[0])).astype(
        np.float64
    )
    return float((ends - starts).sum()), float(np.maximum(inside, 0).sum())


def _sampled(pauses: F64Array, begin: float, end: float) -> float:
    """Seconds from ``begin`` to ``end`` without the ``pauses`` (shape (n, 2)), when nothing was sampled."""
    unsampled = np.minimum(pauses[:, 1], end) - np.maximum(pauses[:, 0], begin)
    return end - begin - float(unsampled[unsampled > 0].sum())


def _may_be_judged(recording: Recording, pauses: F64Array, move: Phase, warm_up: float) -> bool:
    """Whether a move came after the warm-up and was monitored up to the time limit of detection."""
    end = min(move.end, recording.ended)
    # A file may have very many moves: only those within the run are compared with the pauses.
    if move.begin - recording.started < warm_up or end - move.begin < _MOVE_S:
        return False
    return _sampled(pauses, recording.started, move.begin) >= warm_up and _sampled(pauses, move.begin, end) >= _MOVE_S


def _judge(
    recording: Recording, snapshots: Sequence[Snapshot], pauses: F64Array, phase: Phase, *, warm_up: float
) -> tuple[list[float], list[tuple[float, float]], float | None]:
    """Judge the ``snapshots`` of one phase.

    :returns: bytes found hot, and recall and precision, of each snapshot that counts; seconds of sampling until half of
        the hot window was found, None if it never was.
    """
    size = phase.hot[1] - phase.hot[0]
    found: list[float] = []
    scores: list[tuple[float, float]] = []
    delay = None
    for snapshot in snapshots:
        total, right = _found(snapshot, recording.config, phase.hot)
        watched = _sampled(pauses, phase.begin, snapshot.time)
        if delay is None and right >= size / 2:
            delay = watched
        settle = max(_SETTLE_AGGRS * aggr_seconds(snapshot, recording.config), _SAME_MOMENT_S)
        if watched >= settle and _sampled(pauses, recording.started, snapshot.time) >= warm_up:
            found.append(total)
            scores.append((right / size, right / total if total else 0.0))
    return found, scores, delay


def compare(recording: Recording, events: Sequence[Event], warm_up: float = WARM_UP_S) -> Accuracy:
    """Judge ``recording`` by the ``events`` of the workload that was recorded.

    Time in which nothing was sampled does not count: neither for the warm-up nor for delays.

    :param warm_up: seconds at the start of the recording that are not judged.
    """
    pauses = np.array(recording.pauses()).reshape(-1, 2)
    results: list[PhaseResult] = []
    judged: list[tuple[float, float]] = []
    nr_moves = nr_missed = 0
    times = np.array([snapshot.time for snapshot in recording.snapshots])
    for number, phase in enumerate(phases(events)):
        first, end = np.searchsorted(times, (phase.begin, phase.end)).tolist()
        found, scores, delay = _judge(recording, recording.snapshots[first:end], pauses, phase, warm_up=warm_up)
        is_move = number > 0 and _may_be_judged(recording, pauses, phase, warm_up)
        nr_moves += is_move
        nr_missed += is_move and delay is None
        judged += scores
        if not scores and not is_move:
            continue
        results.append(
            PhaseResult(
                begin=phase.begin,
                hot=phase.hot,
                found_bytes=_mean(found),
                recall=_mean([recall for recall, _ in scores]),
                precision=_mean([precision for _, precision in scores]),
                delay_s=delay if is_move else None,
            )
        )
    return Accuracy(
        recall=_mean([recall for recall, _ in judged]),
        precision=_mean([precision for _, precision in judged]),
        nr_judged=len(judged),
        phases=tuple(results),
        nr_moves=nr_moves,
        nr_moves_missed=nr_missed,
    )


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None
