# SPDX-License-Identifier: GPL-2.0-only
"""The modules' parameters: as Linux 7.3 listed them, as it answered to writes, and where a shell finds them.

data/modules-7.3.tsv is a part of what was measured: rows in between are missing, so what a file says after a write that
was refused has to be what it said before, not what the table has. Enabling takes processes to be named here: process
150 is, everywhere.
"""

from __future__ import annotations

import csv
import os
import random
import re
import signal
import stat
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kdamon.kernel import ULONG_MAX
from kdamon.mm.linux.machine import linux_machine
from kdamon.modules_common import DamonModule
from kdamon_fs.abi import ABI_VERSIONS, known_since
from tests.support.capabilities import needs_damo, needs_dev_fuse, needs_root, skip_because
from tests.support.paths import PYTHONPATH

HERE = Path(__file__).parent
DAMO = Path(sys.executable).parent / "damo"
MODULES = ("damon_stat", "damon_reclaim", "damon_lru_sort")

#: kdamon's own parameters, in every module.
OWN = {"monitor_pids": "\\n", "monitor_cgroup": "\\n"}
#: And those that show memory of which most samples are unknown, each in one module.
UNKNOWN = (
    "damon_stat/unknown_mem_bp",
    "damon_reclaim/bytes_reclaim_unknown_regions",
    "damon_lru_sort/bytes_lru_sort_unknown_cold_regions",
)


class Row(NamedTuple):
    """A line of the table: the parameter, the text written, the answer, and the text read afterwards."""

    module: str
    parameter: str
    written: str
    result: str
    back: str
    section: str

    @property
    def data(self) -> str:
        """What was written."""
        return self.written.encode("latin-1").decode("unicode_escape")

    @property
    def content(self) -> str:
        """What the file said."""
        return self.back.split(" ")[0].replace("\\n", "\n")


def _rows(name: str) -> Iterator[list[str]]:
    with (HERE / "data" / name).open() as lines:
        yield from (row for row in csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE) if row[0][:1] == "/")


def _read() -> list[Row]:
    rows = []
    for path, written, result, back, section, _milliseconds in _rows("modules-7.3.tsv"):
        _, _sys, _module, module, _parameters, parameter = path.split("/")
        if written != "(read)":
            rows.append(Row(module, parameter, written, result, back, section))
    return rows


ROWS = _read()


def rows_of(pattern: str) -> list[Row]:
    """The rows of the sections whose names match, in the table's order."""
    return [row for row in ROWS if re.fullmatch(pattern, row.section)]


def path_of(module: str, parameter: str) -> str:
    """Where a parameter is in the tree."""
    return f"/module/{module}/parameters/{parameter}"


def modules_of(session: Any) -> dict[str, DamonModule]:
    """The modules by their names."""
    return {module.name: module for module in session.tree.modules.modules}


def set_up(session: Any, module: str, on: bool) -> None:
    """Name a process, and enable or disable the module; watermarks that keep it from working are looked at often."""
    session.put(path_of(module, "monitor_pids"), 150)
    if module != "damon_stat":
        session.put(path_of(module, "wmarks_interval"), 1000)
    session.put(path_of(module, "enabled"), "Y" if on else "N")


def check(session: Any, row: Row, count: Callable[[Row], None]) -> None:
    """Write as the row says; the answer has to be the kernel's."""
    path = path_of(row.module, row.parameter)
    before = session.read(path)
    result = session.write(path, row.data)
    assert result == row.result, row
    after = session.read(path)
    assert after == (row.content if result == "OK" and row.data else before), row
    if "enabled=" in row.back:
        enabled = session.read(path_of(row.module, "enabled"))
        pid = int(session.read(path_of(row.module, "kdamond_pid")))
        assert f"enabled={enabled.strip()} " in row.back, row
        assert (pid == -1) == row.back.endswith("pid=-1"), row
    count(row)


@pytest.fixture
def count(rows: Counter[str]) -> Callable[[Row], None]:
    """Counts a row as replayed."""

    def add(_row: Row) -> None:
        rows["rows about modules agree"] += 1

    return add


# Which files there are.


def listed(session: Any) -> dict[str, tuple[str, str]]:
    """Permissions and content of every parameter by its path in the kernel."""
    entries = {}
    for module in session.tree.listdir("/module"):
        for name in session.tree.listdir(f"/module/{module}/parameters"):
            path = path_of(module, name)
            mode = session.tree.getattr(path)["st_mode"]
            assert stat.S_ISREG(mode)
            entries["/sys" + path] = (f"{stat.S_IMODE(mode):04o}", session.read(path).replace("\n", "\\n"))
    return entries


