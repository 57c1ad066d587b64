# SPDX-License-Identifier: GPL-2.0-only
"""A ring in shared memory: what is read is what was written, and nothing that a producer does leads out of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdamon.producers.ring import (
    CLOSED,
    DROPPED,
    HEAD,
    HEADER_SIZE,
    MAX_CPU,
    MAX_NODE,
    SENT,
    TAIL,
    ReportRing,
    map_ring,
    ring_size,
    well_formed,
)
from kdamon.reports.record import REPORT_DTYPE, report_array
from tests.support.tables import effort

SOAK = int(os.environ.get("KDAMON_SOAK", "0"))


class Producer:
    """The other end of ``ring``, free to write what it likes."""

    def __init__(self, ring: ReportRing) -> None:
        self.memory, self.words, self.opaque = map_ring(ring.fd, ring.capacity)
        self.records = self.opaque.view(REPORT_DTYPE)

    def put(self, first: int, n: int) -> None:
        """Write the reports number ``first`` to ``first + n - 1``, each with its number as its address."""
        at = np.arange(first, first + n) % len(self.records)
        self.records[at] = report_array(n, addr=np.arange(first, first + n))
        self.words[HEAD] = (first + n) % 2**64

    def close(self) -> None:
        del self.words, self.opaque, self.records
        self.memory.close()


@pytest.fixture(params=[True, False], ids=["mapped", "read"])
def ring(request: pytest.FixtureRequest) -> Iterator[ReportRing]:
    """Of a producer that is trusted, and of one that is not."""
    made = ReportRing(16, mapped=request.param)
    yield made
    made.close()


@pytest.fixture
def producer(ring: ReportRing) -> Iterator[Producer]:
    made = Producer(ring)
    yield made
    made.close()


def test_records_come_out_in_order_and_once(ring: ReportRing, producer: Producer) -> None:
    """Also around the ring's end, and in parts when there are more than wanted."""
    first, seen = 0, []
    for n in (1, 16, 0, 7, 16, 3, 16):
        producer.put(first, n)
        first += n
        seen += ring.drain(5)["addr"].tolist()
        seen += ring.drain(100)["addr"].tolist()
        assert first == int(producer.words[TAIL])
    assert list(range(first)) == seen
    assert 0 == ring.resyncs


def test_what_was_taken_out_is_a_copy(ring: ReportRing, producer: Producer) -> None:
    """A producer cannot change what was already judged."""
    producer.put(0, 4)
    taken = ring.drain(4)
    producer.memory[HEADER_SIZE:] = b"\xff" * (ring_size(16) - HEADER_SIZE)
    assert [0, 1, 2, 3] == taken["addr"].tolist()


def test_counters_that_wrap_around_are_fine(ring: ReportRing, producer: Producer) -> None:
    ring._tail = 2**64 - 3
    producer.records[:] = report_array(16, addr=np.arange(16))
    producer.words[HEAD] = 2
    assert [13, 14, 15, 0, 1] == ring.drain(10)["addr"].tolist()
    assert 2 == int(producer.words[TAIL])


@pytest.mark.parametrize("head", [17, 2**32, 2**63, 2**64 - 1])
def test_a_head_that_makes_no_sense_empties_the_ring(ring: ReportRing, producer: Producer, head: int) -> None:
    """Beyond the capacity or backwards; records after it are read again."""
    producer.words[HEAD] = head
    assert 0 == len(ring.drain(100))
    assert 1 == ring.resyncs
    assert head == int(producer.words[TAIL])
    assert 0 == len(ring.drain(100))
    assert 1 == ring.resyncs
    producer.words[HEAD] = (head + 3) % 2**64
    assert 3 == len(ring.drain(100))


def test_only_head_is_read(ring: ReportRing, producer: Producer) -> None:
    """The shared tail, the capacity, and all the rest of the header may say what they like."""
    producer.put(0, 5)
    keep = producer.words[HEAD].copy()
    producer.words[:] = 2**64 - 1
    producer.words[HEAD] = keep
    assert [0, 1, 2, 3, 4] == ring.drain(100)["addr"].tolist()


