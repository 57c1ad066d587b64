# SPDX-License-Identifier: GPL-2.0-only
"""``kdamon run``: monitor a process, a command or physical memory, and show what is accessed."""

from __future__ import annotations

import argparse
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

from attrs import evolve

from kdamon_tools.addresses import check_physical_addresses, check_user_addresses, doubtful_ranges
from kdamon_tools.commands import add_verb, machine_when_needed, open_output
from kdamon_tools.commands.options import FILTERS, SAMPLING, add_filters, add_sampling
from kdamon_tools.compare import Accuracy, compare
from kdamon_tools.errors import CommandError
from kdamon_tools.history import History
from kdamon_tools.reporters.comparison import render_comparison
from kdamon_tools.reporters.heatmap import render_heatmap
from kdamon_tools.reporters.json_object import render_json
from kdamon_tools.reporters.table import SEES_WRITES_ONLY, render_line, render_summary, render_table
from kdamon_tools.snapshot import Config, Range, Recording, Snapshot
from kdamon_tools.terminal import LiveView, terminal_size, use_colour
from kdamon_tools.units import parse_cpus, parse_positive, parse_range, parse_seconds
from kdamon_tools.workloads.truth import load_truth

if TYPE_CHECKING:
    from kdamon.mm.linux import LinuxMachine
    from kdamon_tools.commands import Subparsers
    from kdamon_tools.monitor import Monitor
    from kdamon_tools.sources import ReportSources

__all__ = ["register", "run"]

_USAGE: Final = "[options] (--pid PID | --ops paddr | -- COMMAND [ARGUMENT...])"
#: How long a look at the process may take to notice a signal or the end of the time.
_TICK_S: Final = 0.1
_REDRAW_S: Final = 0.5
_LINE_S: Final = 1.0
#: A command that was asked to end gets so long before it is killed.
_GRACE_S: Final = 5.0


def register(subparsers: Subparsers) -> None:
    """Add the verb."""
    parser = add_verb(subparsers, "run", "monitor a process or a command and show what it accesses", _USAGE)
    defaults = Config(pid=0)
    what = parser.add_argument_group("what to monitor")
    what.add_argument("--pid", type=parse_positive, help="a process that runs already")
    what.add_argument(
        "--ops",
        choices=("vaddr", "fvaddr", "paddr", "reports"),
        default=defaults.ops,
        help="all of its memory, or --range only; paddr: the machine's memory by physical addresses, or --range of it; "
        "reports: --range only, and nothing is sampled",
    )
    what.add_argument(
        "--range",
        type=parse_range,
        action="append",
        default=[],
        dest="ranges",
        metavar="START-END",
        help="hexadecimal addresses to monitor with --ops fvaddr, paddr or reports; may be repeated",
    )
    what.add_argument(
        "--seconds", type=parse_seconds, help="end after this time, and with it the command; default: when it ends"
    )
    _add_counting(parser.add_argument_group("which accesses count"))
    how = parser.add_argument_group("how")
    add_sampling(how)
    how.add_argument(
        "--update-us",
        type=parse_positive,
        default=defaults.update_us,
        metavar="US",
        help="time between looks at the mappings",
    )
    how.add_argument(
        "--vaddr-regions",
        choices=("mappings", "kernel"),
        default=defaults.vaddr_regions,
        help="what is all of the memory of a process: what is populated in its mappings, or as the kernel has it three "
        "regions around all of them",
    )
    form = parser.add_argument_group("what to show")
    form.add_argument("--json", action="store_true", help="one JSON object instead of the heatmap")
    form.add_argument("--output", type=Path, metavar="FILE", help="write the result here instead of to standard output")
    form.add_argument("--quiet", action="store_true", help="only the result, nothing while monitoring")
    form.add_argument("--record", type=Path, metavar="FILE", help="keep all reports there, faults too, to replay them")
    form.add_argument("--truth", type=Path, metavar="FILE", help="compare with what a bundled workload wrote there")
    form.add_argument("--color", choices=("auto", "always", "never"), default="auto", help="NO_COLOR is honoured")
    parser.set_defaults(run=run)


def _add_counting(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--primitive",
        choices=("page_table", "page_fault"),
        help="accessed bits, or faults of sampled pages, which tell who writes; default: page_fault if one of the next "
        "three is given",
    )
    add_filters(group, parse_cpus)
    group.add_argument(
        "--reports",
        nargs="?",
        const="",
        metavar="SOCKET",
        help="take reports from other processes too; they, and the command, find the socket by KDAMON_REPORTS",
    )


