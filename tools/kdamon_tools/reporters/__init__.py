# SPDX-License-Identifier: GPL-2.0-only
"""The forms in which results are shown; each takes plain values and gives text, and prints nothing."""

__all__: list[str] = []
