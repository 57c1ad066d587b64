# SPDX-License-Identifier: GPL-2.0-only
"""The tree has exactly the files that Linux 7.2 and 7.3 listed, and those that other versions are known to have."""

from __future__ import annotations

import csv
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kdamon_fs.sysfs import damon_sysfs_init

DATA = Path(__file__).parent / "data"
TOP = "/sys/kernel/mm/damon"
CONTEXT = "/admin/kdamonds/0/contexts/0"
SCHEME = f"{CONTEXT}/schemes/0"

Entry = tuple[str, str, str, str, str]

#: Directories and how many of each the listing has, parents first.
FULL = {
    "monitoring_attrs/probes": ("nr_probes", 2),
    "monitoring_attrs/probes/{}/filters": ("nr_filters", 2),
    "targets": ("nr_targets", 2),
    "targets/{}/regions": ("nr_regions", 2),
    "schemes": ("nr_schemes", 2),
    "schemes/{}/core_filters": ("nr_filters", 2),
    "schemes/{}/ops_filters": ("nr_filters", 2),
    "schemes/{}/filters": ("nr_filters", 2),
    "schemes/{}/dests": ("nr_dests", 2),
    "schemes/{}/quotas/goals": ("nr_goals", 2),
}


def walk(tree: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every path from ``path`` on with what stat() says."""
    found = tree.getattr(path)
    yield path, found
    if stat.S_ISDIR(found["st_mode"]):
        for name in tree.listdir(path):
            yield from walk(tree, f"{path.rstrip('/')}/{name}")


def listed(tree: Any, path: str) -> dict[str, Entry]:
    """The tree as the columns of the measured listing: type, mode, size, links, content."""
    entries = {}
    for name, found in walk(tree, path):
        mode = found["st_mode"]
        directory = stat.S_ISDIR(mode)
        content = "" if directory else tree.read(name).decode().replace("\n", "\\n")
        kind = "d" if directory else "f"
        permissions = f"{stat.S_IMODE(mode):04o}"
        entries[name] = (kind, permissions, str(found["st_size"]), str(found["st_nlink"]), content)
    return entries


def measured(name: str) -> dict[str, Entry]:
    """The listing ``name``, the kernel's version and what the tree had."""
    with (DATA / f"tree-{name}.tsv").open() as lines:
        rows = [row for row in csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE) if row[0].startswith("/")]
    entries = {}
    for path, kind, mode, owner, size, nlink, content in rows:
        assert "0:0" == owner
        entries[path.removeprefix(TOP) or "/"] = (kind, mode, size, nlink, content)
    return entries


def grow(session: Any, kdamonds: int, contexts: int) -> None:
    session.put("/admin/kdamonds/nr_kdamonds", kdamonds)
    if kdamonds:
        session.put("/admin/kdamonds/0/contexts/nr_contexts", contexts)


def grow_all(session: Any) -> None:
    """Two of everything."""
    grow(session, 1, 1)
    for pattern, (nr_file, number) in FULL.items():
        for place in range(2) if "{}" in pattern else (0,):
            directory = f"{CONTEXT}/{pattern.format(place)}"
            if session.read(f"{directory}/{nr_file}") != "<ENOENT>":
                session.put(f"{directory}/{nr_file}", number)


@pytest.mark.parametrize(
    ("name", "top", "kdamonds", "contexts"),
    [("empty", "/", 0, 0), ("1kdamond-0context", "/admin", 1, 0), ("1kdamond-1context", "/admin", 1, 1)],
)
def test_a_growing_tree_is_the_kernels(session: Any, name: str, top: str, kdamonds: int, contexts: int) -> None:
    """Paths, types, modes, sizes, link counts and contents agree both ways."""
    grow(session, kdamonds, contexts)
    assert listed(session.tree, top) == measured(f"7.3-{name}")


@pytest.mark.parametrize("abi", ["7.2", "7.3"])
def test_a_tree_with_two_of_everything_is_the_kernels(make_session: Callable[..., Any], abi: str) -> None:
    """Paths, types, modes, sizes, link counts and contents agree both ways."""
    session = make_session(abi)
    grow_all(session)
    assert listed(session.tree, "/admin") == measured(f"{abi}-full")


