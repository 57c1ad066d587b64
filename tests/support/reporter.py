# SPDX-License-Identifier: GPL-2.0-only
"""A producer of reports in C, as another process."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support.capabilities import compiler

INCLUDE = Path(__file__).parents[2] / "tools/kdamon_tools/include"


def compile_c(source: Path, program: Path, *flags: str) -> Path:
    """Compile a program that includes the header; every warning is an error."""
    strict = ("-Wall", "-Wextra", "-Wpedantic", "-Werror", "-O2")
    subprocess.run([compiler(), *strict, *flags, f"-I{INCLUDE}", "-o", program, source], check=True)
    return program


class Reporter:
    """A running ``reporter.c``; a context manager.

    :param user: the user that it runs as.
    :param before: a command line that starts it.
    """

    def __init__(
        self,
        program: Path,
        path: Path,
        capacity: int = 0,
        *,
        user: int | None = None,
        group: int | None = None,
        before: tuple[str, ...] = (),
    ) -> None:
        more: dict[str, Any] = {}
        if user is not None:
            more = {"user": user, "group": user if group is None else group, "extra_groups": []}
        self.process = subprocess.Popen(
            [*before, program, path, str(capacity)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            cwd="/",
            **more,
        )
        word, _, number = self._line().partition(" ")
        self.errno = int(number) if word == "refused" else 0
        #: As kdamon numbers it.
        self.pid = int(number) if word == "ready" else 0

    def _line(self) -> str:
        assert self.process.stdout is not None
        line: str = self.process.stdout.readline()
        assert line.endswith("\n"), "the producer ended"
        return line.rstrip("\n")

    def say(self, *words: object) -> None:
        """Send a command without waiting for its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join(map(str, words)) + "\n")

    def ask(self, *words: object) -> int:
        """Send a command; returns the (first) number that it answers."""
        return self.ask_all(*words)[0]

    def ask_all(self, *words: object) -> list[int]:
        """Send a command; returns the numbers that it answers."""
        self.say(*words)
        return [int(number) for number in self._line().split()]

    def kill(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.process.pid, number)

    def __enter__(self) -> Reporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()
