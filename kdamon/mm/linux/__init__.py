# SPDX-License-Identifier: GPL-2.0-only
"""The running kernel behind the protocols of :mod:`kdamon.mm`."""
