# SPDX-License-Identifier: GPL-2.0-only
"""Run kdamon's tests, or a command, on Debian's kernel of another release, in QEMU.

python -m tests.kernels 7.3                                   the tests that depend on the kernel
python -m tests.kernels 7.3 --tests tests/mm/sampling -k page_fault
python -m tests.kernels 7.3 --run 'python3 -m kdamon_tools doctor'
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

from tests.kernels.commands import missing_packages
from tests.kernels.machine import GuestError, Options, prepare, run_in_guest
from tests.kernels.releases import RELEASES

SOURCE = Path(__file__).resolve().parents[2]
#: Arguments of pytest: what depends on the kernel.
DEFAULT = ["-m", "real", "tests/mm"]
#: What a mistake of the user's, or a failure of the laboratory itself, ends with.
UNUSABLE = 2


def default_cache() -> Path:
    """Where the Debian root and the kernels are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kdamon-kernels"


def command_line() -> argparse.Namespace:
    """What to run, and where."""
    parser = argparse.ArgumentParser(prog="make test-kernel", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kernel", choices=RELEASES, help="a release of the kernel")
    parser.add_argument("--run", metavar="COMMAND", help="run this command of sh in the sources, in place of tests")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="default: %(default)s")
    parser.add_argument("--results", type=Path, help="directory for what comes back; default: in the cache")
    parser.add_argument("--timeout", type=float, default=Options().timeout, metavar="SECONDS")
    parser.add_argument("--cpu", default=Options().cpu, help="QEMU's CPU; max,la57=off: page tables of four levels")
    parser.add_argument("--hugepages", type=int, default=Options().hugepages, metavar="N", help="of 2 MiB")
    parser.add_argument("--append", default="", metavar="WORDS", help="for the kernel's command line")
    parser.add_argument("--tests", nargs=argparse.REMAINDER, metavar="ARGUMENT", help="arguments of pytest")
    return parser.parse_args()


def main() -> int:
    """Return the exit status of the command, or of pytest."""
    args = command_line()
    if missing := missing_packages():
        print(f"programs are missing: apt-get install {' '.join(missing)}", file=sys.stderr)
        return UNUSABLE
    if os.geteuid() != 0:
        print("only root can make the guest's file system: run it as root", file=sys.stderr)
        return UNUSABLE
    options = Options(hugepages=args.hugepages, cpu=args.cpu, append=args.append, timeout=args.timeout)
    command = args.run or f"python3 -m pytest -p no:cacheprovider {shlex.join(args.tests or DEFAULT)}"
    results = (args.results or args.cache / "results" / args.kernel).resolve()
    try:
        outcome = run_in_guest(prepare(args.kernel, args.cache.resolve()), SOURCE, command, results, options)
    except (GuestError, LookupError) as error:
        print(error, file=sys.stderr)
        return UNUSABLE
    except subprocess.CalledProcessError as error:
        print(f"{error.cmd[0]} failed, see above", file=sys.stderr)
        return UNUSABLE
    return outcome.status


if __name__ == "__main__":
    sys.exit(main())
