# SPDX-License-Identifier: GPL-2.0-only
"""``kdamon doctor``: the features of this machine, missing requirements, and remedies."""

from __future__ import annotations

import argparse

from kdamon.lib.capabilities import MONITORING
from kdamon_tools.checks import monitor_checks, own_checks, tool_checks
from kdamon_tools.origin import this_machine
from kdamon_tools.output.streams import write_result
from kdamon_tools.output.terminal import terminal_size
from kdamon_tools.privileges import keep_only
from kdamon_tools.reporters.checks import render_checks, render_checks_json

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    """Print the report; return 0 if processes can be monitored, else 1."""
    # It checks with the capabilities that the other verbs keep.
    keep_only(*MONITORING)
    monitoring, usable = monitor_checks()
    checks = monitoring + tool_checks() + own_checks()
    if arguments.json:
        result = render_checks_json(checks, usable, this_machine())
    else:
        result = render_checks(checks, usable, terminal_size()[0])
    write_result([result, "\n"])
    return 0 if usable else 1
