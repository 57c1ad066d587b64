# SPDX-License-Identifier: GPL-2.0-only
"""The running kernel: it implements the protocols of :mod:`kdamon.mm`."""
