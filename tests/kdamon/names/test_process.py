# SPDX-License-Identifier: GPL-2.0-only
"""The names of a real process, as its tables and the results of kdamon have them."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from attrs import frozen

import kdamon
from kdamon.mm.proc.process_files import birth_of
from kdamon.names.labels import Area, Labels
from kdamon.names.process import ProcessNames
from kdamon.names.table import NameTable
from tests.support.capabilities import needs_compiler, needs_root
from tests.support.cli import ENVIRONMENT, KDAMON
from tests.support.json_schemas import validate
from tests.support.paths import SUPPORT
from tests.support.reporter import compile_c
from tests.support.waiting import eventually

pytestmark = pytest.mark.real


@frozen
class Named:
    """A running ``named.c``.

    :ivar ranges: start and end of what it has, by kind; none of what this kernel lacks.
    """

    process: subprocess.Popen[str]
    ranges: dict[str, tuple[int, int]]


def ranges_of(lines: Iterator[str]) -> dict[str, tuple[int, int]]:
    """What the lines of the program say."""
    found = {}
    for kind, address, size in map(str.split, lines):
        if kind == "end":
            return found
        if address != "-":
            found[kind] = int(address), int(address) + int(size)
    raise AssertionError("the program ended")


@pytest.fixture(scope="module", name="program")
def _program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a name that moves a terminal's cursor, and a file with such a name beside it."""
    folder = tmp_path_factory.mktemp("named")
    program = compile_c(SUPPORT / "named.c", folder / "a\x1b[2J\u202eprogram", "-pthread")
    (folder / "a\ndata\tfile").write_bytes(bytes(2 << 20))
    return program


