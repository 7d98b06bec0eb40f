"""The `Transport` of real nodes: gRPC streams between them, or frames over plain connections.

Every node keeps one stream open to every peer. What a node asks (appends, heartbeats, read-index requests, TimeoutNow)
goes out on the stream that it opened; what it answers goes back on the stream that the peer opened. So one stream's two
halves are one leader's conversation with one follower, and a stream that breaks is news about exactly that pair.
Votes are unary calls with the election timeout as their deadline.

Where a peer listens for peers (`GrpcTransport.listen`) a connection takes the stream's place (``dledger.rpc.links``);
all that is said of streams here is true of it.

A process killed with -9 closes its sockets, so its streams fail at the other ends within milliseconds; that is handed
on as `on_peer_disconnected`. Keepalive is only for links that die without a word.
"""

from __future__ import annotations

import asyncio
from typing import Any, NoReturn, TypeAlias

import grpc
import structlog
from grpc import aio

from dledger.errors import (
    DLedgerError,
    UnavailableError,
    UnexpectedArgumentError,
    UnknownGroupError,
    UnknownMemberError,
)
from dledger.raft.messages import (
    AppendEntries,
    Message,
    NodeId,
    RequestVote,
    RequestVoteResponse,
)
from dledger.rpc import codec
from dledger.rpc.frames import FrameConnection
from dledger.rpc.interfaces import TransportHandler
from dledger.rpc.links import (
    GROUP_KEY,
    NODE_KEY,
    PEER_PORT_KEY,
    RAFT_SERVICE,
    TARGET_KEY,
    Outbox,
    OutgoingLink,
    Outlet,
)
from dledger.rpc.options import NetworkOptions
from dledger.rpc.peer_connections import PeerListener
from dledger.security.tls import ServerTls, peer_names

__all__ = ["GrpcTransport"]

_MAX_PENDING_VOTES = 256
"""Vote requests of peers waiting for this node's core."""

_MAX_REMEMBERED_EVENTS = 256
_SILENCE_S = 60.0
"""The same complaint about the same peer is logged once in this time."""

_STOP_WAIT_S = 1.0
"""How long `stop` waits for the peers' streams to end; they need a loop iteration."""

_VoteKey = tuple[NodeId, int, bool]
_Context: TypeAlias = "aio.ServicerContext[bytes, bytes]"


class _Complaints:
    """Which complaints were logged lately. Bounded: whoever sends garbage chooses the keys."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, ...], float] = {}

    def is_new(self, *key: str) -> bool:
        """True once per `_SILENCE_S` for a key."""
        now = asyncio.get_running_loop().time()
        last = self._last.get(key)
        if last is not None and now - last < _SILENCE_S:
            return False
        if len(self._last) >= _MAX_REMEMBERED_EVENTS:
            self._last.pop(next(iter(self._last)))
        self._last[key] = now
        return True


class _IncomingStream:
    """The stream that a peer opened; this node's responses go back on it."""

    __slots__ = ("close_code", "close_reason", "outbox", "peer")

    def __init__(self, peer: NodeId, outbox: Outlet) -> None:
        self.peer = peer
        self.outbox = outbox
        self.close_code = grpc.StatusCode.OK
        self.close_reason = ""

    def close(self, code: grpc.StatusCode, reason: str) -> None:
        """End the stream with a status (the first call decides)."""
        if not self.close_reason:
            self.close_code, self.close_reason = code, reason
        self.outbox.close()


