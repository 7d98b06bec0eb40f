"""A client's call whose requests and answers stream: a gRPC call, and the plain connection that takes its place.

Requests go by gRPC at once. Where the node offers frames (``dledger.rpc.client_door``) the connection is made
meanwhile, and what is sent after that goes there, a fifth as dear. Where the port cannot be reached nothing changes,
and the address is left alone for a minute. Nobody waits for any of this, and a node that knows nothing of it need not
say so.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from grpc import aio

from dledger.client.transport import Header
from dledger.errors import AccessDeniedError, DLedgerError, Outcome, UnavailableError
from dledger.rpc.client_door import FRAMES_KEY, START_BYTES, TICKET_KEY
from dledger.rpc.frames import CLIENT_PREFACE
from dledger.rpc.options import NetworkOptions
from dledger.rpc.peer_connections import GreetedConnection
from dledger.v1 import ledger_pb2

__all__ = [
    "FrameDialler",
    "GrpcCall",
    "StreamCall",
    "header_of",
    "is_own_cancellation",
    "parse_answer",
    "unavailable",
]

_UNREACHABLE_PAUSE_S: Final = 60.0
"""An address whose port for frames could not be used is not asked for one for so long."""

_LAST_ANSWERS_S: Final = 1.0
"""How long answers may still come as frames after the call has ended."""

_M = TypeVar("_M", bound=Message)
GrpcCall = Any  # a grpc.aio call of bytes; the stubs of grpc.aio cannot say so


class FrameDialler:
    """Opens connections for frames, and remembers for a while where that was in vain."""

    def __init__(self, options: NetworkOptions) -> None:
        self.max_message_bytes = options.max_message_bytes
        self._options = options
        self._again_s: dict[str, float] = {}

    def metadata(self, address: str) -> tuple[tuple[str, str], ...]:
        """Return what to say to ``address`` ("host:port") to be offered frames; empty: it is not worth trying."""
        port = address.rpartition(":")[2]
        if not port.isdecimal() or asyncio.get_running_loop().time() < self._again_s.get(address, 0.0):
            return ()
        return ((FRAMES_KEY, port),)

    def connection(self, ticket: bytes, deliver: Callable[[bytes], bool]) -> GreetedConnection:
        """Return a connection that is yet to be opened; ``deliver`` is as of `GreetedConnection`."""
        return GreetedConnection(CLIENT_PREFACE, ticket, self._options, deliver)

    async def open(self, address: str, announced: int, connection: GreetedConnection) -> bool:
        """Open the connection at the host of ``address`` and port ``announced`` (0: its own); False: in vain."""
        host, _, own_port = address.rpartition(":")
        try:
            await connection.open(host.removeprefix("[").removesuffix("]"), announced or int(own_port))
        except (OSError, TimeoutError, DLedgerError):
            self._again_s[address] = asyncio.get_running_loop().time() + _UNREACHABLE_PAUSE_S
            return False
        self._again_s.pop(address, None)
        return True


class StreamCall(ABC):
    """One call: a task that writes what `_send` queued, one that reads answers, one for the connection.

    ``dialler``: where to get that connection, if the call asked for an offer. `wait_closed` returns when tasks and
    sockets are gone. Subclasses hear of answers (`_hear`) and of the end (`_lost`), neither from within `_send` nor
    after `close`.
    """

    def __init__(self, address: str, call: GrpcCall, dialler: FrameDialler | None = None) -> None:
        self._address = address
        self._call = call
        self._dialler = dialler
        self._over = False
        self._queue: deque[bytes] = deque()
        self._written_count = 0  # requests handed to gRPC
        self._connection: GreetedConnection | None = None  # set once it is welcomed
        self._call_ended = ""
        self._status: aio.AioRpcError | None = None
        # Invariant: only while this is true do requests go straight to the connection; the queue is empty then.
        self._is_open_road = False
        self._held: asyncio.Future[None] | None = None  # while nothing is to be read
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._wake: asyncio.Future[None] | None = None
        self._tasks = [
            loop.create_task(self._write_all(), name="dledger-client-write"),
            loop.create_task(self._read_all(), name="dledger-client-read"),
        ]
        if dialler is not None:
            self._tasks.append(loop.create_task(self._use_frames(dialler), name="dledger-client-frames"))
        self._all = asyncio.gather(*self._tasks, return_exceptions=True)

    @abstractmethod
    def _hear(self, data: bytes) -> None:
        """An answer has come.

        Raises:
            UnavailableError: it is none; the call is over then.
        """

    @abstractmethod
    def _lost(self, reason: str) -> None:
        """The call is gone: no answer comes any more. Called at most once, and not after `close`."""

    def _failure(self, reason: str) -> DLedgerError:
        """Return what to tell those who waited for answers when `_lost` was called."""
        if self._status is not None:
            return unavailable(self._address, self._status)
        return UnavailableError(f"{self._address}: {reason}")

    async def _worth_dialling(self) -> bool:
        """Return, as soon as it is known, whether the call is worth a connection of its own."""
        return True

    @property
    def is_framed(self) -> bool:
        """Whether requests go as frames."""
        return self._connection is not None and self._tasks[0].done()

    def add_done_callback(self, callback: Any) -> None:  # noqa: ANN401 - any callable of the stream
        self._all.add_done_callback(lambda _: callback(self))

    def _send(self, data: bytes) -> None:
        """Queue a request for the wire. Never blocks and never raises."""
        if self._is_open_road:
            self._put(data)
            return
        self._queue.append(data)
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def close(self) -> None:
        """Forget the call; what is under way may still arrive. Twice is fine."""
        self._over = True
        self._is_open_road = False
        self._queue.clear()
        self._call.cancel()
        for task in self._tasks:
            task.cancel()

    async def wait_closed(self) -> None:
        await asyncio.wait({self._all})

    def _broken(self, reason: str) -> None:
        was_over, self._over = self._over, True
        self._is_open_road = False
        self._queue.clear()
        self._call.cancel()
        current = asyncio.current_task()
        for task in self._tasks:
            if task is not current:
                task.cancel()
        if not was_over:
            self._lost(reason)

    def _hold(self) -> None:
        """Read no more until `_go_on`, but what has been read already. Not to be called twice."""
        self._held = self._loop.create_future()
        if self._connection is not None:
            self._connection.frames.pause()

    def _go_on(self) -> None:
        """Read again. Not to be called from `_hear`."""
        held, self._held = self._held, None
        if held is not None and not held.done():
            held.set_result(None)
        if self._connection is not None:
            self._connection.frames.resume()

    # -- by gRPC ------------------------------------------------------------------------------------------------------

    async def _write_all(self) -> None:
        """Write to the call until there is a connection, then go over to it."""
        queue, write = self._queue, self._call.write
        try:
            while self._connection is None:
                if queue:
                    self._written_count += 1
                    await write(queue.popleft())
                    continue
                self._wake = self._loop.create_future()
                await self._wake
        except (aio.AioRpcError, aio.UsageError, asyncio.InvalidStateError):
            return  # the reader meets the same end and says why
        self._go_over(self._connection)

    async def _read_all(self) -> None:
        reason = "the node closed the stream"
        try:
            read = self._call.read
            while True:
                data: object = await read()
                if not isinstance(data, bytes):  # grpc.aio.EOF
                    break
                if not self._over:
                    self._hear(data)
                if self._held is not None:
                    await self._held
        except aio.AioRpcError as error:
            self._status = error
            reason = f"{error.code().name}: {error.details()}"
        except (aio.UsageError, UnavailableError) as error:
            reason = str(error)
        except asyncio.CancelledError:
            if is_own_cancellation():
                raise
            reason = "the channel was closed"
        self._call_ended = reason
        if self._connection is not None:
            # The node answers what it has taken before it ends the two; those answers may be behind this news.
            await asyncio.wait({self._tasks[-1]}, timeout=_LAST_ANSWERS_S)
        self._broken(reason)

    # -- by frames ----------------------------------------------------------------------------------------------------

    async def _use_frames(self, dialler: FrameDialler) -> None:
        """Take the node's offer, if it makes one, and keep the connection until either is over."""
        offer = _offered(await self._call.initial_metadata())
        if offer is None or not await self._worth_dialling():
            return
        port, ticket = offer
        connection = dialler.connection(ticket, self._hear_frame)
        try:
            if await dialler.open(self._address, port, connection):
                self._connection = connection
                if self._held is not None:
                    connection.frames.pause()
                if self._wake is not None and not self._wake.done():
                    self._wake.set_result(None)
                reason = await connection.ended()
                self._broken(self._call_ended or reason)
        finally:
            connection.frames.abort("the stream is closed")
            if connection.frames.is_made:
                await connection.ended()

    def _hear_frame(self, data: bytes) -> bool:
        """An answer has come by the connection; False: it is none."""
        try:
            if not self._over:
                self._hear(data)
        except UnavailableError:
            return False
        return True

    def _go_over(self, connection: GreetedConnection) -> None:
        """From here on nothing is written to the call; the node takes what follows behind what was."""
        frames = connection.frames
        frames.on_writable = self._set_writable
        frames.put(self._written_count.to_bytes(START_BYTES, "big"))
        self._set_writable(True)

    def _set_writable(self, is_writable: bool) -> None:
        """The connection takes requests, or not for now: then they wait in the queue."""
        self._is_open_road = is_writable and not self._over
        while self._is_open_road and self._queue:
            self._put(self._queue.popleft())

    def _put(self, data: bytes) -> None:
        connection, dialler = self._connection, self._dialler
        if connection is None or dialler is None:
            return
        if len(data) > dialler.max_message_bytes:
            self._is_open_road = False  # nothing may follow a request that was not sent
            limit = dialler.max_message_bytes
            self._loop.call_soon(self._broken, f"a request is a message of {len(data)} bytes; the limit is {limit}")
            return
        connection.frames.put(data)


