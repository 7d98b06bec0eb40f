"""One peer's end of the network: a bounded queue, and the conversation that this node keeps open with that peer.

A conversation begins as a gRPC stream. Where the peer says that it listens for peers, too, it goes on as frames over a
plain connection (``dledger.rpc.frames``), and the stream is closed; where that port cannot be reached the stream stays.

A link is lossy by contract. Whatever waits when a stream breaks is gone (a stale message after a reconnect helps
nobody), and so is whatever does not fit the queue; the core notices and sends again.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol

import grpc
import structlog
from grpc import aio

from dledger.errors import DLedgerError
from dledger.raft.messages import NodeId
from dledger.rpc.frames import FrameConnection
from dledger.rpc.options import NetworkOptions
from dledger.rpc.peer_connections import DialledConnection
from dledger.security.tls import ChannelMaker

__all__ = [
    "GROUP_KEY",
    "NODE_KEY",
    "PEER_PORT_KEY",
    "RAFT_SERVICE",
    "TARGET_KEY",
    "LinkEvents",
    "Outbox",
    "OutgoingLink",
    "Outlet",
]

RAFT_SERVICE = "dledger.v1.RaftService"

GROUP_KEY = "dledger-group"
NODE_KEY = "dledger-node"
TARGET_KEY = "dledger-target"
"""Call metadata that names the two ends of a stream when it is opened; the accepting end answers with its node key."""

PEER_PORT_KEY = "dledger-peer-port"
"""Metadata of the accepting end: the port where it listens for peers; 0 is the very port that the stream came to."""

_SWALLOWED_PAUSE_S = 60.0
"""After a peer port swallowed an attempt (a firewall), no further one for so long."""

_MAX_VOTES_IN_FLIGHT = 8
"""Vote calls to one peer at a time. Older ones give way: their terms are over."""


class Outbox:
    """Messages waiting for one stream, bounded in number and bytes; one writer takes them out in order."""

    __slots__ = ("_bytes", "_closed", "_max_bytes", "_max_count", "_queue", "_waiter", "dropped_count")

    def __init__(self, max_count: int, max_bytes: int) -> None:
        self._queue: deque[bytes] = deque()
        self._bytes = 0  # Invariant: the sum of the lengths in _queue.
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._closed = False
        self._waiter: asyncio.Future[None] | None = None
        self.dropped_count = 0

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def queued_bytes(self) -> int:
        return self._bytes

    def put(self, data: bytes) -> bool:
        """Queue ``data``; False (and it is dropped) where the queue is full or closed."""
        if self._closed or len(self._queue) >= self._max_count or self._bytes + len(data) > self._max_bytes:
            self.dropped_count += 1
            return False
        self._queue.append(data)
        self._bytes += len(data)
        self._wake()
        return True

    def close(self) -> None:
        """Drop what waits and let `drain_to` return. Repeating it does nothing."""
        self._closed = True
        self._queue.clear()
        self._bytes = 0
        self._wake()

    async def drain_to(self, write: Callable[[bytes], Awaitable[None]]) -> None:
        """Write messages one after another as they come; return once closed, raise what ``write`` raises."""
        queue = self._queue
        while not self._closed:
            while queue:
                data = queue.popleft()
                self._bytes -= len(data)
                await write(data)
            if not self._closed:
                self._waiter = asyncio.get_running_loop().create_future()
                await self._waiter

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)


class Outlet(Protocol):
    """Where messages to a peer go: an `Outbox` or a `FrameConnection`."""

    def __len__(self) -> int: ...

    @property
    def queued_bytes(self) -> int: ...

    def put(self, data: bytes) -> bool: ...

    def close(self) -> None: ...


class _NotThePeerError(Exception):
    """A stream was accepted by somebody who did not sign with the peer's name."""


class LinkEvents(Protocol):
    """What a link tells its transport. All calls come on the event loop."""

    def link_up(self, peer: NodeId) -> None:
        """The peer accepted the stream."""

    def link_down(self, peer: NodeId, reason: str) -> None:
        """The accepted stream broke."""

    def link_refused(self, peer: NodeId, reason: str) -> None:
        """The peer was reached and did not accept the stream."""

    def link_received(self, peer: NodeId, data: bytes) -> bool:
        """Bytes came back on the stream; False if they are not what a peer may send: the stream is to be reset."""

    def vote_received(self, peer: NodeId, data: bytes) -> None:
        """Bytes of an answer to a vote request."""


