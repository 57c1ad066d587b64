# SPDX-License-Identifier: GPL-2.0-only
"""The tests whose result depends on the kernel and its machine, a quarter of an hour on a machine of two CPUs."""

from __future__ import annotations

from typing import Final

__all__ = ["DEFAULT"]

#: Files of tests, and of each the tests; all where there are none.
_CHOSEN: Final[dict[str, list[str]]] = {
    # Faults on reads and writes: userfaultfd's two ways of protection.
    "tests/mm/sampling/test_read_faults.py": [],
    "tests/mm/sampling/test_uffd.py": [],
    "tests/mm/sampling/test_page_fault.py": [],
    "tests/mm/sampling/test_page_fault_safety.py": [],
    "tests/mm/sampling/test_fault_sample.py": [],
    "tests/tools/test_run_faults.py": [
        "test_only_writes_by_a_cpu_and_what_was_recorded_of_them",
        "test_reads_have_a_cpu_and_a_thread",
    ],
    # Exact working sets.
    "tests/mm/working_set/test_by_faults.py": [],
    "tests/mm/working_set/test_yardstick.py": [],
    # Swap.
    "tests/mm/actions/test_advice.py": [
        "test_memory_without_a_file_needs_swap",
        "test_swapped_memory_comes_back_unchanged",
        "test_it_is_told_for_each_range",
    ],
    # Two NUMA nodes.
    "tests/mm/actions/test_migrate.py": [
        "test_where_pages_are",
        "test_what_is_there_already_does_not_move",
        "test_pages_move_between_nodes_in_proportion",
    ],
    "tests/mm/sampling/test_physical.py": [
        "test_accesses_are_seen_by_physical_addresses",
        "test_what_is_known_of_all_memory_lies_on_the_nodes",
    ],
    # Page tables, of five levels on QEMU's CPU, and BPF programs that read them.
    "tests/mm/bpf/test_btf.py": [],
    "tests/mm/bpf/test_walker.py": [],
    "tests/mm/sampling/test_accesses.py": [
        "test_accesses_are_seen_and_none_is_invented",
        "test_huge_pages_stay_whole",
    ],
    # Huge pages.
    "tests/mm/actions/test_huge_pages.py": [
        "test_memory_becomes_huge_when_it_is_touched",
        "test_memory_stays_small_where_huge_pages_are_forbidden",
    ],
    # Control groups, stall times, and the kernel's own DAMON.
    "tests/mm/proc/test_metrics.py": ["test_metrics_are_what_the_kernels_files_say"],
    "tests/mm/sampling/test_probes.py": ["test_memory_control_groups", "test_sizes_of_folios"],
}

#: Arguments of pytest.
DEFAULT: Final = [f"{file}::{name}" if name else file for file, names in _CHOSEN.items() for name in names or [""]]
