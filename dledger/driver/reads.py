"""Read-index requests: everyone who asks while a round is under way shares the next one (thesis §6.4).

A round wakes every node of the group, whoever it is for; so one is under way at a time, unless it takes long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from dledger.errors import DLedgerError

__all__ = ["ReadRounds"]


class ReadRounds:
    """Callers that wait for an index at which they may read.

    ``first_id``: request ids count up from here, never those of an earlier life of this node: a late answer
    to an old request would vouch for a new one. ``patience_s``: how long the next round waits for the one before.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, first_id: int, *, timeout_s: float, patience_s: float) -> None:
        self._loop = loop
        self._last_id = first_id
        self._timeout_s = timeout_s
        self._patience_s = patience_s
        self._started_at = 0.0
        self._next: list[asyncio.Future[int | None]] = []
        self._rounds: dict[int, list[asyncio.Future[int | None]]] = {}

    def ask(self) -> asyncio.Future[int | None]:
        """Join the next round; the future gets the index, or None where nobody confirmed it in time."""
        reader: asyncio.Future[int | None] = self._loop.create_future()
        self._next.append(reader)
        return reader

    @property
    def has_readers(self) -> bool:
        """Whether somebody waits for a round to begin."""
        return bool(self._next)

    @property
    def is_due(self) -> bool:
        """Whether somebody waits for a round that may begin now."""
        return bool(self._next) and (not self._rounds or self._loop.time() >= self._started_at + self._patience_s)

    def start(self, begin: Callable[[int], None], forget: Callable[[int], None]) -> None:
        """Begin a round for everyone who has asked: ``begin(request_id)``, ``forget(request_id)`` if it times out."""
        if not self.is_due:
            return
        self._started_at = self._loop.time()
        readers, self._next = self._next, []
        self._last_id += 1
        self._rounds[self._last_id] = readers
        self._loop.call_later(self._timeout_s, self._give_up, self._last_id, forget)
        begin(self._last_id)

    def _give_up(self, request_id: int, forget: Callable[[int], None]) -> None:
        if request_id in self._rounds:
            forget(request_id)
            self.finish(request_id, None)

    def finish(self, request_id: int, read_index: int | None) -> None:
        for reader in self._rounds.pop(request_id, ()):
            if not reader.done():
                reader.set_result(read_index)

    def fail_all(self, error: DLedgerError) -> None:
        """The node stops."""
        readers = [reader for readers in self._rounds.values() for reader in readers] + self._next
        self._rounds.clear()
        self._next = []
        for reader in readers:
            if not reader.done():
                reader.set_exception(error)
