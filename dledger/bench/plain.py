"""Work of a gRPC client that knows only the proto: generated stubs, one call at a time and caller, no batching."""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import grpc
from grpc import aio

from dledger.bench.load import Load, Work
from dledger.errors import DLedgerError, ResponseCode, UnavailableError
from dledger.v1 import ledger_pb2 as pb
from dledger.v1.ledger_pb2_grpc import LedgerServiceStub

if TYPE_CHECKING:
    from dledger.v1.ledger_pb2_grpc import LedgerServiceAsyncStub

__all__ = ["BEYOND_ANY_INDEX", "plain_work"]

BEYOND_ANY_INDEX: Final = 2**62
"""A read from here is refused, with the commit index."""

_OPTIONS: Final = (
    ("grpc.use_local_subchannel_pool", 1),  # else channels of one process share a connection
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
)
_DEADLINE_S: Final = 30.0

_Stream: TypeAlias = "aio.UnaryStreamCall[Any, pb.ReadResponse]"
_Stubs: TypeAlias = "Iterator[LedgerServiceAsyncStub]"


@asynccontextmanager
async def plain_work(address: str, group: str, load: Load, body: bytes) -> AsyncIterator[Work]:
    """Connect to the leader that the node at ``address`` names, and yield the work of a ``unary…`` load.

    Raises:
        UnavailableError: nobody answers there.
        DLedgerError: the node refuses, or has nothing to read.
    """
    async with aio.insecure_channel(address, options=_OPTIONS) as first:
        leader = await _leader(first, group, address)
    channels = [aio.insecure_channel(leader, options=_OPTIONS) for _ in range(load.channels)]
    try:
        stubs: _Stubs = itertools.cycle([LedgerServiceStub(channel) for channel in channels])
        if load.operation == "unary":
            yield Work(_append(stubs, group, body), bytes_a_call=len(body))
        else:
            last = await _commit_index(next(stubs), group)
            if last < 0:
                raise DLedgerError("the log is empty: append first", code=ResponseCode.INDEX_OUT_OF_RANGE)
            if load.operation == "unary-get":
                yield Work(_get(stubs, group, last), counted=lambda answer: (1, len(answer.entry.body)))
            else:
                reads = _Reads(stubs, group, last)
                yield Work(reads.next_message, counted=reads.count)
                reads.close()
    finally:
        for channel in channels:
            await channel.close()


def _checked(header: pb.ResponseHeader) -> None:
    if header.code != ResponseCode.SUCCESS:
        raise DLedgerError(header.message, code=ResponseCode(header.code))


def _lost(error: grpc.RpcError) -> UnavailableError:
    return UnavailableError(f"{error.code().name}: {error.details()}")


async def _leader(channel: aio.Channel, group: str, address: str) -> str:
    try:
        stub = LedgerServiceStub(channel)
        answer = await stub.Metadata(pb.MetadataRequest(group=group), timeout=_DEADLINE_S, wait_for_ready=True)
    except aio.AioRpcError as error:
        raise _lost(error) from error
    _checked(answer.header)
    return str(answer.header.leader_address) or address


async def _commit_index(stub: LedgerServiceAsyncStub, group: str) -> int:
    request = pb.ReadRequest(group=group, from_index=BEYOND_ANY_INDEX, to_index=-1)
    try:
        answer = await stub.Read(request, timeout=_DEADLINE_S).read()
    except aio.AioRpcError as error:
        raise _lost(error) from error
    if not isinstance(answer, pb.ReadResponse):
        raise UnavailableError("a read ended without an answer")
    return answer.commit_index


def _append(stubs: _Stubs, group: str, body: bytes) -> Callable[[], Awaitable[None]]:
    async def call() -> None:
        # As any program would: a request of its own for each call.
        try:
            answer = await next(stubs).Append(pb.AppendRequest(group=group, body=body), timeout=_DEADLINE_S)
        except aio.AioRpcError as error:
            raise _lost(error) from error
        _checked(answer.header)

    return call


def _get(stubs: _Stubs, group: str, last: int) -> Callable[[], Awaitable[pb.GetResponse]]:
    rng = random.Random(last)  # the same indexes in each run

    async def call() -> pb.GetResponse:
        try:
            request = pb.GetRequest(group=group, index=rng.randrange(last + 1))
            answer = await next(stubs).Get(request, timeout=_DEADLINE_S)
        except aio.AioRpcError as error:
            raise _lost(error) from error
        _checked(answer.header)
        return answer

    return call


class _Reads:
    """Sequential reads over the whole log, again and again: a call is the next message of a stream."""

    def __init__(self, stubs: _Stubs, group: str, last: int) -> None:
        self._stubs = stubs
        self._request = pb.ReadRequest(group=group, from_index=0, to_index=last, raw=True, all_types=True)
        self._last = last
        self._idle: deque[tuple[_Stream, int]] = deque()

    async def next_message(self) -> tuple[int, int]:
        """Return the entries and bytes of the next message."""
        stream, at = self._idle.popleft() if self._idle else (self._stubs_call(), 0)
        try:
            answer = await stream.read()
        except aio.AioRpcError as error:
            raise _lost(error) from error
        if not isinstance(answer, pb.ReadResponse):
            raise UnavailableError("the stream ended before its range did")
        _checked(answer.header)
        if answer.end:
            stream.cancel()
        else:
            self._idle.append((stream, answer.next_index))
        return answer.next_index - at, answer.ByteSize()

    def _stubs_call(self) -> _Stream:
        return next(self._stubs).Read(self._request)

    @staticmethod
    def count(result: tuple[int, int]) -> tuple[int, int]:
        """A result says itself what it counts for."""
        return result

    def close(self) -> None:
        """End the streams."""
        for stream, _ in self._idle:
            stream.cancel()
