"""Long polling: pulls that found nothing wait here for a message or for their time to be up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from broker_adapter.remoting.command import RemotingCommand
from broker_adapter.remoting.connection import RemotingConnection
from broker_adapter.store.api import Arrival

__all__ = ["HeldPull", "PullHold"]

_CHECK_INTERVAL_S: Final = 0.5


@dataclass(slots=True)
class HeldPull:
    """A pull that waits. ``codes``: tags it wants (None: all). ``deadline``: loop time at which it is answered."""

    request: RemotingCommand
    connection: RemotingConnection
    topic: str
    queue_id: int
    offset: int
    codes: frozenset[int] | None
    deadline: float


def _wanted(held: HeldPull, arrival: Arrival) -> bool:
    if arrival.max_offset <= held.offset:
        return False
    if held.codes is None:
        return True
    start = max(0, held.offset - arrival.first_offset)
    codes = held.codes
    return any(code in codes for code in arrival.tags_codes[start:])


class PullHold:
    """Held pulls by queue. ``wake(held)`` is called once for each, in the loop, when it must be looked at again."""

    def __init__(self, wake: Callable[[HeldPull], None]) -> None:
        self._wake = wake
        self._held: dict[tuple[str, int], list[HeldPull]] = {}
        self._task: asyncio.Task[None] | None = None
        self.count = 0

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(), name="pull-hold")

    async def stop(self) -> None:
        """Answer everything that is held."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        self.wake_all()

    def add(self, held: HeldPull) -> None:
        """Hold a pull."""
        self._held.setdefault((held.topic, held.queue_id), []).append(held)
        self.count += 1

    def arrived(self, arrivals: Sequence[Arrival]) -> None:
        """Messages became visible: wake those who wait for them."""
        if not self.count:
            return
        for arrival in arrivals:
            key = (arrival.topic, arrival.queue_id)
            waiting = self._held.get(key)
            if waiting:
                self._release(key, waiting, [held for held in waiting if _wanted(held, arrival)])

    def _release(self, key: tuple[str, int], waiting: list[HeldPull], woken: list[HeldPull]) -> None:
        if not woken:
            return
        if len(woken) == len(waiting):
            del self._held[key]
        else:
            gone = set(map(id, woken))
            self._held[key] = [held for held in waiting if id(held) not in gone]
        self.count -= len(woken)
        for held in woken:
            self._wake(held)

    def wake_all(self) -> None:
        """Look at every held pull again: a role changed, or the broker stops."""
        for key, waiting in list(self._held.items()):
            self._release(key, waiting, list(waiting))

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_CHECK_INTERVAL_S)
            now = loop.time()
            for key, waiting in list(self._held.items()):
                self._release(
                    key, waiting, [held for held in waiting if held.deadline <= now or held.connection.is_closed]
                )
