# SPDX-License-Identifier: GPL-2.0-only
"""Checks what monitoring can use on this machine, by trying it."""
