# SPDX-License-Identifier: GPL-2.0-only
"""What the benchmarks share: rivals timed side by side, medians, tables.

The machine may be shared and its clock rate may change, so only ratios of what ran side by side mean anything: the
rivals take turns, CPU time is measured and not the clock's, and each number is the median over the turns.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np

__all__ = ["arguments", "compiled", "interval", "machine_name", "side_by_side", "table"]


def arguments(description: str) -> argparse.Namespace:
    """The command line of a benchmark: only ``--quick``."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--quick", action="store_true", help="fewer repetitions and sizes: for a look, not for a figure"
    )
    return parser.parse_args()


def side_by_side(*rivals: tuple[Callable[[], object], Callable[[object], object]], turns: int) -> list[float]:
    """CPU time of each rival in seconds: the median over ``turns``, in which all take one.

    :param rivals: (prepare, run) for each; ``run`` gets what ``prepare`` made, and only ``run`` is timed.
    """
    times: list[list[float]] = [[] for _ in rivals]
    for turn in range(turns + 1):
        for i, (prepare, run) in enumerate(rivals):
            prepared = prepare()
            begin = time.thread_time()
            run(prepared)
            end = time.thread_time()
            if turn:  # the first one warms up
                times[i].append(end - begin)
    return [median(each) for each in times]


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table: texts to the left, numbers to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(header), *cells]) for i in range(len(header))]
    print(f"\n{title}")
    print("  ".join(name.rjust(width) for name, width in zip(header, widths, strict=True)))
    for row in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)), flush=True)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Bootstrap interval of 95 percent of the median of ``values``."""
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(values, (2000, len(values))), axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return float(low), float(high)


def compiled(source: Path, directory: Path, *options: str) -> Path:
    """The program made of ``source`` (C) in ``directory``, with further ``options`` of the compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise SystemExit("there is no C compiler: install gcc and libc6-dev")
    program = directory / source.stem
    command = [compiler, "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", *options, "-o", program, source]
    subprocess.run(command, check=True)
    return program


def machine_name() -> str:
    """This machine in a few words: its kind, its CPUs, its kernel."""
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    kind = "virtual machine" if "hypervisor" in flags else "machine"
    release = ".".join(platform.release().split(".")[:2])
    return f"{kind}, {os.cpu_count()} CPUs, {platform.system()} {release}"
