# SPDX-License-Identifier: GPL-2.0-only
"""Example programs; ``python -m kdamon_tools.examples.NAME`` runs one."""

__all__: list[str] = []
