# SPDX-License-Identifier: GPL-2.0-only
"""``kdamon completion``: the completion script of a shell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdamon_tools.output.streams import write_result
from kdamon_tools.shells import completion

if TYPE_CHECKING:
    import argparse

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    """Print it and return 0."""
    write_result([completion(arguments.shell)])
    return 0
