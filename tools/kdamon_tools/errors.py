# SPDX-License-Identifier: GPL-2.0-only
"""The one error that a command raises on purpose."""

from __future__ import annotations

__all__ = ["CommandError"]


class CommandError(Exception):
    """What went wrong, in one sentence for the person at the terminal.

    :param message: the sentence; the program's name is put before it.
    :param exit_code: 1 for what failed, 2 for a command line that makes no sense.
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code