def run(arguments: argparse.Namespace) -> int:
    """Monitor, show, and return the exit status: that of the command if it ended by itself, else 0."""
    _check(arguments)
    # Only now: a mistake on the command line must not need what monitoring needs.
    from kdamon_tools.monitor import Monitor  # noqa: PLC0415
    from kdamon_tools.sources import ReportSources  # noqa: PLC0415

    machine = None if arguments.ops == "reports" else machine_when_needed()
    if machine is not None and arguments.ops == "paddr" and arguments.ranges:
        _check_memory(arguments.ranges, machine)
    with ExitStack() as stack:
        output = stack.enter_context(open_output(arguments.output))
        stop = stack.enter_context(_stop_signals())
        sources = stack.enter_context(ReportSources(arguments.reports, arguments.record))
        child = None
        if arguments.command:
            faults = machine if _config(arguments, 0).primitive == "page_fault" else None
            child = stack.enter_context(_child(arguments.command, sources.environment(), faults))
        pid = child.pid if child else arguments.pid
        config = _config(arguments, 0 if arguments.ops == "paddr" else pid)
        if config.sees_writes_only and not arguments.quiet:
            print(f"kdamon: {SEES_WRITES_ONLY}", file=sys.stderr)
        history = History()
        monitor = Monitor(config, machine)
        present = monitor.look_at_ranges()
        # What a command that just begins will map is not known.
        if present is not None and child is None:
            what = "no memory of the machine is" if arguments.ops == "paddr" else "nothing is mapped"
            for sentence in doubtful_ranges(config.ranges, present, what):
                print(f"kdamon: {sentence}", file=sys.stderr)
        # What reports are about need not be a process that is here, and physical memory is none.
        ends_by_itself = child is not None or arguments.ops not in {"paddr", "reports"}
        pidfd = stack.enter_context(_pidfd(pid)) if ends_by_itself else None
        with monitor:
            note = _watch(monitor, history, pidfd, stop, arguments)
        try:
            sources.close()
        finally:
            # A recording that failed is an error, but no reason to lose what was seen.
            _show(_recording(monitor, history, sources, note), output, arguments)
        if child is not None and not stop and child.poll() is not None:
            return child.returncode if child.returncode >= 0 else 128 - child.returncode
    return 0


def _recording(monitor: Monitor, history: History, sources: ReportSources, note: str) -> Recording:
    """Everything that was seen, once monitoring ended."""
    for snapshot in monitor.drain():
        history.add(snapshot)
    error = monitor.error()
    if error is not None:
        raise CommandError(f"monitoring ended by an internal error: {error!r}") from error
    counters = evolve(monitor.counters(), producers=sources.producers(), recorded=sources.recorded())
    return Recording(monitor.config, history.snapshots, counters, monitor.started, monitor.ended, note)


def _check(arguments: argparse.Namespace) -> None:
    """Refuse command lines that make no sense, before anything is started."""
    if arguments.ops == "paddr":
        _check_physical(arguments)
        return
    if (arguments.pid is None) == (not arguments.command):
        raise CommandError("say what to monitor: either --pid PID, or -- and a command", 2)
    if bool(arguments.ranges) != (arguments.ops != "vaddr"):
        ops = "fvaddr" if arguments.ops == "vaddr" else arguments.ops
        raise CommandError(f"--ops {ops} and --range START-END go together", 2)
    if arguments.ops == "fvaddr":
        check_user_addresses(arguments.ranges)
    if arguments.tids and arguments.command and arguments.ops != "reports":
        raise CommandError("--tids names threads that run already, and COMMAND has none yet: use --pid", 2)
    if arguments.ops == "reports" and arguments.primitive:
        raise CommandError("--ops reports samples nothing by itself: leave --primitive out", 2)
    if arguments.primitive == "page_table" and _config(arguments, 0).filtered:
        raise CommandError(
            "accessed bits do not tell who accessed what, and whether it was a write: use --primitive page_fault", 2
        )
    if arguments.density and _config(arguments, 0).primitive == "page_fault":
        raise CommandError(
            "faults come from one page of each region, which says nothing about density: leave --density out, or use "
            "--ops reports with a source that samples accesses",
            2,
        )


def _check_physical(arguments: argparse.Namespace) -> None:
    for given, option in (
        (arguments.pid, "--pid"),
        (_config(arguments, 0).filtered, "--write-only, --cpus and --tids"),
        (arguments.primitive == "page_fault", "--primitive page_fault"),
        (arguments.truth, "--truth"),
    ):
        if given:
            raise CommandError(f"--ops paddr monitors the machine's memory, not a process: leave {option} out", 2)


def _check_memory(ranges: Sequence[Range], machine: LinuxMachine) -> None:
    """Refuse ranges beyond the machine's memory, where it is known how much that is."""
    memory = machine.physical_memory()
    try:
        with suppress(PermissionError):
            check_physical_addresses(ranges, memory.ram())
    finally:
        memory.put()


