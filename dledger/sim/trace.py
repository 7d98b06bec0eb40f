"""What happened in a run, cheaply kept, and one number that says whether two runs were the same.

Events are tuples of numbers and short texts, formatted only when somebody reads them. The hash uses Python's hash of
numbers, which is the same in every process; texts are numbered in the order in which they appear, because their hash
is not.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from typing import Final

__all__ = ["KEPT_EVENTS", "Trace", "TraceEvent"]

KEPT_EVENTS: Final = 4000
"""Events kept where nobody asked for the whole trace."""

Fact = int | float | str | None
TraceEvent = tuple[float, str, str, tuple[Fact, ...]]
"""(virtual time in seconds, node or "", what, facts)."""


class Trace:
    """The events of one run. ``keep`` None keeps all of them."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, keep: int | None = KEPT_EVENTS) -> None:
        self._loop = loop
        self._start = loop.time()
        self._events: deque[TraceEvent] = deque(maxlen=keep)
        self._numbers: dict[str, int] = {}
        self._hash = 0
        self.count = 0

    def add(self, node: str, what: str, *facts: Fact) -> None:
        """Note an event of ``node`` ("" for the simulator)."""
        now = self._loop.time()
        numbers = self._numbers
        parts: list[float] = [
            numbers.setdefault(fact, len(numbers)) if isinstance(fact, str) else -1 if fact is None else fact
            for fact in facts
        ]
        node_number = numbers.setdefault(node, len(numbers))
        what_number = numbers.setdefault(what, len(numbers))
        self._hash = hash((self._hash, now, node_number, what_number, *parts))
        self._events.append((now, node, what, facts))
        self.count += 1

    @property
    def hash(self) -> str:
        """16 hexadecimal digits; equal for equal runs, in any process."""
        return f"{self._hash & 0xFFFF_FFFF_FFFF_FFFF:016x}"

    def lines(self, last: int | None = None) -> Iterator[str]:
        """Yield the kept events as text, oldest first (the ``last`` so many)."""
        events = list(self._events)
        for now, node, what, facts in events if last is None else events[-last:]:
            rest = " ".join("-" if fact is None else str(fact) for fact in facts)
            yield f"{now - self._start:12.6f}  {node or '*':<4} {what} {rest}".rstrip()
