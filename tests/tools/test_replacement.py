# SPDX-License-Identifier: GPL-2.0-only
"""An earlier file is lost only to one that is whole."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from kdamon_tools import cli
from kdamon_tools.output.replacement import Replacement, same_file
from tests.support.capabilities import needs_root
from tests.support.cli import ENVIRONMENT, KDAMON, REPORTS_ONLY
from tests.support.replaced import replaced

pytestmark = pytest.mark.real


NO_SUCH_PID = 2**22 + 1
OLD = "an earlier result\n"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A file that is needed."""
    path = tmp_path / "result"
    path.write_text(OLD)
    return path


def test_nothing_happens_before_it_is_whole(old: Path) -> None:
    """What is discarded leaves no trace, what is committed neither, but for the new content."""
    with Replacement(old) as replacement:
        replacement.file.write(b"half")
        assert OLD == old.read_text()
    assert ([old], OLD) == (list(old.parent.iterdir()), old.read_text())
    replaced(old)
    assert ([old], "new") == (list(old.parent.iterdir()), old.read_text())


def test_a_new_file_is_made_with_the_usual_mode_and_goes_when_it_is_discarded(tmp_path: Path) -> None:
    path = tmp_path / "result"
    with Replacement(path):
        assert path.exists()
    assert not path.exists()
    replaced(path)
    umask = os.umask(0)
    os.umask(umask)
    assert ("new", 0o666 & ~umask) == (path.read_text(), stat.S_IMODE(path.stat().st_mode))


def test_mode_owner_links_and_attributes_stay(old: Path) -> None:
    """Of a symbolic link the file that it names is replaced; of a hard link all names show the new content."""
    old.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(old, 1234, 4321)
    before = old.stat()
    link = old.with_name("link")
    link.symlink_to("result")
    replaced(link)
    after = old.stat()
    assert (True, "new") == (link.is_symlink(), old.read_text())
    assert (before.st_mode, before.st_uid, before.st_gid) == (after.st_mode, after.st_uid, after.st_gid)
    hard = old.with_name("hard")
    hard.hardlink_to(old)
    for content in (b"longer than it was before", b"short"):
        replaced(hard, content)
        assert (content, content) == (old.read_bytes(), hard.read_bytes())
    assert ["hard", "link", "result"] == sorted(os.listdir(old.parent))


@pytest.mark.real
@needs_root("changing the user needs root")
def test_a_directory_need_not_be_writable(old: Path, tmp_path: Path) -> None:
    """A file that may be written is written; one that may not be is refused although it could be replaced."""
    script = "import os, sys; from pathlib import Path; from tests.support.replaced import replaced\n"
    script += "os.setgid(65534); os.setuid(65534); replaced(Path(sys.argv[1]))\n"
    environment = ENVIRONMENT | {"TMPDIR": "/tmp"}
    for directory in (old.parent, *old.parent.parents):
        if directory.stat().st_uid == 0 and not directory.stat().st_mode & 0o001:
            directory.chmod(directory.stat().st_mode | 0o011)
    old.chmod(0o666)
    done = subprocess.run(
        [sys.executable, "-c", script, str(old)], env=environment, capture_output=True, text=True, check=False
    )
    assert (0, "new") == (done.returncode, old.read_text()), done.stderr
    old.parent.chmod(0o777)
    old.chmod(0o444)
    done = subprocess.run(
        [sys.executable, "-c", script, str(old)], env=environment, capture_output=True, text=True, check=False
    )
    assert (1, "new") == (done.returncode, old.read_text())
    assert f"PermissionError: [Errno 13] Permission denied: '{old}'" == done.stderr.splitlines()[-1]


@pytest.mark.real
def test_what_is_no_regular_file_is_written_as_it_is(tmp_path: Path) -> None:
    """A device, and a pipe with a reader."""
    replaced(Path("/dev/null"))
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with subprocess.Popen(["cat", str(fifo)], stdout=subprocess.PIPE) as reader:
        replaced(fifo)
        assert b"new" == reader.communicate()[0]
    assert stat.S_ISFIFO(fifo.stat().st_mode)


