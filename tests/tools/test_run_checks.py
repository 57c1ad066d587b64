# SPDX-License-Identifier: GPL-2.0-only
"""Nonsense on the command line is found before anything is started: status 2, one sentence, and nothing happened."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest

from kdamon_tools import cli
from kdamon_tools.commands import exec as exec_verb
from kdamon_tools.commands import mount as mount_verb
from kdamon_tools.commands import run as run_verb
from kdamon_tools.commands.run_checks import config_of
from kdamon_tools.options import make_parser
from tests.support.capabilities import needs_root

FVADDR = ["--ops", "fvaddr", "--range"]
REPORTS = ["--ops", "reports", "--range"]


@pytest.fixture(autouse=True)
def no_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Setting the machine up would be a start."""

    def started() -> None:
        raise AssertionError

    for verb in (run_verb, exec_verb, mount_verb):
        monkeypatch.setattr(verb, "machine_when_needed", started)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--min-regions", "50", "--max-regions", "10"], "the minimum number of regions must not exceed the maximum"),
        (["--min-regions", "2"], "the minimum number of regions must be at least 3"),
        (["--max-regions", "9"], "the minimum number of regions must not exceed the maximum"),
        (["--sample-us", "200ms"], "the sampling interval must not exceed the aggregation interval"),
        (["--aggr-us", "4999"], "the sampling interval must not exceed the aggregation interval"),
        (["--sample-us", "1", "--aggr-us", "4294967296"], "the aggregation interval is too long"),
        (["--update-us", "0"], "'0' is not a whole number of microseconds from 1 on"),
        (["--seconds", "1h1"], "'1h1' is not a positive number of seconds"),
        ([*FVADDR, "1000-3000", "--range", "2000-4000"], "region 0x2000-0x4000 overlaps"),
        # Apart, but not after rounding to pages.
        ([*FVADDR, "1000-1008", "--range", "1010-2000"], "region 0x1010-0x2000 overlaps"),
        ([*FVADDR, "2000-2000"], "'2000-2000' is empty: the end of a range must be above its start"),
        ([*FVADDR, "1000-ffffffffffffffff"], "is beyond user space"),
        ([*REPORTS, "1000-ffffffffffffffff"], "region 0x1000-0xffffffffffffffff is empty in units of 4096 bytes"),
        ([*REPORTS, "1000-2000", "--min-regions", "1"], "the minimum number of regions must be at least 3"),
        ([*REPORTS, "1000-2000", "--update-us", "1s"], "--ops reports does not read mappings: leave --update-us out"),
        (["--density"], "--density needs access reports, and none would arrive: add --reports"),
        (["--view", "threads"], "--view threads needs --by thread"),
        (["--view", "cpus", "--by", "thread"], "--view cpus needs --by cpu"),
        (["--view", "where", "--json=lines"], "--json=lines has a line for each aggregation, not a view"),
        (["--view", "nonsense"], "argument --view: invalid choice: 'nonsense'"),
        (["--reports", "{tmp}"], "--reports {tmp}: it is a directory"),
        (["--reports", "{tmp}/none/socket"], "--reports {tmp}/none/socket: there is no directory {tmp}/none"),
        (["--reports", "{tmp}/old"], "--reports {tmp}/old: something else is there"),
        (["--reports", "{tmp}/" + 107 * "x"], "the name is longer than the 107 bytes of a socket's"),
        (["--truth", "{tmp}"], "--truth {tmp}: it is not a regular file"),
        (["--reports-to", "{tmp}/old"], "--output and --reports-to are the same file, {tmp}/old"),
    ],
)
def test_nothing_is_started(
    words: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither the command nor anything else, and the file for the result is as it was."""
    (tmp_path / "old").write_text("an earlier result")
    words = [word.format(tmp=tmp_path) for word in [*words, "--output", "{tmp}/old"]]
    assert 2 == cli.main(["run", *words, "--", "touch", str(tmp_path / "started")])
    out, err = capsys.readouterr()
    assert ("", 1) == (out, err.count("\n"))
    assert sentence.format(tmp=tmp_path) in err
    assert (["old"], "an earlier result") == (os.listdir(tmp_path), (tmp_path / "old").read_text())


@pytest.mark.parametrize("words", [["--ops", "paddr", "--min-regions", "2"], ["--pid", "1", "--truth", "{tmp}/none"]])
def test_what_needs_no_command_is_checked_too(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Physical memory, and the truth of a process that runs already."""
    assert 2 == cli.main(["run", *(word.format(tmp=tmp_path) for word in words)])
    assert 1 == capsys.readouterr().err.count("\n")


@pytest.mark.parametrize(
    "content", ["hello\n", "5\n", '{"time": 1}\n', '{"time":"x","event":"hot","start":0,"end":1}', "\xff"]
)
def test_a_truth_that_is_none_is_refused_at_once(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the line."""
    path = tmp_path / "truth"
    path.write_text(content, encoding="latin-1")
    assert 2 == cli.main(["run", "--pid", "1", "--truth", str(path)])
    assert f"kdamon: --truth {path} line 1 is not an event of a truth file\n" == capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["mount", "--reports", "{tmp}", "{tmp}"], ["exec", "--reports", "{tmp}", "--", "true"]]
)
def test_the_other_verbs_check_their_socket(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before they mount anything."""
    assert 2 == cli.main([word.format(tmp=tmp_path) for word in words])
    assert f"kdamon: --reports {tmp_path}: it is a directory\n" == capsys.readouterr().err


@needs_root("other users' directories need root")
@pytest.mark.parametrize("words", [["mount", "{tmp}"], ["exec", "--", "true"], ["run", "--pid", "1"]])
def test_a_socket_below_another_users_directory_is_refused(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whose user could lead it elsewhere; before anything is mounted or started."""
    os.chown(tmp_path, 65534, 65534)
    socket = tmp_path / "socket"
    assert 2 == cli.main([words[0], "--reports", str(socket), *(word.format(tmp=tmp_path) for word in words[1:])])
    refusal = f"kdamon: --reports {socket}: user 65534 owns {tmp_path} and could replace what is there"
    assert f"{refusal}; choose a directory that only root can change, such as /run\n" == capsys.readouterr().err
    assert [] == os.listdir(tmp_path)


def parsed(*words: str) -> argparse.Namespace:
    """The command line of a run without a command."""
    arguments = make_parser().parse_args(["run", *words])
    arguments.command = []
    return arguments


@pytest.mark.parametrize(
    ("words", "intervals", "longest_ms"),
    [
        ([], "tuned", 500),
        (["--seconds", "4"], "tuned", 10),
        (["--seconds", "1"], "tuned", 5),
        (["--seconds", "3h"], "tuned", 10_000),
        (["--sample-us", "1ms"], "fixed", 500),
        (["--aggr-us", "1s"], "fixed", 500),
        (["--sample-us", "1ms", "--intervals", "tuned"], "tuned", 500),
        (["--intervals", "fixed"], "fixed", 500),
        (["--density", "--reports"], "fixed", 500),
    ],
)
def test_intervals_are_tuned_unless_they_are_given(words: list[str], intervals: str, longest_ms: int) -> None:
    """At most a 400th of the time that monitoring takes, so that there are some aggregations."""
    config = config_of(parsed("--pid", "1", *words), 1)
    assert (intervals, longest_ms) == (config.intervals, config.longest_sample_us // 1000)


def test_pages_are_watched_where_accessed_bits_are() -> None:
    assert config_of(parsed("--pid", "1"), 1).watch
    assert not config_of(parsed("--pid", "1", "--write-only"), 1).watch
    assert not config_of(parsed("--ops", "paddr"), 0).watch
