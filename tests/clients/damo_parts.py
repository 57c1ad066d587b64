# SPDX-License-Identifier: GPL-2.0-only
"""To be run in ``kdamon exec``: lets damo monitor a process in several ways and prints which parts it finds hot.

``damo_parts.py DAMO ABOUT STEPS``: ABOUT is what the workload says of itself, STEPS a list of [damo's command and
options, the parts that should be hot], both JSON. Prints for each step the parts that are, and the rest of what is hot
in bytes; what should be may take a while.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SAMPLE = Path("/sys/kernel/mm/damon/admin/kdamonds/0/contexts/0/monitoring_attrs/sample")
#: Samples of an aggregation interval, 5 ms in 100 ms; half of them are hot.
HOT = 10
#: Hot memory that may be found elsewhere while regions are being found, bytes.
SLACK = 10 << 20
PATIENCE_S = 30


def damo(program: str, *words: str) -> str:
    """What damo says; a failure of it ends this."""
    done = subprocess.run([program, *words], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        sys.exit(f"damo {' '.join(words)}: {done.stdout}{done.stderr}")
    return done.stdout


def number(shown: str | int) -> int:
    """A number as damo shows it, with commas."""
    return int(str(shown).replace(",", ""))


def hot_parts(program: str, parts: list[dict[str, Any]]) -> tuple[str, int]:
    """The parts of which most is hot, and how many bytes are hot elsewhere."""
    (record,) = json.loads(damo(program, "report", "access", "--json"))
    hot = [
        (number(region["start"]), number(region["end"]))
        for region in record["snapshots"][-1]["regions"]
        if number(region["nr_accesses"]["samples"]) > HOT
    ]
    found, elsewhere = "", sum(end - start for start, end in hot)
    for part in parts:
        covered = sum(max(0, min(end, part["end"]) - max(start, part["start"])) for start, end in hot)
        elsewhere -= covered
        found += part["name"] if covered > 0.8 * (part["end"] - part["start"]) else ""
    return found, elsewhere


def main(program: str, about: str, steps: str) -> None:
    """Do the steps."""
    parts = json.loads(about)["parts"]
    answers = []
    for words, wanted in json.loads(steps):
        damo(program, *words)
        give_up = time.monotonic() + PATIENCE_S
        found = hot_parts(program, parts)
        while (found[0] != wanted or found[1] > SLACK) and time.monotonic() < give_up:
            time.sleep(0.5)
            found = hot_parts(program, parts)
        filters = [(SAMPLE / f"filters/{i}/type").read_text().strip() for i in range(_number("filters/nr_filters"))]
        primitives = "".join((SAMPLE / f"primitives/{name}").read_text()[0] for name in ("page_table", "page_fault"))
        accepted = _number("reports/accepted")
        answers.append([*found, filters, primitives, accepted])
    damo(program, "stop")
    print(json.dumps(answers))


def _number(path: str) -> int:
    return int((SAMPLE / path).read_text())


if __name__ == "__main__":
    main(*sys.argv[1:])
