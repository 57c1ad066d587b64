# SPDX-License-Identifier: GPL-2.0-only
"""What a test needs of the machine and of its user, as decorators; without it the test is skipped with the reason.

A reason that begins with "kernel lacks: " excuses a skip also where everything is required (tests/conftest.py).

Conditions that cost something are looked at when the first test with the decorator begins, and once in a run: they are
conditions in text for :func:`pytest.mark.skipif`, with the names that :func:`pytest_markeval_namespace` gives them.
"""

from __future__ import annotations

import errno
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, NoReturn

import pytest

__all__ = [
    "compiler",
    "freezer_directory",
    "memory_limit",
    "needs_anonymous_huge_pages",
    "needs_binding",
    "needs_both_libfuses",
    "needs_cgroup2",
    "needs_compiler",
    "needs_damo",
    "needs_damon_sysfs",
    "needs_dev_fuse",
    "needs_free_hugetlb",
    "needs_freezer",
    "needs_libfuse",
    "needs_memory_cgroup",
    "needs_memory_limit",
    "needs_mount_namespace",
    "needs_node",
    "needs_page_cgroups",
    "needs_path",
    "needs_pid_namespace",
    "needs_program",
    "needs_psi",
    "needs_read_faults",
    "needs_root",
    "needs_swap",
    "needs_two_nodes",
    "needs_user_namespace",
    "needs_write_faults_alone",
    "skip_because",
]

_CONDITIONS: Final[dict[str, Callable[..., bool]]] = {}


def pytest_markeval_namespace() -> dict[str, Callable[..., bool]]:
    """The names in conditions; this module is a plugin of pytest."""
    return _CONDITIONS


def _condition(has: Callable[..., bool]) -> Callable[..., bool]:
    cached = functools.cache(has)
    _CONDITIONS[has.__name__] = cached
    return cached


