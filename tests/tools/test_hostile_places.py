# SPDX-License-Identifier: GPL-2.0-only
"""--output and --reports-to into directories of other users: nothing of root's is written, given away or removed."""

from __future__ import annotations

import errno
import json
import os
import secrets
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from kdamon_tools import cli
from kdamon_tools.output.replacement import Replacement
from kdamon_tools.report_files.records import new_records
from tests.support.capabilities import needs_dev_fuse, needs_root
from tests.support.cli import ENVIRONMENT, KDAMON, REPORTS_ONLY
from tests.support.limited import ANOTHER_USER, AS_ANOTHER_USER, limited

pytestmark = [pytest.mark.real, needs_root("another user needs root")]

RUN = [*REPORTS_ONLY, "--pid", "1", "--seconds", "0.1", "--quiet", "--json"]
SECRET = "root's\n"


@pytest.fixture
def theirs(open_path: Path) -> Path:
    """A directory of another user."""
    directory = open_path / "theirs"
    directory.mkdir()
    os.chown(directory, ANOTHER_USER, ANOTHER_USER)
    return directory


@pytest.fixture
def victims(open_path: Path) -> Iterator[Path]:
    """A directory of root's with a file that must not change, called as the result is."""
    directory = open_path / "roots"
    directory.mkdir()
    (directory / "result").write_text(SECRET)
    before = (directory / "result").stat()
    yield directory
    after = (directory / "result").stat()
    assert (SECRET, ["result"]) == ((directory / "result").read_text(), os.listdir(directory))
    assert (before.st_ino, before.st_mode, before.st_uid) == (after.st_ino, after.st_mode, after.st_uid)


def they(script: str, *arguments: Path) -> None:
    """Have the other user run a script of the shell's."""
    subprocess.run([*AS_ANOTHER_USER, "sh", "-ec", script, "sh", *map(str, arguments)], check=True, timeout=60)


PLANTED = {
    "a link": ('ln -s "$2/result" "$1/result"', "result", "theirs/result is a symbolic link of user 65534"),
    "a link to nothing": ('ln -s "$2/new" "$1/result"', "result", "theirs/result is a symbolic link of user 65534"),
    "a link to a directory": ('ln -s "$2" "$1/d"', "d/result", "theirs/d is a symbolic link of user 65534"),
    "a link to a link": ('ln -s x "$1/result"; ln -s "$2/result" "$1/x"', "result", "is a symbolic link of user 65534"),
    "a link to a descriptor": ('ln -s /proc/self/fd/2 "$1/result"', "result", "is a symbolic link of user 65534"),
    "a link of a process": ('ln -s /proc/1/root "$1/d"', "d/etc/kdamon-result", "theirs/d is a symbolic link of user"),
    "a pipe": ('mkfifo "$1/result"', "result", "it is a pipe of user 65534"),
    "a directory": ('mkdir "$1/result"', "result", "Is a directory"),
    "a loop": ('ln -s result "$1/result"', "result", "is a symbolic link of user 65534"),
}


@pytest.mark.parametrize("option", ["--output", "--reports-to"])
@pytest.mark.parametrize("what", PLANTED)
def test_what_another_user_planted_is_refused_at_once(what: str, option: str, theirs: Path, victims: Path) -> None:
    """Status 2, before anything is started, and in one sentence with the name."""
    script, name, sentence = PLANTED[what]
    they(script, theirs, victims)
    done = limited(*RUN, option, str(theirs / name))
    assert (2, "", 1) == (done.returncode, done.stdout, done.stderr.count("\n")), done.stderr
    assert f"kdamon: {option}: {theirs}/{name}: " in done.stderr
    assert sentence in done.stderr


@pytest.mark.parametrize("option", ["--output", "--reports-to"])
def test_dots_after_a_directory_that_its_user_may_move_are_refused(option: str, theirs: Path, victims: Path) -> None:
    """Moved beside a file of root's, it would have root write that one."""
    victims.chmod(0o1777)
    they('mkdir "$1/x"; mv "$1/x" "$2/x"', theirs, victims)
    done = limited(*RUN, option, f"{victims}/x/../result")
    (victims / "x").rmdir()
    assert (2, "", 1) == (done.returncode, done.stdout, done.stderr.count("\n")), done.stderr
    assert "'..' leads out of" in done.stderr
    assert "name the directory that is meant" in done.stderr


def test_dots_where_only_root_moves_something_are_followed(victims: Path) -> None:
    """As ever."""
    (victims / "x").mkdir()
    with Replacement(f"{victims}/x/../new") as replacement:
        replacement.file.write(b"new")
        replacement.commit()
    (victims / "x").rmdir()
    assert "new" == (victims / "new").read_text()
    (victims / "new").unlink()


