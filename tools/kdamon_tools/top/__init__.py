# SPDX-License-Identifier: GPL-2.0-only
"""The full-screen view of running processes: what it shows, where that comes from, and the screen itself."""
