# SPDX-License-Identifier: GPL-2.0-only
"""The C header says what Python says, compiles everywhere, and the examples of the documentation run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from kdamon.producers import ring as report_ring
from kdamon.producers.server import ReportServer
from kdamon.reports.record import REPORT_DTYPE
from tests.support.capabilities import needs_compiler, needs_program
from tests.support.paths import ROOT
from tests.support.reporter import INCLUDE, compile_c
from tests.support.waiting import eventually

pytestmark = pytest.mark.real


DOCUMENT = ROOT / "docs/reports.md"

LAYOUT = """
#include "kdamon_report.h"
#define RECORD(field) printf("record %s %zu\\n", #field, offsetof(struct kdamon_report_record, field))
#define HEADER(field) printf("header %s %zu\\n", #field, offsetof(struct kdamon_report_header, field))
int main(void)
{
	RECORD(pid); RECORD(addr); RECORD(size); RECORD(nr_accesses);
	RECORD(node_id); RECORD(write); RECORD(cpu); RECORD(tid);
	HEADER(magic); HEADER(version); HEADER(header_size); HEADER(record_size); HEADER(capacity);
	HEADER(head); HEADER(sent); HEADER(dropped); HEADER(tail); HEADER(closed);
	printf("size record %zu\\n", sizeof(struct kdamon_report_record));
	printf("size hello %zu\\n", sizeof(struct kdamon_report_hello));
	printf("size reply %zu\\n", sizeof(struct kdamon_report_reply));
	printf("value magic %llu\\n", (unsigned long long)KDAMON_REPORT_MAGIC);
	printf("value version %d\\n", KDAMON_REPORT_VERSION);
	printf("value header_size %d\\n", KDAMON_REPORT_HEADER);
	return 0;
}
"""


def document(language: str) -> str:
    """The documentation's example in ``language``."""
    [example] = re.findall(rf"```{language}\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    return str(example)


def test_c_and_python_have_one_layout(tmp_path: Path) -> None:
    (tmp_path / "layout.c").write_text(LAYOUT)
    program = compile_c(tmp_path / "layout.c", tmp_path / "layout")
    lines = subprocess.check_output([program], text=True).splitlines()
    said = {(kind, name): int(value) for kind, name, value in (line.split() for line in lines)}
    assert REPORT_DTYPE.fields is not None
    assert {name: offset for name, (_, offset, *_) in REPORT_DTYPE.fields.items()} == {
        name: value for (kind, name), value in said.items() if kind == "record"
    }
    words = {"capacity": "CAPACITY", "head": "HEAD", "sent": "SENT", "dropped": "DROPPED", "tail": "TAIL"}
    words["closed"] = "CLOSED"
    header = {"magic": 0, "version": 8, "header_size": 12, "record_size": 16}
    header |= {name: 8 * getattr(report_ring, constant) for name, constant in words.items()}
    assert header == {name: value for (kind, name), value in said.items() if kind == "header"}
    sizes = {"record": REPORT_DTYPE.itemsize, "hello": report_ring.HELLO.size, "reply": report_ring.REPLY.size}
    assert sizes == {name: value for (kind, name), value in said.items() if kind == "size"}
    values = {"magic": report_ring.MAGIC, "version": report_ring.VERSION, "header_size": report_ring.HEADER_SIZE}
    assert values == {name: value for (kind, name), value in said.items() if kind == "value"}


def test_the_documented_layout_is_the_layout() -> None:
    """Both tables."""
    rows = re.findall(r"^\| (\d+) \| [ui]\d+ \| `(\w+)` \|", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    documented = {name: int(offset) for offset, name in rows}
    assert REPORT_DTYPE.fields is not None
    for name, (_, offset, *_) in REPORT_DTYPE.fields.items():
        assert offset == documented.pop(name)
    assert {
        "magic": 0, "version": 8, "header_size": 12, "record_size": 16, "capacity": 8 * report_ring.CAPACITY,
        "head": 8 * report_ring.HEAD, "sent": 8 * report_ring.SENT, "dropped": 8 * report_ring.DROPPED,
        "tail": 8 * report_ring.TAIL, "closed": 8 * report_ring.CLOSED,
    } == documented  # fmt: skip


@needs_compiler
@needs_program("c++", "g++")
@pytest.mark.parametrize("flags", [["-std=c99", "-D_GNU_SOURCE"], ["-std=c11", "-D_GNU_SOURCE"], ["c++"]])
def test_the_header_compiles(tmp_path: Path, flags: list[str]) -> None:
    """As C and C++, with every warning an error."""
    compiler = "c++" if flags == ["c++"] else "cc"
    source = tmp_path / ("program.cc" if compiler == "c++" else "program.c")
    source.write_text('#include "kdamon_report.h"\nint main(void) { return kdamon_report_open(NULL) != NULL; }\n')
    more = [] if compiler == "c++" else flags
    command = [compiler, "-Wall", "-Wextra", "-Werror", "-O2", *more, f"-I{INCLUDE}", "-fsyntax-only", source]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert 0 == result.returncode, result.stderr


def test_the_example_in_c_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It finds kdamon by the environment, and all of its reports arrive."""
    (tmp_path / "example.c").write_text(document("c"))
    program = compile_c(tmp_path / "example.c", tmp_path / "example")
    with ReportServer(tmp_path / "reports") as server:
        monkeypatch.setenv("KDAMON_REPORTS", str(server.path))
        assert "0 of 16384 reports found no room\n" == subprocess.check_output([program, "4"], text=True)
        eventually(lambda: server.counters().received == 16384, "all reports")
        eventually(lambda: server.counters().producers == 0, "the end of the producer")
    assert (0, 0) == (server.counters().malformed, server.counters().not_permitted)
    failed = subprocess.run([program], capture_output=True, text=True, check=False)
    assert (1, "example: no kdamon takes reports: No such file or directory\n") == (failed.returncode, failed.stderr)


def test_the_example_in_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ReportServer(tmp_path / "reports") as server:
        monkeypatch.setenv("KDAMON_REPORTS", str(server.path))
        said = subprocess.check_output([sys.executable, "-c", document("python")], text=True, cwd=ROOT)
        assert "1024 1024 0 True\n" == said
        eventually(lambda: server.counters().received == 1024, "all reports")