def test_parameters_are_those_of_linux(session: Any) -> None:
    """With their modes and defaults; and two more, which say what to monitor."""
    measured = {path: (mode, content) for path, mode, content in _rows("module-params-7.3.tsv")}
    for path, (mode, content) in measured.items():
        if content.endswith("bytes)"):
            measured[path] = (mode, ",".join(["0"] * 101) + "\\n")
    for module in MODULES:
        for name, content in OWN.items():
            measured[f"/sys{path_of(module, name)}"] = ("0600", content)
    assert listed(session) == measured


@pytest.mark.parametrize(
    ("since", "paths"),
    [
        ("6.17", {"damon_stat/enabled", "damon_stat/memory_idle_ms_percentiles"}),
        ("6.18", {"damon_stat/aggr_interval_us", "damon_reclaim/addr_unit", "damon_lru_sort/addr_unit"}),
        ("7.0", {"damon_lru_sort/active_mem_bp", "damon_lru_sort/autotune_monitoring_intervals"}),
        ("7.0", {"damon_lru_sort/filter_young_pages"}),
        ("7.2", {"damon_stat/kdamond_pid", "damon_reclaim/autotune_monitoring_intervals"}),
        ("kdamon", set(UNKNOWN)),
    ],
)
def test_older_kernels_have_fewer(make_session: Callable[..., Any], since: str, paths: set[str]) -> None:
    """What came with a version is there from that on."""
    for version in ABI_VERSIONS:
        there = {path.removeprefix("/sys/module/").replace("/parameters", "") for path in listed(make_session(version))}
        assert (paths <= there) if since in known_since(version) else not paths & there


def test_the_kernels_own_place_of_the_tree_has_no_modules(session: Any) -> None:
    """They are there, but not listed without list_modules()."""
    assert ["admin"] == session.tree.listdir("/")
    assert session.tree.listdir("/module") == list(MODULES)
    session.tree.list_modules()
    assert ["admin", "module"] == session.tree.listdir("/")
    assert 4 == session.tree.getattr("/")["st_nlink"]


# What Linux answered.


def test_values_while_a_module_is_off(session: Any, count: Callable[[Row], None]) -> None:
    """Every type takes and refuses what the kernel's does, and shows it the same way; damon_reclaim had run before."""
    set_up(session, "damon_reclaim", on=True)
    session.put(path_of("damon_reclaim", "enabled"), "N")
    for row in rows_of("module/off(, then enable)?"):
        check(session, row, count)


def test_enabled(session: Any, count: Callable[[Row], None]) -> None:
    """Words that enable and disable; what is so already is no error."""
    for row in rows_of("module/(enabled|all off)"):
        set_up(session, row.module, on=False)
        check(session, row, count)
        check(session, row, lambda _row: None)
        session.put(path_of(row.module, "enabled"), "N")


@pytest.mark.parametrize("row", rows_of("module/(enable with|disable after) .*"), ids=lambda row: row.section)
def test_enabling_and_disabling_with_a_parameter(session: Any, row: Row, count: Callable[[Row], None]) -> None:
    """The section's name says which; what cannot be is refused when it is to be used."""
    parameter, _, value = row.section.split(" ")[-1].partition("=")
    set_up(session, row.module, on=False)
    session.write(path_of(row.module, parameter), value)
    if "disable" in row.section:
        session.write(path_of(row.module, "enabled"), "Y")
    check(session, row, count)


def test_values_while_a_module_is_on(make_session: Callable[..., Any], count: Callable[[Row], None]) -> None:
    """They are taken, and have no effect before they are committed."""
    for row in rows_of("module/(running|running commit_inputs|default wmarks_interval)"):
        session = make_session()
        set_up(session, row.module, on=row.parameter != "enabled")
        check(session, row, count)
        session.tree.shutdown()


@pytest.mark.parametrize("row", rows_of("module/running commit_inputs with .*"), ids=lambda row: row.section)
def test_committing_a_parameter(session: Any, row: Row, count: Callable[[Row], None]) -> None:
    """What cannot be is refused, and can be taken back."""
    path = path_of(row.module, row.section.split(" ")[3].partition("=")[0])
    value = row.section.partition("=")[2]
    set_up(session, row.module, on=True)
    before = session.read(path)
    restored = row.section.endswith(" restored")
    session.write(path, "12345" if restored else value)
    if restored:
        session.write(path_of(row.module, "commit_inputs"), "Y")
        session.put(path, before)
    check(session, row, count)


