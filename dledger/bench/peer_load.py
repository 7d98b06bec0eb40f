"""Clients of the peers that cost next to nothing, so that the peer is measured and not its Python library.

Raw asyncio protocols: every answer that has arrived is taken at once, and as many messages go out again in one write.
Latency pairs answers with messages in order (RabbitMQ may confirm out of order: then a latency is that of a place in
the window). They speak the lines of `dledger.bench.worker`. etcd has a driver in Go, in ``benchmarks/peers``: its
protocol is gRPC, and a client in Python would be the bottleneck.
"""

from __future__ import annotations

import asyncio
import json
import os
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, cast

from dledger.bench.load import SLICE_S, Control, Load, Measurement, has_settled
from dledger.errors import UnavailableError

__all__ = ["NATS_SUBJECT", "RABBIT_QUEUE", "declare_queue", "nats_load", "nats_request", "rabbit_load"]

NATS_SUBJECT: Final = "bench.a"
RABBIT_QUEUE: Final = "bench"

_FRAME_END: Final = b"\xce"
_METHOD, _CONTENT_HEADER, _CONTENT_BODY, _HEARTBEAT = 1, 2, 3, 8
_CALL_S: Final = 15.0


class _Window:
    """Keeps ``load.concurrency`` messages out; `acknowledge` is told how many answers came."""

    def __init__(self, load: Load, send: Callable[[int], None]) -> None:
        self._load = load
        self._send = send
        self._sent: deque[int] = deque()
        self._latencies: list[int] = []
        self._running = True

    def acknowledge(self, count: int) -> None:
        """Count answers, and send as many messages."""
        now = time.perf_counter_ns()
        popleft, add = self._sent.popleft, self._latencies.append
        for _ in range(count):
            add(now - popleft())
        if self._running:
            self._push(count)

    def _push(self, count: int) -> None:
        self._sent.extend([time.perf_counter_ns()] * count)
        self._send(count)

    async def measure(self, control: Control) -> Measurement:
        """Warm up, and measure one window."""
        load = self._load
        found = Measurement(load)
        self._push(load.concurrency)
        began = time.perf_counter()
        rates: list[float] = []
        while not found.warmup_s:
            await self._slice(rates)
            past = time.perf_counter() - began
            if past >= load.warmup_s and (has_settled(rates) or past >= 4 * load.warmup_s):
                found.warmup_s = past
        await control.begin()
        self._latencies = []
        began = time.perf_counter()
        while found.elapsed_s < load.duration_s:
            await self._slice(found.slices)
            found.elapsed_s = time.perf_counter() - began
        latencies, self._latencies = self._latencies, []
        found.latency.record_all(latencies)
        found.acknowledged = found.latency.count
        found.byte_count = found.acknowledged * load.size_bytes
        await control.end()
        self._running = False
        return found

    async def _slice(self, rates: list[float]) -> None:
        before, began = len(self._latencies), time.perf_counter()
        await asyncio.sleep(SLICE_S)
        rates.append((len(self._latencies) - before) / (time.perf_counter() - began))


class _Client(asyncio.Protocol):
    """What both protocols share: bytes come in, complete messages are taken out of them."""

    def __init__(self) -> None:
        self.transport: asyncio.WriteTransport | None = None
        self.buffer = b""
        self.window: _Window | None = None
        self.replies: asyncio.Queue[Any] = asyncio.Queue()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no instances of asyncio's classes.
        self.transport = cast("asyncio.WriteTransport", transport)

    def connection_lost(self, error: Exception | None) -> None:
        self.replies.put_nowait(UnavailableError(f"the peer closed the connection: {error or 'no reason given'}"))

    def write(self, data: bytes) -> None:
        if self.transport is not None:
            self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        buffer = self.buffer + data if self.buffer else data
        used, acknowledged = self.take(buffer)
        self.buffer = buffer[used:]
        if acknowledged and self.window is not None:
            self.window.acknowledge(acknowledged)

    def take(self, buffer: bytes) -> tuple[int, int]:
        """Handle the complete messages at the beginning; return their bytes and how many acknowledge one of ours."""
        raise NotImplementedError

    async def reply(self) -> Any:  # noqa: ANN401 - each protocol's own kind
        """Return the next message that is not an acknowledgement.

        Raises:
            UnavailableError: none in time, or the connection is gone.
        """
        try:
            async with asyncio.timeout(_CALL_S):
                found = await self.replies.get()
        except TimeoutError:
            raise UnavailableError(f"no answer for {_CALL_S:g} s") from None
        if isinstance(found, UnavailableError):
            raise found
        return found


