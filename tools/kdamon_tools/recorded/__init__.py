# SPDX-License-Identifier: GPL-2.0-only
"""Records as the plain values that views, reporters and exports take, whole or in part."""
