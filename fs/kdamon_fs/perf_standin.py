# SPDX-License-Identifier: GPL-2.0-only
"""The ``perf`` of a command in ``kdamon exec``: it records DAMON's events from kdamon.

``perf_standin.py SOCKET DIRECTORY ARGUMENT...`` records them from the socket of a
:class:`kdamon_fs.trace_server.TraceServer`. It implements ``perf record -e damon:...``, ``perf script`` of such a
record, and ``perf trace -e damon:...``, as ``damo record`` and ``damo report trace`` call them. It passes everything
else to the machine's ``perf``, the first on PATH that is not in DIRECTORY. (docs/deviations.md#tracepoints-without-ids)

It runs as ``python -I -S perf_standin.py``, with the standard library only, to start quickly.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import select
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, Final, NoReturn

#: The first line of a record. damo ignores a line of three words.
_MAGIC: Final = b"# kdamon events\n"
#: Precedes the number of lost events, which in a record of another user may have any number of digits.
_LOST: Final = b"# lost "
_DIGITS: Final = 18
_DEFAULT_FILE: Final = "perf.data"
#: The perf commands that read a record.
_READERS: Final = frozenset({"annotate", "data", "evlist", "inject", "report", "script", "timechart"})
_PREFIX: Final = "damon:"
#: Seconds between checks whether the recorded command ended.
_POLL: Final = 0.1

#: Options that change nothing about DAMON's events, which come from kdamon's threads alone.
_NO_MATTER: Final = frozenset(
    {"-a", "--all-cpus", "-f", "--force", "-q", "--quiet", "-v", "--verbose", "-R", "--raw-samples"}
    | {"-T", "--timestamp", "--libtraceevent_print"}
)


class _RefusedError(Exception):
    """A request that cannot be done; the message is one sentence."""


class _Words:
    """The arguments of ``perf record`` or ``perf trace`` with events of DAMON: the events, the file, and a command."""

    def __init__(self, words: Sequence[str]) -> None:
        self.events: list[str] = []
        self.output = _DEFAULT_FILE
        self.command: list[str] = []
        rest = list(words)
        while rest and rest[0].startswith("-") and rest[0] != "--":
            if rest[0] in _NO_MATTER:
                del rest[0]
            elif event := _take(rest, "-e", "--event"):
                self.events += event.split(",")
            elif output := _take(rest, "-o", "--output"):
                self.output = output
            else:
                raise _not_understood(rest[0])
        self.command = rest[1:] if rest[:1] == ["--"] else rest


def _not_understood(option: str) -> _RefusedError:
    return _RefusedError(f"DAMON's events come from kdamon, which does not support {option} for them")


def _check_script(words: Sequence[str]) -> None:
    """Reject options that would print the events in another form."""
    rest = list(words)
    while rest:
        if rest[0] in _NO_MATTER:
            del rest[0]
        elif not _take(rest, "-i", "--input"):
            raise _not_understood(rest[0])


def _take(words: list[str], short: str, long: str) -> str:
    """Remove an option from the beginning of ``words``, in any spelling, and return its value; empty if none."""
    for begin in (f"{long}=", short):
        if words[0].startswith(begin) and words[0] != short:
            return words.pop(0).removeprefix(begin)
    if words[0] in (short, long) and len(words) > 1:
        del words[0]
        return words.pop(0)
    return ""


def _machines_perf(own: str) -> str | None:
    """The ``perf`` that PATH would find without this one."""
    for directory in os.get_exec_path():
        path = os.path.join(directory, "perf")
        # A relative one would be a program in the working directory, which may be any user's.
        if directory != own and os.path.isabs(path) and os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None


def _pass_on(own: str, words: Sequence[str]) -> NoReturn:
    perf = _machines_perf(own)
    if perf is None:
        if list(words[:1]) in (["--version"], ["version"]):
            print("perf version kdamon")
            sys.exit(0)
        raise _RefusedError("it is not installed; kdamon serves DAMON's events alone")
    os.execv(perf, ["perf", *words])


def _open_record(path: str) -> BinaryIO | None:
    """Open a record of this program; None for any other file, which may be a pipe without a writer."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    if stat.S_ISREG(os.fstat(fd).st_mode) and os.pread(fd, len(_MAGIC), 0) == _MAGIC:
        return os.fdopen(fd, "rb")
    os.close(fd)
    return None


def _end_signals() -> list[int]:
    """Collect the signals that end a recording."""
    came: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: came.append(number))
    return came


def _names(events: Sequence[str]) -> list[str]:
    """The names of DAMON's events, without the system."""
    for event in events:
        if not event.startswith(_PREFIX):
            raise _RefusedError(f"DAMON's events come from kdamon: record {event} with a separate perf command")
    return [event.removeprefix(_PREFIX) for event in events]


