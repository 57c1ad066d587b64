# SPDX-License-Identifier: GPL-2.0-only
"""``kdamon exec`` by root with what another user left in the environment, as ``sudo -E`` and ``su -m`` keep it.

That user is 65534. What it makes root do would be a file that appears, or a command that never ends.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.capabilities import needs_compiler, needs_dev_fuse, needs_libfuse, needs_root
from tests.support.paths import SUPPORT

pytestmark = [pytest.mark.real, needs_dev_fuse, needs_libfuse, needs_root("a mount namespace needs root")]


#: For tests whose outcome depends on libfuse.
by_each_binding = pytest.mark.usefixtures("fuse_binding")

HERE = Path(__file__).parent
USER = 65534
CACHE = ".damo.sysinfo"
MADE_SURE = "grep -q '^kdamon /sys/kernel/mm/damon fuse.kdamon ' /proc/mounts || exit 99\n"
EXEC = ("-P", "-m", "kdamon_tools", "exec", "--no-reports", "--")

#: A command that looks into nothing but the tree.
BEGINS = """
import os
os.stat("/sys/kernel/mm/damon/admin/kdamonds/nr_kdamonds")
print(os.getcwd(), os.environ["HOME"])
"""


class Hostile:
    """Directories of the user and of root, and commands that root runs there.

    :ivar victim: a file that only root could make.
    """

    def __init__(self, directory: Path) -> None:
        directory.chmod(0o755)
        self.root, self.user = directory / "root", directory / "user"
        self.silent = self.user / "silent"
        self.victim = self.root / "victim"
        for path in (self.root, self.user, self.silent):
            path.mkdir()
        self.passwd = directory / "passwd"
        self.passwd.write_text(f"root:x:0:0:root:{self.root}:/bin/sh\nnobody:x:{USER}:{USER}::/nonexistent:/bin/sh\n")
        self.give()

    def give(self) -> None:
        """Let everything of the user be the user's."""
        for path in (self.user, *self.user.rglob("*")):
            os.chown(path, USER, USER, follow_symlinks=False)

    def program(self, *names: str) -> Path:
        """A directory of the user with programs that show that root ran them."""
        for name in names:
            path = self.user / "bin" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"#!/bin/sh\ntouch {self.victim}\nexit 1\n")
            path.chmod(0o755)
        self.give()
        return self.user / "bin"

    def run(
        self, *words: str, directory: Path | str = "/", modules: bool = True, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a Python program in this environment, in a directory; it has to end."""
        outside = os.readlink("/proc/self/ns/mnt")
        paths = os.pathsep.join(path for path in sys.path if path) if modules else ""
        command = ["unshare", "--mount", "--propagation", "private", sys.executable, str(SUPPORT / "hostile_mounts.py")]
        process = subprocess.Popen(
            [*command, str(self.passwd), str(self.silent), str(directory), sys.executable, *words],
            env={**os.environ, "PYTHONPATH": paths, "OUTSIDE": outside, "HOME": str(self.root), **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            said, complained = process.communicate(timeout=60)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
        return subprocess.CompletedProcess(words, process.returncode, said, complained)

    def exec(self, script: str, **options: str) -> subprocess.CompletedProcess[str]:
        """Run a shell script in ``kdamon exec``."""
        return self.run(*EXEC, "sh", "-c", MADE_SURE + script, **options)


@pytest.fixture
def hostile(tmp_path: Path) -> Hostile:
    """The user and root."""
    return Hostile(tmp_path)


@pytest.mark.parametrize("kind", ["link", "pipe", "nothing"])
def test_home_of_another_user_is_replaced(hostile: Hostile, kind: str) -> None:
    """A link made root create a file of the user's choice, a pipe was waited for, by kdamon and by damo."""
    cache = hostile.user / CACHE
    if kind == "link":
        cache.symlink_to(hostile.victim)
    elif kind == "pipe":
        os.mkfifo(cache)
    hostile.give()
    before = sorted(os.listdir(hostile.user))
    done = hostile.exec(f"echo damo > ~/{CACHE}; cat ~/{CACHE}; echo $HOME", HOME=str(hostile.user))
    assert (done.returncode, done.stdout) == (0, f"damo\n{hostile.root}\n")
    assert (
        f"HOME={hostile.user}: user 65534 owns {hostile.user}; the command runs with HOME={hostile.root}" in done.stderr
    )
    assert sorted(os.listdir(hostile.user)) == before
    assert [] == os.listdir(hostile.root)


#: Holds a lock as another user, who may read the file.
HOLDS = f"""
import fcntl, os, signal
os.setresuid({USER}, {USER}, {USER})
fcntl.flock(0, fcntl.LOCK_EX)
print(flush=True)
signal.pause()
"""


def test_a_lock_that_another_user_holds_is_not_waited_for(hostile: Hostile) -> None:
    """On a cache that every user may read: the command runs, and finds it as it is."""
    cache = hostile.root / CACHE
    cache.write_text("text\n")
    with (
        cache.open("rb") as file,
        subprocess.Popen([sys.executable, "-c", HOLDS], stdin=file, stdout=subprocess.PIPE) as holder,
    ):
        try:
            assert holder.stdout is not None
            assert b"\n" == holder.stdout.readline()
            done = hostile.exec(f"cat ~/{CACHE}")
        finally:
            holder.kill()
    assert (0, "text\n") == (done.returncode, done.stdout)


@pytest.mark.parametrize("kind", ["link", "pipe", "theirs", "writable"])
def test_a_cache_in_ones_own_home_that_is_no_file_of_ones_own(hostile: Hostile, kind: str) -> None:
    """It is neither followed, nor waited for, nor covered; the command runs."""
    cache = hostile.root / CACHE
    if kind == "link":
        cache.symlink_to(hostile.victim)
    elif kind == "pipe":
        os.mkfifo(cache)
    else:
        cache.write_text("text\n")
        if kind == "theirs":
            os.chown(cache, USER, USER)
        else:
            cache.chmod(0o666)
    done = hostile.exec(f"grep -c '{CACHE}' /proc/self/mountinfo")
    assert (1, "0\n") == (done.returncode, done.stdout)
    assert [CACHE] == os.listdir(hostile.root)


def test_damo_of_another_user_is_not_run(hostile: Hostile) -> None:
    """Nor what is called damo in the working directory; kdamon asks damo before the command runs."""
    directory = hostile.program("damo", "uname", "which", "perf")
    path = os.environ["PATH"]
    for first in (f"{directory}:{path}", f":.:../bin:{path}"):
        assert 0 == hostile.exec("true", directory=str(directory), PATH=first).returncode
        assert not hostile.victim.exists()


def test_damo_that_was_installed_as_kdamon_was_is_run(tmp_path: Path) -> None:
    """Where others may write to PATH: Debian has this Python in /usr/bin, and in /usr/local/bin what pip installs."""
    for directory in ("python", "bin"):
        (tmp_path / directory).mkdir()
    base = Path(sys.executable).resolve()
    (tmp_path / "pyvenv.cfg").write_text(f"home = {base.parent}\n")
    (tmp_path / "python" / "python3").symlink_to(base)
    (tmp_path / "bin" / "damo").write_text(f"#!/bin/sh\necho $* > {tmp_path}/asked\n")
    (tmp_path / "bin" / "damo").chmod(0o755)
    tmp_path.chmod(0o777)
    subprocess.run(
        [tmp_path / "python" / "python3", "-c", "from kdamon_fs.damo import fill_damo_cache; fill_damo_cache()"],
        env={"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        timeout=60,
        check=True,
    )
    assert "report sysinfo\n" == (tmp_path / "asked").read_text()


def test_perf_of_the_working_directory_is_not_run(hostile: Hostile) -> None:
    """kdamon's own perf looks for the machine's one."""
    directory = hostile.program("perf")
    done = hostile.exec("perf --version", directory=str(directory), PATH=f":.:{os.environ['PATH']}")
    assert not hostile.victim.exists()
    assert done.stdout.startswith("perf version ")


def test_nothing_is_made_in_a_directory_for_temporary_files(hostile: Hostile) -> None:
    """Its user could put a link there, and root would mount on it and bind what it leads to over damo's cache."""
    before = os.stat(hostile.user).st_mtime_ns
    assert 0 == hostile.exec("true", TMPDIR=str(hostile.user)).returncode
    assert before == os.stat(hostile.user).st_mtime_ns


@by_each_binding
def test_a_file_system_that_answers_nothing_holds_nothing_up(hostile: Hostile) -> None:
    """Wherever it is in the environment; the command begins in it, and has to look out for itself."""
    silent = str(hostile.silent)
    names = ("TMPDIR", "TEMP", "TMP", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME", "HOME", "KDAMON_REPORTS")
    environment = dict.fromkeys(names, silent) | {"PATH": f"{silent}:{os.environ['PATH']}"}
    command = (sys.executable, "-I", "-S", "-c", BEGINS)
    done = hostile.run(*EXEC, *command, directory=silent, **environment)
    assert (done.returncode, done.stdout) == (0, f"{silent} {hostile.root}\n")


def test_mounts_below_such_a_file_system_are_not_looked_for(hostile: Hostile) -> None:
    """kdamon closes the machine's places in all mounts, and their names lead into it."""
    for name in ("sysfs", "debugfs", "tracefs"):
        (hostile.silent / name).mkdir()
    hostile.give()
    question = """
from kdamon_fs.places import preparing_places
with preparing_places([], []):
    print("done")
"""
    done = hostile.run("-c", question)
    assert ("done\n", "") == (done.stdout, done.stderr)


def test_a_replay_does_not_wait_for_such_a_file_system(hostile: Hostile) -> None:
    """In which its temporary recording would be; the working directory is in it, too."""
    text = HERE.parent / "tools" / "data" / "perf_script_mem.txt"
    silent = str(hostile.silent)
    words = ("-P", "-m", "kdamon_tools", "replay", str(text))
    done = hostile.run(*words, directory=silent, TMPDIR=silent, TEMP=silent, TMP=silent)
    assert 0 == done.returncode
    assert f"TMPDIR={silent} is not used: user 65534 owns {hostile.user}" in done.stderr


#: Goes to the working directory by its name, again and again, until the user exchanged it for a link many times.
GOES = """
import os, subprocess, sys
from kdamon_fs.namespace import _find_directory_again
here = os.stat(".")
while not os.path.exists(sys.argv[1]):
    _find_directory_again()
    assert os.path.samestat(here, os.stat(".")), os.getcwd()
"""

#: Exchanges two names, many times, then makes a file.
EXCHANGES = """
import ctypes, os, sys
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
exchange = ctypes.CDLL(None).renameat2
for _ in range(100000):
    if exchange(-100, b"directory", -100, b"link", 2):
        sys.exit("they were not exchanged")
open("done", "x").close()
"""


def test_a_working_directory_that_its_user_exchanges_is_not_left(hostile: Hostile) -> None:
    """A link in its place would lead root's command, and what it writes, to where the user likes."""
    (hostile.user / "directory").mkdir()
    (hostile.user / "link").symlink_to(hostile.root)
    hostile.give()
    with subprocess.Popen(
        [sys.executable, "-c", EXCHANGES], cwd=hostile.user, stderr=subprocess.PIPE, text=True
    ) as user:
        done = hostile.run("-c", GOES, str(hostile.user / "done"), directory=str(hostile.user / "directory"))
        _, complained = user.communicate(timeout=60)
    assert (0, "") == (done.returncode, complained), done.stderr


def test_a_command_that_cannot_be_reached_is_ended_by_a_signal(hostile: Hostile) -> None:
    """kdamon passes it on although the program was not found yet."""
    words = (sys.executable, *EXEC, str(hostile.silent / "command"))
    ending = f"""
import signal, subprocess, sys, time
process = subprocess.Popen({words!r})
def waits_for_it():
    with open(f"/proc/{{process.pid}}/status") as lines:
        blocked = int(next(line.split()[1] for line in lines if line.startswith("SigBlk:")), 16)
    # Where a thread is begun, all are blocked for a moment.
    return blocked >> signal.SIGTERM - 1 & 1 and not blocked >> signal.SIGALRM - 1 & 1
while not waits_for_it():
    time.sleep(0.02)
process.send_signal(signal.SIGTERM)
print(process.wait())
"""
    assert hostile.run("-c", ending).stdout == f"{128 + signal.SIGTERM}\n"


@needs_compiler
@by_each_binding
@pytest.mark.parametrize("name", ["library.so", "silent/library.so"])
def test_a_library_of_another_user_is_not_loaded(hostile: Hostile, name: str) -> None:
    """Its constructors would run."""
    library = hostile.user / "library.so"
    text = f'#include <stdlib.h>\n__attribute__((constructor)) void run(void) {{ system("touch {hostile.victim}"); }}\n'
    subprocess.run(["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", library], input=text, text=True, check=True)
    hostile.give()
    done = hostile.exec("true", FUSE_LIBRARY_PATH=str(hostile.user / name))
    assert 1 == done.returncode
    assert f"FUSE_LIBRARY_PATH names {hostile.user / name}, which is not trusted (" in done.stderr
    assert not hostile.victim.exists()


def test_no_compiler_is_asked_for_a_library(hostile: Hostile, fuse_binding: str) -> None:
    """Python's own search runs gcc, cc, ld and objdump of PATH where the loader's cache lacks a library."""
    directory = hostile.program("gcc", "cc", "ld", "objdump", "ldconfig")
    question = f"""
import subprocess
subprocess.run(["mount", "--bind", "/dev/null", "/etc/ld.so.cache"], check=True)
import os
os.environ["PATH"] = {str(directory)!r}
from kdamon_fs.fuse_binding import load_fuse
print(load_fuse().package)
"""
    done = hostile.run("-c", question)
    assert not hostile.victim.exists()
    assert done.stdout == f"{fuse_binding}\n", done.stderr


@by_each_binding
def test_fusermount_of_another_user_is_not_run(hostile: Hostile) -> None:
    """Where root may not mount, as in a container, it would be what mounts."""
    directory = hostile.program("fusermount", "fusermount3")
    mountpoint = hostile.root / "mountpoint"
    mountpoint.mkdir()
    words = ["setpriv", "--bounding-set", "-sys_admin", sys.executable, "-P", "-m", "kdamon_tools", "mount"]
    without = f"import os; os.execvp('setpriv', {[*words, '--no-reports', str(mountpoint)]!r})"
    done = hostile.run("-c", without, PATH=f"{directory}:{os.environ['PATH']}")
    assert 1 == done.returncode
    assert not hostile.victim.exists()


def test_no_program_of_another_user_is_started_by_doctor(hostile: Hostile) -> None:
    """As a process to monitor."""
    question = """
import os
from kdamon.mm.doctor.schemes import loaded_child
with loaded_child() as pid:
    print(os.readlink(f"/proc/{pid}/exe"))
"""
    directory = hostile.program("cat")
    done = hostile.run("-c", question, PATH=f"{directory}:{os.environ['PATH']}")
    assert not hostile.victim.exists()
    assert done.stdout.startswith("/usr/bin/"), done.stderr
