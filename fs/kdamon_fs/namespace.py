# SPDX-License-Identifier: GPL-2.0-only
"""Runs a command that sees the tree at the kernel's paths, ``/sys/kernel/mm/damon`` and ``/sys/module/damon_*``.

:func:`run_in_namespace` ``(argv, abi, machine) -> int`` gives this process a private mount namespace, mounts the tree
there and runs a command in it; other processes of the machine see none of these mounts.

* The command cannot reach the kernel's DAMON through these paths, not even once the tree has ended
  (:mod:`kdamon_fs.places`).
* damo does not start without a tracefs; one is mounted if there is none. damo has a separate cache
  (:mod:`kdamon_fs.damo`).
* The first ``perf`` on the command's PATH records DAMON's events from kdamon, for ``damo record``
  (:mod:`kdamon_fs.perf_standin`).
* If this process is killed, so is the command (SIGKILL), and the separate cache is removed; the namespace ends with the
  last process in it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NoReturn

from kdamon.lib.capabilities import MONITORING, give_up_capabilities
from kdamon.lib.file_limit import raise_file_limit
from kdamon.lib.path_walk import UntrustedError
from kdamon.lib.trusted import open_trusted
from kdamon.mm import Machine
from kdamon_fs import perf_standin
from kdamon_fs.abi import DEFAULT_ABI
from kdamon_fs.damo import directories_beside, fill_damo_cache, private_damo_cache, trusted_home
from kdamon_fs.mount import MountedTree
from kdamon_fs.mounts import (
    MNT_DETACH,
    MS_BIND,
    mount,
    set_parent_death_signal,
    umount,
    unshare_mount_namespace,
)
from kdamon_fs.places import DAMON_DIRECTORY, MODULE_DIRECTORY, OWN_DIRECTORY, preparing_places
from kdamon_fs.sysfs import damon_sysfs_init
from kdamon_fs.trace_server import EVENTS, TraceServer

__all__ = ["DAMON_DIRECTORY", "MODULE_DIRECTORY", "run_in_namespace"]

log = logging.getLogger("kdamon")

#: The socket of the event server, and the directory of the ``perf`` that connects to it.
_EVENTS_SOCKET: Final = f"{OWN_DIRECTORY}/events"
_PROGRAMS: Final = f"{OWN_DIRECTORY}/bin"

#: Passed on to the command.
_FORWARDED: Final = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)

#: siginfo's si_code of a signal from the kernel: it comes from a terminal, which signals the command as well.
_SI_KERNEL: Final = 0x80

#: Exit statuses of a shell for a command that does not exist, and for one that cannot be run.
_NOT_FOUND: Final = 127
_NOT_RUNNABLE: Final = 126


def _put_modules_in_place(names: Sequence[str]) -> None:
    """Bind the parameters of the tree's modules ``names`` to the kernel's paths; the tree is served already.

    Only for a process that does not serve the tree. The serving process must never access the tree: killed while it
    waits for its own answer, it would keep the FUSE device open, and with it the uninterruptible request.
    """
    for name in names:
        source = os.path.join(DAMON_DIRECTORY, "module", name)
        mount(source, os.path.join(MODULE_DIRECTORY, name), flags=MS_BIND)


@contextlib.contextmanager
def _modules_removed(names: Sequence[str]) -> Iterator[None]:
    """At the end, unmount what :func:`_put_modules_in_place` mounted; this does not access the tree."""
    try:
        yield
    finally:
        for name in names:
            # The tree does not end while a part of it is mounted anywhere; the command may have unmounted this part.
            with contextlib.suppress(OSError):
                umount(os.path.join(MODULE_DIRECTORY, name), MNT_DETACH)


def _install_perf() -> None:
    """Install the stand-in for perf in the first directory of the command's PATH."""
    os.mkdir(_PROGRAMS, 0o755)
    words = (sys.executable, "-I", "-S", perf_standin.__file__, _EVENTS_SOCKET, _PROGRAMS)
    path = f"{_PROGRAMS}/perf"
    with open(path, "xb") as script:
        # The interpreter line ("#!") has a length limit and no quoting, so a shell starts the interpreter.
        script.write(b'#!/bin/sh\nexec %s "$@"\n' % os.fsencode(shlex.join(words)))
    os.chmod(path, 0o755)


def _find_directory_again() -> None:
    """Change to the working directory by name: the open one may be the machine's, below the new mounts.

    Where another user can redirect the name, the command starts in kdamon's working directory: the tree is not below
    such a directory, and a file system of that user may never answer.

    :raises OSError: ENOTDIR there is no such directory in the namespace.
    """
    try:
        directory = os.getcwd()
    except FileNotFoundError:
        # It was removed, and has no name.
        return
    try:
        os.fchdir(open_trusted(directory))
    except UntrustedError:
        return
    except OSError as error:
        sentence = f"the working directory, {directory}, does not exist in the tree ({error.strerror})"
        raise OSError(errno.ENOTDIR, sentence) from error


