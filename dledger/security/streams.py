"""Bounds on the streams of clients: how many there are, and how long one may take nothing of what is sent to it.

A client that opens a stream and does not read holds what gRPC has buffered for it and one chunk. gRPC itself never ends
such a stream while the connection answers pings.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc
import structlog
from grpc import aio

__all__ = ["StreamGuard", "WatchedContext"]

_CHECKS_A_TIMEOUT: Final = 4


class WatchedContext:
    """A call's context whose writes are watched. It has what the services use of a `ServicerContext`, and no more."""

    __slots__ = ("_context", "_loop", "_write", "abort", "is_slow", "read", "task", "writing_since_s")

    def __init__(self, context: aio.ServicerContext[bytes, bytes]) -> None:
        self._context = context
        self._write = context.write
        self._loop = asyncio.get_running_loop()
        self.read: Any = context.read
        self.abort: Any = context.abort
        self.task = asyncio.current_task()
        self.writing_since_s = 0.0  # Invariant: 0 exactly while nothing is being written.
        self.is_slow = False

    async def write(self, data: bytes) -> None:
        """Write, and let the guard see since when."""
        self.writing_since_s = self._loop.time()
        await self._write(data)
        self.writing_since_s = 0.0


class StreamGuard:
    """Runs the streams of one node's clients. ``slow_reader_s``: seconds that a write may wait for its reader."""

    def __init__(self, max_streams: int, slow_reader_s: float) -> None:
        self._max_streams = max_streams
        self._slow_reader_s = slow_reader_s
        self._open: set[WatchedContext] = set()
        self._timer: asyncio.TimerHandle | None = None
        self.refused_count = 0
        """Streams refused because there were too many."""
        self.slow_count = 0
        """Streams ended because their readers took nothing."""
        self._told = False

    @property
    def open_count(self) -> int:
        """Streams that are open."""
        return len(self._open)

    async def run(
        self, context: aio.ServicerContext[bytes, bytes], serve: Callable[[WatchedContext], Awaitable[None]]
    ) -> None:
        """Serve one stream to its end, or refuse it, or end it because its reader takes nothing."""
        if len(self._open) >= self._max_streams:
            self.refused_count += 1
            self._tell_once()
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"{self._max_streams} streams are open here (maxStreams)"
            )
        watched = WatchedContext(context)
        self._open.add(watched)
        if self._timer is None:
            self._arm()
        try:
            await serve(watched)
        except asyncio.CancelledError:
            if not watched.is_slow or watched.task is None or watched.task.uncancel() > 0:
                raise
            # The status waits behind what the client did not read. Until that arrives or the client goes, the call
            # holds the last message and counts as open, so that such calls cannot be piled up either.
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"nothing was read for {self._slow_reader_s:g} s (slowReaderTimeout)",
            )
        finally:
            self._open.discard(watched)

    def _tell_once(self) -> None:
        if not self._told:
            self._told = True
            structlog.get_logger().warning("too_many_streams", limit=self._max_streams)

    def _arm(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._slow_reader_s / _CHECKS_A_TIMEOUT, self._check)

    def _check(self) -> None:
        """End the streams whose writes wait too long. The timer rests while there is no stream."""
        self._timer = None
        limit = asyncio.get_running_loop().time() - self._slow_reader_s
        for watched in self._open:
            if 0.0 < watched.writing_since_s < limit and not watched.is_slow and watched.task is not None:
                watched.is_slow = True
                self.slow_count += 1
                structlog.get_logger().warning("slow_reader", seconds=self._slow_reader_s)
                watched.task.cancel()
        if self._open:
            self._arm()
        else:
            self._told = False

    def close(self) -> None:
        """Watch no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
