# SPDX-License-Identifier: GPL-2.0-only
"""Records as files of other tools: one module for each form, with the function ``export``."""
