# SPDX-License-Identifier: GPL-2.0-only
"""Opens records as files of SQLite, so that no other user can make a program write to, or wait for, another file.

SQLite opens files by their names, and two more beside each (``-wal``, ``-shm``). Where another user can exchange one of
them, a reader works on a copy that only this process's user can reach.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import sqlite3
import stat
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, Final
from urllib.parse import quote

from kdamon.lib.path_walk import Place, UntrustedError
from kdamon.lib.trusted import open_place, open_to_read, open_trusted
from kdamon.records.columns import MOST_BYTES, Corrupt
from kdamon.records.schema import APPLICATION_ID, LATER_TABLES, SUFFIX, TABLES, VERSION

__all__ = ["BESIDE", "Earlier", "Reading", "create", "is_record", "open_to_write", "opened_to_read"]

#: The ends of the names of files that SQLite keeps beside a record that is being written.
BESIDE: Final = ("-wal", "-shm", "-journal")
#: The first bytes of a file of SQLite, and where it has the versions of its format, and the application's number.
_MAGIC: Final = b"SQLite format 3\0"
_FORMAT_AT: Final = 18
_APPLICATION_AT: Final = 68
_HEAD_BYTES: Final = 100
#: Seconds that a reader waits for a lock, which a writer holds for moments.
_LOCK_S: Final = 10.0
#: Rows that a query may have, and how often it may take :data:`_STEPS` steps of SQLite: in the file of another user, a
#: page may be part of a table any number of times.
_MOST_FOUND: Final = 1 << 23
_MOST_TIMES: Final = 1 << 13
_STEPS: Final = 1 << 16
#: How often a copy of a record that is being written is begun anew.
_COPIES: Final = 10
#: The beginning of a write-ahead log, which is another one after each time that it begins anew.
_LOG_HEAD_BYTES: Final = 32


# To write.


class Earlier:
    """A record that another one replaces; it has another name until it is clear that the other one begins.

    :param directory: a descriptor of its directory; stays the caller's.
    :param name: its name there, which it loses.
    """

    def __init__(self, directory: int, name: str) -> None:
        self._name = name
        self._kept = f"earlier-{secrets.token_hex(4)}{SUFFIX}"
        self._directory = os.dup(directory)
        try:
            self._rename(name, self._kept)
        except BaseException:
            os.close(self._directory)
            raise

    def remove(self) -> None:
        """Remove it; may be repeated."""
        if self._directory >= 0:
            for end in ("", *BESIDE):
                with contextlib.suppress(OSError):
                    os.unlink(self._kept + end, dir_fd=self._directory)
            self._close()

    def restore(self) -> None:
        """Give it its name again, unless it is removed."""
        if self._directory >= 0:
            with contextlib.suppress(FileNotFoundError):
                self._rename(self._kept, self._name)
            self._close()

    def _rename(self, before: str, after: str) -> None:
        os.rename(before, after, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        for end in BESIDE:
            with contextlib.suppress(FileNotFoundError):
                os.rename(before + end, after + end, src_dir_fd=self._directory, dst_dir_fd=self._directory)

    def _close(self) -> None:
        os.close(self._directory)
        self._directory = -1


def create(path: str | os.PathLike[str], *, replace: bool = False) -> tuple[str, int, Earlier | None]:
    """Make the empty file of a new record, for this process's user alone (mode 0600).

    :param replace: an earlier record may have this name; no other file is replaced.
    :returns: its name for SQLite; a descriptor, which is locked as long as it is open: close it after SQLite's
        connection, whose own locks would go with it; and the earlier record, which the caller removes or restores.
    :raises OSError: EEXIST there is a file, EBUSY another process writes to it; or as ``open(2)``.
    """
    name = os.fspath(path)
    with open_place(name) as place, contextlib.ExitStack() as stack:
        directory, earlier = place.directory, None
        if place.found >= 0:
            _check_replaceable(place, name, replace)
            earlier = Earlier(directory, place.name)
            stack.callback(earlier.restore)
        for end in BESIDE:
            _remove_left(directory, place.name + end, name)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            made = os.open(place.name, flags, 0o600, dir_fd=directory)
        except OSError as error:
            raise OSError(error.errno, error.strerror, name) from None
        os.fchmod(made, 0o600)
        fcntl.flock(made, fcntl.LOCK_EX)
        stack.pop_all()
        return os.path.join(os.readlink(f"/proc/self/fd/{directory}"), place.name), made, earlier


def _check_replaceable(place: Place, name: str, replace: bool) -> None:
    """Refuse to replace a file that is no record, or that is still written."""
    if not replace:
        raise FileExistsError(errno.EEXIST, "the file exists", name)
    descriptor = -1
    with contextlib.suppress(OSError):
        if stat.S_ISREG(os.fstat(place.found).st_mode):
            descriptor = os.open(f"/proc/self/fd/{place.found}", os.O_RDONLY | os.O_CLOEXEC)
    if descriptor < 0:
        raise FileExistsError(errno.EEXIST, "the file is no record, so it is not replaced", name)
    try:
        if not _has_head(os.pread(descriptor, _HEAD_BYTES, 0)):
            raise FileExistsError(errno.EEXIST, "the file is no record, so it is not replaced", name)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(errno.EBUSY, "another process writes this record", name) from None
    finally:
        os.close(descriptor)


def _remove_left(directory: int, left: str, name: str) -> None:
    """Remove what a killed writer left of a record that is gone."""
    try:
        status = os.stat(left, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return
    if status.st_uid != os.geteuid() or not stat.S_ISREG(status.st_mode):
        raise FileExistsError(errno.EEXIST, f"{left} is in the way", name)
    os.unlink(left, dir_fd=directory)


def open_to_write(path: str, descriptor: int) -> sqlite3.Connection:
    """Make the tables in a new record, see :func:`create`.

    :raises OSError: it cannot be written, or another user has exchanged it.
    :raises sqlite3.Error: likewise.
    """
    # At once, and by the descriptor: a kill at any time leaves an empty file, or a record.
    rest = memoryview(_empty_record())
    while rest:
        rest = rest[os.write(descriptor, rest) :]
    connection = _connect(path, "rw")
    try:
        _check_opened(descriptor, path)
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise OSError(errno.EOPNOTSUPP, "this file system cannot hold a record while it is written", path)
        # What is committed survives the end of this process at any time.
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(f"PRAGMA journal_size_limit = {MOST_BYTES}")
        # So that the other files exist.
        connection.execute(f"PRAGMA user_version = {VERSION}")
        _check_own(path, descriptor)
    except BaseException:
        connection.close()
        raise
    return connection


def _empty_record() -> bytes:
    """The content of a record without rows, which has a write-ahead log from the beginning."""
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {VERSION}")
        for sentence in (TABLES | LATER_TABLES).values():
            db.execute(sentence)
        db.commit()
        content = bytearray(db.serialize())
    # The file format's versions for writing and reading; 1 is a rollback journal.
    content[_FORMAT_AT : _FORMAT_AT + 2] = b"\2\2"
    return bytes(content)


def _check_opened(descriptor: int, path: str) -> None:
    """Check, before anything is written, that SQLite opened the new file, not what the directory's owner put there."""
    wanted, found = os.fstat(descriptor), 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found += os.path.samestat(os.stat(f"/proc/self/fd/{name}"), wanted)
    # This descriptor, and SQLite's.
    if found < 2:
        raise OSError(errno.ESTALE, "another file replaced the record", path)


