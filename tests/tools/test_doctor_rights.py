# SPDX-License-Identifier: GPL-2.0-only
"""What ``kdamon doctor`` says can be monitored is what ``kdamon run`` monitors, whatever rights there are."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kdamon.mm.inject import requests as inject
from tests.support.capabilities import needs_root, needs_user_namespace
from tests.support.cli import ENVIRONMENT

pytestmark = [pytest.mark.real, needs_root("only root can give rights away")]


#: Runs both in one process, as a user that it becomes before: the first argument, "" to stay.
SCRIPT = """
import os, sys
user, stranger, helper = sys.argv[1:]
if user:
    # The checkout and the interpreter may lie in a directory of root's alone. What is imported later is found through
    # descriptors of the directories on the path, which root opens here.
    def opened(directories):
        found = [os.open(name, os.O_PATH | os.O_DIRECTORY) for name in directories if os.path.isdir(name)]
        return [f"/proc/self/fd/{directory}" for directory in found]
    sys.path[:] = opened(name or "." for name in sys.path)
    for module in list(sys.modules.values()):
        if hasattr(module, "__path__"):
            module.__path__ = opened(module.__path__)
    sys.path_importer_cache.clear()
import contextlib, ctypes, io, json, pathlib, subprocess
import kdamon.mm.inject.requests
with contextlib.suppress(ImportError, OSError):
    from kdamon_fs.fuse_binding import load_fuse
    load_fuse()
from kdamon_tools import cli
if user:
    kdamon.mm.inject.requests._HELPER, sys.executable = pathlib.Path(helper), "/usr/bin/python3"
    os.setgroups([])
    os.setresgid(*3 * [int(user)])
    os.setresuid(*3 * [int(user)])
    # As for a process that this user started.
    assert not ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
def kdamon(*words):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        return cli.main(words), out.getvalue(), err.getvalue()
status, text, _ = kdamon("doctor", "--json")
found = {"status": status, "doctor": json.loads(text)}
with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as own:
    own.stdin.write(b"loaded\\n")
    own.stdin.flush()
    own.stdout.readline()
    for whose, pid in (("primitives", stranger), ("own_primitives", str(own.pid))):
        for name in ("page_table", "page_fault"):
            words = ("run", "--pid", pid, "--primitive", name, "--seconds", "0.01", "--quiet", "--json")
            status, _, said = kdamon(*words)
            found[f"{whose} {name}"] = [status, said]
    own.stdin.close()
print(json.dumps(found))
"""


def without(*names: str) -> tuple[str, ...]:
    """The command that starts another one without some capabilities."""
    less = ",".join(f"-{name}" for name in names)
    return ("setpriv", f"--bounding-set={less}", f"--inh-caps={less}")


def alone(*names: str) -> tuple[str, ...]:
    """The command that starts another one with these capabilities only."""
    more = ",".join(["-all", *(f"+{name}" for name in names)])
    return ("setpriv", f"--bounding-set={more}", f"--inh-caps={more}")


SITUATIONS: dict[str, tuple[tuple[str, ...], str]] = {
    "everything": ((), ""),
    "without sys_nice": (without("sys_nice"), ""),
    "without sys_ptrace": (without("sys_ptrace"), ""),
    "without dac_override": (without("dac_override"), ""),
    "without bpf, sys_admin": (without("bpf", "sys_admin"), ""),
    "without dac": (without("dac_override", "dac_read_search"), ""),
    "without setuid, sys_ptrace": (without("setuid", "sys_ptrace"), ""),
    "without sys_nice, sys_ptrace": (without("sys_nice", "sys_ptrace"), ""),
    "nothing": (alone(), ""),
    "bpf, perfmon, sys_nice alone": (alone("bpf", "perfmon", "sys_nice"), ""),
    "a user": ((), "65533"),
    "another user namespace": (("unshare", "-Ur"), ""),
}


CASES = [
    pytest.param(name, marks=needs_user_namespace if prefix[:1] == ("unshare",) else ())
    for name, (prefix, _) in SITUATIONS.items()
]


@pytest.fixture(scope="module", name="directory")
def _directory() -> Iterator[Path]:
    """A directory that any user may read."""
    with tempfile.TemporaryDirectory(prefix="kdamon-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="module", name="found")
def _found(directory: Path) -> Iterator[dict[str, Any]]:
    """What both say in each situation."""
    helper = shutil.copy(inject._HELPER, directory)
    os.chmod(helper, 0o644)

    def look(situation: str) -> Any:
        prefix, user = SITUATIONS[situation]
        words = [*prefix, sys.executable, "-c", SCRIPT, user, str(stranger.pid), str(helper)]
        done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, check=False)
        return json.loads(done.stdout) if done.stdout else done.stderr

    with subprocess.Popen(["sleep", "600"], user=65534, group=65534, extra_groups=[]) as stranger:
        try:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                yield dict(zip(SITUATIONS, pool.map(look, SITUATIONS), strict=True))
        finally:
            stranger.kill()


@pytest.mark.parametrize("situation", CASES)
def test_the_verdict_is_what_run_does(found: dict[str, Any], situation: str) -> None:
    """For another user's process and for one of this user, by each primitive."""
    document = found[situation]["doctor"]
    for whose in ("primitives", "own_primitives"):
        for name in ("page_table", "page_fault"):
            status, said = found[situation][f"{whose} {name}"]
            assert (name in document[whose]) == (status == 0), (whose, name, document, said)
            assert "Traceback" not in said
    assert (0 if document["possible"] else 1) == found[situation]["status"]


@pytest.mark.parametrize("situation", CASES)
def test_nothing_is_advised_that_is_not_so(found: dict[str, Any], situation: str) -> None:
    """Root is not advised to be root, nor any user to look for a filter of system calls where there is none."""
    prefix, user = SITUATIONS[situation]
    text = json.dumps(found[situation])
    assert bool(user) == ("run as root" in text), text
    assert "seccomp filter, as" not in text
    assert ("first user namespace" in text) == (prefix[:1] == ("unshare",))
    assert all(check["why"] for check in found[situation]["doctor"]["checks"])
