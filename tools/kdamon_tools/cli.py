# SPDX-License-Identifier: GPL-2.0-only
"""The ``kdamon`` command: its verbs, and the one place where errors become sentences."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from kdamon import __version__
from kdamon_tools.commands import doctor, exec, mount, replay, run  # noqa: A004 (a verb's module has the verb's name)
from kdamon_tools.errors import CommandError
from kdamon_tools.readable import readable
from kdamon_tools.streams import finish_output, prepare_streams, write_result

__all__ = ["main"]


class _Parser(argparse.ArgumentParser):
    """Usage errors are errors like others: one sentence, said in one place."""

    def error(self, message: str) -> NoReturn:
        raise CommandError(f"{message}; see {self.prog} --help", 2)

    def _print_message(self, message: str, file: object = None) -> None:
        """Help and the version are results: argparse would not say that they cannot be written."""
        write_result([message])


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="kdamon",
        description="DAMON, the kernel's data access monitor, in user space.",
        usage="kdamon [--version] [--debug] {run,replay,mount,exec,doctor} ...",
    )
    parser.add_argument("--version", action="version", version=f"kdamon {__version__}")
    parser.add_argument("--debug", action="store_true", help="log what happens, and show where errors come from")
    verbs = parser.add_subparsers(dest="verb", prog="kdamon", required=True, metavar="{run,replay,mount,exec,doctor}")
    for module in (run, replay, mount, exec, doctor):
        module.register(verbs)
    return parser


class _Formatter(logging.Formatter):
    """Messages with names that may hold anything; a traceback keeps its lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (the base class's name)
        return readable(super().formatMessage(record))


def _log_to_stderr(debug: bool) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(
        _Formatter("%(asctime)s %(threadName)s %(name)s: %(message)s" if debug else "kdamon: %(message)s")
    )
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, handlers=[handler])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv``; returns the exit status.

    0 done, 1 it failed (also when standard output could not be written), 2 the command line makes no sense, 130
    interrupted; ``run`` and ``exec`` pass on the exit status of their command. Nothing depends on standard error.
    """
    prepare_streams()
    words = list(sys.argv[1:] if argv is None else argv)
    # What follows "--" is somebody else's command line, argparse must not look at it.
    separator = words.index("--") if "--" in words else len(words)
    debug = "--debug" in words[:separator]
    options = [word for word in words[:separator] if word != "--debug"]
    _log_to_stderr(debug)
    try:
        status = _run(options, words[separator + 1 :], debug)
    except SystemExit:
        # Help, or the version.
        if (error := finish_output()) is None:
            raise
        return _fail(error, _sentence(error), debug)
    error = finish_output()
    return status if error is None or status else _fail(error, _sentence(error), debug)


def _run(options: list[str], command: list[str], debug: bool) -> int:
    """Run a verb, and make one sentence of each error that was foreseen."""
    try:
        arguments = _parser().parse_args(options)
        arguments.command = command
        arguments.debug = debug
        status: int = arguments.run(arguments)
        return status
    except KeyboardInterrupt:
        return 130
    except CommandError as error:
        return _fail(error, str(error), debug, error.exit_code)
    except ModuleNotFoundError as error:
        sentence = f"the Python package '{error.name}' is missing: install it, for instance with pip"
        return _fail(error, sentence, debug)
    except MemoryError as error:
        return _fail(error, "there is not enough memory", debug)
    except OSError as error:
        return _fail(error, _sentence(error), debug)


def _sentence(error: OSError) -> str:
    """What an :class:`OSError` says to a person: without the number, with the file."""
    text = error.strerror or str(error)
    return f"{error.filename}: {text}" if error.filename else text


def _removed_directory(error: BaseException) -> str:
    """The cause that no name says: what is relative is looked up in a directory that was removed."""
    if isinstance(error if isinstance(error, OSError) else error.__context__, FileNotFoundError):
        try:
            os.getcwd()
        except FileNotFoundError:
            return " (the working directory was removed: change to another one)"
    return ""


def _fail(error: BaseException, sentence: str, debug: bool, status: int = 1) -> int:
    # What stays in the buffer of standard output must not be tried, and fail, once more.
    finish_output()
    if isinstance(error, BrokenPipeError):
        # The reader of the output has enough.
        return status
    if debug:
        logging.getLogger("kdamon").debug("where it comes from", exc_info=error)
    print(f"kdamon: {readable(sentence)}{_removed_directory(error)}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
