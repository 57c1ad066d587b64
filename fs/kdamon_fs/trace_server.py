# SPDX-License-Identifier: GPL-2.0-only
"""Serves DAMON's tracepoint events (``include/trace/events/damon.h``) as text to programs that connect to a socket.

A client sends the names of events, or patterns such as ``damos_*``, and a newline; the server answers ``ok`` or an
error sentence, and a newline. It then sends a line for each event, in the format of ``perf script``, until the client
shuts down its side of the connection; finally it sends the events up to that time and closes. ``# lost N`` means that
the client read too slowly.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import itertools
import logging
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Final

from kdamon import trace
from kdamon.damon import damon_ctx, damon_mvsum, damon_target, window_left_bp
from kdamon.lib.capabilities import give_up_capabilities
from kdamon.lib.syscalls import call
from kdamon.regions import Regions
from kdamon.schemes import damos

__all__ = ["EVENTS", "TraceServer"]

log = logging.getLogger("kdamon")

#: The tracepoints, and the kernel version that each came with; None is older than all known versions.
EVENTS: Final[dict[str, str | None]] = {
    "damon_aggregated": None,
    "damon_monitor_intervals_tune": "6.17",
    "damon_region_aggregated": "7.2",
    "damos_before_apply": None,
    "damos_esz": "6.17",
    "damos_stat_after_apply_interval": "7.0",
}

#: Maximum number of events that wait for a client; a region table is one.
_MOST_WAITING: Final = 4096
#: Seconds between two transmissions to a client, and the time limit for the client to read one.
_PERIOD: Final = 0.1
_PATIENCE: Final = 10.0
_LONGEST_REQUEST: Final = 4096

#: A line without its common prefix, one for each region or other object of an event.
_Texts = Iterable[str]
_Probe = Callable[..., None]


def _region_texts(target: int, table: Regions) -> _Texts:
    begin = f"target_id={target} nr_regions={len(table)} "
    columns = (column.tolist() for column in (table.start, table.end, table.nr_accesses, table.age))
    for start, end, nr_accesses, age in zip(*columns, strict=True):
        yield f"{begin}{start}-{end}: {nr_accesses} {age}"


def _probed_texts(target: int, table: Regions, probes: int) -> _Texts:
    hits = [] if table.probe_hits is None else table.probe_hits[:, :probes].tolist()
    for text, row in zip(_region_texts(target, table), hits, strict=True):
        yield f"{text} probe_hits={' '.join(f'{number:02x}' for number in row)}"


def _scheme(ctx: damon_ctx, s: damos) -> str:
    return f"ctx_idx=0 scheme_idx={next((i for i, other in enumerate(ctx.schemes) if other is s), 0)}"


class _Recording:
    """The subscription of one client. The probes run in kdamonds: they only copy; the client's thread formats."""

    def __init__(self, events: Sequence[str]) -> None:
        self.lost = 0
        self._waiting: deque[tuple[str, int, str, Callable[[], _Texts]]] = deque()
        self._probes = {name: getattr(self, f"_{name}") for name in events}

    def __enter__(self) -> _Recording:
        for name, probe in self._probes.items():
            getattr(trace, name).register(probe)
        return self

    def __exit__(self, *_exception: object) -> None:
        for name, probe in self._probes.items():
            getattr(trace, name).unregister(probe)

    def text(self) -> bytes:
        """The lines of the events since the last call."""
        lines = []
        # Later events wait for the next call, or a fast kdamond would keep this one busy forever.
        for _ in range(len(self._waiting)):
            task, now, event, texts = self._waiting.popleft()
            seconds, rest = divmod(now, 10**9)
            begin = f" {task} {seconds}.{rest // 1000:06d}: damon:{event}: "
            lines += [f"{begin}{text}\n" for text in texts()]
        if lost := self.lost:
            self.lost -= lost
            lines.append(f"# lost {lost}\n")
        return "".join(lines).encode()

    def _add(self, event: str, texts: Callable[[], _Texts]) -> None:
        if len(self._waiting) >= _MOST_WAITING:
            self.lost += 1
            return
        cpu = call("sched_getcpu")
        task = f"{threading.current_thread().name} {threading.get_native_id()} [{cpu:03d}]"
        self._waiting.append((task, time.monotonic_ns(), event, texts))

    # The probes, under the names of their tracepoints.

    def _damon_aggregated(self, _ctx: damon_ctx, target: int, regions: Regions) -> None:
        table = regions.copy()
        self._add("damon_aggregated", lambda: _region_texts(target, table))

    def _damon_region_aggregated(self, ctx: damon_ctx, target: int, regions: Regions) -> None:
        table, probes = regions.copy(), len(ctx.probes)
        self._add("damon_region_aggregated", lambda: _probed_texts(target, table, probes))

    def _damon_monitor_intervals_tune(self, _ctx: damon_ctx, sample_us: int) -> None:
        self._add("damon_monitor_intervals_tune", lambda: [f"sample_us={sample_us}"])

    def _damos_before_apply(self, ctx: damon_ctx, t: damon_target, row: int, s: damos) -> None:
        target = next((i for i, other in enumerate(ctx.adaptive_targets) if other is t), 0)
        r, one = t.regions, slice(row, row + 1)
        nr_accesses = int(damon_mvsum(r.nr_accesses[one], r.last_nr_accesses[one], window_left_bp(ctx))[0])
        text = (
            f"{_scheme(ctx, s)} target_idx={target} nr_regions={len(r)} {r.start[row]}-{r.end[row]}: {nr_accesses} "
            f"{r.age[row]}"
        )
        self._add("damos_before_apply", lambda: [text])

    def _damos_esz(self, ctx: damon_ctx, s: damos, esz: int) -> None:
        text = f"{_scheme(ctx, s)} esz={esz}"
        self._add("damos_esz", lambda: [text])

    def _damos_stat_after_apply_interval(self, ctx: damon_ctx, s: damos) -> None:
        stat = s.stat
        text = (
            f"{_scheme(ctx, s)} nr_tried={stat.nr_tried} sz_tried={stat.sz_tried} nr_applied={stat.nr_applied} "
            f"sz_applied={stat.sz_applied} sz_ops_filter_passed={stat.sz_ops_filter_passed} "
            f"qt_exceeds={stat.qt_exceeds} nr_snapshots={stat.nr_snapshots}"
        )
        self._add("damos_stat_after_apply_interval", lambda: [text])