def test_the_memory_cannot_be_made_smaller(ring: ReportRing) -> None:
    """A process that reads memory after a file's end dies."""
    for size in (0, ring_size(16) - 1, ring_size(16) + 4096):
        with pytest.raises(PermissionError):
            os.ftruncate(ring.fd, size)


def test_what_a_producer_tells_is_told(ring: ReportRing, producer: Producer) -> None:
    producer.words[SENT], producer.words[DROPPED] = 12, 5
    assert (12, 5) == ring.claimed()


def test_the_end_is_told() -> None:
    ring = ReportRing(16, mapped=False)
    producer = Producer(ring)
    ring.close()
    assert producer.words[CLOSED]
    producer.put(0, 3)
    producer.close()


@pytest.mark.parametrize("capacity", [0, -1, 3, 1000])
def test_a_capacity_is_a_power_of_two(capacity: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        ReportRing(capacity, mapped=True)


# What can be a report.

I32_MIN, I32_MAX, U64_MAX = -(2**31), 2**31 - 1, 2**64 - 1


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("pid", [0, 1, I32_MAX], [-1, I32_MIN]),
        ("addr", [0, 1, U64_MAX], []),
        ("size", [1, 2, U64_MAX], [0]),
        ("nr_accesses", [1, I32_MAX], [0, -1, I32_MIN]),
        ("node_id", [-1, 0, MAX_NODE], [-2, MAX_NODE + 1, I32_MIN, I32_MAX]),
        ("cpu", [-1, 0, MAX_CPU], [-2, MAX_CPU + 1, I32_MIN, I32_MAX]),
        ("tid", [0, 1, I32_MAX], [-1, I32_MIN]),
        ("write", [0, 1], [2, 128, 255]),
    ],
)
def test_each_field_has_its_range(field: str, good: list[int], bad: list[int]) -> None:
    records = report_array(len(good) + len(bad) + 1)
    column = records[field].view(np.uint8) if field == "write" else records[field]
    column[1:] = good + bad
    mask, _ = well_formed(records)
    expected = [True] * (len(good) + 1) + [False] * len(bad)
    assert expected == (mask.tolist() if mask is not None else [True] * len(records))
    assert (mask is None) == (not bad)


@pytest.mark.parametrize(
    ("addr", "size", "fine"),
    [(U64_MAX, 1, True), (U64_MAX, 2, False), (1, U64_MAX, True), (2, U64_MAX, False), (2**63, 2**63, True)],
)
def test_a_range_must_not_wrap_around(addr: int, size: int, fine: bool) -> None:
    """Its last byte may be the last of all addresses."""
    assert fine == (well_formed(report_array(1, addr=addr, size=size))[0] is None)


def plain_judgement(row: tuple[int, ...], write: int) -> bool:
    pid, addr, size, nr_accesses, node_id, _, cpu, tid = row
    numbers = pid >= 0 and tid >= 0 and nr_accesses > 0 and -1 <= node_id <= MAX_NODE and -1 <= cpu <= MAX_CPU
    return numbers and size > 0 and addr + size <= 2**64 and write <= 1


@effort(100)
@given(st.binary(min_size=REPORT_DTYPE.itemsize, max_size=20 * REPORT_DTYPE.itemsize), st.data())
def test_judgement_of_random_bytes_equals_a_plain_one(content: bytes, data: st.DataObject) -> None:
    n = len(content) // REPORT_DTYPE.itemsize
    records = np.frombuffer(bytearray(content[: n * REPORT_DTYPE.itemsize]), REPORT_DTYPE)
    for name, value in (("pid", 7), ("size", 1), ("nr_accesses", 1), ("node_id", -1), ("cpu", -1), ("tid", 0)):
        if data.draw(st.booleans()):
            records[name] = value
    if data.draw(st.booleans()):
        records["write"] = False
    mask, _ = well_formed(records)
    writes = records["write"].view(np.uint8).tolist()
    expected = [plain_judgement(row, write) for row, write in zip(records.tolist(), writes, strict=True)]
    assert expected == (mask.tolist() if mask is not None else [True] * n)


