# SPDX-License-Identifier: GPL-2.0-only
"""The primitives: how accesses to sampled pages of real processes and of physical memory are observed."""
