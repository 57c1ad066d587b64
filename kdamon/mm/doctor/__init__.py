# SPDX-License-Identifier: GPL-2.0-only
"""What this machine can do for monitoring, found out by doing it."""
