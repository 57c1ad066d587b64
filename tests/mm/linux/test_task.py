# SPDX-License-Identifier: GPL-2.0-only
"""A task stays the process that it was found as, and leaves nothing."""

from __future__ import annotations

import errno
import gc
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from kdamon.mm import OLD, YOUNG, AddressSpace
from kdamon.mm.bpf.walker import shared_walker
from kdamon.mm.linux.machine import LinuxMachine, linux_machine
from kdamon.mm.linux.task import LinuxTask
from tests.support.capabilities import needs_mount_namespace, needs_pid_namespace, needs_root
from tests.support.paths import ROOT
from tests.support.sampling import mm_of
from tests.support.workload import Workload

pytestmark = pytest.mark.real


PAGES = 1024
#: A process that has no memory of its own: the father of all kernel threads.
KTHREADD = 2

root_only = needs_root("only root can change users and capabilities")


@contextmanager
def _task(machine: LinuxMachine, pid: int) -> Iterator[LinuxTask]:
    task = machine.get_task(pid)
    try:
        yield task
    finally:
        task.put()


def _sees(mm: AddressSpace, work: Workload) -> bool:
    """Return whether ``mm`` is where ``work`` touches."""
    touched = np.arange(0, PAGES, 2)
    addrs = work.addrs(np.arange(PAGES))
    mm.begin_sample(addrs)
    work.order("w", touched)
    answers = mm.end_sample(addrs)
    return int((answers[::2] == YOUNG).sum()) > 0.8 * len(touched) and not (answers[1::2] == YOUNG).any()


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def _open_files() -> dict[str, str]:
    # Sockets of other tests go with their objects.
    gc.collect()
    # The list holds its own descriptor, which is gone by now.
    names = [name for name in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{name}")]
    return {name: os.readlink(f"/proc/self/fd/{name}") for name in names}


@pytest.mark.parametrize("pid", [-1, 0, 1 << 22])
def test_an_absent_process_is_not_found(machine: LinuxMachine, pid: int) -> None:
    """Numbers that no process has are ESRCH."""
    with pytest.raises(OSError, match=f"there is no process {pid}") as caught:
        machine.get_task(pid)
    assert errno.ESRCH == caught.value.errno


def test_a_kernel_thread_has_no_memory(machine: LinuxMachine) -> None:
    """It is a process all the same."""
    if not os.path.exists(f"/proc/{KTHREADD}"):
        pytest.skip("kernel threads are hidden in this pid namespace")
    with _task(machine, KTHREADD) as task:
        assert task.valid()
        assert task.get_mm() is None


def test_a_process_that_ended_is_valid_until_it_is_reaped(machine: LinuxMachine, program: Path) -> None:
    """As in the kernel: its struct pid is there, its memory is not."""
    with Workload([program], "anon", PAGES) as work, _task(machine, work.pid) as task:
        mm = mm_of(task)
        assert task.valid()
        work.process.kill()
        os.waitid(os.P_PID, work.pid, os.WEXITED | os.WNOWAIT)
        assert task.valid()
        assert task.get_mm() is None
        assert (0, 2) == mm.vmas().shape
        with _task(machine, work.pid) as zombie:
            assert zombie.valid()
            assert zombie.get_mm() is None
        work.process.wait()
        assert not task.valid()
        assert task.get_mm() is None


def test_an_address_space_that_ended_is_empty(machine: LinuxMachine, program: Path) -> None:
    """Sampling goes on without errors, and finds nothing."""
    with Workload([program], "anon", PAGES) as work, _task(machine, work.pid) as task:
        mm = mm_of(task)
        addrs = work.addrs(np.arange(PAGES))
        work.process.kill()
        work.process.wait()
        mm.begin_sample(addrs)
        assert [OLD] * PAGES == mm.end_sample(addrs).tolist()


def test_exec_gives_another_address_space(machine: LinuxMachine, program: Path) -> None:
    """The object changes with exec() and only then, and the new one sees what the process does next."""
    with Workload([program], "anon", PAGES) as work, _task(machine, work.pid) as task:
        before = mm_of(task)
        assert task.get_mm() is before
        assert _sees(before, work)
        work.send("x")
        work.greet()
        after = mm_of(task)
        assert after is not before
        assert task.get_mm() is after
        assert task.valid()
        assert _sees(after, work)
        assert (0, 2) == before.vmas().shape


@pytest.mark.parametrize("reopen", [0, 1 << 62])
def test_exec_after_vfork_is_seen_although_the_old_memory_lives_on(
    machine: LinuxMachine, program: Path, reopen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that borrows its parent's memory gets its own, which shows also without opening its files again."""
    monkeypatch.setattr("kdamon.mm.linux.task._REOPEN", reopen)
    with Workload([program], "anon", PAGES) as work:
        work.send("v")
        children = Path(f"/proc/{work.pid}/task/{work.pid}/children")
        _wait_until(lambda: children.read_text(encoding="ascii") != "")
        child = int(children.read_text(encoding="ascii"))
        try:
            with _task(machine, child) as task:
                borrowed = mm_of(task)
                assert np.isin(work.base, borrowed.vmas()[:, 0])
                assert int.from_bytes(work.receive(4), "little") == child
                _wait_until(lambda: task.get_mm() not in (borrowed, None))
                assert not np.isin(work.base, mm_of(task).vmas()[:, 0])
        finally:
            os.kill(child, signal.SIGKILL)


def test_the_address_space_stays_the_same_object(machine: LinuxMachine, program: Path) -> None:
    """Looking again whether the process left its memory does not replace it."""
    with Workload([program], "anon", PAGES) as work, _task(machine, work.pid) as task:
        first = mm_of(task)
        deadline = time.monotonic() + 0.3
        while time.monotonic() < deadline:
            assert task.get_mm() is first


def test_files_stay_open_while_the_program_is_the_same(
    machine: LinuxMachine, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To open them takes longer than to look where the program is."""
    monkeypatch.setattr("kdamon.mm.linux.task._RECHECK", 0)
    monkeypatch.setattr("kdamon.mm.linux.task._REOPEN", 1 << 62)
    with Workload([program], "anon", PAGES) as work, _task(machine, work.pid) as task:
        first = mm_of(task)
        monkeypatch.setattr("kdamon.mm.linux.task.ProcessFiles", None)
        for _ in range(3):
            work.order("w", np.arange(PAGES))
            assert task.get_mm() is first


def test_mappings_come_and_go(machine: LinuxMachine, program: Path) -> None:
    """What is unmapped is old and no longer among the mappings; what takes its place is sampled."""
    with Workload([program], "anon", PAGES) as work, _task(machine, work.pid) as task:
        mm = mm_of(task)
        addrs = work.addrs(np.arange(PAGES))
        for _ in range(10):
            work.order("w", np.arange(PAGES))
            mm.begin_sample(addrs)
            work.order("m")
            assert YOUNG not in mm.end_sample(addrs)
        assert _sees(mm, work)
        assert work.base in mm.vmas()[:, 0]
        mm.begin_sample(addrs)
        work.order("u")
        assert [OLD] * PAGES == mm.end_sample(addrs).tolist()
        assert work.base not in mm.vmas()[:, 0]


def test_mappings_are_those_of_proc(machine: LinuxMachine, program: Path) -> None:
    """All but [vsyscall], in address order."""
    with Workload([program], "anon", PAGES) as work, _task(machine, work.pid) as task:
        lines = Path(f"/proc/{work.pid}/maps").read_text(encoding="utf-8").splitlines()
        expected = [[int(x, 16) for x in line.split()[0].split("-")] for line in lines if "[vsyscall]" not in line]
        assert expected == mm_of(task).vmas().tolist()


def test_put_gives_every_file_descriptor_back(machine: LinuxMachine, program: Path) -> None:
    """Also after exec(), which opened anew, and it may be called twice."""
    with Workload([program], "anon", PAGES) as work:
        before = _open_files()
        task = machine.get_task(work.pid)
        assert _sees(mm_of(task), work)
        work.send("x")
        work.greet()
        mm = mm_of(task)
        assert len(_open_files()) > len(before)
        task.put()
        task.put()
        assert _open_files() == before
        assert not task.valid()
        assert task.get_mm() is None
        addrs = work.addrs(np.arange(PAGES))
        mm.begin_sample(addrs)
        assert [OLD] * PAGES == mm.end_sample(addrs).tolist()
        assert (0, 2) == mm.vmas().shape


def test_a_refused_task_leaves_no_file_descriptor(machine: LinuxMachine) -> None:
    """Neither does a search that finds nothing."""
    before = _open_files()
    with pytest.raises(ProcessLookupError):
        machine.get_task(1 << 22)
    assert _open_files() == before


def test_too_many_open_files_are_told_with_the_remedy(machine: LinuxMachine) -> None:
    """A task needs a few of them; those it got are given back."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    first_free = os.open(os.devnull, os.O_RDONLY)
    os.close(first_free)
    before = os.listdir("/proc/self/fd")
    try:
        for more in range(4):
            resource.setrlimit(resource.RLIMIT_NOFILE, (first_free + more, limits[1]))
            with pytest.raises(OSError, match="too many files are open; raise the limit with 'ulimit -n'") as caught:
                machine.get_task(os.getpid())
            assert errno.EMFILE == caught.value.errno
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert before == os.listdir("/proc/self/fd")


def test_a_killed_monitor_leaves_the_target_unharmed(machine: LinuxMachine, program: Path) -> None:
    """SIGKILL in the middle of sampling: the target runs on, its data are right, its mappings as they were."""
    script = """
        import sys
        import numpy as np
        from kdamon.mm.linux.machine import linux_machine
        base, pages, pid = map(int, sys.argv[1:])
        mm = linux_machine("page_table").get_task(pid).get_mm()
        addrs = np.uint64(base) + np.arange(pages, dtype=np.uint64) * np.uint64(4096)
        rounds = 0
        while True:
            mm.begin_sample(addrs)
            mm.end_sample(addrs)
            rounds += 1
            if rounds == 3:
                print("sampling", flush=True)
    """
    everything = np.arange(PAGES)
    with Workload([program], "anon", PAGES) as work:
        work.order("w", everything)
        maps = Path(f"/proc/{work.pid}/maps").read_bytes()
        for _ in range(3):
            monitor = subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(script), *map(str, (work.base, PAGES, work.pid))],
                cwd=ROOT,
                stdout=subprocess.PIPE,
            )
            assert monitor.stdout is not None
            assert b"sampling\n" == monitor.stdout.readline()
            for _ in range(20):
                work.order("w", everything)
            monitor.send_signal(signal.SIGKILL)
            work.order("w", everything)
            assert -signal.SIGKILL == monitor.wait()
            monitor.stdout.close()
            work.order("r", everything)
            assert 0 == work.spoilt(everything)
            assert Path(f"/proc/{work.pid}/maps").read_bytes() == maps
            status = Path(f"/proc/{work.pid}/status").read_text(encoding="ascii")
            assert "TracerPid:\t0\n" in status
        with _task(machine, work.pid) as task:
            assert _sees(mm_of(task), work)


@root_only
def test_a_number_that_is_used_again_is_another_process() -> None:
    """The task of the process that had the number before does not become the new one's."""
    script = """
        import os, signal, sys, time
        from kdamon.mm.inject.requests import take_userfaultfd
        from kdamon.mm.linux.machine import linux_machine
        def child():
            pid = os.fork()
            if not pid:
                signal.pause()
            return pid
        def reap(pid):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        assert os.getpid() == 1
        machine = linux_machine("page_table")
        first = child()
        birth = machine.birth(first)
        old = machine.get_task(first, birth=birth)
        assert old.get_mm() is not None
        assert old.birth == birth
        time.sleep(0.1)  # births are told in hundredths of a second
        reap(first)
        # A pid namespace has its own counter.
        with open("/proc/sys/kernel/ns_last_pid", "w") as last:
            last.write(str(first - 1))
        second = child()
        assert second == first, (first, second)
        new = machine.get_task(second)
        assert new.valid() and new.get_mm() is not None
        assert not old.valid() and old.get_mm() is None
        assert machine.birth(second) != birth
        for primitive in ("page_table", "page_fault"):
            try:
                machine.get_task(second, primitive, birth)
            except OSError as error:
                assert "another one has its number now" in str(error), error
            else:
                raise AssertionError("a stranger was taken")
        # What is to be asked for a userfaultfd is asked only while it is who is meant.
        try:
            take_userfaultfd(second, valid=lambda: False)
        except ProcessLookupError:
            pass
        else:
            raise AssertionError("a stranger was asked")
        reap(second)
        print("done")
    """
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (0, "done\n") == (done.returncode, done.stdout), done.stderr


def _as_root_without(capabilities: str, script: str, *args: str) -> str:
    command = ["setpriv", f"--bounding-set={capabilities}", f"--inh-caps={capabilities}", sys.executable, "-c"]
    done = subprocess.run(
        [*command, textwrap.dedent(script), *args], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout


GET_TASK = """
    import errno, sys
    from kdamon.mm.linux.machine import linux_machine
    try:
        linux_machine("page_table").get_task(int(sys.argv[1]))
    except OSError as error:
        print(errno.errorcode[error.errno], error.strerror)
"""


@root_only
@pytest.mark.parametrize(
    ("without", "named"),
    [
        ("-bpf,-sys_admin", "CAP_BPF"),
        ("-perfmon,-sys_admin", "CAP_PERFMON"),
        ("-sys_nice", "CAP_SYS_NICE"),
        ("-dac_read_search,-dac_override", "CAP_DAC_READ_SEARCH"),
    ],
)
def test_a_missing_capability_is_named(machine: LinuxMachine, program: Path, without: str, named: str) -> None:
    """In one sentence that says how to get it."""
    with Workload([program], "anon", PAGES, user=65534) as work:
        said = _as_root_without(without, GET_TASK, str(work.pid))
    assert said.startswith("EPERM ")
    assert named in said
    assert "root lacks here; start kdamon with that capability" in said
    assert 1 == said.count("\n")


def test_an_unknown_primitive_is_refused() -> None:
    """With those that there are."""
    with pytest.raises(OSError, match="use page_table, page_idle or page_fault") as caught:
        linux_machine("page_tables")
    assert errno.EINVAL == caught.value.errno


@root_only
@needs_pid_namespace
@pytest.mark.parametrize(("options", "expected"), [(["-pf"], "PID namespace; mount it"), (["-pf", "--mount-proc"], "")])
def test_the_numbers_of_another_pid_namespace_are_refused(options: list[str], expected: str) -> None:
    """They stand for other processes than they do in system calls: one would be looked at and another one changed."""
    script = "from kdamon.mm.linux.machine import linux_machine; import os; linux_machine().get_task(os.getpid()).put()"
    command = ["unshare", *options, sys.executable, "-c", script]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert expected in result.stderr
    assert bool(expected) == bool(result.returncode)


#: Looks at its parent as a user to whom /proc shows no process of others, with the capabilities to look at it anyway.
HIDDEN = """
    mount -t proc -o hidepid=2 proc /proc && exec "$@"
"""
REAL_USER = """
    import os
    from kdamon.mm.linux.machine import linux_machine
    parent = os.getppid()
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, -1, -1)
    task = linux_machine().get_task(parent)
    print(task.valid())
    task.put()
"""


@root_only
@needs_mount_namespace
def test_capabilities_are_enough_where_proc_hides_processes() -> None:
    """As of a service that runs as a user of its own."""
    python = [sys.executable, "-c", textwrap.dedent(REAL_USER)]
    command = ["unshare", "-m", "sh", "-c", HIDDEN, "sh", *python]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (0, "True\n", "") == (done.returncode, done.stdout, done.stderr)


#: A user's child that ended and was not waited for, or whose first thread did; what becomes of a look at its memory.
ENDED = """
    import ctypes, os, sys, threading
    from kdamon.mm.proc.process_files import ProcessFiles, open_directory
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    ready, done = os.pipe()
    libc = ctypes.CDLL(None)
    child = os.fork()
    if not child:
        # What its parent could look at otherwise.
        libc.prctl(4, 1, 0, 0, 0)
        if sys.argv[1] == "thread":
            threading.Thread(target=threading.Event().wait).start()
            os.write(done, b"x")
            libc.syscall(60, 0)
        os._exit(0)
    os.close(done)
    os.read(ready, 1)
    while b"State:\\tZ" not in open(f"/proc/{child}/status", "rb").read():
        pass
    try:
        ProcessFiles(open_directory(child))
        print("it has memory")
    except OSError as error:
        print(error.strerror)
    os.kill(child, 9)
"""


@root_only
@pytest.mark.parametrize(
    ("what", "expected"), [("all", "the process has no memory of its own"), ("thread", "it has memory")]
)
def test_a_user_may_look_at_what_ended(what: str, expected: str) -> None:
    """The files in /proc of a thread without memory are root's, and that is no lack of capabilities."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(ENDED), what], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (0, f"{expected}\n", "") == (done.returncode, done.stdout, done.stderr)


def test_the_extent_shows_new_mappings_and_new_page_tables(machine: LinuxMachine, program: Path) -> None:
    """And no writes to pages whose table is there."""
    with Workload([program], "reserved", PAGES) as work, _task(machine, work.pid) as task:
        mm = mm_of(task)
        with open(f"/proc/{work.pid}/pagemap", "rb") as pagemap:
            if shared_walker().changes(pagemap.fileno()) is None:
                pytest.skip("this kernel does not count changes of the mappings")

        def same() -> bool:
            # The kernel itself changes mappings to make huge pages, but not all the time.
            mm.vmas()
            first = mm.extent()
            work.order("w", np.arange(PAGES))
            return first is not None and first == mm.extent()

        _wait_until(same)
        work.order("n", answer=8)
        assert mm.extent() is None
        _wait_until(lambda: len(mm.vmas()) > 0 and mm.extent() is not None)
