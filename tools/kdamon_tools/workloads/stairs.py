# SPDX-License-Identifier: GPL-2.0-only
"""A workload of three temperatures: ``python -m kdamon_tools.workloads.stairs --help``.

One anonymous mapping. Its first part is hot: repeatedly one write per page. The next part is warm: swept from time to
time. The rest is idle: written once at the start. With ``--step S`` the hot window moves up the mapping by its own size
every S seconds, like stairs, and starts over at its end.
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

import numpy as np
from attrs import frozen

from kdamon_tools.units import parse_positive, parse_seconds, parse_unsigned
from kdamon_tools.workloads.memory import MIB, PAGE, map_memory
from kdamon_tools.workloads.truth import write_event

__all__ = ["Pattern", "main", "run"]


@frozen
class Pattern:
    """The access pattern of the workload; sizes in bytes, times in seconds.

    :ivar warm_period: time between sweeps of the warm part.
    :ivar step: the hot window stays this long in one place; 0 does not move it.
    :ivar rest: pause between two sweeps of the hot part; 0 keeps a CPU busy.
    :ivar huge_pages: request huge pages; otherwise disable them, so that all pages have the base size.
    """

    total: int = 200 * MIB
    hot: int = 20 * MIB
    warm: int = 60 * MIB
    warm_period: float = 0.1
    duration: float = 30.0
    step: float = 0.0
    rest: float = 0.0
    huge_pages: bool = False


def run(pattern: Pattern, truth: TextIO | None = None) -> None:
    """Run ``pattern`` and write the truth file.

    :raises ValueError: the parts do not fit into the total.
    """
    if not 0 < pattern.hot <= pattern.total or pattern.hot + pattern.warm > pattern.total:
        raise ValueError("the hot and the warm part together must fit into the total, and something must be hot")
    memory = map_memory(pattern.total, huge_pages=pattern.huge_pages)
    base = memory.ctypes.data
    # A sweep must take less than a sampling interval: one numpy operation on a prepared view.
    windows = [memory[at : at + pattern.hot : PAGE] for at in range(0, pattern.total - pattern.hot + 1, pattern.hot)]
    warm = memory[pattern.hot : pattern.hot + pattern.warm : PAGE]
    write_event(truth, "map", base, base + pattern.total)
    began = second = phase = time.monotonic()
    swept_warm = -np.inf
    step, sweeps, longest = 0, 0, 0.0
    window = windows[0]
    write_event(truth, "hot", base, base + pattern.hot)
    if pattern.warm:
        write_event(truth, "warm", base + pattern.hot, base + pattern.hot + pattern.warm)
    while (now := time.monotonic()) - began < pattern.duration:
        np.add(window, 1, out=window)
        sweeps += 1
        longest = max(longest, time.monotonic() - now)
        if pattern.warm and now - swept_warm >= pattern.warm_period:
            np.add(warm, 1, out=warm)
            swept_warm = now
        start = base + step * pattern.hot
        if now - second >= 1:
            write_event(truth, "sweeps", start, start + pattern.hot, hot_sweeps=sweeps, max_ms=longest * 1e3)
            second, sweeps, longest = now, 0, 0.0
        if pattern.step and now - phase >= pattern.step:
            phase = now
            step = (step + 1) % len(windows)
            window = windows[step]
            start = base + step * pattern.hot
            write_event(truth, "hot", start, start + pattern.hot)
        if pattern.rest:
            time.sleep(pattern.rest)
    write_event(truth, "end", base, base + pattern.total)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="stairs", description="a process with hot, warm and idle memory")
    defaults = Pattern()
    parser.add_argument("--total", type=parse_positive, default=defaults.total // MIB, metavar="MIB")
    parser.add_argument("--hot", type=parse_positive, default=defaults.hot // MIB, metavar="MIB")
    parser.add_argument(
        "--warm",
        type=parse_unsigned,
        metavar="MIB",
        help=f"default {defaults.warm // MIB}, or 0 where the hot window moves",
    )
    parser.add_argument("--warm-period-ms", type=parse_positive, default=100, metavar="MS")
    parser.add_argument("--step", type=parse_seconds, default=0.0, metavar="S", help="move the hot window every S")
    parser.add_argument("--seconds", type=parse_seconds, default=defaults.duration, help="end by itself after this")
    parser.add_argument("--rest-us", type=parse_unsigned, default=0, metavar="US", help="pause between hot sweeps")
    parser.add_argument("--huge-pages", action="store_true", help="request transparent huge pages")
    parser.add_argument(
        "--truth", type=Path, metavar="FILE", help="write the true accesses to this file, as JSON lines"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the workload as a command and return its exit status."""
    arguments = _parser().parse_args(argv)
    warm = arguments.warm
    if warm is None:
        warm = 0 if arguments.step else Pattern().warm // MIB
    pattern = Pattern(
        total=arguments.total * MIB,
        hot=arguments.hot * MIB,
        warm=warm * MIB,
        warm_period=arguments.warm_period_ms / 1e3,
        duration=arguments.seconds,
        step=arguments.step,
        rest=arguments.rest_us / 1e6,
        huge_pages=arguments.huge_pages,
    )
    try:
        with ExitStack() as stack:
            truth = stack.enter_context(arguments.truth.open("w", encoding="utf-8")) if arguments.truth else None
            run(pattern, truth)
    except (OSError, ValueError) as error:
        print(f"stairs: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
