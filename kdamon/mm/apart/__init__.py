# SPDX-License-Identifier: GPL-2.0-only
"""Helper processes that read or change memory of other processes: kdamon can give one up if a call never returns."""