@pytest.mark.real
def test_a_descriptor_goes_on_where_it_is(old: Path) -> None:
    """As a shell has opened it, to append for instance."""
    words = [*REPORTS_ONLY, "--pid", "1", "--seconds", "0.1", "--json", "--output", "/dev/stdout"]
    with old.open("a") as stdout:
        subprocess.run([*KDAMON, *words], env=ENVIRONMENT, stdout=stdout, stderr=subprocess.DEVNULL, check=True)
        stdout.write("more\n")
    lines = old.read_text().splitlines(keepends=True)
    assert (OLD, True, "more\n") == (lines[0], lines[1].startswith('{"schema"'), lines[2])


@pytest.mark.real
@pytest.mark.parametrize("option", ["--output", "--reports-to"])
@pytest.mark.parametrize(
    "words",
    [
        ["--pid", str(NO_SUCH_PID)],
        ["--pid", str(os.getpid()), "--min-regions", "50", "--max-regions", "10"],
        ["--", "/nonexistent/server"],
    ],
    ids=["no such process", "nonsense", "no such program"],
)
def test_a_mistake_leaves_the_earlier_file(option: str, words: list[str], old: Path) -> None:
    """And no other one."""
    done = subprocess.run([*KDAMON, "run", option, str(old), *words], env=ENVIRONMENT, capture_output=True, check=False)
    assert done.returncode in (1, 2), done.stderr
    assert (OLD, ["result"]) == (old.read_text(), os.listdir(old.parent))


@pytest.mark.parametrize("name", ["missing/result", "file/result", ".", "loop", "n" * 300])
@pytest.mark.parametrize("option", ["--output", "--reports-to", "--truth"])
def test_a_place_where_no_file_can_be_is_a_mistake(
    option: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found before the command is started, with the name."""
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    words = [*REPORTS_ONLY, option, str(tmp_path / name), "--", "touch", str(tmp_path / "started")]
    assert 2 == cli.main(words)
    out, err = capsys.readouterr()
    assert ("", 1) == (out, err.count("\n"))
    assert str(tmp_path / name) in err
    assert ["file", "loop"] == sorted(os.listdir(tmp_path))


@pytest.mark.real
def test_one_file_is_not_for_two_uses(old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Under whatever names; a device may be."""
    other = tmp_path / "other"
    other.symlink_to("result")
    assert same_file(old, other)
    assert same_file(tmp_path / "new", tmp_path / "x" / ".." / "new")
    assert not same_file(Path("/dev/null"), Path("/dev/null"))
    assert not same_file(old, tmp_path / "new")
    base = [*REPORTS_ONLY, "--pid", "1", "--seconds", "0.1"]
    for words in (
        [*base, "--output", str(old), "--reports-to", str(other)],
        [*base, "--truth", str(old), "--output", str(other)],
        ["replay", str(old), "--output", str(other)],
    ):
        assert (2, OLD) == (cli.main(words), old.read_text())
        assert "are the same file" in capsys.readouterr().err
    with old.open("a") as stdout:
        words = [*base, "--reports-to", str(old)]
        assert 2 == subprocess.run([*KDAMON, *words], env=ENVIRONMENT, stdout=stdout, check=False).returncode
    assert OLD == old.read_text()


@pytest.mark.real
@needs_root("namespaces need root")
def test_a_disk_that_is_full_at_the_end_loses_nothing(tmp_path: Path) -> None:
    """The earlier file is there, the result is shown, and the error names the file."""
    script = f"""
        mount -t tmpfs -o size=16k none {tmp_path} && echo '{OLD.strip()}' > {tmp_path}/result || exit 99
        head -c 12k /dev/zero > {tmp_path}/filler
        "$@" --output {tmp_path}/result
        echo "status $?" && cat {tmp_path}/result && ls {tmp_path}
    """
    words = [*REPORTS_ONLY, "--pid", "1", "--seconds", "3", "--json"]
    inside = ["unshare", "--mount", "sh", "-c", script, "sh", *KDAMON, *words]
    done = subprocess.run(inside, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert ["status 1", OLD.strip(), "filler", "result"] == lines[1:], done.stderr
    assert lines[0].startswith('{"schema"')
    assert f"kdamon: {tmp_path}/result: No space left on device" in done.stderr.splitlines()[-1]
