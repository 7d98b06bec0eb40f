"""One remoting connection, the same at both ends: either side may send requests."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

import structlog

from broker_adapter.remoting.codes import ResponseCode
from broker_adapter.remoting.command import (
    FLAG_ONEWAY,
    FLAG_RESPONSE,
    Body,
    RemotingCommand,
    decode_command,
    encode_head,
)
from broker_adapter.remoting.errors import (
    CommandError,
    FrameError,
    RemotingClosedError,
    RemotingTimeoutError,
)
from broker_adapter.remoting.frame import FrameDecoder

__all__ = ["Endpoint", "Handler", "RemotingConnection", "Reply", "Watch", "format_address"]

Reply = RemotingCommand | None
Handler = Callable[[RemotingCommand, "RemotingConnection"], Reply | Awaitable[Reply]]
"""Answers one request: with a command, later (an awaitable), or by itself through `RemotingConnection.reply` (None)."""

_WRITE_HIGH_WATER_BYTES: Final = 1024 * 1024
_OPAQUE_MASK: Final = 0x7FFFFFFF
_JOIN_BELOW_BYTES: Final = 64 * 1024


def format_address(host: str, port: int) -> str:
    """Write ``host:port``, an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _address_of(info: object) -> str:
    if isinstance(info, tuple) and len(info) >= 2:
        return format_address(str(info[0]), int(info[1]))
    return str(info or "")


class Watch(Protocol):
    """Is told of every request and of every answer to one."""

    def began(self, connection: RemotingConnection, request: RemotingCommand) -> None: ...

    def ended(self, connection: RemotingConnection, request: RemotingCommand, response_code: int) -> None: ...


class Endpoint(Protocol):
    """What a connection belongs to: a server or a client."""

    handlers: dict[int, Handler]
    max_frame_bytes: int
    max_inflight_count: int
    inflight_count: int
    watch: Watch | None
    signer: Callable[[RemotingCommand], None] | None
    """Signs what this endpoint asks (access control)."""

    def connection_opened(self, connection: RemotingConnection) -> None: ...

    def connection_closed(self, connection: RemotingConnection) -> None: ...


