# SPDX-License-Identifier: GPL-2.0-only
"""Random sequences of writes keep the tree equal to a plain dictionary of what every file should say."""

from __future__ import annotations

import errno
import os
import stat
from typing import Any

import pytest
from hypothesis import assume
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kdamon.kstrtox import bitmap_list
from kdamon.mm.sim.machine import SimMachine
from kdamon_fs.kobject import OpenFile
from kdamon_fs.sysfs import damon_sysfs_init
from kdamon_fs.sysfs_sample import nr_cpu_ids
from tests.support.tables import effort

ULONG_MAX = (1 << 64) - 1
UINT_MAX = (1 << 32) - 1

#: What a directory has when it is new: files with their content, directories as dictionaries; ":nr_*" says what the
#: numbered directories are like, and the largest number that is taken.
Model = dict[str, Any]

REGION: Model = {"start": "0", "end": "0"}
RANGE: Model = {"min": "0", "max": "0"}
FILTER: Model = {
    "type": "anon",
    "matching": "N",
    "allow": "N",
    "memcg_path": "",
    "damon_target_idx": "0",
    **dict.fromkeys(("addr_start", "addr_end", "min", "max"), "0"),
}
GOAL: Model = {
    "target_metric": "user_input",
    **dict.fromkeys(("target_value", "current_value", "nid"), "0"),
    "path": "",
    "complement": "N",
}
DEST: Model = {"id": "0", "weight": "0"}
FILTERS: Model = {"nr_filters": "0", ":nr_filters": FILTER}
SCHEME: Model = {
    "action": "stat",
    "apply_interval_us": "0",
    "target_nid": "-1",
    "access_pattern": {"sz": RANGE, "nr_accesses": RANGE, "age": RANGE},
    "dests": {"nr_dests": "0", ":nr_dests": DEST},
    **dict.fromkeys(("filters", "core_filters", "ops_filters"), FILTERS),
    "quotas": {
        "ms": "0",
        "bytes": "0",
        "reset_interval_ms": "0",
        "effective_bytes": "0",
        "goal_tuner": "consist",
        "fail_charge_num": "0",
        "fail_charge_denom": "0",
        "goals": {"nr_goals": "0", ":nr_goals": GOAL},
        "weights": {"sz_permil": "0", "nr_accesses_permil": "0", "age_permil": "0"},
    },
    "watermarks": {"metric": "none", "interval_us": "0", "high": "0", "mid": "0", "low": "0"},
    "stats": {
        **dict.fromkeys(("nr_tried", "sz_tried", "nr_applied", "sz_applied", "sz_ops_filter_passed"), "0"),
        **dict.fromkeys(("qt_exceeds", "nr_snapshots", "max_nr_snapshots", "sz_unknown"), "0"),
    },
    "tried_regions": {"total_bytes": "0"},
}
TARGET: Model = {
    "pid_target": "0",
    "obsolete_target": "N",
    "regions": {"nr_regions": "0", ":nr_regions": REGION},
}
PROBE_FILTER: Model = {"type": "anon", "matching": "N", "allow": "N", "path": "", **RANGE}
PREP: Model = {"prep_action": "set_pgidle"}
SAMPLE_FILTER: Model = {"type": "cpumask", "matching": "N", "allow": "N", "cpumask": "", "tid_arr": ""}
REPORTS = ("accepted", "applied", "ineligible", "filtered", "straddling", "outside", "late", "dropped", "pending")
PROBE: Model = {
    "weight": "0",
    "preps": {"nr_preps": "0", ":nr_preps": PREP},
    "filters": {"nr_filters": "0", ":nr_filters": PROBE_FILTER},
}
CONTEXT: Model = {
    "operations": "vaddr",
    "addr_unit": "1",
    "pause": "N",
    "avail_operations": "vaddr\nfvaddr\npaddr\nreports",
    "monitoring_attrs": {
        "intervals": {
            "sample_us": "5000",
            "aggr_us": "100000",
            "update_us": "60000000",
            "intervals_goal": dict.fromkeys(("access_bp", "aggrs", "min_sample_us", "max_sample_us"), "0"),
        },
        "nr_regions": {"min": "10", "max": "1000"},
        "probes": {"nr_probes": "0", ":nr_probes": PROBE},
        "sample": {
            "density": "N",
            "primitives": {"page_table": "Y", "page_fault": "N"},
            "filters": {"nr_filters": "0", ":nr_filters": SAMPLE_FILTER},
            "reports": dict.fromkeys(REPORTS, "0"),
        },
    },
    "targets": {"nr_targets": "0", ":nr_targets": TARGET},
    "schemes": {"nr_schemes": "0", ":nr_schemes": SCHEME},
}
KDAMOND: Model = {
    "state": "off",
    "pid": "-1",
    "refresh_ms": "0",
    "contexts": {"nr_contexts": "0", ":nr_contexts": CONTEXT},
}
TOP: Model = {"admin": {"kdamonds": {"nr_kdamonds": "0", ":nr_kdamonds": KDAMOND}}}