def test_a_hard_link_is_not_written(theirs: Path, victims: Path) -> None:
    """A user makes one to any file where fs.protected_hardlinks is 0."""
    (theirs / "result").hardlink_to(victims / "result")
    with pytest.raises(OSError, match="it has further names, and other users can write to its directory"):
        Replacement(theirs / "result")
    os.unlink(theirs / "result")
    theirs.chmod(0o1777)
    os.chown(theirs, 0, 0)
    (theirs / "result").hardlink_to(victims / "result")
    with pytest.raises(OSError, match="it has further names"):
        Replacement(theirs / "result")


def test_links_of_root_are_followed_but_for_hard_ones(theirs: Path, open_path: Path, victims: Path) -> None:
    """What an administrator set up goes on; a second name of a link may be a user's."""
    (theirs / "result").symlink_to("../target")
    with Replacement(theirs / "result") as replacement:
        replacement.file.write(b"new")
        replacement.commit()
    assert "new" == (open_path / "target").read_text()
    (open_path / "link").symlink_to(victims / "result")
    os.link(open_path / "link", theirs / "other", follow_symlinks=False)
    with pytest.raises(OSError, match="is a symbolic link of user 0"):
        Replacement(theirs / "other")


def test_a_link_at_the_name_of_the_temporary_file_is_not_followed(
    theirs: Path, victims: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if it is guessed."""
    they('echo old > "$1/result"; ln -s "$2/result" "$1/result.guessed.part"', theirs, victims)
    monkeypatch.setattr(secrets, "token_hex", lambda _n: "guessed")
    with Replacement(theirs / "result") as replacement:
        replacement.file.write(b"new")
        replacement.commit()
    assert ("new", True) == ((theirs / "result").read_text(), (theirs / "result.guessed.part").is_symlink())


EXCHANGES = {
    "the directory for a link": 'mv "$1" "$1.old"; ln -s "$2" "$1"',
    "the directory for another": 'mv "$1" "$1.old"; mkdir "$1"; echo mine > "$1/result"',
    "the file for a link": 'rm -f "$1/"result*; ln -s "$2/result" "$1/result"',
    "the file for another": 'rm -f "$1/"result*; echo mine > "$1/result"',
    "the file for a pipe": 'rm -f "$1/"result*; mkfifo "$1/result"',
    "the file for nothing": 'rm -f "$1/"result*',
    "the directory for nothing": 'rm -rf "$1"',
}


@pytest.mark.parametrize("earlier", [True, False], ids=["an earlier file", "a new file"])
@pytest.mark.parametrize("commit", [True, False], ids=["committed", "discarded"])
@pytest.mark.parametrize("what", EXCHANGES)
def test_what_is_exchanged_meanwhile_is_left_alone(
    what: str, commit: bool, earlier: bool, theirs: Path, victims: Path
) -> None:
    """Where the result is not at its place, that is an error; nothing elsewhere is written or removed."""
    inner = theirs / "inner"
    they('mkdir "$1"', inner)
    if earlier:
        they('echo old > "$1/result"', inner)
    with Replacement(inner / "result") as replacement:
        replacement.file.write(b"new")
        they(EXCHANGES[what], inner, victims)
        before = sorted((path, path.lstat().st_ino) for path in inner.iterdir()) if inner.is_dir() else []
        if commit:
            with pytest.raises(OSError) as raised:
                replacement.commit()
            assert str(inner / "result") == raised.value.filename
            expected = {errno.ESTALE, errno.ENOENT, errno.EPERM}
            assert raised.value.errno in expected
    after = sorted((path, path.lstat().st_ino) for path in inner.iterdir()) if inner.is_dir() else []
    assert before == after


def test_a_result_whose_place_was_taken_is_shown(theirs: Path, victims: Path) -> None:
    """On standard output, and the error says so."""
    script = f'rm -f "{theirs}/result"; ln -s "{victims}/result" "{theirs}/result"'
    words = [*REPORTS_ONLY, "--quiet", "--json", "--output", str(theirs / "result")]
    done = limited(*words, "--", *AS_ANOTHER_USER, "sh", "-c", script)
    assert (1, "the process ended") == (done.returncode, json.loads(done.stdout)["note"])
    assert done.stderr.startswith(f"kdamon: {theirs}/result: ")
    assert done.stderr.endswith("; the result is on standard output instead\n")


#: Exchanges a directory and a link to root's again and again, as fast as it can; says when it begins.
MAZE = f"""
import ctypes, os, sys
renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
os.setgroups([])
os.setresgid({ANOTHER_USER}, {ANOTHER_USER}, {ANOTHER_USER})
os.setresuid({ANOTHER_USER}, {ANOTHER_USER}, {ANOTHER_USER})
one, other = (os.fsencode(path) for path in sys.argv[1:])
print(flush=True)
while True:
    if renameat2(-100, one, -100, other, 2):
        sys.exit(os.strerror(ctypes.get_errno()))
"""


def replaced(path: Path) -> None:
    with Replacement(path) as replacement:
        replacement.file.write(b"new")
        replacement.commit()


def discarded(path: Path) -> None:
    with Replacement(path) as replacement:
        replacement.file.write(b"new")


@pytest.mark.parametrize("what", ["directory", "file"])
@pytest.mark.parametrize("use", [replaced, discarded])
def test_no_race_is_won(use: Callable[[Path], None], what: str, theirs: Path, victims: Path) -> None:
    """Some hundred attempts while what is written to is exchanged for a link and back without a pause."""
    place = theirs / "inner" / "result"
    link = theirs / "link"
    script = 'mkdir "$1/inner"; echo old > "$1/inner/result"; ln -s "$2" "$1/link"'
    they(script, theirs, victims if what == "directory" else victims / "result")
    one = place.parent if what == "directory" else place
    with subprocess.Popen([sys.executable, "-c", MAZE, one, link], stdout=subprocess.PIPE) as attacker:
        try:
            assert attacker.stdout is not None
            attacker.stdout.readline()
            failed = 0
            for _ in range(300):
                try:
                    use(place)
                except OSError:
                    failed += 1
            assert attacker.poll() is None
        finally:
            attacker.kill()
    assert failed


#: Mounts on the path $1 what another user serves and never answers for, in a namespace of its own; the rest goes on.
SILENT = f"""
import ctypes, os, stat, sys

def serve(path):
    device = os.open("/dev/fuse", os.O_RDWR)
    os.set_inheritable(device, True)
    mode = stat.S_IFDIR if os.path.isdir(path) else stat.S_IFREG
    data = f"fd={{device}},rootmode={{mode | 0o755:o}},user_id={ANOTHER_USER},group_id={ANOTHER_USER},allow_other"
    if ctypes.CDLL(None).mount(b"fuse", os.fsencode(path), b"fuse", 0, data.encode()):
        sys.exit("cannot mount")

"""
SILENT_FIRST = SILENT + "serve(sys.argv[1])\nos.execv(sys.argv[2], sys.argv[2:])\n"
SILENT_THEN = (
    SILENT
    + """
import glob
from pathlib import Path
from kdamon_tools.output.replacement import Replacement
place, over, end = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
try:
    with Replacement(place) as replacement:
        replacement.file.write(b"new")
        serve(glob.glob(over)[0])
        getattr(replacement, end)()
except OSError as error:
    print(error.filename, error.strerror)
"""
)


def in_a_namespace(script: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run Python in a mount namespace; what waits for an answer is killed."""
    command = ["timeout", "--signal=KILL", "120", "unshare", "--mount", sys.executable, "-c", script, *map(str, words)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)


@needs_dev_fuse
@pytest.mark.parametrize("whole", [True, False], ids=["a directory", "a file"])
@pytest.mark.parametrize(
    "words",
    [
        [*RUN, "--output"],
        [*RUN, "--reports-to"],
        [*RUN, "--truth"],
        [*REPORTS_ONLY, "--truth", "{}", "--", "true"],
        ["replay"],
        ["replay", str(Path(__file__).parent / "data" / "lackey_trace.txt"), "--output"],
    ],
    ids=lambda words: " ".join(words[-2:])[-20:],
)
def test_what_another_user_serves_is_not_waited_for(words: list[str], whole: bool, theirs: Path) -> None:
    """It is refused at once: a process that waits for an answer cannot be interrupted."""
    they('mkdir "$1/d"; touch "$1/d/result"', theirs)
    name = str(theirs / "d" / "result")
    words = [name if word == "{}" else word for word in words] if "{}" in words else [*words, name]
    done = in_a_namespace(SILENT_FIRST, theirs / "d" if whole else name, *KDAMON, *words)
    assert (1 if words[:-1] == ["replay"] else 2, "", 1) == (done.returncode, done.stdout, done.stderr.count("\n"))
    assert f"{name}: it is in a file system that user {ANOTHER_USER} serves\n" in done.stderr


@needs_dev_fuse
@pytest.mark.parametrize("end", ["commit", "discard"])
@pytest.mark.parametrize("over", ["d", "d/result", "d/result.*.part"])
def test_nor_what_another_user_serves_in_the_end(over: str, end: str, theirs: Path) -> None:
    """Mounted over what is written, or over what it is to replace, or over all of it."""
    they('mkdir "$1/d"; echo old > "$1/d/result"', theirs)
    done = in_a_namespace(SILENT_THEN, theirs / "d" / "result", theirs / over, end)
    assert (0, "") == (done.returncode, done.stderr)
    # What cannot be renamed is copied, which is no error where it is at its place then.
    expected = end == "commit" and not over.endswith("part")
    assert expected == done.stdout.startswith(f"{theirs}/d/result ")
    assert ("new" if end == "commit" else "old\n") == (theirs / "d" / "result").read_text()


def test_a_file_keeps_no_rights_of_a_program(theirs: Path) -> None:
    """As if it was written: its owner, mode and attributes stay, but set-user-ID, set-group-ID and capabilities go."""
    path = theirs / "result"
    they('echo old > "$1"; chmod 640 "$1"', path)
    os.setxattr(path, "user.note", b"kept")
    # cap_setuid in the permitted and effective sets (struct vfs_cap_data, revision 2).
    os.setxattr(path, "security.capability", bytes.fromhex("0100000280000000") + bytes(12))
    path.chmod(0o6750)
    replaced(path)
    status = path.stat()
    assert (ANOTHER_USER, 0o750) == (status.st_uid, stat.S_IMODE(status.st_mode))
    assert (["user.note"], "new") == (os.listxattr(path), path.read_text())


def test_a_directory_of_another_user_will_do(theirs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a home where ``sudo kdamon`` is called: a new file is root's, an earlier one stays theirs."""
    they('echo old > "$1/old"', theirs)
    for name, owner in (("new", 0), ("old", ANOTHER_USER)):
        assert (0, "") == (cli.main([*RUN, "--output", str(theirs / name)]), capsys.readouterr().out)
        assert owner == (theirs / name).stat().st_uid
        assert "the time was over" == json.loads((theirs / name).read_text())["note"]
    assert ["new", "old"] == sorted(os.listdir(theirs))


def test_links_of_ones_own_that_have_further_names(open_path: Path) -> None:
    """As a deduplicated or checked-out system has them; other users cannot have brought one into root's directory."""
    (open_path / "place").mkdir()
    (open_path / "link").symlink_to("place")
    os.link(open_path / "link", open_path / "other", follow_symlinks=False)
    with Replacement(open_path / "link" / "result") as replacement:
        replacement.file.write(b"new")
        replacement.commit()
    assert "new" == (open_path / "place" / "result").read_text()


@pytest.mark.parametrize("what", ["a pipe", "a file", "a file of another name"])
def test_a_descriptor_of_another_process_of_this_user(what: str, open_path: Path) -> None:
    """As /proc/1/fd/1, the log of a container: it is written as it is, and nothing is renamed to it."""
    file = open_path / "log"
    file.write_text("earlier, and longer")
    reading, writing = os.pipe() if what == "a pipe" else (os.open(file, os.O_RDONLY), os.open(file, os.O_WRONLY))
    if what == "a file of another name":
        file.rename(file := open_path / "log.1")
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=writing) as process:
        try:
            with Replacement(Path(f"/proc/{process.pid}/fd/1")) as replacement:
                replacement.file.write(b"new")
                replacement.commit()
            assert b"new" == os.read(reading, 100)
        finally:
            process.kill()
            os.close(reading)
            os.close(writing)
    assert [file.name] == os.listdir(open_path)


def test_a_replay_writes_to_a_descriptor_of_another_process(open_path: Path) -> None:
    """By then it has no capability to look at that process any more."""
    recording = open_path / "recording"
    np.save(recording.with_suffix(".npy"), new_records(2, time=1, pid=1, addr=4096, size=8))
    reading, writing = os.pipe()
    with open(open_path / "log", "xb") as log, subprocess.Popen(["cat"], stdin=reading, stdout=log) as process:
        done = limited("replay", "--json", "--output", f"/proc/{process.pid}/fd/1", f"{recording}.npy")
        os.close(writing)
    os.close(reading)
    assert (0, "") == (done.returncode, done.stdout), done.stderr
    assert 1 == json.loads((open_path / "log").read_text())["config"]["pid"]


def test_a_descriptor_of_another_users_process_is_refused(open_path: Path) -> None:
    """It leads where that user likes."""
    with subprocess.Popen([*AS_ANOTHER_USER, "cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        try:
            assert process.stdin is not None
            while Path(f"/proc/{process.pid}/fd/1").lstat().st_uid == 0:
                pass
            with pytest.raises(OSError, match="is a symbolic link of user 65534"):
                Replacement(Path(f"/proc/{process.pid}/fd/1"))
        finally:
            process.kill()


def test_a_pipe_of_this_user_is_waited_for(open_path: Path) -> None:
    """Until a reader comes, as the shell does it."""
    os.mkfifo(open_path / "result")
    with subprocess.Popen(["cat", open_path / "result"], stdout=subprocess.PIPE) as reader:
        replaced(open_path / "result")
        assert b"new" == reader.communicate()[0]
