# SPDX-License-Identifier: GPL-2.0-only
"""What lies at the addresses of a process: mappings, ELF sections, threads' stacks, and areas that it named."""

__all__: list[str] = []
