# SPDX-License-Identifier: GPL-2.0-only
"""Attacks on the socket of reports as a file: other users own or change what its path leads through."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from kdamon.producers.client import ReportClient
from kdamon.producers.server import ReportServer
from tests.support.attacker import NOBODY, attacker, exchange
from tests.support.capabilities import needs_dev_fuse, needs_root
from tests.support.paths import public_directory
from tests.support.waiting import eventually

SECRET = "only root's"

pytestmark = [pytest.mark.real, needs_root("other users' processes need root")]

#: A server that runs until it reads a line.
SERVER = """
import os, sys
from pathlib import Path
from kdamon.producers.server import ReportServer
user, umask = int(sys.argv[2]), int(sys.argv[3], 8)
os.setresgid(user, user, user)
os.setresuid(user, user, user)
os.umask(umask)
with ReportServer(Path(sys.argv[1]) if sys.argv[1] else None):
    print("ready", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory like /tmp, whose owner is root."""
    with public_directory(0o1777) as directory:
        yield directory


@pytest.fixture
def victim(public: Path) -> Path:
    """A directory of root's with files of the names that a server uses, which no other user can read."""
    directory = public / "victim"
    directory.mkdir(0o755)
    for name in ("reports", "reports.lock"):
        (directory / name).write_text(SECRET)
        (directory / name).chmod(0o600)
    return directory


def unharmed(victim: Path) -> bool:
    """Whether the files are as they were made."""
    found = {path.name: (path.read_text(), stat.S_IMODE(path.stat().st_mode)) for path in victim.iterdir()}
    return found == {"reports": (SECRET, 0o600), "reports.lock": (SECRET, 0o600)}


def of_another_user(path: Path, mode: int = 0o755) -> Path:
    """Make a directory that is not root's."""
    path.mkdir()
    path.chmod(mode)
    os.chown(path, NOBODY, NOBODY)
    return path


@contextmanager
def serving(path: Path | str, user: int = 0, umask: int = 0o22) -> Iterator[subprocess.Popen[str]]:
    """A server in a process of its own, ready."""
    words = [sys.executable, "-c", SERVER, str(path), str(user), f"{umask:o}"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert "ready\n" == process.stdout.readline()
            yield process
        finally:
            process.kill()


def refusal(path: Path) -> tuple[int | None, str]:
    """How the start of a server is refused; (0, "") if it is not."""
    server = ReportServer(path)
    try:
        server.start()
    except OSError as error:
        return error.errno, str(error.strerror)
    server.close()
    return 0, ""


# The way to the directory.


@pytest.mark.parametrize("where", ["home", "."])
def test_a_user_exchanges_the_directory_again_and_again(public: Path, victim: Path, where: str) -> None:
    """For a link to root's files, by way of many others that make the lookup slow: no start succeeds."""
    of_another_user(public / "home")
    maze = public / where
    own = of_another_user(maze / "run")
    for number in range(30):
        (maze / f"link{number}").symlink_to(maze / f"link{number + 1}")
        os.chown(maze / f"link{number}", NOBODY, NOBODY, follow_symlinks=False)
    (maze / "link30").symlink_to(victim)
    directory = os.open(own, os.O_RDONLY)

    def attack() -> None:
        for _ in range(100):
            assert 0 == exchange(maze / "run", maze / "link0")

    with attacker(attack):
        refused = {refusal(maze / "run/reports")[0] for _ in range(300)}
    # The latter where it was a link and then a directory.
    assert refused <= {errno.EPERM, errno.ENOTDIR}
    assert unharmed(victim)
    assert [] == os.listdir(directory)
    os.close(directory)


@pytest.mark.parametrize("how", ["ends", "is killed"])
def test_the_directory_has_another_name_when_the_server_ends(public: Path, victim: Path, how: str) -> None:
    """Its old name leads to root's files: these stay, and what the server made goes."""
    (public / "run").mkdir()
    with serving(public / "run/reports") as server:
        (public / "run").rename(public / "moved")
        (public / "run").symlink_to(victim)
        assert {"reports", "reports.lock"} == set(os.listdir(public / "moved"))
        if how == "ends":
            server.communicate("\n")
            assert 0 == server.returncode
        else:
            server.kill()
    eventually(lambda: not os.listdir(public / "moved"), "the end of the socket and its lock")
    assert unharmed(victim)


def _below(name: str, mode: int = 0o755) -> Callable[[Path], Path]:
    """A directory of another user, and ``name`` in it, which is root's."""

    def make(public: Path) -> Path:
        of_another_user(public / "other", mode)
        (public / "other" / name).mkdir(parents=True, exist_ok=True)
        return public / "other" / name

    return make


def _link_of_another_user(public: Path) -> Path:
    (public / "root").mkdir()
    (public / "link").symlink_to("root")
    os.chown(public / "link", NOBODY, NOBODY, follow_symlinks=False)
    return public / "link"


def _link_by_way_of_another_user(public: Path) -> Path:
    (public / "root").mkdir()
    of_another_user(public / "other")
    (public / "other/on").symlink_to(public / "root")
    (public / "root/link").symlink_to("../other/on")
    return public / "root/link/../root"


def _hard_link_to_a_link_of_root(public: Path) -> Path:
    """Which users can make of others' links where ``fs.protected_hardlinks`` is off."""
    (public / "root").mkdir()
    (public / "root/link").symlink_to(public / "root")
    os.link(public / "root/link", public / "link", follow_symlinks=False)
    return public / "link"


def _of_root(mode: int, group: int = 0) -> Callable[[Path], Path]:
    def make(public: Path) -> Path:
        (public / "root").mkdir()
        os.chown(public / "root", 0, group)
        (public / "root").chmod(mode)
        return public / "root"

    return make


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (_below("."), "user 65534 owns {public}/other and could replace"),
        (_below("of/root"), "user 65534 owns {public}/other and could replace"),
        (_below("root", 0o1777), "user 65534 owns {public}/other and could replace"),
        (_link_of_another_user, "user 65534 owns {public}/link and could replace"),
        (_link_by_way_of_another_user, "user 65534 owns {public}/other and could replace"),
        (_hard_link_to_a_link_of_root, "other users can write to the directory of {public}/link and could replace"),
        (_of_root(0o777), "other users can write to {public}/root and could replace"),
        (_of_root(0o775, 65534), "other users can write to {public}/root and could replace"),
    ],
    ids=["owner", "owner above", "sticky", "link", "linked directory", "hard link", "every user", "group"],
)
def test_a_directory_that_others_can_change_is_refused(
    public: Path, make: Callable[[Path], Path], sentence: str
) -> None:
    """At any step; the sentence names it, and nothing is made."""
    place = make(public)
    number, said = refusal(place / "reports")
    assert errno.EPERM == number
    assert sentence.format(public=public) in said
    assert not {"reports", "reports.lock"} & set(os.listdir(place))


