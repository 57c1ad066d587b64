# SPDX-License-Identifier: GPL-2.0-only
"""Completion scripts of shells, made by shtab from the options that there are."""

from __future__ import annotations

from typing import Any, Final

import shtab

from kdamon_tools.options import make_parser
from kdamon_tools.options.slips import verb_parsers

__all__ = ["SHELLS", "completion"]

#: Shells, and the place of each one's script below a prefix such as /usr.
SHELLS: Final = {
    "bash": "share/bash-completion/completions/kdamon",
    "zsh": "share/zsh/site-functions/_kdamon",
    "fish": "share/fish/vendor_completions.d/kdamon.fish",
}
_BASH: Final = """
_kdamon_pids() {
  compgen -W "$(cd /proc && echo [0-9]*)" -- "$1"
}
"""
#: What the value of an option is, by its name in help.
_VALUES: Final[dict[str, Any]] = {
    "FILE": shtab.FILE,
    "SOCKET": shtab.FILE,
    "DIRECTORY": shtab.DIRECTORY,
    "PID": {"bash": "_kdamon_pids", "zsh": "_pids", "fish": "(__fish_complete_pids)", "preamble": {"bash": _BASH}},
}


def completion(shell: str) -> str:
    """The completion script of ``shell``, one of :data:`SHELLS`."""
    parser = make_parser()
    for verb in verb_parsers(parser).values():
        for action in verb._actions:
            if isinstance(action.metavar, str) and action.metavar in _VALUES:
                action.complete = _VALUES[action.metavar]  # type: ignore[attr-defined]
    return shtab.complete(parser, shell)
