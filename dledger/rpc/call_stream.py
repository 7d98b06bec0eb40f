"""A call whose requests come in as fast as they are sent, and whose answers go out as they are ready: its two carriers.

What the requests need is the business of `Requests` (appends: ``append_stream``, reads: ``read_calls``); how they
travel is decided here. `CallStream` is the gRPC call: one task reads and takes, the call's own task writes.
`_FrameLane` is a plain connection that the client may open beside it (``dledger.rpc.client_door``), at a fifth of the
cost and without tasks: a frame is taken as it comes, and what is ready in one turn of the loop leaves in one write.
The call stays open then, and the two end together.

A request counts as outstanding from its taking until its last answer is written, and reading stops at the limit. So a
client that sends faster than it is served, or does not read its answers, is held back by flow control and costs
bounded memory; one that reads nothing at all is ended by the `StreamGuard`.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

import grpc

from dledger.errors import NotLeaderError
from dledger.rpc.client_door import START_BYTES
from dledger.rpc.frames import FrameConnection
from dledger.rpc.interfaces import Backend
from dledger.security.streams import WatchedContext

__all__ = ["MAX_OUTSTANDING", "MAX_OUTSTANDING_BYTES", "Answer", "CallStream", "Requests"]

MAX_OUTSTANDING: Final = 256
MAX_OUTSTANDING_BYTES: Final = 32 * 1024 * 1024

_DRAIN_S: Final = 0.1
"""How long a call of a node that stops still takes requests, to refuse them: what is in nobody's hands when the call
ends has an unknown outcome for whoever sent it."""

_WRITE_BYTES: Final = 64 * 1024
"""Answers of one write, about."""


class Answer(NamedTuple):
    """One message to the client; ``request_bytes`` is the size of the request that it ends, -1: it ends none."""

    data: bytes
    request_bytes: int


class Requests(ABC):
    """The requests of one call: taken, served, answered. ``ready`` is called whenever there is an answer."""

    def __init__(self, max_outstanding: int = MAX_OUTSTANDING, max_bytes: int = MAX_OUTSTANDING_BYTES) -> None:
        self._max_outstanding = max_outstanding
        self._max_bytes = max_bytes
        self._gone = False
        self._is_closing = False
        self._outstanding_bytes = 0  # Invariant: of the requests that outstanding_count counts.
        self.ready: Callable[[], None] = _nothing
        self.answers: deque[Answer] = deque()
        self.outstanding_count = 0  # Invariant: requests taken whose last answer is not yet written.
        self.taken_count = 0

    @property
    def is_full(self) -> bool:
        """Whether nothing more is to be taken for now."""
        return self.outstanding_count >= self._max_outstanding or self._outstanding_bytes >= self._max_bytes

    @property
    def is_done(self) -> bool:
        """Whether everything taken has been answered."""
        return not self.outstanding_count and not self.answers

    def take(self, data: bytes) -> None:
        """Take a request. Whatever is wrong with it becomes its answer."""
        self.taken_count += 1
        self.outstanding_count += 1
        self._outstanding_bytes += len(data)
        self._begin(data)

    @abstractmethod
    def _begin(self, data: bytes) -> None:
        """Begin to serve a request: `_answer` is called, now or later, once at least, and at last with its size."""

    def _answer(self, data: bytes, request_bytes: int) -> None:
        """Answer a request; see `Answer`."""
        if not self._gone:
            self.answers.append(Answer(data, request_bytes))
            self.ready()

    def answered(self, answer: Answer) -> None:
        """This answer has been written."""
        if answer.request_bytes >= 0:
            self.outstanding_count -= 1
            self._outstanding_bytes -= answer.request_bytes

    def close(self) -> None:
        """Refuse what is still to come."""
        self._is_closing = True

    def _check_open(self) -> None:
        """Raise unless requests are served.

        Raises:
            NotLeaderError: the node stops; another one leads, or will. Nothing was taken.
        """
        if self._is_closing:
            raise NotLeaderError("the node is stopping")

    def drop(self) -> None:
        """The client is gone or all is answered: what is still under way has nobody to tell."""
        self._gone = True
        self.answers.clear()


class CallStream:
    """One call. `serve` is the call; `close` ends it from outside; `adopt` gives it a connection."""

    def __init__(self, backend: Backend, requests: Requests, context: WatchedContext) -> None:
        self._backend = backend
        self._context = context
        self._requests = requests
        requests.ready = self._ready
        self._lane: _FrameLane | None = None
        self._closing = self._gone = False
        self._wake_writer: asyncio.Future[None] | None = None
        self._wake_reader: asyncio.Future[None] | None = None
        self._reader: asyncio.Task[None] | None = None

    async def serve(self) -> None:
        """Answer until the client has closed its side and everything is answered, or `close` was called."""
        self._reader = reader = asyncio.get_running_loop().create_task(self._read_all())
        reader.add_done_callback(lambda _: self._changed())
        if self._closing:
            reader.cancel()
        reason = None
        try:
            reason = await self._answer_all(reader)
        finally:
            self._gone = True
            self._requests.drop()
            if self._lane is not None:
                self._lane.end(abort=reason is None)
            reader.cancel()
            await asyncio.wait({reader})
        if reason:
            await self._context.abort(grpc.StatusCode.UNAVAILABLE, f"the connection for frames has ended: {reason}")
        elif not reader.cancelled():
            reader.result()
        else:
            await self._context.abort(grpc.StatusCode.UNAVAILABLE, f"{self._backend.node_id} is stopping")

    def close(self) -> None:
        """Refuse what comes, for a moment; answer what is outstanding, then end the call with UNAVAILABLE."""
        if not self._closing:
            self._closing = True
            self._requests.close()
            asyncio.get_running_loop().call_later(_DRAIN_S, self._stop_taking)

    def _stop_taking(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
        if self._lane is not None:
            self._lane.stop_taking()

    def adopt(self, connection: FrameConnection) -> None:
        """The client has opened ``connection`` for this call, and will say when it goes over to it."""
        if self._gone or self._closing:
            connection.abort("the call is over")
            return
        self._lane = _FrameLane(
            connection, self._requests, self._context, self._changed, self._answered, self._backend.at_turn_end
        )

    # -- in -----------------------------------------------------------------------------------------------------------

    async def _read_all(self) -> None:
        read, requests = self._context.read, self._requests
        while True:
            data: object = await read()
            if not isinstance(data, bytes):  # grpc.aio.EOF
                return
            requests.take(data)
            if self._lane is not None:
                self._changed()  # it may have waited for this one
            while requests.is_full:
                self._wake_reader = asyncio.get_running_loop().create_future()
                await self._wake_reader

    # -- out ----------------------------------------------------------------------------------------------------------

    async def _answer_all(self, reader: asyncio.Task[None]) -> str:
        """Write answers until all is over; return why the connection has ended if that is what ended it."""
        requests, write = self._requests, self._context.write
        while True:
            lane = self._lane
            if lane is not None and lane.is_due:
                lane.open()
            is_framed = lane is not None and lane.is_open
            if lane is not None and is_framed and lane.lost_reason:
                return lane.lost_reason
            if requests.answers and not is_framed:
                answer = requests.answers.popleft()
                await write(answer.data)
                requests.answered(answer)
                _wake(self._wake_reader)
                continue
            if reader.done() and requests.is_done:
                return ""
            self._wake_writer = asyncio.get_running_loop().create_future()
            await self._wake_writer

    def _ready(self) -> None:
        if self._lane is not None and self._lane.is_open:
            self._lane.flush_soon()
        else:
            _wake(self._wake_writer)

    def _changed(self) -> None:
        """Something has happened that the call's own task may wait for."""
        _wake(self._wake_writer)

    def _answered(self) -> None:
        """Answers went out as frames. The call's own task cares for that only when it waits for the last."""
        _wake(self._wake_reader)
        if self._reader is not None and self._reader.done():
            _wake(self._wake_writer)


