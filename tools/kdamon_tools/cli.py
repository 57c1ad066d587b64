# SPDX-License-Identifier: GPL-2.0-only
"""The ``kdamon`` command: its verbs, and the one place where errors become sentences."""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from kdamon import __version__
from kdamon_tools.commands import doctor, exec, mount, replay, run  # noqa: A004 (a verb's module has the verb's name)
from kdamon_tools.errors import CommandError
from kdamon_tools.readable import readable

__all__ = ["main"]


class _Parser(argparse.ArgumentParser):
    """Usage errors are errors like others: one sentence, said in one place."""

    def error(self, message: str) -> NoReturn:
        raise CommandError(f"{message}; see {self.prog} --help", 2)


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


def _open_closed_streams() -> None:
    """Keep files of other use from getting the numbers of standard streams that are closed (``>&-``).

    Writing to standard output is an error then, as it should be; nobody misses what goes to standard error.
    """
    for number, flags in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", closefd=False)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # As standard error has it: what a locale has no character for is no reason to lose the rest.
        sys.stdout.reconfigure(errors="backslashreplace")


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

    0 done, 1 it failed, 2 the command line makes no sense, 130 interrupted; ``run`` and ``exec`` pass on the exit
    status of their command.
    """
    _open_closed_streams()
    words = list(sys.argv[1:] if argv is None else argv)
    # What follows "--" is somebody else's command line, argparse must not look at it.
    separator = words.index("--") if "--" in words else len(words)
    debug = "--debug" in words[:separator]
    options = [word for word in words[:separator] if word != "--debug"]
    _log_to_stderr(debug)
    try:
        arguments = _parser().parse_args(options)
        arguments.command = words[separator + 1 :]
        arguments.debug = debug
        status: int = arguments.run(arguments)
        return status
    except BrokenPipeError:
        # Whoever read the output has enough.
        _give_output_up()
        return 1
    except KeyboardInterrupt:
        return 130
    except CommandError as error:
        return _fail(error, str(error), debug, error.exit_code)
    except ModuleNotFoundError as error:
        sentence = f"the Python package '{error.name}' is missing: install it, for instance with pip"
        return _fail(error, sentence, debug)
    except OSError as error:
        _give_output_up()
        return _fail(error, _sentence(error), debug)


def _give_output_up() -> None:
    """Let the interpreter not fail once more on output that cannot be written."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _sentence(error: OSError) -> str:
    """What an :class:`OSError` says to a person: without the number, with the file."""
    text = error.strerror or str(error)
    return f"{error.filename}: {text}" if error.filename else text


def _fail(error: BaseException, sentence: str, debug: bool, status: int = 1) -> int:
    if debug:
        logging.getLogger("kdamon").debug("where it comes from", exc_info=error)
    print(f"kdamon: {readable(sentence)}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