def _config(arguments: argparse.Namespace, pid: int) -> Config:
    names = ("ops", "update_us", "vaddr_regions", *SAMPLING, *FILTERS)
    config = Config(pid=pid, **{name: getattr(arguments, name) for name in names})
    config = evolve(config, command=tuple(arguments.command), ranges=tuple(arguments.ranges))
    if config.ops == "reports":
        return evolve(config, primitive="")
    return evolve(config, primitive=arguments.primitive or ("page_fault" if config.filtered else "page_table"))


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT, SIGTERM and SIGHUP in a list; the second one of a kind has its usual effect.

    SIGHUP stays ignored where nohup made it so.
    """
    received: list[int] = []

    def note(number: int, _frame: object) -> None:
        received.append(number)
        signal.signal(number, previous[signal.Signals(number)])

    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    if previous[signal.SIGHUP] is signal.SIG_IGN:
        del previous[signal.SIGHUP]
    for number in previous:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _child(
    command: list[str], environment: dict[str, str], faults: LinuxMachine | None
) -> Iterator[subprocess.Popen[bytes]]:
    """Start ``command`` with this process's standard streams; it does not outlive the monitoring.

    :param faults: what is to monitor it by faults, from its first instruction on; None monitors it otherwise.
    """
    child: subprocess.Popen[bytes]
    if faults is None:
        child = subprocess.Popen(command, env=environment)
    else:
        from kdamon.mm.inject import launch  # noqa: PLC0415 (few need it)

        child = launched = launch(command, env=environment)
        # Otherwise it is asked like any other process, which tells what is in the way.
        if launched.fd is not None:
            faults.adopt_userfaultfd(child.pid, launched.fd)
    try:
        yield child
    finally:
        if child.poll() is None:
            child.terminate()
            with suppress(subprocess.TimeoutExpired):
                child.wait(_GRACE_S)
        if child.poll() is None:
            child.kill()
            child.wait()


@contextmanager
def _pidfd(pid: int) -> Iterator[int]:
    """A file descriptor that tells when the process ends, also while its parent does not look.

    :param pid: a process or one of its threads; only processes have such a descriptor on older kernels.
    """
    try:
        # Bytes: the name may hold anything, and what text takes for the end of a line is part of it.
        lines = Path(f"/proc/{pid}/status").read_bytes().split(b"\n")
        status = dict(line.split(b":", 1) for line in lines if line)
        if b"VmSize" not in status and status[b"State"].split()[0] not in b"ZX":
            raise CommandError(f"process {pid} is a thread of the kernel: it has no memory of its own to monitor")
        descriptor = os.pidfd_open(int(status[b"Tgid"]))
    except (FileNotFoundError, ProcessLookupError) as error:
        raise CommandError(f"process {pid} has just ended") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _watch(
    monitor: Monitor, history: History, pidfd: int | None, stop: list[int], arguments: argparse.Namespace
) -> str:
    """Gather snapshots until something ends the run; returns what did."""
    # A command writes to the same terminal: nothing may be overwritten then.
    in_place = sys.stderr.isatty() and not arguments.command and os.environ.get("TERM") != "dumb"
    view = LiveView(sys.stderr, in_place)
    colour = in_place and use_colour(arguments.color, sys.stderr)
    deadline = monitor.started + arguments.seconds if arguments.seconds else float("inf")
    shown_at = looked_at = monitor.started
    poller = select.poll()
    if pidfd is not None:
        poller.register(pidfd, select.POLLIN)
    note = ""
    while not note:
        left = deadline - time.monotonic()
        ended = poller.poll(max(0.0, min(_TICK_S, left)) * 1e3)
        for snapshot in monitor.drain():
            history.add(snapshot)
        if time.monotonic() - looked_at >= arguments.update_us / 1e6:
            looked_at = time.monotonic()
            monitor.look_at_ranges()
        if stop:
            note = "stopped by a signal"
        elif ended or not monitor.running():
            note = "the process ended" if monitor.error() is None else "monitoring failed"
        elif left <= 0:
            note = "the time was over"
        elif history.snapshots and not arguments.quiet:
            now = time.monotonic()
            if now - shown_at >= (_REDRAW_S if view.in_place else _LINE_S):
                shown_at = now
                _show_live(view, history.snapshots[-1], monitor, colour)
    view.clear()
    return note


def _show_live(view: LiveView, snapshot: Snapshot, monitor: Monitor, colour: bool) -> None:
    if not view.in_place:
        view.show(render_line(snapshot, monitor.config, monitor.started))
        return
    width, height = view.size()
    view.show(render_table(snapshot, monitor.config, since=monitor.started, width=width, height=height, colour=colour))


def _compare(recording: Recording, truth: Path | None) -> Accuracy | None:
    if truth is None:
        return None
    try:
        return compare(recording, load_truth(truth))
    except ValueError as error:
        raise CommandError(str(error)) from error


def _show(recording: Recording, output: TextIO, arguments: argparse.Namespace) -> None:
    accuracy = _compare(recording, arguments.truth)
    if arguments.json:
        print(render_json(recording, accuracy), file=output, flush=True)
        return
    width, height = terminal_size()
    heatmap = render_heatmap(
        recording,
        width=width,
        height=max(20, height - 16),
        colour=use_colour(arguments.color, output),
    )
    parts = [heatmap, render_summary(recording)]
    if accuracy is not None:
        parts.append(render_comparison(accuracy, recording.started))
    print("\n\n".join(parts), file=output, flush=True)
