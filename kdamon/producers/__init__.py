# SPDX-License-Identifier: GPL-2.0-only
"""Producers of access reports in other processes: rings in shared memory, the server that reads them, and limits."""
