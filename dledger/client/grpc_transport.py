"""`ClientTransport` on grpc.aio, and the calls of a client that the pipeline has no part in (reads, status, admin).

Bytes and messages in and out; who is asked, and whether again, is decided by the callers. Answers are encoded and
decoded here, so gRPC passes bytes through.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, TypeVar

from google.protobuf.message import Message
from grpc import aio

from dledger.client.append_call import AppendCall
from dledger.client.read_call import READ_MODES, GetCall, PlainRead, RangeCall, ReadCall, read_request
from dledger.client.status_answer import node_status
from dledger.client.stream_call import (
    FrameDialler,
    StreamCall,
    header_of,
    is_own_cancellation,
    parse_answer,
    unavailable,
)
from dledger.client.transport import (
    Header,
    Metadata,
    SessionAnswer,
    StreamHandler,
    closed_error,
)
from dledger.errors import UnavailableError
from dledger.raft.messages import EntryType
from dledger.rpc.options import NetworkOptions
from dledger.security.access import ClientTls
from dledger.security.tls import ChannelMaker
from dledger.security.tokens import AUTHORIZATION
from dledger.storage.entry import iter_entries
from dledger.types import Entry, NodeStatus, ReadMode
from dledger.v1 import admin_pb2, ledger_pb2

__all__ = ["GrpcClientTransport"]

_LEDGER = "/dledger.v1.LedgerService/"
_READ_STREAM = "ReadStream"
_ADMIN = "/dledger.v1.AdminService/"

CLIENT_NETWORK = NetworkOptions(keepalive_time_ms=10_000, keepalive_timeout_ms=5_000)
"""Half-open connections are noticed within 15 s (a hung leader much earlier, by overdue answers)."""

_OLD_CHANNEL_S = 30.0
"""How long calls may go on over a connection whose certificate has been replaced."""

_PLAIN_S = 60.0
"""A node that does not take reads by a stream is not asked to for so long."""

_C = TypeVar("_C", bound=StreamCall)
_M = TypeVar("_M", bound=Message)
_Call = Any
_Metadata = tuple[tuple[str, str], ...] | None


class GrpcClientTransport:
    """Channels to the nodes of one group, made on first use. Belongs to the loop that runs at its construction."""

    def __init__(
        self,
        group: str,
        network: NetworkOptions = CLIENT_NETWORK,
        *,
        tls: ClientTls | None = None,
        token: str | None = None,
    ) -> None:
        network.validate()
        self._group = group
        self._arguments = network.channel_arguments()
        self._metadata = None if token is None else ((AUTHORIZATION, f"Bearer {token}"),)
        # Whoever speaks TLS to a node is not to be led past it.
        self._dialler = FrameDialler(network) if tls is None else None
        self._maker = ChannelMaker.of_client(tls)
        self._generation = self._maker.generation
        self._channels: dict[str, aio.Channel] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._streams: dict[StreamCall, None] = {}
        self._gets: dict[str, GetCall] = {}
        self._plain_until_s: dict[str, float] = {}
        self._closed = False

    async def close(self) -> None:
        """End every stream and channel, and wait until their tasks are gone."""
        self._closed = True
        streams = list(self._streams)
        for stream in streams:
            stream.close()
        await asyncio.gather(*(stream.wait_closed() for stream in streams))
        channels, self._channels = list(self._channels.values()), {}
        for task in self._leaving:
            task.cancel()
        await asyncio.gather(*self._leaving, return_exceptions=True)
        for channel in channels:
            await channel.close()

    def _channel(self, address: str) -> aio.Channel:
        if self._closed:
            raise closed_error()
        if self._generation != self._maker.generation:
            self._leave_channels()
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels[address] = self._maker.channel(address, self._arguments)
        return channel

    def _leave_channels(self) -> None:
        """The certificates have changed: new calls get new channels; what runs on the old ones has a while to end."""
        self._generation = self._maker.generation
        old, self._channels = self._channels, {}
        for channel in old.values():
            task = asyncio.get_running_loop().create_task(channel.close(_OLD_CHANNEL_S), name="dledger-client-leave")
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    async def _unary(self, address: str, method: str, request: Message, kind: type[_M], timeout: float) -> _M:
        call: _Call = self._channel(address).unary_unary(method)
        try:
            data: bytes = await call(request.SerializeToString(), timeout=timeout, metadata=self._metadata)
        except aio.AioRpcError as error:
            raise unavailable(address, error) from None
        except aio.UsageError as error:
            raise UnavailableError(f"{address}: {error}") from None
        except asyncio.CancelledError:
            if is_own_cancellation():
                raise
            raise closed_error() from None
        return parse_answer(address, kind, data)

    # ---- what the pipeline needs

    def open_stream(self, address: str, handler: StreamHandler) -> AppendCall:
        """See ``ClientTransport.open_stream``."""
        call, dialler = self._stream_call(address, "AppendStream")
        return self._kept(AppendCall(self._group, address, call, handler, dialler))

    def _stream_call(self, address: str, method: str) -> tuple[_Call, FrameDialler | None]:
        """Begin a call of streams; return it, and who dials for it if a connection is to take its place."""
        wish = () if self._dialler is None else self._dialler.metadata(address)
        metadata: _Metadata = (*(self._metadata or ()), *wish) or None
        make: _Call = self._channel(address).stream_stream(_LEDGER + method)
        return make(metadata=metadata), self._dialler if wish else None

    def _kept(self, stream: _C) -> _C:
        self._streams[stream] = None
        stream.add_done_callback(self._forget)
        return stream

    def _forget(self, stream: StreamCall) -> None:
        self._streams.pop(stream, None)

    async def open_session(self, address: str, client_id: bytes, timeout: float) -> SessionAnswer:
        """See ``ClientTransport.open_session``."""
        request = ledger_pb2.OpenSessionRequest(group=self._group, client_id=client_id)
        answer = await self._unary(address, _LEDGER + "OpenSession", request, ledger_pb2.OpenSessionResponse, timeout)
        return SessionAnswer(header_of(answer.header), answer.session_id, answer.next_sequence)

    async def metadata(self, address: str, timeout: float) -> Metadata:
        """See ``ClientTransport.metadata``."""
        request = ledger_pb2.MetadataRequest(group=self._group)
        answer = await self._unary(address, _LEDGER + "Metadata", request, ledger_pb2.MetadataResponse, timeout)
        return Metadata(
            header_of(answer.header),
            answer.header.group,
            {member.node_id: member.address for member in answer.members},
            answer.max_entry_bytes,
            answer.max_batch_bytes,
            answer.max_batch_entries,
        )

    # ---- reads

    async def get(self, address: str, index: int, mode: ReadMode, timeout: float) -> tuple[Header, Entry | None]:
        """Return the answer's header and the entry at ``index`` (None unless the header is ok)."""
        while not self._is_plain(address):
            call = self._get_call(address)
            try:
                async with asyncio.timeout(timeout):
                    chunk = await call.get(index, mode)
            except TimeoutError:
                raise UnavailableError(f"{address}: no answer within {timeout:.3g} s") from None
            except UnavailableError:
                if not call.was_refused:
                    raise
                self._be_plain(address)
            else:
                return chunk.header, next(iter_entries(chunk.data), None)
        request = ledger_pb2.GetRequest(group=self._group, index=index, mode=READ_MODES[mode])
        answer = await self._unary(address, _LEDGER + "Get", request, ledger_pb2.GetResponse, timeout)
        return header_of(answer.header), _entry(answer.entry) if answer.HasField("entry") else None

    def _get_call(self, address: str) -> GetCall:
        call = self._gets.get(address)
        if call is None or call.is_over:
            call = self._gets[address] = self._kept(
                GetCall(self._group, address, *self._stream_call(address, _READ_STREAM))
            )
        return call

    def _is_plain(self, address: str) -> bool:
        return asyncio.get_running_loop().time() < self._plain_until_s.get(address, 0.0)

    def _be_plain(self, address: str) -> None:
        self._plain_until_s[address] = asyncio.get_running_loop().time() + _PLAIN_S

    def read(self, address: str, first: int, last: int, *, follow: bool, mode: ReadMode) -> ReadCall:
        """Begin to read ``first`` to ``last`` (-1: up to the commit index) as slices of the log."""
        if self._is_plain(address):
            return self.read_plainly(address, first, last, follow=follow, mode=mode)
        call, dialler = self._stream_call(address, _READ_STREAM)
        request = read_request(self._group, first, last, mode, follow=follow)
        return self._kept(RangeCall(address, call, request, dialler, on_refused=partial(self._be_plain, address)))

    def read_plainly(self, address: str, first: int, last: int, *, follow: bool, mode: ReadMode) -> PlainRead:
        """As `read`, for a range of which one answer is enough."""
        make: _Call = self._channel(address).unary_stream(_LEDGER + "Read")
        request = read_request(self._group, first, last, mode, follow=follow)
        return PlainRead(address, make(request, metadata=self._metadata))

    # ---- operators

    async def status(self, address: str, timeout: float) -> tuple[Header, NodeStatus]:
        """Return the answer's header and what the node says of itself."""
        request = admin_pb2.StatusRequest(group=self._group)
        answer = await self._unary(address, _ADMIN + "Status", request, admin_pb2.StatusResponse, timeout)
        return header_of(answer.header), node_status(answer, address)

    async def transfer_leadership(self, address: str, target: str, timeout: float) -> tuple[Header, str]:
        """Return the answer's header and the new leader's id. ``target`` empty: the best follower."""
        request = admin_pb2.TransferLeadershipRequest(group=self._group, target=target)
        answer = await self._unary(
            address, _ADMIN + "TransferLeadership", request, admin_pb2.TransferLeadershipResponse, timeout
        )
        return header_of(answer.header), answer.new_leader_id

    async def step_down(self, address: str, timeout: float) -> Header:
        """Return the answer's header."""
        request = admin_pb2.StepDownRequest(group=self._group)
        answer = await self._unary(address, _ADMIN + "StepDown", request, admin_pb2.StepDownResponse, timeout)
        return header_of(answer.header)


def _entry(entry: ledger_pb2.Entry) -> Entry:
    return Entry(entry.index, entry.term, entry.pos, EntryType(entry.type), entry.session_id, entry.body)