class _command:
    """A command, forked while this process has one thread, and started later.

    The forked process itself prepares the served tree before it becomes the command.
    """

    def __init__(
        self,
        argv: Sequence[str],
        modules: Sequence[str],
        signals: set[int | signal.Signals],
        home: str | None,
        fill_cache: bool,
    ) -> None:
        self._argv = list(argv)
        self._modules = list(modules)
        self._home = home
        self._fill_cache = fill_cache
        self._signals = signals
        self._go_read, self._go = os.pipe()
        self._failure, self._failed = os.pipe()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            self._become(parent)
        os.close(self._go_read)
        os.close(self._failed)

    def _become(self, parent: int) -> NoReturn:
        status = _NOT_RUNNABLE
        try:
            os.close(self._go)
            set_parent_death_signal(signal.SIGKILL)
            # Without the byte, the parent failed or is dead.
            if os.getppid() == parent and os.read(self._go_read, 1):
                signal.pthread_sigmask(signal.SIG_SETMASK, self._signals)
                signal.signal(signal.SIGPIPE, signal.SIG_DFL)
                signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                _put_modules_in_place(self._modules)
                os.environ["PATH"] = os.pathsep.join([_PROGRAMS, *os.get_exec_path(), *directories_beside()])
                if self._home is not None:
                    os.environ["HOME"] = self._home
                _find_directory_again()
                if self._fill_cache:
                    fill_damo_cache()
                os.execvp(self._argv[0], self._argv)
        except (OSError, ValueError) as error:
            # An empty name raises ValueError; a shell reports it as not found.
            known = error if isinstance(error, OSError) else OSError(errno.ENOENT, os.strerror(errno.ENOENT))
            status = _NOT_FOUND if known.errno == errno.ENOENT else _NOT_RUNNABLE
            os.write(self._failed, os.fsencode(known.strerror or str(known)))
        finally:
            os._exit(status)

    def start(self) -> None:
        """Let the command run."""
        os.write(self._go, b"x")
        os.close(self._go)

    def cancel(self) -> None:
        """Let the process end without becoming the command."""
        os.close(self._go)
        os.close(self._failure)
        os.waitpid(self.pid, 0)

    def wait(self) -> int:
        """Wait for its end, pass signals on to it until then, and return the status as a shell does.

        The caller blocks the signals.
        """
        while True:
            number, status = os.waitpid(self.pid, os.WNOHANG)
            if number:
                # Only now: its program's file system may not answer, and signals must be able to end it until then.
                with os.fdopen(self._failure, "rb") as failure:
                    if reason := failure.read():
                        log.error("%s cannot be run: %s", self._argv[0] or "''", os.fsdecode(reason))
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code
            info = signal.sigwaitinfo((*_FORWARDED, signal.SIGCHLD))
            if info.si_signo != signal.SIGCHLD and info.si_code != _SI_KERNEL:
                os.kill(self.pid, info.si_signo)


def run_in_namespace(
    argv: Sequence[str],
    abi: str = DEFAULT_ABI,
    machine: Machine | Callable[[], Machine] | None = None,
    beside: contextlib.AbstractContextManager[object] | None = None,
) -> int:
    """Run ``argv`` with the tree at the kernel's places and return its exit status, 128 + number for a signal.

    Changes the mount namespace of this process permanently: only for a process with one thread and no other purpose, as
    root. Signals to this process are passed on to the command. When it ends, the kdamonds are stopped and the tree is
    unmounted, also for processes that the command started and that still run.

    :param argv: the command and its arguments; searched on PATH, and then beside kdamon.
    :param abi: as for :func:`kdamon_fs.sysfs.damon_sysfs_init`.
    :param machine: likewise.
    :param beside: entered while the tree is served; it may start threads.
    :raises OSError: EINVAL unknown ``abi``; EPERM not root; the errors of :class:`kdamon_fs.mount.MountedTree`.
    """
    tree = damon_sysfs_init(machine, abi)
    events = [name for name, since in EVENTS.items() if tree.has(since)]
    unshare_mount_namespace()
    modules = list(tree.modules.children)
    with preparing_places(modules, [f"damon:{name}" for name in events]):
        _install_perf()
        server = TraceServer(_EVENTS_SOCKET, events)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, (*_FORWARDED, signal.SIGCHLD))
    try:
        home = trusted_home()
        with private_damo_cache(home) as cached, contextlib.ExitStack() as serving:
            command = _command(argv, modules, mask, home, cached)
            raise_file_limit()
            # The forked command keeps all of them. CAP_KILL: signals must reach the command whatever user it became.
            give_up_capabilities(*MONITORING, "CAP_KILL")
            try:
                if beside is not None:
                    serving.enter_context(beside)
                serving.enter_context(MountedTree(tree, DAMON_DIRECTORY, private=True))
                serving.enter_context(_modules_removed(modules))
                serving.enter_context(server)
            except BaseException:
                command.cancel()
                raise
            command.start()
            return command.wait()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
