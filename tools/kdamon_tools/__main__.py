# SPDX-License-Identifier: GPL-2.0-only
"""``python -m kdamon_tools`` is the ``kdamon`` command."""

import signal
import sys

__all__ = ["main"]


def main() -> int:
    """Load the command and run it, see :func:`kdamon_tools.cli.main`."""
    previous = signal.getsignal(signal.SIGINT)
    if previous is signal.default_int_handler:
        # Ctrl-C while modules are loaded ends the process, without a word about where it was.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from kdamon_tools import cli  # noqa: PLC0415 (only now, see above)

    signal.signal(signal.SIGINT, previous)
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
