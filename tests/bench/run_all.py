# SPDX-License-Identifier: GPL-2.0-only
"""Run all benchmarks one after the other, each in a process of its own: ``python tests/bench/run_all.py [--quick]``."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from measure import arguments


def main() -> int:
    """Run them; returns the number of those that failed."""
    arguments(__doc__ or "")
    failed = []
    for script in sorted(Path(__file__).parent.glob("bench_*.py")):
        begin = time.monotonic()
        print(f"\n== {script.name}", flush=True)
        if subprocess.run([sys.executable, str(script), *sys.argv[1:]], check=False).returncode:
            failed.append(script.name)
        print(f"({time.monotonic() - begin:.0f} s)", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