class RemotingConnection(asyncio.Protocol):
    """Reads frames, answers requests by the endpoint's table, matches answers to calls.

    While the peer does not read what is written to it, nothing more is read from it: that bounds the memory of a
    slow consumer at one write buffer.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._decoder = FrameDecoder(endpoint.max_frame_bytes)
        self._calls: dict[int, asyncio.Future[RemotingCommand]] = {}
        self._opaques = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._drained: asyncio.Event | None = None
        self._answers: list[Body] = []
        # Invariant: while it holds something, `_flush` is scheduled; every other write goes out behind it.
        self.remote_address = ""
        self.local_address = ""
        self.last_active_s = self._loop.time()
        self.is_closed = False
        self.attributes: dict[str, object] = {}

    # ------------------------------------------------------------------ asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not isinstance(transport, asyncio.Transport) and not hasattr(transport, "writelines"):
            raise TypeError("a remoting connection needs a stream")
        self._transport = transport  # type: ignore[assignment]
        self.remote_address = _address_of(transport.get_extra_info("peername"))
        self.local_address = _address_of(transport.get_extra_info("sockname"))
        self._transport.set_write_buffer_limits(high=_WRITE_HIGH_WATER_BYTES)  # type: ignore[union-attr]
        self._endpoint.connection_opened(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.is_closed = True
        self._transport = None
        calls, self._calls = self._calls, {}
        for future in calls.values():
            if not future.done():
                future.set_exception(RemotingClosedError(f"the connection to {self.remote_address} closed"))
        if self._drained is not None:
            self._drained.set()
        self._endpoint.connection_closed(self)

    def pause_writing(self) -> None:
        self._drained = asyncio.Event()
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        if self._drained is not None:
            self._drained.set()
            self._drained = None
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        self.last_active_s = self._loop.time()
        try:
            for frame in self._decoder.feed(data):
                self._received(decode_command(frame))
        except FrameError as error:
            structlog.get_logger().warning("bad_frame", remote=self.remote_address, error=str(error))
            self.close()

    # ------------------------------------------------------------------ receiving

    def _received(self, command: RemotingCommand) -> None:
        if command.flag & FLAG_RESPONSE:
            future = self._calls.pop(command.opaque, None)
            if future is not None and not future.done():
                future.set_result(command)
            return
        watch = self._endpoint.watch
        if watch is not None:
            watch.began(self, command)
        handler = self._endpoint.handlers.get(command.code)
        if handler is None:
            self._refuse(
                command, ResponseCode.REQUEST_CODE_NOT_SUPPORTED, f" request type {command.code} not supported"
            )
            return
        if self._endpoint.inflight_count >= self._endpoint.max_inflight_count:
            self._refuse(command, ResponseCode.SYSTEM_BUSY, "[OVERLOAD]system busy, start flow control for a while")
            return
        try:
            result = handler(command, self)
        except Exception as error:
            self._failed(command, error)
            return
        if result is None:
            return
        if isinstance(result, RemotingCommand):
            self.reply(command, result)
            return
        self._endpoint.inflight_count += 1
        task = self._loop.create_task(self._finish(command, result))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _finish(self, request: RemotingCommand, awaitable: Awaitable[Reply]) -> None:
        try:
            response = await awaitable
        except Exception as error:
            self._failed(request, error)
        else:
            if response is not None:
                self.reply(request, response)
        finally:
            self._endpoint.inflight_count -= 1

    def _failed(self, request: RemotingCommand, error: Exception) -> None:
        if isinstance(error, CommandError):
            self._refuse(request, error.code, error.remark)
            return
        structlog.get_logger().error(
            "request_failed", code=request.code, remote=self.remote_address, error=repr(error), exc_info=error
        )
        self._refuse(request, ResponseCode.SYSTEM_ERROR, f"{type(error).__name__}: {error}")

    def _refuse(self, request: RemotingCommand, code: int, remark: str) -> None:
        self.reply(request, request.response(code, remark))

    # ------------------------------------------------------------------ sending

    def reply(self, request: RemotingCommand, response: RemotingCommand) -> None:
        """Answer ``request``; a one-way request is not answered. A closed connection swallows it."""
        if request.flag & FLAG_ONEWAY:
            return
        response.opaque = request.opaque
        response.flag = FLAG_RESPONSE
        if self._endpoint.watch is not None:
            self._endpoint.watch.ended(self, request, response.code)
        self._write(response, ())

    def reply_with_buffers(self, request: RemotingCommand, response: RemotingCommand, buffers: Sequence[Body]) -> None:
        """Answer with a body made of ``buffers``, which are not joined first."""
        if not request.flag & FLAG_ONEWAY:
            response.opaque = request.opaque
            response.flag = FLAG_RESPONSE
            if self._endpoint.watch is not None:
                self._endpoint.watch.ended(self, request, response.code)
            self._write(response, buffers)

    def reply_encoded(self, request: RemotingCommand, response_code: int, head: bytes, buffers: Sequence[Body]) -> None:
        """Answer with an encoded frame: its head, and its body in pieces. Those of a loop turn leave together."""
        if request.flag & FLAG_ONEWAY:
            return
        if self._endpoint.watch is not None:
            self._endpoint.watch.ended(self, request, response_code)
        answers = self._answers
        if not answers:
            self._loop.call_soon(self._flush)
        answers.append(head)
        answers += buffers

    def _flush(self) -> None:
        answers = self._answers
        if not answers:
            return
        self._answers = []
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if len(answers) == 1:
            transport.write(answers[0])
        elif sum(map(len, answers)) < _JOIN_BELOW_BYTES:
            transport.write(b"".join(answers))
        else:
            transport.writelines(answers)

    def _write(self, command: RemotingCommand, buffers: Sequence[Body]) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if self._answers:
            self._flush()
        body_bytes = len(command.body) + sum(map(len, buffers))
        head = encode_head(command, body_bytes)
        if body_bytes == 0:
            transport.write(head)
        elif body_bytes < _JOIN_BELOW_BYTES:
            transport.write(b"".join((head, command.body, *buffers)))
        else:
            transport.writelines((head, command.body, *buffers))

    def send_oneway(self, command: RemotingCommand) -> None:
        """Send a request that has no answer. A closed connection swallows it."""
        if self._endpoint.signer is not None:
            self._endpoint.signer(command)
        command.flag |= FLAG_ONEWAY
        command.opaque = self._next_opaque()
        self._write(command, ())

    async def invoke(self, command: RemotingCommand, timeout_ms: int) -> RemotingCommand:
        """Send a request and return its answer.

        Raises:
            RemotingTimeoutError: no answer within ``timeout_ms``.
            RemotingClosedError: the connection closed.
        """
        future = self.call(command)
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                return await future
        except TimeoutError:
            raise RemotingTimeoutError(
                f"no answer from {self.remote_address} to code {command.code} within {timeout_ms} ms"
            ) from None
        finally:
            self._calls.pop(command.opaque, None)

    def call(self, command: RemotingCommand) -> asyncio.Future[RemotingCommand]:
        """Send a request now, in order with what was sent before; the future gets its answer."""
        future: asyncio.Future[RemotingCommand] = self._loop.create_future()
        if self._transport is None or self._transport.is_closing():
            future.set_exception(RemotingClosedError(f"the connection to {self.remote_address} is closed"))
            return future
        if self._endpoint.signer is not None:
            self._endpoint.signer(command)
        command.opaque = self._next_opaque()
        command.flag &= ~FLAG_RESPONSE
        self._calls[command.opaque] = future
        self._write(command, ())
        return future

    def forget(self, command: RemotingCommand) -> None:
        """Give up a `call`; its answer, if it comes, is dropped."""
        self._calls.pop(command.opaque, None)

    def _next_opaque(self) -> int:
        return next(self._opaques) & _OPAQUE_MASK

    @property
    def call_count(self) -> int:
        """Calls that wait for their answers."""
        return len(self._calls)

    def close(self) -> None:
        """Close after what was written is sent."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    async def finish_requests(self) -> None:
        """Wait until the requests being handled are answered."""
        if self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def cancel_requests(self) -> None:
        """Drop the requests being handled."""
        for task in self._tasks:
            task.cancel()
