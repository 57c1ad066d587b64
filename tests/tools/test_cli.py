# SPDX-License-Identifier: GPL-2.0-only
"""Mistakes and failures are one sentence on standard error and an exit status, never a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kdamon import __version__
from kdamon_tools import cli
from kdamon_tools.commands import run as run_verb
from kdamon_tools.errors import CommandError

ROOTS = [str(Path(__file__).parents[2] / root) for root in ("", "fs", "tools")]
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
        ([], "the following arguments are required"),
        (["fly"], "invalid choice: 'fly'"),
        (["run"], "either --pid PID, or -- and a command"),
        (["run", "--pid", "1", "--", "true"], "either --pid PID, or -- and a command"),
        (["run", "--pid", "0"], "'0' is not a number from 1 on"),
        (["run", "--pid", "-5"], "'-5' is not a number from 0 on; see kdamon run --help"),
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
        (["run", "--pid", "1", "--range", "0-10000000000000000"], "is not a range START-END"),
        (["run", "--pid", "1", "--ops", "reports"], "--ops reports and --range START-END go together"),
        (
            ["run", "--pid", "1", "--ops", "reports", "--range", "0-1000", "--primitive", "page_fault"],
            "--ops reports samples nothing by itself",
        ),
        *(
            (["run", "--pid", "1", "--primitive", "page_table", *only], "accessed bits do not tell who accessed what")
            for only in (["--write-only"], ["--cpus", "0"], ["--tids", "12"])
        ),
        (["run", "--pid", "1", "--density", "--write-only"], "faults come from one page of each region"),
        (["run", "--pid", "1", "--primitive", "guess"], "invalid choice: 'guess'"),
        (["run", "--pid", "1", "--sample-us", "5MS"], "'5MS' is not a whole number of microseconds from 1 on, such as"),
        (["run", "--pid", "1", "--output", ""], "a file has to have a name"),
        (["replay", ""], "a file has to have a name"),
        (["run", "--pid", "1", "--cpus", "1-0"], "'1-0' is not a list of CPUs, such as 0-3,5"),
        (["run", "--pid", "1", "--cpus", ""], "'' is not a list of CPUs"),
        (["run", "--pid", "1", "--cpus", "0-99999"], "'0-99999' names a CPU that this machine does not have"),
        (["run", "--pid", "1", "--cpus", "4294967296"], "names a CPU that this machine does not have"),
        (["run", "--pid", "1", "--tids", "12,x"], "'12,x' is not a list of threads, such as 12,13"),
        (["run", "--pid", "1", "--tids", "0"], "'0' is not a list of threads"),
        (["run", "--tids", "12", "--", "true"], "--tids names threads that run already"),
        (["run", "--pid", "1", "--tids", "2147483648"], "is not a list of threads"),
        (["run", "--pid", "1", "ls"], "unrecognized arguments: ls"),
        (["mount"], "the following arguments are required: DIRECTORY"),
        (["mount", "--abi", "2.4", "/mnt"], "invalid choice: '2.4'"),
        (["exec"], "say what to run"),
        (["exec", "ls"], "unrecognized arguments: ls"),
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
        env=os.environ | {"PYTHONPATH": ":".join(ROOTS)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_debug_shows_where_an_error_comes_from() -> None:
    """With --debug, before or after the verb, the traceback is in the log; the sentence is still the last line."""
    for words in (["--debug", "run", "--pid", "1", "--output", "/nonexistent/file"],
                  ["run", "--debug", "--pid", "1", "--output", "/nonexistent/file"]):  # fmt: skip
        result = kdamon(*words)
        assert 2 == result.returncode
        assert "Traceback" in result.stderr
        assert result.stderr.splitlines()[-1].startswith("kdamon: ")


def test_help_names_every_option_and_verb() -> None:
    """Help can be read without anything being set up, by anybody."""
    assert {"run", "mount", "exec", "doctor"} <= set(kdamon("--help").stdout.replace(",", " ").split())
    shown = kdamon("run", "--help").stdout
    for option in ("--pid", "--seconds", "--json", "--sample-us", "--aggr-us", "--update-us", "--min-regions",
                   "--max-regions", "--ops", "--range", "--quiet", "--output", "--truth", "--color"):  # fmt: skip
        assert option in shown


def test_output_that_nobody_reads_any_more() -> None:
    """Writing to a closed pipe, as with "| head", leaves no traceback."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write) as stdout:
        result = subprocess.run(
            [sys.executable, "-m", "kdamon_tools", "doctor", "--json"],
            env=os.environ | {"PYTHONPATH": ":".join(ROOTS)},
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (1, "") == (result.returncode, result.stderr)


@pytest.mark.parametrize(("closed", "expected"), [("<&-", 0), ("2>&-", 0), (">&-", 1), ("<&- >&- 2>&-", 1)])
def test_standard_streams_may_be_closed(closed: str, expected: int) -> None:
    """Without an output the result goes nowhere, which is a failure; there is no traceback."""
    result = subprocess.run(
        ["sh", "-c", f'exec "$0" -m kdamon_tools doctor --json {closed}', sys.executable],
        env=os.environ | {"PYTHONPATH": ":".join(ROOTS)},
        capture_output=True,
        text=True,
        check=False,
    )
    possible = kdamon("doctor", "--json").returncode
    assert max(expected, possible) == result.returncode
    assert ("kdamon: standard output: Bad file descriptor\n" if closed == ">&-" else "") == result.stderr
