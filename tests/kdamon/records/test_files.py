# SPDX-License-Identifier: GPL-2.0-only
"""The files of records: what is made, replaced, refused and removed."""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest

import kdamon
from kdamon.records import files
from kdamon.records import writer as writer_module
from kdamon.records.files import is_record
from kdamon.records.parts import free_name, part_name, remove_old
from kdamon.records.writer import RecordWriter
from tests.support.records import read_all, run_values, some_record, writer


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_only_its_user_can_read_it(tmp_path: Path) -> None:
    """Nor the files beside it, while they are there; at the end it is one file."""
    before = os.umask(0)
    try:
        record = writer(tmp_path / "a")
        record.flush()
        assert {"a": 0o600, "a-shm": 0o600, "a-wal": 0o600} == {one.name: mode(one) for one in tmp_path.iterdir()}
        record.close()
    finally:
        os.umask(before)
    assert {"a": 0o600} == {one.name: mode(one) for one in tmp_path.iterdir()}
    assert is_record(tmp_path / "a")


def test_an_existing_file_stays(tmp_path: Path) -> None:
    """A record, too, unless it is to be replaced; nothing else is ever replaced."""
    path = some_record(tmp_path / "a", 3)
    before = path.read_bytes()
    with pytest.raises(FileExistsError) as refused:
        writer(path)
    assert ("the file exists", str(path)) == (refused.value.strerror, refused.value.filename)
    assert before == path.read_bytes()
    RecordWriter(path, run_values(), replace=True).close()
    with kdamon.open(path) as found:
        assert 0 == len(found.times())
    sqlite3.connect(tmp_path / "b").execute("CREATE TABLE t (x)").connection.close()
    (tmp_path / "c").write_text("text")
    (tmp_path / "d").mkdir()
    os.mkfifo(tmp_path / "e")
    for name in "bce":
        with pytest.raises(FileExistsError, match="no record"):
            RecordWriter(tmp_path / name, run_values(), replace=True)
    with pytest.raises(IsADirectoryError):
        RecordWriter(tmp_path / "d", run_values(), replace=True)


def test_a_record_that_is_written_is_not_replaced(tmp_path: Path) -> None:
    """Its writer would go on in a file without a name."""
    record = writer(tmp_path / "a")
    record.flush()
    with pytest.raises(OSError, match="another process writes this record") as refused:
        RecordWriter(tmp_path / "a", run_values(), replace=True)
    assert errno.EBUSY == refused.value.errno
    record.close()


def test_no_link_is_written_through(tmp_path: Path) -> None:
    """A dangling link's target is made, as by a shell, but an existing file stays."""
    (tmp_path / "target").write_text("text")
    (tmp_path / "link").symlink_to("target")
    with pytest.raises(FileExistsError):
        writer(tmp_path / "link")
    with pytest.raises(FileExistsError, match="no record"):
        RecordWriter(tmp_path / "link", run_values(), replace=True)
    assert "text" == (tmp_path / "target").read_text()


def test_a_file_that_is_exchanged_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the owner of the directory, between the making of the file and the opening by its name."""
    other = some_record(tmp_path / "other", 3)
    before, connect = other.read_bytes(), files._connect
    monkeypatch.setattr(files, "_connect", lambda _path, mode: connect(str(other), mode))
    with pytest.raises(OSError, match="another file replaced the record"):
        writer(tmp_path / "a")
    assert (before, ["other"]) == (other.read_bytes(), os.listdir(tmp_path))


def test_what_a_killed_writer_left_is_no_obstacle(tmp_path: Path) -> None:
    """Its file is gone, and those beside it are not; other things there are."""
    (tmp_path / "a-wal").write_bytes(b"log")
    (tmp_path / "a-shm").write_bytes(b"shm")
    writer(tmp_path / "a").close()
    assert ["a"] == os.listdir(tmp_path)
    (tmp_path / "b-wal").symlink_to("a")
    with pytest.raises(FileExistsError, match="b-wal is in the way"):
        writer(tmp_path / "b")


def test_a_run_that_never_began_leaves_nothing(tmp_path: Path) -> None:
    """Its file is removed."""
    record = writer(tmp_path / "a")
    record.discard()
    assert [] == os.listdir(tmp_path)


def test_a_run_that_never_began_replaces_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The earlier record, and its log, have their names again."""
    path = some_record(tmp_path / "a", 3)
    (tmp_path / "a-wal").write_bytes(b"")
    before = path.read_bytes()
    record = RecordWriter(path, run_values(), replace=True)
    assert before != path.read_bytes()
    record.discard()
    assert (before, ["a", "a-wal"]) == (path.read_bytes(), sorted(os.listdir(tmp_path)))
    monkeypatch.setattr(writer_module, "open_to_write", _full)
    with pytest.raises(OSError, match="No space"):
        RecordWriter(path, run_values(), replace=True)
    assert (before, ["a", "a-wal"]) == (path.read_bytes(), sorted(os.listdir(tmp_path)))
    monkeypatch.undo()
    record = RecordWriter(path, run_values(), replace=True)
    record.flush()
    assert ["a", "a-shm", "a-wal"] == sorted(os.listdir(tmp_path))
    record.close()
    assert ["a"] == os.listdir(tmp_path)


