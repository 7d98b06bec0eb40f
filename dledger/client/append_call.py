"""One append stream of a client: a gRPC call, and the plain connection that takes its place where a node offers one.

Batches go by gRPC at once. Where the node offers frames (``dledger.rpc.client_door``) the connection is made meanwhile,
and what is sent after that goes there, a fifth as dear. Where the port cannot be reached nothing changes, and the
address is left alone for a minute. Nobody waits for any of this, and a node that knows nothing of it need not say so.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TypeVar

from google.protobuf.message import DecodeError, Message
from grpc import aio

from dledger.client.transport import AppendAnswer, AppendBatch, Header, StreamHandler
from dledger.errors import DLedgerError, UnavailableError
from dledger.rpc.client_door import FRAMES_KEY, START_BYTES, TICKET_KEY
from dledger.rpc.frames import CLIENT_PREFACE
from dledger.rpc.options import NetworkOptions
from dledger.rpc.peer_connections import GreetedConnection
from dledger.types import IndexRun
from dledger.v1 import ledger_pb2

__all__ = ["AppendCall", "FrameDialler", "header_of", "parse_answer"]

_UNREACHABLE_PAUSE_S: Final = 60.0
"""An address whose port for frames could not be used is not asked for one for so long."""

_LAST_ANSWERS_S: Final = 1.0
"""How long answers may still come as frames after the call has ended."""

_M = TypeVar("_M", bound=Message)
_Call = Any  # a grpc.aio call of bytes; the stubs of grpc.aio cannot say so


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


class AppendCall:
    """One AppendStream call: a task that writes what `send` queued, one that reads answers, one for the connection.

    ``dialler``: where to get that connection, if the call asked for an offer. `wait_closed` returns when tasks and
    sockets are gone.
    """

    def __init__(
        self, group: str, address: str, call: _Call, handler: StreamHandler, dialler: FrameDialler | None = None
    ) -> None:
        self._group = group
        self._address = address
        self._call = call
        self._handler: StreamHandler | None = handler
        self._dialler = dialler
        self._queue: deque[AppendBatch] = deque()
        self._written_count = 0  # batches handed to gRPC
        self._connection: GreetedConnection | None = None  # set once it is welcomed
        self._call_ended = ""
        # Invariant: only while this is true do batches go straight to the connection; the queue is empty then.
        self._is_open_road = False
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

    @property
    def is_framed(self) -> bool:
        """Whether batches go as frames."""
        return self._connection is not None and self._tasks[0].done()

    def add_done_callback(self, callback: Any) -> None:  # noqa: ANN401 - any callable of the stream
        self._all.add_done_callback(lambda _: callback(self))

    def send(self, batch: AppendBatch) -> None:
        """See ``AppendStream.send``."""
        if self._is_open_road:
            self._put(batch)
            return
        self._queue.append(batch)
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def close(self) -> None:
        """See ``AppendStream.close``."""
        self._handler = None
        self._is_open_road = False
        self._queue.clear()
        self._call.cancel()
        for task in self._tasks:
            task.cancel()

    async def wait_closed(self) -> None:
        await asyncio.wait({self._all})

    def _broken(self, reason: str) -> None:
        handler, self._handler = self._handler, None
        self._is_open_road = False
        self._queue.clear()
        self._call.cancel()
        current = asyncio.current_task()
        for task in self._tasks:
            if task is not current:
                task.cancel()
        if handler is not None:
            handler.on_broken(reason)

    # -- by gRPC ------------------------------------------------------------------------------------------------------

    async def _write_all(self) -> None:
        """Write to the call until there is a connection, then go over to it."""
        queue, write = self._queue, self._call.write
        try:
            while self._connection is None:
                if queue:
                    self._written_count += 1
                    await write(self._encode(queue.popleft()))
                    continue
                self._wake = self._loop.create_future()
                await self._wake
        except (aio.AioRpcError, aio.UsageError, asyncio.InvalidStateError):
            return  # the reader meets the same end and says why
        self._go_over(self._connection)

    def _encode(self, batch: AppendBatch) -> bytes:
        return ledger_pb2.AppendBatchRequest(
            group=self._group,
            bodies=batch.bodies,
            session_id=batch.session_id,
            first_sequence=batch.first_sequence,
            request_id=batch.request_id,
        ).SerializeToString()

    async def _read_all(self) -> None:
        reason = "the node closed the stream"
        try:
            read = self._call.read
            while True:
                data: object = await read()
                if not isinstance(data, bytes):  # grpc.aio.EOF
                    break
                self._hear(data)
        except aio.AioRpcError as error:
            reason = f"{error.code().name}: {error.details()}"
        except (aio.UsageError, UnavailableError) as error:
            reason = str(error)
        self._call_ended = reason
        if self._connection is not None:
            # The node answers what it has taken before it ends the two; those answers may be behind this news.
            await asyncio.wait({self._tasks[-1]}, timeout=_LAST_ANSWERS_S)
        self._broken(reason)

    def _hear(self, data: bytes) -> None:
        answer = parse_answer(self._address, ledger_pb2.AppendBatchResponse, data)
        if self._handler is not None:
            self._handler.on_answer(_append_answer(answer))

    # -- by frames ----------------------------------------------------------------------------------------------------

    async def _use_frames(self, dialler: FrameDialler) -> None:
        """Take the node's offer, if it makes one, and keep the connection until either is over."""
        offer = _offered(await self._call.initial_metadata())
        if offer is None:
            return
        port, ticket = offer
        connection = dialler.connection(ticket, self._hear_frame)
        try:
            if await dialler.open(self._address, port, connection):
                self._connection = connection
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
        """The connection takes batches, or not for now: then they wait in the queue."""
        self._is_open_road = is_writable and self._handler is not None
        while self._is_open_road and self._queue:
            self._put(self._queue.popleft())

    def _put(self, batch: AppendBatch) -> None:
        connection, dialler = self._connection, self._dialler
        if connection is None or dialler is None:
            return
        data = self._encode(batch)
        if len(data) > dialler.max_message_bytes:
            self._is_open_road = False  # nothing may follow a batch that was not sent
            limit = dialler.max_message_bytes
            self._loop.call_soon(self._broken, f"a batch is a message of {len(data)} bytes; the limit is {limit}")
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


def _append_answer(answer: ledger_pb2.AppendBatchResponse) -> AppendAnswer:
    runs: Iterable[ledger_pb2.IndexRun] = answer.runs
    return AppendAnswer(
        answer.request_id,
        header_of(answer.header),
        tuple([IndexRun(run.first_index, run.count, run.term) for run in runs]),
    )
