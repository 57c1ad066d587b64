# SPDX-License-Identifier: GPL-2.0-only
"""Pictures for documents and browsers: HTML, SVG and PNG."""
