# SPDX-License-Identifier: GPL-2.0-only
"""The remedy for missing rights: the command to paste, or the sufficient capabilities."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from kdamon.lib.rights import MissingRights, missing_capability

if TYPE_CHECKING:
    import argparse

__all__ = ["as_root", "enough_for", "own_command", "without_rights"]

#: To read page tables, and to mark pages as not accessed.
_ACCESSED_BITS: Final = ("CAP_BPF", "CAP_PERFMON", "CAP_SYS_NICE")
#: To identify the CPU and the thread of a page fault.
_IDENTIFY_FAULTS: Final = ("CAP_BPF", "CAP_PERFMON")
#: To inspect other users' processes, and in addition to stop a thread of one.
_OTHERS: Final = ("CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH")
_OTHERS_STOPPED: Final = ("CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE")
#: To mount, and for any request of a client of the tree; CAP_SYS_ADMIN includes CAP_BPF and CAP_PERFMON.
_TREE: Final = ("CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE", "CAP_SYS_PTRACE", "CAP_SYS_NICE")


def enough_for(arguments: argparse.Namespace) -> tuple[str, ...]:
    """The sufficient capabilities for a command line, whether or not this process has them."""
    others = getattr(arguments, "pid", None) is not None and not _is_own(arguments.pid)
    if arguments.verb == "wss" and arguments.primitive == "page_fault":
        return _OTHERS_STOPPED if others else ()
    if arguments.verb == "wss":
        return (*_ACCESSED_BITS, *(_OTHERS if others else ()))
    if arguments.verb != "run":
        return _TREE
    if arguments.ops == "paddr":
        return ("CAP_SYS_ADMIN", *_ACCESSED_BITS, *_OTHERS)
    identified = arguments.cpus or arguments.tids or arguments.by
    if arguments.primitive == "page_fault" or arguments.write_only or arguments.read_only or identified:
        identify = _IDENTIFY_FAULTS if identified else ()
        return (*identify, *(_OTHERS_STOPPED if others else ()))
    return (*_ACCESSED_BITS, *(_OTHERS if others else ()))


def _is_own(pid: int) -> bool:
    try:
        return os.stat(f"/proc/{pid}").st_uid == os.geteuid()
    except OSError:
        return False


def without_rights(error: MissingRights, arguments: argparse.Namespace) -> str:
    """One sentence with the missing and the sufficient rights.

    For an unprivileged user it ends with a colon: the command of :func:`as_root` follows.
    """
    enough = [name for name in enough_for(arguments) if missing_capability(name)]
    wanted = list(dict.fromkeys([*error.capabilities, *enough]))
    or_else = f", or {error.otherwise}" if error.otherwise else ""
    names = " and ".join([", ".join(wanted[:-1]), wanted[-1]] if len(wanted) > 1 else wanted)
    if os.geteuid() == 0:
        return (
            f"{error.needs()}, which root lacks here; start kdamon with {names} (for a container, --cap-add){or_else}"
        )
    give = f"give kdamon {names}{or_else}, or " if wanted else ""
    return f"{error.needs()}; {give}run it as root:"


def as_root(words: Sequence[str]) -> str:
    """The line to paste that runs kdamon with the arguments ``words`` as root."""
    return shlex.join(["sudo", *own_command(), *words])


def own_command() -> list[str]:
    """The command that runs this kdamon, by its full path: root has another PATH."""
    program = os.path.abspath(sys.argv[0])
    if os.path.basename(program) == "kdamon" and os.access(program, os.X_OK):
        return [program]
    path = os.environ.get("PYTHONPATH")
    return [*(["env", f"PYTHONPATH={path}"] if path else []), sys.executable, "-m", "kdamon_tools"]
