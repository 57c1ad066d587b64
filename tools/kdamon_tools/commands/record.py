# SPDX-License-Identifier: GPL-2.0-only
"""``kdamon record``: monitor as ``run`` does, and keep everything in a file."""

from __future__ import annotations

import argparse

from kdamon_tools.commands.run import monitor_and_show
from kdamon_tools.errors import CommandError
from kdamon_tools.run_record import RecordFile

__all__ = ["run"]

#: The shortest part of a run in seconds.
_SHORTEST_S = 1.0


def run(arguments: argparse.Namespace) -> int:
    """Record, and return the exit status: the command's if it ended by itself, else 0."""
    if arguments.keep is not None and arguments.split is None:
        raise CommandError("--keep removes files of a run that is split: add --split", 2)
    if arguments.split is not None and arguments.split < _SHORTEST_S:
        raise CommandError("--split is a second at least", 2)
    if arguments.split is not None and arguments.force:
        raise CommandError("the files of --split have new names: leave --force out", 2)
    path = None if arguments.record_file is None else str(arguments.record_file)
    return monitor_and_show(arguments, RecordFile(path, arguments.force, arguments.split, arguments.keep))
