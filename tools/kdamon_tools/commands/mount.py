# SPDX-License-Identifier: GPL-2.0-only
"""``kdamon mount``: the tree of ``/sys/kernel/mm/damon`` in a directory of one's own."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

from kdamon.mm.capabilities import MONITORING
from kdamon.mm.rights import missing_capability
from kdamon_fs.kobject import ABI_VERSIONS
from kdamon_tools.commands import add_verb, machine_when_needed
from kdamon_tools.commands.options import check_socket
from kdamon_tools.privileges import keep_only
from kdamon_tools.readable import readable
from kdamon_tools.serving import add_reports, serve_reports

if TYPE_CHECKING:
    from kdamon_tools.commands import Subparsers

__all__ = ["add_abi", "register", "run"]


def register(subparsers: Subparsers) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers, "mount", "serve the tree in a directory until interrupted or unmounted", "[OPTION...] DIRECTORY"
    )
    parser.add_argument(
        "directory",
        metavar="DIRECTORY",
        help="an existing directory; the tree is DIRECTORY/admin, the modules are in DIRECTORY/module",
    )
    add_abi(parser)
    add_reports(parser)
    parser.set_defaults(run=run)


def add_abi(parser: argparse.ArgumentParser) -> None:
    """Add the choice of the kernel version whose files the tree has."""
    parser.add_argument(
        "--abi",
        choices=ABI_VERSIONS,
        default=ABI_VERSIONS[-1],
        metavar="VERSION",
        help=f"hide files that came with kernels newer than this: {', '.join(ABI_VERSIONS)}",
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal comes or somebody unmounts it."""
    if not arguments.no_reports:
        check_socket(arguments.reports)
    # Without the right to mount, a set-user-ID program mounts and unmounts.
    keep_only(*MONITORING, new_privileges=bool(missing_capability("CAP_SYS_ADMIN")))
    from kdamon_fs.mount import mount_tree  # noqa: PLC0415 (needs more than the other verbs)
    from kdamon_fs.sysfs import damon_sysfs_init  # noqa: PLC0415

    def ready() -> None:
        serving.enter_context(serve_reports(arguments))
        print(f"kdamon: the tree is at {readable(arguments.directory)}/admin; Ctrl-C ends", file=sys.stderr, flush=True)

    tree = damon_sysfs_init(machine_when_needed, arguments.abi)
    tree.list_modules()
    with ExitStack() as serving:
        mount_tree(tree, arguments.directory, ready)
    return 0
