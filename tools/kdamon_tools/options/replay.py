# SPDX-License-Identifier: GPL-2.0-only
"""The options of ``kdamon replay``."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Final

from kdamon_tools.defaults import FORMATS, LACKEY_RATE
from kdamon_tools.options.common import (
    COLOUR_VARIABLES,
    add_by,
    add_density,
    add_filters,
    add_form,
    add_ranges,
    add_sampling,
)
from kdamon_tools.options.parser import STATUSES, About, Parser
from kdamon_tools.units import parse_cpus, parse_file, parse_number, parse_positive, parse_unsigned

__all__ = ["ABOUT", "SUMMARY", "USAGE", "add_options"]

SUMMARY: Final = "monitor by recorded accesses, and show which memory was accessed"
USAGE: Final = "[OPTION...] FILE"
ABOUT: Final = About(
    examples=(
        ("replay what kdamon run --reports-to wrote", "kdamon replay reports.npy"),
        (
            "replay a recording of perf mem record -a -d",
            "perf script -F comm,pid,tid,cpu,time,event,addr,data_src | kdamon replay -",
        ),
        (
            "replay the accesses of a program that runs in valgrind",
            "valgrind --tool=lackey --trace-mem=yes --log-fd=1 ./program | kdamon replay -",
        ),
    ),
    statuses=(*STATUSES, ("130", "interrupted before there was a result")),
    environment=COLOUR_VARIABLES,
    files=(("FILE.RANDOM.part", "a result that is not complete; it replaces the file of --output when it is"),),
)
#: An upper bound of the number of CPUs of any machine.
_MOST_CPUS: Final = 1 << 16
_MOST_RATE: Final = 1_000_000_000


def add_options(parser: Parser) -> None:
    """Add the options of the verb."""
    what = parser.add_argument_group("what to replay")
    what.add_argument("file", type=parse_file, metavar="FILE", help="recorded accesses; - is standard input")
    what.add_argument(
        "--format",
        choices=("auto", *FORMATS),
        default="auto",
        help="reports, of kdamon run --reports-to; perf, the output of perf script on a recording of perf mem; lackey, "
        "a trace of valgrind's lackey; default: auto, by the content",
    )
    what.add_argument("--pid", type=parse_number, metavar="PID", help="replay this process only; default: all in FILE")
    add_ranges(what, "addresses to monitor", "all accessed addresses, without the biggest gaps")
    what.add_argument(
        "--rate",
        type=_parse_rate,
        default=LACKEY_RATE,
        metavar="N",
        help=f"accesses that make one second of a lackey trace; default: {LACKEY_RATE}",
    )
    what.add_argument("--instructions", action="store_true", help="also count instruction fetches of a lackey trace")
    # The CPUs of any machine: the file may come from another one.
    which = parser.add_argument_group("which accesses count")
    add_filters(which, partial(parse_cpus, nr_cpus=_MOST_CPUS))
    add_by(which)
    add_density(which)
    how = parser.add_argument_group("intervals and regions")
    add_sampling(how)
    how.add_argument(
        "--realtime", action="store_true", help="take as long as the recording did; default: as fast as possible"
    )
    # For developers: the seed of the random splits of regions.
    how.add_argument("--seed", type=parse_unsigned, default=0, metavar="N", help=argparse.SUPPRESS)
    form = parser.add_argument_group("output")
    form.add_argument("--json", action="store_true", help="print one JSON object a line, one for each process")
    add_form(form)


def _parse_rate(text: str) -> int:
    """Accesses per second: at most one per nanosecond."""
    rate = parse_positive(text)
    if rate > _MOST_RATE:
        raise argparse.ArgumentTypeError(f"'{text}' is more than one access per nanosecond")
    return rate
