# SPDX-License-Identifier: GPL-2.0-only
"""Time and CPU time from the start of kdamon to its first table.

Commands take turns, each with an idle process; with ``--against COMMIT`` the kdamon of
another commit takes turns with the present one. Byte code is made first, as an installed package has it.
"""

from __future__ import annotations

import argparse
import compileall
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from bench_kdamond import checkout
from measure import table
from rivals import ROOT

PACKAGES = (".", "fs", "tools")
TICKS = os.sysconf("SC_CLK_TCK")

#: Seconds to the first output, and CPU time until then.
Figures = tuple[float, float]


def environment(tree: Path) -> dict[str, str]:
    """That in which the modules of ``tree`` are found first."""
    path = ":".join(str(tree / name) for name in PACKAGES)
    return os.environ | {"PYTHONPATH": path, "TERM": "xterm"}


def cpu_time(pid: int) -> float:
    """CPU time of all threads so far, seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def until(tree: Path, words: list[str], output: int, theirs: int, first: Callable[[bytes], bool]) -> Figures:
    """Start kdamon, wait until what it wrote satisfies ``first``, and end it."""
    begin = time.monotonic()
    command = [sys.executable, "-m", "kdamon_tools", *words]
    with subprocess.Popen(command, env=environment(tree), stdin=theirs, stdout=theirs, stderr=theirs) as process:
        written = b""
        while not first(written):
            written += os.read(output, 1 << 16)
        figures = time.monotonic() - begin, cpu_time(process.pid)
        process.terminate()
        os.set_blocking(output, False)
        while process.poll() is None:
            try:
                os.read(output, 1 << 16)
            except BlockingIOError:
                time.sleep(0.01)
    return figures


def on_terminal(tree: Path, pid: int) -> Figures:
    """The first table on a terminal of 120 x 40."""
    output, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    try:
        return until(tree, ["run", "--pid", str(pid)], output, theirs, lambda written: b"\n" in written)
    finally:
        os.close(theirs)
        os.close(output)


def as_lines(tree: Path, pid: int) -> Figures:
    """The line of the first aggregation, after the header."""
    output, theirs = pty.openpty()
    words = ["run", "--quiet", "--json=lines", "--pid", str(pid)]
    try:
        return until(tree, words, output, theirs, lambda written: written.count(b"\n") >= 2)
    finally:
        os.close(theirs)
        os.close(output)


def version(tree: Path, _pid: int) -> Figures:
    """``kdamon --version``, to its end."""
    before, begin = os.times(), time.monotonic()
    command = [sys.executable, "-m", "kdamon_tools", "--version"]
    subprocess.run(command, env=environment(tree), check=True, stdout=subprocess.DEVNULL)
    elapsed, after = time.monotonic() - begin, os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return elapsed, spent


OUTPUTS = {
    "on a terminal of 120 x 40": on_terminal,
    "--quiet --json=lines, first aggregation": as_lines,
    "kdamon --version, to its end": version,
}


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="three turns: for a look, not for a figure")
    parser.add_argument("--against", metavar="COMMIT", help="compare with this commit")
    args = parser.parse_args()
    turns = 3 if args.quick else 11
    rows = []
    with ExitStack() as stack:
        trees = [ROOT]
        if (before := stack.enter_context(checkout(args.against))) is not None:
            trees.insert(0, before)
        for tree in trees:
            for name in ("kdamon", "fs", "tools"):
                compileall.compile_dir(tree / name, quiet=1)
        idle = []
        for _ in range(3):
            idle.append(stack.enter_context(subprocess.Popen(["sleep", "infinity"])))
            stack.callback(idle[-1].kill)
        time.sleep(0.5)
        for name, figures_of in OUTPUTS.items():
            found: list[list[Figures]] = [[] for _ in trees]
            for turn in range(turns + 1):
                for each, tree in zip(found, trees, strict=True):
                    figures = figures_of(tree, idle[turn % len(idle)].pid)
                    if turn:  # the first one warms up
                        each.append(figures)
            for each, which in zip(found, ("",) if len(trees) == 1 else ("before", "after"), strict=True):
                took, spent = zip(*each, strict=True)
                span = f"{min(took):.3f} to {max(took):.3f}"
                rows.append((name, which, f"{median(took):.3f}", span, f"{median(spent):.2f}"))
    table(f"Seconds from the start to the first output, medians of {turns}", ("", "", "took", "", "CPU"), rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
