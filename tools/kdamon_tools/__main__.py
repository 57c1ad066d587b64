# SPDX-License-Identifier: GPL-2.0-only
"""``python -m kdamon_tools`` is the ``kdamon`` command."""

import sys

from kdamon_tools.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(main())
