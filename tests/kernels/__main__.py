# SPDX-License-Identifier: GPL-2.0-only
"""Run kdamon's tests, or a command, on Debian's kernel of another release, in QEMU.

python -m tests.kernels 7.3                    the doctor, then the tests that depend on the kernel
python -m tests.kernels 7.3 --tests tests/mm/sampling -k page_fault
python -m tests.kernels 7.3 --run 'python3 -m kdamon_tools doctor'
python -m tests.kernels table                  what the runs of the first kind found, for docs/kernels.md
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
from tests.kernels.releases import RELEASES, Kernel
from tests.kernels.results import read_run, read_tests, table
from tests.kernels.selection import DEFAULT

SOURCE = Path(__file__).resolve().parents[2]
#: What a mistake of the user's, or a failure of the laboratory itself, ends with.
UNUSABLE = 2


class UsageError(Exception):
    """What the user can do about it is in the message."""


def default_cache() -> Path:
    """Where the Debian root and the kernels are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kdamon-kernels"


def command_line(words: list[str]) -> argparse.Namespace:
    """What to run, and where."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m tests.kernels", description=__doc__, formatter_class=form)
    parser.add_argument("what", choices=[*RELEASES, "table"], help="a release of the kernel, or the table of results")
    parser.add_argument("--run", metavar="COMMAND", help="run this command of bash in the sources, in place of tests")
    parser.add_argument("--cache", type=Path, default=default_cache(), metavar="DIR", help="default: %(default)s")
    parser.add_argument(
        "--results", type=Path, metavar="DIR", help="for what comes back; made anew; default: in --cache"
    )
    parser.add_argument("--timeout", type=float, default=Options().timeout, metavar="SECONDS", help="for the guest")
    parser.add_argument("--cpu", default=Options().cpu, help="QEMU's CPU; max,la57=off: page tables of four levels")
    parser.add_argument("--hugepages", type=int, default=Options().hugepages, metavar="N", help="of 2 MiB")
    parser.add_argument("--virtual-time", action="store_true", help="time passes with instructions: for accuracy")
    parser.add_argument("--append", default="", metavar="WORDS", help="for the kernel's command line")
    parser.add_argument("--tests", nargs=argparse.REMAINDER, metavar="ARGUMENT", help="arguments of pytest; the last")
    args = parser.parse_args(words)
    if args.run and args.tests:
        parser.error("--run takes the place of tests; leave --tests away")
    return args


def command_for_tests(arguments: list[str]) -> str:
    """What the guest runs: pytest, and the doctor before the default selection.

    :param arguments: of pytest; none: the default selection.
    """
    pytest = f"python3 -m pytest -p no:cacheprovider --junitxml=$RESULTS/tests.xml {shlex.join(arguments or DEFAULT)}"
    doctor = "python3 -m kdamon_tools doctor --json >$RESULTS/doctor.json"
    # The exit status of the doctor is no matter.
    return pytest if arguments else f"{doctor}\n{pytest}"


def in_guest(args: argparse.Namespace, cache: Path) -> int:
    """Run a command, or tests; return the exit status.

    :raises UsageError: programs or rights are missing.
    """
    if missing := missing_packages():
        raise UsageError(f"programs are missing: apt-get install {' '.join(missing)}")
    if os.geteuid() != 0:
        raise UsageError("only root can make the guest's file system; run this as root")
    options = Options(
        hugepages=args.hugepages,
        cpu=args.cpu,
        virtual_time=args.virtual_time,
        append=args.append,
        timeout=args.timeout,
    )
    command = args.run or command_for_tests(args.tests or [])
    kind = "run" if args.run else "tests" if args.tests else "all"
    results = (args.results or cache / "results" / kind / args.what).resolve()
    outcome = run_in_guest(prepare(args.what, cache), SOURCE, command, results, options)
    report = results / "tests.xml"
    if report.exists():
        print(f"Linux {outcome.kernel}: {read_tests(report.read_text(encoding='utf-8'))}; {results} has the rest")
    return outcome.status


def print_table(cache: Path) -> None:
    """Print what the runs with the default selection found.

    :raises UsageError: there is none.
    """
    done = [release for release in RELEASES if (cache / "results/all" / release / "doctor.json").exists()]
    if not done:
        raise UsageError("there are no results; first run: make test-kernel KERNEL=7.3")
    print(table([read_run(cache / "results/all" / each, Kernel.found_below(cache / each).config) for each in done]))


def main(words: list[str]) -> int:
    """Return the exit status of the command, or of pytest."""
    args = command_line(words)
    cache = args.cache.resolve()
    try:
        if args.what == "table":
            print_table(cache)
            return 0
        return in_guest(args, cache)
    except (GuestError, LookupError, UsageError) as error:
        print(error, file=sys.stderr)
    except subprocess.CalledProcessError as error:
        print(f"{error.cmd[0]} failed, see above", file=sys.stderr)
    return UNUSABLE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