class _FrameLane:
    """The connection that a client has opened for its call. ``changed`` is called when the call's own task should look,
    ``answered`` after answers went out.

    Nothing is taken from it before the call's own task `open`s it, which it does when no answer is on its way by gRPC
    and every request that the client has sent there has been taken.
    """

    def __init__(
        self,
        connection: FrameConnection,
        requests: Requests,
        watched: WatchedContext,
        changed: Callable[[], None],
        answered: Callable[[], None],
        at_turn_end: Callable[[Callable[[], None]], None],
    ) -> None:
        self._connection = connection
        self._requests = requests
        self._watched = watched
        self._changed = changed
        self._answered = answered
        self._at_turn_end = at_turn_end
        self._loop = asyncio.get_running_loop()
        self._starts_after = -1  # requests that come by gRPC before the first frame; -1: the client has not said it yet
        self._stopped = self._blocked = self._flush_scheduled = False
        self.is_open = False
        self.lost_reason = ""
        connection.hand_over(received=self._received, lost=self._lost, on_writable=self._writable)

    @property
    def is_due(self) -> bool:
        """Whether it is to be opened now."""
        return not self.is_open and not self.lost_reason and 0 <= self._starts_after <= self._requests.taken_count

    def open(self) -> None:
        """From here on requests come from the connection and all answers go there."""
        self.is_open = True
        if not self._requests.is_full:
            self._connection.resume()
        self.flush_soon()

    def stop_taking(self) -> None:
        """Take no more requests; answers still go out."""
        self._stopped = True

    def end(self, *, abort: bool) -> None:
        """End the connection: at once, or once all is sent that has been answered."""
        self._watched.writing_since_s = 0.0
        if abort:
            self._connection.abort("the call is over")
        else:
            self._connection.close("the call is over")

    # -- in -----------------------------------------------------------------------------------------------------------

    def _received(self, connection: FrameConnection, data: bytes) -> None:
        if self._starts_after < 0:
            self._hear_start(connection, data)
        elif not self._stopped:
            self._requests.take(data)
            if self._requests.is_full:
                connection.pause()

    def _hear_start(self, connection: FrameConnection, data: bytes) -> None:
        if len(data) != START_BYTES:
            connection.abort(f"reset: {len(data)} bytes where the number of requests sent by gRPC was due")
            return
        self._starts_after = int.from_bytes(data, "big")
        connection.pause()
        self._changed()

    def _lost(self, _connection: FrameConnection, reason: str) -> None:
        self.lost_reason = reason
        self._changed()

    # -- out ----------------------------------------------------------------------------------------------------------

    def flush_soon(self) -> None:
        """Write soon, with what else completes in this turn of the loop."""
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._at_turn_end(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        requests = self._requests
        while requests.answers and not self._blocked and not self.lost_reason:
            self._write_some()
        if not requests.is_full:
            self._connection.resume()
        self._answered()

    def _write_some(self) -> None:
        """Write answers, as many as a write should have; then see whether the connection is blocked."""
        requests = self._requests
        answers: list[bytes] = []
        total = 0
        while requests.answers and total < _WRITE_BYTES:
            answer = requests.answers.popleft()
            requests.answered(answer)
            answers.append(answer.data)
            total += len(answer.data)
        connection = self._connection
        if not (connection.put(answers[0]) if len(answers) == 1 else connection.put_all(answers)):
            self._connection.abort("the answers cannot be sent")
            self._blocked = True

    def _writable(self, is_writable: bool) -> None:
        """The kernel takes no more, because the client reads nothing, or it does again."""
        self._blocked = not is_writable
        self._watched.writing_since_s = 0.0 if is_writable else self._loop.time()
        if is_writable and self.is_open:
            self._flush()


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


def _nothing() -> None:
    pass