class TraceServer:
    """The socket, and a thread for each client while it is entered.

    :param path: the socket's path.
    :param events: names of the tracepoints that clients may subscribe to, of :data:`EVENTS`.
    :raises OSError: as ``bind(2)``.
    """

    def __init__(self, path: str, events: Sequence[str]) -> None:
        self._events = tuple(events)
        self._closing = threading.Event()
        self._numbers = itertools.count()
        self._threads: list[threading.Thread] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # The file has this mode regardless of the umask: only the user of this process may read events.
            os.fchmod(self._listener.fileno(), 0o600)
            self._listener.bind(os.fsencode(path))
            self._listener.listen()
        except BaseException:
            self._listener.close()
            raise

    def __enter__(self) -> TraceServer:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        # Events that still wait for a client are dropped.
        give_up = time.monotonic() + 2 * _PERIOD
        for thread in self._threads:
            thread.join(max(give_up - time.monotonic(), 0))
        self._listener.close()

    def _start(self, function: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(
            target=function, args=arguments, name=f"kdamon-trace.{next(self._numbers)}", daemon=True
        )
        self._threads = [other for other in self._threads if other.is_alive()]
        thread.start()
        self._threads.append(thread)

    def _accept(self) -> None:
        # The client threads, started here, need no capabilities.
        give_up_capabilities()
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ECONNABORTED):
                    return
                self._closing.wait(_PERIOD)
                continue
            self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        with client:
            client.settimeout(_PATIENCE)
            try:
                self._record(client)
            except OSError as error:
                log.info("lost the connection to a client of DAMON's events: %s", error.strerror or error)

    def _record(self, client: socket.socket) -> None:
        request = b""
        while not request.endswith(b"\n"):
            data = client.recv(_LONGEST_REQUEST)
            if not data or len(request) > _LONGEST_REQUEST:
                return
            request += data
        patterns = request.decode("ascii", "backslashreplace").split()
        names = [name for name in self._events if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
        unknown = [pattern for pattern in patterns if not any(fnmatch.fnmatchcase(name, pattern) for name in names)]
        if unknown or not names:
            what = f"DAMON has no event {' '.join(unknown)} here" if unknown else "no event of DAMON was named"
            client.sendall(f"{what}; there are {', '.join(self._events)}\n".encode())
            return
        with _Recording(names) as recording:
            client.sendall(b"ok\n")
            while not self._closing.is_set() and not select.select([client], [], [], _PERIOD)[0]:
                client.sendall(recording.text())
        client.sendall(recording.text())
