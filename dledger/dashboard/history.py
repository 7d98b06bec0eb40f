"""The last five minutes, a point a second: what the charts show, and when something was wrong. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

__all__ = ["Event", "Fault", "History", "Point", "RateMeter"]

SPAN_S: Final = 300
_EVENTS_KEPT: Final = 300


@dataclass(frozen=True, slots=True)
class Point:
    """One second. ``rate``: entries committed; times in milliseconds, None where nothing was measured."""

    t: float
    rate: float | None
    p50: float | None
    p99: float | None
    lag: Mapping[str, int | None]
    fsync: Mapping[str, float | None]


@dataclass(slots=True)
class Fault:
    """Something was wrong from ``began`` to ``ended`` (None: it still is). ``kind``: down, paused, cut, leaderless …"""

    kind: str
    node: str
    began: float
    ended: float | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened. ``kind``: election, log, fault, repair, action, minor."""

    number: int
    t: float
    node: str
    kind: str
    text: str


@dataclass(slots=True)
class RateMeter:
    """Entries a second, from a commit index that is looked at now and then."""

    _last: tuple[float, int] | None = None

    def take(self, now: float, commit_index: int) -> float | None:
        """Return the rate since the last call; None at the first, and where nobody knows the index (-1)."""
        before, self._last = self._last, (now, commit_index) if commit_index >= 0 else self._last
        if before is None or commit_index < 0 or now <= before[0]:
            return None
        # A restarted node may know less than was known before; nothing has been taken back.
        return max(commit_index - before[1], 0) / (now - before[0])


@dataclass(slots=True)
class History:
    """Points, faults and events, all bounded. Times are seconds since the epoch."""

    points: deque[Point] = field(default_factory=lambda: deque(maxlen=SPAN_S))
    faults: list[Fault] = field(default_factory=list)
    events: deque[Event] = field(default_factory=lambda: deque(maxlen=_EVENTS_KEPT))
    _number: int = 0

    def say(self, t: float, node: str, kind: str, text: str) -> Event:
        """Add an event; returns it."""
        self._number += 1
        event = Event(self._number, round(t, 3), node, kind, text)
        self.events.append(event)
        return event

    def active(self, wrong: Iterable[tuple[str, str]], now: float) -> tuple[list[Fault], list[Fault]]:
        """Say what is wrong now, as (kind, node) each; returns (what began, what ended). Forgets the long past."""
        present = set(wrong)
        open_faults = {(fault.kind, fault.node): fault for fault in self.faults if fault.ended is None}
        ended = [fault for key, fault in open_faults.items() if key not in present]
        for fault in ended:
            fault.ended = now
        began = [Fault(kind, node, now) for kind, node in sorted(present - open_faults.keys())]
        self.faults = [f for f in self.faults if f.ended is None or f.ended > now - SPAN_S] + began
        return began, ended

    def events_after(self, number: int) -> list[Event]:
        """Return the events with a higher number."""
        return [event for event in self.events if event.number > number]

    def as_json(self) -> dict[str, Any]:
        """Return everything, for a page that has just connected."""
        return {
            "points": [asdict(point) for point in self.points],
            "events": [asdict(event) for event in self.events],
            "faults": self.faults_json(),
        }

    def faults_json(self) -> list[dict[str, Any]]:
        """Return the faults of the last five minutes."""
        return [asdict(fault) for fault in self.faults]
