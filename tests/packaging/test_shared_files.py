# SPDX-License-Identifier: GPL-2.0-only
"""Man pages and completion scripts: made of the options that there are, and taken by the programs that read them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kdamon_tools.man_pages import man_pages
from kdamon_tools.options import VERBS
from kdamon_tools.shells import SHELLS, completion
from tests.support.capabilities import needs_program
from tests.support.paths import PYTHONPATH

pytestmark = pytest.mark.real


PAGES = man_pages("1.2.3")

#: Completes the words of a command line as a shell does when its user presses the tab key, one candidate a line.
BASH = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
_shtab_kdamon kdamon "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""
FISH = """
source $argv[1]
complete -C (string join ' ' -- $argv[2..-1])
"""


def test_every_verb_has_a_page() -> None:
    """And kdamon itself."""
    assert {"kdamon.1", *(f"kdamon-{verb}.1" for verb in VERBS)} == set(PAGES)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_all_that_help_has(name: str) -> None:
    """Each option but those for developers, examples and exit statuses; a name in the header."""
    page = PAGES[name].replace(r"\-", "-")
    assert page.startswith(f'.TH {name.removesuffix(".1").upper()} "1" "')
    assert '"kdamon 1.2.3" "kdamon manual"' in page.partition("\n")[0]
    for heading in ("NAME", "SYNOPSIS", "DESCRIPTION", "EXAMPLES", "EXIT STATUS", "SEE ALSO"):
        assert f"\n.SH {heading}\n" in page
    assert "SUPPRESS" not in page
    assert not {"--truth", "--seed"} & set(page.replace("\\fB", " ").replace("\\fR", " ").split())
    if name in ("kdamon-run.1", "kdamon-mount.1", "kdamon-exec.1"):
        assert "\n.SH ENVIRONMENT\n" in page
        assert "\n.SH FILES\n" in page
        assert "KDAMON_REPORTS" in page
    if name in ("kdamon-mount.1", "kdamon-exec.1"):
        assert "KDAMON_FUSE" in page


@needs_program("groff", "groff")
@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_rendered_without_warnings(name: str) -> None:
    """By groff, as man(1) does."""
    done = subprocess.run(
        ["groff", "-man", "-ww", "-Tutf8", "-Kutf8"], input=PAGES[name], capture_output=True, text=True, check=False
    )
    assert (0, "") == (done.returncode, done.stderr)
    assert "kdamon 1.2.3" in done.stdout


@pytest.fixture(name="script")
def _script(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The completion script of the shell that is the parameter, which has to be installed."""
    shell: str = request.param
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    path = tmp_path / f"kdamon.{shell}"
    path.write_text(completion(shell))
    return path


@pytest.mark.parametrize("script", SHELLS, indirect=True)
def test_a_shell_takes_its_script(script: Path) -> None:
    """Without a word about its syntax."""
    shell = script.suffix[1:]
    done = subprocess.run([shell, "-n", str(script)], capture_output=True, text=True, check=False)
    assert (0, "", "") == (done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("script", ["bash", "fish"], indirect=True)
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["r"], {"run", "replay", "record", "report"}),
        (["t"], {"top"}),
        (["doctor", "--j"], {"--json"}),
        (["run", "--pr"], {"--primitive"}),
        (["run", "--pid", "1", "--ops", ""], {"vaddr", "fvaddr", "paddr", "reports"}),
        (["replay", "--color", "al"], {"always"}),
        (["completion", ""], {"bash", "zsh", "fish"}),
    ],
)
def test_a_shell_completes(script: Path, words: list[str], expected: set[str]) -> None:
    """Verbs, options, and their values."""
    program = {".bash": BASH, ".fish": FISH}[script.suffix]
    argv = [script.suffix[1:], "-c", program, *(["bash"] if script.suffix == ".bash" else []), str(script), "kdamon"]
    done = subprocess.run([*argv, *words], capture_output=True, text=True, check=False)
    assert (0, "") == (done.returncode, done.stderr)
    assert expected == {line.split("\t")[0].strip() for line in done.stdout.splitlines()}


@pytest.mark.parametrize("verb", ["run", "top"])
@pytest.mark.parametrize("script", ["bash"], indirect=True)
def test_a_process_is_completed(script: Path, verb: str) -> None:
    """By its number."""
    with subprocess.Popen(["sleep", "600"]) as process:
        words = [str(script), "kdamon", verb, "--pid", str(process.pid)]
        done = subprocess.run(["bash", "-c", BASH, "bash", *words], capture_output=True, text=True, check=False)
        process.kill()
    assert str(process.pid) in done.stdout.split()


@pytest.mark.parametrize("script", ["zsh"], indirect=True)
def test_zsh_loads_the_function(script: Path) -> None:
    """As one of its site functions."""
    function = script.with_name("_kdamon")
    script.rename(function)
    line = f"fpath=({function.parent} $fpath); autoload -Uz compinit; compinit -u -D; print $_comps[kdamon]"
    done = subprocess.run(["zsh", "-f", "-c", line], capture_output=True, text=True, check=False)
    assert ("_kdamon\n", "") == (done.stdout, done.stderr)


@pytest.mark.parametrize("shell", SHELLS)
def test_the_verb_prints_the_script(shell: str) -> None:
    """The very script."""
    environment = {"PYTHONPATH": PYTHONPATH, "PATH": "/usr/bin:/bin"}
    words = [sys.executable, "-m", "kdamon_tools", "completion", shell]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    assert completion(shell) == done.stdout
