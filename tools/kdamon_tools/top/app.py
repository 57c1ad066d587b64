# SPDX-License-Identifier: GPL-2.0-only
"""The screen of ``kdamon top``, by textual: a heading, a table or a heatmap, and the keys."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import ClassVar, Final, Protocol

from attrs import evolve
from rich.text import Text
from textual import on
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.coordinate import Coordinate
from textual.events import Key
from textual.message import Message
from textual.screen import ModalScreen
from textual.widgets import DataTable, Input, Static

from kdamon_tools.reporters.names import visible
from kdamon_tools.top.heatmap import Wanted
from kdamon_tools.top.session import Content
from kdamon_tools.top.tables import ORDERS, Fitted, arranged, fitted
from kdamon_tools.views.table import Table

__all__ = ["HELP", "Requests", "TopApp"]

#: Seconds between two checks whether to end, and for which a sentence is shown at least.
_LOOK_S: Final = 0.1
_SAID_S: Final = 8.0
#: Columns beside each column of a table, and those of the scroll bar.
_PADDING: Final = 1
_BAR: Final = 1
#: Keys and what they do, the most important first: a narrow terminal has as many as fit.
_KEYS: Final = (
    ("?", "help"),
    ("q", "quit"),
    ("s", "sort"),
    ("/", "filter"),
    ("Enter", "heatmap"),
    ("w", "writes"),
    ("t", "threads"),
    ("c", "CPUs"),
    ("r", "record"),
    ("Space", "pause"),
)
_KEYS_OF_HEATMAP: Final = (("Esc", "back"), ("?", "help"), ("q", "quit"), ("w", "writes"), ("r", "record"))
HELP: Final = """\
Up, Down, PgUp, PgDn   move
Enter      heatmap of the row: the last minute
Esc        back
m          of several processes: memory of this one by name
s          sort by the next column
/          only rows that contain a text; Esc: all rows
w          count writes only, or all accesses again
t          by thread; t again, or Esc: by name
c          by CPU; c again, or Esc: by name
Space      pause what is shown; monitoring goes on
r          record in run.kdamon, or end the record
q, Ctrl-C  quit
Ctrl-Z     stop kdamon; fg continues it

Sizes are means of the last 10 s:
hot        accessed in half of the samples or more
accessed   accessed at all, the working set
idle 10 s  not accessed for 10 s; -: not known yet
unknown    could not be sampled: neither in use nor idle
accesses   reports of sampled accesses: they rank

w, t and c begin monitoring again, by page faults,
which stop a thread of the process for less than a
millisecond, and see only writes before Linux 7.3."""


class Requests(Protocol):
    """What the screen asks for, see :class:`kdamon_tools.top.session.Session`."""

    @property
    def one(self) -> bool:
        """Whether only one process is monitored."""

    @property
    def wanted(self) -> Wanted:
        """What is shown first."""

    def want(self, wanted: Wanted) -> None:
        """Show ``wanted`` from now on."""

    def toggle_writes(self) -> None:
        """Count only writes, or all accesses again."""

    def toggle_records(self) -> None:
        """Begin or end records."""


class Arrived(Message):
    """There is something to show.

    :param content: None: only the sentence.
    :param sentence: for the user; empty: none.
    """

    def __init__(self, content: Content | None = None, sentence: str = "") -> None:
        super().__init__()
        self.content = content
        self.sentence = sentence


class HelpScreen(ModalScreen[None]):
    """The keys, and what the columns mean."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,question_mark,enter", "dismiss", "back")]
    CSS = "HelpScreen { background: ansi_default; } HelpScreen VerticalScroll { scrollbar-size-vertical: 1; }"

    def compose(self) -> ComposeResult:
        with VerticalScroll():
            yield Static(Text(HELP))


