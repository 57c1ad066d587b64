# SPDX-License-Identifier: GPL-2.0-only
"""Processes whose memory accesses are known, to try a monitor on; each writes what is true to a file."""

__all__: list[str] = []
