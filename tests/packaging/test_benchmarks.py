# SPDX-License-Identifier: GPL-2.0-only
"""tests/bench: the comparison of kdamond with its floor runs and prints what it says; no figure is judged."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.capabilities import skip_because
from tests.support.cli import ENVIRONMENT
from tests.support.paths import ROOT
from tests.support.waiting import eventually

pytestmark = pytest.mark.real

BENCH = ROOT / "tests/bench"
#: A share; microseconds, missed, slow-down and its interval.
SHARE = r"\d+\.\d\d% +"
FIGURES = r"(-|\d+) +(-|\d+\.\d%) +(- +-|[+-]\d+\.\d% +[+-]\d+\.\d% \.\. [+-]\d+\.\d%)"


@pytest.fixture
def monitoring() -> None:
    """Skip where this machine cannot monitor, with its own reason."""
    from kdamon.mm.linux.machine import linux_machine

    try:
        linux_machine().close()
    except OSError as error:
        skip_because(error, "monitoring is not possible: ")


@pytest.fixture
def writer(tmp_path: Path) -> Path:
    """The program to monitor."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("cc is missing: apt-get install gcc libc6-dev")
    flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-pthread"]
    subprocess.run([compiler, *flags, "-o", tmp_path / "writer", BENCH / "writer.c"], check=True)
    return tmp_path / "writer"


@pytest.fixture
def random_writes(writer: Path) -> Iterator[subprocess.Popen[str]]:
    """The program at work on 1 MiB."""
    with subprocess.Popen(
        [writer, "random", "1", "1", "600"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


def bench(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a script of tests/bench to its end."""
    return subprocess.run(
        [sys.executable, BENCH / script, *words], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )


def test_writer_counts_its_writes(random_writes: subprocess.Popen[str]) -> None:
    """A line for each line: later times, and more writes as soon as it had the CPU."""
    assert random_writes.stdin is not None
    assert random_writes.stdout is not None
    start, end = map(int, random_writes.stdout.readline().split())
    assert 1 << 20 == end - start
    seen = []

    def asked_again() -> bool:
        random_writes.stdin.write("\n")
        random_writes.stdin.flush()
        seen.append(tuple(map(int, random_writes.stdout.readline().split())))
        return seen[-1][1] > seen[0][1]

    eventually(asked_again, "more writes")
    assert sorted(seen) == seen


@pytest.mark.parametrize("pattern", ["idle", "sequential", "random"])
def test_writer_ends_with_its_input(writer: Path, pattern: str) -> None:
    done = subprocess.run([writer, pattern, "2", "1", "600"], input="", capture_output=True, text=True, check=False)
    assert 0 == done.returncode
    assert 1 == len(done.stdout.splitlines())


def test_writer_ends_by_itself(writer: Path) -> None:
    with subprocess.Popen([writer, "random", "1", "1", "1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert -signal.SIGALRM == process.wait(120)


@pytest.mark.usefixtures("monitoring")
def test_floor_finds_accesses(random_writes: subprocess.Popen[str]) -> None:
    """Its BPF program walks, counts, and lists what process_madvise() clears."""
    assert random_writes.stdout is not None
    start, end = random_writes.stdout.readline().split()

    def found() -> bool:
        done = bench("floor.py", str(random_writes.pid), start, end, "16", "5000", "1")
        assert 0 == done.returncode, done.stderr
        ready, result = done.stdout.splitlines()
        assert "ready" == ready
        counted = json.loads(result)
        assert 16 == len(counted["nr_accesses"])
        assert max(counted["nr_accesses"]) <= counted["intervals"]
        return 0 not in counted["nr_accesses"] and counted["cleared"] > 16

    eventually(found, "an access in each region")


@pytest.mark.usefixtures("monitoring", "writer")
def test_kdamond_beside_its_floor() -> None:
    """One line for each number of regions, the noise, and the loop of sleeps."""
    cases = ["--workloads", "random:1", "idle:1", "--regions", "10", "20", "--sample-us", "5000"]
    done = bench("bench_kdamond.py", *cases, "--turns", "2", "--seconds", "0.2")
    assert 0 == done.returncode, done.stderr
    busy, idle = done.stdout.split("\n\n")[1:]
    assert re.search(r"^random writes, 1 thread; 5 ms; empty loop \d+\.\d\d%, ", busy)
    assert re.search(r"^  noise: the same kdamond twice ", busy, re.MULTILINE)
    for regions in (10, 20):
        row = rf"^ +{regions} +{SHARE}{FIGURES} +{SHARE}{FIGURES} +(-|\d+\.\d\dx)$"
        assert re.search(row, busy, re.MULTILINE), busy
    assert re.search(r"^idle; 5 ms; empty loop ", idle)


@pytest.mark.usefixtures("monitoring", "writer")
def test_kdamond_by_faults() -> None:
    """One line for each number of regions, the noise, and the loop of sleeps."""
    cases = ["--workloads", "random:1", "idle:1", "--regions", "10", "20", "--turns", "1", "--seconds", "0.2"]
    done = bench("bench_faults.py", *cases)
    assert 0 == done.returncode, done.stderr
    busy, idle = done.stdout.split("\n\n")[1:]
    assert re.search(r"^random writes, threads: 1; 5 ms; empty loop \d+ us, ", busy)
    assert re.search(r"^  noise: the same kdamond twice ", busy, re.MULTILINE)
    for regions in (10, 20):
        row = rf"^ +{regions} +{FIGURES}$"
        assert re.search(row, busy, re.MULTILINE), busy
    assert re.search(r"^idle; 5 ms; empty loop ", idle)


def test_benchmarks_have_names() -> None:
    done = bench("run_all.py", "list")
    assert 0 == done.returncode
    names = done.stdout.split()
    assert sorted(path.stem.removeprefix("bench_") for path in BENCH.glob("bench_*.py")) == sorted(names)
    assert "kdamond" == names[0]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["no-such"], "there is no benchmark no-such"),
        (["--against", "HEAD"], "the benchmarks kdamond, faults, start compare commits"),
        (["core", "--against", "HEAD"], "the benchmarks kdamond, faults, start compare commits"),
    ],
)
def test_mistakes_are_explained(words: list[str], sentence: str) -> None:
    done = bench("run_all.py", *words)
    assert 2 == done.returncode
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--workloads", "writes:1"], "'writes:1' is not idle, sequential or random with threads"),
        (["--regions", "2"], "--regions takes numbers from 3 to 1000"),
        (["--turns", "0"], "--turns takes 1 and more"),
        (["--against", "no-such-commit"], "there is no commit 'no-such-commit'"),
    ],
)
@pytest.mark.parametrize("script", ["bench_kdamond.py", "bench_faults.py"])
def test_mistakes_about_the_comparison_are_explained(script: str, words: list[str], sentence: str) -> None:
    done = bench(script, *words)
    assert 2 == done.returncode
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
