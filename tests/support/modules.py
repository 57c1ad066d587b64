# SPDX-License-Identifier: GPL-2.0-only
"""Modules on simulated processes, in simulated and in real time, and on real ones."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from kdamon.core import run_ctx
from kdamon.damon import damon_call_control, damon_ctx
from kdamon.kernel import rnd_state
from kdamon.mm.linux.machine import LinuxMachine, linux_machine
from kdamon.mm.sim.machine import SimMachine
from kdamon.mm.sim.process import SimProcess
from kdamon.modules_common import DamonModule
from tests.support.capabilities import skip_because
from tests.support.workload import Pages, Workload

MEBI = 1 << 20
#: Where the memory is that processes use.
HEAP = 1 << 32

AModule = TypeVar("AModule", bound=DamonModule)


def spawn(machine: SimMachine, pid: int = 150, size: int = 100 * MEBI) -> SimProcess:
    """A process with ``size`` of memory at HEAP, and a little far below and far above."""
    return machine.spawn([(MEBI, 2 * MEBI), (HEAP, HEAP + size), (1 << 46, (1 << 46) + MEBI)], pid)


def module(kind: type[AModule], machine: SimMachine, **parameters: Any) -> AModule:
    """A module in the virtual time of ``machine``."""
    return kind(machine=lambda: machine, clock=machine.clock, **parameters)


def run(a_module: DamonModule, ctx: damon_ctx, seconds: float, watch: Callable[[], None] | None = None) -> None:
    """Let ``a_module`` work with ``ctx`` for simulated ``seconds``, which takes no time.

    :param watch: called in each sampling interval, after the module had a look.
    """
    ctx.rnd = rnd_state(1)
    controls = [damon_call_control(fn=a_module.call_fn, data=ctx, repeat=True)]
    if watch is not None:
        controls.append(damon_call_control(fn=lambda _data: watch(), repeat=True))
    ctx.call_controls += controls
    run_ctx(ctx, seconds)


@contextmanager
def shut_down(*modules: DamonModule) -> Iterator[None]:
    """Shut ``modules`` down at the end, whatever happens."""
    try:
        yield
    finally:
        for a_module in modules:
            a_module.shutdown()


@contextmanager
def real_machine() -> Iterator[LinuxMachine]:
    """The machine that runs this; the test is skipped where it cannot read accessed bits."""
    try:
        machine = linux_machine("page_table")
    except OSError as error:
        skip_because(error)
    yield machine
    machine.close()


@contextmanager
def reading(work: Workload, pages: Pages) -> Iterator[None]:
    """Let ``work`` read ``pages`` over and over."""
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            work.order("r", pages)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield
    finally:
        done.set()
        reader.join()
