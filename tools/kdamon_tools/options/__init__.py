# SPDX-License-Identifier: GPL-2.0-only
"""The command line of ``kdamon``: the options of each verb, its help, examples and exit statuses.

These modules load only the standard library, so that help appears at once, and man pages and completions can be
generated when kdamon is built (:mod:`kdamon_tools.shells`, :mod:`kdamon_tools.man_pages`).
"""

from __future__ import annotations

import argparse
import importlib
from types import ModuleType

from kdamon import __version__
from kdamon_tools.options.parser import About, Parser

__all__ = ["VERBS", "make_parser", "options_of"]

#: The verbs, in the order of the help. The options of each are in the module of that name.
VERBS = ("run", "top", "record", "report", "diff", "export", "wss", "replay", "mount", "exec", "doctor", "completion")

_ABOUT = About(
    examples=(
        ("monitor a running process until Ctrl-C, then show a heatmap", "kdamon run --pid 1234"),
        ("run damo on the tree that kdamon serves", "kdamon exec -- bash"),
        ("check what this machine supports", "kdamon doctor"),
    ),
    statuses=(
        ("0", "success"),
        ("1", "failure, one sentence on standard error says why"),
        ("2", "the command line is wrong"),
        ("130", "interrupted before there was a result"),
    ),
)


class _Version(argparse.Action):
    """Print the version and exit."""

    def __call__(self, parser: argparse.ArgumentParser, *_arguments: object) -> None:
        from kdamon_tools.output.streams import write_result  # noqa: PLC0415 (not where man pages are made)

        write_result([f"kdamon {__version__}\n"])
        parser.exit()


def options_of(verb: str) -> ModuleType:
    """The module with the options of ``verb``: SUMMARY, USAGE, ABOUT and add_options()."""
    return importlib.import_module(f"{__name__}.{verb}")


def make_parser(*verbs: str) -> Parser:
    """Make the parser of the command line up to ``--``.

    :param verbs: those that it is to know; all by default. Only their modules are loaded.
    """
    parser = Parser(
        prog="kdamon",
        description="Monitor which memory is accessed, as the kernel's DAMON does, from user space.",
        usage="kdamon [--debug] VERB [OPTION...]",
        about=_ABOUT,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    parser.add_argument(
        "--debug", action="store_true", help="log each step, and print the traceback of an error; works with each verb"
    )
    subparsers = parser.add_subparsers(dest="verb", prog="kdamon", metavar="VERB", title="verbs", parser_class=Parser)
    for name in verbs or VERBS:
        module = options_of(name)
        module.add_options(
            subparsers.add_parser(
                name,
                help=module.SUMMARY,
                description=f"{module.SUMMARY[0].upper()}{module.SUMMARY[1:]}.",
                usage=f"kdamon {name} {module.USAGE}".rstrip(),
                about=module.ABOUT,
            )
        )
    return parser