def _full(_name: str, _descriptor: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("content", [b"", b"text", b"SQLite format 3\0", bytes(5000)])
def test_what_is_no_record_is_refused(tmp_path: Path, content: bytes) -> None:
    """With one sentence, and the file's name."""
    path = tmp_path / "a"
    path.write_bytes(content)
    with pytest.raises(OSError, match="record") as refused:
        kdamon.open(path)
    assert str(path) == refused.value.filename
    assert refused.value.errno in {errno.EINVAL, errno.EBADMSG}
    assert not is_record(path)
    assert content == path.read_bytes()


def test_other_databases_are_refused(tmp_path: Path) -> None:
    """And records of a newer schema."""
    with sqlite3.connect(tmp_path / "other") as db:
        db.execute("CREATE TABLE run (key, value)")
    db.close()
    with pytest.raises(OSError, match="this is not a record of kdamon"):
        kdamon.open(tmp_path / "other")
    path = some_record(tmp_path / "newer", 3)
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 2")
    db.close()
    with pytest.raises(OSError, match=r"a newer kdamon wrote this record \(schema 2\): update kdamon"):
        kdamon.open(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """Without waiting for another program."""
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="this is not a record of kdamon"):
        kdamon.open(tmp_path / "fifo")
    with pytest.raises(FileNotFoundError):
        kdamon.open(tmp_path / "none")
    with pytest.raises(IsADirectoryError):
        kdamon.open(tmp_path)


def test_a_record_where_others_can_make_files_is_copied(tmp_path: Path) -> None:
    """So that SQLite opens nothing that they made; what is beside it is not touched."""
    tmp_path.chmod(0o1777)
    record = writer(tmp_path / "a")
    record.flush()
    with kdamon.open(tmp_path / "a") as found:
        assert STARTED_VALUES == found.run.values
    record.close()
    (tmp_path / "a-journal").write_bytes(b"hot")
    (tmp_path / "a-wal").write_bytes(b"log")
    with kdamon.open(tmp_path / "a") as found:
        read_all(found)
    assert ["a", "a-journal", "a-wal"] == sorted(os.listdir(tmp_path))


def test_a_copy_has_holes_where_the_record_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the file of another user could fill the disk; what is no record is not copied at all."""
    path = some_record(tmp_path / "a", 3)
    monkeypatch.setattr(files, "_is_own", lambda _path: False)
    os.truncate(path, 1 << 36)
    with kdamon.open(path) as found:
        assert 3 == len(found.times())
    with path.open("r+b") as file:
        file.write(b"text")
    monkeypatch.setattr(files, "_data_of", None)
    with pytest.raises(OSError, match="this is not a record of kdamon"):
        kdamon.open(path)


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/a \xff?#%41")
    some_record(path, 3)
    with kdamon.open(path) as found:
        assert 3 == len(found.times())


STARTED_VALUES = run_values() | {"config": run_values()["config"] | {"ranges": [], "cpus": [], "tids": []}}


def test_a_copy_of_a_record_that_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that begins anew meanwhile makes another attempt; one that never rests is an error."""
    path = some_record(tmp_path / "a", 3)
    heads = iter([b"1", b"2", b"2", b"2"])
    monkeypatch.setattr(files, "_is_own", lambda _path: False)
    monkeypatch.setattr(files, "_log_head", lambda _path: next(heads))
    with kdamon.open(path) as found:
        assert 3 == len(found.times())
    numbers = iter(range(100))
    monkeypatch.setattr(files, "_log_head", lambda _path: str(next(numbers)).encode())
    with pytest.raises(OSError, match="written too fast"):
        kdamon.open(path)


def test_names_of_parts(tmp_path: Path) -> None:
    """By time, and free numbers for a run that is not split."""
    at = datetime(2026, 12, 1, 12, 34, 56, tzinfo=UTC)
    assert "dir/run-20261201T123456Z.kdamon" == part_name("dir/run.kdamon", at)
    assert "odd-20261201T123456Z.kdamon" == part_name("odd", at)
    base = str(tmp_path / "run.kdamon")
    assert base == free_name(base)
    for name in ("run.kdamon", "run-2.kdamon"):
        (tmp_path / name).touch()
    assert str(tmp_path / "run-3.kdamon") == free_name(base)


def test_only_old_parts_of_the_same_name_are_removed(tmp_path: Path) -> None:
    """Records of other names, young ones, links, and files that are no records stay."""
    base = str(tmp_path / "run.kdamon")
    old, young = "run-20261201T100000Z.kdamon", "run-20261201T120000Z.kdamon"
    others = ["run.kdamon", "other-20261201T100000Z.kdamon", "run-20261201T10000Z.kdamon"]
    for name in (old, young, *others):
        some_record(tmp_path / name, 2)
        if name != young:
            os.utime(tmp_path / name, (0, 0))
    (tmp_path / f"{old}-wal").touch()
    text, link = "run-20261201T100001Z.kdamon", "run-20261201T100002Z.kdamon"
    (tmp_path / text).write_text("text")
    os.utime(tmp_path / text, (0, 0))
    (tmp_path / link).symlink_to("run.kdamon")
    assert [str(tmp_path / old)] == remove_old(base, 3600)
    assert sorted([young, *others, text, link]) == sorted(os.listdir(tmp_path))


def test_a_part_that_is_written_is_not_removed(tmp_path: Path) -> None:
    """Its own time is that of the last time that its log was emptied."""
    path = tmp_path / "run-20261201T123456Z.kdamon"
    record = writer(path)
    record.flush()
    os.utime(path, (0, 0))
    assert [] == remove_old(str(tmp_path / "run.kdamon"), 60)
    record.close()
    os.utime(path, (0, 0))
    assert [str(path)] == remove_old(str(tmp_path / "run.kdamon"), 60)
