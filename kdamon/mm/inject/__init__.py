# SPDX-License-Identifier: GPL-2.0-only
"""System calls made by a stopped thread of another process, and when that is safe."""
