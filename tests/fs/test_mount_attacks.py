# SPDX-License-Identifier: GPL-2.0-only
"""What user 65534 reaches while root mounts in a directory of theirs: nothing outside of it.

Each attack is done in a private mount namespace, by ``mount_attacks.py``, at many points of time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
MOVES = ("link above", "link itself", "another directory", "removed")

if not os.path.exists("/dev/fuse"):
    pytest.skip("kernel lacks: /dev/fuse", allow_module_level=True)
try:
    import fuse  # noqa: F401
except OSError:
    pytest.skip("libfuse2 is not installed", allow_module_level=True)
if os.geteuid():
    pytest.skip("mounting in these tests needs root", allow_module_level=True)


def attack(name: str, *arguments: str) -> Any:
    """What an attack led to."""
    private = ("unshare", "--mount", "--propagation", "private")
    words = (sys.executable, "-P", HERE / "mount_attacks.py", name, os.readlink("/proc/self/ns/mnt"), *arguments)
    done = subprocess.run(
        [*private, *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("move", MOVES)
def test_root_mounts_where_it_looked_or_nowhere(move: str) -> None:
    """Whatever the user puts in place of the directory, and whenever: nothing of root's is covered or unmounted."""
    outcomes = attack("start_disturbed", move)
    assert set(outcomes) <= {"mounted ['tmpfs'] 0", "refused ['tmpfs'] 0"}
    assert "mounted ['tmpfs'] 0" in outcomes


@pytest.mark.parametrize("move", MOVES)
def test_root_unmounts_what_it_mounted(move: str) -> None:
    """It finds its own mount wherever that is by then, and never another one."""
    assert attack("stop_disturbed", move) == ["['tmpfs'] 0"]
