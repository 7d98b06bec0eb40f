"""What is shown while a run goes on: lanes and figures, redrawn four times a second on a terminal, else plain lines."""

from __future__ import annotations

import sys
from collections import deque
from itertools import pairwise
from typing import TYPE_CHECKING, Final, TextIO

from dledger.chaos.judge import percentile
from dledger.chaos.record import Event
from dledger.chaos.run import Present

if TYPE_CHECKING:
    from rich.live import Live

__all__ = ["LaneHistory", "PlainView", "TerminalView", "clock_text", "figures", "frame", "make_view"]

_CELLS: Final = 56
_EVENTS: Final = 6
_BARS: Final = "▁▂▃▄▅▆▇█"
_LEGEND: Final = "█ up  ░ down  ▒ paused  ▓ cut off  ◆ leader  · silent"
_PLAIN_S: Final = 5.0

_CELL: Final = {"leader": "◆", "down": "░", "stopping": "░", "paused": "▒", "silent": "·"}
_COLOUR: Final = {"◆": "bold green", "█": "green", "░": "red", "▒": "yellow", "▓": "magenta", "·": "dim"}


def clock_text(at: float) -> str:
    """``00:21.4``."""
    return f"{int(at) // 60:02d}:{at % 60:04.1f}"


class LaneHistory:
    """What a view remembers of the run: one cell of each lane and one rate for each tick."""

    def __init__(self) -> None:
        self.lanes: dict[str, deque[str]] = {}
        self.rates: deque[float] = deque(maxlen=_CELLS)
        self.events: deque[Event] = deque(maxlen=_EVENTS)
        self.worst_gap_s = 0.0
        self._last: tuple[float, int] = (0.0, 0)
        self._seen = 0

    def tick(self, present: Present) -> None:
        """Take in the present."""
        for node_id, view in present.monitor.views.items():
            state = present.injector.states.get(node_id, view.state)
            cut = present.monitor.is_cut(node_id)
            cell = _CELL.get(state, "█") if state != "leader" or not cut else "◆"
            if cut and cell == "█":
                cell = "▓"
            self.lanes.setdefault(node_id, deque(maxlen=_CELLS)).append(cell)
        now, acks = present.clock(), len(present.load.acks)
        then, before = self._last
        self.rates.append((acks - before) / max(now - then, 1e-3))
        self._last = (now, acks)
        self._measure_gaps(present)

    def _measure_gaps(self, present: Present) -> None:
        """The worst time between two acknowledgements, the present silence included while there is load."""
        acks = present.load.acks
        new = acks[max(self._seen - 1, 0) :]
        self._seen = len(acks)
        if present.phase == "faults":
            now = self.gap_now_s(present) if acks else 0.0
            self.worst_gap_s = max(self.worst_gap_s, now, max((b - a for a, b in pairwise(new)), default=0.0))

    @staticmethod
    def gap_now_s(present: Present) -> float:
        """Seconds since the last acknowledgement."""
        acks = present.load.acks
        return present.clock() - (acks[-1] if acks else 0.0)

    def spark(self) -> str:
        """The rates as bars."""
        top = max(self.rates, default=0.0) or 1.0
        return "".join(_BARS[min(int(rate / top * len(_BARS)), len(_BARS) - 1)] for rate in self.rates)


def _recent_p99_ms(present: Present) -> float | None:
    recent = present.load.latencies_ms[-2000:]
    return percentile(recent, 99) if recent else None


def figures(history: LaneHistory, present: Present) -> list[str]:
    """The two lines of numbers."""
    load, injector, counts = present.load, present.injector, present.injector.counts
    p99 = _recent_p99_ms(present)
    rate = history.rates[-1] if history.rates else 0.0
    return [
        f"{rate:7.0f}/s   p99 {'-' if p99 is None else f'{p99:.0f} ms'}   "
        f"gap now {history.gap_now_s(present) * 1000:.0f} ms   worst {history.worst_gap_s * 1000:.0f} ms",
        f"acknowledged {len(load.acks)}   unknown {load.unknown}   refused {load.refused}   "
        f"kills {counts.get('kills', 0)}  pauses {counts.get('pause', 0)}  cuts {counts.get('partition', 0)}  "
        f"retries {injector.forced_retries}   elections {len(present.monitor.elections)}",
    ]


def frame(history: LaneHistory, present: Present) -> list[str]:
    """The whole picture, a list of lines without colour."""
    options = present.options
    fsync = present.record.meta.get("fsync", "")
    lines = [
        f"chaos seed {options.seed}   {clock_text(present.clock())} / {clock_text(options.duration_s)}   "
        f"{options.clients} clients   {fsync}   {present.phase}"
    ]
    for node_id, view in present.monitor.views.items():
        lane = "".join(history.lanes.get(node_id, ()))
        role = present.injector.states.get(node_id) or ("LEADER" if view.state == "leader" else view.state)
        lines.append(f"{node_id:4} {lane:{_CELLS}}  {role:13} term {view.term:<5}")
    first, second = figures(history, present)
    lines += [f"     {_LEGEND}", f"ack  {history.spark():{_CELLS}}{first}", second]
    lines += [f"{clock_text(event.at)} {event.words}" for event in history.events]
    return lines


class TerminalView:
    """Redraws the picture in place with rich."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console  # noqa: PLC0415 - only on a terminal
        from rich.live import Live  # noqa: PLC0415

        self._history = LaneHistory()
        self._live: Live = Live(console=Console(file=stream), auto_refresh=False, transient=True)
        self._live.start()

    def say(self, event: Event) -> None:
        """Remember an event; the next picture shows it."""
        self._history.events.append(event)

    def tick(self, present: Present) -> None:
        """Draw."""
        from rich.text import Text  # noqa: PLC0415

        self._history.tick(present)
        text = Text("\n".join(frame(self._history, present)), no_wrap=True)
        for cell, style in _COLOUR.items():
            text.highlight_words([cell], style)
        self._live.update(text, refresh=True)

    def close(self) -> None:
        self._live.stop()


class PlainView:
    """One line for each event, and the figures every five seconds."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._history = LaneHistory()
        self._next = 0.0

    def say(self, event: Event) -> None:
        """Print an event."""
        print(f"{clock_text(event.at)} {event.words}", file=self._stream, flush=True)

    def tick(self, present: Present) -> None:
        """Print the figures when it is time."""
        self._history.tick(present)
        now = present.clock()
        if now >= self._next:
            self._next = now + _PLAIN_S
            print(f"{clock_text(now)}   {'; '.join(figures(self._history, present))}", file=self._stream, flush=True)

    def close(self) -> None:
        self._stream.flush()


def make_view(stream: TextIO | None = None) -> TerminalView | PlainView:
    """Return the view that suits ``stream`` (standard error): pictures on a terminal with rich, else lines."""
    out = sys.stderr if stream is None else stream
    if out.isatty():
        try:
            return TerminalView(out)
        except ImportError:
            return PlainView(out)
    return PlainView(out)
