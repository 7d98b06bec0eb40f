"""What a node did lately, for whoever watches it: events, messages sent, and how long appends took.

Bounded, and counted per message or per proposal, never per entry. No clock: times are handed in, as the loop has them.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from typing import Final

from dledger.metrics.registry import Histogram
from dledger.raft.messages import Message, NodeId
from dledger.raft.ready import CoreEvent
from dledger.types import NodeEvent

__all__ = ["AppendTimes", "Recent"]

_EVENTS_KEPT: Final = 64
_TIMINGS_KEPT: Final = 1000
_WINDOW_S: Final = 5.0
"""Appends that are older say nothing about how the node does now."""


class Recent:
    """Events and message counts of one node since it started."""

    def __init__(self) -> None:
        self._events: deque[tuple[int, int, str, dict[str, str]]] = deque(maxlen=_EVENTS_KEPT)
        self._number = 0
        self._sent: dict[tuple[NodeId, type[Message]], int] = {}
        self.counts: Counter[str] = Counter()
        """Events by name since the start; lost elections by the role that lost, too (``election_lost:candidate``)."""
        self.truncated_count = 0
        """Entries cut from the log's end because a leader's log has others there."""

    def note(self, name: str, facts: Iterable[tuple[str, object]], now_ms: int) -> None:
        """Keep an event; the oldest goes."""
        self._number += 1
        self.counts[name] += 1
        known = {key: "" if value is None else str(value) for key, value in facts}
        self._events.append((self._number, now_ms, name, known))

    def note_core_event(self, event: CoreEvent, now_ms: int) -> None:
        """Keep what the core tells of itself."""
        if event.name == "truncated":
            self.truncated_count += int(str(dict(event.facts)["entries"]))
        if event.name == "election_lost":
            self.counts[f"election_lost:{dict(event.facts)['role']}"] += 1
        self.note(event.name, event.facts, now_ms)

    def sent(self, peer: NodeId, message: Message) -> None:
        """Count a message on its way to ``peer``."""
        key = (peer, type(message))
        self._sent[key] = self._sent.get(key, 0) + 1

    def events(self, now_ms: int) -> tuple[NodeEvent, ...]:
        """Return the last events, oldest first."""
        return tuple(NodeEvent(number, now_ms - at, name, facts) for number, at, name, facts in self._events)

    def sent_to(self, peer: NodeId) -> dict[str, int]:
        """Return how many messages of each kind (the name of its class) were sent to ``peer``."""
        return {kind.__name__: count for (to, kind), count in self._sent.items() if to == peer}


class AppendTimes:
    """How long it takes from a proposal to its commit, at a leader. One timing for all entries of a proposal.

    Invariant: the indexes of what is under way ascend.
    """

    def __init__(self) -> None:
        self._under_way: deque[tuple[int, float]] = deque()
        self._timings: deque[tuple[float, float]] = deque(maxlen=_TIMINGS_KEPT)
        self.latency = Histogram()
        """All of them since the start, in seconds, for Prometheus."""

    def proposed(self, last_index: int, now_s: float) -> None:
        """Entries up to ``last_index`` have been given their places."""
        self._under_way.append((last_index, now_s))

    def committed(self, commit_index: int, now_s: float) -> None:
        """Everything up to ``commit_index`` is committed."""
        queue = self._under_way
        while queue and queue[0][0] <= commit_index:
            took_s = now_s - queue.popleft()[1]
            self._timings.append((now_s, took_s))
            self.latency.observe(took_s)

    def leadership_lost(self) -> None:
        """What is under way may be replaced; nobody will hear of it from this node."""
        self._under_way.clear()

    def percentiles_us(self, now_s: float) -> tuple[int, int]:
        """Return p50 and p99 in microseconds over the last five seconds (a thousand proposals at most); -1: none."""
        recent = sorted(took for at, took in self._timings if now_s - at <= _WINDOW_S)
        if not recent:
            return -1, -1
        return int(recent[len(recent) // 2] * 1e6), int(recent[len(recent) * 99 // 100] * 1e6)
