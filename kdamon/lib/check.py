# SPDX-License-Identifier: GPL-2.0-only
"""The result of looking for a requirement on this machine, as ``kdamon doctor`` shows it."""

from __future__ import annotations

from attrs import frozen

__all__ = ["Check"]


@frozen
class Check:
    """One requirement.

    :ivar name: its name.
    :ivar available: whether this machine has it.
    :ivar why: the evidence, or the problem; a sentence without capital and full stop.
    :ivar remedy: how to get it; empty where it is available or cannot be made available.
    """

    name: str
    available: bool
    why: str
    remedy: str = ""