OWN_FILES = {"sample", "sz_unknown"}


def test_the_default_has_the_files_of_linux_7_3_and_own_ones(session: Any) -> None:
    """Without a version: all that was measured, as it was; besides, in places that are named, nothing but own files."""
    session.tree.shutdown()
    session.tree = damon_sysfs_init(session.machine)
    grow_all(session)
    found, expected = listed(session.tree, "/admin"), measured("7.3-full")
    # Another directory is another link to the one that it is in.
    attrs = f"{CONTEXT}/monitoring_attrs"
    kind, mode, size, links, content = expected[attrs]
    expected[attrs] = (kind, mode, size, str(int(links) + 1), content)
    operations = f"{CONTEXT}/avail_operations"
    expected[operations] = (*expected[operations][:4], "vaddr\\nfvaddr\\npaddr\\nreports\\n")
    assert {path: found[path] for path in expected} == expected
    assert all(OWN_FILES & set(path.split("/")) for path in found.keys() - expected.keys())
    assert {name for name in OWN_FILES if any(f"/{name}" in path for path in found)} == OWN_FILES


NEWER_THAN = {
    "6.12": "allow",
    "6.13": "allow",
    "6.14": "intervals_goal core_filters ops_filters min max",
    "6.15": "nid",
    "6.16": "dests refresh_ms",
    "6.17": "addr_unit",
    "6.18": "obsolete_target path",
    "6.19": "nr_snapshots max_nr_snapshots",
    "7.0": "goal_tuner",
    "7.1": "pause probes fail_charge_num fail_charge_denom",
    "7.2": "weight",
    "7.3": "preps min max complement",
    "7.4": "sample sz_unknown",
}


@pytest.mark.parametrize(("older", "newer"), list(zip(list(NEWER_THAN), [*list(NEWER_THAN)[1:], "next"], strict=True)))
def test_each_version_adds_its_own_files_and_keeps_the_others(
    make_session: Callable[..., Any], older: str, newer: str
) -> None:
    """A version has all files of the one before it; every added path is one that came with the version."""
    trees = []
    for abi in (older, newer):
        session = make_session(abi)
        grow_all(session)
        trees.append({path for path, _ in walk(session.tree, "/")})
    assert trees[0] <= trees[1]
    came = set(NEWER_THAN[older].split()) | {"sz_ops_filter_passed"}
    assert all(came & set(path.split("/")) for path in trees[1] - trees[0])
    assert bool(trees[1] - trees[0]) == (older != "6.12")


def test_an_unknown_version_is_refused_with_those_that_are_known(make_session: Callable[..., Any]) -> None:
    """The sentence lists what could have been asked for."""
    with pytest.raises(OSError, match=r"'5\.4' are not known; known are 6\.12, .*, 7\.3"):
        make_session("5.4")


def test_tried_regions_of_old_versions_have_no_filtered_size(make_session: Callable[..., Any]) -> None:
    """sz_filter_passed came with 6.14."""
    names = []
    for abi in ("6.12", "6.14"):
        session = make_session(abi)
        session.monitor()
        assert "OK" == session.state("on")
        assert "OK" == session.state("update_schemes_tried_regions")
        names.append(set(session.tree.listdir(f"{SCHEME}/tried_regions/0")))
        session.tree.shutdown()
    assert [
        {"start", "end", "nr_accesses", "age"},
        {"start", "end", "nr_accesses", "age", "sz_filter_passed"},
    ] == names


def test_inode_numbers_are_unique_and_the_same_in_listings(session: Any) -> None:
    """readdir() and stat() agree, and no two paths share a number."""
    grow_all(session)
    numbers = [found["st_ino"] for _, found in walk(session.tree, "/")]
    assert len(numbers) == len(set(numbers))
    for path, found in walk(session.tree, "/"):
        if stat.S_ISDIR(found["st_mode"]):
            for name, mode, ino in session.tree.readdir(path):
                child = session.tree.getattr(f"{path.rstrip('/')}/{name}")
                assert (child["st_mode"], child["st_ino"]) == (mode, ino)
