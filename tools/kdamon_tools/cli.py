# SPDX-License-Identifier: GPL-2.0-only
"""The entry point of the ``kdamon`` command, and the only place that turns errors into sentences."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kdamon_tools import interpreter, privileges
from kdamon_tools.defaults import VIEWS
from kdamon_tools.errors import CommandError
from kdamon_tools.options import VERBS, make_parser
from kdamon_tools.output.streams import finish_output, prepare_streams

if TYPE_CHECKING:
    import argparse

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` and return the exit status.

    0 success, 1 failure (also if standard output could not be written), 2 wrong command line, 130 interrupted; ``run``
    and ``exec`` pass on the exit status of their command. Errors of standard error are ignored.
    """
    prepare_streams()
    words = list(sys.argv[1:] if argv is None else argv)
    # The words after "--" are another program's command line.
    separator = words.index("--") if "--" in words else len(words)
    debug = "--debug" in words[:separator]
    options = [word for word in words[:separator] if word != "--debug"]
    if debug:
        from kdamon_tools.logs import set_up_logs  # noqa: PLC0415 (not for --help)

        set_up_logs(True)
    try:
        status = _run(words, options, words[separator + 1 :], debug)
    except SystemExit:
        # Help, or the version.
        if (error := finish_output()) is None:
            raise
        return _fail(error, _sentence(error), debug)
    error = finish_output()
    return status if error is None or status else _fail(error, _sentence(error), debug)


def _parse(options: list[str], command: list[str]) -> argparse.Namespace:
    known = bool(options) and options[0] in VERBS
    parser = make_parser(options[0]) if known else make_parser()
    if not options or (not known and options[0] not in parser._option_string_actions):
        from kdamon_tools.options.slips import wrong_verb  # noqa: PLC0415 (few lines are wrong)

        raise wrong_verb(parser, options, command)
    arguments, stray = parser.parse_known_args(options)
    if len(stray) == 1 and arguments.verb == "report" and arguments.view is None and stray[0] in VIEWS:
        # argparse takes no word for what may be missing, once an option is between.
        arguments.view = stray.pop()
    if stray:
        from kdamon_tools.options.slips import stray_words  # noqa: PLC0415 (few lines are wrong)

        raise stray_words(parser, arguments.verb, options[1:], command)
    return arguments


@contextmanager
def _quiet_interrupts() -> Iterator[None]:
    """Let Ctrl-C within the block, where modules are loaded, end this process without a traceback."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _run(words: list[str], options: list[str], command: list[str], debug: bool) -> int:
    """Run a verb, and turn each expected error into one sentence."""
    arguments = None
    try:
        arguments = _parse(options, command)
        arguments.command = command
        arguments.debug = debug
        with _quiet_interrupts():
            privileges.load_numpy()
            from kdamon_tools.logs import set_up_logs  # noqa: PLC0415 (not for --help)

            set_up_logs(debug)
            verb = importlib.import_module(f"kdamon_tools.commands.{arguments.verb}")
        interpreter.ready()
        if getattr(arguments, "monitor_cpus", ()):
            from kdamon.lib.housekeeping import choose_cpus  # noqa: PLC0415 (not for --help)

            choose_cpus(frozenset(arguments.monitor_cpus))
        return verb.run(arguments)
    except KeyboardInterrupt:
        return 130
    except CommandError as error:
        return _fail(error, str(error), debug, error.exit_code)
    except ModuleNotFoundError as error:
        sentence = f"the Python package '{error.name}' is missing: install it, for example with pip"
        return _fail(error, sentence, debug)
    except MemoryError as error:
        return _fail(error, "there is not enough memory", debug)
    except OSError as error:
        if arguments is not None and isinstance(error, PermissionError):
            from kdamon.lib.rights import MissingRights  # noqa: PLC0415 (not for --help)
            from kdamon_tools.rights import as_root, without_rights  # noqa: PLC0415 (likewise)

            if isinstance(error, MissingRights):
                line = as_root(words) if os.geteuid() else ""
                return _fail(error, without_rights(error, arguments), debug, line=line)
        return _fail(error, _sentence(error), debug)


def _sentence(error: OSError) -> str:
    """The message of an :class:`OSError` for the user: without the number, with the file."""
    text = error.strerror or str(error)
    return f"{error.filename}: {text}" if error.filename else text


def _removed_directory(error: BaseException) -> str:
    """A hint for relative paths: they fail if the working directory was removed."""
    if isinstance(error if isinstance(error, OSError) else error.__context__, FileNotFoundError):
        try:
            os.getcwd()
        except FileNotFoundError:
            return " (the working directory was removed: change to another one)"
    return ""


def _fail(error: BaseException, sentence: str, debug: bool, status: int = 1, line: str = "") -> int:
    """Print ``sentence``, and below it a ``line`` to paste; return ``status``."""
    # The interpreter must not try again to write the buffer of standard output, and fail again.
    finish_output()
    if isinstance(error, BrokenPipeError):
        # The reader of the output has ended.
        return status
    if debug:
        from kdamon_tools.logs import log_traceback  # noqa: PLC0415 (not for --help)

        log_traceback(error)
    from kdamon_tools.output.readable import readable  # noqa: PLC0415 (not for --help)

    print(f"kdamon: {readable(sentence)}{_removed_directory(error)}", file=sys.stderr)
    if line:
        print(f"    {readable(line)}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