class GrpcTransport:
    """Messages between the members of one group. Implements `dledger.rpc.interfaces.Transport`.

    ``members`` are all members with the addresses to reach them, this node included. The transport owns no server:
    call `add_to_server` before the server starts, `start` on the event loop, `stop` before the server stops.
    """

    def __init__(
        self,
        group: str,
        node_id: NodeId,
        members: dict[NodeId, str],
        options: NetworkOptions | None = None,
        tls: ServerTls | None = None,
    ) -> None:
        self._group = group
        self._node_id = node_id
        self._members = dict(members)
        self._member_ids = frozenset(members)
        self._options = options or NetworkOptions()
        self._options.validate()
        self._tls = tls
        self._handler: TransportHandler | None = None
        self._links: dict[NodeId, OutgoingLink] = {}
        self._incoming: dict[NodeId, _IncomingStream] = {}
        self._stream_tasks: set[asyncio.Task[Any]] = set()
        self._votes: dict[_VoteKey, asyncio.Future[bytes]] = {}
        self._up: set[NodeId] = set()
        self._complaints = _Complaints()
        self._last_append: tuple[AppendEntries, bytes, bytes] | None = None
        self._listener = PeerListener(node_id, self._options, self)
        self.clients = self._listener.clients
        """Where append streams of clients get tickets for the same port."""
        self._announced: int | None = None
        self._log = structlog.get_logger().bind(group_id=group, node_id=node_id)

    # -- Transport ----------------------------------------------------------------------------------------------------

    async def start(self, handler: TransportHandler) -> None:
        """Open a stream to every peer and hand what comes to ``handler``. Returns at once; peers may be down."""
        self._handler = handler
        self._member_ids = frozenset(self._members)
        for peer, address in self._members.items():
            if peer != self._node_id:
                self._links[peer] = OutgoingLink(
                    peer,
                    address,
                    group=self._group,
                    node_id=self._node_id,
                    options=self._options,
                    events=self,
                    channels=None if self._tls is None else self._tls.channels(),
                )

    async def stop(self) -> None:
        """Close every stream in both directions. The handler hears nothing any more."""
        self._handler = None
        self._listener.close()
        for stream in list(self._incoming.values()):
            stream.close(grpc.StatusCode.UNAVAILABLE, f"{self._node_id} is stopping")
        for future in self._votes.values():
            if not future.done():
                future.set_exception(UnavailableError(f"{self._node_id} is stopping"))
        links = list(self._links.values())
        self._links.clear()
        self._up.clear()
        await asyncio.gather(*(link.stop() for link in links))
        if self._stream_tasks:
            await asyncio.wait(set(self._stream_tasks), timeout=_STOP_WAIT_S)

    async def listen(self, host: str, port: int, announced: int | None = None) -> int:
        """Take peers' connections at ``host:port``, before `start` (port 0: a free one); return the port.

        ``announced``: the port that the peers are told, if it is another; 0: the one at which they reach the server.

        Raises:
            OSError: the address cannot be had.
        """
        bound = await self._listener.listen(host, port)
        self._announced = bound if announced is None else announced
        self.clients.listens(bound, announced)
        return bound

    def is_connected(self, peer: NodeId) -> bool:
        """Whether the stream to ``peer`` is open and nothing has broken since: requests get onto the wire."""
        link = self._links.get(peer)
        return link is not None and link.outbox is not None and peer in self._up

    def send(self, peer: NodeId, message: Message) -> None:
        """Send, or drop it where the link is down or its queue is full. Never blocks."""
        if isinstance(message, RequestVoteResponse):
            self._answer_vote(peer, message)
            return
        link = self._links.get(peer)
        if link is None:
            return
        if isinstance(message, RequestVote):
            link.request_vote(codec.encode_vote_request(message, group=self._group, target=peer), self._vote_failed)
            return
        if isinstance(message, codec.STREAM_RESPONSES):
            stream = self._incoming.get(peer)
            outbox = stream.outbox if stream is not None else None
        else:
            outbox = link.outbox
        if outbox is not None:
            self._put(peer, outbox, message)

    def queued(self, peer: NodeId) -> tuple[int, int]:
        """(messages, bytes) waiting on the stream to ``peer``."""
        link = self._links.get(peer)
        outbox = link.outbox if link is not None else None
        return (0, 0) if outbox is None else (len(outbox), outbox.queued_bytes)

    def _put(self, peer: NodeId, outbox: Outlet, message: Message) -> None:
        data = self._encode(peer, message)
        if len(data) > self._options.max_message_bytes:
            # gRPC would fail the whole stream for it.
            if self._complaints.is_new("too large", peer):
                self._log.error(
                    "message_too_large", peer=peer, size_bytes=len(data), limit_bytes=self._options.max_message_bytes
                )
            return
        if not outbox.put(data) and self._complaints.is_new("queue full", peer):
            self._log.warning("peer_queue_full", peer=peer, queued_count=len(outbox), queued_bytes=outbox.queued_bytes)

    def _encode(self, peer: NodeId, message: Message) -> bytes:
        """Serialise; an append that goes to several peers only once (hence its empty target)."""
        if not isinstance(message, AppendEntries):
            return codec.encode_stream(message, group=self._group, target=peer)
        data = codec.payload_data(message)
        last = self._last_append
        if last is not None and last[1] is data and (last[0] is message or last[0] == message):
            return last[2]
        encoded = codec.encode_stream(message, group=self._group, target="")
        self._last_append = (message, data, encoded)
        return encoded

    # -- LinkEvents ---------------------------------------------------------------------------------------------------

    def link_up(self, peer: NodeId) -> None:
        # Told even if the peer's own stream came first: only now do requests get through.
        link = self._links.get(peer)
        self._log.info("peer_connected", peer=peer, over="frames" if link is not None and link.is_framed else "grpc")
        self._up.add(peer)
        if self._handler is not None:
            self._handler.on_peer_connected(peer)

    def link_down(self, peer: NodeId, reason: str) -> None:
        self._log.info("peer_stream_broken", peer=peer, reason=reason)
        self._mark_down(peer)

    def link_refused(self, peer: NodeId, reason: str) -> None:
        # UNAVAILABLE is a peer that is starting or stopping; anything else stays wrong until somebody acts.
        if not reason.startswith("UNAVAILABLE") and self._complaints.is_new("refused", peer, reason[:80]):
            self._log.warning("peer_refused_stream", peer=peer, reason=reason)

    def link_received(self, peer: NodeId, data: bytes) -> bool:
        return self._receive(peer, data, codec.STREAM_RESPONSES) is None

    def vote_received(self, peer: NodeId, data: bytes) -> None:
        try:
            message = codec.decode_vote_response(data, group=self._group, peer=peer)
        except DLedgerError as error:
            self._vote_failed(peer, error.message)
            return
        self._deliver(peer, message)

    def _vote_failed(self, peer: NodeId, reason: str) -> None:
        if self._complaints.is_new("vote", peer, reason[:80]):
            self._log.warning("vote_request_failed", peer=peer, reason=reason)

    # -- what comes in ------------------------------------------------------------------------------------------------

    def _receive(self, peer: NodeId, data: bytes, allowed: tuple[type[Message], ...]) -> DLedgerError | None:
        """Decode, check and deliver; return what is wrong with the bytes instead of raising it."""
        try:
            message = codec.decode_stream(data, group=self._group, node_id=self._node_id, members=self._member_ids)
            if message.sender != peer:
                raise UnexpectedArgumentError(f"message of {message.sender!r} on the stream of {peer!r}")
            if not isinstance(message, allowed):
                raise UnexpectedArgumentError(f"{type(message).__name__} in the wrong direction")
        except DLedgerError as error:
            if self._complaints.is_new("bad message", peer, type(error).__name__):
                self._log.error("bad_message_stream_reset", peer=peer, error=error.message, code=int(error.code))
            return error
        self._deliver(peer, message)
        return None

    def _deliver(self, peer: NodeId, message: Message) -> None:
        handler = self._handler
        if handler is None:
            return
        if peer not in self._up:
            self._up.add(peer)
            handler.on_peer_connected(peer)
        handler.on_message(message)

    def _mark_down(self, peer: NodeId) -> None:
        # The two streams of a killed peer break within a millisecond of each other: one hint.
        if peer in self._up:
            self._up.discard(peer)
            if self._handler is not None:
                self._handler.on_peer_disconnected(peer)

    # -- the server's side --------------------------------------------------------------------------------------------

    def add_to_server(self, server: aio.Server) -> None:
        """Register the RaftService. Bytes pass through: this module decodes them itself."""
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Replicate": grpc.stream_stream_rpc_method_handler(self._replicate),
            "RequestVote": grpc.unary_unary_rpc_method_handler(self._on_vote_request),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(RAFT_SERVICE, handlers),))

    async def _replicate(self, _requests: object, context: _Context) -> None:
        """Serve a peer's stream: read its requests in a task beside, write responses here, until either ends."""
        peer = await self._admit(context)
        task = asyncio.current_task()
        if task is not None:
            self._stream_tasks.add(task)
            task.add_done_callback(self._stream_tasks.discard)
        outbox = Outbox(self._options.max_queue_count, self._options.max_queue_bytes)
        stream = self._accept(peer, outbox)
        reader: asyncio.Task[None] | None = None
        try:
            await context.send_initial_metadata(self._signature())
            if peer not in self._up and self._handler is not None:
                self._up.add(peer)
                self._handler.on_peer_connected(peer)
            reader = asyncio.get_running_loop().create_task(self._read_requests(stream, context))
            await outbox.drain_to(context.write)
        except Exception as error:
            # A write into a stream that is already broken; its cancellation is on the way.
            stream.close(grpc.StatusCode.UNAVAILABLE, f"write failed: {error}")
        finally:
            self._end(stream)  # first: gRPC may cancel this task while it waits below, too
            if reader is not None:
                # gRPC frees the call when this method returns: the reader must not touch it any more.
                reader.cancel()
                await asyncio.wait({reader})
        if stream.close_code is not grpc.StatusCode.OK:
            await context.abort(stream.close_code, stream.close_reason)

    def _accept(self, peer: NodeId, outbox: Outlet) -> _IncomingStream:
        """Answer ``peer`` through ``outbox`` from now on; what it spoke on before is over."""
        stream = _IncomingStream(peer, outbox)
        replaced = self._incoming.get(peer)
        if replaced is not None:
            replaced.close(grpc.StatusCode.ABORTED, f"replaced by a newer stream of {peer}")
        self._incoming[peer] = stream
        return stream

    def _signature(self) -> tuple[tuple[str, str], ...]:
        """What a stream is accepted with: who this is, and where it listens for peers."""
        own = (NODE_KEY, self._node_id)
        return (own,) if self._announced is None else (own, (PEER_PORT_KEY, str(self._announced)))

    def _end(self, stream: _IncomingStream) -> None:
        stream.outbox.close()
        if self._incoming.get(stream.peer) is stream:
            del self._incoming[stream.peer]
            self._mark_down(stream.peer)

    async def _read_requests(self, stream: _IncomingStream, context: _Context) -> None:
        try:
            while True:
                data: object = await context.read()
                if not isinstance(data, bytes):  # grpc.aio.EOF
                    break
                error = self._receive(stream.peer, data, codec.STREAM_REQUESTS)
                if error is not None:
                    stream.close(grpc.StatusCode.INVALID_ARGUMENT, error.message)
                    return
        except Exception:
            # The driver's handler does not raise; if it does, this stream must not go on as if it had worked.
            self._log.exception("stream_reader_failed", peer=stream.peer)
            stream.close(grpc.StatusCode.INTERNAL, f"internal error at {self._node_id}")
        finally:
            stream.outbox.close()

    async def _admit(self, context: _Context) -> NodeId:
        """Return the peer that opened the stream, or end the call with the reason why it may not."""
        metadata = {str(key): value for key, value in context.invocation_metadata() or ()}
        group, peer, target = (metadata.get(key) for key in (GROUP_KEY, NODE_KEY, TARGET_KEY))
        if self._handler is None:
            await self._reject(context, grpc.StatusCode.UNAVAILABLE, f"{self._node_id} is not running")
        refusal = self._refusal(str(group), str(peer), str(target or ""))
        if refusal is not None:
            code, error = refusal
            await self._reject(context, code, f"{error.code.name}: {error.message}")
        stranger = self._not_named(context, str(peer))
        if stranger:
            await self._reject(context, grpc.StatusCode.PERMISSION_DENIED, stranger)
        return str(peer)

    def _refusal(self, group: str, sender: str, target: str) -> tuple[grpc.StatusCode, DLedgerError] | None:
        """Say why whoever opens a conversation with these names may not; None if it may."""
        misled, forbidden = grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.PERMISSION_DENIED
        own = self._node_id
        if group != self._group:
            return misled, UnknownGroupError(f"stream of group {group!r}, {own} serves {self._group!r}")
        if sender == own or sender not in self._members:
            other = f"stream from {sender!r}, which is no other member of group {self._group!r}"
            return forbidden, UnknownMemberError(other)
        if target and target != own:
            other = f"stream for {target!r}, this node is {own!r} (check the peers' addresses)"
            return misled, UnknownMemberError(other)
        return None

    def _not_named(self, context: _Context, claimed: NodeId) -> str:
        """Say that the caller's certificate does not name the node that it claims to be; empty where it does."""
        if self._tls is None:
            return ""
        names = peer_names(context)
        if claimed in names:
            return ""
        shown = ", ".join(sorted(names)[:8]) or "no certificate"
        return f"NOT_AUTHENTICATED: {claimed!r} is not named by the certificate it shows ({shown})"

    async def _reject(self, context: _Context, code: grpc.StatusCode, reason: str) -> NoReturn:
        if code is not grpc.StatusCode.UNAVAILABLE and self._complaints.is_new("rejected", reason[:160]):
            self._log.warning("stream_rejected", reason=reason, remote=context.peer())
        await context.abort(code, reason)

    # -- PeerOwner: connections instead of streams --------------------------------------------------------------------

    def admit_peer(self, group: str, sender: str, target: str) -> DLedgerError | None:
        if self._handler is None:
            return UnavailableError(f"{self._node_id} is not running")
        refusal = self._refusal(group, sender, target)
        if refusal is None:
            return None
        _, error = refusal
        if self._complaints.is_new("rejected", error.message[:160]):
            self._log.warning("connection_rejected", reason=error.message)
        return error

    def peer_opened(self, peer: NodeId, connection: FrameConnection) -> None:
        self._accept(peer, connection)
        if peer not in self._up and self._handler is not None:
            self._up.add(peer)
            self._handler.on_peer_connected(peer)

    def peer_said(self, peer: NodeId, data: bytes) -> bool:
        return self._receive(peer, data, codec.STREAM_REQUESTS) is None

    def peer_lost(self, peer: NodeId, connection: FrameConnection, reason: str) -> None:
        stream = self._incoming.get(peer)
        if stream is not None and stream.outbox is connection:
            self._log.info("peer_connection_ended", peer=peer, reason=reason)
            self._end(stream)

    # -- votes --------------------------------------------------------------------------------------------------------

    async def _on_vote_request(self, data: bytes, context: _Context) -> bytes:
        """Hand a vote request to the core, answer when `send` brings the response; UNAVAILABLE if that takes long."""
        handler = self._handler
        if handler is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"{self._node_id} is not running")
        try:
            request = codec.decode_vote_request(data, group=self._group, node_id=self._node_id, members=self._members)
        except DLedgerError as error:
            if self._complaints.is_new("bad vote", error.message[:160]):
                self._log.warning("vote_request_refused", error=error.message, remote=context.peer())
            return codec.encode_vote_refusal(error, group=self._group, node_id=self._node_id)
        stranger = self._not_named(context, request.sender)
        if stranger:
            await self._reject(context, grpc.StatusCode.PERMISSION_DENIED, stranger)
        key = (request.sender, request.term, request.pre_vote)
        future = self._votes.get(key)
        if future is None:
            if len(self._votes) >= _MAX_PENDING_VOTES:
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many vote requests at once")
            future = self._votes[key] = asyncio.get_running_loop().create_future()
        try:
            self._deliver(request.sender, request)
            return await asyncio.wait_for(asyncio.shield(future), self._options.vote_timeout_ms / 1000)
        except (TimeoutError, UnavailableError) as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"no vote: {error or 'the node did not decide in time'}")
        finally:
            if self._votes.get(key) is future:
                del self._votes[key]

    def _answer_vote(self, peer: NodeId, message: RequestVoteResponse) -> None:
        future = self._votes.get((peer, message.request_term, message.pre_vote))
        if future is not None and not future.done():
            future.set_result(codec.encode_vote_response(message, group=self._group))