def _links_of_root(public: Path) -> Path:
    (public / "root").mkdir()
    (public / "root/link").symlink_to(public / "root/on")
    (public / "root/on").symlink_to("../victim/../root")
    return public / "root/link"


@pytest.mark.parametrize(
    "make",
    [lambda public: public, _links_of_root, _of_root(0o1777)],
    ids=["sticky", "links", "sticky below"],
)
@pytest.mark.usefixtures("victim")
def test_a_directory_that_only_root_can_change_is_taken(public: Path, make: Callable[[Path], Path]) -> None:
    """Sticky ones, and by links of root's."""
    with ReportServer(make(public) / "reports") as server, ReportClient(server.path) as client:
        assert client.connected()


def test_the_socket_may_be_in_the_root_of_a_process(public: Path) -> None:
    """As for a container: it is made where the process finds it."""
    (public / "jail").mkdir()
    pid = os.fork()
    if pid == 0:
        try:
            os.chroot(public / "jail")
            os.kill(os.getpid(), signal.SIGSTOP)
        finally:
            os._exit(1)
    try:
        os.waitpid(pid, os.WUNTRACED)
        with ReportServer(f"/proc/{pid}/root/reports"), ReportClient(public / "jail/reports") as client:
            assert client.connected()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_file_is_no_directory(public: Path, victim: Path) -> None:
    """It is refused with its name."""
    assert errno.ENOTDIR == refusal(victim / "reports/reports")[0]
    assert unharmed(victim)


def test_a_user_serves_in_a_directory_of_a_group_of_the_users_own(public: Path) -> None:
    """As a umask of 002 makes them; not so where the group is another one, for others may be in that."""
    place = of_another_user(public / "own", 0o775)
    with serving(place / "reports", NOBODY), ReportClient(place / "reports") as client:
        assert client.connected()
    os.chown(place, NOBODY, 1)
    words = [sys.executable, "-c", SERVER, str(place / "reports"), str(NOBODY), "22"]
    done = subprocess.run(words, input="\n", capture_output=True, text=True, timeout=60, check=False)
    assert f"other users can write to {place} and could replace" in done.stderr


def test_a_runtime_directory_of_another_user_is_refused(public: Path) -> None:
    """Which XDG_RUNTIME_DIR names; one of the user's own is taken, and what is made there goes."""
    place = of_another_user(public / "run", 0o700)
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(place)}

    def serve(user: int) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-c", SERVER, "", str(user), "22"]
        return subprocess.run(
            words, env=environment, input="\n", capture_output=True, text=True, timeout=60, check=False
        )

    assert "ready\n" == serve(NOBODY).stdout
    place.chmod(0o755)
    assert f"user {NOBODY} owns {place} and could replace" in serve(NOBODY - 1).stderr
    assert [] == os.listdir(place)


