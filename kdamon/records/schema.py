# SPDX-License-Identifier: GPL-2.0-only
"""The tables of a record, an SQLite file; docs/record.md describes each of them and their columns.

A reader accepts exactly these tables, so that the file of another user cannot put views, generated columns or triggers
in their place.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from kdamon.monitoring.snapshot import REGION
from kdamon.reports.groups import GROUP_REGION

__all__ = [
    "APPLICATION_ID",
    "CLOCKS",
    "GROUPS",
    "LATER_TABLES",
    "OPTIONAL",
    "PROCESS",
    "REGIONS",
    "SNAPSHOTS",
    "SUFFIX",
    "TABLES",
    "TIMES",
    "VERSION",
]

#: ``PRAGMA application_id``: "kdam".
APPLICATION_ID: Final = 0x6B64616D
#: ``PRAGMA user_version``: the version of this schema. More columns in chunks, or more tables, do not change it.
VERSION: Final = 1
#: The end of a record's file name.
SUFFIX: Final = ".kdamon"

#: The tables that each record has, by name.
TABLES: Final = {
    "run": "CREATE TABLE run (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    "clocks": "CREATE TABLE clocks (time INTEGER PRIMARY KEY, realtime INTEGER NOT NULL, boottime INTEGER NOT NULL)",
    "chunks": (
        "CREATE TABLE chunks (id INTEGER PRIMARY KEY, began INTEGER NOT NULL, ended INTEGER NOT NULL, "
        "snapshots INTEGER NOT NULL)"
    ),
    "columns": (
        "CREATE TABLE columns (chunk INTEGER NOT NULL, name TEXT NOT NULL, type TEXT NOT NULL, rows INTEGER NOT NULL, "
        "data BLOB NOT NULL, PRIMARY KEY (chunk, name))"
    ),
    "mappings": (
        "CREATE TABLE mappings (id INTEGER PRIMARY KEY, start_address INTEGER NOT NULL, "
        "end_address INTEGER NOT NULL, permissions TEXT NOT NULL, offset INTEGER NOT NULL, "
        "inode INTEGER NOT NULL, name BLOB NOT NULL, appeared INTEGER NOT NULL, last_seen INTEGER)"
    ),
    "names": (
        "CREATE TABLE names (id INTEGER PRIMARY KEY, time INTEGER NOT NULL, first_name INTEGER NOT NULL, "
        "names BLOB NOT NULL, gone BLOB NOT NULL, new BLOB NOT NULL)"
    ),
    "threads": (
        "CREATE TABLE threads (id INTEGER PRIMARY KEY, time INTEGER NOT NULL, tid INTEGER NOT NULL, name BLOB NOT NULL)"
    ),
    "process": (
        "CREATE TABLE process (time INTEGER PRIMARY KEY, rss_anon INTEGER, rss_file INTEGER, rss_shmem INTEGER, "
        "swap INTEGER, minor_faults INTEGER, major_faults INTEGER, cpu_us INTEGER, threads INTEGER, "
        "stalled_some_us INTEGER, stalled_full_us INTEGER)"
    ),
    "counters": "CREATE TABLE counters (time INTEGER PRIMARY KEY, data TEXT NOT NULL)",
}
#: Tables that older records have not.
LATER_TABLES: Final = {
    "resident": (
        "CREATE TABLE resident (time INTEGER PRIMARY KEY, anon INTEGER, file INTEGER, swapped INTEGER) WITHOUT ROWID"
    ),
    "windows": (
        "CREATE TABLE windows (time INTEGER NOT NULL, seconds REAL NOT NULL, accessed INTEGER NOT NULL, "
        "low INTEGER NOT NULL, high INTEGER NOT NULL, unknown INTEGER NOT NULL, idle INTEGER NOT NULL, "
        "idle_anon INTEGER NOT NULL, idle_file INTEGER NOT NULL, pages INTEGER NOT NULL, "
        "PRIMARY KEY (time, seconds)) WITHOUT ROWID"
    ),
    "looks": (
        "CREATE TABLE looks (id INTEGER PRIMARY KEY, began INTEGER NOT NULL, seconds REAL NOT NULL, "
        "bytes INTEGER NOT NULL, pages INTEGER NOT NULL, data BLOB NOT NULL)"
    ),
    "residency": (
        "CREATE TABLE residency (id INTEGER PRIMARY KEY, time INTEGER NOT NULL, gone BLOB, new BLOB NOT NULL)"
    ),
}

#: The columns of snapshots in a chunk: begin and end of sampling in nanoseconds of CLOCK_MONOTONIC, of how many
#: aggregations it is the mean, its rows of regions and of groups (-1: accesses were not grouped), and the aggregation
#: interval in microseconds (0: that of the configuration).
SNAPSHOTS: Final = np.dtype(
    [
        ("began", "<i8"),
        ("time", "<i8"),
        ("merged", "<u4"),
        ("regions", "<i8"),
        ("groups", "<i8"),
        ("aggr_us", "<i8"),
    ]
)
#: The columns of regions that snapshots have, and those of groups.
REGIONS: Final = REGION
#: Columns that chunks may lack: their values say nothing there, or an older kdamon wrote them.
OPTIONAL: Final = frozenset({"snapshots.aggr_us", "regions.mean_accesses"})
GROUPS: Final = GROUP_REGION

#: A row for each snapshot: CLOCK_MONOTONIC seconds of begin and end, and the number of its regions.
TIMES: Final = np.dtype([("began", "<f8"), ("time", "<f8"), ("nr_regions", "<i8")])
#: A row for each second of the process, NaN where unknown: CLOCK_MONOTONIC seconds; resident and swapped bytes; page
#: faults, microseconds of CPU time; threads; and how long tasks of the machine stalled for memory, microseconds since
#: boot (PSI).
PROCESS: Final = np.dtype(
    [
        (name, "<f8")
        for name in (
            "time",
            "rss_anon",
            "rss_file",
            "rss_shmem",
            "swap",
            "minor_faults",
            "major_faults",
            "cpu_us",
            "threads",
            "stalled_some_us",
            "stalled_full_us",
        )
    ]
)
#: A row for each reading of the clocks, nanoseconds of CLOCK_MONOTONIC, CLOCK_REALTIME and CLOCK_BOOTTIME.
CLOCKS: Final = np.dtype([("time", "<i8"), ("realtime", "<i8"), ("boottime", "<i8")])
