# SPDX-License-Identifier: GPL-2.0-only
"""Where output goes: standard streams, the terminal, and files that are replaced only when they are whole."""
