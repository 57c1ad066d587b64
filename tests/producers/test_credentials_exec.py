# SPDX-License-Identifier: GPL-2.0-only
"""Programs that gain privileges by exec(): a producer without these cannot report on them, nor kdamon act on them."""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kdamon.lib.pidfd import pidfd_open
from kdamon.producers.credentials import KnownProcesses, Rights
from tests.support.capabilities import needs_root
from tests.support.paths import ROOT

USER, OTHER = 65534, 65533
_SYS_PTRACE = 1 << 19
_NET_RAW = 1 << 13
#: struct vfs_cap_data of version 2, with the effective flag.
_FILE_CAPABILITIES = "<IIIII"
_VFS_CAP_EFFECTIVE = 0x02000001

pytestmark = [
    pytest.mark.real,
    needs_root("only root can make programs that give privileges"),
]


@pytest.fixture(scope="module")
def programs() -> Iterator[dict[str, str]]:
    """Copies of one program that differ in what they give to their caller."""
    with tempfile.TemporaryDirectory(prefix="kdamon-") as directory:
        os.chmod(directory, 0o755)
        assert not os.statvfs(directory).f_flag & os.ST_NOSUID, "set-user-ID programs do nothing in this directory"
        found = {}
        for name in ("plain", "set-uid", "set-uid of its user", "set-gid", "capability", "may trace"):
            path = found[name] = os.path.join(directory, name)
            shutil.copy("/bin/sleep", path)
            os.chmod(path, 0o755)
        os.chmod(found["set-uid"], 0o4755)
        os.chown(found["set-uid of its user"], USER, USER)
        os.chmod(found["set-uid of its user"], 0o4755)
        os.chown(found["set-gid"], 0, OTHER)
        os.chmod(found["set-gid"], 0o2755)
        for name, capability in (("capability", _NET_RAW), ("may trace", _SYS_PTRACE)):
            data = struct.pack(_FILE_CAPABILITIES, _VFS_CAP_EFFECTIVE, capability, 0, 0, 0)
            os.setxattr(found[name], "security.capability", data)
        yield found


@contextlib.contextmanager
def running(program: str, user: int = USER) -> Iterator[subprocess.Popen[bytes]]:
    """A shell of ``user`` that becomes ``program`` at the first byte of its input."""
    script = 'read line; exec "$0" 600'
    with subprocess.Popen(
        ["sh", "-c", script, program], stdin=subprocess.PIPE, user=user, group=user, extra_groups=[]
    ) as process:
        try:
            # Its files are the user's once exec() is done.
            until(lambda: os.stat(f"/proc/{process.pid}/status").st_uid == user, "the shell")
            yield process
        finally:
            process.kill()


def become(process: subprocess.Popen[bytes], program: str) -> None:
    """Let it call exec()."""
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.flush()
    # It sleeps when exec() is done with all of it.
    begin = f"{process.pid} ({os.path.basename(program)[:15]}) S "
    until(lambda: Path(f"/proc/{process.pid}/stat").read_text().startswith(begin), "the program")


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for something that is sure to come."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.02)


@contextlib.contextmanager
def rights_of(pid: int, user: int = USER) -> Iterator[Rights]:
    """What a producer may report about that connected as ``user``."""
    pidfd = pidfd_open(pid)
    known = KnownProcesses()
    try:
        yield Rights(pid, pidfd, user, user, known)
    finally:
        known.close()
        os.close(pidfd)


@pytest.mark.parametrize("name", ["set-uid", "set-gid", "capability"])
def test_a_target_that_gains_privileges_is_its_users_no_more(programs: dict[str, str], name: str) -> None:
    """An answer that was given before holds for a moment only."""
    with running(programs["plain"]) as peer, running(programs[name]) as target, rights_of(peer.pid) as rights:
        assert [True] == rights.permitted([target.pid])
        become(target, programs[name])
        until(lambda: [False] == rights.permitted([target.pid]), "the refusal")
    with running(programs["plain"]) as peer, running(programs["plain"]) as target, rights_of(peer.pid) as rights:
        become(target, programs["plain"])
        assert [True] == rights.permitted([target.pid])


def test_a_target_that_runs_a_program_of_the_producer_stays_another_users(programs: dict[str, str]) -> None:
    """It has the producer's effective user then, but not its real one."""
    program = programs["set-uid of its user"]
    with running(programs["plain"]) as peer, running(program, OTHER) as target, rights_of(peer.pid) as rights:
        become(target, program)
        assert [False] == rights.permitted([target.pid])


