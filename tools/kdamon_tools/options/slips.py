# SPDX-License-Identifier: GPL-2.0-only
"""Errors for common slips on the command line: they show the line that was probably meant."""

from __future__ import annotations

import argparse
import difflib
import shlex
import shutil
from collections.abc import Sequence

from kdamon_tools.errors import CommandError
from kdamon_tools.options.parser import Parser

__all__ = ["stray_words", "verb_parsers", "wrong_verb"]


def verb_parsers(parser: Parser) -> dict[str, Parser]:
    """The parsers of the verbs, by name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def wrong_verb(parser: Parser, words: Sequence[str], command: Sequence[str]) -> CommandError:
    """The error for a command line that does not begin with a verb.

    :param parser: the parser of the whole command line.
    :param words: the command line up to ``--``.
    :param command: the words after ``--``.
    """
    verbs = verb_parsers(parser)
    if not words and command:
        return _meant("to monitor a command", ["run"], command)
    if not words:
        return CommandError(f"a verb is missing: {', '.join(verbs)}; see kdamon --help", 2)
    first = words[0]
    if first.startswith("-"):
        given = next((word for word in words if word in verbs), None)
        if given is not None:
            others = list(words)
            others.remove(given)
            return _meant("options follow the verb", [given, *others], command)
        if _is_option(verbs["run"], first):
            return _meant(f"{first.partition('=')[0]} is an option of the verb run", ["run", *words], command)
        return CommandError(f"unrecognized option: {first}; see kdamon --help", 2)
    if _is_pid(first) and not command:
        return _meant(f"to monitor process {first}", ["run", "--pid", first, *words[1:]], command)
    if close := difflib.get_close_matches(first, verbs, 1):
        return _meant(f"there is no verb {first!r}; did you mean", [close[0], *words[1:]], command)
    if shutil.which(first) and not command:
        return _meant(f"there is no verb {first!r}; to monitor a command", ["run"], words)
    return CommandError(f"there is no verb {first!r}, only {', '.join(verbs)}; see kdamon --help", 2)


def stray_words(parser: Parser, verb: str, words: Sequence[str], command: Sequence[str]) -> CommandError:
    """The error for a command line with words that ``verb`` does not accept.

    :param parser: the parser of the whole command line.
    :param verb: the verb.
    :param words: the words after it, up to ``--``.
    :param command: the words after ``--``.
    """
    own = verb_parsers(parser)[verb]
    place = _first_stray(own, words)
    before, first, after = words[:place], words[place], words[place + 1 :]
    if first.startswith("-"):
        name = first.partition("=")[0]
        options = [option for action in own._actions for option in action.option_strings]
        close = difflib.get_close_matches(name, options, 1, 0.75)
        hint = f"did you mean {close[0]}?" if close else f"see {own.prog} --help"
        return CommandError(f"unrecognized option: {name}; {hint}", 2)
    chosen = bool(command) or any(word.partition("=")[0] == "--pid" for word in words)
    if verb in ("run", "top", "wss") and not chosen and _is_pid(first):
        what = "measure" if verb == "wss" else "monitor"
        return _meant(f"to {what} process {first}", [verb, *before, "--pid", first, *after], command)
    if verb in ("run", "top", "exec") and not chosen:
        return _meant("-- is missing before the command", [verb, *before], words[place:])
    return CommandError(f"unrecognized argument: {first}; see {own.prog} --help", 2)


def _first_stray(parser: Parser, words: Sequence[str]) -> int:
    """The index of the first word that ``parser`` does not accept; argparse names the words, not their places."""
    for place in range(len(words)):
        try:
            if parser.parse_known_args(words[: place + 1])[1]:
                return place
        except CommandError:
            # The value of an option is missing in this part of the line, or an argument.
            continue
    return len(words) - 1


def _is_option(parser: Parser, word: str) -> bool:
    return word.partition("=")[0] in parser._option_string_actions


def _is_pid(word: str) -> bool:
    return word.isascii() and word.isdecimal()


def _meant(why: str, words: Sequence[str], command: Sequence[str]) -> CommandError:
    line = ["kdamon", *words, *(["--", *command] if command else [])]
    return CommandError(f"{why}: {shlex.join(line)}", 2)