class Rows(DataTable[Text]):
    """A table that is changed in place, so that it neither flickers nor scrolls by itself."""

    def __init__(self) -> None:
        super().__init__(cursor_type="row", cell_padding=_PADDING, zebra_stripes=False)
        self._shape: tuple[object, ...] = ()
        self._keys: list[str] = []
        #: The row that the cursor stays on; empty: it stays at its place.
        self._held = ""

    def show(self, of: Fitted) -> None:
        """Show ``of``; the cursor stays on its row unless it is on the first one."""
        shape = (of.titles, of.widths, of.sorted_by)
        if shape != self._shape:
            self.clear(columns=True)
            self._shape, self._keys = shape, []
            for place, (title, width) in enumerate(zip(of.titles, of.widths, strict=True)):
                self.add_column(Text(title, style="bold reverse" if place == of.sorted_by else "bold"), width=width)
        for number, cells in enumerate(of.rows):
            if number < len(self._keys):
                for place, cell in enumerate(cells):
                    if self.get_cell_at(Coordinate(number, place)).plain != cell:
                        self.update_cell_at(Coordinate(number, place), Text(cell))
            else:
                self.add_row(*map(Text, cells), key=str(number))
        for number in range(len(of.rows), len(self._keys)):
            self.remove_row(str(number))
        self._keys = of.keys
        if self._held in self._keys:
            self.move_cursor(row=self._keys.index(self._held), scroll=True)

    def key_at_cursor(self) -> str | None:
        """What identifies the row that the cursor is on; None: there is none."""
        row = self.cursor_row
        return self._keys[row] if 0 <= row < len(self._keys) else None

    def hold(self) -> None:
        """Keep the cursor on its row from now on; at the top, let it stay there."""
        self._held = (self.key_at_cursor() or "") if self.cursor_row else ""


