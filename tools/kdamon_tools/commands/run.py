# SPDX-License-Identifier: GPL-2.0-only
"""``kdamon run``: monitor a process, a command or physical memory, and show what is accessed."""

from __future__ import annotations

import argparse
import os
import select
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from attrs import define, evolve

from kdamon.lib.capabilities import MONITORING
from kdamon.lib.file_limit import files_ran_out, raise_file_limit
from kdamon.lib.process_status import stat_fields, status_fields
from kdamon.lib.rights import may, refusal
from kdamon.sample_control import READS_UNSEEN, check_reads
from kdamon_tools import interpreter
from kdamon_tools.addresses import doubtful_ranges
from kdamon_tools.commands.common import machine_when_needed, refused
from kdamon_tools.commands.run_checks import check_command_line, check_memory, config_of
from kdamon_tools.cpu_watch import CpuWatch
from kdamon_tools.errors import CommandError
from kdamon_tools.gathered import Gathered
from kdamon_tools.line_stream import LineStream
from kdamon_tools.output.result import ResultFile
from kdamon_tools.output.terminal import LiveView, terminal_size, use_colour
from kdamon_tools.privileges import capabilities_for, keep_only
from kdamon_tools.process_tree import family_of
from kdamon_tools.reporters.groups import render_most_active
from kdamon_tools.reporters.json_object import render_end, render_json
from kdamon_tools.reporters.table import render_line, render_summary, render_table
from kdamon_tools.reporters.views import render_view
from kdamon_tools.reporters.whole import render_parts
from kdamon_tools.snapshot import Config, Recording, Snapshot
from kdamon_tools.stopping import StopSignals

if TYPE_CHECKING:
    from kdamon import Monitor
    from kdamon.mm import Machine
    from kdamon_tools.child import Command
    from kdamon_tools.compare import Accuracy
    from kdamon_tools.run_record import RecordFile, RunRecord
    from kdamon_tools.sources import ReportSources

__all__ = ["monitor_and_show", "run"]

#: Maximum seconds between two checks for a signal or the end of the time.
_TICK_S: Final = 0.1
#: The same until there is something to show.
_FIRST_TICK_S: Final = 0.02
#: Number of snapshots that may queue while the terminal, or the machine, delays this process.
_KEPT: Final = 4096
_REDRAW_S: Final = 0.5
_LINE_S: Final = 1.0
#: Seconds until CPU times show whether the process or a child does the work.
_WORK_S: Final = 2.0
_ENDED: Final = "the process ended"
#: Time limit in seconds for the whole end, for unexpected delays; its parts have their own limits.
_END_S: Final = 60.0
#: Time limit in seconds for the reader to take the waiting lines, and then the last one.
_READER_S: Final = 5.0
_SOURCES_WAIT: Final = "the last reports of producers, or those of --reports-to, did not arrive in time"


def run(arguments: argparse.Namespace) -> int:
    """Monitor, show the result, and return the exit status: the command's if it ended by itself, else 0."""
    return monitor_and_show(arguments)


