# SPDX-License-Identifier: GPL-2.0-only
"""The rows of sections: which pages of a file's mappings belong to which of its sections."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from typing import Final

import numpy as np

from kdamon.arrays import Records
from kdamon.kernel import PAGE_SIZE
from kdamon.names.elf import Section, open_mapped, sections_of
from kdamon.names.mappings import MappedFile, NamedMappings
from kdamon.names.table import NAMED_RANGE, NO_OFFSET
from kdamon.names.texts import NameList, section_text

__all__ = ["SectionCache", "section_rows"]

#: Files whose sections are remembered, and files that one look reads.
_MOST_FILES: Final = 1024
_FILES_AT_ONCE: Final = 256
#: How often a section of a file is looked for in one of its mappings, in one table: hostile files have many of both.
_MOST_TRIES: Final = 1 << 17

#: Device, inode, time of change and size of a file.
_Key = tuple[int, int, int, int]


class _Known:
    """The sections of files, of all processes; for any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sections: dict[_Key, tuple[Section, ...]] = {}

    def of(self, fd: int) -> tuple[Section, ...]:
        """The sections of an open file."""
        status = os.fstat(fd)
        key = status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size
        with self._lock:
            found = self._sections.get(key)
        if found is None:
            found = sections_of(fd)
            with self._lock:
                while len(self._sections) >= _MOST_FILES:
                    del self._sections[next(iter(self._sections))]
                self._sections[key] = found
        return found


_known = _Known()


class SectionCache:
    """The sections of the files of one process.

    :param pid: the process.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._of_process: dict[tuple[bytes, bytes], tuple[bytes, tuple[Section, ...]]] = {}

    def look(self, files: dict[tuple[bytes, bytes], MappedFile]) -> dict[tuple[bytes, bytes], tuple[Section, ...]]:
        """The sections of those of ``files`` that have any; of many new files some are left to the next look."""
        known: dict[tuple[bytes, bytes], tuple[bytes, tuple[Section, ...]]] = {}
        opened = 0
        for key, file in files.items():
            before = self._of_process.get(key)
            if before is not None and before[0] == file.path:
                known[key] = before
            elif opened < _FILES_AT_ONCE:
                opened += 1
                known[key] = file.path, self._read(file)
                time.sleep(0)
        # Only those that are mapped now: the file of another time may have other sections.
        self._of_process = known
        return {key: found for key, (_, found) in known.items() if found}

    def _read(self, file: MappedFile) -> tuple[Section, ...]:
        fd = open_mapped(self._pid, file.range, file.path, file.inode)
        if fd is None:
            return ()
        try:
            return _known.of(fd)
        finally:
            os.close(fd)


def section_rows(
    mappings: NamedMappings, sections: dict[tuple[bytes, bytes], tuple[Section, ...]], names: NameList
) -> Records:
    """The rows of sections in ``mappings``: each page has the name of the section with most bytes in it.

    :param sections: of the files, by their keys in ``mappings.files``.
    :param names: takes the names.
    :returns: rows of :data:`kdamon.names.table.NAMED_RANGE`, ascending and disjoint, shape (n,).
    """
    rows: list[tuple[int, int, int, int]] = []
    tries = 0
    for key, of_file in sections.items():
        file = mappings.files[key]
        numbers = [names.number(section_text(file.name, section.name)) for section in of_file]
        for at in file.rows:
            tries += len(of_file)
            if tries > _MOST_TRIES:
                break
            rows += _of_mapping(mappings, at, of_file, numbers)
        time.sleep(0)
    found = np.array(rows, NAMED_RANGE)
    found = found[np.argsort(found["start"], kind="stable")]
    # What hostile headers say may overlap.
    disjoint = np.ones(len(found), np.bool_)
    disjoint[1:] = found["start"][1:] >= np.maximum.accumulate(found["end"])[:-1]
    return found[disjoint]


def _of_mapping(
    mappings: NamedMappings, at: int, sections: tuple[Section, ...], numbers: list[int]
) -> Iterable[tuple[int, int, int, int]]:
    start, end, offset, _ = mappings.rows[at].item()
    placed = [
        (max(section.offset, offset), min(section.offset + section.size, offset + end - start), number)
        for section, number in zip(sections, numbers, strict=True)
        if not section.empty
    ]
    placed = sorted(one for one in placed if one[0] < one[1])
    if not placed:
        return
    for first, last, number in _by_page(placed):
        yield start + first - offset, min(start + last - offset, end), NO_OFFSET, number
    # .bss goes on in the anonymous mapping that follows.
    if at + 1 < len(mappings.rows) and mappings.anonymous[at + 1]:
        after_start, after_end = mappings.rows[["start", "end"]][at + 1].item()
        bss_end, number = _end_of_bss(start - offset, offset, offset + end - start, sections, numbers)
        if after_start == end and bss_end > after_start:
            bss_end = min((bss_end + PAGE_SIZE - 1) // PAGE_SIZE * PAGE_SIZE, after_end)
            yield after_start, bss_end, NO_OFFSET, number


def _by_page(placed: list[tuple[int, int, int]]) -> Iterable[tuple[int, int, int]]:
    """Whole pages by the section with most bytes in each: first and last (exclusive) offset, and name."""
    best: dict[int, tuple[int, int]] = {}
    whole: list[tuple[int, int, int]] = []
    for first, last, number in placed:
        inner_first, inner_last = -(-first // PAGE_SIZE), last // PAGE_SIZE
        if inner_first < inner_last:
            whole.append((inner_first * PAGE_SIZE, inner_last * PAGE_SIZE, number))
        for page in {first // PAGE_SIZE, (last - 1) // PAGE_SIZE}:
            if inner_first <= page < inner_last:
                continue
            size = min(last, (page + 1) * PAGE_SIZE) - max(first, page * PAGE_SIZE)
            best[page] = max(best.get(page, (0, 0)), (size, number))
    covered = [(page * PAGE_SIZE, (page + 1) * PAGE_SIZE, number) for page, (_, number) in best.items()]
    return sorted(whole + covered)


def _end_of_bss(load: int, first: int, last: int, sections: tuple[Section, ...], numbers: list[int]) -> tuple[int, int]:
    """Where .bss ends in memory, and its name; 0 where it does not belong to this mapping.

    :param load: the address of the file's first byte, if all of it were mapped as this mapping is.
    :param first: the offset of the mapping in the file, and ``last`` that of its end.
    """
    end, number = 0, 0
    of_mapping = [s for s in sections if s.writable and not s.empty and first <= s.offset < last]
    if not of_mapping:
        return end, number
    anchor = max(of_mapping, key=lambda section: section.offset)
    for section, name in zip(sections, numbers, strict=True):
        if section.empty and section.writable and section.address >= anchor.address:
            there = load + anchor.offset + section.address - anchor.address + section.size
            if there > end:
                end, number = there, name
    return end, number
