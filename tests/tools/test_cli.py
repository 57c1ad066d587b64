# SPDX-License-Identifier: GPL-2.0-only
"""Mistakes and failures are one sentence on standard error and an exit status, never a traceback."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kdamon import __version__
from kdamon_tools import cli
from kdamon_tools.commands import run as run_verb
from kdamon_tools.errors import CommandError
from kdamon_tools.options import VERBS, make_parser, options_of
from tests.support.paths import PYTHONPATH, ROOTS

NO_SUCH_PID = 2**22 + 1  # above the kernel's largest pid_max


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Run a command line in this process: (exit status, what it said on standard error)."""
    try:
        status = cli.main(words)
    except SystemExit as exited:  # argparse, after --help and --version
        status = int(exited.code or 0)
    return status, capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], f"a verb is missing: {', '.join(VERBS)}; see kdamon --help"),
        (["fly"], f"there is no verb 'fly', only {', '.join(VERBS)}; see kdamon --help"),
        (["run"], "either --pid PID, or -- and a command"),
        (["run", "--pid", "1", "--", "true"], "either --pid PID, or -- and a command"),
        (["run", "--pid", "0"], "'0' is not a number from 1 on"),
        (["run", "--pid", "-5"], "'-5' is not a number from 1 on; see kdamon run --help"),
        (["run", "--pid", "init"], "'init' is not a number"),
        (["run", "--pid", "1", "--aggr-us", "18446744073709551616"], "'18446744073709551616' is too large"),
        (["run", "--pid", "1", "--max-regions", "1" + 40 * "0"], "is too large; see kdamon run --help"),
        (["run", "--pid", "1", "--seconds", "0"], "'0' is not a positive number of seconds"),
        (["run", "--pid", "1", "--seconds", "nan"], "'nan' is not a positive number of seconds"),
        (["run", "--pid", "1", "--ops", "nowhere"], "invalid choice: 'nowhere'"),
        (["run", "--pid", "1", "--ops", "fvaddr"], "--ops fvaddr and --range START-END go together"),
        (["run", "--pid", "1", "--range", "1000-2000"], "--ops fvaddr and --range START-END go together"),
        (
            ["run", "--pid", "1", "--range", "2000-1000"],
            "'2000-1000' is empty: the end of a range must be above",
        ),
        (["run", "--pid", "1", "--range", "0-1000000000000000f"], "is not a range START-END"),
        (["run", "--pid", "1", "--ops", "reports"], "--ops reports and --range START-END go together"),
        (
            ["run", "--pid", "1", "--ops", "reports", "--range", "0-1000", "--primitive", "page_fault"],
            "--ops reports does not sample",
        ),
        *(
            (
                ["run", "--pid", "1", "--primitive", "page_table", *only],
                "accessed bits do not identify CPU, thread, reads and writes",
            )
            for only in (["--write-only"], ["--cpus", "0"], ["--tids", "12"])
        ),
        (["run", "--pid", "1", "--density", "--write-only"], "faults come from one page of each region"),
        (["run", "--pid", "1", "--primitive", "guess"], "invalid choice: 'guess'"),
        (["run", "--pid", "1", "--sample-us", "5MS"], "'5MS' is not a whole number of microseconds from 1 on, such as"),
        (["run", "--pid", "1", "--output", ""], "the file name is empty"),
        (["replay", ""], "the file name is empty"),
        (["run", "--pid", "1", "--cpus", "1-0"], "'1-0' is not a list of CPUs, such as 0-3,5"),
        (["run", "--pid", "1", "--cpus", ""], "'' is not a list of CPUs"),
        (["run", "--pid", "1", "--cpus", "0-99999"], "'0-99999' names a CPU that this machine does not have"),
        (["run", "--pid", "1", "--cpus", "4294967296"], "names a CPU that this machine does not have"),
        (["run", "--pid", "1", "--tids", "12,x"], "'12,x' is not a list of threads, such as 12,13"),
        (["run", "--pid", "1", "--tids", "0"], "'0' is not a list of threads"),
        (["run", "--tids", "12", "--", "true"], "--tids needs running threads"),
        (["run", "--pid", "1", "--tids", "2147483648"], "is not a list of threads"),
        (["run", "--pid", "1", "ls"], "unrecognized argument: ls; see kdamon run --help"),
        (["mount"], "the following arguments are required: DIRECTORY"),
        (["mount", "--abi", "2.4", "/mnt"], "invalid choice: '2.4'"),
        (["exec"], "the command is missing"),
        (["exec", "ls", "--", "ls"], "unrecognized argument: ls; see kdamon exec --help"),
        (["mount", "/mnt", "/srv"], "unrecognized argument: /srv; see kdamon mount --help"),
        (["run", "--pid", "1", "--nonsense=3"], "unrecognized option: --nonsense; see kdamon run --help"),
        (["--nonsense"], "unrecognized option: --nonsense; see kdamon --help"),
        (["completion", "tcsh"], "invalid choice: 'tcsh'"),
    ],
)
def test_a_command_line_that_makes_no_sense(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    """Status 2, one line that names the mistake."""
    status, err = said(capsys, *words)
    assert 2 == status
    assert err.startswith("kdamon: ")
    assert message in err
    assert 1 == err.count("\n")


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("12", "to monitor process 12: kdamon run --pid 12"),
        ("run 12", "to monitor process 12: kdamon run --pid 12"),
        ("run 12 --seconds 3", "to monitor process 12: kdamon run --pid 12 --seconds 3"),
        ("run --seconds 3 --reports s 12", "to monitor process 12: kdamon run --seconds 3 --reports s --pid 12"),
        ("run --seconds=3 12 --json", "to monitor process 12: kdamon run --seconds=3 --pid 12 --json"),
        ("--pid 12", "--pid is an option of the verb run: kdamon run --pid 12"),
        ("--pid=12 --json", "--pid is an option of the verb run: kdamon run --pid=12 --json"),
        ("--seconds 3 run --pid 12", "options follow the verb: kdamon run --seconds 3 --pid 12"),
        ("rnu --pid 12", "there is no verb 'rnu'; did you mean: kdamon run --pid 12"),
        ("monut /mnt", "there is no verb 'monut'; did you mean: kdamon mount /mnt"),
        ("exce -- damo stop", "there is no verb 'exce'; did you mean: kdamon exec -- damo stop"),
        ("sh -c true", "there is no verb 'sh'; to monitor a command: kdamon run -- sh -c true"),
        ("-- sh x", "to monitor a command: kdamon run -- sh x"),
        ("run python x.py -v", "-- is missing before the command: kdamon run -- python x.py -v"),
        ("run --seconds 3 ./x 12", "-- is missing before the command: kdamon run --seconds 3 -- ./x 12"),
        (
            "exec damo start --target_pid 12",
            "-- is missing before the command: kdamon exec -- damo start --target_pid 12",
        ),
        ("run --pid 12 --sampel-us 5ms", "unrecognized option: --sampel-us; did you mean --sample-us?"),
    ],
)
def test_a_slip_shows_what_was_meant(capsys: pytest.CaptureFixture[str], words: str, meant: str) -> None:
    """Status 2, and a line to paste."""
    assert (2, f"kdamon: {meant}\n") == said(capsys, *words.split())


