# SPDX-License-Identifier: GPL-2.0-only
"""Names among the reports in a ring: what arrives is what was said, and nothing else does any harm."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdamon.kernel import RealClock
from kdamon.mm.proc.process_files import birth_of
from kdamon.names.labels import LONGEST, Labels, labels
from kdamon.producers.client import ReportClient, kdamon_name
from kdamon.producers.naming import Named, Namer, name_records, split_names
from kdamon.producers.ring import well_formed
from kdamon.producers.server import ReportServer
from kdamon.reports.deliver import subscribe_reports, unsubscribe_reports
from kdamon.reports.queue import ReportQueue
from kdamon.reports.record import REPORT_DTYPE, report_array
from tests.support.capabilities import needs_compiler, needs_root
from tests.support.paths import public_directory
from tests.support.reporter import Reporter
from tests.support.waiting import eventually

PID = 4_194_305  # no process has this number
OTHER = 65533


def read(namer: Namer, records: np.ndarray) -> Named:
    """What becomes of records with names, all of which are permitted."""
    _, names = split_names(records)
    assert names is not None
    return namer.read(names, lambda _pid: True)


def texts(of: Labels) -> list[tuple[int, int, str]]:
    """The areas of the process."""
    return [(area.start, area.end, area.text) for area in of.of(PID, None)]


@given(text=st.binary(max_size=LONGEST).filter(lambda text: text.strip(b"\0") == text and text), parts=st.booleans())
def test_a_name_arrives(text: bytes, parts: bool) -> None:
    """Whatever bytes it has, also where its records are read one after the other."""
    given_labels = Labels()
    namer = Namer(0, given_labels)
    records = name_records(PID, 0x1000, 0x2000, text)
    found = Named()
    for part in np.array_split(records, len(records)) if parts else [records]:
        found = read(namer, part)
    assert (1 if len(text) <= 20 else 2) == len(records) == found.accepted
    assert [(0x1000, 0x3000, os.fsdecode(text))] == texts(given_labels)


def test_reports_stay_reports() -> None:
    """In their order, between names."""
    reports = report_array(5, pid=PID, addr=np.arange(5))
    name = name_records(PID, 0, 10, b"a name of more than twenty bytes")
    mixed = np.concatenate([reports[:2], name, reports[2:]])
    rest, names = split_names(mixed)
    assert reports.tolist() == rest.tolist()
    assert names is not None and (2, REPORT_DTYPE.itemsize) == names.shape
    assert (reports.tolist(), None) == (split_names(reports)[0].tolist(), split_names(reports)[1])


def test_what_lies_between_the_fields_of_a_report_is_no_name() -> None:
    """As programs that do not clear it may leave it there."""
    reports = report_array(2, pid=PID)
    reports.view(np.uint32)[1::12] = [7, 0xFFFFFFFF]
    assert None is split_names(reports)[1]


@pytest.mark.parametrize("length", [0, 1, 19, 20, 21, LONGEST])
def test_an_older_kdamon_counts_names_as_malformed(length: int) -> None:
    """They are no reports for it."""
    good, _ = well_formed(name_records(7, 0x1000, 0x2000, b"x" * length))
    assert good is not None and not good.any()


def test_malformed_names() -> None:
    """Are counted, each record."""
    given_labels = Labels()
    namer = Namer(0, given_labels)
    begin, more = name_records(PID, 0, 10, b"x" * 30)[:1], name_records(PID, 0, 10, b"x" * 30)[1:]
    other = name_records(PID + 1, 0, 10, b"x" * 30)[1:]
    assert Named(malformed=1) == read(namer, more)
    assert Named(malformed=1, accepted=2) == read(namer, np.concatenate([begin, begin, more]))
    assert Named(malformed=1) == read(namer, np.concatenate([begin, other]))
    for field, value in (("pid", -1), ("size", 0), ("size", (1 << 64) - 1), ("nr_accesses", -57), ("nr_accesses", 1)):
        bad = name_records(PID, 1, 10, b"x").copy()
        bad[field] = value
        assert Named(malformed=1) == read(namer, bad)


def test_too_many_at_once_are_refused() -> None:
    """A flood takes no time from reports."""
    namer = Namer(0, Labels())
    found = read(namer, np.concatenate([name_records(PID, at * 10, 5, b"x") for at in range(1000)]))
    assert (256, 744) == (found.accepted, found.refused)


def test_an_empty_name_takes_the_name_away() -> None:
    """Of that area alone."""
    given_labels = Labels()
    namer = Namer(0, given_labels)
    read(namer, np.concatenate([name_records(PID, 0, 30, b"pool"), name_records(PID, 10, 10, b"")]))
    assert [(0, 10, "pool"), (20, 30, "pool")] == texts(given_labels)


@given(st.binary(min_size=48, max_size=480).filter(lambda data: len(data) % 48 == 0))
def test_garbage(data: bytes) -> None:
    """Each record is counted once, or waits for the next one."""
    namer = Namer(0, Labels())
    found = namer.read(np.frombuffer(data, np.uint8).reshape(-1, 48), lambda _pid: True)
    total = found.accepted + found.refused + found.not_permitted + found.malformed
    assert len(data) // 48 - total in (0, 1)


@pytest.mark.real
class TestServed:
    """By a real server."""

    @pytest.fixture
    def server(self) -> object:
        """A server that takes reports about any process."""
        queue = ReportQueue(RealClock())
        subscribe_reports(queue)
        with public_directory() as directory, ReportServer(directory / "reports") as made:
            yield made
        unsubscribe_reports(queue)

    def named(self, pid: int) -> list[str]:
        """The names that a process has."""
        return [area.text for area in labels.of(pid, birth_of(pid))]

    def test_python(self, server: ReportServer, monkeypatch: pytest.MonkeyPatch) -> None:
        """Both ways; a name that is too long is cut at a character."""
        monkeypatch.setenv("KDAMON_REPORTS", str(server.path))
        with ReportClient(server.path, 256) as client:
            assert client.name(0x1000, 0x1000, "ä" * 40)
            assert kdamon_name(0x8000, 0x1000, "in one call")
            assert eventually(lambda: ["ä" * 28, "in one call"] == self.named(client.pid), "the names")
            assert client.name(0, 1 << 20, "")
            assert eventually(lambda: [] == self.named(client.pid), "no names")
            assert (client.sent, 0, 0) == (3, client.dropped, server.counters().malformed)
            assert 4 == server.counters().names
            for start, size in ((-1, 5), (0, 0), (1 << 63, 1 << 63)):
                with pytest.raises(ValueError, match="at least one byte"):
                    client.name(start, size, "x")

    def test_without_kdamon(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing happens."""
        monkeypatch.setenv("KDAMON_REPORTS", str(tmp_path / "none"))
        assert not kdamon_name(0x8000, 0x1000, "x")

    def test_a_full_ring(self, server: ReportServer) -> None:
        """Takes all of a name or nothing."""
        with ReportClient(server.path, 256) as client:
            server.close()
            client.report(report_array(255, pid=client.pid))
            assert not client.name(0, 10, "a name of more than twenty bytes")
            assert (257, 2) == (client.sent, client.dropped)
            assert client.name(0, 10, "short")

    @needs_compiler
    @needs_root("other users")
    def test_of_other_users(self, server: ReportServer, program: Path) -> None:
        """They name only what they may report on; a limit holds for them, and reports still come."""
        with Reporter(program, server.path, 4096, user=OTHER) as reporter:
            assert 1 == reporter.ask("name", reporter.pid, 0x1000, 0x1000, "own\x1b[m area")
            assert 1 == reporter.ask("name", os.getpid(), 0x1000, 0x1000, "not ours")
            assert eventually(lambda: ["own\x1b[m area"] == self.named(reporter.pid), "the name")
            assert eventually(lambda: 1 == server.counters().not_permitted, "the refusal")
            assert [] == self.named(os.getpid())
            for at in range(400):
                reporter.ask("name", reporter.pid, 0x10000 + at * 8192, 4096, f"area {at}")
            assert eventually(lambda: 402 == server.counters().received, "all names")
            assert 255 + 1 == len(self.named(reporter.pid))
            assert 400 - 255 == server.counters().names_refused
