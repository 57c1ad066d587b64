# SPDX-License-Identifier: GPL-2.0-only
"""One object for the whole process."""

from __future__ import annotations

import os

import pytest

from kdamon.mm.bpf.shared import Shared


def test_it_is_made_once() -> None:
    """When it is first asked for."""
    shared = Shared(object)
    assert shared.made() is None
    first = shared.get()
    assert first is shared.get()
    assert first is shared.made()


def test_a_failure_is_not_remembered() -> None:
    """The next call tries again."""
    results = iter([OSError("no files"), 5])

    def make() -> int:
        result = next(results)
        if isinstance(result, OSError):
            raise result
        return result

    shared = Shared(make)
    with pytest.raises(OSError, match="no files"):
        shared.get()
    assert 5 == shared.get()


@pytest.mark.real
def test_a_child_makes_its_own() -> None:
    """Even if another thread of the parent is just making it."""
    shared = Shared(os.getpid)
    assert os.getpid() == shared.get()
    with shared._lock:
        child = os.fork()
        if not child:
            os._exit(0 if shared.made() is None and shared.get() == os.getpid() else 1)
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