def monitor_and_show(arguments: argparse.Namespace, file: RecordFile | None = None) -> int:
    """Monitor, show the result or write a record, and return the exit status.

    :param file: where the record goes; None: the result is shown instead.
    """
    check_command_line(arguments)
    # Only now: a wrong command line must be reported without the libraries that monitoring needs.
    from kdamon import Monitor  # noqa: PLC0415
    from kdamon.mm.linux.machine import LinuxMachine  # noqa: PLC0415
    from kdamon.names.process import ProcessNames  # noqa: PLC0415
    from kdamon_tools.mapping_history import MappingHistory  # noqa: PLC0415
    from kdamon_tools.sources import ReportSources  # noqa: PLC0415

    birth = None if arguments.pid is None or arguments.ops == "reports" else _birth(arguments.pid)
    with ExitStack() as stack:
        with refused("--output"):
            result = stack.enter_context(ResultFile(arguments.output))
        with refused("--reports-to"):
            sources = stack.enter_context(ReportSources(arguments.reports, arguments.reports_to))
        record = None if file is None else _new_record(file, stack)
        machine = None if arguments.ops == "reports" else machine_when_needed()
        if machine is not None and arguments.ops == "paddr" and arguments.ranges:
            check_memory(arguments.ranges, machine)
        stop = stack.enter_context(StopSignals())
        sources.serve()
        command = None
        _check_rights(config_of(arguments, 0), machine)
        if arguments.command:
            faults = machine if config_of(arguments, 0).primitive == "page_fault" else None
            from kdamon_tools.child import Command  # noqa: PLC0415 (not with --pid)

            command = stack.enter_context(Command(arguments.command, sources.environment(), faults))
        raise_file_limit()
        keep_only(*_kept(arguments, record))
        pid = command.pid if command else arguments.pid
        config = _by_what_works(config_of(arguments, 0 if arguments.ops == "paddr" else pid), arguments)
        if machine is not None and config.misses_reads(machine.faults_of_reads) and not arguments.quiet:
            print(f"kdamon: {READS_UNSEEN}", file=sys.stderr)
        monitor = Monitor(config, machine=machine, birth=birth, kept=_KEPT)
        with _ending(monitor, stop) as end:
            interpreter.ready()
            # The mappings of a starting command are not known yet.
            if command is None:
                _print_doubtful_ranges(monitor)
            # Reports need not be about a local process, and physical memory has no process.
            ends_by_itself = command is not None or arguments.ops not in {"paddr", "reports"}
            pidfd = stack.enter_context(_pidfd(pid)) if ends_by_itself else None
            work = None
            if pid and config.ops != "reports":
                work = CpuWatch(pid, command.family if command else partial(family_of, pid))
            gathered = Gathered(monitor, config)
            if (arguments.json or record is not None) and pid and machine is not None:
                changed = None if record is None else record.change_mappings
                gathered.mappings = stack.enter_context(MappingHistory(pid, birth, changed=changed))
            if pid and isinstance(machine, LinuxMachine):
                # A process that ended meanwhile ends the run by itself.
                with suppress(ProcessLookupError):
                    gathered.names = stack.enter_context(ProcessNames(pid, birth))
            if arguments.json == "lines":
                gathered.stream(result)
            if record is not None:
                gathered.keep(record, birth)
            note = _watch(gathered, pidfd, stop, work, arguments)
        if command is not None:
            # A full disk is no reason to end a service.
            command.released = note == _ENDED or (record is not None and record.error() is not None)
        _deliver(gathered.recording(note, _remarks(work, command)), gathered, sources, result, stop, arguments)
        _check_end(monitor, end)
        if command is not None and command.released:
            return command.status() or 0
    return 0


def _new_record(file: RecordFile, stack: ExitStack) -> RunRecord:
    """The record, whose file exists from now on; ``stack`` closes it."""
    from kdamon_tools.run_record import RunRecord  # noqa: PLC0415 (SQLite is not needed otherwise)

    try:
        with refused("--output"):
            return stack.enter_context(RunRecord(file))
    except CommandError as error:
        if isinstance(error.__cause__, FileExistsError) and not file.replace:
            raise CommandError(f"{error}: choose another name, or use --force to replace a record", 2) from error
        raise


def _print_doubtful_ranges(monitor: Monitor) -> None:
    """Print which of the ranges that were given have nothing in them."""
    present = monitor.mapped()
    if present is None:
        return
    what = "no memory of the machine is" if monitor.config.ops == "paddr" else "nothing is mapped"
    for sentence in doubtful_ranges(monitor.config.ranges, present, what):
        print(f"kdamon: {sentence}", file=sys.stderr)


