# SPDX-License-Identifier: GPL-2.0-only
"""DAMOS actions on the memory of a process, and the filters on pages."""
