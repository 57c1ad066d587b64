# SPDX-License-Identifier: GPL-2.0-only
"""The output formats; each reporter renders plain values as text and prints nothing."""

__all__: list[str] = []
