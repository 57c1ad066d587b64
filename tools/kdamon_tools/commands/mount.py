# SPDX-License-Identifier: GPL-2.0-only
"""``kdamon mount``: the tree of ``/sys/kernel/mm/damon`` in any directory."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import ExitStack

from kdamon.lib.capabilities import MONITORING
from kdamon.lib.rights import missing_capability
from kdamon_tools.commands.common import check_fuse, check_socket, machine_when_needed
from kdamon_tools.output.readable import readable
from kdamon_tools.privileges import keep_only
from kdamon_tools.serving import serve_reports

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal comes or the tree is unmounted."""
    check_fuse()
    if not arguments.no_reports:
        check_socket(arguments.reports)
    # Without the right to mount, a set-user-ID program mounts and unmounts.
    keep_only(*MONITORING, new_privileges=bool(missing_capability("CAP_SYS_ADMIN")))
    from kdamon_fs.mount import mount_tree  # noqa: PLC0415 (needs more than the other verbs)
    from kdamon_fs.sysfs import damon_sysfs_init  # noqa: PLC0415

    def ready() -> None:
        serving.enter_context(serve_reports(arguments))
        admin = readable(os.path.join(arguments.directory, "admin"))
        print(f"kdamon: the tree is at {admin}; Ctrl-C ends", file=sys.stderr, flush=True)

    tree = damon_sysfs_init(machine_when_needed, arguments.abi)
    tree.list_modules()
    with ExitStack() as serving:
        mount_tree(tree, arguments.directory, ready)
    return 0