LARGEST = {"nr_contexts": 1}
READ_ONLY = frozenset(
    [
        "pid",
        "avail_operations",
        "effective_bytes",
        "nr_tried",
        "sz_tried",
        "sz_unknown",
        "nr_applied",
        "sz_applied",
        "sz_ops_filter_passed",
        "qt_exceeds",
        "nr_snapshots",
        "total_bytes",
        *REPORTS,
    ]
)
BOOLEANS = frozenset(
    ["matching", "allow", "pause", "obsolete_target", "complement", "density", "page_table", "page_fault"]
)
LISTS = frozenset(["cpumask", "tid_arr"])
SIGNED = frozenset(["pid_target", "target_nid", "damon_target_idx", "nid"])
UINTS = frozenset(
    [
        "refresh_ms",
        "id",
        "weight",
        "sz_permil",
        "nr_accesses_permil",
        "age_permil",
        "fail_charge_num",
        "fail_charge_denom",
    ]
)
SQUASHED = frozenset(["pid_target", "ms", "bytes", "reset_interval_ms", "fail_charge_num", "fail_charge_denom"])
TEXTS = frozenset(("path", "memcg_path"))
WORDS = {
    "operations": ("vaddr", "fvaddr", "paddr", "reports"),
    "action": (
        "willneed",
        "cold",
        "pageout",
        "hugepage",
        "nohugepage",
        "collapse",
        "lru_prio",
        "lru_deprio",
        "migrate_hot",
        "migrate_cold",
        "stat",
    ),
    "goal_tuner": ("consist", "temporal"),
    "metric": ("none", "free_mem_rate"),
    "target_metric": (
        "user_input",
        "some_mem_psi_us",
        "node_mem_used_bp",
        "node_mem_free_bp",
        "node_memcg_used_bp",
        "node_memcg_free_bp",
        "active_mem_bp",
        "inactive_mem_bp",
        "node_eligible_mem_bp",
    ),
    "core_filters": ("addr", "target", "probe_hits_wsum"),
    "ops_filters": ("anon", "active", "memcg", "young", "hugepage_size", "unmapped"),
    "filters": ("anon", "active", "memcg", "young", "hugepage_size", "unmapped", "addr", "target", "probe_hits_wsum"),
    "probes": ("anon", "memcg", "pgidle_unset", "pgidle_set", "hugepage_size"),
    "prep_action": ("set_pgidle",),
    "sample": ("cpumask", "threads", "write"),
}


def fresh(model: Model) -> Model:
    """A copy that can be changed."""
    return {name: fresh(value) if isinstance(value, dict) else value for name, value in model.items()}


def files(model: Model, path: str = "") -> dict[str, Model]:
    """Every file's path with the directory that has it, in the model."""
    found = {}
    for name, value in model.items():
        if name.startswith(":"):
            continue
        if isinstance(value, dict):
            found.update(files(value, f"{path}/{name}"))
        else:
            found[f"{path}/{name}"] = model
    return found


