# SPDX-License-Identifier: GPL-2.0-only
"""Records of monitoring runs in files: the schema, a writer and a reader. docs/record.md describes the file."""
