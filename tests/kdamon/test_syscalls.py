# SPDX-License-Identifier: GPL-2.0-only
"""System calls have one place, and their failures one form."""

from __future__ import annotations

import ast
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdamon.lib.syscalls import call, checked, prctl, syscall
from tests.support.paths import ROOT

pytestmark = pytest.mark.real


#: They run alone under ``python -I -S`` and cannot import the package.
STANDALONE = {
    "kdamon/lib/watcher.py",
    "kdamon/mm/apart/madvise_helper.py",
    "kdamon/mm/inject/helper.py",
}
PR_GET_NAME = 16
NO_SUCH_SYSCALL = 100000


def loads_the_c_library(path: Path) -> bool:
    """Whether a module loads the C library itself, or has a number of a system call."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func).rpartition(".")[2]
            first = node.args[0] if node.args else None
            if name in ("CDLL", "PyDLL", "LoadLibrary") and isinstance(first, ast.Constant) and first.value is None:
                return True
        if isinstance(node, ast.Name) and node.id.startswith(("_NR_", "NR_")) and isinstance(node.ctx, ast.Store):
            return True
    return False


def test_only_standalone_programs_load_the_c_library_themselves() -> None:
    paths = [path for part in ("kdamon", "fs/kdamon_fs", "tools/kdamon_tools") for path in (ROOT / part).rglob("*.py")]

    found = {str(path.relative_to(ROOT)) for path in paths if loads_the_c_library(path)}

    assert {"kdamon/lib/syscalls.py", *STANDALONE} == found


@pytest.mark.real
def test_nothing_is_loaded_at_import() -> None:
    code = "from kdamon.lib import syscalls; print(syscalls.libc.cache_info().currsize)"

    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    assert "0\n" == result.stdout


def test_a_failed_system_call_returns_its_errno() -> None:
    assert -errno.ENOSYS == syscall(NO_SUCH_SYSCALL)
    assert -errno.EINVAL == call("umount2", b"/", 1 << 20)
    assert -errno.EINVAL == prctl(NO_SUCH_SYSCALL)


def test_a_failed_system_call_is_an_error_with_a_sentence() -> None:
    with pytest.raises(OSError, match="cannot do it") as raised:
        checked(-errno.EPERM, "cannot do it")

    assert (errno.EPERM, f"cannot do it: {os.strerror(errno.EPERM)}") == raised.value.args


def test_without_a_sentence_the_system_has_the_word() -> None:
    with pytest.raises(PermissionError) as raised:
        checked(-errno.EPERM)

    assert os.strerror(errno.EPERM) == raised.value.strerror


def test_results_pass() -> None:
    getpid = 39

    assert os.getpid() == checked(syscall(getpid), "never")