def _deliver(  # noqa: PLR0917 -- what a run consists of
    recording: Recording,
    gathered: Gathered,
    sources: ReportSources,
    result: ResultFile,
    stop: StopSignals,
    arguments: argparse.Namespace,
) -> None:
    """Close the sources of reports, and show the result with their counters."""
    try:
        if not stop.wait_for(sources.close, _END_S):
            print(f"kdamon: {_SOURCES_WAIT}", file=sys.stderr)
    finally:
        # A failed recording is an error, but no reason to lose the result.
        counters = evolve(recording.counters, producers=sources.producers(), recorded=sources.recorded())
        recording = evolve(recording, counters=counters)
        if gathered.record is not None:
            _finish_record(gathered.record, recording, result, arguments)
        elif gathered.lines is None:
            _show(recording, result, arguments)
        else:
            _finish(gathered.lines, recording, result, stop, arguments)
        stop.let_through()


def _check_end(monitor: Monitor, end: _End) -> None:
    """Raise CommandError where monitoring did not end, or ended by an error."""
    if end.failed:
        raise CommandError(f"monitoring did not end: {end.failed}")
    if (error := monitor.error()) is not None:
        if isinstance(error, OSError) and files_ran_out(error):
            raise CommandError(f"monitoring ended: {error.strerror}") from error
        raise CommandError(f"monitoring ended by an internal error: {error!r}") from error


def _check_rights(config: Config, machine: Machine | None) -> None:
    """Check before COMMAND runs the requirements of monitoring it.

    :raises OSError: a requirement is missing; the message has the remedy.
    """
    if machine is not None and (config.cpus or config.tids or config.by) and not may("CAP_BPF", "CAP_PERFMON"):
        raise refusal("identifying the CPU and thread of a page fault needs", "bpf()", "CAP_BPF", "CAP_PERFMON")
    if machine is not None and config.read_only and config.primitive == "page_fault":
        check_reads(machine)
    if machine is not None and config.command and config.primitive == "page_table" and config.ops != "paddr":
        # A primitive that works on this process works on its child. A simulated machine does not have this process.
        with suppress(ProcessLookupError):
            machine.get_task(os.getpid(), config.primitive).put()


def _kept(arguments: argparse.Namespace, record: RunRecord | None) -> tuple[str, ...]:
    """The capabilities that kdamon needs after it started COMMAND, which has all of them."""
    recorded = None if record is None else Path(record.path)
    kept = capabilities_for(arguments.output, arguments.reports_to, arguments.reports or None, recorded)
    if arguments.ops != "reports":
        kept += MONITORING
    if arguments.command:
        # To signal it, whatever user it became.
        kept += ("CAP_KILL",)
    if arguments.truth is not None:
        kept += ("CAP_DAC_READ_SEARCH",)
    return kept


@define
class _End:
    """The end of monitoring.

    :ivar failed: the reason why it did not end, empty where it did.
    """

    failed: str = ""


@contextmanager
def _ending(monitor: Monitor, stop: StopSignals) -> Iterator[_End]:
    """Monitor while the ``with`` block runs, and end even if the target cannot be released."""
    end = _End()
    monitor.__enter__()
    stop.protect()
    try:
        yield end
    finally:
        try:
            if not stop.wait_for(monitor.stop, _END_S):
                why = "a signal came again" if stop.urgent else f"it took more than {_END_S:.0f} seconds"
                end.failed = "; ".join(filter(None, (why, monitor.whereabouts())))
        except OSError as lingering:
            # The snapshots until now can still be shown.
            end.failed = lingering.strerror or str(lingering)


def _by_what_works(config: Config, arguments: argparse.Namespace) -> Config:
    """Choose page_fault if no primitive was selected and the accessed bits of the process cannot be cleared."""
    if arguments.primitive is not None or config.primitive != "page_table" or config.density:
        return config
    if not config.pid or not _first_thread_ended(config.pid):
        return config
    if not arguments.quiet:
        print(
            f"kdamon: the first thread of process {config.pid} ended, so that its accessed bits cannot be cleared; "
            "page_fault is used instead",
            file=sys.stderr,
        )
    return evolve(config, primitive="page_fault", watch=False)


