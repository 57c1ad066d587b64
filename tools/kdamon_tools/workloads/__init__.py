# SPDX-License-Identifier: GPL-2.0-only
"""Workloads with known memory accesses, to test a monitor; each writes its true accesses to a truth file."""

__all__: list[str] = []