def test_only_one_module_at_a_time(session: Any, count: Callable[[Row], None]) -> None:
    """A second one is refused, which does not end the first."""
    for row in rows_of("module/.* running, second module"):
        first = row.section.partition("/")[2].split(" ")[0]
        set_up(session, row.module, on=False)
        set_up(session, first, on=True)
        check(session, row, count)
        assert "Y\n" == session.read(path_of(first, "enabled"))
        session.put(path_of(first, "enabled"), "N")


def test_no_module_while_the_tree_monitors(session: Any, count: Callable[[Row], None]) -> None:
    """And nothing through the tree while a module does."""
    session.monitor()
    session.put("/admin/kdamonds/0/state", "on")
    for row in rows_of("module/.* while sysfs runs"):
        session.put(path_of(row.module, "monitor_pids"), 150)
        check(session, row, count)
    session.put("/admin/kdamonds/0/state", "off")
    set_up(session, "damon_lru_sort", on=True)
    assert "EBUSY" == session.state("on")
    assert "off\n" == session.read("/admin/kdamonds/0/state")
    session.put(path_of("damon_lru_sort", "enabled"), "N")
    assert "OK" == session.state("on")


def test_a_module_from_on_to_off(session: Any, count: Callable[[Row], None]) -> None:
    """Enabled twice, beside another one, with parameters that cannot be committed, and disabled twice."""
    session.put(path_of("damon_lru_sort", "monitor_pids"), 150)
    set_up(session, "damon_reclaim", on=True)
    for row in rows_of(FROM_ON_TO_OFF):
        check(session, row, count)
    assert "N\n" == session.read(path_of("damon_reclaim", "enabled"))


FROM_ON_TO_OFF = "DAMON_RECLAIM running|reclaim (on again|running|off|off again)"


def test_every_row_is_replayed_somewhere() -> None:
    """But for what the measured machine's memory looked like."""
    replayed = (
        f"{FROM_ON_TO_OFF}|"
        "module/(off(, then enable)?|enabled|all off|(enable with|disable after) .*|running|.* while sysfs runs"
        "|running commit_inputs( with .*)?|default wmarks_interval|.* running, second module)"
    )
    left = {row.section for row in ROWS if not re.fullmatch(replayed, row.section)}
    assert {"damon_stat values"} == left


# Kdamon's own.


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize(
    ("written", "answer", "back"),
    [
        ("150\n", "OK", "150\n"),
        ("150,1,0x8d", "OK", "150,1,141\n"),
        ("\n", "OK", "\n"),
        ("0", "EINVAL", None),
        ("-1", "EINVAL", None),
        ("150,", "EINVAL", None),
        ("150 1", "EINVAL", None),
        ("all", "EINVAL", None),
        ("4294967296", "ERANGE", None),
    ],
)
def test_processes_to_monitor(session: Any, module: str, written: str, answer: str, back: str | None) -> None:
    """A list of numbers, which replaces the one before; none at all is a list too."""
    path = path_of(module, "monitor_pids")
    session.put(path, 141)
    assert session.write(path, written) == answer
    assert session.read(path) == (back or "141\n")


@pytest.mark.parametrize("module", MODULES)
def test_nothing_happens_without_a_named_scope(session: Any, module: str, caplog: pytest.LogCaptureFixture) -> None:
    """The default is to refuse, and the log says what is missing."""
    assert "EINVAL" == session.write(path_of(module, "enabled"), "Y")
    assert "N\n" == session.read(path_of(module, "enabled"))
    assert f"{module}: enabled: nothing to monitor: name processes in monitor_pids" in caplog.text


def test_a_control_group_is_a_scope(session: Any) -> None:
    """Its path is taken as it is."""
    session.machine.cgroups["/my service"] = (150,)
    for module in MODULES:
        path = path_of(module, "monitor_cgroup")
        session.put(path, "/my service\n")
        assert "/my service\n" == session.read(path)
        session.put(path_of(module, "enabled"), "Y")
        session.put(path_of(module, "enabled"), "N")


