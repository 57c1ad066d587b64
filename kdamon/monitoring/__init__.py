# SPDX-License-Identifier: GPL-2.0-only
"""Monitoring from Python: :func:`kdamon.monitor` and its parts. The package :mod:`kdamon` exports what users need."""

__all__: list[str] = []