def _offered(metadata: Sequence[tuple[str, str | bytes]] | None) -> tuple[int, bytes] | None:
    """Return port and ticket of a node's offer; None where it makes none that could be understood."""
    found = {str(key): str(value) for key, value in metadata or ()}
    port, ticket = found.get(FRAMES_KEY, ""), found.get(TICKET_KEY, "")
    try:
        return (int(port), bytes.fromhex(ticket)) if port.isdecimal() and int(port) < 2**16 and ticket else None
    except ValueError:
        return None


def unavailable(address: str, error: aio.AioRpcError) -> DLedgerError:
    """Return the typed error of a failed call. Unless it was refused at the door, the request may have arrived."""
    code = error.code()
    if code in {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}:
        return AccessDeniedError(f"{address}: {error.details()}")
    outcome = Outcome.DEFINITE if code is grpc.StatusCode.UNIMPLEMENTED else Outcome.UNKNOWN
    return UnavailableError(f"{address}: {code.name}: {error.details() or 'no details'}", outcome=outcome)


def is_own_cancellation() -> bool:
    """Return whether a ``CancelledError`` is meant for this task, and is not the end of a call on a closed channel."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def parse_answer(address: str, kind: type[_M], data: bytes) -> _M:
    """Return the answer of the node at ``address``.

    Raises:
        UnavailableError: the bytes are no such message.
    """
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise UnavailableError(f"{address}: malformed {kind.__name__}: {error}") from error


def header_of(header: ledger_pb2.ResponseHeader) -> Header:
    """Return an answer's header as the client's logic knows it."""
    return Header(header.code, header.message, header.node_id, header.term, header.leader_id, header.leader_address)