class OutgoingLink:
    """The stream that this node keeps open to ``peer``, and the vote calls beside it.

    The stream waits for the channel to connect, which gRPC tries every ``reconnect_max_ms`` at least; a stream that
    ended or was refused is opened anew after a short jittered pause.
    """

    def __init__(
        self,
        peer: NodeId,
        address: str,
        *,
        group: str,
        node_id: NodeId,
        options: NetworkOptions,
        events: LinkEvents,
        channels: ChannelMaker | None = None,
    ) -> None:
        self.peer = peer
        self.address = address
        self.outbox: Outlet | None = None  # Invariant: not None exactly while the conversation is accepted.
        self.is_framed = False
        self._group = group
        self._node_id = node_id
        self._frames_refused = ""
        self._frames_again_s = 0.0
        self._options = options
        self._events = events
        self._metadata = ((GROUP_KEY, group), (NODE_KEY, node_id), (TARGET_KEY, peer))
        self._votes: deque[asyncio.Task[None]] = deque()
        self._stopping = False
        self._log = structlog.get_logger().bind(group_id=group, node_id=node_id, peer=peer)
        self._channels = channels or ChannelMaker(None)
        self._channel: aio.Channel
        self._replicate: aio.StreamStreamMultiCallable[bytes, bytes]
        self._request_vote: aio.UnaryUnaryMultiCallable[bytes, bytes]
        self._make_channel()
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"link to {peer}")

    def _make_channel(self) -> None:
        self._generation = self._channels.generation
        # With TLS the handshake itself makes sure that it is the peer who answers.
        arguments = self._options.channel_arguments()
        self._channel = self._channels.channel(self.address, arguments, node_id=self.peer)
        self._replicate = self._channel.stream_stream(f"/{RAFT_SERVICE}/Replicate")
        self._request_vote = self._channel.unary_unary(f"/{RAFT_SERVICE}/RequestVote")

    async def _renew_channel(self) -> None:
        """Connect with the new certificate where it was changed; a stream that works goes on with the old one."""
        if self._channels.generation != self._generation:
            old = self._channel
            self._make_channel()
            await old.close()

    async def stop(self) -> None:
        """Close the stream, the vote calls and the channel. No event comes after it."""
        self._stopping = True
        tasks = [self._task, *self._votes]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._channel.close()

    # -- the stream ---------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            opened_at = loop.time()
            await self._stream_once()
            pause_ms = self._options.reconnect_max_ms
            if (loop.time() - opened_at) * 1000 > pause_ms:
                failures = 0  # It held for a while: what broke it is new, and worth an attempt at once.
            pause_ms = min(pause_ms, self._options.reconnect_min_ms << min(failures, 8))
            failures += 1
            await asyncio.sleep(pause_ms * random.uniform(0.5, 1.0) / 1000)

    async def _stream_once(self) -> None:
        """Open the stream, and return when it is over, for whatever reason."""
        await self._renew_channel()
        call = self._replicate(metadata=self._metadata, wait_for_ready=True)
        reason = "closed by the peer"
        try:
            # A refused call has initial metadata too, so the peer that accepts signs with its name.
            metadata = dict(await call.initial_metadata())
            if metadata.get(NODE_KEY) != self.peer:
                await call.read()  # Raises the status that the call was refused with.
                raise _NotThePeerError
            dialled = await self._dial(str(metadata.get(PEER_PORT_KEY, "")))
            if dialled is not None:
                call.cancel()
                reason = await self._converse(dialled)
                return
            outbox = Outbox(self._options.max_queue_count, self._options.max_queue_bytes)
            self._open(outbox)
            writer = asyncio.get_running_loop().create_task(
                self._write_all(call, outbox), name=f"writer to {self.peer}"
            )
            try:
                reason = await self._read_all(call) or reason
            finally:
                writer.cancel()
        except aio.AioRpcError as error:
            reason = f"{error.code().name}: {error.details()}"
        except _NotThePeerError:
            reason = f"whoever listens at {self.address} is not {self.peer}"
        except asyncio.CancelledError:
            # A call that was cancelled under us looks like a cancelled task; only the latter ends the link.
            task = asyncio.current_task()
            if self._stopping or (task is not None and task.cancelling()):
                raise
            reason = "the call was cancelled"
        except Exception as error:
            # The driver's handler does not raise. If it does, the link goes on with a new stream.
            self._log.exception("link_failed")
            reason = f"internal error: {error!r}"
        finally:
            call.cancel()
            self._close(reason)

    async def _read_all(self, call: aio.StreamStreamCall[bytes, bytes]) -> str | None:
        """Hand over what comes; return why the stream is to be reset, or None when the peer closed it."""
        received = self._events.link_received
        peer = self.peer
        while True:
            data = await call.read()
            if not isinstance(data, bytes):  # grpc.aio.EOF
                return None
            if not received(peer, data):
                return "reset: the peer sent something else than a response"

    # -- frames -------------------------------------------------------------------------------------------------------

    async def _dial(self, announced: str) -> DialledConnection | None:
        """Connect to the port that the peer announced; None where there is none, or it cannot be reached."""
        loop = asyncio.get_running_loop()
        if not announced.isdecimal() or loop.time() < self._frames_again_s:
            return None
        host, _, own_port = self.address.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        port = int(announced) or int(own_port)
        dialled = DialledConnection(self._group, self._node_id, self.peer, self._options, self._received)
        try:
            await dialled.open(host, port)
        except (OSError, TimeoutError, DLedgerError) as error:
            reason = str(error) or "no answer in time"
            if isinstance(error, TimeoutError):  # swallowed on the way: not to be waited for each time
                self._frames_again_s = loop.time() + _SWALLOWED_PAUSE_S
            if reason != self._frames_refused:
                self._frames_refused = reason
                self._log.warning("peer_port_unreachable_using_grpc", address=f"{host}:{port}", reason=reason)
            return None
        self._frames_refused = ""
        return dialled

    async def _converse(self, dialled: DialledConnection) -> str:
        """Use a connection until it is over; return why."""
        try:
            self._open(dialled.frames)
            return await dialled.ended()
        finally:
            dialled.frames.abort("the link is stopping")

    def _received(self, data: bytes) -> bool:
        return self._events.link_received(self.peer, data)

    # -- the stream's writer ------------------------------------------------------------------------------------------

    async def _write_all(self, call: aio.StreamStreamCall[bytes, bytes], outbox: Outbox) -> None:
        try:
            await outbox.drain_to(call.write)
        except (aio.AioRpcError, asyncio.InvalidStateError):
            outbox.close()  # The reader sees the same end, with its reason.

    def _open(self, outbox: Outlet) -> None:
        self.outbox = outbox
        self.is_framed = isinstance(outbox, FrameConnection)
        self._events.link_up(self.peer)

    def _close(self, reason: str) -> None:
        outbox, self.outbox = self.outbox, None
        if outbox is not None:
            outbox.close()
        if self._stopping:
            return
        if outbox is not None:
            self._events.link_down(self.peer, reason)
        else:
            self._events.link_refused(self.peer, reason)

    # -- votes --------------------------------------------------------------------------------------------------------

    def request_vote(self, data: bytes, failed: Callable[[NodeId, str], None]) -> None:
        """Ask for a vote with a deadline; the answer comes as `LinkEvents.vote_received`, no answer to ``failed``."""
        if self._stopping:
            return
        while len(self._votes) >= _MAX_VOTES_IN_FLIGHT:
            self._votes.popleft().cancel()
        task = asyncio.get_running_loop().create_task(self._vote(data, failed), name=f"vote of {self.peer}")
        self._votes.append(task)
        task.add_done_callback(self._forget_vote)

    async def _vote(self, data: bytes, failed: Callable[[NodeId, str], None]) -> None:
        try:
            # Waiting for the link within the deadline gets a vote to a peer that is just coming back.
            answer = await self._request_vote(
                data, timeout=self._options.vote_timeout_ms / 1000, metadata=self._metadata, wait_for_ready=True
            )
        except aio.AioRpcError as error:
            if error.code() not in {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE}:
                failed(self.peer, f"{error.code().name}: {error.details()}")
            return
        self._events.vote_received(self.peer, answer)

    def _forget_vote(self, task: asyncio.Task[None]) -> None:
        if task in self._votes:
            self._votes.remove(task)
