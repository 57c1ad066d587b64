# SPDX-License-Identifier: GPL-2.0-only
"""Without rights: one sentence, and a command to paste or the capabilities that are enough."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.capabilities import needs_root
from tests.support.cli import ENVIRONMENT
from tests.support.paths import ROOTS

USER = 65534
#: Runs each of some command lines as USER, with argv[1] as the program.
SCRIPT = """
import contextlib, importlib, io, json, os, pkgutil, sys
import kdamon, kdamon_fs, numpy.random
from kdamon_tools import cli
# The checkout and the interpreter of these tests may be out of that user's reach.
for package in (kdamon, kdamon_fs, sys.modules["kdamon_tools"]):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
sys.argv[0] = sys.argv[1]
os.setgroups([])
os.setresgid(*3 * [int(sys.argv[3])])
os.setresuid(*3 * [int(sys.argv[3])])
said = []
for words in json.loads(sys.argv[2]):
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        status = cli.main(words)
    said.append([status, err.getvalue()])
print(json.dumps(said))
"""

pytestmark = [pytest.mark.real, needs_root("only root can give rights away")]


@pytest.fixture(name="stranger")
def _stranger() -> Iterator[int]:
    """A process of another user."""
    with subprocess.Popen(["sleep", "600"], user=USER - 1, group=USER - 1, extra_groups=[]) as process:
        try:
            yield process.pid
        finally:
            process.kill()


def as_user(program: str, *lines: Sequence[str]) -> list[tuple[int, str]]:
    """The exit status of each command line, and what it printed on standard error."""
    words = [sys.executable, "-c", SCRIPT, program, json.dumps(lines), str(USER)]
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    return [(status, said) for status, said in json.loads(done.stdout)]


def test_a_user_gets_the_command_to_paste(open_path: Path, stranger: int) -> None:
    """By the full path of the kdamon that runs, with the user's own words, quoted for a shell."""
    program = open_path / "kdamon"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    open_path.chmod(0o777)
    lines = (
        (["run", "--pid", str(stranger)], f"run --pid {stranger}", "CAP_SYS_NICE, CAP_SYS_PTRACE and"),
        (["run", "--write-only", "--pid", str(stranger)], f"run --write-only --pid {stranger}", "and CAP_DAC_OVERRIDE"),
        (["wss", "--pid", str(stranger)], f"wss --pid {stranger}", "and CAP_DAC_OVERRIDE"),
        (
            ["wss", "--pid", str(stranger), "--primitive", "page_table"],
            f"wss --pid {stranger} --primitive page_table",
            "CAP_SYS_NICE, CAP_SYS_PTRACE and",
        ),
        (["run", "--ops", "paddr"], "run --ops paddr", "CAP_SYS_ADMIN, CAP_SYS_NICE"),
        (["run", "--", "touch", f"{open_path}/a b"], f"run -- touch '{open_path}/a b'", "and CAP_SYS_NICE, or use "),
        (["exec", "--", "sh", "-c", "true"], "exec -- sh -c true", "CAP_SYS_ADMIN, CAP_DAC_OVERRIDE, CAP_SYS_PTR"),
    )
    answers = as_user(str(program), *(words for words, *_ in lines))
    for (_, pasted, enough), (status, said) in zip(lines, answers, strict=True):
        sentence, command = said.splitlines()
        assert (1, f"    sudo {program} {pasted}") == (status, command)
        assert re.match(r"kdamon: .* needs? CAP_\w+.*; give kdamon CAP_.*, or run it as root:$", sentence)
        assert enough in sentence
    # The command was not started to find that out.
    assert ["kdamon"] == os.listdir(open_path)


def test_the_command_runs_without_an_installed_kdamon(stranger: int) -> None:
    """A checkout is found by root, too."""
    [(status, said)] = as_user("-c", ["run", "--pid", str(stranger)])
    expected = f"env PYTHONPATH={':'.join(ROOTS)} {sys.executable} -m kdamon_tools run --pid {stranger}"
    assert (1, f"    sudo {expected}") == (status, said.splitlines()[1])


@pytest.mark.parametrize(
    "options",
    [
        ["run", "--quiet", "--pid", "{pid}"],
        ["run", "--quiet", "--pid", "{pid}", "--write-only"],
        ["run", "--quiet", "--pid", "{pid}", "--cpus", "0"],
        ["run", "--quiet", "--ops", "paddr"],
        ["run", "--quiet", "--", "sleep", "600"],
        ["wss", "--pid", "{pid}"],
        ["wss", "--pid", "{pid}", "--primitive", "page_table"],
    ],
)
def test_the_capabilities_that_are_named_are_enough(stranger: int, options: list[str]) -> None:
    """What a process without any is advised to have lets it monitor."""
    verb, *options = [option.format(pid=stranger) for option in options]
    words = [sys.executable, "-m", "kdamon_tools", verb, "--seconds", "0.5", "--json", *options]

    def run(*prefix: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*prefix, *words], env=ENVIRONMENT, capture_output=True, text=True, check=False)

    def alone(*names: str) -> tuple[str, ...]:
        only = ",".join(["-all", *(f"+{name.removeprefix('CAP_').lower()}" for name in names)])
        return ("setpriv", f"--bounding-set={only}", f"--inh-caps={only}")

    having = run()
    if having.returncode:
        pytest.skip(f"kernel lacks: {having.stderr}")
    lacking = run(*alone())
    advised = re.search(r"which root lacks here; start kdamon with (CAP_[^;(]*) \(for a container", lacking.stderr)
    assert advised is not None, lacking.stderr
    enough = run(*alone(*re.findall(r"CAP_\w+", advised[1])))
    assert 0 == enough.returncode, enough.stderr
