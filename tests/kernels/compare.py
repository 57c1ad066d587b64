# SPDX-License-Identifier: GPL-2.0-only
"""How exactly DAMON finds the hot memory of a workload: the kernel's own, or kdamon's by the same files.

    python -m tests.kernels.compare                                        the kernel's
    kdamon exec -- python -m tests.kernels.compare                         kdamon's
    kdamon exec -- python -m tests.kernels.compare --primitive page_fault  kdamon's, by faults

Both print one line for each access pattern of :mod:`kdamon_tools.workloads.stairs`. Snapshots of regions are compared
with the truth file. A region is hot from half of the greatest number of accesses on.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from attrs import frozen

from kdamon_tools.workloads.truth import Event, load_truth

KDAMONDS: Final = Path("/sys/kernel/mm/damon/admin/kdamonds")
SAMPLE_US, AGGR_US, UPDATE_US = 5000, 100_000, 1_000_000
MOST_ACCESSES: Final = AGGR_US // SAMPLE_US
MONITOR_CPU, WORKLOAD_CPU = 0, 1
#: Seconds until regions have adapted at the start, and after a move of the hot memory: two and a half aggregations.
WARM_UP, ADAPTING = 3.0, 2.5 * AGGR_US / 1e6
#: Arguments of the workload by the name of the pattern.
PATTERNS: Final = {
    "20 MiB hot, 60 MiB warm, 120 MiB idle": [],
    "20 MiB hot, moving each 5 s": ["--step", "5"],
}
#: Of a region.
_FILES: Final = ("start", "end", "nr_accesses")
#: QEMU keeps translations for longer than a CPU does, and the kernel's DAMON does not flush them after it cleared
#: accessed bits. Switches to another process do.
_SWITCHER: Final = "import time\nwhile True: time.sleep(0.001)"


@frozen
class Region:
    """A region of a snapshot."""

    start: int
    end: int
    nr_accesses: int

    def within(self, start: int, end: int) -> int:
        """How many bytes of it are in a range."""
        return max(0, min(self.end, end) - max(self.start, start))


@frozen
class Snapshot:
    """Regions that a kdamond had at a time of CLOCK_MONOTONIC."""

    time: float
    regions: list[Region]


def _write(path: Path, value: object) -> None:
    path.write_text(f"{value}\n", encoding="ascii")


def _number(path: Path) -> int:
    return int(path.read_text(encoding="ascii"))


@contextmanager
def _kdamond(pid: int, primitive: str) -> Iterator[Path]:
    """A kdamond that monitors a process, with a scheme that does nothing, for its regions.

    :param primitive: as for :func:`measure`.
    """
    _write(KDAMONDS / "nr_kdamonds", 1)
    context = KDAMONDS / "0/contexts/0"
    _write(KDAMONDS / "0/contexts/nr_contexts", 1)
    _write(context / "operations", "vaddr")
    for name, value in (("sample_us", SAMPLE_US), ("aggr_us", AGGR_US), ("update_us", UPDATE_US)):
        _write(context / "monitoring_attrs/intervals" / name, value)
    if primitive:
        _write(context / "monitoring_attrs/sample/primitives" / primitive, "Y")
    _write(context / "targets/nr_targets", 1)
    _write(context / "targets/0/pid_target", pid)
    _write(context / "schemes/nr_schemes", 1)
    pattern = context / "schemes/0/access_pattern"
    for name in ("sz", "nr_accesses", "age"):
        _write(pattern / name / "min", 0)
        _write(pattern / name / "max", (1 << 64) - 1 if name == "sz" else (1 << 32) - 1)
    _write(context / "schemes/0/action", "stat")
    _write(KDAMONDS / "0/state", "on")
    try:
        yield KDAMONDS / "0"
    finally:
        _write(KDAMONDS / "0/state", "off")


def _snapshot(kdamond: Path) -> Snapshot:
    _write(kdamond / "state", "update_schemes_tried_regions")
    now = time.monotonic()
    directory = kdamond / "contexts/0/schemes/0/tried_regions"
    found = [entry for entry in directory.iterdir() if entry.is_dir()]
    return Snapshot(now, [Region(*(_number(each / name) for name in _FILES)) for each in found])


@contextmanager
def _workload(arguments: list[str], truth: Path) -> Iterator[subprocess.Popen[bytes]]:
    words = [sys.executable, "-m", "kdamon_tools.workloads.stairs", *arguments, "--seconds", "3600"]
    commands = [[*words, "--truth", str(truth)], [sys.executable, "-S", "-c", _SWITCHER]]
    processes = [subprocess.Popen(["taskset", "-c", str(WORKLOAD_CPU), *command]) for command in commands]
    try:
        while not (truth.exists() and any(event.event == "hot" for event in load_truth(truth))):
            if processes[0].poll() is not None:
                raise SystemExit("the workload ended at its start")
            time.sleep(0.1)
        yield processes[0]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def hot_at(truth: list[Event], now: float) -> Event:
    """The last event that says which memory is hot."""
    return [event for event in truth if event.event == "hot" and event.time <= now][-1]


def accuracy(snapshot: Snapshot, start: int, end: int) -> tuple[float, float]:
    """Recall and precision of the hot regions.

    :param start: of the memory that is hot.
    :param end: of it, exclusive.
    """
    hot = [region for region in snapshot.regions if region.nr_accesses >= MOST_ACCESSES / 2]
    right = sum(region.within(start, end) for region in hot)
    everything = sum(region.end - region.start for region in hot)
    return right / (end - start), right / everything if everything else 0.0


def summary(snapshots: list[Snapshot], truth: list[Event], began: float) -> str:
    """Means over the snapshots for which regions had time to adapt.

    :param began: when monitoring began.
    """
    found = []
    for each in snapshots:
        hot = hot_at(truth, each.time)
        if each.time >= began + WARM_UP and each.time >= hot.time + ADAPTING:
            found.append((*accuracy(each, hot.start, hot.end), len(each.regions)))
    if not found:
        return "no snapshots"
    recall, precision, regions = (statistics.mean(column) for column in zip(*found, strict=True))
    return f"recall {recall:.2f}, precision {precision:.2f}, {regions:.0f} regions, {len(found)} snapshots"


def measure(arguments: list[str], seconds: float, primitive: str = "") -> str:
    """Monitor the workload for some time and return the summary.

    :param arguments: of the workload.
    :param primitive: kdamon's, by which accesses are observed; empty: the default, which is all that the kernel has.
    """
    with tempfile.TemporaryDirectory() as directory:
        truth = Path(directory) / "truth"
        with _workload(arguments, truth) as workload, _kdamond(workload.pid, primitive) as kdamond:
            began = time.monotonic()
            snapshots = []
            while time.monotonic() < began + seconds:
                time.sleep(0.5)
                snapshots.append(_snapshot(kdamond))
        return summary(snapshots, load_truth(truth), began)


def check_place() -> None:
    """Refuse to configure the DAMON of the machine itself: others may use it.

    :raises SystemExit: the tree is not kdamon's, and this is no guest of the laboratory.
    """
    if "RESULTS" not in os.environ and os.stat(KDAMONDS).st_dev == os.stat("/sys").st_dev:
        raise SystemExit("this is the machine's own DAMON; run this in a guest, or by kdamon exec")


def main() -> None:
    """Print a line for each pattern."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="for each pattern; default: %(default)s")
    parser.add_argument(
        "--primitive", choices=("page_table", "page_fault"), default="", help="kdamon's; not the kernel's"
    )
    args = parser.parse_args()
    check_place()
    os.sched_setaffinity(0, {MONITOR_CPU})
    for name, arguments in PATTERNS.items():
        print(f"{name}: {measure(arguments, args.seconds, args.primitive)}", flush=True)


if __name__ == "__main__":
    main()