async def _run_window(client: _Client, load: Load, message: bytes, control: Control) -> None:
    client.window = _Window(load, lambda count: client.write(message * count))
    found = await client.window.measure(control)
    print(json.dumps(found.transfer()), flush=True)


# ---------------------------------------------------------------- NATS


class _Nats(_Client):
    """https://docs.nats.io/reference/reference-protocols/nats-protocol; a reply to our inbox is an acknowledgement."""

    def take(self, buffer: bytes) -> tuple[int, int]:
        at = acknowledged = 0
        while (end := buffer.find(b"\r\n", at)) >= 0:
            line = buffer[at:end]
            if line.startswith(b"MSG "):
                after = end + 2 + int(line.rsplit(b" ", 1)[1]) + 2
                if len(buffer) < after:
                    break
                payload = buffer[end + 2 : after - 2]
                if self.window is None:
                    self.replies.put_nowait(payload)
                elif b'"seq"' in payload:
                    acknowledged += 1
                else:
                    raise UnavailableError(f"NATS refused a message: {payload[:200]!r}")
                at = after
                continue
            if line == b"PING":
                self.write(b"PONG\r\n")
            elif line.startswith((b"-ERR", b"HMSG")):
                # HMSG: nobody answers yet ("no responders").
                self.replies.put_nowait(UnavailableError(f"NATS: {line.decode('utf-8', 'replace')}"))
            at = end + 2
        return at, acknowledged


async def _nats_client(port: int) -> tuple[_Nats, bytes]:
    _, client = await asyncio.get_running_loop().create_connection(_Nats, "127.0.0.1", port)
    inbox = b"_INBOX." + os.urandom(8).hex().encode()
    options = json.dumps({"verbose": False, "pedantic": False, "headers": True, "no_responders": True}).encode()
    client.write(b"CONNECT %s\r\nSUB %s 1\r\n" % (options, inbox))
    return client, inbox


async def nats_request(port: int, subject: str, payload: dict[str, Any]) -> dict[str, Any]:
    """Ask NATS something, JetStream's own API for example.

    Raises:
        UnavailableError: no answer.
        OSError: nobody listens.
    """
    client, inbox = await _nats_client(port)
    try:
        body = json.dumps(payload).encode()
        client.write(b"PUB %s %s %d\r\n%s\r\n" % (subject.encode(), inbox, len(body), body))
        answer: dict[str, Any] = json.loads(await client.reply())
        return answer
    finally:
        if client.transport is not None:
            client.transport.close()


async def nats_load(port: int, load: Load, control: Control) -> None:
    """Publish to the stream; prints the measurement."""
    client, inbox = await _nats_client(port)
    body = os.urandom(load.size_bytes)
    message = b"PUB %s %s %d\r\n%s\r\n" % (NATS_SUBJECT.encode(), inbox, len(body), body)
    await _run_window(client, load, message, control)


# ---------------------------------------------------------------- RabbitMQ


def _frame(kind: int, channel: int, payload: bytes) -> bytes:
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + _FRAME_END