def _ask(path: str, names: Sequence[str]) -> tuple[socket.socket, bytes]:
    """A connection that sends the events, and the first bytes that it sent."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(path)
        connection.sendall(" ".join(names).encode(errors="surrogateescape") + b"\n")
        answer = b""
        while b"\n" not in answer:
            data = connection.recv(1 << 16)
            if not data:
                raise _RefusedError("kdamon did not answer")
            answer += data
    except OSError as error:
        raise _RefusedError(f"kdamon exec serves no events any more ({error.strerror})") from None
    first, _, rest = answer.partition(b"\n")
    if first != b"ok":
        raise _RefusedError(first.decode(errors="backslashreplace"))
    return connection, rest


def _events(path: str, words: _Words) -> Iterator[bytes]:
    """The text of the events until the command ends or a signal comes, in pieces; the first may be empty."""
    ends = _end_signals()
    connection, first = _ask(path, _names(words.events))
    child = None
    try:
        if words.command:
            child = subprocess.Popen(words.command)
        yield first
        asked = False
        while True:
            if not asked and (ends or (child is not None and child.poll() is not None)):
                connection.shutdown(socket.SHUT_WR)
                asked = True
            if select.select([connection], [], [], _POLL)[0]:
                data = connection.recv(1 << 16)
                if not data:
                    return
                yield data
    except OSError as error:
        raise _RefusedError(f"{' '.join(words.command) or 'kdamon exec'}: {error.strerror}") from None
    finally:
        connection.close()
        if child is not None and child.poll() is None:
            child.terminate()
            child.wait()


def _record(path: str, words: _Words) -> int:
    pieces = _events(path, words)
    # The server reports an unknown event before this opens a file.
    first = next(pieces)
    try:
        with open(_make_output(words.output), "wb", buffering=0) as file:
            for piece in itertools.chain((_MAGIC, first), pieces):
                file.write(piece)
    except OSError as error:
        raise _RefusedError(f"{words.output}: {error.strerror}") from None
    return 0


def _make_output(path: str) -> int:
    """Open a file for a record. An earlier record is renamed, as perf does.

    The directory may be another user's: the file is always new, and no link to an existing one is followed.
    """
    folder, name = os.path.split(path)
    directory = os.open(folder or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISREG(os.stat(name, dir_fd=directory).st_mode):
                os.replace(name, f"{name}.old", src_dir_fd=directory, dst_dir_fd=directory)
        flags = os.O_WRONLY | os.O_CLOEXEC
        try:
            return os.open(name, flags | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=directory)
        except FileExistsError:
            # A terminal, /dev/null, or a pipe that has a reader.
            file = os.open(name, flags | os.O_NONBLOCK, dir_fd=directory)
        if stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise FileExistsError(errno.EEXIST, "another process created it meanwhile")
        os.set_blocking(file, True)
        return file
    finally:
        os.close(directory)


def _script(file: BinaryIO) -> int:
    """Print the events of a record, and report the number of lost ones on standard error."""
    lost = 0
    for line in file:
        if line.startswith(_LOST) and (number := line[len(_LOST) : -1]).isdigit():
            lost += int(number[:_DIGITS])
        elif not line.startswith(b"#") and line.endswith(b"\n"):
            sys.stdout.buffer.write(line)
    if lost:
        print(f"perf: {lost} events were lost", file=sys.stderr)
    return 0


def _trace(path: str, words: _Words) -> int:
    """Print events as they happen, in perf trace's way: milliseconds, task, event and fields in parentheses."""
    rest = b""
    for piece in _events(path, words):
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            fields = line.split()
            if line.startswith(b"#") or len(fields) < 5:
                continue
            seconds, event = float(fields[3][:-1]), fields[4][:-1]
            sys.stdout.buffer.write(
                b"%10.3f %s/%s %s(%s)\n" % (seconds * 1000, fields[0], fields[1], event, b" ".join(fields[5:]))
            )
        sys.stdout.flush()
    return 0


def _input(words: Sequence[str]) -> str:
    """The input file that ``words`` name."""
    for i in range(len(words)):
        if value := _take(list(words[i:]), "-i", "--input"):
            return value
    return _DEFAULT_FILE


def main(path: str, own: str, words: Sequence[str]) -> int:
    """Run the perf command ``words``, or become the machine's perf."""
    verb = words[0] if words else ""
    if any(_PREFIX in word for word in words[1:]):
        verbs: dict[str, Callable[[str, _Words], int]] = {"record": _record, "trace": _trace}
        if verb not in verbs:
            raise _RefusedError(
                f"DAMON's events come from kdamon: record, script and trace support them, {verb} does not"
            )
        return verbs[verb](path, _Words(words[1:]))
    name = _input(words[1:])
    if verb in _READERS and (file := _open_record(name)) is not None:
        with file:
            if verb != "script":
                raise _RefusedError(f"{name} holds DAMON's events from kdamon: 'perf script' prints them")
            _check_script(words[1:])
            return _script(file)
    _pass_on(own, words)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
    except _RefusedError as reason:
        print(f"perf: {reason}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:
        os._exit(1)
