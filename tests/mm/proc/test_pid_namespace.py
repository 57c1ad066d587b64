# SPDX-License-Identifier: GPL-2.0-only
"""Processes in PID namespaces below kdamon's own are seen, under the numbers that kdamon's has for them."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from kdamon.mm.bpf.btf import vmlinux
from kdamon.mm.proc import pid_namespace
from kdamon.mm.proc.pid_namespace import Numbers
from tests.support.capabilities import needs_pid_namespace
from tests.support.paths import ROOT

pytestmark = [pytest.mark.real, needs_pid_namespace]


UNSHARE = ("unshare", "-pf", "--mount-proc")

#: Writes 100 pages in a second thread when it is asked to, and lives until its standard input ends.
TARGET = """
import ctypes, mmap, sys, threading
memory = mmap.mmap(-1, 100 * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_NOHUGEPAGE)
print(ctypes.addressof(ctypes.c_char.from_buffer(memory)), flush=True)
def write():
    for page in range(100):
        memory[page * 4096] = 1
    print("written", flush=True)
    sys.stdin.read()
sys.stdin.readline()
threading.Thread(target=write).start()
"""

#: Records the faults of such a process: how many it saw, and whether process and thread are those of /proc.
MONITOR = """
import os, subprocess, sys
from kdamon.mm.sampling.fault_recorder import FaultRecorder
def last_child(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as children:
        found = children.read().split()
    return last_child(found[0]) if found else pid
with subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as started:
    base = int(started.stdout.readline())
    pid = int(last_child(started.pid))
    recorder = FaultRecorder()
    recorder.watch(pid)
    started.stdin.write("go\\n")
    started.stdin.flush()
    started.stdout.readline()
    faults = recorder.read()
    (thread,) = set(map(int, os.listdir(f"/proc/{pid}/task"))) - {pid}
    mine = faults[(faults["addr"] >= base) & (faults["addr"] < base + 100 * 4096)]
    print(len(mine), set(faults["pid"].tolist()) == {pid}, set(mine["tid"].tolist()) == {thread})
    started.stdin.close()
"""


def within(levels: int, script: str, *words: str) -> list[str]:
    """A command that runs ``script`` in a PID namespace ``levels`` below this one."""
    return [*UNSHARE * levels, sys.executable, "-c", textwrap.dedent(script), *words]


@pytest.mark.parametrize("monitor", [0, 1, 2])
@pytest.mark.parametrize("target", [0, 1, 2])
def test_faults_in_namespaces_below_are_recorded(monitor: int, target: int) -> None:
    """Of a process in kdamon's own namespace, of a container's, and of a container in a container."""
    command = within(monitor, MONITOR, *within(target, TARGET))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (0, "100 True True\n") == (done.returncode, done.stdout), done.stderr


def test_a_process_of_another_namespace_is_not_taken_for_one_with_its_number() -> None:
    """Process 1 of a namespace beside and that of the one above have the number of one that is watched."""
    script = """
        import ctypes, mmap, os, subprocess, sys
        from kdamon.mm.sampling.fault_recorder import FaultRecorder
        assert os.getpid() == 1
        recorder = FaultRecorder()
        recorder.watch(1)
        recorder.read()
        with subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            base = int(other.stdout.readline())
            other.stdin.write("go\\n")
            other.stdin.flush()
            other.stdout.readline()
            faults = recorder.read()
            other.stdin.close()
        print(((faults["addr"] >= base) & (faults["addr"] < base + 100 * 4096)).sum())
    """
    done = subprocess.run(within(1, script, *within(1, TARGET)), cwd=ROOT, capture_output=True, text=True, check=False)
    assert (0, "0\n") == (done.returncode, done.stdout), done.stderr


TAKE = """
import os, sys
from kdamon.mm.inject.requests import take_userfaultfd
os.close(take_userfaultfd(int(sys.argv[1]), 20))
"""


def test_a_containers_main_process_is_one_like_others() -> None:
    """It can be asked for its userfaultfd, from inside, where it is process 1, and from outside; and goes on."""
    inside = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', sys.argv[1], '1']))"
    done = subprocess.run(within(1, inside, TAKE), cwd=ROOT, capture_output=True, text=True, check=False)
    assert (0, "") == (done.returncode, done.stderr)
    waits = "import os, sys; print(os.getpid(), flush=True); sys.stdin.readline(); print('goes on')"
    with subprocess.Popen(within(1, waits), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        assert "1\n" == started.stdout.readline()
        main = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text(encoding="ascii").strip()
        subprocess.run([sys.executable, "-c", TAKE, main], cwd=ROOT, check=True)
        assert "goes on\n" == started.communicate("\n")[0]


def test_only_the_machines_own_namespace_is_the_first() -> None:
    """A container's is not."""
    script = "from kdamon.mm.proc.pid_namespace import in_first_pid_namespace; print(in_first_pid_namespace())"
    done = subprocess.run(within(1, script), cwd=ROOT, capture_output=True, text=True, check=True)
    assert "False\n" == done.stdout


def test_an_unknown_layout_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers that are not this process's own show that the kernel keeps them elsewhere."""
    monkeypatch.setattr(pid_namespace, "in_first_pid_namespace", lambda: False)
    Numbers()
    layout = pid_namespace._Layout(vmlinux())
    layout.number = layout.namespace
    monkeypatch.setattr(pid_namespace, "_Layout", lambda _: layout)
    with pytest.raises(OSError, match="in an unknown way"):
        Numbers()
