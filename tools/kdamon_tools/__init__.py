# SPDX-License-Identifier: GPL-2.0-only
"""The ``kdamon`` command: its verbs, its output formats, and workloads to try it on.

A command (:mod:`kdamon_tools.commands`) gathers plain values (:mod:`kdamon_tools.snapshot`), a reporter
(:mod:`kdamon_tools.reporters`) renders them; neither does the other's work.
"""

__all__: list[str] = []