def test_a_control_group_that_does_not_exist_is_refused(session: Any, caplog: pytest.LogCaptureFixture) -> None:
    """At once, with the reason in the log: the group before it stays. One that ends later is refused by ``enabled``."""
    session.machine.cgroups["/service"] = (150,)
    for module in MODULES:
        path = path_of(module, "monitor_cgroup")
        session.machine.cgroups["/service"] = (150,)
        session.put(path, "/service\n")
        assert "EINVAL" == session.write(path, "/nowhere\n")
        assert "/service\n" == session.read(path)
        assert "monitor_cgroup: there is no control group '/nowhere'" in caplog.text
        del session.machine.cgroups["/service"]
        assert "EINVAL" == session.write(path_of(module, "enabled"), "Y")
        session.put(path, "\n")
        assert "\n" == session.read(path)


def test_commits_to_a_module_that_was_never_or_is_not_enabled(session: Any) -> None:
    """The two differ; a word that means neither yes nor no is refused in both."""
    for module in MODULES[1:]:
        path = path_of(module, "commit_inputs")
        assert "EINVAL" == session.write(path, "Y")
        set_up(session, module, on=True)
        session.put(path, "Y")
        session.put(path_of(module, "enabled"), "N")
        assert "ECANCELED" == session.write(path, "Y")
        assert "EINVAL" == session.write(path, "x")
        assert "OK" == session.write(path, "N")


def test_statistics_are_of_the_last_sampling_interval(session: Any) -> None:
    """Under their own names, and they stay after the module was disabled."""
    modules = modules_of(session)
    reclaim, lru_sort = modules["damon_reclaim"], modules["damon_lru_sort"]
    for stats in (reclaim.stat, lru_sort.hot_stat, lru_sort.cold_stat):  # type: ignore[attr-defined]
        stats.nr_tried, stats.sz_tried, stats.nr_applied, stats.sz_applied, stats.qt_exceeds = 1, 2, 3, ULONG_MAX, 5
    shown = {
        ("damon_reclaim", "reclaim_tried_regions", "reclaimed_regions", "quota_exceeds"),
        ("damon_lru_sort", "lru_sort_tried_hot_regions", "lru_sorted_hot_regions", "hot_quota_exceeds"),
        ("damon_lru_sort", "lru_sort_tried_cold_regions", "lru_sorted_cold_regions", "cold_quota_exceeds"),
    }
    for module, tried, applied, exceeds in shown:
        names = (f"nr_{tried}", f"bytes_{tried}", f"nr_{applied}", f"bytes_{applied}", f"nr_{exceeds}")
        values = [int(session.read(path_of(module, name))) for name in names]
        assert [1, 2, 3, ULONG_MAX, 5] == values


def test_the_end_of_the_tree_is_the_end_of_its_modules(session: Any) -> None:
    """No other can be enabled."""
    set_up(session, "damon_stat", on=True)
    session.tree.shutdown()
    assert "N\n" == session.read(path_of("damon_stat", "enabled"))
    session.put(path_of("damon_reclaim", "monitor_pids"), 150)
    assert "ESHUTDOWN" == session.write(path_of("damon_reclaim", "enabled"), "Y")


