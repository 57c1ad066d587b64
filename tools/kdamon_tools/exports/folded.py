# SPDX-License-Identifier: GPL-2.0-only
"""Folded stacks, which flamegraph.pl and speedscope show: a line for each part of memory, with its bytes."""

from __future__ import annotations

from kdamon.records.values import Run
from kdamon_tools.exports import Write
from kdamon_tools.exports.heats import HEAT, HeatSum, split_name
from kdamon_tools.output.readable import readable
from kdamon_tools.recorded.selection import Selection

__all__ = ["export", "process_text"]


def export(selection: Selection, write: Write) -> list[str]:
    """Write ``process;mapping;section;hot bytes``: bytes are the mean over the time that was sampled."""
    total = HeatSum()
    total.add(selection)
    process = _frame(process_text(selection.record.run))
    for name, byte_seconds in sorted(total.byte_seconds.items()):
        mapping = ";".join(map(_frame, split_name(name)))
        for heat, value in zip(HEAT, byte_seconds.tolist(), strict=True):
            if size := round(value / total.seconds) if total.seconds else 0:
                write(f"{process};{mapping};{heat} {size}\n".encode("utf-8", "backslashreplace"))
    return []


def process_text(run: Run) -> str:
    """The process of a record, or the memory that it is of."""
    if run.config.ops == "paddr":
        return "physical memory"
    return readable(f"{run.name or 'process'} {run.pid}")


def _frame(text: str) -> str:
    """A name that holds no separator."""
    return text.replace(";", ":")