def _check_own(path: str, descriptor: int) -> None:
    """Check that the files that SQLite opened are this user's own, in a directory where others can make files."""
    if not os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False)):
        raise OSError(errno.ESTALE, "another file replaced the record", path)
    for end in ("-wal", "-shm"):
        status = os.stat(path + end, follow_symlinks=False)
        if status.st_uid != os.geteuid() or not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise OSError(errno.EPERM, f"another user made {path}{end}", path)


# To read.


class Reading(sqlite3.Connection):
    """A connection whose queries end, whatever the file holds.

    :ivar tables: the names of the tables that the file has.
    """

    tables: frozenset[str] = frozenset()
    _times = 0

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows that a query finds.

        :raises Corrupt: there are too many, or it takes too long.
        """
        self._times = 0
        self.set_progress_handler(self._step, _STEPS)
        try:
            found: list[tuple[Any, ...]] = self.execute(query, values).fetchmany(_MOST_FOUND + 1)
        except sqlite3.OperationalError as error:
            # Errors of Python's module have no such code.
            if getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_INTERRUPT:
                raise
            if self._times <= _MOST_TIMES:
                # Ctrl-C while SQLite called :meth:`_step`.
                raise KeyboardInterrupt from error
            raise Corrupt("a table is too large") from error
        if len(found) > _MOST_FOUND:
            raise Corrupt("a table is too large")
        return found

    def _step(self) -> bool:
        self._times += 1
        return self._times > _MOST_TIMES


def is_record(path: str | os.PathLike[str]) -> bool:
    """Return whether a file is a record, by its beginning.

    :raises OSError: as ``open(2)``.
    """
    descriptor = open_to_read(path, os.O_NONBLOCK)
    try:
        return stat.S_ISREG(os.fstat(descriptor).st_mode) and _has_head(os.pread(descriptor, _HEAD_BYTES, 0))
    finally:
        os.close(descriptor)


def _has_head(head: bytes) -> bool:
    return head.startswith(_MAGIC) and _number(head, _APPLICATION_AT) == APPLICATION_ID


def _number(head: bytes, at: int) -> int:
    return int.from_bytes(head[at : at + 4], "big")


@contextlib.contextmanager
def opened_to_read(path: str | os.PathLike[str]) -> Iterator[Reading]:
    """A connection to a record that may be written meanwhile, or be of another user.

    :raises OSError: EINVAL it is no record, EBADMSG it is damaged, or as ``open(2)``.
    """
    name = os.fspath(path)
    with contextlib.ExitStack() as stack:
        real = _checked(name)
        connection = None
        if _is_own(real):
            with contextlib.suppress(sqlite3.OperationalError):
                connection = _ready(real)
        if connection is None:
            # Also where there is no room, or no right, for the files that SQLite has to make beside it.
            copy = stack.enter_context(tempfile.TemporaryDirectory(prefix="kdamon-"))
            connection = _ready(_copied(real, copy))
        stack.callback(connection.close)
        yield connection


def _checked(name: str) -> str:
    """The name without symbolic links of a regular file that begins as a record."""
    with open_place(name, links_of_others=True) as place:
        if place.found < 0:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        regular = stat.S_ISREG(os.fstat(place.found).st_mode)
        # Closing any other descriptor of the file would release the locks of a writer in this process.
        real = os.readlink(f"/proc/self/fd/{place.found}")
    if not regular:
        raise OSError(errno.EINVAL, "this is not a record of kdamon", name)
    return real


def _is_own(path: str) -> bool:
    """Return whether no other user can exchange the file, or make others beside it."""
    try:
        os.close(open_trusted(path))
    except UntrustedError:
        return False
    return True


def _ready(path: str) -> Reading:
    """A connection that has read the beginning of a record, and its tables."""
    connection = _connect(path, "ro")
    try:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MOST_BYTES)
        for pragma in ("trusted_schema = OFF", "cell_size_check = ON", "mmap_size = 0", "query_only = ON"):
            connection.rows(f"PRAGMA {pragma}")
        ((application,),) = connection.rows("PRAGMA application_id")
        ((version,),) = connection.rows("PRAGMA user_version")
        if application != APPLICATION_ID:
            raise OSError(errno.EINVAL, "this is not a record of kdamon")
        if version > VERSION:
            raise OSError(errno.EINVAL, f"a newer kdamon wrote this record (schema {version}): update kdamon")
        found = dict(connection.rows("SELECT name, sql FROM sqlite_schema WHERE type = 'table'"))
        later = {table: sentence for table, sentence in LATER_TABLES.items() if table in found}
        if any(found.get(table) != sentence for table, sentence in (TABLES | later).items()):
            raise Corrupt("its tables are not those of a record")
        connection.tables = frozenset(found)
    except sqlite3.OperationalError:
        connection.close()
        raise
    except sqlite3.DatabaseError as error:
        connection.close()
        if error.sqlite_errorcode == sqlite3.SQLITE_NOTADB:
            raise OSError(errno.EINVAL, "this is not a record of kdamon") from error
        raise Corrupt(str(error)) from error
    except BaseException:
        connection.close()
        raise
    return connection


def _copied(path: str, directory: str) -> str:
    """Copy a record and its write-ahead log as they were at one time; returns the copy's name."""
    copy = os.path.join(directory, "record")
    for _ in range(_COPIES):
        before = _log_head(path)
        owner = _copy(path, copy, of_record=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{copy}-wal")
        # Another user's log beside it would be of other pages.
        with contextlib.suppress(FileNotFoundError):
            if _copy(f"{path}-wal", f"{copy}-wal") != owner:
                os.unlink(f"{copy}-wal")
        # Pages that came from this log to the file meanwhile are still in the log.
        if before == _log_head(path):
            return copy
    raise OSError(errno.EAGAIN, "the record is written too fast to be copied", path)


def _copy(source: str, target: str, *, of_record: bool = False) -> int:
    """Copy a regular file as large as it is now, holes as holes; returns its owner.

    :param of_record: refuse it if it does not begin as a record, before it is copied.
    """
    with open(_opened(source), "rb", buffering=0) as file, open(target, "wb", buffering=0) as out:
        status = os.fstat(file.fileno())
        if of_record and not _has_head(os.pread(file.fileno(), _HEAD_BYTES, 0)):
            raise OSError(errno.EINVAL, "this is not a record of kdamon", source)
        # What others make of it meanwhile takes no more room than it had.
        for start, end in _data_of(file.fileno(), status.st_size):
            at = start
            while at < end and (part := os.pread(file.fileno(), min(end - at, 1 << 20), at)):
                at += os.pwrite(out.fileno(), part, at)
        os.ftruncate(out.fileno(), status.st_size)
        return status.st_uid


def _data_of(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Start and end of the parts of a file that are no holes."""
    end = 0
    while end < size:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
            end = os.lseek(descriptor, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        yield start, min(end, size)


def _opened(path: str) -> int:
    """A descriptor of a regular file."""
    descriptor = open_to_read(path, os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "this is not a record of kdamon", path)
    return descriptor


def _log_head(path: str) -> bytes:
    try:
        descriptor = _opened(f"{path}-wal")
    except FileNotFoundError:
        return b""
    try:
        return os.pread(descriptor, _LOG_HEAD_BYTES, 0)
    finally:
        os.close(descriptor)


def _connect(path: str, mode: str) -> Reading:
    # Several threads use it, one at a time.
    return sqlite3.connect(
        f"file:{quote(os.fsencode(path))}?mode={mode}",
        uri=True,
        timeout=_LOCK_S,
        isolation_level=None,
        check_same_thread=False,
        factory=Reading,
    )
