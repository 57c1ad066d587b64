# SPDX-License-Identifier: GPL-2.0-only
"""The verbs of ``kdamon``: each module has ``register(subparsers)`` and ``run(arguments) -> exit status``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdamon.mm.linux import LinuxMachine

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

__all__ = ["add_verb", "machine_when_needed"]


def add_verb(subparsers: Subparsers, verb: str, summary: str, usage: str) -> argparse.ArgumentParser:
    """Make the parser of ``verb``.

    :param summary: a sentence without capital and full stop.
    :param usage: what may follow the verb.
    """
    return subparsers.add_parser(
        verb,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        usage=f"kdamon {verb} {usage}",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )


def machine_when_needed() -> LinuxMachine:
    """This machine, prepared for monitoring; costly enough to be left until something is monitored.

    Whether it can tell accessed bits is found out when a process is to be monitored by them: faults may be all that is
    needed.

    :raises OSError: EOPNOTSUPP or EPERM with a sentence on what is missing.
    """
    from kdamon.mm.linux import linux_machine  # noqa: PLC0415 (not before it is needed)

    return linux_machine("page_fault")
