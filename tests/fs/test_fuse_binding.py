# SPDX-License-Identifier: GPL-2.0-only
"""Which binding of FUSE is chosen, and what is taken for one; a mount and ``kdamon doctor`` give the same answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdamon_fs import fuse_binding, fuse_packages
from kdamon_fs.fuse_binding import Lack, choose_binding, device_lack
from kdamon_tools.checks import tool_checks
from tests.support.capabilities import needs_binding, needs_both_libfuses, needs_compiler, needs_dev_fuse, needs_root
from tests.support.fuse_bindings import usable

pytestmark = pytest.mark.real


#: Files of modules that have the name: PyPI's fuse, which needs others; fuse-python; a script; Python 2; a directory.
MODULES = {
    "fuse/__init__.py": "import there_is_no_such_module\n",
    "fuse.py": "class Fuse:\n    pass\nFUSE_PYTHON_API_VERSION = (0, 2)\n",
    "script/fuse.py": "import sys\nsys.exit('usage: fuse FILE')\n",
    "old/fuse.py": "print 'fuse'\n",
    "odd/fuse.py": "raise OSError('Unable to find libfuse')\n",
    "mfusepy.py": "class FUSE:\n    pass\n",
}

#: A library with the names of all versions that answers to be version VERSION.
LIBRARY = "int fuse_version(void) { return VERSION; }\n" + "".join(
    f"int {name}(void) {{ return 0; }}\n" for name in ("fuse_main_real", "fuse_get_context", "fuse_exit")
)

#: What doctor shows of the tools, without what it tries of the monitor, which takes a second.
ROWS = """
import attrs, json
from kdamon_tools.checks import tool_checks
print(json.dumps([attrs.asdict(check) for check in tool_checks()]))
"""

#: Serves a tree at the kernel's place and reads a file of it.
SERVES = ("exec", "--no-reports", "--", "cat", "/sys/kernel/mm/damon/admin/kdamonds/nr_kdamonds")


def python(*words: str, before: tuple[str, ...] = (), **environment: str) -> subprocess.CompletedProcess[str]:
    """What a Python program says with these variables."""
    paths = os.pathsep.join([environment.pop("PYTHONPATH", ""), *sys.path]).lstrip(os.pathsep)
    return subprocess.run(
        [*before, sys.executable, "-P", *words],
        env={**os.environ, **environment, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )


def shown(before: tuple[str, ...] = (), **environment: str) -> dict[str, str | bool]:
    """Doctor's row about the binding."""
    rows = json.loads(python("-c", ROWS, before=before, **environment).stdout)
    (row,) = (row for row in rows if row["name"].startswith("libfuse"))
    assert isinstance(row, dict)
    return row


def refused_alike(directory: Path, before: tuple[str, ...] = (), **environment: str) -> str:
    """The sentence of a mount, which has to be one; doctor's row has to say the same."""
    mounting = python("-m", "kdamon_tools", "mount", str(directory), before=before, **environment)
    assert 1 == mounting.returncode
    assert 1 == mounting.stderr.count("\n"), mounting.stderr
    row = shown(before, **environment)
    assert not row["available"]
    assert f"kdamon: cannot mount: {row['why']}; remedy: {row['remedy']}\n" == mounting.stderr
    return mounting.stderr


