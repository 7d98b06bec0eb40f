"""A client's reads: gets of many callers over one call to a node, a call for each range. By `StreamCall`, or plainly.

A node of an older version has no ReadStream, and one that serves too many streams refuses another: both say so before
any answer, and `was_refused` tells; then `PlainRead` and Get do.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

import grpc
from grpc import aio

from dledger.client.stream_call import (
    FrameDialler,
    GrpcCall,
    StreamCall,
    header_of,
    is_own_cancellation,
    parse_answer,
    unavailable,
)
from dledger.client.transport import ReadChunk, closed_error
from dledger.errors import DLedgerError, UnavailableError
from dledger.types import ReadMode
from dledger.v1 import ledger_pb2

__all__ = ["READ_MODES", "GetCall", "PlainRead", "RangeCall", "ReadCall", "read_request"]

READ_MODES: Final = {
    ReadMode.LINEARIZABLE: ledger_pb2.READ_MODE_LINEARIZABLE,
    ReadMode.LOCAL_COMMITTED: ledger_pb2.READ_MODE_LOCAL_COMMITTED,
}

_MAX_READY: Final = 3
"""Chunks that wait for their reader before no more are taken from the network."""

_LONG_AFTER: Final = 2
_LONG_WITHIN_S: Final = 1.0
"""A range with so many chunks in so short a time is worth a connection."""

_REFUSALS: Final = frozenset(
    {grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL}
)
"""INTERNAL is what grpc.aio makes of any refusal that comes while the first request is being written."""


def read_request(
    group: str, first: int, last: int, mode: ReadMode, *, follow: bool = False, request_id: int = 0
) -> bytes:
    """Return a request for ``first`` to ``last`` (-1: up to the commit index) as slices of the log."""
    return ledger_pb2.ReadRequest(
        group=group,
        from_index=first,
        to_index=last,
        follow=follow,
        mode=READ_MODES[mode],
        raw=True,
        request_id=request_id,
    ).SerializeToString()


class ReadCall(Protocol):
    """The read of one range; `next_chunk` until it says ``end``, `close` in any case."""

    async def next_chunk(self) -> ReadChunk:
        """Return the next answer.

        Raises:
            UnavailableError: the stream broke, or ended before its range did.
        """

    def close(self) -> None: ...


class PlainRead:
    """One call of Read. Implements `ReadCall`."""

    def __init__(self, address: str, call: GrpcCall) -> None:
        self._address = address
        self._call = call

    async def next_chunk(self) -> ReadChunk:
        """See `ReadCall`."""
        try:
            data: object = await self._call.read()
        except aio.AioRpcError as error:
            raise unavailable(self._address, error) from None
        except asyncio.CancelledError:
            if is_own_cancellation():
                raise
            raise closed_error() from None
        if not isinstance(data, bytes):
            raise UnavailableError(f"{self._address}: the node closed the stream")
        return _chunk(parse_answer(self._address, ledger_pb2.ReadResponse, data))

    def close(self) -> None:
        """See `ReadCall`."""
        self._call.cancel()


class _Reads(StreamCall):
    """What gets and ranges share: knowing whether the node has taken the call at all."""

    _has_answered = False

    @property
    def was_refused(self) -> bool:
        """Whether the node does not want such a call, now or ever, and has answered nothing."""
        return not self._has_answered and self._status is not None and self._status.code() in _REFUSALS

    @property
    def is_over(self) -> bool:
        """Whether the call has ended."""
        return self._over


class GetCall(_Reads):
    """Gets of any number of callers over one call of ReadStream."""

    def __init__(self, group: str, address: str, call: GrpcCall, dialler: FrameDialler | None = None) -> None:
        super().__init__(address, call, dialler)
        self._group = group
        self._last_id = 0
        self._waiting: dict[int, asyncio.Future[ReadChunk]] = {}

    def get(self, index: int, mode: ReadMode) -> asyncio.Future[ReadChunk]:
        """Ask for one entry; return the future of the answer, which fails with ``UnavailableError`` if none comes."""
        self._last_id += 1
        future: asyncio.Future[ReadChunk] = self._loop.create_future()
        self._waiting[self._last_id] = future
        self._send(read_request(self._group, index, index, mode, request_id=self._last_id))
        return future

    def _hear(self, data: bytes) -> None:
        answer = parse_answer(self._address, ledger_pb2.ReadResponse, data)
        self._has_answered = True
        future = self._waiting.pop(answer.request_id, None)
        if future is not None and not future.done():
            future.set_result(_chunk(answer))

    def _lost(self, reason: str) -> None:
        self._fail(self._failure(reason))

    def close(self) -> None:
        """See ``StreamCall.close``; whoever waits hears that the client is closed."""
        super().close()
        self._fail(closed_error())

    def _fail(self, error: DLedgerError) -> None:
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(error)


class RangeCall(_Reads):
    """One range by a call of ReadStream of its own. Implements `ReadCall`."""

    def __init__(
        self,
        address: str,
        call: GrpcCall,
        request: bytes,
        dialler: FrameDialler | None = None,
        *,
        on_refused: Callable[[], None],
    ) -> None:
        super().__init__(address, call, dialler)
        self._on_refused = on_refused
        self._ready: deque[ReadChunk] = deque()
        self._early: dict[int, ReadChunk] = {}  # by number: frames that have overtaken what went by gRPC
        self._next_number = 0
        self._error: DLedgerError | None = None
        self._reader: asyncio.Future[None] | None = None
        self._is_long = self._loop.create_future()
        self._send(request)

    async def next_chunk(self) -> ReadChunk:
        """See `ReadCall`."""
        while not self._ready:
            if self._error is not None:
                raise self._error
            self._reader = self._loop.create_future()
            await self._reader
        chunk = self._ready.popleft()
        if self._held is not None and len(self._ready) < _MAX_READY:
            self._go_on()
        return chunk

    async def _worth_dialling(self) -> bool:
        done, _ = await asyncio.wait({self._is_long}, timeout=_LONG_WITHIN_S)
        return bool(done)

    def _hear(self, data: bytes) -> None:
        answer = parse_answer(self._address, ledger_pb2.ReadResponse, data)
        self._has_answered = True
        self._early[answer.number] = _chunk(answer)
        while (chunk := self._early.pop(self._next_number, None)) is not None:
            self._ready.append(chunk)
            self._next_number += 1
        if self._next_number >= _LONG_AFTER and not self._is_long.done():
            self._is_long.set_result(None)
        if len(self._ready) >= _MAX_READY and self._held is None:
            self._hold()
        self._tell_reader()

    def _lost(self, reason: str) -> None:
        if self.was_refused:
            self._on_refused()
        self._end(self._failure(reason))

    def close(self) -> None:
        """See `ReadCall`."""
        super().close()
        self._end(closed_error())

    def _end(self, error: DLedgerError) -> None:
        self._error = self._error or error
        self._tell_reader()

    def _tell_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


def _chunk(answer: ledger_pb2.ReadResponse) -> ReadChunk:
    return ReadChunk(header_of(answer.header), answer.data, answer.commit_index, answer.next_index, answer.end)