# What is in the directory already.


def _file(path: Path) -> None:
    path.write_text("")
    path.chmod(0o600)
    os.chown(path, NOBODY, NOBODY)


def _link(path: Path) -> None:
    path.symlink_to(path.parent / "victim/reports")


def _hard_link(path: Path) -> None:
    """Which users can make of others' files where ``fs.protected_hardlinks`` is off."""
    path.hardlink_to(path.parent / "victim/reports")


def _pipe(path: Path) -> None:
    os.mkfifo(path, 0o666)
    os.chown(path, NOBODY, NOBODY)


def _readable(path: Path) -> None:
    path.write_text("")
    path.chmod(0o644)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(os.fspath(path))
    os.chown(path, NOBODY, NOBODY)


@pytest.mark.parametrize("make", [_file, _link, _hard_link, _pipe, _readable, _socket, Path.mkdir])
def test_something_else_where_the_lock_would_be(public: Path, victim: Path, make: Callable[[Path], None]) -> None:
    """Of another user, or one that another user may hold: the sentence names it, and nothing happens to it."""
    lock = public / "reports.lock"
    make(lock)
    before = lock.lstat()
    said = f"the socket of reports cannot be made at {public}/reports: reports.lock is there and is no lock that a "
    assert (errno.EEXIST, f"{said}kdamon of this user made; remove it, or choose another path") == refusal(
        public / "reports"
    )
    after = lock.lstat()
    assert (before.st_ino, before.st_mode, before.st_uid) == (after.st_ino, after.st_mode, after.st_uid)
    assert {"victim", "reports.lock"} == set(os.listdir(public))
    assert unharmed(victim)


def test_another_user_does_not_hold_the_lock(public: Path) -> None:
    """A server's own lock can be opened by no other user, whatever the umask is."""
    with serving(public / "reports", umask=0):
        assert 0o600 == stat.S_IMODE((public / "reports.lock").stat().st_mode)


def test_a_lease_on_the_lock_holds_no_server_up(public: Path) -> None:
    """Of a user who wants every other process that opens it to wait."""
    lock = public / "reports.lock"
    _file(lock)

    def attack() -> None:
        os.close(os.open(lock, os.O_RDWR))
        fd = os.open(lock, os.O_RDWR)
        signal.signal(signal.SIGIO, signal.SIG_IGN)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        os.close(ready_w)
        signal.pause()

    ready, ready_w = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setresuid(NOBODY, NOBODY, NOBODY)
            attack()
        finally:
            os._exit(1)
    os.close(ready_w)
    try:
        assert b"" == os.read(ready, 1)
        assert errno.EEXIST == refusal(public / "reports")[0]
    finally:
        os.close(ready)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.mark.parametrize("living", [False, True])
def test_another_users_socket_stays(public: Path, living: bool) -> None:
    """Also one that no process serves: its user may, later."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
        other.bind(os.fspath(public / "reports"))
        os.chown(public / "reports", NOBODY, NOBODY)
        if living:
            other.listen()
        else:
            other.close()
        number, said = refusal(public / "reports")
        assert errno.EEXIST == number
        assert "reports is there and is user 65534's; remove it, or choose another path" in said
        assert ["reports"] == os.listdir(public)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM])
def test_a_socket_that_another_program_serves_stays(public: Path, kind: socket.SocketKind) -> None:
    """Which has no lock beside it."""
    with socket.socket(socket.AF_UNIX, kind) as other:
        other.bind(os.fspath(public / "reports"))
        if kind != socket.SOCK_DGRAM:
            other.listen()
        number, said = refusal(public / "reports")
        assert errno.EADDRINUSE == number
        assert "another process serves reports; choose another path" in said
        assert ["reports"] == os.listdir(public)


def test_users_race_for_the_names_in_a_sticky_directory(public: Path, victim: Path) -> None:
    """Links, pipes and sockets come and go, and are exchanged: root's files stay, and a server that starts is found."""
    names = [public / "reports", public / "reports.lock"]

    def attack() -> None:
        for make in (_link, _file_of_their_own, os.mkfifo, _socket_of_their_own):
            for name, other in (names, names[::-1]):
                for path in (name, public / "theirs"):
                    try:
                        make(path)
                    except OSError:
                        continue
                exchange(name, public / "theirs")
                exchange(other, public / "theirs")
                for path in (*names, public / "theirs"):
                    try:
                        path.unlink()
                    except OSError:
                        continue
        time.sleep(0.0005)

    outcomes = set()
    with attacker(attack):
        for _ in range(60):
            server = ReportServer(public / "reports")
            try:
                server.start()
            except OSError as error:
                outcomes.add(error.errno)
                continue
            outcomes.add(0)
            with closing(server), ReportClient(server.path) as client:
                assert client.connected()
                assert (0, 0o666) == (server.path.stat().st_uid, stat.S_IMODE(server.path.lstat().st_mode))
    assert outcomes <= {0, errno.EEXIST, errno.EADDRINUSE}
    assert unharmed(victim)
    for path in (*names, public / "theirs"):
        path.unlink(missing_ok=True)
    assert (0, "") == refusal(public / "reports")
    assert ["victim"] == os.listdir(public)


