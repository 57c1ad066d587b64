# SPDX-License-Identifier: GPL-2.0-only
"""What is taken for fusepy and libfuse 2, what not, and that a mount and ``kdamon doctor`` give the same answer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kdamon_fs import fuse_binding
from kdamon_fs.fuse_binding import Lack, device_lack, python_fuse
from kdamon_tools.checks import tool_checks

if isinstance(python_fuse(), Lack):
    pytest.skip("fusepy and libfuse2 are not installed", allow_module_level=True)

#: Files of modules that have the name: PyPI's fuse, which needs others; fuse-python; a script; Python 2; a directory.
MODULES = {
    "fuse/__init__.py": "import there_is_no_such_module\n",
    "fuse.py": "class Fuse:\n    pass\nFUSE_PYTHON_API_VERSION = (0, 2)\n",
    "script/fuse.py": "import sys\nsys.exit('usage: fuse FILE')\n",
    "old/fuse.py": "print 'fuse'\n",
    "odd/fuse.py": "raise OSError('Unable to find libfuse')\n",
}

LIBFUSE_3 = "int fuse_version(void) { return 316; }\n" + "".join(
    f"int {name}(void) {{ return 0; }}\n" for name in ("fuse_main_real", "fuse_get_context", "fuse_exit")
)


#: What doctor shows of the tools, without what it tries of the monitor, which takes a second.
ROWS = """
import attrs, json
from kdamon_tools.checks import tool_checks
print(json.dumps([attrs.asdict(check) for check in tool_checks()]))
"""


def python(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What a Python program says with these variables."""
    paths = os.pathsep.join([environment.pop("PYTHONPATH", ""), *sys.path]).lstrip(os.pathsep)
    return subprocess.run(
        [sys.executable, "-P", *words],
        env={**os.environ, **environment, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def refused_alike(directory: Path, **environment: str) -> str:
    """The sentence of a mount, which has to be one; doctor's row has to say the same."""
    mounting = python("-m", "kdamon_tools", "mount", str(directory), **environment)
    assert mounting.returncode == 1
    assert mounting.stderr.count("\n") == 1, mounting.stderr
    (row,) = (row for row in json.loads(python("-c", ROWS, **environment).stdout) if row["name"].startswith("libfuse"))
    assert not row["available"]
    assert f"kdamon: cannot mount: {row['why']}; remedy: {row['remedy']}\n" == mounting.stderr
    return mounting.stderr


@pytest.mark.parametrize("name", MODULES)
def test_another_module_of_the_name_is_named_with_its_file(tmp_path: Path, name: str) -> None:
    """Whatever it does when it is imported; it is to be moved away, and nothing else is to be installed."""
    file = tmp_path / "path" / name
    file.parent.mkdir(parents=True)
    file.write_text(MODULES[name])
    top = file.parent.parent if name.startswith("fuse/") else file.parent
    said = refused_alike(tmp_path, PYTHONPATH=str(top))
    assert f"{file} is not fusepy" in said
    assert "move that file away" in said


def test_a_package_that_took_the_name_is_named(tmp_path: Path) -> None:
    """It is what pip has to remove."""
    (tmp_path / "fuse.py").write_text(MODULES["fuse.py"])
    about = tmp_path / "fuse_python-1.0.9.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: fuse-python\nVersion: 1.0.9\n")
    (about / "top_level.txt").write_text("fuse\n")
    said = refused_alike(tmp_path, PYTHONPATH=str(tmp_path))
    assert "remedy: pip uninstall fuse-python, then pip install --force-reinstall fusepy" in said


@pytest.mark.parametrize("name", ["libm.so.6", "/nowhere/libfuse.so.2", "/", "/etc/passwd", "."])
def test_another_library_is_named_with_the_variable(tmp_path: Path, name: str) -> None:
    """Another one, none, a directory and a text."""
    said = refused_alike(tmp_path, FUSE_LIBRARY_PATH=name)
    assert f"FUSE_LIBRARY_PATH names {name}, which " in said
    assert "unset FUSE_LIBRARY_PATH" in said


def test_a_pipe_for_a_library_is_not_waited_for(tmp_path: Path) -> None:
    """Nobody ever writes to it."""
    os.mkfifo(tmp_path / "pipe")
    said = refused_alike(tmp_path, FUSE_LIBRARY_PATH=str(tmp_path / "pipe"))
    assert "which cannot be loaded (it is no regular file)" in said


def test_libfuse_3_is_no_substitute(tmp_path: Path) -> None:
    """It has the names, with other arguments; a call would be the end of the process."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("cc is not installed")
    library = tmp_path / "libfuse.so"
    subprocess.run([compiler, "-shared", "-x", "c", "-", "-o", library], input=LIBFUSE_3, text=True, check=True)
    assert "is libfuse 3.16, where 2.9 is needed" in refused_alike(tmp_path, FUSE_LIBRARY_PATH=str(library))


def test_no_library_and_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is named with how to get it."""
    monkeypatch.delenv("FUSE_LIBRARY_PATH", raising=False)
    monkeypatch.setattr(fuse_binding, "_loads", lambda name: name == "libfuse3.so.3")
    lack = python_fuse()
    assert isinstance(lack, Lack)
    assert lack.why == "libfuse 2 is not installed (libfuse 3 is, and it is no substitute)"
    assert lack.remedy.startswith("apt install libfuse2")
    monkeypatch.setattr(fuse_binding, "_loads", lambda _: False)
    monkeypatch.delitem(sys.modules, "fuse")
    monkeypatch.setattr(fuse_binding.importlib.util, "find_spec", lambda _: None)
    assert python_fuse() == Lack(38, "the Python package fusepy is not installed", "pip install fusepy")


@pytest.mark.parametrize(
    ("device", "why", "remedy"),
    [
        ("/nowhere/fuse", "/nowhere/fuse cannot be opened (No such file or directory)", "--device /dev/fuse"),
        ("/dev/null", "/dev/null is something else than the FUSE device", "--device /dev/fuse"),
        ("/etc", "/etc cannot be opened (Is a directory)", "modprobe fuse"),
    ],
)
def test_the_device_is_the_right_one(monkeypatch: pytest.MonkeyPatch, device: str, why: str, remedy: str) -> None:
    """Doctor and a mount look at the same; a container has to be given it."""
    monkeypatch.setattr(fuse_binding, "_DEVICE", device)
    monkeypatch.setattr(fuse_binding, "_kernel_has_fuse", lambda: True)
    lack = device_lack()
    assert lack is not None
    assert lack.why == why
    assert remedy in lack.remedy
    (check,) = (check for check in tool_checks() if check.name.startswith("/dev/fuse"))
    assert (check.available, check.why, check.remedy) == (False, lack.why, lack.remedy)


@pytest.mark.parametrize(("user", "remedy"), [(0, "a container has to be started with it"), (1000, "run as root")])
def test_a_device_that_is_denied(monkeypatch: pytest.MonkeyPatch, user: int, remedy: str) -> None:
    """Root is not advised to be root."""

    def denied(*_: object) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(fuse_binding.os, "open", denied)
    monkeypatch.setattr(fuse_binding.os, "geteuid", lambda: user)
    lack = device_lack()
    assert lack is not None
    assert lack.number == 1
    assert lack.remedy.startswith(remedy)