def _first_thread_ended(pid: int) -> bool:
    """Return whether other threads of a process outlived its first one."""
    process = Path(f"/proc/{pid}")
    try:
        # The name before the state may hold anything.
        state = stat_fields((process / "stat").read_bytes())[0]
        return state in (b"Z", b"X") and len(list((process / "task").iterdir())) > 1
    except OSError:
        return False


def _remarks(work: CpuWatch | None, command: Command | None) -> tuple[str, ...]:
    """Sentences about child processes: those that did the work, and those that still run."""
    remarks = []
    if work is not None:
        work.look(at_once=True)
        # A command that did not end by itself ends with the monitoring, and its children with it.
        remarks.append(work.sentence(lives_on=command is None or command.released))
    if command is not None and command.released:
        remarks.append(command.left_running())
    return tuple(filter(None, remarks))


def _birth(pid: int) -> int | None:
    """The start time of process ``pid``; None if there is none, which is reported when it is opened."""
    from kdamon.mm.proc.process_files import birth_of  # noqa: PLC0415

    try:
        return birth_of(pid)
    except ProcessLookupError:
        return None


@contextmanager
def _pidfd(pid: int) -> Iterator[int]:
    """A file descriptor that becomes readable when the process ends, even before its parent reaps it.

    :param pid: a process or one of its threads; only processes have such a descriptor on older kernels.
    """
    try:
        status = status_fields(Path(f"/proc/{pid}/status").read_bytes())
        if "VmSize" not in status and status["State"][0] not in "ZX":
            raise CommandError(f"process {pid} is a kernel thread: it has no memory of its own to monitor")
        descriptor = os.pidfd_open(int(status["Tgid"]))
    except (FileNotFoundError, ProcessLookupError) as error:
        raise CommandError(f"process {pid} has just ended") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _watch(
    gathered: Gathered, pidfd: int | None, stop: StopSignals, work: CpuWatch | None, arguments: argparse.Namespace
) -> str:
    """Gather snapshots until something ends the run; return the reason."""
    monitor = gathered.monitor
    # A command writes to the same terminal, so nothing may be overwritten.
    in_place = sys.stderr.isatty() and not arguments.command and os.environ.get("TERM") != "dumb"
    view = LiveView(sys.stderr, in_place)
    colour = in_place and use_colour(arguments.color, sys.stderr)
    deadline = monitor.started + arguments.seconds if arguments.seconds else float("inf")
    looked_at = monitor.started
    shown, shown_at = None, float("-inf")
    poller = select.poll()
    if pidfd is not None:
        poller.register(pidfd, select.POLLIN)
    note = ""
    look = threading.Thread()
    while not note:
        left = deadline - time.monotonic()
        tick = _FIRST_TICK_S if gathered.latest is None else _TICK_S
        ended = poller.poll(max(0.0, min(tick, left)) * 1e3)
        gathered.gather()
        if time.monotonic() - looked_at >= monitor.config.update_us / 1e6:
            looked_at = time.monotonic()
            # In a thread: a process can keep its list of mappings locked, and signals must be handled meanwhile.
            if not look.is_alive():
                look = threading.Thread(target=monitor.mapped, name="kdamon-ranges", daemon=True)
                look.start()
        if stop:
            note = "stopped by a signal"
        elif gathered.failure() is not None:
            note = "the result could not be written any more"
        elif ended or not monitor.running():
            note = _ENDED if monitor.error() is None else "monitoring failed"
        elif left <= 0:
            note = "the time was over"
        elif work is not None:
            work.look()
        now = time.monotonic()
        latest = gathered.latest
        if latest is not None and not note and not arguments.quiet:
            if work is not None and now - monitor.started >= _WORK_S and (remark := work.sentence_once()):
                view.clear()
                print(f"kdamon: {remark}", file=sys.stderr)
            # In place, the terminal may have another size by now.
            changed = view.in_place or latest is not shown
            if changed and now - shown_at >= (_REDRAW_S if view.in_place else _LINE_S):
                shown, shown_at = latest, now
                _show_live(view, latest, gathered, colour, arguments.view)
    view.clear()
    return note