@pytest.mark.parametrize("name", ["set-uid", "set-gid"])
def test_a_producer_that_became_another_user_has_no_rights(programs: dict[str, str], name: str) -> None:
    """It connects, and calls exec() before it says hello."""
    with running(programs[name]) as peer:
        become(peer, programs[name])
        with pytest.raises(PermissionError, match="changed its user or group"), rights_of(peer.pid):
            pass


@pytest.mark.parametrize("name", ["set-uid", "set-gid", "capability"])
def test_what_a_producer_became_is_not_itself(programs: dict[str, str], name: str) -> None:
    """It leaves its ring to a child, which must not report on the privileged program that has the number now."""
    with running(programs[name]) as peer, rights_of(peer.pid) as rights:
        assert [True] == rights.permitted([peer.pid])
        become(peer, programs[name])
        until(lambda: [False] == rights.permitted([peer.pid]), "the refusal")
    with running(programs["plain"]) as peer, rights_of(peer.pid) as rights:
        become(peer, programs["plain"])
        assert [True] == rights.permitted([peer.pid])


def test_a_producer_that_gives_up_privileges_stays_itself() -> None:
    """As a service does once it has started; root without CAP_SYS_PTRACE, to which not all is permitted."""
    script = """
import os, sys
print("ready", flush=True)
sys.stdin.readline()
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
print("gave up", flush=True)
sys.stdin.readline()
"""
    with subprocess.Popen(
        ["setpriv", "--bounding-set=-sys_ptrace", sys.executable, "-c", script], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True,
    ) as peer:  # fmt: skip
        assert peer.stdin is not None and peer.stdout is not None
        assert "ready\n" == peer.stdout.readline()
        with rights_of(peer.pid, 0) as rights:
            assert not rights.everything
            peer.stdin.write("\n")
            peer.stdin.flush()
            assert "gave up\n" == peer.stdout.readline()
            assert [True] == rights.permitted([peer.pid])
        peer.communicate("\n", timeout=60)


def test_a_producers_capabilities_by_exec_are_discounted(programs: dict[str, str]) -> None:
    """It may report about processes of its user and no others, whatever the program that it became may do."""
    with running(programs["may trace"]) as peer, running(programs["plain"]) as other:
        become(peer, programs["may trace"])
        status = Path(f"/proc/{peer.pid}/status").read_text()
        assert f"CapEff:\t{_SYS_PTRACE:016x}\n" in status
        with rights_of(peer.pid) as rights:
            assert not rights.everything
            assert [True, False, True] == rights.permitted([peer.pid, os.getpid(), other.pid])


#: kdamon as a user with three capabilities, as a service has them that is not root.
LESS = """
    import ctypes, errno, os, sys
    import numpy as np, numpy.random
    from kdamon.lib.capabilities import give_up_capabilities
    from kdamon.mm.linux.machine import linux_machine
    from kdamon.mm.actions.migrate import page_nodes
    pid = int(sys.argv[1])
    libc = ctypes.CDLL(None)
    # SECBIT_NO_SETUID_FIXUP: the capabilities stay until they are given up.
    assert not libc.prctl(28, 4, 0, 0, 0)
    os.setgroups([]), os.setresgid(65534, 65534, 65534), os.setresuid(65534, 65534, 65534)
    give_up_capabilities("CAP_SYS_NICE", "CAP_BPF", "CAP_PERFMON")
    assert not libc.prctl(4, 1, 0, 0, 0)
    machine = linux_machine("page_table")
    task = machine.get_task(pid)
    before = task.get_mm()
    everything = before.vmas()
    assert before.advise("cold", everything).sum() > 0
    print("go", flush=True)
    assert sys.stdin.readline()
    # It is another program's now, and a file that was opened earlier stands for no memory any more.
    print(before.advise("cold", everything).sum(), len(before.vmas()), task.get_mm())
    try:
        page_nodes(pid, np.array([1 << 30], np.uint64))
    except OSError as error:
        # Without NUMA there is no such call.
        print(errno.errorcode[error.errno].replace("ENOSYS", "EPERM"))
    try:
        machine.get_task(pid)
    except OSError as error:
        print(errno.errorcode[error.errno])
    task.put()
"""


@pytest.mark.parametrize("name", ["set-uid", "set-gid", "capability"])
def test_what_was_opened_of_a_target_is_of_no_use_once_it_gained_privileges(
    programs: dict[str, str], name: str
) -> None:
    """A kdamon that is not root neither sees nor advises nor migrates memory that is not its user's any more."""
    with (
        running(programs[name]) as target,
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(LESS), str(target.pid)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as less,
    ):
        assert less.stdout is not None
        assert "go\n" == less.stdout.readline()
        become(target, programs[name])
        said, _ = less.communicate("\n", timeout=60)
        assert (0, "0 0 None\nEPERM\nEPERM\n") == (less.returncode, said)
