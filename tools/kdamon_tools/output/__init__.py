# SPDX-License-Identifier: GPL-2.0-only
"""Output to standard streams, the terminal, and files that are replaced only when they are complete."""