# Hostile producers.


def test_a_head_without_records_allocates_nothing() -> None:
    """All records of a ring are read and found to be none, but their memory never exists: it would be ours."""
    ring = ReportRing(1 << 16, mapped=False)
    producer = Producer(ring)
    try:
        before = os.fstat(ring.fd).st_blocks
        for turn in (1, 2, 3):
            producer.words[HEAD] = turn * ring.capacity
            taken = 0
            while len(records := ring.drain(5000)):
                mask, _ = well_formed(records)
                assert mask is not None
                assert not mask.any()
                taken += len(records)
            assert ring.capacity == taken
        assert before == os.fstat(ring.fd).st_blocks
        producer.put(3 * ring.capacity, 2)
        assert [3 * ring.capacity, 3 * ring.capacity + 1] == ring.drain(5000)["addr"].tolist()
    finally:
        producer.close()
        ring.close()


@effort(60)
@given(st.integers(0, 2**32 - 1), st.integers(4, 10), st.booleans())
def test_random_memory_never_leads_out_of_the_ring(seed: int, order: int, mapped: bool) -> None:
    """Whatever the whole memory holds, at most a ring full comes out, and the ring works again afterwards."""
    rng = np.random.default_rng(seed)
    ring = ReportRing(1 << order, mapped=mapped)
    producer = Producer(ring)
    whole = np.frombuffer(producer.memory, np.uint8)
    try:
        for _ in range(5):
            whole[:] = rng.integers(0, 256, len(whole), np.uint8)
            if rng.random() < 0.7:
                producer.words[HEAD] = (ring._tail + int(rng.integers(0, 2 * ring.capacity))) % 2**64
            records = ring.drain(100)
            assert len(records) <= min(100, ring.capacity)
            well_formed(records)
        while len(ring.drain(100)):
            pass
        tail = ring._tail
        producer.records[:] = report_array(ring.capacity, addr=np.arange(ring.capacity))
        producer.words[HEAD] = (tail + 4) % 2**64
        assert 4 == len(ring.drain(100))
    finally:
        del whole
        producer.close()
        ring.close()


SCRIBBLE = """
import mmap, os, sys
size, seconds = int(sys.argv[2]), float(sys.argv[3])
memory = mmap.mmap(int(sys.argv[1]), size)
import random, time
end = time.monotonic() + seconds
print("begun", flush=True)
while time.monotonic() < end:
    memory[:] = random.randbytes(size)
    memory[128:136] = random.choice([random.randbytes(8), memory[256:264], random.randbytes(2) + bytes(6)])
"""


@pytest.mark.real
@pytest.mark.parametrize("mapped", [True, False])
def test_memory_that_changes_while_it_is_read(mapped: bool) -> None:
    """A process writes random bytes over all of it, all the time: nothing but copies within bounds comes out."""
    ring = ReportRing(1 << 10, mapped=mapped)
    seconds = str(SOAK or 1)
    command = [sys.executable, "-c", SCRIBBLE, str(ring.fd), str(ring_size(ring.capacity)), seconds]
    with subprocess.Popen(command, pass_fds=[ring.fd], stdout=subprocess.PIPE, text=True) as scribbler:
        assert scribbler.stdout is not None
        assert "begun\n" == scribbler.stdout.readline()
        taken = 0
        while scribbler.poll() is None:
            for _ in range(100):
                records = ring.drain(300)
                assert len(records) <= 300
                good, _ = well_formed(records)
                if good is not None:
                    for row in records[good].tolist():
                        assert plain_judgement(row, 0)
                taken += len(records)
            time.sleep(0)
        assert 0 == scribbler.returncode
    assert taken or ring.resyncs
    producer = Producer(ring)
    producer.words[HEAD] = ring._tail
    producer.records[:] = report_array(ring.capacity)
    producer.words[HEAD] = (ring._tail + 9) % 2**64
    assert 9 == len(ring.drain(300))
    producer.close()
    ring.close()
