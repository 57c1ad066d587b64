# SPDX-License-Identifier: GPL-2.0-only
"""Density of access reports: an estimator besides the kernel's rule."""
