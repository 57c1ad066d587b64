# SPDX-License-Identifier: GPL-2.0-only
"""BPF: programs, BTF, and the program that walks page tables."""
