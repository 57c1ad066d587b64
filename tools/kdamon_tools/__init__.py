# SPDX-License-Identifier: GPL-2.0-only
"""What people run: the ``kdamon`` command, its verbs, the forms it shows results in, and workloads to try it on.

A command (:mod:`kdamon_tools.commands`) gathers, a reporter (:mod:`kdamon_tools.reporters`) renders what was
gathered (:mod:`kdamon_tools.snapshot`); neither does the other's work.
"""

__all__: list[str] = []
