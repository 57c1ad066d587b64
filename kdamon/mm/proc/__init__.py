# SPDX-License-Identifier: GPL-2.0-only
"""The kernel's files about processes, pages and control groups, each parsed in one place."""
