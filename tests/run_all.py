# SPDX-License-Identifier: GPL-2.0-only
"""Run all tests: the pure ones on all CPUs, then those on real processes one after the other.

    python tests/run_all.py [ARGUMENT of pytest ...]

A real test that fails is repeated once, alone, after everything else, as CPython's own tests are: another program that
takes the CPUs away can make it fail. It is listed in the end. More than five are not repeated.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

#: The cache is the real tests' own: it holds which of them failed last.
CACHE = Path(".pytest_cache", "real")
REPEATED_AT_MOST = 5
#: Exit statuses of pytest.
PASSED, FAILED, NOTHING_COLLECTED = 0, 1, 5


def pytest(title: str, *words: str) -> int:
    """Run a part of the tests; return its exit status."""
    print(f"\n==== {title} ====", flush=True)
    return subprocess.run([sys.executable, "-m", "pytest", *words], check=False).returncode


def failed() -> list[str]:
    """The real tests that failed in the last run of them."""
    file = CACHE / "v/cache/lastfailed"
    return sorted(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else []


def run_real(words: list[str]) -> tuple[int, list[str]]:
    """Run the real tests and repeat the few that failed; return the exit status and what passed only when repeated."""
    cache = ["-o", f"cache_dir={CACHE}"]
    status = pytest("tests on real processes", "-m", "real", *cache, "--cache-clear", *words)
    names = failed()
    if status != FAILED or not 0 < len(names) <= REPEATED_AT_MOST:
        return status, []
    status = pytest(f"{len(names)} failed: once more, alone", *cache, "-ra", *names)
    again = failed()
    return status, [name for name in names if name not in again]


def main(words: list[str]) -> int:
    """Run both parts; return 0 if all tests passed."""
    pure = pytest("pure tests", "-m", "not real", "-n", "auto", "--dist", "worksteal", *words)
    real, flaky = run_real(words)
    print("\n==== all tests ====")
    if flaky:
        print("Failed once, passed when repeated:", *flaky, sep="\n  ")
    for name, status in (("pure tests", pure), ("tests on real processes", real)):
        result = {PASSED: "passed", NOTHING_COLLECTED: "none selected"}.get(status, f"FAILED (pytest: {status})")
        print(f"{name}: {result}", flush=True)
    return int({pure, real} - {PASSED, NOTHING_COLLECTED} != set() or {pure, real} == {NOTHING_COLLECTED})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
