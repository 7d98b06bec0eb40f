"""Appending many lines with many in flight: order kept, memory bounded, every line accounted for."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from dledger.errors import DLedgerError
from dledger.raft.messages import invariant

if TYPE_CHECKING:
    from dledger.client import LedgerClient
    from dledger.types import AppendResult

__all__ = ["LineAppender"]

MAX_INFLIGHT_COUNT: Final = 4096
MAX_INFLIGHT_BYTES: Final = 16 * 1024 * 1024


class LineAppender:
    """Feeds a client's pipeline.

    ``on_ack(line, body, result)`` and ``on_fail(line, body, error)`` are called once for each line submitted, on the
    loop, in the order of the outcomes. Lines are numbered from 0 in the order of `submit`, and the log has them in that
    order as long as none fails.
    """

    # Invariant: 0 <= _inflight_count <= max_inflight_count between calls of `submit`.

    def __init__(
        self,
        client: LedgerClient,
        on_ack: Callable[[int, bytes, AppendResult], None],
        on_fail: Callable[[int, bytes, BaseException], None],
        *,
        max_inflight_count: int = MAX_INFLIGHT_COUNT,
        max_inflight_bytes: int = MAX_INFLIGHT_BYTES,
    ) -> None:
        self._client = client
        self._on_ack = on_ack
        self._on_fail = on_fail
        self._max_count = max_inflight_count
        self._max_bytes = max_inflight_bytes
        self._inflight_count = 0
        self._inflight_bytes = 0
        self._room: asyncio.Event = asyncio.Event()
        self.submitted = 0

    async def submit(self, body: bytes) -> None:
        """Take one line; waits while the window is full."""
        while self._inflight_count >= self._max_count or self._inflight_bytes >= self._max_bytes:
            self._room.clear()
            await self._room.wait()
        line = self.submitted
        self.submitted += 1
        try:
            future = self._client.append_nowait(body)
        except DLedgerError as error:
            # Refused without being sent, as an entry over the limit is.
            self._on_fail(line, body, error)
            return
        self._inflight_count += 1
        self._inflight_bytes += len(body)
        future.add_done_callback(functools.partial(self._done, line, body))

    async def drain(self) -> None:
        """Return when every line submitted has its outcome."""
        while self._inflight_count:
            self._room.clear()
            await self._room.wait()

    def _done(self, line: int, body: bytes, future: asyncio.Future[AppendResult]) -> None:
        invariant(self._inflight_count > 0, "an append was resolved twice")
        self._inflight_count -= 1
        self._inflight_bytes -= len(body)
        self._room.set()
        if future.cancelled():
            self._on_fail(line, body, asyncio.CancelledError())
            return
        error = future.exception()
        if error is None:
            self._on_ack(line, body, future.result())
        else:
            self._on_fail(line, body, error)
