# SPDX-License-Identifier: GPL-2.0-only
"""What is shipped: the wheel's contents, its console script, and the licence in every file."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from kdamon_tools.options import VERBS
from kdamon_tools.shells import SHELLS
from tests.support.paths import ROOT

pytestmark = pytest.mark.real


CHECKOUT = ROOT
PACKAGES = {
    "kdamon": CHECKOUT / "kdamon",
    "kdamon_fs": CHECKOUT / "fs/kdamon_fs",
    "kdamon_tools": CHECKOUT / "tools/kdamon_tools",
}
SPDX = "SPDX-License-Identifier: GPL-2.0-only"


def pip(*words: str | Path) -> None:
    """Run this interpreter's pip; its output is shown if it fails."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *words]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert 0 == result.returncode, result.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built with what is installed here and nothing from the network."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, CHECKOUT)
    [built] = folder.glob("kdamon-*.whl")
    return built


def test_top_level_names_are_the_three_packages(wheel: Path) -> None:
    """Nothing named fs, tools or tests reaches site-packages."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name.split("/")[0] for name in archive.namelist()}
    assert set(PACKAGES) == {name for name in names if not name.endswith((".dist-info", ".data"))}


def test_the_schemas_of_json_are_shipped(wheel: Path) -> None:
    """They are installed as share/kdamon/schemas."""
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name.split(".data/", 1)[1] for name in archive.namelist() if "/share/kdamon/schemas/" in name}
    present = {f"data/share/kdamon/schemas/{path.name}" for path in (CHECKOUT / "docs/schemas").iterdir()}
    assert present == shipped


def test_man_pages_and_completions_are_shipped(wheel: Path) -> None:
    """At the places where man and the shells look for them below a prefix."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name.partition(".data/data/")[2] for name in archive.namelist() if ".data/" in name}
    pages = {f"share/man/man1/{name}.1" for name in ("kdamon", *(f"kdamon-{verb}" for verb in VERBS))}
    assert {*pages, *SHELLS.values()} <= names


def test_every_module_is_shipped_with_types(wheel: Path) -> None:
    """The wheel has the checkout's modules, no more and no less, and the marker of typed packages."""
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name for name in archive.namelist() if name.endswith((".py", "py.typed", ".h"))}
    present = {
        f"{name}/{path.relative_to(folder)}"
        for name, folder in PACKAGES.items()
        for pattern in ("*.py", "py.typed", "*.h")
        for path in folder.rglob(pattern)
    }
    assert present == shipped
    assert {f"{name}/py.typed" for name in PACKAGES} <= shipped


def test_the_parts_of_pages_are_shipped(wheel: Path) -> None:
    """What an HTML page is made of, and the licence of the library in it."""
    folder = PACKAGES["kdamon_tools"] / "pictures"
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name for name in archive.namelist() if name.startswith("kdamon_tools/pictures/")}
        licences = [name for name in archive.namelist() if "/licenses/" in name and "uplot" in name]
    present = {path.relative_to(folder.parent.parent).as_posix() for path in folder.rglob("*.*") if path.is_file()}
    present.add("kdamon_tools/pictures/uplot/LICENSE")
    assert {name for name in present if "__pycache__" not in name} == shipped
    assert 1 == len(licences)


def test_the_installed_command_works(wheel: Path, tmp_path: Path) -> None:
    """Installed from the wheel, away from the checkout, the console script knows its version and its verbs."""
    environment = tmp_path / "venv"
    # The packages that the wheel needs are those of this interpreter.
    venv.create(environment, system_site_packages=False, with_pip=False)
    site = Path(
        subprocess.check_output(
            [environment / "bin/python", "-c", "import site; print(site.getsitepackages()[0])"], text=True
        ).strip()
    )
    own_site = subprocess.check_output(
        [sys.executable, "-c", "import site; print(site.getsitepackages()[0])"], text=True
    )
    pip("--python", environment / "bin/python", "install", "--no-deps", "--no-index", wheel)
    (site / "dependencies.pth").write_text(own_site)
    command = environment / "bin/kdamon"
    version = subprocess.check_output([command, "--version"], text=True, cwd=tmp_path)
    assert f"kdamon {wheel.name.split('-')[1]}\n" == version
    usage = subprocess.check_output([command, "--help"], text=True, cwd=tmp_path)
    for verb in VERBS:
        assert verb in usage
    assert (environment / "share/man/man1/kdamon-run.1").is_file()
    where = subprocess.check_output(
        [environment / "bin/python", "-c", "import kdamon_tools; print(kdamon_tools.__file__)"], text=True, cwd=tmp_path
    )
    assert where.startswith(str(site))


def test_every_source_file_names_its_licence() -> None:
    """The SPDX line is the first one, or the second after an interpreter's; empty markers need none."""
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=CHECKOUT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if tracked.returncode:
        files = [path for folder in (*PACKAGES.values(), CHECKOUT / "tests") for path in folder.rglob("*.py")]
    else:
        names = [name for name in tracked.stdout.split("\0") if name]
        files = [CHECKOUT / name for name in names if (CHECKOUT / name).is_file()]
        sources = (".py", ".toml", ".sh", ".c", ".h")
        files = [
            path for path in files if path.suffix in sources or path.name == "Makefile" or path.parent.name == ".ci"
        ]
    assert len(files) > 20
    without = []
    for path in files:
        text = path.read_text(encoding="utf-8")
        if text and not any(SPDX in line for line in text.splitlines()[:2]):
            without.append(str(path.relative_to(CHECKOUT)))
    assert [] == without