def test_what_was_meant_can_be_pasted(capsys: pytest.CaptureFixture[str]) -> None:
    """Words are quoted for a shell."""
    assert (2, "kdamon: to monitor process 12: kdamon run --output 'a b' --pid 12\n") == said(
        capsys, "run", "--output", "a b", "12"
    )


@pytest.mark.parametrize(
    ("error", "sentence", "expected_status"),
    [
        (OSError(3, "there is no process 77"), "there is no process 77", 1),
        (OSError(1, "monitoring needs CAP_BPF: run as root"), "monitoring needs CAP_BPF: run as root", 1),
        (FileNotFoundError(2, "No such file or directory", "./server"), "./server: No such file or directory", 1),
        (CommandError("it is Tuesday"), "it is Tuesday", 1),
        (ModuleNotFoundError("No module named 'numpy'", name="numpy"), "the Python package 'numpy' is missing", 1),
    ],
    ids=["no such process", "not permitted", "no such file", "own", "missing package"],
)
def test_failures_are_sentences(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    sentence: str,
    expected_status: int,
) -> None:
    """Whatever a verb raises on purpose ends as one line without numbers and tracebacks."""

    def fail() -> None:
        raise error

    monkeypatch.setattr(run_verb, "machine_when_needed", fail)
    status, err = said(capsys, "run", "--pid", "1")
    assert (expected_status, 1) == (status, err.count("\n"))
    assert err.startswith(f"kdamon: {sentence}")