def _needs(condition: str, reason: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(f"not {condition}", reason=reason)


def needs_root(why: str) -> pytest.MarkDecorator:
    """Skip for another user than root.

    :param why: what only root can do.
    """
    return pytest.mark.skipif(os.geteuid() != 0, reason=why)


# Programs and libraries.


@_condition
def has_program(name: str) -> bool:
    return shutil.which(name) is not None


def needs_program(name: str, package: str) -> pytest.MarkDecorator:
    """Skip where a program is not on PATH.

    :param package: Debian's package that has it.
    """
    return _needs(f"has_program({name!r})", f"{name} is missing: apt-get install {package}")


needs_compiler = needs_program("cc", "gcc libc6-dev")
needs_damo = pytest.mark.skipif(not Path(sys.executable).with_name("damo").exists(), reason="damo is not installed")


@_condition
def has_libfuse(package: str = "") -> bool:
    from tests.support.fuse_bindings import usable

    return bool(usable()) if not package else package in usable()


needs_libfuse = _needs("has_libfuse()", "no libfuse is installed")


def needs_binding(package: str) -> pytest.MarkDecorator:
    """Skip without the library of a binding, ``fusepy`` or ``mfusepy``."""
    return _needs(f"has_libfuse({package!r})", f"the library of {package} is not installed")


@_condition
def has_both_libfuses() -> bool:
    from tests.support.fuse_bindings import PACKAGES, usable

    return len(usable()) == len(PACKAGES)


needs_both_libfuses = _needs("has_both_libfuses()", "libfuse 2 and libfuse 3 are not both installed")


# The kernel.


@_condition
def has_path(path: str) -> bool:
    return os.path.exists(path)


def needs_path(path: str, what: str) -> pytest.MarkDecorator:
    """Skip where a file that a feature of the kernel brings is missing.

    :param what: the feature.
    """
    return _needs(f"has_path({path!r})", f"kernel lacks: {what}")


needs_dev_fuse = needs_path("/dev/fuse", "/dev/fuse")
needs_psi = needs_path("/proc/pressure/memory", "pressure stall information")
needs_damon_sysfs = needs_path("/sys/kernel/mm/damon/admin", "CONFIG_DAMON_SYSFS, so there is nothing to find")


@_condition
def has_anonymous_huge_pages() -> bool:
    enabled = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return enabled.exists() and "[never]" not in enabled.read_text(encoding="ascii")


needs_anonymous_huge_pages = _needs("has_anonymous_huge_pages()", "kernel lacks: transparent huge pages")


@_condition
def has_free_hugetlb(number: int) -> bool:
    text = Path("/proc/meminfo").read_text(encoding="ascii")
    free = [int(line.split()[1]) for line in text.splitlines() if line.startswith("HugePages_Free:")]
    return sum(free) >= number


def needs_free_hugetlb(number: int) -> pytest.MarkDecorator:
    """Skip where hugetlbfs has fewer free pages than ``number``."""
    return _needs(f"has_free_hugetlb({number})", "kernel lacks: free huge TLB pages; sysctl vm.nr_hugepages makes some")


@_condition
def has_read_faults() -> bool:
    from kdamon.mm.sampling.uffd import reads_fault

    return reads_fault()


needs_read_faults = _needs("has_read_faults()", "kernel lacks: userfaultfd RWP, which Linux 7.3 brings")
needs_write_faults_alone = _needs("not has_read_faults()", "kernel lacks: anonymous memory where only writes fault")


@_condition
def has_swap() -> bool:
    return len(Path("/proc/swaps").read_text(encoding="utf-8").splitlines()) > 1


needs_swap = _needs("has_swap()", "kernel lacks: swap")


@_condition
def has_nodes(number: int) -> bool:
    from kdamon.mm.actions.migrate import memory_nodes

    return len(memory_nodes()) >= number


needs_node = _needs("has_nodes(1)", "kernel lacks: NUMA nodes")
needs_two_nodes = _needs("has_nodes(2)", "kernel lacks: a second NUMA node with memory")


# Namespaces.


@_condition
def may_unshare(*options: str) -> bool:
    return not subprocess.run(["unshare", *options, "true"], check=False, capture_output=True).returncode


needs_user_namespace = _needs("may_unshare('-Ur')", "kernel lacks: user namespaces")
needs_mount_namespace = _needs("may_unshare('--mount')", "private mount namespaces are not allowed here")
needs_pid_namespace = _needs("may_unshare('-pf', '--mount-proc')", "PID namespaces are not allowed here")


# Control groups.


@_condition
def has_cgroup2() -> bool:
    from kdamon.lib.mountinfo import mounts

    return any(entry.fstype == "cgroup2" for entry in mounts())


needs_cgroup2 = _needs("has_cgroup2()", "kernel lacks: control groups of the second version, or they are not mounted")


@_condition
def has_memory_cgroup() -> bool:
    from kdamon.mm.proc.cgroup import memory_root

    try:
        return os.access(memory_root()[0], os.W_OK)
    except OSError:
        return False


needs_memory_cgroup = _needs("has_memory_cgroup()", "kernel lacks: memory cgroups, or none may be made")
needs_page_cgroups = needs_path("/proc/kpagecgroup", "memory control groups")


def _may_make_group_with(files: tuple[str, ...], mounted: str) -> bool:
    # A group's own directory shows its files: the top has neither limits nor a freezer.
    directory = Path(mounted, f"kdamon-test-can-{os.getpid()}")
    try:
        directory.mkdir()
    except OSError:
        return False
    try:
        return all((directory / file).exists() for file in files)
    finally:
        directory.rmdir()


#: The limit and the usage of a control group, by version, and where groups of that version are mounted.
MEMORY_LIMITS: Final = (
    (("memory.max", "memory.current"), "/sys/fs/cgroup"),
    (("memory.limit_in_bytes", "memory.usage_in_bytes"), "/sys/fs/cgroup/memory"),
)


@functools.cache
def memory_limit() -> tuple[tuple[str, str], str] | None:
    """The usable one of :data:`MEMORY_LIMITS`."""
    return next((found for found in MEMORY_LIMITS if _may_make_group_with(*found)), None)


@_condition
def has_memory_limit() -> bool:
    return memory_limit() is not None


needs_memory_limit = _needs("has_memory_limit()", "control groups that limit memory are missing, or may not be made")


@functools.cache
def freezer_directory(file: str) -> Path | None:
    """Where control groups are mounted that freeze by ``file``, ``cgroup.freeze`` or ``freezer.state``."""
    from kdamon.lib.mountinfo import mounts

    for entry in mounts():
        version1 = entry.fstype == "cgroup" and "freezer" in entry.options
        freezes = version1 if file == "freezer.state" else entry.fstype == "cgroup2"
        if freezes and _may_make_group_with((file,), entry.target):
            return Path(entry.target)
    return None


@_condition
def has_freezer(file: str) -> bool:
    return freezer_directory(file) is not None


def needs_freezer(file: str) -> pytest.MarkDecorator:
    """Skip where no control group can be made that freezes by ``file``, see :func:`freezer_directory`."""
    return _needs(f"has_freezer({file!r})", f"control groups with {file} are missing, or may not be made")


def compiler(name: str = "cc") -> str:
    """The path of a C compiler, for fixtures and for what tests share; the test is skipped without it."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is missing: apt-get install {'musl-tools' if name == 'musl-gcc' else 'gcc g++ libc6-dev'}")
    return path


def skip_because(error: OSError, doing: str = "") -> NoReturn:
    """Skip the test for an error: EOPNOTSUPP says that the kernel lacks a feature, others are of rights or packages.

    :param doing: what could not be done.
    """
    lacks = "kernel lacks: " if error.errno == errno.EOPNOTSUPP else ""
    pytest.skip(f"{lacks}{doing}{error.strerror}")
