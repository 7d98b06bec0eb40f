"""The pipelined append: batches come in as fast as they are sent, answers go out as batches complete.

What the batches need is in `_Batches`; how they travel is the business of two carriers. `AppendStream` is the gRPC
call: one task reads and submits, the call's own task writes. `_FrameLane` is a plain connection that the client may
open beside it (``dledger.rpc.client_door``), at a fifth of the cost and without tasks: a frame is submitted as it
comes, and what has completed in one turn of the loop leaves in one write. The call stays open then, and the two end
together.

A batch counts as outstanding from its submission until its answer is written, and reading stops at the limit. So a
client that sends faster than the group commits, or does not read its answers, is held back by flow control and costs
bounded memory; one that reads nothing at all is ended by the `StreamGuard`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

import grpc

from dledger.rpc.answers import Answers, check_batch, parse, run_messages
from dledger.rpc.client_door import START_BYTES
from dledger.rpc.frames import FrameConnection
from dledger.rpc.interfaces import Backend
from dledger.security.streams import WatchedContext
from dledger.types import BatchResult
from dledger.v1 import ledger_pb2 as pb

__all__ = ["MAX_OUTSTANDING_BATCHES", "MAX_OUTSTANDING_BYTES", "AppendStream"]

MAX_OUTSTANDING_BATCHES: Final = 256
MAX_OUTSTANDING_BYTES: Final = 32 * 1024 * 1024

_WRITE_BYTES: Final = 64 * 1024
"""Answers of one write, about."""

_Completed = tuple[int, int, BatchResult | None, Exception | None]
"""(request id, bytes, result, error)"""


class _Batches:
    """The batches of one call: submitted, completed, answered. ``ready`` is called whenever one has completed."""

    def __init__(
        self, backend: Backend, answers: Answers, ready: Callable[[], None], max_batches: int, max_bytes: int
    ) -> None:
        self._backend = backend
        self._answers = answers
        self._ready = ready
        self._max_batches = max_batches
        self._max_bytes = max_bytes
        self._gone = False
        self._outstanding_bytes = 0  # Invariant: of the requests that outstanding_count counts.
        self.completed: deque[_Completed] = deque()
        self.outstanding_count = 0  # Invariant: batches submitted (or refused) whose answer is not yet written.
        self.taken_count = 0

    @property
    def is_full(self) -> bool:
        """Whether nothing more is to be submitted for now."""
        return self.outstanding_count >= self._max_batches or self._outstanding_bytes >= self._max_bytes

    def submit(self, data: bytes) -> None:
        """Take an AppendBatchRequest. Whatever is wrong with it becomes its answer."""
        request_id, size = 0, len(data)
        self.taken_count += 1
        self.outstanding_count += 1
        self._outstanding_bytes += size
        try:
            request = parse(pb.AppendBatchRequest, data)
            request_id = request.request_id
            self._answers.check_group(request.group)
            bodies = list(request.bodies)
            check_batch(bodies, len(bodies), request.first_sequence, self._backend)
            self._backend.submit(
                bodies,
                session_id=request.session_id,
                first_sequence=request.first_sequence,
                done=self._done_callback(request_id, size),
            )
        except Exception as error:
            self._complete(request_id, size, None, error)

    def _done_callback(self, request_id: int, size: int) -> Callable[[BatchResult | None, Exception | None], None]:
        def done(result: BatchResult | None, error: Exception | None) -> None:
            self._complete(request_id, size, result, error)

        return done

    def _complete(self, request_id: int, size: int, result: BatchResult | None, error: Exception | None) -> None:
        if self._gone:
            return
        self.completed.append((request_id, size, result, error))
        self._ready()

    def next_answer(self) -> tuple[bytes, int]:
        """Take a completed batch; return its AppendBatchResponse, and what to tell `answered` once that is written."""
        request_id, size, result, error = self.completed.popleft()
        if result is None:
            header = self._answers.failure(error or RuntimeError("neither result nor error"), "AppendStream")
            return pb.AppendBatchResponse(header=header, request_id=request_id).SerializeToString(), size
        answer = pb.AppendBatchResponse(
            header=self._answers.success(), runs=run_messages(result), request_id=request_id
        )
        return answer.SerializeToString(), size

    def answered(self, size: int) -> None:
        """The answer of a batch of ``size`` bytes has been written."""
        self.outstanding_count -= 1
        self._outstanding_bytes -= size

    def drop(self) -> None:
        """The client is gone or all is answered: what is still under way has nobody to tell."""
        self._gone = True
        self.completed.clear()


class AppendStream:
    """One call of AppendStream. `serve` is the call; `close` ends it from outside; `adopt` gives it a connection."""

    def __init__(
        self,
        backend: Backend,
        answers: Answers,
        context: WatchedContext,
        *,
        max_batches: int = MAX_OUTSTANDING_BATCHES,
        max_bytes: int = MAX_OUTSTANDING_BYTES,
    ) -> None:
        self._node_id = backend.node_id
        self._context = context
        self._batches = _Batches(backend, answers, self._completed, max_batches, max_bytes)
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
            self._batches.drop()
            if self._lane is not None:
                self._lane.end(abort=reason is None)
            reader.cancel()
            await asyncio.wait({reader})
        if reason:
            await self._context.abort(grpc.StatusCode.UNAVAILABLE, f"the connection for frames has ended: {reason}")
        elif not reader.cancelled():
            reader.result()
        else:
            await self._context.abort(grpc.StatusCode.UNAVAILABLE, f"{self._node_id} is stopping")

    def close(self) -> None:
        """Read no more; answer what is outstanding, then end the call with UNAVAILABLE."""
        self._closing = True
        if self._reader is not None:
            self._reader.cancel()
        if self._lane is not None:
            self._lane.stop_taking()

    def adopt(self, connection: FrameConnection) -> None:
        """The client has opened ``connection`` for this call, and will say when it goes over to it."""
        if self._gone or self._closing:
            connection.abort("the call is over")
            return
        self._lane = _FrameLane(connection, self._batches, self._context, self._changed, self._answered)

    # -- in -----------------------------------------------------------------------------------------------------------

    async def _read_all(self) -> None:
        read, batches = self._context.read, self._batches
        while True:
            data: object = await read()
            if not isinstance(data, bytes):  # grpc.aio.EOF
                return
            batches.submit(data)
            if self._lane is not None:
                self._changed()  # it may have waited for this batch
            while batches.is_full:
                self._wake_reader = asyncio.get_running_loop().create_future()
                await self._wake_reader

    # -- out ----------------------------------------------------------------------------------------------------------

    async def _answer_all(self, reader: asyncio.Task[None]) -> str:
        """Write answers until all is over; return why the connection has ended if that is what ended it."""
        batches, write = self._batches, self._context.write
        while True:
            lane = self._lane
            if lane is not None and lane.is_due:
                lane.open()
            is_framed = lane is not None and lane.is_open
            if lane is not None and is_framed and lane.lost_reason:
                return lane.lost_reason
            if batches.completed and not is_framed:
                data, size = batches.next_answer()
                await write(data)
                batches.answered(size)
                _wake(self._wake_reader)
                continue
            if reader.done() and not batches.outstanding_count:
                return ""
            self._wake_writer = asyncio.get_running_loop().create_future()
            await self._wake_writer

    def _completed(self) -> None:
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
    and every batch that the client has sent there has been taken.
    """

    def __init__(
        self,
        connection: FrameConnection,
        batches: _Batches,
        watched: WatchedContext,
        changed: Callable[[], None],
        answered: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._batches = batches
        self._watched = watched
        self._changed = changed
        self._answered = answered
        self._loop = asyncio.get_running_loop()
        self._starts_after = -1  # batches that come by gRPC before the first frame; -1: the client has not said it yet
        self._stopped = self._blocked = self._flush_scheduled = False
        self.is_open = False
        self.lost_reason = ""
        connection.hand_over(received=self._received, lost=self._lost, on_writable=self._writable)

    @property
    def is_due(self) -> bool:
        """Whether it is to be opened now."""
        return not self.is_open and not self.lost_reason and 0 <= self._starts_after <= self._batches.taken_count

    def open(self) -> None:
        """From here on batches come from the connection and all answers go there."""
        self.is_open = True
        if not self._batches.is_full:
            self._connection.resume()
        self.flush_soon()

    def stop_taking(self) -> None:
        """Take no more batches; answers still go out."""
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
            self._batches.submit(data)
            if self._batches.is_full:
                connection.pause()

    def _hear_start(self, connection: FrameConnection, data: bytes) -> None:
        if len(data) != START_BYTES:
            connection.abort(f"reset: {len(data)} bytes where the number of batches sent by gRPC was due")
            return
        self._starts_after = int.from_bytes(data, "big")
        connection.pause()
        self._changed()

    def _lost(self, _connection: FrameConnection, reason: str) -> None:
        self.lost_reason = reason
        self._changed()

    # -- out ----------------------------------------------------------------------------------------------------------

    def flush_soon(self) -> None:
        """Write in the next turn of the loop, with what else completes in this one."""
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        batches = self._batches
        while batches.completed and not self._blocked and not self.lost_reason:
            self._write_some()
        if not batches.is_full:
            self._connection.resume()
        self._answered()

    def _write_some(self) -> None:
        """Write answers, as many as a write should have; then see whether the connection is blocked."""
        batches = self._batches
        answers: list[bytes] = []
        total = 0
        while batches.completed and total < _WRITE_BYTES:
            data, size = batches.next_answer()
            batches.answered(size)
            answers.append(data)
            total += len(data)
        if not self._connection.put_all(answers):
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
