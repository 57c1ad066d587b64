# SPDX-License-Identifier: GPL-2.0-only
"""What a test needs of the machine and of its user, as decorators; without it the test is skipped with the reason.

A reason that begins with "kernel lacks: " excuses a skip also where everything is required (tests/conftest.py).
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from tests.support.fuse_bindings import usable

__all__ = [
    "needs_damo",
    "needs_dev_fuse",
    "needs_libfuse",
    "needs_mount_namespace",
    "needs_root",
    "skip_because",
]

needs_dev_fuse = pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="kernel lacks: /dev/fuse")
needs_libfuse = pytest.mark.skipif(not usable(), reason="no libfuse is installed")
needs_damo = pytest.mark.skipif(not Path(sys.executable).with_name("damo").exists(), reason="damo is not installed")
needs_mount_namespace = pytest.mark.skipif(
    subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode != 0,
    reason="private mount namespaces are not allowed here",
)


def needs_root(why: str) -> pytest.MarkDecorator:
    """Skip for another user than root.

    :param why: what only root can do.
    """
    return pytest.mark.skipif(os.geteuid() != 0, reason=why)


def skip_because(error: OSError, doing: str = "") -> NoReturn:
    """Skip the test for an error: EOPNOTSUPP says that the kernel lacks a feature, others are of rights or packages.

    :param doing: what could not be done.
    """
    lacks = "kernel lacks: " if error.errno == errno.EOPNOTSUPP else ""
    pytest.skip(f"{lacks}{doing}{error.strerror}")
