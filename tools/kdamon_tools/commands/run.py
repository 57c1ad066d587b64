# SPDX-License-Identifier: GPL-2.0-only
"""``kdamon run``: monitor a process, a command or physical memory, and show what is accessed."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from attrs import define, evolve

from kdamon.lib.capabilities import MONITORING
from kdamon.lib.file_limit import files_ran_out, raise_file_limit
from kdamon.lib.process_status import is_kernel_thread, stat_fields, status_fields
from kdamon.lib.rights import may, refusal
from kdamon.sample_control import READS_UNSEEN, check_reads
from kdamon_tools import interpreter
from kdamon_tools.addresses import doubtful_ranges
from kdamon_tools.commands.common import machine_when_needed, refused
from kdamon_tools.commands.run_checks import check_command_line, check_memory, config_of
from kdamon_tools.errors import CommandError
from kdamon_tools.output.result import ResultFile
from kdamon_tools.privileges import capabilities_for, keep_only
from kdamon_tools.snapshot import Config
from kdamon_tools.stopping import StopSignals

if TYPE_CHECKING:
    from kdamon import Monitor
    from kdamon.mm import Machine
    from kdamon_tools.child import Command
    from kdamon_tools.cpu_watch import CpuWatch
    from kdamon_tools.run_record import RecordFile, RunRecord

__all__ = ["birth_of_process", "by_what_works", "check_rights", "monitor_and_show", "pidfd_of", "run"]

#: Number of snapshots that may queue while the terminal, or the machine, delays this process.
_KEPT: Final = 4096
#: Time limit in seconds for the whole end, for unexpected delays; its parts have their own limits.
_END_S: Final = 60.0


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
    from kdamon_tools.sources import ReportSources  # noqa: PLC0415

    birth = None if arguments.pid is None or arguments.ops == "reports" else birth_of_process(arguments.pid)
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
        check_rights(config_of(arguments, 0), machine)
        if arguments.command:
            faults = machine if config_of(arguments, 0).primitive == "page_fault" else None
            from kdamon_tools.child import Command  # noqa: PLC0415 (not with --pid)

            command = stack.enter_context(Command(arguments.command, sources.environment(), faults))
        raise_file_limit()
        if arguments.ops == "reports":
            # Without the capabilities of monitoring these modules may be unreadable later.
            from kdamon_tools.commands import run_live, run_result  # noqa: F401, PLC0415
        keep_only(*_kept(arguments, record))
        pid = command.pid if command else arguments.pid
        config = by_what_works(config_of(arguments, 0 if arguments.ops == "paddr" else pid), arguments)
        if machine is not None and config.misses_reads(machine.faults_of_reads) and not arguments.quiet:
            print(f"kdamon: {READS_UNSEEN}", file=sys.stderr)
        monitor = Monitor(config, machine=machine, birth=birth, kept=_KEPT)
        with _ending(monitor, stop) as end:
            # Only now, while the first samples are taken.
            from kdamon_tools.commands.run_live import ENDED, cpu_watch, gather, watch  # noqa: PLC0415
            from kdamon_tools.commands.run_result import deliver  # noqa: PLC0415

            interpreter.ready()
            # The mappings of a starting command are not known yet.
            if command is None:
                _print_doubtful_ranges(monitor)
            # Reports need not be about a local process, and physical memory has no process.
            ends_by_itself = command is not None or arguments.ops not in {"paddr", "reports"}
            pidfd = stack.enter_context(pidfd_of(pid)) if ends_by_itself else None
            work = cpu_watch(pid, command) if pid and config.ops != "reports" else None
            gathered = gather(monitor, config, machine, birth, record, stack, json=bool(arguments.json))
            if arguments.json == "lines":
                gathered.stream(result)
            if record is not None:
                gathered.keep(record, birth)
            note = watch(gathered, pidfd, stop, work, arguments)
        if command is not None:
            # A full disk is no reason to end a service.
            command.released = note == ENDED or (record is not None and record.error() is not None)
        deliver(gathered.recording(note, _remarks(work, command)), gathered, sources, result, stop, arguments)
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


def _check_end(monitor: Monitor, end: _End) -> None:
    """Raise CommandError where monitoring did not end, or ended by an error."""
    if end.failed:
        raise CommandError(f"monitoring did not end: {end.failed}")
    if (error := monitor.error()) is not None:
        if isinstance(error, OSError) and files_ran_out(error):
            raise CommandError(f"monitoring ended: {error.strerror}") from error
        raise CommandError(f"monitoring ended by an internal error: {error!r}") from error


def check_rights(config: Config, machine: Machine | None) -> None:
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


def by_what_works(config: Config, arguments: argparse.Namespace) -> Config:
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


def birth_of_process(pid: int) -> int | None:
    """The start time of process ``pid``; None if there is none, which is reported when it is opened."""
    from kdamon.mm.proc.process_files import birth_of  # noqa: PLC0415

    try:
        return birth_of(pid)
    except ProcessLookupError:
        return None


@contextmanager
def pidfd_of(pid: int) -> Iterator[int]:
    """A file descriptor that becomes readable when the process ends, even before its parent reaps it.

    :param pid: a process or one of its threads; only processes have such a descriptor on older kernels.
    """
    try:
        # A process that is just ending has no memory either, even before it is a zombie.
        if is_kernel_thread(Path(f"/proc/{pid}/stat").read_bytes()):
            raise CommandError(f"process {pid} is a kernel thread: it has no memory of its own to monitor")
        status = status_fields(Path(f"/proc/{pid}/status").read_bytes())
        descriptor = os.pidfd_open(int(status["Tgid"]))
    except (FileNotFoundError, ProcessLookupError) as error:
        raise CommandError(f"process {pid} has just ended") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)
