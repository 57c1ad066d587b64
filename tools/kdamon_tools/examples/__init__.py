# SPDX-License-Identifier: GPL-2.0-only
"""Programs to start from; each runs by ``python -m kdamon_tools.examples.NAME``."""

__all__: list[str] = []
