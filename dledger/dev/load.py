"""A steady load on a dev group, so that there is something to see and to lose."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final

from dledger.errors import DLedgerError

__all__ = ["SteadyLoad"]

_TICK_S: Final = 0.02
_MAX_INFLIGHT: Final = 2000
"""While nobody leads no more than this is offered; what was due meanwhile is counted as held back."""

_CATCH_UP_S: Final = 0.1
"""After a pause of the loop no more than this much of the schedule is caught up at once."""


class SteadyLoad:
    """Calls ``append`` with ``rate`` small entries a second until it is stopped. Counts are of entries."""

    def __init__(self, append: Callable[[bytes], asyncio.Future[Any]], rate: float) -> None:
        self.rate = rate
        self.acknowledged = 0
        self.failed = 0
        self.held_back = 0
        self.inflight = 0
        self._call = append
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.ensure_future(self._run())

    async def stop(self) -> None:
        """End; what is under way is left to the client's closing.

        Raises:
            Exception: the load had failed in a way that is not one of the client's errors.
        """
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def as_json(self) -> dict[str, float]:
        """Return the figures as the page shows them."""
        return {"rate": self.rate, "acknowledged": self.acknowledged, "failed": self.failed, "inflight": self.inflight}

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        due_at = loop.time()
        number = 0
        while True:
            now = loop.time()
            due_at = max(due_at, now - _CATCH_UP_S)
            while due_at <= now:
                due_at += 1 / self.rate
                number += 1
                self._append(number)
            await asyncio.sleep(max(_TICK_S, due_at - loop.time()))

    def _append(self, number: int) -> None:
        if self.inflight >= _MAX_INFLIGHT:
            self.held_back += 1
            return
        try:
            future = self._call(f"load {number:09}".encode())
        except DLedgerError:
            self.failed += 1
            return
        self.inflight += 1
        future.add_done_callback(self._done)

    def _done(self, future: asyncio.Future[Any]) -> None:
        self.inflight -= 1
        if future.cancelled() or future.exception() is not None:
            self.failed += 1
        else:
            self.acknowledged += 1
