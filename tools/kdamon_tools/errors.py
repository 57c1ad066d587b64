# SPDX-License-Identifier: GPL-2.0-only
"""The only error that commands raise on purpose."""

from __future__ import annotations

__all__ = ["CommandError"]


class CommandError(Exception):
    """An error, in one sentence for the user.

    :param message: the sentence; it is printed after the program's name.
    :param exit_code: 1 for a failure, 2 for a wrong command line.
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code
