# SPDX-License-Identifier: GPL-2.0-only
"""``python -m kdamon_tools`` is the ``kdamon`` command."""

import signal
import sys

from kdamon_tools import interpreter, privileges

__all__ = ["main"]


def main() -> int:
    """Load the command and run it, see :func:`kdamon_tools.cli.main`."""
    interpreter.begin()
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        privileges.begin()
        from kdamon_tools import cli  # noqa: PLC0415 (as below)

        return cli.main()
    # Ctrl-C while modules are loaded, or when everything is done, ends the process without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    privileges.begin()
    from kdamon_tools import cli  # noqa: PLC0415 (only now, see above)

    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return cli.main()
    except KeyboardInterrupt:
        return 130
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main())
