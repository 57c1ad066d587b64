# SPDX-License-Identifier: GPL-2.0-only
"""Density of access reports: an estimator beside the faithful rule, and the history of reports that it needs."""
