# SPDX-License-Identifier: GPL-2.0-only
"""Sample control: access sources, and filters on reports (the series' third version, ``mm/damon/core.c``)."""

from __future__ import annotations

import errno

import numpy as np
from attrs import evolve

from kdamon.arrays import I32Array, Mask, Records
from kdamon.damon import damon_sample_control, damon_sample_filter, damon_sample_filter_type
from kdamon.lib.rights import needs_linux
from kdamon.mm import Machine, Primitive

__all__ = [
    "READS_UNSEEN",
    "check_attribution",
    "check_fault_filters",
    "check_reads",
    "damon_add_sample_filter",
    "damon_commit_sample_control",
    "damon_new_sample_filter",
    "damon_sample_filter_out",
    "only_threads",
    "sample_filter_matches",
    "sample_primitive",
]

#: Shown where figures of faults could be mistaken for those of all accesses.
READS_UNSEEN = "page_fault observes writes and first touches; other reads need Linux 7.3"


def damon_new_sample_filter(
    filter_type: damon_sample_filter_type,
    matching: bool,
    allow: bool,
    cpumask: tuple[int, ...] = (),
    tid_arr: tuple[int, ...] = (),
) -> damon_sample_filter:
    """A filter on reports, see :class:`kdamon.damon.damon_sample_filter`.

    :raises OSError: EINVAL a filter of threads names none.
    """
    # Deviation: docs/deviations.md#filters-of-threads-without-a-thread
    if filter_type is damon_sample_filter_type.DAMON_FILTER_TYPE_THREADS and not tid_arr:
        raise OSError(errno.EINVAL, "a sample filter of the type threads names no thread; write their ids to tid_arr")
    return damon_sample_filter(filter_type, matching, allow, cpumask, tid_arr)


def damon_add_sample_filter(control: damon_sample_control, f: damon_sample_filter) -> None:
    """Append ``f`` to the filters of ``control``."""
    control.sample_filters.append(f)


def damon_commit_sample_control(dst: damon_sample_control, src: damon_sample_control) -> None:
    """Make ``dst`` what ``src`` is; they share nothing afterwards."""
    dst.primitives_enabled = evolve(src.primitives_enabled)
    dst.sample_filters = [evolve(f) for f in src.sample_filters]


def sample_filter_matches(reports: Records, f: damon_sample_filter) -> Mask:
    """Return which ``reports``, shape (n,), the filter ``f`` matches.

    A report whose CPU or thread is unknown was made by none of those that a filter names.
    """
    # Deviation: docs/deviations.md#unknown-cpu-or-thread
    if f.type is damon_sample_filter_type.DAMON_FILTER_TYPE_WRITE:
        found = reports["write"]
    elif f.type is damon_sample_filter_type.DAMON_FILTER_TYPE_CPUMASK:
        found = _among(reports["cpu"], f.cpumask)
    else:
        found = _among(reports["tid"], tuple(tid for tid in f.tid_arr if tid > 0))
    return found == f.matching


def _among(column: I32Array, wanted: tuple[int, ...]) -> Mask:
    if len(wanted) == 1:
        return column == wanted[0]
    return np.isin(column, np.array(wanted, np.int64))


def damon_sample_filter_out(reports: Records, control: damon_sample_control) -> Mask:
    """Return which ``reports``, shape (n,), the filters of ``control`` discard.

    Every filter answers ``allow`` for what it matches and the opposite for the rest; the first rejection discards.
    """
    # Kernel: in the development tree a matching filter that allows does nothing, and the last filter's allow decides
    # about what no filter rejected: "allow writes" keeps reads. Here: as the series' documentation describes them,
    # because that is what its users build on. (docs/deviations.md#sample-filters-are-an-and-chain)
    out = np.zeros(len(reports), np.bool_)
    for f in control.sample_filters:
        out |= sample_filter_matches(reports, f) != f.allow
    return out


def sample_primitive(control: damon_sample_control) -> Primitive:
    """How the accesses to processes are to be observed so that those that ``control`` counts are (no kernel
    counterpart).

    Where reads fault, one that comes before a write to the same page takes the protection off, so that the write does
    not fault. So they must not where only writes count. A client may enable both primitives while it rewrites the
    tree: page_fault wins.
    """
    if not control.primitives_enabled.page_fault:
        return Primitive.PAGE_TABLE
    return Primitive.PAGE_FAULT_WRITES if _only_writes(control) else Primitive.PAGE_FAULT


def _only_writes(control: damon_sample_control) -> bool:
    """Whether a filter discards all reads."""
    write = damon_sample_filter_type.DAMON_FILTER_TYPE_WRITE
    return any(f.type is write and f.matching == f.allow for f in control.sample_filters)


def check_fault_filters(control: damon_sample_control, machine: Machine) -> None:
    """Refuse filters on properties that the faults of ``machine`` do not carry.

    :raises OSError: EOPNOTSUPP.
    """
    kinds = {f.type for f in control.sample_filters}
    if kinds - {damon_sample_filter_type.DAMON_FILTER_TYPE_WRITE} and not machine.attributes_faults:
        raise OSError(
            errno.EOPNOTSUPP,
            "this machine does not report which CPU or thread made a page fault, so filters of the types cpumask and "
            "threads would reject everything; kdamon doctor names the requirement",
        )
    if kinds and machine.faults_of_reads and not machine.attributes_faults and not _only_writes(control):
        raise OSError(
            errno.EOPNOTSUPP,
            "this machine does not report whether a page fault was a read or a write, so filters of the type write "
            "would take all for reads; kdamon doctor names the requirement",
        )


def check_attribution(machine: Machine) -> None:
    """Refuse to group accesses by CPU, thread or node where the faults of ``machine`` identify none.

    :raises OSError: EOPNOTSUPP.
    """
    if not machine.attributes_faults:
        raise OSError(
            errno.EOPNOTSUPP,
            "this machine does not report which CPU or thread made a page fault, so accesses cannot be grouped by "
            "them; kdamon doctor names the requirement",
        )


def check_reads(machine: Machine) -> None:
    """Refuse to count nothing but reads where the faults of ``machine`` do not show them.

    :raises OSError: EOPNOTSUPP.
    """
    if not machine.faults_of_reads:
        raise OSError(
            errno.EOPNOTSUPP,
            f"reads alone cannot be counted, because faults do not show reads of mapped memory here: "
            f"{needs_linux('7.3')}; page_table counts reads and writes together, and page_fault the writes",
        )


def only_threads(control: damon_sample_control) -> tuple[int, ...]:
    """The threads to which ``control`` limits accesses, in its order (no kernel counterpart)."""
    # A filter that rejects the accesses of threads loses nothing when these end.
    only = [f.tid_arr for f in control.sample_filters if f.tid_arr and f.matching == f.allow]
    return tuple(dict.fromkeys(tid for tids in only for tid in tids))
