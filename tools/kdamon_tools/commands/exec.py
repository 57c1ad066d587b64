# SPDX-License-Identifier: GPL-2.0-only
"""``kdamon exec``: run a DAMON client that finds the tree at the kernel's path."""

from __future__ import annotations

import argparse

from kdamon_tools.commands.common import check_fuse, check_socket, machine_when_needed
from kdamon_tools.errors import CommandError
from kdamon_tools.serving import find_reports, serve_reports

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    if not arguments.command:
        raise CommandError("the command is missing: kdamon exec -- COMMAND", 2)
    check_fuse()
    if not arguments.no_reports:
        check_socket(arguments.reports)
    from kdamon_fs.namespace import run_in_namespace  # noqa: PLC0415 (needs more than the other verbs)

    find_reports(arguments)
    return run_in_namespace(arguments.command, arguments.abi, machine_when_needed, serve_reports(arguments))
