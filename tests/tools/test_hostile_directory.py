# SPDX-License-Identifier: GPL-2.0-only
"""``kdamon`` in working directories, and with one for temporary files, that are of no use or another user's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdamon_tools.output.temporary import temporary_directory
from tests.support.capabilities import needs_root
from tests.support.cli import DATA, ENVIRONMENT, KDAMON

pytestmark = pytest.mark.real


USER = 65534


@pytest.mark.real
@pytest.mark.parametrize(
    "words",
    [
        "mount directory",
        "mount --no-reports .",
        "exec --reports socket -- true",
        "run --output file --seconds 1 --pid 1",
        "run --reports-to file --seconds 1 --pid 1",
        "run --truth file --seconds 1 --pid 1",
        "run --reports socket --seconds 1 --pid 1",
        "replay file",
    ],
)
def test_a_working_directory_that_was_removed(tmp_path: Path, words: str) -> None:
    """One sentence names the cause."""
    gone = tmp_path / "gone"
    gone.mkdir()
    script = 'cd "$1" && rmdir "$1" && shift && exec "$@"'
    done = subprocess.run(
        ["sh", "-c", script, "sh", gone, *KDAMON, *words.split()],
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    # Of an option, it makes the command line one that makes no sense.
    assert (True, "", 1) == (done.returncode in (1, 2), done.stdout, done.stderr.count("\n")), done.stderr
    assert "the working directory was removed" in done.stderr


#: Runs a verb by the function of the command, in this directory, and lists the modules that this took.
LISTS = """
import os, runpy, sys
listing, script = sys.argv[1:3]
sys.argv[:] = [script, *sys.argv[3:]]
sys.path[0] = os.path.dirname(script)
try:
    runpy.run_path(script, run_name="__main__")
except SystemExit:
    pass
names = {name.partition(".")[0] for name in sys.modules}
with open(listing, "w") as file:
    file.write("\\n".join(sorted(names)))
"""


@pytest.mark.real
@needs_root("monitoring and a mount namespace need root")
@pytest.mark.parametrize(
    "words",
    [
        "--version",
        "run --seconds 0.2 -- sleep 1",
        "replay {recording}",
        "exec --no-reports -- cat /sys/kernel/mm/damon/admin/kdamonds/nr_kdamonds",
    ],
)
def test_modules_in_the_working_directory_are_not_imported(tmp_path: Path, words: str) -> None:
    """Whatever name they have, by the installed command and the programs that it starts as helpers."""
    script = Path(sys.executable).parent / "kdamon"
    listing, imported, directory = tmp_path / "modules", tmp_path / "imported", tmp_path / "directory"
    imported.touch()
    directory.mkdir()
    command = [str(script), *words.format(recording=DATA / "perf_script_mem.txt").split()]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", LISTS, listing, *command], env=environment, capture_output=True, check=True)
    names = set(listing.read_text().split()) - {"__main__"}
    assert {"argparse", "kdamon", "kdamon_tools"} <= names
    assert (words != "--version") == ("numpy" in names)
    for name in (*names, "fuse", "sitecustomize", "usercustomize"):
        (directory / f"{name}.py").write_text(f"open({str(imported)!r}, 'a').write(__name__)\n")
    for name in ("perf", "damo", "uname", "gcc", "cat", "sleep"):
        program = directory / name
        program.write_text(f"#!/bin/sh\necho {name} >> {imported}\n")
        program.chmod(0o755)
    done = subprocess.run(
        command,
        env=environment,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (0, "") == (done.returncode, imported.read_text()), done.stderr


@needs_root("giving a directory to another user needs root")
def test_another_users_directory_for_temporary_files_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Said, and the usual one is taken; one's own, and a sticky one, are used."""
    own, shared, theirs = (tmp_path / name for name in ("own", "shared", "theirs"))
    for path in (own, shared, theirs):
        path.mkdir()
    shared.chmod(0o1777)
    os.chown(theirs, USER, USER)
    for variable in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.delenv(variable, raising=False)
    assert "/tmp" == temporary_directory()
    for path in (own, shared):
        monkeypatch.setenv("TMPDIR", str(path))
        assert temporary_directory() == str(path)
    assert "" == caplog.text
    monkeypatch.setenv("TMPDIR", str(theirs))
    assert "/tmp" == temporary_directory()
    assert f"TMPDIR={theirs} is not used: user 65534 owns {theirs}" in caplog.text
    monkeypatch.setenv("TEMP", str(own))
    assert temporary_directory() == str(own)
