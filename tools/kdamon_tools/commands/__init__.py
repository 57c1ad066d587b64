# SPDX-License-Identifier: GPL-2.0-only
"""The verbs of ``kdamon``: each module has ``run(arguments) -> exit status``.

A module is loaded when its verb runs; :mod:`kdamon_tools.options` has the options.
"""

__all__: list[str] = []
