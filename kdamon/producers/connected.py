# SPDX-License-Identifier: GPL-2.0-only
"""The connected producers: the reports that each may send, and the counters of their fate."""

from __future__ import annotations

import logging
import os
import socket
import threading
from functools import partial

import numpy as np
import numpy.ma
from attrs import define, field, fields

from kdamon.arrays import I32Array, Records
from kdamon.producers.admission import Admission, User
from kdamon.producers.credentials import Rights
from kdamon.producers.naming import Named, Namer, split_names
from kdamon.producers.ring import ReportRing, well_formed
from kdamon.reports.deliver import report_accesses, reported_pids
from kdamon.reports.queue import ReportSource
from kdamon.reports.record import pick_reports, reports_about

__all__ = ["Producer", "ReportServerCounters"]

log = logging.getLogger("kdamon")


@define
class ReportServerCounters:
    """Counters of the reports that went through the rings.

    ``received == malformed + ineligible + not_permitted + names + names_refused`` + the reports that went on to the
    contexts, except for the first record of a name whose second one has not arrived. Once all rings
    are empty, ``sent == dropped + received``, if the producers' own counters are true.

    :ivar producers: how many are connected now.
    :ivar received: records taken out of rings.
    :ivar malformed: of these, records that cannot be a report (:func:`kdamon.producers.ring.well_formed`).
    :ivar ineligible: of these, about no target of any context that is being monitored.
    :ivar not_permitted: of these, about processes that the producer must not report on.
    :ivar names: of these, records that name memory, for which there was room.
    :ivar names_refused: of these, records that name memory, beyond what a process and a user may have.
    :ivar lost: reports that found no room in their producer's share on their way to a context, once for each context.
    :ivar resyncs: how often a ring's ``head`` made no sense and the ring was emptied.
    :ivar full: how often a ring was found full, so that its producer may have had no room for more.
    :ivar sent: what producers wanted to send. Root's, and those of kdamon's own user, say so; of others it is what was
        received, because they could claim anything.
    :ivar dropped: what found no room in the rings of those that are believed.
    """

    producers: int = 0
    received: int = 0
    malformed: int = 0
    ineligible: int = 0
    not_permitted: int = 0
    names: int = 0
    names_refused: int = 0
    lost: int = 0
    resyncs: int = 0
    full: int = 0
    sent: int = 0
    dropped: int = 0

    def add(self, part: ReportServerCounters) -> None:
        """Add other counters."""
        for counter in fields(ReportServerCounters):
            setattr(self, counter.name, getattr(self, counter.name) + getattr(part, counter.name))


@define(eq=False)
class Producer:
    """One connection, and the ring that it got after its hello.

    :ivar user: the account of its user, which it is connected to.
    :ivar pidfd: the process; belongs to this object.
    :ivar left: how many more records may come out of the ring of a producer that hung up; None while it did not.
    """

    connection: socket.socket
    pid: int
    gid: int
    pidfd: int
    user: User
    ring: ReportRing | None = None
    rights: Rights | None = None
    left: int | None = None
    counters: ReportServerCounters = field(factory=ReportServerCounters)
    source: ReportSource = field(factory=ReportSource)
    namer: Namer = field(init=False)

    @namer.default
    def _namer(self) -> Namer:
        return Namer(self.user.uid)

    @property
    def limited(self) -> bool:
        """Whether it has a ring, and is of a user that has no other means to harm this process."""
        return self.rights is not None and not self.rights.everything and self.user.limited

    def waiting(self) -> int:
        """How many records are in its ring."""
        return self.ring.waiting() if self.ring is not None else 0

    def open_ring(self, capacity: int, admission: Admission) -> ReportRing:
        """Make its ring, which is this object's and counts as soon as :attr:`ring` is set.

        :raises OSError: its user has too many; EPERM, ESRCH it is not the process that connected any more.
        """
        self.rights = Rights(self.pid, self.pidfd, self.user.uid, self.gid, self.user.known)
        self.source = ReportSource(self.user.uid if self.limited else None)
        admission.grant(self.user, capacity)
        try:
            return ReportRing(capacity, mapped=not self.user.limited)
        except BaseException:
            admission.take_back(self.user, capacity)
            raise

    def counted(self) -> ReportServerCounters:
        """The counters so far."""
        if self.ring is not None:
            self.counters.sent, self.counters.dropped = (
                (self.counters.received, 0) if self.user.limited else self.ring.claimed()
            )
            self.counters.resyncs, self.counters.full = self.ring.resyncs, self.ring.full
        return self.counters

    def drain(self, limit: int, share: int, users: int, lock: threading.Lock) -> int:
        """Pass on what the ring holds; returns how many records there were, at most ``limit``.

        :param share: it has one part in so many of its user's room for reports.
        :param users: how many users share the time for deciding about permissions.
        :param lock: protects the counters.
        """
        assert self.ring is not None and self.rights is not None
        records = self.ring.drain(limit)
        taken = len(records)
        if not taken:
            return 0
        records, about_names = split_names(records)
        named = Named() if about_names is None else self.namer.read(about_names, partial(self._may_report_on, users))
        reports = len(records)
        good, same = well_formed(records)
        if good is not None:
            records = pick_reports(records, good)
        correct = len(records)
        chosen = reported_pids()
        if correct and chosen is not None:
            # Before anything is asked about them: so nothing that is not monitored costs more than this.
            records = reports_about(records, _pids(records, same), chosen)
        eligible = len(records)
        if eligible and not self.rights.everything:
            records = _permitted(self.rights, records, _pids(records, same), users)
        self.source.share = share
        report_accesses(records, self.source, chosen)
        # Counted when all is done, and all at once: the counters always add up.
        with lock:
            self.counters.received += taken
            self.counters.malformed += reports - correct + named.malformed
            self.counters.ineligible += correct - eligible
            self.counters.not_permitted += eligible - len(records) + named.not_permitted
            self.counters.names += named.accepted
            self.counters.names_refused += named.refused
            self.counters.lost = self.source.lost
        if self.source.lost and not self.user.warned:
            self.user.warned = True
            log.warning(
                "process %d of user %d reports more than there is room for until the next sample; the surplus is lost",
                *(self.pid, self.user.uid),
            )
        return taken

    def _may_report_on(self, users: int, pid: int) -> bool:
        assert self.rights is not None
        return self.rights.everything or self.rights.permitted([pid], users)[0]

    def close(self, admission: Admission) -> None:
        """Free all but the connection."""
        self.source.close()
        capacity = 0
        if self.ring is not None:
            sent, dropped = self.ring.claimed()
            log.debug(
                "process %d of user %d says it sent %d reports, %d without room", self.pid, self.user.uid, sent, dropped
            )
            capacity = self.ring.capacity
            self.ring.close()
        os.close(self.pidfd)
        admission.disconnect(self.user, capacity)


def _pids(records: Records, same: bool) -> I32Array:
    """The process that each of ``records`` is about; one row if it is the ``same`` for all."""
    pids: I32Array = records["pid"]
    return pids[:1] if same else pids


def _permitted(rights: Rights, records: Records, pids: I32Array, users: int) -> Records:
    """The ``records`` (at least one) that a producer with ``rights`` may report."""
    if len(pids) == 1:
        return records if rights.permitted(pids.tolist(), users)[0] else records[:0]
    named, which = np.unique(pids, return_inverse=True)
    return pick_reports(records, np.array(rights.permitted(named.tolist(), users))[which])
