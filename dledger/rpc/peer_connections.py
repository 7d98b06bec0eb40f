"""Who is at the other end of a frame connection: the dialling side says hello, the listening side bids it welcome.

A connection counts for nothing until both have been said. Strangers are few, say little and are soon shown the door.
Peers and clients come to the same port; a client's hello is the ticket that it was given (`dledger.rpc.client_door`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from google.protobuf.message import DecodeError

from dledger.errors import DLedgerError, ResponseCode, UnavailableError, UnexpectedArgumentError, error_for_code
from dledger.raft.messages import NodeId
from dledger.rpc.client_door import ClientDoor
from dledger.rpc.frames import CLIENT_PREFACE, PEER_PREFACE, FrameConnection
from dledger.rpc.options import NetworkOptions
from dledger.v1 import raft_pb2 as pb

__all__ = ["DialledConnection", "GreetedConnection", "PeerListener", "PeerOwner"]

_HELLO_LIMIT_BYTES: Final = 4096
_HELLO_TIMEOUT_S: Final = 5.0
_MAX_STRANGERS: Final = 256
"""Connections that have not said who they are: all clients come at once when the leader changes."""


class PeerOwner(Protocol):
    """What a listener asks and tells its transport. All calls come on the event loop."""

    def admit_peer(self, group: str, sender: str, target: str) -> DLedgerError | None:
        """Return why this peer may not speak here; None if it may."""

    def peer_opened(self, peer: NodeId, connection: FrameConnection) -> None:
        """``peer`` dialled and was welcomed; what is to be answered goes to ``connection``."""

    def peer_said(self, peer: NodeId, data: bytes) -> bool:
        """A message of ``peer``; False if it is not what a peer may send: the connection is to be reset."""

    def peer_lost(self, peer: NodeId, connection: FrameConnection, reason: str) -> None:
        """The connection of a welcomed peer has ended."""


class PeerListener:
    """Accepts peers at a port of its own, and clients with a ticket of ``clients``."""

    def __init__(self, node_id: NodeId, options: NetworkOptions, owner: PeerOwner) -> None:
        self._node_id = node_id
        self._options = options
        self._owner = owner
        self.clients = ClientDoor(node_id)
        self._server: asyncio.Server | None = None
        self._strangers: dict[FrameConnection, asyncio.TimerHandle] = {}
        self._peers: dict[FrameConnection, NodeId] = {}

    async def listen(self, host: str, port: int) -> int:
        """Listen at ``host`` (without brackets); port 0 takes a free one. Returns the port.

        Raises:
            OSError: the address cannot be had.
        """
        loop = asyncio.get_running_loop()
        server = await loop.create_server(self._accept, host, port)
        bound = [int(each.getsockname()[1]) for each in server.sockets]
        if len(set(bound)) > 1:  # a name with several addresses: one port at all of them
            server.close()
            server = await loop.create_server(self._accept, host, bound[0])
        self._server = server
        return bound[0]

    def close(self) -> None:
        """Listen no more and end every peer's connection; a client's ends with its call. Twice is fine."""
        self.clients.close()
        if self._server is not None:
            _stop_listening(self._server)
            self._server = None
        for connection in [*self._strangers, *self._peers]:
            connection.abort(f"{self._node_id} is stopping")

    def _accept(self) -> FrameConnection:
        return FrameConnection(
            self._options,
            accepted=True,
            limit=_HELLO_LIMIT_BYTES,
            received=self._received,
            lost=self._lost,
            made=self._made,
        )

    def _made(self, connection: FrameConnection) -> None:
        if self._server is None or len(self._strangers) >= _MAX_STRANGERS:
            connection.abort("too many strangers at once")
            return
        loop = asyncio.get_running_loop()
        self._strangers[connection] = loop.call_later(_HELLO_TIMEOUT_S, connection.abort, "no hello in time")

    def _received(self, connection: FrameConnection, data: bytes) -> None:
        peer = self._peers.get(connection)
        if peer is None:
            self._greet(connection, data)
        elif not self._owner.peer_said(peer, data):
            connection.abort("reset: not what a peer may send")

    def _greet(self, connection: FrameConnection, data: bytes) -> None:
        if connection.preface == CLIENT_PREFACE:
            self._greet_client(connection, data)
            return
        try:
            hello = pb.PeerHello.FromString(data)
            error = self._owner.admit_peer(hello.group, hello.sender, hello.target)
        except DecodeError as damage:
            error = UnexpectedArgumentError(f"malformed hello: {damage}")
        if error is not None:
            self._refuse(connection, error)
            return
        self._peers[connection] = hello.sender
        self._welcome(connection)
        self._owner.peer_opened(hello.sender, connection)

    def _greet_client(self, connection: FrameConnection, ticket: bytes) -> None:
        try:
            adopt = self.clients.redeem(ticket)
        except DLedgerError as error:
            self._refuse(connection, error)
            return
        self._welcome(connection)
        adopt(connection)

    def _welcome(self, connection: FrameConnection) -> None:
        self._forget_stranger(connection)
        connection.limit = self._options.max_message_bytes
        connection.put(pb.PeerWelcome(code=ResponseCode.SUCCESS, sender=self._node_id).SerializeToString())

    def _refuse(self, connection: FrameConnection, error: DLedgerError) -> None:
        refusal = pb.PeerWelcome(code=error.code, sender=self._node_id, reason=error.message)
        connection.put(refusal.SerializeToString())
        connection.close(error.message)

    def _lost(self, connection: FrameConnection, reason: str) -> None:
        self._forget_stranger(connection)
        peer = self._peers.pop(connection, None)
        if peer is not None:
            self._owner.peer_lost(peer, connection, reason)

    def _forget_stranger(self, connection: FrameConnection) -> None:
        timer = self._strangers.pop(connection, None)
        if timer is not None:
            timer.cancel()


def _stop_listening(server: asyncio.Server) -> None:
    """Close a server, without leaking a connection that was accepted just now.

    asyncio accepts in one turn of the loop and makes the transport in the next, where a server that is closed by then
    fails an assertion and the socket stays open (Python 3.11). uvloop does both at once.
    """
    loop = asyncio.get_running_loop()
    if isinstance(loop, asyncio.SelectorEventLoop):
        for each in server.sockets:
            loop.remove_reader(each.fileno())
        loop.call_soon(loop.call_soon, server.close)
    else:
        server.close()


class GreetedConnection:
    """A connection that this side opens with ``preface`` and ``hello``: `open`, then ``frames`` until `ended` returns.

    ``deliver`` gets each message; False from it resets the connection. ``sender``: the node that must answer; empty:
    whoever knows what to do with the hello.
    """

    def __init__(
        self,
        preface: bytes,
        hello: bytes,
        options: NetworkOptions,
        deliver: Callable[[bytes], bool],
        sender: NodeId = "",
    ) -> None:
        self._preface = preface
        self._hello = hello
        self._sender = sender
        self._timeout_s = options.connect_timeout_ms / 1000
        self._deliver = deliver
        loop = asyncio.get_running_loop()
        self._welcome: asyncio.Future[None] = loop.create_future()
        self._end: asyncio.Future[str] = loop.create_future()
        self.frames = FrameConnection(
            options, accepted=False, limit=options.max_message_bytes, received=self._received, lost=self._lost
        )

    async def open(self, host: str, port: int) -> None:
        """Connect and be welcomed.

        Raises:
            OSError, TimeoutError: nobody answers there in time.
            DLedgerError: whoever answers is not who was meant, or refuses.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                await asyncio.get_running_loop().create_connection(lambda: self.frames, host, port)
                self.frames.send_preface(self._preface)
                self.frames.put(self._hello)
                await self._welcome
        except BaseException:
            self._welcome.cancel()
            self.frames.abort("not welcomed")
            # uvloop tells nobody of the end of a connection whose opening is cancelled just after it was made.
            self._lost(self.frames, "not welcomed")
            raise

    async def ended(self) -> str:
        """Return why the connection is over, once it is; at once where `open` has failed."""
        if not self._end.done():
            await asyncio.wait({self._end})  # which leaves the future alone where the caller is cancelled
        return self._end.result()

    def _received(self, connection: FrameConnection, data: bytes) -> None:
        if not self._welcome.done():
            self._hear_welcome(data)
        elif not self._deliver(data):
            connection.abort("reset: the peer sent something else than a response")

    def _hear_welcome(self, data: bytes) -> None:
        try:
            welcome = pb.PeerWelcome.FromString(data)
        except DecodeError as error:
            self._welcome.set_exception(UnexpectedArgumentError(f"malformed welcome: {error}"))
            return
        if welcome.code != ResponseCode.SUCCESS:
            self._welcome.set_exception(error_for_code(welcome.code, welcome.reason))
        elif self._sender and welcome.sender != self._sender:
            self._welcome.set_exception(UnavailableError(f"whoever listens there is {welcome.sender!r}"))
        else:
            self._welcome.set_result(None)

    def _lost(self, _connection: FrameConnection, reason: str) -> None:
        if not self._welcome.done():
            self._welcome.set_exception(UnavailableError(reason))
        if not self._end.done():
            self._end.set_result(reason)


class DialledConnection(GreetedConnection):
    """The connection that a node opens to ``peer``."""

    def __init__(
        self, group: str, node_id: NodeId, peer: NodeId, options: NetworkOptions, deliver: Callable[[bytes], bool]
    ) -> None:
        hello = pb.PeerHello(group=group, sender=node_id, target=peer).SerializeToString()
        super().__init__(PEER_PREFACE, hello, options, deliver, sender=peer)