@pytest.fixture(name="named")
def _named(program: Path) -> Iterator[Named]:
    """The program, running, without a kdamon that takes names."""
    environment = ENVIRONMENT | {"KDAMON_REPORTS": "/nonexistent"}
    with subprocess.Popen(
        [program, program.parent / "a\ndata\tfile"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        yield Named(process, ranges_of(process.stdout))
        process.kill()


def table_of(names: ProcessNames, pid: int) -> NameTable:
    """The present names, once the thread that sleeps is known."""

    def known() -> bool:
        names.look(1)
        found = names.table()
        return found is not None and any("sleeper" in name for name in found.main(found.rows))

    assert eventually(known, f"a table of {pid}")
    found = names.table()
    assert found is not None
    return found


@needs_compiler
class TestTable:
    def test_everything_has_its_name(self, named: Named) -> None:
        """Sections, heap, stacks, files, anonymous memory."""
        with ProcessNames(named.process.pid) as names:
            found = table_of(names, named.process.pid)
        expected = {
            "data": "a\x1b[2J\u202eprogram .data",
            "bss": "a\x1b[2J\u202eprogram .bss",
            "rodata": "a\x1b[2J\u202eprogram .rodata",
            "heap": "[heap]",
            # The kernel writes a newline in a name so.
            "file": "a\\012data\tfile+0x2000",
        }
        assert expected == {kind: found.named([named.ranges[kind]])[0].removesuffix(" 100%") for kind in expected}
        assert found.named([named.ranges["anonymous"]])[0].startswith("[anon] below ")
        [stack] = found.named([named.ranges["stack"]])
        assert stack.startswith("[stack of ") and stack.endswith(" sleeper]")
        whole = set(found.main(found.rows))
        assert {"[stack]", "[vdso]", "libc.so.6 .text"} <= whole or "musl" in str(whole)

    def test_names_by_prctl(self, named: Named) -> None:
        """Where the kernel has them."""
        if "named" not in named.ranges:
            pytest.skip("kernel lacks: CONFIG_ANON_VMA_NAME")
        with ProcessNames(named.process.pid) as names:
            assert ["[anon: arena 7]"] == table_of(names, named.process.pid).named([named.ranges["named"]])

    def test_maps_are_what_they_are(self, named: Named) -> None:
        """Each mapping has a name, and nothing else has one."""
        with ProcessNames(named.process.pid) as names:
            found = table_of(names, named.process.pid)
        with open(f"/proc/{named.process.pid}/maps", encoding="utf-8", errors="surrogateescape", newline="\n") as maps:
            mapped = [tuple(int(each, 16) for each in line.split()[0].split("-")) for line in maps]
        mapped = [(start, end) for start, end in mapped if start < 1 << 63]
        parts = found.parts_of(np.array(mapped, np.uint64), most=1000)
        assert [end - start for start, end in mapped] == [sum(part.size for part in of) for of in parts]
        assert sum(end - start for start, end in mapped) == int((found.rows["end"] - found.rows["start"]).sum())

    def test_names_of_the_program_win(self, named: Named) -> None:
        """Over the mapping; the rest of it stays what it was. Later ones are seen, too."""
        start, end = named.ranges["anonymous"]
        labels, pid = Labels(), named.process.pid
        birth = birth_of(pid)
        labels.name(0, pid, birth, Area(start, start + (1 << 19), "pool", time.monotonic()))
        with ProcessNames(pid, labels=labels) as names:
            parts = table_of(names, pid).parts(start, end)
            assert {0.5} == {part.share for part in parts}
            assert ['"pool"', True] == [parts[1].name, parts[0].name.startswith("[anon] below ")]
            labels.name(0, pid, birth, Area(start, end, "all", time.monotonic()))

            def seen() -> bool:
                names.look(1)
                found = names.table()
                return found is not None and ['"all"'] == found.named([(start, end)])

            assert eventually(seen, "the later name")

    def test_an_unchanged_table_stays_the_same_object(self, named: Named) -> None:
        """So that nobody needs to compare them; and mappings that went have their last names in the whole."""
        with ProcessNames(named.process.pid) as names:
            first = table_of(names, named.process.pid)
            for _ in range(3):
                time.sleep(1.1)
                names.look(5)
            assert first is names.table()


def test_a_mapping_that_is_gone() -> None:
    """Is in the table of the whole run alone."""
    code = """
import mmap, sys
one = mmap.mmap(-1, 1 << 24)
print(flush=True)
sys.stdin.readline()
one.close()
print(flush=True)
sys.stdin.readline()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdout.readline()
        with ProcessNames(process.pid) as names:
            names.look(60)
            before = names.table()
            process.stdin.write("\n")
            process.stdin.flush()
            process.stdout.readline()

            def changed() -> bool:
                names.look(1)
                return names.table() is not before

            assert eventually(changed, "another table")
            after, whole = names.table(), names.whole()
            assert before is not None and after is not None and whole is not None
            of = [sum(int(row["end"] - row["start"]) for row in table.rows) for table in (before, after, whole)]
            assert of[0] - of[1] >= 1 << 24
            assert of[2] >= of[0]
            assert before.names == whole.names[: len(before.names)]
        process.kill()


def test_a_process_that_ended() -> None:
    """There is no such process; while it is being watched, the last names stay."""
    with subprocess.Popen([shutil.which("sleep") or "sleep", "100"]) as process, ProcessNames(process.pid) as names:
        names.look(60)
        before = names.table()
        process.kill()
        process.wait()
        time.sleep(0.3)
        names.look(60)
        assert before is names.table() is not None
        with pytest.raises(ProcessLookupError):
            ProcessNames(process.pid)
    with pytest.raises(ProcessLookupError):
        ProcessNames(os.getpid(), birth=1)


def test_many_mappings() -> None:
    """All have names, and it takes no interpreter for long: another thread runs all the time."""
    code = """
import mmap, sys
kept = [mmap.mmap(-1, 4096, prot=1 + n % 2 * 2) for n in range(20000)]
print(flush=True)
sys.stdin.readline()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with ProcessNames(process.pid) as names:
            names.look(120)
            found = names.table()
            assert found is not None
            with open(f"/proc/{process.pid}/maps", "rb") as maps:
                lines = maps.read().splitlines()
            assert len(lines) > 10000
            sizes = [
                int(end, 16) - int(start, 16) for start, end in (line.split()[0].split(b"-") for line in lines[:-1])
            ]
            assert sum(sizes) == int((found.rows["end"] - found.rows["start"]).sum())
        process.kill()


def test_a_monitor(tmp_path: Path) -> None:
    """kdamon.monitor() has the names of its process."""
    del tmp_path
    code = "x = bytearray(64 << 20)\nwhile True: x[::4096] = b'x' * len(x[::4096])"
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        try:
            with kdamon.monitor(pid=process.pid, sample_us=5000, aggr_us=100_000) as m:
                assert m.names(60) is not None
                found = []
                for snapshot in itertools.islice(m, 20):
                    names = m.names()
                    assert names is not None
                    hot = snapshot.regions["nr_accesses"] * 2 >= m.config.max_nr_accesses
                    found += names.main(snapshot.regions[hot])
            assert any(name.startswith("[anon]") for name in found)
            assert None is not m.names()
        finally:
            process.kill()


def test_a_monitor_of_no_process() -> None:
    """Has no names."""
    with kdamon.monitor(pid=7, ops="reports", ranges=[(0x1000, 0x9000)]) as m:
        assert None is m.names()


@needs_compiler
@needs_root("monitoring")
class TestRun:
    def test_json_and_names_of_the_program(self, program: Path) -> None:
        """By kdamon_name(), in the regions of kdamon run."""
        words = ["run", "--quiet", "--json", "--reports", "--seconds", "5", "--", str(program)]
        done = subprocess.run(
            [*KDAMON, *words, str(program.parent / "a\ndata\tfile")],
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            capture_output=True,
            check=True,
        )
        program_lines, _, rest = done.stdout.decode().partition("{")
        ranges = ranges_of(iter(program_lines.splitlines()))
        document = validate(json.loads("{" + rest), "kdamon.run")
        start, end = ranges["area"]
        inside = [
            region["name"]
            for snapshot in document["snapshots"][5:]
            for region in snapshot["regions"]
            if start <= region["start"] and region["end"] <= end
        ]
        assert inside
        assert {'"buffer \u202e\x1b[31mpool"'} == set(inside)

    def test_text_escapes_all_names(self, program: Path) -> None:
        """In the heatmap, at two widths; no line is wider."""
        for columns in ("80", "60"):
            words = ["run", "--quiet", "--reports", "--seconds", "4", "--", str(program)]
            done = subprocess.run(
                [*KDAMON, *words, str(program.parent / "a\ndata\tfile")],
                env=ENVIRONMENT | {"COLUMNS": columns},
                stdin=subprocess.PIPE,
                capture_output=True,
                check=True,
            )
            text = done.stdout.decode()
            text = text[text.index("end ") :]
            assert "[heap]" in text
            assert ".data" in text
            assert not {"\x1b", "\u202e", "\t", "\r"} & set(text)
            assert max(map(len, text.splitlines()[1:])) <= int(columns)
