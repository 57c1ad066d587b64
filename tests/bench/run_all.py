# SPDX-License-Identifier: GPL-2.0-only
"""Run benchmarks one after the other, each in a process of its own.

    python tests/bench/run_all.py               all that measure cost: of monitoring in full, the others by short runs
    python tests/bench/run_all.py list          their names
    python tests/bench/run_all.py NAME ...      these in full

These take less than 8 minutes on two CPUs. The benchmark working_set, of accuracy, runs by its name only.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

#: The benchmark that is run in full also among all others.
MAIN = "kdamond"
#: Those that run by their names only.
BY_NAME = ("working_set",)
#: Those that can measure another commit.
COMPARE = ("kdamond", "faults", "start")


def scripts() -> dict[str, Path]:
    """The benchmarks by name; the main one first."""
    found = {path.stem.removeprefix("bench_"): path for path in Path(__file__).parent.glob("bench_*.py")}
    return {name: found[name] for name in sorted(found, key=lambda name: (name != MAIN, name))}


def command_line() -> argparse.Namespace:
    """What to run."""
    known = scripts()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("names", nargs="*", metavar="NAME", help="'list' prints them; default: all")
    parser.add_argument("--quick", action="store_true", help="short runs: for a look, not for a figure")
    parser.add_argument("--against", metavar="COMMIT", help=f"compare with this commit ({', '.join(COMPARE)})")
    args = parser.parse_args()
    unknown = [name for name in args.names if name not in known and name != "list"]
    if unknown:
        parser.error(f"there is no benchmark {' '.join(unknown)}; there are {', '.join(known)}")
    if args.against and not (len(args.names) == 1 and args.names[0] in COMPARE):
        parser.error(
            f"the benchmarks {', '.join(COMPARE)} compare commits, one at a time: "
            f"make bench BENCH={MAIN} AGAINST={args.against}"
        )
    return args


def main() -> int:
    """Run them; returns the number of those that failed."""
    args = command_line()
    known = scripts()
    if "list" in args.names:
        print("\n".join(known))
        return 0
    failed = []
    for name in args.names or [name for name in known if name not in BY_NAME]:
        words = ["--quick"] if args.quick or not (args.names or name == MAIN) else []
        if args.against:
            words += ["--against", args.against]
        begin = time.monotonic()
        print(f"\n== {' '.join([name, *words])}", flush=True)
        if subprocess.run([sys.executable, str(known[name]), *words], check=False).returncode:
            failed.append(name)
        print(f"({time.monotonic() - begin:.0f} s)", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return len(failed)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
