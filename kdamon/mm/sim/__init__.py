# SPDX-License-Identifier: GPL-2.0-only
"""Simulated memory with scripted accesses on a virtual clock: exact, repeatable, of any size."""