def without(*libraries: str) -> tuple[str, ...]:
    """A command in whose mount namespace these libraries of the loader's are empty files."""
    script = 'set -e; for file; do shift; [ "$file" = -- ] && break; mount --bind /dev/null "$file"; done; exec "$@"'
    files = [file for library in libraries for file in loaded_from(library)]
    return ("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *files, "--")


def loaded_from(library: str) -> list[str]:
    """The file that the loader takes for a library; none if there is none."""
    question = f"import ctypes; ctypes.CDLL({library!r}); print(open('/proc/self/maps').read())"
    maps = subprocess.run([sys.executable, "-c", question], capture_output=True, text=True, check=False).stdout
    stem = library.partition(".so")[0]
    return sorted(
        {words[5] for line in maps.splitlines() if len(words := line.split()) > 5 and f"/{stem}.so" in words[5]}
    )


LIBFUSE_3 = ("libfuse3.so.3", "libfuse3.so.4")


@needs_dev_fuse
@needs_root("a mount namespace needs root")
@needs_both_libfuses
@pytest.mark.parametrize(
    ("hidden", "chosen", "expected"),
    [
        ((), "", "fusepy with libfuse 2."),
        ((), "fusepy", "fusepy with libfuse 2."),
        ((), "mfusepy", "mfusepy with libfuse 3."),
        (("libfuse.so.2",), "", "mfusepy with libfuse 3."),
        (LIBFUSE_3, "", "fusepy with libfuse 2."),
    ],
)
def test_the_binding_whose_library_is_there_serves(hidden: tuple[str, ...], chosen: str, expected: str) -> None:
    """fusepy where both are; ``KDAMON_FUSE`` forces one. Doctor shows which, and why it is not the first."""
    before = without(*hidden)
    row = shown(before, KDAMON_FUSE=chosen)
    assert row["available"]
    assert str(row["why"]).startswith(expected)
    assert ("libfuse.so.2" in hidden) == str(row["why"]).endswith("), because libfuse 2 is not installed")
    assert bool(chosen) == str(row["why"]).endswith("), because KDAMON_FUSE is set")
    question = "import sys; from kdamon_fs.fuse_binding import load_fuse; print(load_fuse().module.__name__)"
    expected_module = "fuse" if expected.startswith("fusepy") else "mfusepy"
    assert f"{expected_module}\n" == python("-c", question, before=before, KDAMON_FUSE=chosen).stdout
    done = python("-m", "kdamon_tools", *SERVES, before=before, KDAMON_FUSE=chosen)
    assert (0, "0\n", "") == (done.returncode, done.stdout, done.stderr)


def test_apt_is_not_asked_where_a_binding_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each mount would take longer."""
    loads = fuse_binding._loads
    monkeypatch.delenv("FUSE_LIBRARY_PATH", raising=False)
    monkeypatch.delenv("KDAMON_FUSE", raising=False)
    monkeypatch.setattr(fuse_packages, "_known_to_apt", lambda: pytest.fail("it was asked"))
    first = choose_binding()
    assert not isinstance(first, Lack)
    monkeypatch.setattr(fuse_binding, "_loads", lambda name: loads(name) and name == first.library)
    assert first.library == getattr(choose_binding(), "library", None)


@needs_root("a mount namespace needs root")
@needs_both_libfuses
@pytest.mark.parametrize(
    ("hidden", "chosen", "why"),
    [
        (("libfuse.so.2", *LIBFUSE_3), "", "neither libfuse 2 nor libfuse 3 is installed"),
        (("libfuse.so.2",), "fusepy", "libfuse 2 is not installed"),
        (LIBFUSE_3, "mfusepy", "libfuse 3 is not installed"),
    ],
)
def test_no_library(tmp_path: Path, hidden: tuple[str, ...], chosen: str, why: str) -> None:
    """One sentence with the package, also where the other binding would work and was not asked for."""
    said = refused_alike(tmp_path, without(*hidden), KDAMON_FUSE=chosen)
    assert said.startswith(f"kdamon: cannot mount: {why}; remedy: ")
    if fuse_packages._distribution() == "debian":
        assert "remedy: apt install libfuse" in said
    assert bool(chosen) == said.endswith(", or unset KDAMON_FUSE\n")


@pytest.mark.parametrize("verb", ["mount", "exec"])
def test_a_choice_that_is_none(tmp_path: Path, verb: str) -> None:
    """One sentence, status 2; doctor says the same."""
    words = {"mount": ["mount", str(tmp_path)], "exec": ["exec", "--", "true"]}[verb]
    done = python("-m", "kdamon_tools", *words, KDAMON_FUSE="nonsense\033[m")
    sentence = "KDAMON_FUSE='nonsense\\x1b[m' names no FUSE binding: set it to fusepy or mfusepy, or unset it"
    assert (2, f"kdamon: {sentence}\n") == (done.returncode, done.stderr)
    row = shown(KDAMON_FUSE="nonsense\033[m")
    assert (False, sentence) == (row["available"], f"{row['why']}: {row['remedy']}")


def package_of(module: str) -> str:
    """The package that has a module of this name."""
    return "mfusepy" if module == "mfusepy.py" else "fusepy"


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs_binding(package_of(name))) for name in MODULES])
def test_another_module_of_the_name_is_named_with_its_file(tmp_path: Path, name: str) -> None:
    """Whatever it does when it is imported; it is to be moved away, and nothing else is to be installed."""
    package = package_of(name)
    file = tmp_path / "path" / name
    file.parent.mkdir(parents=True)
    file.write_text(MODULES[name])
    top = file.parent.parent if name.startswith("fuse/") else file.parent
    said = refused_alike(tmp_path, PYTHONPATH=str(top), KDAMON_FUSE=package)
    assert f"{file} is not {package}" in said
    assert "move that file away" in said


@needs_both_libfuses
def test_another_module_leaves_the_other_binding(tmp_path: Path) -> None:
    """Doctor says why."""
    (tmp_path / "fuse.py").write_text(MODULES["fuse.py"])
    row = shown(PYTHONPATH=str(tmp_path), KDAMON_FUSE="")
    assert row["available"]
    assert str(row["why"]).startswith("mfusepy with libfuse 3.")
    assert str(row["why"]).endswith(f", because {tmp_path}/fuse.py is not fusepy")


@needs_binding("fusepy")
def test_a_package_that_took_the_name_is_named(tmp_path: Path) -> None:
    """It is what pip has to remove."""
    (tmp_path / "fuse.py").write_text(MODULES["fuse.py"])
    about = tmp_path / "fuse_python-1.0.9.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: fuse-python\nVersion: 1.0.9\n")
    (about / "top_level.txt").write_text("fuse\n")
    said = refused_alike(tmp_path, PYTHONPATH=str(tmp_path), KDAMON_FUSE="fusepy")
    assert "remedy: pip uninstall fuse-python, then pip install --force-reinstall fusepy" in said


@pytest.mark.parametrize("name", ["libm.so.6", "/nowhere/libfuse.so.2", "/", "/etc/passwd", "."])
def test_another_library_is_named_with_the_variable(tmp_path: Path, name: str) -> None:
    """Another one, none, a directory and a text."""
    said = refused_alike(tmp_path, FUSE_LIBRARY_PATH=name)
    assert f"FUSE_LIBRARY_PATH names {name}, which " in said
    assert "unset FUSE_LIBRARY_PATH" in said


def test_a_pipe_for_a_library_is_not_waited_for(tmp_path: Path) -> None:
    """No process ever writes to it."""
    os.mkfifo(tmp_path / "pipe")
    said = refused_alike(tmp_path, FUSE_LIBRARY_PATH=str(tmp_path / "pipe"))
    assert "which cannot be loaded (it is not a regular file)" in said


@needs_both_libfuses
@pytest.mark.parametrize("package", ["fusepy", "mfusepy"])
def test_a_library_that_is_named_decides(package: str) -> None:
    """The binding is the one that takes it."""
    names = ("libfuse.so.2",) if package == "fusepy" else LIBFUSE_3
    (file,) = (file for name in names for file in loaded_from(name))
    row = shown(FUSE_LIBRARY_PATH=file, KDAMON_FUSE="")
    assert row["available"]
    assert str(row["why"]).startswith(f"{package} with libfuse ")
    assert f"({file})" in str(row["why"])


@needs_compiler
@pytest.mark.parametrize(
    ("number", "chosen", "wrong"),
    [
        (316, "fusepy", "is libfuse 3.16, where 2.9 is needed"),
        (29, "mfusepy", "is libfuse 2.9, where 3.12 or newer is needed"),
        (39, "", "is libfuse 3.9, where 2.9 (or 3.12 or newer) is needed"),
        (310, "", "is libfuse 3.10, where 2.9 (or 3.12 or newer) is needed"),
        (400, "", "is libfuse 4.0, where 2.9 (or 3.12 or newer) is needed"),
        (316, "", "is not libfuse"),
    ],
)
def test_a_library_of_another_version_is_no_substitute(tmp_path: Path, number: int, chosen: str, wrong: str) -> None:
    """It has the names, with other arguments; a call would be the end of the process."""
    library = tmp_path / "libfuse.so"
    words = ["cc", "-shared", f"-DVERSION={number}", "-x", "c", "-", "-o", library]
    subprocess.run(words, input=LIBRARY, text=True, check=True)
    said = refused_alike(tmp_path, FUSE_LIBRARY_PATH=str(library), KDAMON_FUSE=chosen)
    assert f"which {wrong};" in said


def test_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the first one whose library is there."""
    monkeypatch.delenv("FUSE_LIBRARY_PATH", raising=False)
    monkeypatch.delenv("KDAMON_FUSE", raising=False)
    for module in ("fuse", "mfusepy"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr(fuse_binding.importlib.util, "find_spec", lambda _: None)
    found = choose_binding()
    assert Lack(38, f"the Python package {usable()[0]} is not installed", f"pip install {usable()[0]}") == found


@pytest.mark.parametrize(
    ("device", "why", "remedy"),
    [
        ("/nowhere/fuse", "/nowhere/fuse cannot be opened (No such file or directory)", "--device /dev/fuse"),
        ("/dev/null", "/dev/null is not the FUSE device", "--device /dev/fuse"),
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


@pytest.mark.parametrize(("user", "remedy"), [(0, "a container needs it from its start"), (1000, "run as root")])
def test_a_device_that_is_denied(monkeypatch: pytest.MonkeyPatch, user: int, remedy: str) -> None:
    """Root is not advised to be root."""

    def denied(*_: object) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(fuse_binding.os, "open", denied)
    monkeypatch.setattr(fuse_binding.os, "geteuid", lambda: user)
    lack = device_lack()
    assert lack is not None
    assert 1 == lack.number
    assert lack.remedy.startswith(remedy)
