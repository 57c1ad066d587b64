# SPDX-License-Identifier: GPL-2.0-only
"""Man pages of kdamon and of each verb, made by argparse-manpage from the options that there are.

They are made where kdamon is built; an installed kdamon has them as files.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from functools import partial

from argparse_manpage.manpage import Manpage

from kdamon_tools.options import make_parser
from kdamon_tools.options.parser import Parser
from kdamon_tools.options.slips import verb_parsers

__all__ = ["man_pages"]

#: No line of a help text is broken before it reaches the page.
_WIDTH = 10_000


def man_pages(version: str) -> dict[str, str]:
    """The text of each page, by the name of its file, such as kdamon-run.1."""
    main = make_parser()
    verbs = verb_parsers(main)
    names = ["kdamon", *(f"kdamon-{verb}" for verb in verbs)]
    pages = {"kdamon.1": _main_page(main, verbs, version, names[1:])}
    for verb, parser in verbs.items():
        pages[f"kdamon-{verb}.1"] = _page(f"kdamon-{verb}", parser, version, names)
    return pages


def _main_page(main: Parser, verbs: dict[str, Parser], version: str, others: list[str]) -> str:
    # A page of their own stands for each of them.
    for group in main._action_groups:
        group._group_actions[:] = [
            action for action in group._group_actions if not isinstance(action, argparse._SubParsersAction)
        ]
    commands = _list((f"kdamon-{verb}(1)", parser.description or "") for verb, parser in verbs.items())
    return _page("kdamon", main, version, others, verbs=commands)


def _page(name: str, parser: Parser, version: str, others: Iterable[str], **sections: str) -> str:
    usage = (parser.usage or "").removeprefix("kdamon").removeprefix(f" {name.removeprefix('kdamon-')}").strip()
    parser.prog = name
    # What follows the options has sections of its own.
    parser.epilog = None
    parser.formatter_class = partial(argparse.HelpFormatter, width=_WIDTH)
    summary = (parser.description or "").rstrip(".")
    data = {
        "project_name": "kdamon",
        "version": version,
        "manual_title": "kdamon manual",
        "description": summary[0].lower() + summary[1:],
    }
    page = Manpage(parser, data)
    page.synopsis = [name.replace("-", " ", 1), *usage.split()]
    about = parser.about
    for heading, text in (
        *sections.items(),
        ("examples", _examples(about.examples)),
        ("exit status", _list(about.statuses)),
        ("environment", _list(about.environment)),
        ("files", _list(about.files)),
        ("see also", ",\n".join(f".BR {_escaped(other)} (1)" for other in others if other != name)),
    ):
        if text:
            page.add_section(heading, ">", text)
    header, _, rest = str(page).partition("\n")
    # A date is read, not shown as it is.
    return header.replace(page.date.replace("-", r"\-"), page.date) + "\n" + rest


def _list(items: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f".TP\n.B {_escaped(name)}\n{_escaped(text)}" for name, text in items)


def _examples(examples: Iterable[tuple[str, str]]) -> str:
    return "\n.PP\n".join(
        f"{_escaped(what[0].upper() + what[1:])}:\n.PP\n.RS 4\n.EX\n{_escaped(line)}\n.EE\n.RE"
        for what, line in examples
    )


def _escaped(text: str) -> str:
    r"""``text`` for roff: ``\-`` is the character of options, and a line may begin with anything."""
    text = text.replace("\\", r"\e").replace("-", r"\-")
    return rf"\&{text}" if text.startswith((".", "'")) else text
