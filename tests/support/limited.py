# SPDX-License-Identifier: GPL-2.0-only
"""Running kdamon on files of another user's choice: with limits on its CPU time and memory, and as such a user."""

from __future__ import annotations

import resource
import subprocess

from tests.support.cli import ENVIRONMENT, KDAMON

__all__ = ["ANOTHER_USER", "AS_ANOTHER_USER", "limited", "one_sentence"]

#: A user who owns nothing, and what makes a command one of that user.
ANOTHER_USER = 65534
AS_ANOTHER_USER = ("setpriv", f"--reuid={ANOTHER_USER}", f"--regid={ANOTHER_USER}", "--clear-groups")
_CPU_S = 60
#: Of addresses, of which numpy's libraries take some hundred MiB without using them.
_MEMORY = 2 << 30


def limited(*words: str, stdin: int = subprocess.DEVNULL, text: bool = True) -> subprocess.CompletedProcess[str]:
    """What ``kdamon`` says and how it ends; a process that takes more than is sensible is killed by the kernel."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (_CPU_S, _CPU_S))
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))

    return subprocess.run(
        [*KDAMON, *words],
        env=ENVIRONMENT | {"OPENBLAS_NUM_THREADS": "1"},
        stdin=stdin,
        capture_output=True,
        text=text,
        timeout=250,
        preexec_fn=limit,
        check=False,
    )


def one_sentence(done: subprocess.CompletedProcess[str], status: int) -> str:
    """The one line that was said on standard error; nothing was shown and ``status`` is the exit status."""
    assert (status, "", 1) == (done.returncode, done.stdout, done.stderr.count("\n")), done.stderr
    return done.stderr
