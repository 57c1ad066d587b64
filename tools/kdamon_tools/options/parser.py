# SPDX-License-Identifier: GPL-2.0-only
"""Parsers whose errors are sentences, and whose help ends with examples and exit statuses."""

from __future__ import annotations

import argparse
import textwrap
from typing import Any, Final, NamedTuple, NoReturn

from kdamon_tools.errors import CommandError

__all__ = ["COMMAND_STATUSES", "STATUSES", "About", "Formatter", "Parser"]

#: Exit statuses of most verbs.
STATUSES: Final = (
    ("0", "success"),
    ("1", "failure, one sentence on standard error says why"),
    ("2", "the command line is wrong"),
)
#: Further exit statuses of verbs that start a command.
COMMAND_STATUSES: Final = (
    ("126", "COMMAND cannot be run"),
    ("127", "COMMAND does not exist"),
    ("128 + N", "signal N terminated COMMAND"),
)


class About(NamedTuple):
    """The texts of a verb's help and man page besides its options.

    :ivar examples: purpose and command line of each.
    :ivar statuses: exit statuses, and their meaning.
    :ivar environment: names of variables, and their effect.
    :ivar files: names of files, and their purpose.
    """

    examples: tuple[tuple[str, str], ...]
    statuses: tuple[tuple[str, str], ...]
    environment: tuple[tuple[str, str], ...] = ()
    files: tuple[tuple[str, str], ...] = ()


class Formatter(argparse.HelpFormatter):
    """Formats help so that it can be copied: no option is wrapped at its hyphen."""

    def _format_action(self, action: argparse.Action) -> str:
        if isinstance(action, argparse._SubParsersAction):
            # Without a line for the choice itself, and so without the indentation below it.
            return self._join_parts(map(self._format_action, action._get_subactions()))
        return super()._format_action(action)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" in text:
            # Parser formats it.
            return text
        return textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


class Parser(argparse.ArgumentParser):
    """The parser of kdamon, or of one of its verbs.

    :param about: the texts after the options.
    :param keywords: as for :class:`argparse.ArgumentParser`.
    """

    def __init__(self, *, about: About, **keywords: Any) -> None:
        super().__init__(formatter_class=Formatter, epilog=_epilog(about), **keywords)
        self.about = about

    def error(self, message: str) -> NoReturn:
        """Raise usage errors like other errors: one sentence, printed in one place."""
        raise CommandError(f"{message}; see {self.prog} --help", 2)

    def _print_message(self, message: str, file: object = None) -> None:
        # Help is a result: argparse would not report that it cannot be written.
        from kdamon_tools.output.streams import write_result  # noqa: PLC0415 (not where man pages are made)

        write_result([message])


def _epilog(about: About) -> str:
    lines = ["examples:"]
    for what, command in about.examples:
        lines += [f"  # {what}", f"  {command}"]
    lines += ["", "exit status:"]
    lines += [f"  {status:8} {meaning}" for status, meaning in about.statuses]
    return "\n".join(lines)