#: What two shells write at the same time, mostly what makes sense.
WRITES = {
    "monitor_pids": ("150", "150,141", "", "7"),
    "monitor_cgroup": ("/my service", "", "/nowhere"),
    "sample_interval": ("1000", "5000", "0"),
    "aggr_interval": ("5000", "20000", "100000"),
    "min_nr_regions": ("3", "10", "2"),
    "max_nr_regions": ("3", "100", "1000"),
    "quota_ms": ("0", "1", "10", str(ULONG_MAX)),
    "quota_sz": ("0", "4096", str(ULONG_MAX)),
    "quota_reset_interval_ms": ("0", "100", str(ULONG_MAX)),
    "quota_autotune_feedback": ("0", "1", "20000"),
    "quota_mem_pressure_us": ("0", "1000"),
    "active_mem_bp": ("0", "7000", "10000", "10001"),
    "min_age": ("0", "10000", str(ULONG_MAX)),
    "cold_min_age": ("0", "10000", str(ULONG_MAX)),
    "wmarks_interval": ("1000", "20000"),
    "wmarks_high": ("500", "100"),
    "monitor_region_end": ("0", str(1 << 47)),
    "autotune_monitoring_intervals": ("Y", "N"),
    "skip_anon": ("Y", "N"),
    "filter_young_pages": ("Y", "N"),
    "commit_inputs": ("Y", "Y", "N"),
    "enabled": ("Y", "Y", "Y", "N"),
}


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_two_shells_at_once(session: Any, seed: int) -> None:
    """Whatever they write, the answers are those that there are, and no kdamond ends by an error."""
    session.machine.cgroups["/my service"] = (1, 141)
    for module in MODULES:
        set_up(session, module, on=False)
    answers: Counter[str] = Counter()

    def shell(number: int) -> None:
        draw = random.Random(10 * seed + number)
        for _ in range(1000):
            module = draw.choice(MODULES)
            names = [name for name in session.tree.listdir(f"/module/{module}/parameters") if name in WRITES]
            parameter = draw.choice(names + 2 * [name for name in names if name in ("enabled", "commit_inputs")])
            answers[session.write(path_of(module, parameter), draw.choice(WRITES[parameter]))] += 1

    shells = [threading.Thread(target=shell, args=(number,)) for number in range(2)]
    for one in shells:
        one.start()
    for one in shells:
        one.join()
    assert set(answers) <= {"OK", "EINVAL", "EBUSY", "ECANCELED"}
    assert answers["OK"] > answers.total() // 2
    on = [name for name in MODULES if session.read(path_of(name, "enabled")) == "Y\n"]
    assert len(on) <= 1
    for name, module in modules_of(session).items():
        assert (int(session.read(path_of(name, "kdamond_pid"))) > 0) == (name in on)
        assert module.ctx is None or module.ctx.kdamond_error is None


# A shell.


#: A process that maps a file of 16 MiB, reads the first half of it over and over and says so; it ends by itself.
COLD_HALF = """
import mmap, os, sys, time
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.write(fd, os.urandom(4096) * 4096)
os.fsync(fd)
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
memory = mmap.mmap(fd, 16 << 20, prot=mmap.PROT_READ)
total = sum(memory[at] for at in range(0, 16 << 20, 4096))
print(os.getpid(), flush=True)
end = time.monotonic() + 120
while time.monotonic() < end:
    for at in range(0, 8 << 20, 4096):
        memory[at]
"""

#: What a client has to make sure of before it writes anything.
MADE_SURE = "grep -q '^kdamon /sys/module/damon_reclaim fuse.kdamon ' /proc/mounts || exit 99\n"

#: The kernel's own test of the module, with the processes named; then a wait for the cold half to go.
RECLAIM = """
cd /sys/module/damon_reclaim/parameters
rss() { awk '/^[0-9a-f]+-/ {on = /cold-half/} on && /^Rss:/ {sum += $2} END {print sum + 0}' /proc/$1/smaps; }
echo Y 2>/dev/null > enabled && echo "enabled without processes"
cat kdamond_pid
echo $1 > monitor_pids
for setting in min_age=1000000 wmarks_high=1000 wmarks_mid=999 wmarks_low=0; do
    echo ${setting#*=} > ${setting%%=*}
done
echo Y > enabled || exit 1
[ $(cat kdamond_pid) -gt 0 ] && [ $(cat enabled) = Y ] && echo running
[ "$(cat /proc/*/task/$(cat kdamond_pid)/comm | sort -u)" = kdamond.0 ] && echo "a kdamond"
echo Y 2>/dev/null > ../../damon_stat/parameters/enabled && echo "two modules"
tries=0
until [ $(rss $1) -lt 9500 ]; do
    tries=$((tries + 1)); [ $tries -gt 600 ] && echo "still $(rss $1) kB" && exit 1
    sleep 0.1
done
[ $(rss $1) -gt 7500 ] && echo "the cold half is gone"
until [ $(cat bytes_reclaimed_regions) -ge 4194304 ]; do
    tries=$((tries + 1)); [ $tries -gt 600 ] && echo "$(cat bytes_reclaimed_regions) bytes" && exit 1
    sleep 0.1
done
echo Y > commit_inputs && cat commit_inputs
echo N > enabled
cat kdamond_pid enabled
"""

#: damo's commands for the modules, after the processes are named.
DAMO_MODULES = """
damo=$1
for module in damon_reclaim damon_lru_sort; do echo $2 > /sys/module/$module/parameters/monitor_pids; done
$damo reclaim enable --min_age 5000000 --quota 5 8388608 1000 --wmarks 1000 999 998 0
$damo reclaim status | grep -E '^(enabled|min_age|quota_sz|wmarks_mid):'
$damo reclaim commit --min_age 7000000 --quota 5 8388608 1000 --wmarks 1000 999 998 0
$damo reclaim status | grep '^min_age:'
$damo reclaim disable
$damo lru_sort enable
$damo reclaim status | grep '^enabled:'
$damo lru_sort status | grep '^enabled:'
$damo lru_sort disable
$damo lru_sort status | grep '^enabled:'
"""