def _short(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()


def _method(channel: int, class_id: int, method_id: int, arguments: bytes = b"") -> bytes:
    return _frame(_METHOD, channel, struct.pack(">HH", class_id, method_id) + arguments)


class _Rabbit(_Client):
    """AMQP 0-9-1 with publisher confirms. Confirms count by tag: "all up to" and single ones mixed."""

    def __init__(self) -> None:
        super().__init__()
        self._last_tag = 0
        self._open_tags: set[int] = set()

    def take(self, buffer: bytes) -> tuple[int, int]:
        at = acknowledged = 0
        while len(buffer) - at >= 7:
            kind, _, size = struct.unpack_from(">BHI", buffer, at)
            if len(buffer) - at < 8 + size:
                break
            payload = buffer[at + 7 : at + 7 + size]
            at += 8 + size
            if kind == _HEARTBEAT:
                self.write(_frame(_HEARTBEAT, 0, b""))
                continue
            method = struct.unpack_from(">HH", payload)
            if method == (60, 80):
                acknowledged += self._confirmed(*struct.unpack_from(">QB", payload, 4))
            elif method in {(10, 50), (20, 40), (60, 120)}:
                self.replies.put_nowait(UnavailableError(f"RabbitMQ refused: {payload[:200]!r}"))
            else:
                self.replies.put_nowait(method)
        return at, acknowledged

    def _confirmed(self, tag: int, is_multiple: int) -> int:
        """Return how many messages this confirms that were not confirmed before."""
        if tag > self._last_tag:
            between = range(self._last_tag + 1, tag)
            self._last_tag = tag
            if not is_multiple:
                self._open_tags.update(between)
                return 1
            older = {known for known in self._open_tags if known < tag}
            self._open_tags -= older
            return len(between) + 1 + len(older)
        done = {known for known in self._open_tags if (known <= tag if is_multiple else known == tag)}
        self._open_tags -= done
        return len(done)

    async def open(self) -> None:
        """Log in, and open a channel with confirms."""
        self.write(b"AMQP\x00\x00\x09\x01")
        await self._await((10, 10))
        sasl = b"\0guest\0guest"
        login = struct.pack(">I", 0) + _short("PLAIN") + struct.pack(">I", len(sasl)) + sasl + _short("en_US")
        self.write(_method(0, 10, 11, login))
        await self._await((10, 30))
        self.write(_method(0, 10, 31, struct.pack(">HIH", 2047, 131_072, 0)))
        self.write(_method(0, 10, 40, _short("/") + _short("") + b"\0"))
        await self._await((10, 41))
        self.write(_method(1, 20, 10, _short("")))
        await self._await((20, 11))
        self.write(_method(1, 85, 10, b"\0"))
        await self._await((85, 11))

    async def declare(self, queue: str) -> None:
        """Declare a durable quorum queue; its leader is on this node."""
        arguments = _short("x-queue-type") + b"S" + struct.pack(">I", 6) + b"quorum"
        table = struct.pack(">I", len(arguments)) + arguments
        self.write(_method(1, 50, 10, struct.pack(">H", 0) + _short(queue) + b"\x02" + table))
        await self._await((50, 11))

    async def delete(self, queue: str) -> None:
        """Delete a queue with all that is in it."""
        self.write(_method(1, 50, 40, struct.pack(">H", 0) + _short(queue) + b"\0"))
        await self._await((50, 41))

    async def _await(self, method: tuple[int, int]) -> None:
        found = await self.reply()
        if found != method:
            raise UnavailableError(f"RabbitMQ answered {found}, expected {method}")


async def _rabbit_client(port: int) -> _Rabbit:
    _, client = await asyncio.get_running_loop().create_connection(_Rabbit, "127.0.0.1", port)
    await client.open()
    return client


async def declare_queue(port: int, queue: str) -> None:
    """Make a new, empty quorum queue that this node leads.

    Raises:
        UnavailableError: RabbitMQ refused or is silent.
        OSError: nobody listens.
    """
    client = await _rabbit_client(port)
    await client.delete(queue)
    await client.declare(queue)
    if client.transport is not None:
        client.transport.close()


async def rabbit_load(port: int, load: Load, control: Control) -> None:
    """Publish persistent messages to the queue; prints the measurement."""
    client = await _rabbit_client(port)
    body = os.urandom(load.size_bytes)
    publish = _method(1, 60, 40, struct.pack(">H", 0) + _short("") + _short(RABBIT_QUEUE) + b"\0")
    # Property flag 0x1000: delivery mode; 2 is persistent.
    header = _frame(_CONTENT_HEADER, 1, struct.pack(">HHQHB", 60, 0, len(body), 0x1000, 2))
    await _run_window(client, load, publish + header + _frame(_CONTENT_BODY, 1, body), control)