def number_expected(name: str, value: int) -> int:
    """The errno of writing the number ``value`` to the file ``name``, 0 for none."""
    if name in SIGNED or name.startswith("nr_"):
        low, high = -(1 << 31), (1 << 31) - 1
    else:
        low, high = 0, UINT_MAX if name in UINTS else ULONG_MAX
    if low == 0 and value < 0:
        return errno.EINVAL
    if not low <= value <= high:
        return errno.EINVAL if name in SQUASHED else errno.ERANGE
    return errno.EINVAL if name == "addr_unit" and value == 0 else 0


class TreeMachine(RuleBasedStateMachine):
    """Writes to a tree without kdamonds running, and to its model."""

    def __init__(self) -> None:
        super().__init__()
        self.tree = damon_sysfs_init(SimMachine(), "next")
        self.model = fresh(TOP)
        self.opened: list[tuple[OpenFile, str, Model]] = []

    def store(self, path: str, data: str) -> int:
        """Write and return the errno, 0 for none."""
        try:
            assert self.tree.write(path, data.encode()) == len(data)
        except OSError as error:
            return error.errno or -1
        return 0

    def pick(self, data: st.DataObject, wanted: Any) -> tuple[str, Model]:
        """A file whose name is wanted, and its directory in the model."""
        candidates = {path: where for path, where in files(self.model).items() if wanted(path.rsplit("/", 1)[1])}
        assume(candidates)
        path = data.draw(st.sampled_from(sorted(candidates)))
        return path, candidates[path]

    @initialize(number=st.integers(1, 2))
    def grow(self, number: int) -> None:
        """Some of everything, so that no kind of file is rare."""
        while any(where[path.rsplit("/", 1)[1]] == "0" for path, where in self.numbers()):
            for path, where in self.numbers():
                name = path.rsplit("/", 1)[1]
                if where[name] == "0":
                    self.set_number(path, where, min(number, LARGEST.get(name, number)))

    def numbers(self) -> list[tuple[str, Model]]:
        """The files that hold numbers of directories."""
        found = files(self.model).items()
        return [(path, where) for path, where in found if f":{path.rsplit('/', 1)[1]}" in where]

    def set_number(self, path: str, where: Model, number: int) -> None:
        """Make ``number`` new directories."""
        assert 0 == self.store(path, str(number))
        name = path.rsplit("/", 1)[1]
        for old in [key for key in where if key.isdecimal()]:
            del where[old]
        where[name] = str(number)
        where.update({str(i): fresh(where[f":{name}"]) for i in range(number)})

    @rule(data=st.data(), number=st.integers(-1, 2))
    def resize(self, data: st.DataObject, number: int) -> None:
        """A nr_* file makes so many new directories, or refuses and leaves them."""
        path, where = data.draw(st.sampled_from(self.numbers()))
        if 0 <= number <= LARGEST.get(path.rsplit("/", 1)[1], 5):
            self.set_number(path, where, number)
        else:
            assert errno.EINVAL == self.store(path, str(number))

    @rule(
        data=st.data(),
        value=st.integers(-(1 << 31) - 1, ULONG_MAX + 1) | st.integers(-1, 9),
        form=st.sampled_from("dxo"),
    )
    def write_number(self, data: st.DataObject, value: int, form: str) -> None:
        """Numbers in any base, with and without newline, within and beyond the width of the file."""
        others = READ_ONLY | BOOLEANS | TEXTS | LISTS | WORDS.keys() | {"state", "type"}
        path, where = self.pick(data, lambda name: name not in others and not name.startswith("nr_"))
        name = path.rsplit("/", 1)[1]
        prefix = {"d": "", "x": "0x", "o": "0"}[form]
        text = ("-" if value < 0 else "") + prefix + format(abs(value), form) + data.draw(st.sampled_from(["", "\n"]))
        expected = number_expected(name, value)
        assert expected == self.store(path, text)
        if not expected:
            where[name] = str(value)

    @rule(data=st.data(), text=st.sampled_from(["Y", "n", "1\n", "on", "oFf", "true", "d", "?", "", "o", "2", " y"]))
    def write_boolean(self, data: st.DataObject, text: str) -> None:
        """The first character decides, or the first two."""
        path, where = self.pick(data, BOOLEANS.__contains__)
        known = {"Y": "Y", "n": "N", "1\n": "Y", "on": "Y", "oFf": "N", "true": "Y", "d": "N"}
        assert self.store(path, text) == (0 if text in known or not text else errno.EINVAL)
        if text in known:
            where[path.rsplit("/", 1)[1]] = known[text]

    @rule(data=st.data())
    def write_word(self, data: st.DataObject) -> None:
        """Only the words that the file's directory allows."""
        path, where = self.pick(data, lambda name: name in WORDS or name == "type")
        parts = path.split("/")
        above = {"probes", "sample"}.intersection(parts)
        kind = parts[-1] if parts[-1] != "type" else above.pop() if above else parts[-3]
        word = data.draw(
            st.sampled_from(sorted({word for words in WORDS.values() for word in words} | {"", "nothing"}))
        )
        refused = word not in WORDS[kind] and word != ""
        assert self.store(path, word) == (errno.EINVAL if refused else 0)
        if word and not refused:
            where[parts[-1]] = word

    @rule(data=st.data(), text=st.text(st.characters(codec="ascii", exclude_characters="\0"), max_size=20))
    def write_text(self, data: st.DataObject, text: str) -> None:
        """Paths are kept as they are."""
        path, where = self.pick(data, TEXTS.__contains__)
        assert 0 == self.store(path, text)
        if text:
            where[path.rsplit("/", 1)[1]] = text

    @rule(data=st.data(), first=st.integers(0, 6), more=st.integers(0, 6), form=st.sampled_from(["{}-{}", "{},{}"]))
    def write_list(self, data: st.DataObject, first: int, more: int, form: str) -> None:
        """Ranges and numbers: a set of CPUs that exist, any threads in the order in which they were written."""
        path, where = self.pick(data, LISTS.__contains__)
        name = path.rsplit("/", 1)[1]
        text = form.format(first, first + more) + data.draw(st.sampled_from(["", "\n"]))
        numbers = list(range(first, first + more + 1)) if "-" in form else [first, first + more]
        beyond = name == "cpumask" and numbers[-1] >= nr_cpu_ids()
        assert self.store(path, text) == (errno.ERANGE if beyond else 0)
        if name == "tid_arr":
            where[name] = ",".join(map(str, numbers))
        elif not beyond:
            where[name] = bitmap_list(tuple(sorted(set(numbers))))

    @rule(data=st.data())
    def write_read_only(self, data: st.DataObject) -> None:
        """What cannot be written cannot be opened for writing."""
        path, _ = self.pick(data, READ_ONLY.__contains__)
        assert errno.EACCES == self.store(path, "1")

    @rule(data=st.data())
    def open_one(self, data: st.DataObject) -> None:
        """Keep a file open."""
        path, where = self.pick(data, lambda name: name != "state")
        self.opened.append((self.tree.open(path, os.O_RDONLY), path, where))

    @precondition(lambda self: self.opened)
    @rule()
    def read_opened(self) -> None:
        """An open file says what the file says, or ENODEV once its directory is gone, also if there is a new one."""
        for file, path, where in self.opened:
            if files(self.model).get(path) is where:
                assert file.read(4096, 0).decode() == where[path.rsplit("/", 1)[1]] + "\n"
            else:
                with pytest.raises(OSError) as error:
                    file.read(4096, 0)
                assert errno.ENODEV == error.value.errno

    @invariant()
    def same(self) -> None:
        """Paths and contents are the model's."""
        self.compare("", self.model)

    def compare(self, path: str, model: Model) -> None:
        names = {name for name in model if not name.startswith(":")}
        assert set(self.tree.listdir(path or "/")) == names, path
        directories = sum(isinstance(model[name], dict) for name in names)
        assert self.tree.getattr(path or "/")["st_nlink"] == 2 + directories
        for name in names:
            below = f"{path}/{name}"
            if isinstance(model[name], dict):
                self.compare(below, model[name])
            else:
                assert self.tree.read(below).decode() == model[name] + "\n", below
                assert bool(self.tree.getattr(below)["st_mode"] & stat.S_IWUSR) == (name not in READ_ONLY)


TestTree = TreeMachine.TestCase
TestTree.settings = effort(50, stateful_step_count=25)