@pytest.fixture
def cold_half(tmp_path: Path) -> Iterator[int]:
    """A process with a cold half."""
    command = [sys.executable, "-c", COLD_HALF, str(tmp_path / "cold-half")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        process.kill()


def kdamon(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Run kdamon's command."""
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    command = [sys.executable, "-m", "kdamon_tools", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen(command, text=True, env=environment, **pipes)


def outside() -> tuple[list[bytes], list[str]]:
    """What must not change: the mounts below /sys, and the machine's own modules."""
    mounts = [line for line in Path("/proc/self/mountinfo").read_bytes().splitlines() if b" /sys" in line]
    return mounts, sorted(os.listdir("/sys/module"))


@pytest.fixture(scope="module", name="_page_table")
def _needs_page_table() -> None:
    """Accessed bits have to be readable."""
    try:
        linux_machine().close()
    except OSError as error:
        skip_because(error)


@pytest.mark.usefixtures("_page_table")
@needs_dev_fuse
@needs_root("mounting in these tests needs root")
class TestShell:
    """The parameters in the file system, and a real process."""

    @pytest.mark.real
    def test_reclaim_where_the_kernel_has_it(self, cold_half: int) -> None:
        """A process in kdamon exec shrinks by its cold half; no other process sees the modules."""
        before = outside()
        process = kdamon("exec", "--no-reports", "--", "sh", "-c", MADE_SURE + RECLAIM, "sh", str(cold_half))
        said, complained = process.communicate(timeout=120)
        assert ["-1", "running", "a kdamond", "the cold half is gone", "N", "-1", "N", ""] == said.split("\n"), (
            complained
        )
        assert 0 == process.returncode
        assert outside() == before

    @pytest.mark.real
    @needs_damo
    def test_damo_knows_them(self, cold_half: int) -> None:
        """Its commands work as they are."""
        process = kdamon(
            "exec", "--no-reports", "--", "sh", "-ec", MADE_SURE + DAMO_MODULES, "sh", str(DAMO), str(cold_half)
        )
        said, complained = process.communicate(timeout=120)
        assert 0 == process.returncode, complained
        enabled = ["enabled: Y", "min_age: 5000000", "quota_sz: 8388608", "wmarks_mid: 998"]
        assert said.splitlines() == [*enabled, "min_age: 7000000", "enabled: N", "enabled: Y", "enabled: N"]

    @pytest.mark.real
    def test_other_modules_stay_where_they_are(self) -> None:
        """And nothing of kdamon's is left to a process that outlives the command."""
        before = outside()
        script = f"{MADE_SURE} ls /sys/module /sys/kernel/mm/damon; sleep 600 > /dev/null 2>&1 & echo $!"
        process = kdamon("exec", "--no-reports", "--", "sh", "-c", script)
        said, _ = process.communicate(timeout=60)
        *names, pid = said.split()
        try:
            assert {*before[1], *MODULES, "admin"} <= set(names)
            assert b"kdamon /sys/" not in Path(f"/proc/{pid}/mounts").read_bytes()
        finally:
            os.kill(int(pid), signal.SIGKILL)
        assert outside() == before

    @pytest.mark.real
    def test_a_directory_of_ones_own(self, tmp_path: Path, cold_half: int) -> None:
        """kdamon mount shows them beside the tree."""
        top = tmp_path / "damon"
        top.mkdir()
        server = kdamon("mount", "--no-reports", str(top))
        try:
            assert server.stderr is not None
            assert "the tree is at" in server.stderr.readline()
            assert ["admin", "module"] == sorted(os.listdir(top))
            parameters = top / "module/damon_stat/parameters"
            (parameters / "monitor_pids").write_text(f"{cold_half}\n")
            (parameters / "enabled").write_text("Y\n")
            assert int((parameters / "kdamond_pid").read_text()) > 0
            assert 100 == (parameters / "memory_idle_ms_percentiles").read_text().count(",")
        finally:
            server.terminate()
            server.communicate(timeout=30)
        assert [] == os.listdir(top)