def _show_live(view: LiveView, snapshot: Snapshot, gathered: Gathered, colour: bool, what: str | None) -> None:
    # Aggregation intervals may be much longer than it takes to estimate that anew.
    snapshot = evolve(snapshot, use=gathered.monitor.use())
    config, since = gathered.monitor.config, gathered.monitor.started
    groups = None if gathered.grouping is None else gathered.grouping.log(shared=False)
    if not view.in_place:
        line = render_line(snapshot, config, since)
        view.show(f"{line}; {render_most_active(groups)}" if groups is not None and groups.groups else line)
        return
    width, height = view.size()
    if what not in (None, "heatmap"):
        view.show(render_view(what, gathered.recent(), width, height))
        return
    names = gathered.present_names()
    size = {"width": width, "height": height}
    view.show(render_table(snapshot, config, since=since, **size, colour=colour, groups=groups, names=names))


def _show(recording: Recording, result: ResultFile, arguments: argparse.Namespace) -> None:
    """Write the result; if the truth file is unreadable by now, raise that error afterwards."""
    accuracy, failure = _compared(recording, arguments)
    result.write(lambda: _rendered(recording, accuracy, result, arguments))
    if failure is not None:
        raise failure


def _finish(
    lines: LineStream, recording: Recording, result: ResultFile, stop: StopSignals, arguments: argparse.Namespace
) -> None:
    """Write the last of the lines, as :func:`_show` does a result."""
    accuracy, failure = _compared(recording, arguments)
    end = partial(render_end, recording, accuracy)
    stop.wait_for(lambda: lines.finish(end, _READER_S), 3 * _READER_S)
    if (error := lines.error()) is not None:
        result.keep_part()
        raise error
    if not lines.ended:
        result.keep_part()
        raise CommandError("the last line was not written: the reader of the result does not read")
    if lines.dropped:
        print(
            f"kdamon: {lines.dropped} of {lines.taken} aggregations have no line: the reader was too slow",
            file=sys.stderr,
        )
    result.commit()
    if failure is not None:
        raise failure


def _finish_record(record: RunRecord, recording: Recording, result: ResultFile, arguments: argparse.Namespace) -> None:
    """Write the rest of the record, and show what it holds."""
    failure = None
    try:
        record.finish(recording)
    except OSError as error:
        failure = error
    if not arguments.quiet:
        width, _ = terminal_size()
        result.write(lambda: [render_summary(recording, width=width), "\n", record.sentence(), "\n"])
    if failure is not None:
        raise failure


def _compared(recording: Recording, arguments: argparse.Namespace) -> tuple[Accuracy | None, Exception | None]:
    """The comparison of the recording with the truth, if one is given; and the reason why it failed."""
    if arguments.truth is None:
        return None, None
    from kdamon_tools.compare import compare  # noqa: PLC0415 (most runs have no truth)
    from kdamon_tools.workloads.truth import load_truth  # noqa: PLC0415 (likewise)

    try:
        return compare(recording, load_truth(arguments.truth)), None
    except OSError as error:
        return None, error
    except ValueError as error:
        return None, CommandError(str(error))


def _rendered(
    recording: Recording, accuracy: Accuracy | None, result: ResultFile, arguments: argparse.Namespace
) -> Iterator[str]:
    if arguments.view not in (None, "heatmap") and recording.snapshots:
        shape = terminal_size() if result.isatty() else (None, None)
        yield render_view(arguments.view, recording, *shape, json=bool(arguments.json)) + "\n"
        return
    if arguments.json:
        yield from render_json(recording, accuracy)
        yield "\n"
        return
    width, height = terminal_size()
    colour = use_colour(arguments.color, result)
    parts = render_parts(recording, width=width, height=max(20, height - 16), colour=colour)
    if accuracy is not None:
        from kdamon_tools.reporters.comparison import render_comparison  # noqa: PLC0415 (likewise)

        parts.append(render_comparison(accuracy, recording.started))
    yield "\n\n".join(parts) + "\n"
