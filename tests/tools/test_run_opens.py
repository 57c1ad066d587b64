# SPDX-License-Identifier: GPL-2.0-only
"""Which files ``kdamon run`` opens while it monitors: not those that make the kernel look at every page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.capabilities import skip_because
from tests.support.paths import PYTHONPATH

pytestmark = pytest.mark.real

#: Runs the command of its arguments, and writes the last part of each name that was opened to the file of the first.
WATCHED = """
import json, os, sys
opened = set()
def hook(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        opened.add(os.path.basename(os.fsdecode(arguments[0])))
sys.addaudithook(hook)
from kdamon_tools.cli import main
try:
    sys.exit(main(sys.argv[2:]))
finally:
    names = sorted(opened)
    with open(sys.argv[1], "w") as file:
        json.dump(names, file)
"""


@pytest.mark.parametrize("primitive", ["page_table", "page_fault"])
def test_smaps_is_not_read(tmp_path: Path, primitive: str) -> None:
    """It takes the kernel 20 ms a gibibyte, while the process waits for its mmap_lock."""
    from kdamon.mm.linux.machine import linux_machine

    try:
        linux_machine().close()
    except OSError as error:
        skip_because(error, "monitoring is not possible: ")
    names = tmp_path / "names"
    with subprocess.Popen(["sleep", "600"]) as process:
        try:
            options = ("--primitive", primitive, "--seconds", "3", "--json", "--output", str(tmp_path / "out.json"))
            done = subprocess.run(
                [sys.executable, "-c", WATCHED, names, "run", "--pid", str(process.pid), *options],
                env=os.environ | {"PYTHONPATH": PYTHONPATH},
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
        finally:
            process.kill()
    assert 0 == done.returncode, done.stderr
    opened = json.loads(names.read_text())
    assert "maps" in opened
    assert [] == [name for name in opened if name.startswith("smaps")]
