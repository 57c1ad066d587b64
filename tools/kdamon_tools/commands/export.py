# SPDX-License-Identifier: GPL-2.0-only
"""``kdamon export``: write a record as a file of another tool."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final

import kdamon
from kdamon_tools.commands.common import STDOUT, check_files, refused
from kdamon_tools.errors import CommandError
from kdamon_tools.exports import Write
from kdamon_tools.output.progress import Progress
from kdamon_tools.output.readable import readable
from kdamon_tools.output.result import ResultFile
from kdamon_tools.recorded.selection import Selection, select

__all__ = ["run"]

#: Module and function of each form, and whether its files are text.
_FORMS: Final = {
    "damo": ("damo", "export", False),
    "json": ("lines", "export", True),
    "csv": ("table", "export_csv", True),
    "parquet": ("table", "export_parquet", False),
    "folded": ("folded", "export", True),
    "perfetto": ("perfetto", "export", True),
}


def run(arguments: argparse.Namespace) -> int:
    """Export, and return 0."""
    module, function, text = _FORMS[arguments.to]
    output = ("--output", arguments.output) if arguments.output is not None else ("standard output", STDOUT)
    check_files(("FILE", arguments.file), output)
    if not text and arguments.output is None and sys.stdout.isatty():
        raise CommandError("the result is not text: add -o FILE, or redirect standard output", 2)
    export: Callable[[Selection, Write], list[str]]
    export = getattr(importlib.import_module(f"kdamon_tools.exports.{module}"), function)
    name, progress = readable(str(arguments.file)), Progress()
    with ExitStack() as stack:
        record = stack.enter_context(kdamon.open(arguments.file))
        with refused("--output"):
            result = stack.enter_context(ResultFile(arguments.output))
        selection = select(record, arguments.time, arguments.ranges, lambda done: progress.show_share(done, name))
        try:
            sentences = export(selection, result.append_bytes)
        finally:
            progress.clear()
        result.commit()
    for sentence in sentences:
        print(f"kdamon: {sentence}", file=sys.stderr)
    return 0