def _file_of_their_own(path: Path) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o666))


def _socket_of_their_own(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as made:
        made.bind(os.fspath(path))


def test_names_that_are_another_servers_by_now_stay(public: Path) -> None:
    """An administrator removed the first one's files, and started a second one."""
    with ReportServer(public / "reports"):
        for name in os.listdir(public):
            (public / name).unlink()
        second = ReportServer(public / "reports")
        second.start()
    with ReportClient(public / "reports") as client:
        assert client.connected()
    second.close()
    assert [] == os.listdir(public)


#: Mounts a file system of another user's, which answers nothing, on a file, and starts a server beside it.
BESIDE_A_MOUNT = """
import ctypes, os, sys
from kdamon.producers.server import ReportServer
mounted = os.fsencode(sys.argv[2])
os.close(os.open(mounted, os.O_CREAT, 0o600))
device = os.open("/dev/fuse", os.O_RDWR)
data = f"fd={device},rootmode=100600,user_id=65534,group_id=65534,allow_other".encode()
if ctypes.CDLL(None).mount(b"fuse", mounted, b"fuse", 0, data):
    sys.exit("it was not mounted")
try:
    ReportServer(sys.argv[1]).start()
except FileExistsError as error:
    print(error.strerror)
"""


@needs_dev_fuse
@pytest.mark.parametrize("name", ["reports", "reports.lock"])
def test_a_file_system_on_a_name_is_not_asked(public: Path, name: str) -> None:
    """Its server may be another user, and never answer."""
    words = ["unshare", "--mount", sys.executable, "-c", BESIDE_A_MOUNT, str(public / "reports"), str(public / name)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert f"something is mounted on {name}; unmount it, or choose another path\n" in done.stdout, done.stderr


@pytest.mark.parametrize("how", ["ends", "is killed"])
def test_names_that_are_another_users_by_now_stay(public: Path, how: str) -> None:
    """An administrator removed the server's files, and a user made others."""
    with serving(public / "reports") as server:
        (watcher,) = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
        for name in os.listdir(public):
            (public / name).unlink()
        _socket(public / "reports")
        _file(public / "reports.lock")
        if how == "ends":
            server.communicate("\n")
            assert 0 == server.returncode
        else:
            server.kill()
        eventually(lambda: not os.path.exists(f"/proc/{watcher}"), "the end of what cleans up")
    assert {"reports", "reports.lock"} == set(os.listdir(public))


# kdamon's own directory below /run, in a /run of its own.


OWN = """
mount -t tmpfs -o mode=755 none /run || exit 99
eval "$1"
exec "$2" -c "$3" "" 0 77
"""


def run_in_own_run(before: str, server: str) -> subprocess.CompletedProcess[str]:
    """Run the commands ``before`` and a server for the usual place, where /run is empty."""
    words = ["unshare", "--mount", "bash", "-c", OWN, "bash", before, sys.executable, server]
    return subprocess.run(words, input="\n", capture_output=True, text=True, timeout=60, check=False)


def test_the_own_directory_has_its_modes_with_any_umask() -> None:
    """Every user finds the socket, and none can change what is there."""
    look = 'import subprocess; print(subprocess.run("stat -c %a,%u /run/kdamon /run/kdamon/*", shell=True))'
    done = run_in_own_run("", SERVER.replace('print("ready", flush=True)', look))
    assert ["755,0", "666,0", "600,0"] == done.stdout.splitlines()[:3], done.stderr


@pytest.mark.parametrize(
    ("before", "sentence"),
    [
        ("mkdir /run/kdamon; chown 65534 /run/kdamon", "user 65534 owns /run/kdamon and could replace"),
        ("chmod 777 /run", "other users can write to /run and could replace"),
    ],
)
def test_a_directory_of_another_user_is_not_taken_for_the_own_one(before: str, sentence: str) -> None:
    """Where /run was open to others, or is."""
    done = run_in_own_run(before, SERVER)
    assert sentence in done.stderr
    assert "" == done.stdout
