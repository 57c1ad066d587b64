# SPDX-License-Identifier: GPL-2.0-only
"""The options of ``kdamon completion``."""

from __future__ import annotations

from typing import Final

from kdamon_tools.options.parser import STATUSES, About, Parser

__all__ = ["ABOUT", "SUMMARY", "USAGE", "add_options"]

SUMMARY: Final = "print the completion script of a shell"
USAGE: Final = "{bash,zsh,fish}"
ABOUT: Final = About(
    examples=(
        ("complete in this bash", 'eval "$(kdamon completion bash)"'),
        ("complete in each zsh, with ~/.zfunc in fpath", "kdamon completion zsh > ~/.zfunc/_kdamon"),
        ("complete in each fish", "kdamon completion fish > ~/.config/fish/completions/kdamon.fish"),
    ),
    statuses=STATUSES,
)


def add_options(parser: Parser) -> None:
    """Add the options of the verb."""
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell to complete in")
