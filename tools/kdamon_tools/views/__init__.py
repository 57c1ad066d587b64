# SPDX-License-Identifier: GPL-2.0-only
"""Views of a recording as plain values: grids of address x time, tables by name. Reporters and pictures render them."""
