# SPDX-License-Identifier: GPL-2.0-only
"""Importing does no work: no file is opened, nothing is mapped, no library is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cli import ENVIRONMENT
from tests.support.paths import ROOT

pytestmark = pytest.mark.real


#: Imports sys.argv[1:] one after another, and prints what each of them did besides importing. What other packages do is
#: theirs: it is looked for in the frames of modules of ours that are being executed.
WATCH = """
import sys, threading, importlib
import ctypes, mmap, numpy, attrs  # what these do is theirs

OURS = ("kdamon", "kdamon_fs", "kdamon_tools")
EVENTS = {"open", "ctypes.dlopen", "mmap.__new__", "os.listdir", "os.scandir", "subprocess.Popen", "socket.__new__",
          "ctypes.cdata/buffer", "os.posix_spawn", "os.fork", "signal.pthread_kill"}

def importing(frame):
    # Whether a module of ours did it: not the import system on its behalf, and not another package.
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name.startswith("importlib") or name.startswith("_frozen_importlib"):
            return ""
        if name.split(".")[0] in OURS:
            return name
        frame = frame.f_back
    return ""

def hook(event, arguments):
    if event in EVENTS and (name := importing(sys._getframe(1))):
        print(f"{name}: {event} {arguments!r}"[:200], flush=True)

sys.addaudithook(hook)
for name in sys.argv[1:]:
    before = threading.active_count()
    importlib.import_module(name)
    if threading.active_count() != before:
        print(f"{name}: started a thread", flush=True)
"""


def modules() -> list[str]:
    """All modules that there are, except programs that are run by their path."""
    found = []
    for folder, package in ((ROOT, "kdamon"), (ROOT / "fs", "kdamon_fs"), (ROOT / "tools", "kdamon_tools")):
        for path in sorted((folder / package).rglob("*.py")):
            name = ".".join(path.relative_to(folder).with_suffix("").parts)
            found.append(name.removesuffix(".__init__"))
    return [name for name in found if not name.endswith(".__main__")]


def run(program: str, *words: str) -> str:
    """What a Python program prints."""
    command = [sys.executable, "-c", program, *words]
    return subprocess.run(command, env=ENVIRONMENT, check=True, stdout=subprocess.PIPE, text=True, timeout=120).stdout


def test_importing_does_no_work() -> None:
    """Of no module, in one process, in which nothing but the modules' own code is looked at."""
    assert "" == run(WATCH, *modules())


@pytest.mark.parametrize(
    ("work", "event"),
    [
        ("open(__file__)", "open"),
        ("import ctypes; ctypes.CDLL(None)", "ctypes.dlopen"),
        ("import mmap; mmap.mmap(-1, 4096)", "mmap.__new__"),
    ],
)
def test_work_is_noticed(tmp_path: Path, work: str, event: str) -> None:
    """By the same program, in a module that does it."""
    (tmp_path / "kdamon_tools.py").write_text(f"{work}\n")
    command = [sys.executable, "-c", WATCH, "kdamon_tools"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    result = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True, timeout=60)
    assert result.stdout.startswith(f"kdamon_tools: {event} ")


def test_the_package_itself_loads_nothing() -> None:
    """Each name of it is loaded when it is used; modules of it are imported without the rest."""
    program = "import sys; before = set(sys.modules); import kdamon; print(*sorted(set(sys.modules) - before))"
    assert "kdamon\n" == run(program)


#: Runs the command line, and prints the modules that are loaded when monitoring begins.
WHEN_IT_BEGINS = """
import os, sys
from kdamon_tools.cli import main
import kdamon.monitoring.monitor as module

def begin(self):
    print(*sorted(sys.modules))
    raise SystemExit

module.Monitor.__enter__ = begin
main(["run", "--pid", str(os.getpid()), *sys.argv[1:]])
"""


@pytest.mark.parametrize(
    "options", [(), ("--quiet",), ("--json=lines",), ("--view", "where")], ids=lambda words: " ".join(words) or "none"
)
def test_the_first_samples_wait_only_for_what_they_need(options: tuple[str, ...]) -> None:
    """What shows them is loaded while they are taken, and what other verbs and operations sets need is not loaded."""
    later = {
        "elftools", "kdamon.mm.apart.objects", "kdamon.names.process", "kdamon.producers", "kdamon_tools.gathered",
        "kdamon_tools.mapping_history", "kdamon_tools.options.report", "kdamon_tools.reporters", "kdamon_tools.views",
        "multiprocessing", "numpy.ma", "sqlite3",
    }  # fmt: skip
    loaded = set(run(WHEN_IT_BEGINS, *options).split())
    assert "kdamon.mm.linux.machine" in loaded
    assert set() == {name for name in loaded if any(name == one or name.startswith(f"{one}.") for one in later)}