class TopApp(App[None]):
    """The screen.

    :param requests: what computes the contents, which come by :meth:`show`.
    :param over: whether to end; it is called often.
    :param colour: whether a heatmap has colours.
    """

    ENABLE_COMMAND_PALETTE = False
    CSS = """
    Screen { background: ansi_default; color: ansi_default; }
    #heading { height: auto; }
    #more { height: auto; }
    Rows { height: 1fr; overflow-x: hidden; scrollbar-size-vertical: 1; scrollbar-gutter: stable; }
    Rows > .datatable--header { background: ansi_blue; color: ansi_bright_white; text-style: bold; }
    Rows > .datatable--cursor, Rows:focus > .datatable--cursor {
        background: ansi_default; color: ansi_default; text-style: reverse;
    }
    #picture { height: 1fr; display: none; scrollbar-size-vertical: 1; }
    * {
        scrollbar-background: ansi_default; scrollbar-background-hover: ansi_default;
        scrollbar-background-active: ansi_default; scrollbar-color: ansi_blue;
        scrollbar-color-hover: ansi_blue; scrollbar-color-active: ansi_blue;
    }
    #filter { display: none; border: none; height: 1; padding: 0; }
    #said { height: auto; display: none; text-style: bold; }
    #keys { height: 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "quit"),
        Binding("ctrl+c", "quit", "quit", priority=True),
        Binding("ctrl+z", "suspend_process", "stop", priority=True),
        Binding("question_mark", "help", "help"),
        Binding("s", "sort", "sort"),
        Binding("slash", "filter", "filter"),
        Binding("escape", "leave", "back"),
        Binding("w", "writes", "writes"),
        Binding("m", "names", "memory by name"),
        Binding("t", "by('threads')", "threads"),
        Binding("c", "by('cpus')", "CPUs"),
        Binding("r", "record", "record"),
        Binding("space", "pause", "pause"),
    ]

    def __init__(self, requests: Requests, over: Callable[[], object], colour: bool) -> None:
        super().__init__(ansi_color=True)
        self.theme = "ansi-dark"
        self._requests = requests
        self._over = over
        self._colour = colour
        self._content: Content | None = None
        self._paused = False
        self._orders = {view: columns[0] for view, columns in ORDERS.items()}
        self._filter = ""
        self._said_until = 0.0

    def compose(self) -> ComposeResult:
        yield Static(id="heading")
        yield Rows()
        with VerticalScroll(id="picture"):
            yield Static()
        yield Static(id="more")
        yield Static(id="said")
        yield Input(id="filter", placeholder="text in the name; Enter keeps it, Esc shows all rows")
        yield Static(id="keys")

    def on_mount(self) -> None:
        self.set_interval(_LOOK_S, self._look)
        self._draw()

    def _look(self) -> None:
        if self._over():
            self.exit()
        elif self._said_until and time.monotonic() >= self._said_until:
            self._say("")

    # What arrives, from any thread.

    def show(self, content: Content) -> None:
        """Show ``content``, unless the user paused."""
        self._post(Arrived(content))

    def say(self, sentence: str) -> None:
        """Show a sentence for some seconds."""
        self._post(Arrived(sentence=sentence))

    def _post(self, message: Message) -> None:
        # At the end, nothing shows it any more.
        with suppress(RuntimeError):
            self.post_message(message)

    @on(Arrived)
    def _arrived(self, message: Arrived) -> None:
        if message.sentence:
            self._say(message.sentence)
        if message.content is None:
            return
        if self._paused and self._content is not None and self._content.wanted == message.content.wanted:
            return
        self._content = message.content
        self._draw()

    @property
    def _wanted(self) -> Wanted:
        """What is shown: another view is shown once it arrived."""
        return self._requests.wanted if self._content is None else self._content.wanted

    @property
    def _view(self) -> str:
        return self._wanted.view

    # Drawing.

    def _draw(self) -> None:
        """Show the content anew."""
        with self.batch_update():
            self._draw_heading()
            content = self._content
            picture = content is not None and self._wanted.heatmap
            self.query_one(Rows).display = not picture
            self.query_one("#picture").display = picture
            more = ""
            if content is not None and picture:
                self.query_one("#picture Static", Static).update(
                    Text.from_ansi(content.heatmap or "nothing is known yet")
                )
            elif content is not None and content.table is not None:
                shown = self._fitted(content.table)
                self.query_one(Rows).show(shown)
                more = shown.more
            self.query_one("#more", Static).update(Text(more))
            self.query_one("#more").display = bool(more)
            self._draw_keys()

    def _draw_heading(self) -> None:
        if self._content is None:
            lines = ["kdamon: begins to monitor"]
        else:
            heading = self._content.heading
            if self._paused:
                heading = evolve(heading, states=(*heading.states, "paused"))
            if self._filter and not self._wanted.heatmap:
                heading = evolve(heading, states=(*heading.states, f"only {self._filter}"))
            lines = heading.lines(self.size.width)
        self.query_one("#heading", Static).update(Text("\n".join(lines)))

    def _fitted(self, table: Table) -> Fitted:
        order = self._orders[self._view]
        width = self.size.width - _BAR
        return fitted(arranged(table, order, self._filter), order, width, 2 * _PADDING)

    def _draw_keys(self) -> None:
        line = Text()
        for key, what in _KEYS_OF_HEATMAP if self._wanted.heatmap else _KEYS:
            gap = "  " if line else ""
            if len(line) + len(gap) + len(key) + 1 + len(what) <= self.size.width:
                line.append(gap).append(key, "bold").append(f" {what}")
        self.query_one("#keys", Static).update(line)

    def _say(self, sentence: str) -> None:
        said = self.query_one("#said", Static)
        said.update(Text(visible(sentence)))
        said.display = bool(sentence)
        self._said_until = time.monotonic() + _SAID_S if sentence else 0.0

    def on_resize(self) -> None:
        """Draw for the new size, once it is known everywhere."""
        self.call_after_refresh(self._resized)

    def _resized(self) -> None:
        if self._content is not None and self._wanted.heatmap:
            self._want(self._wanted)
        self._draw()

    # Keys.

    def _want(self, wanted: Wanted) -> None:
        """Ask for ``wanted``, in the size of the screen."""
        height = max(1, self.size.height - self.query_one("#heading").size.height - 1)
        self._requests.want(evolve(wanted, width=self.size.width - _BAR, height=height, colour=self._colour))

    @on(DataTable.RowSelected)
    def _enter(self) -> None:
        rows = self.query_one(Rows)
        if (key := rows.key_at_cursor()) is None:
            return
        rows.hold()
        first = key.partition("\0")[0]
        if self._view == "processes":
            self._want(Wanted("processes", int(first), heatmap=True))
        else:
            self._want(evolve(self._wanted, heatmap=True, part=key if self._view == "names" else first))

    @on(DataTable.RowHighlighted)
    def _moved(self) -> None:
        rows = self.query_one(Rows)
        if rows.has_focus:
            rows.hold()

    @on(DataTable.HeaderSelected)
    def _title(self, event: DataTable.HeaderSelected) -> None:
        """Sort by the column whose title was clicked."""
        table = None if self._content is None else self._content.table
        titles = {} if table is None else {column.title: column.key for column in table.columns}
        key = titles.get(event.label.plain.strip(), "")
        if key in ORDERS[self._view]:
            self._orders[self._view] = key
            self._draw()

    def action_sort(self) -> None:
        """Sort by the next column."""
        columns = ORDERS[self._view]
        self._orders[self._view] = columns[(columns.index(self._orders[self._view]) + 1) % len(columns)]
        self._draw()

    def action_help(self) -> None:
        """Show the keys."""
        self.push_screen(HelpScreen())

    def action_leave(self) -> None:
        """Leave the heatmap, the threads, a process, or the filter."""
        wanted = self._wanted
        if wanted.heatmap:
            pid = None if wanted.view == "processes" else wanted.pid
            self._want(evolve(wanted, heatmap=False, part=None, pid=pid))
        elif self._filter:
            self._filter = ""
            self._draw()
        elif wanted.view in ("threads", "cpus"):
            self._want(Wanted("names", wanted.pid))
        elif not self._requests.one:
            self._want(Wanted("processes"))

    def action_names(self) -> None:
        """Show the memory of the process of a row by name."""
        if (pid := self._pid()) is not None:
            self._want(Wanted("names", pid))

    def action_by(self, view: str) -> None:
        """Show threads or CPUs; or names again, where these are shown."""
        if (pid := self._pid()) is not None:
            self._want(Wanted("names" if self._view == view else view, pid))

    def _pid(self) -> int | None:
        """The process that is shown, or that of the row that the cursor is on."""
        if self._wanted.pid is not None:
            return self._wanted.pid
        key = self.query_one(Rows).key_at_cursor()
        return None if key is None else int(key.partition("\0")[0])

    def action_writes(self) -> None:
        """Count only writes, or all accesses again."""
        self._requests.toggle_writes()

    def action_record(self) -> None:
        """Begin or end a record."""
        self._requests.toggle_records()

    def action_pause(self) -> None:
        """Change nothing that is shown, or go on."""
        self._paused = not self._paused
        self._draw()

    # The filter.

    def action_filter(self) -> None:
        """Ask for the text that rows have to contain."""
        if self._wanted.heatmap:
            return
        box = self.query_one("#filter", Input)
        box.display = True
        box.focus()

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        self._filter = event.value
        self._draw()

    @on(Input.Submitted)
    def _kept(self) -> None:
        self._leave_filter()

    def _leave_filter(self) -> None:
        self.query_one("#filter").display = False
        self.query_one(Rows).focus()

    def on_key(self, event: Key) -> None:
        """Let Escape end the filter while it is being typed."""
        if event.key == "escape" and self.query_one("#filter").has_focus:
            event.stop()
            self.query_one("#filter", Input).value = ""
            self._leave_filter()