def test_a_bug_is_not_dressed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only errors that were foreseen become sentences."""

    def bug() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(run_verb, "machine_when_needed", bug)
    with pytest.raises(ZeroDivisionError):
        cli.main(["run", "--pid", "1"])


def test_an_interrupt_is_quiet(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C before anything was started: status 130, nothing said."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_verb, "machine_when_needed", interrupt)
    assert (130, "") == said(capsys, "run", "--pid", "1")


@pytest.mark.real
def test_an_interrupt_is_quiet_while_modules_are_loaded(tmp_path: Path) -> None:
    """Which takes as long as most of the rest: it ends the command as any other."""
    (tmp_path / "numpy.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "kdamon_tools", "doctor"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *ROOTS])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (-signal.SIGINT, "", "") == (done.returncode, done.stdout, done.stderr)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """The package's own."""
    with pytest.raises(SystemExit) as exited:
        cli.main(["--version"])
    assert 0 == exited.value.code
    assert f"kdamon {__version__}\n" == capsys.readouterr().out


def kdamon(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run kdamon as a process of its own, from the checkout."""
    return subprocess.run(
        [sys.executable, "-m", "kdamon_tools", *words],
        env=os.environ | {"PYTHONPATH": PYTHONPATH} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.real
def test_debug_shows_where_an_error_comes_from() -> None:
    """With --debug, before or after the verb, the traceback is in the log; the sentence is still the last line."""
    for words in (["--debug", "run", "--pid", "1", "--output", "/nonexistent/file"],
                  ["run", "--debug", "--pid", "1", "--output", "/nonexistent/file"]):  # fmt: skip
        result = kdamon(*words)
        assert 2 == result.returncode
        assert "Traceback" in result.stderr
        assert result.stderr.splitlines()[-1].startswith("kdamon: ")


@pytest.mark.real
def test_help_names_every_option_and_verb() -> None:
    """Help can be read without anything being set up, by anybody."""
    assert {"run", "mount", "exec", "doctor"} <= set(kdamon("--help").stdout.replace(",", " ").split())
    shown = kdamon("run", "--help").stdout
    for option in ("--pid", "--seconds", "--json", "--sample-us", "--aggr-us", "--update-us", "--min-regions",
                   "--max-regions", "--ops", "--range", "--quiet", "--output", "--color"):  # fmt: skip
        assert option in shown


@pytest.mark.parametrize("verb", [*VERBS, ""])
def test_help_shows_examples_and_no_python(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """Three examples that the command line takes, exit statuses, and no default as Python writes it."""
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        cli.main([*verb.split(), "--help"])
    shown = capsys.readouterr().out
    assert not re.search(r"\(default|\bNone\b|\(\)|\[\]", shown)
    assert "exit status:" in shown
    assert not {"--truth", "--seed"} & set(shown.split())
    examples = shown.partition("examples:\n")[2].partition("\n\n")[0].splitlines()
    assert (6, [True, False] * 3) == (len(examples), [line.startswith("  # ") for line in examples])
    assert all(len(line) <= 80 for line in shown.splitlines() if line not in examples)


def test_examples_of_help_are_right() -> None:
    """Each is taken by the parser."""
    about = [make_parser().about, *(options_of(verb).ABOUT for verb in VERBS)]
    for _, line in (example for one in about for example in one.examples):
        words = shlex.split(line.partition("kdamon")[2].strip('")'))
        ends = [place for place, word in enumerate(words) if word in ("|", ">", "&&", "--")]
        options = words[: ends[0]] if ends else words
        assert make_parser().parse_args(options).verb in VERBS, line


@pytest.mark.real
def test_output_that_nobody_reads_any_more() -> None:
    """Writing to a closed pipe, as with "| head", leaves no traceback."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write) as stdout:
        result = subprocess.run(
            [sys.executable, "-m", "kdamon_tools", "doctor", "--json"],
            env=os.environ | {"PYTHONPATH": PYTHONPATH},
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (1, "") == (result.returncode, result.stderr)


@pytest.mark.real
@pytest.mark.parametrize(("closed", "expected"), [("<&-", 0), ("2>&-", 0), (">&-", 1), ("<&- >&- 2>&-", 1)])
def test_standard_streams_may_be_closed(closed: str, expected: int) -> None:
    """Without an output the result goes nowhere, which is a failure; there is no traceback."""
    result = subprocess.run(
        ["sh", "-c", f'exec "$0" -m kdamon_tools doctor --json {closed}', sys.executable],
        env=os.environ | {"PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        check=False,
    )
    possible = kdamon("doctor", "--json").returncode
    assert max(expected, possible) == result.returncode
    assert ("kdamon: standard output: Bad file descriptor\n" if closed == ">&-" else "") == result.stderr
