# SPDX-License-Identifier: GPL-2.0-only
"""The record of a run is bounded, however slow the disk and however busy the process are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kdamon.monitoring.snapshot import Snapshot
from kdamon_tools import run_record
from kdamon_tools.process_data import ProcessData, program_name
from kdamon_tools.run_record import RecordFile, RunRecord
from tests.support.records import STARTED, rows


def line(number: int) -> bytes:
    """A line of /proc/PID/maps."""
    return b"%x-%x rw-p 00000000 00:00 0" % (0x1000 * number, 0x1000 * (number + 1))


def test_a_slow_disk_loses_snapshots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that find no room; they are counted and said."""
    monkeypatch.setattr(run_record, "_MOST_WAITING", 3)
    with RunRecord(RecordFile(str(tmp_path / "a"))) as record:
        for number in range(5):
            record.add(Snapshot.of(STARTED + number, rows(number)))
        assert (2, None) == (record.lost, record.error())
        assert "; 2 more were lost, as the disk was too slow" in record.sentence()
    assert [] == os.listdir(tmp_path)


def test_many_changes_of_mappings_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the first list; what the kernel has in each list is no mapping of the process."""
    monkeypatch.setattr(run_record, "_MOST_CHANGES", 3)
    with RunRecord(RecordFile(str(tmp_path / "a"))) as record:
        vsyscall = b"ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]"
        record.change_mappings([], [vsyscall, *map(line, range(1, 6))], STARTED, STARTED)
        assert 0 == record.left_out
        record.change_mappings([line(1)], [line(7), line(8)], STARTED, STARTED + 1)
    with RunRecord(RecordFile(str(tmp_path / "b"))) as record:
        record.change_mappings([], [line(1)], STARTED, STARTED)
        record.change_mappings([line(1), vsyscall], list(map(line, range(2, 9))), STARTED, STARTED + 1)
        assert 5 == record.left_out
        assert "; 5 changes of mappings were too many to record" in record.sentence()


def test_the_data_of_a_process() -> None:
    """This one's: resident bytes by kind, faults, CPU time and threads."""
    with ProcessData(os.getpid()) as data:
        first, second = data.read(), data.read()
    assert (first["rss_anon"] or 0) > 1 << 20
    assert (second["minor_faults"] or 0) >= (first["minor_faults"] or 0) > 0
    assert (first["threads"] or 0) >= 1
    assert (first["cpu_us"] or 0) > 0
    assert {"rss_anon", "rss_file", "rss_shmem", "swap", "major_faults", "stalled_some_us"} <= set(first)
    assert Path("/proc/self/comm").read_text().strip() == program_name(os.getpid())


def test_no_such_process() -> None:
    """Neither one that never was, nor another one with the same number."""
    for pid, birth in ((2**22 + 1, None), (os.getpid(), 1)):
        with pytest.raises(ProcessLookupError, match="there is no process"):
            ProcessData(pid, birth)
    assert None is program_name(2**22 + 1)
