"""Server and client together: calls, one-way, errors, garbage, back-pressure, ends."""

from __future__ import annotations

import asyncio
import struct

import pytest

from broker_adapter.remoting.client import RemotingClient
from broker_adapter.remoting.codes import ResponseCode
from broker_adapter.remoting.command import RemotingCommand, SerializeType, decode_command, encode_command
from broker_adapter.remoting.connection import RemotingConnection
from broker_adapter.remoting.errors import (
    CommandError,
    RemotingClosedError,
    RemotingConnectError,
    RemotingTimeoutError,
)
from broker_adapter.remoting.server import RemotingServer
from dledger.errors import UnexpectedArgumentError
from dledger.local_group import free_ports
from tests.broker.harness import HOST, eventually


class Served:
    """A server with a few codes, and a client."""

    def __init__(self, **options: int) -> None:
        self.server = RemotingServer(**options)  # type: ignore[arg-type]
        self.client = RemotingClient()
        self.seen: list[RemotingCommand] = []
        self.gate = asyncio.Event()
        self.server.register(1, self.echo)
        self.server.register(2, self.refuse)
        self.server.register(3, self.fail)
        self.server.register(4, self.slow)
        self.server.register(5, self.ask_back)

    async def __aenter__(self) -> Served:
        port = await self.server.listen(HOST, 0)
        self.address = f"{HOST}:{port}"
        self.port = port
        return self

    async def __aexit__(self, *_: object) -> None:
        self.gate.set()
        await self.client.close()
        await self.server.stop()

    def echo(self, request: RemotingCommand, _connection: RemotingConnection) -> RemotingCommand:
        self.seen.append(request)
        return request.response(ext=request.ext, body=request.body)

    def refuse(self, _request: RemotingCommand, _connection: RemotingConnection) -> RemotingCommand:
        raise CommandError(ResponseCode.NO_PERMISSION, "not you")

    def fail(self, _request: RemotingCommand, _connection: RemotingConnection) -> RemotingCommand:
        raise KeyError("oops")

    async def slow(self, request: RemotingCommand, _connection: RemotingConnection) -> RemotingCommand:
        await self.gate.wait()
        return request.response()

    async def ask_back(self, request: RemotingCommand, connection: RemotingConnection) -> RemotingCommand:
        answer = await connection.invoke(RemotingCommand(77, {"x": "1"}), 5000)
        return request.response(ext={"got": answer.text("y")})


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", list(SerializeType))
async def test_calls_are_answered_in_their_type(kind: SerializeType) -> None:
    async with Served() as served:
        answer = await served.client.invoke(
            served.address, RemotingCommand(1, {"a": "ä"}, b"x" * 200_000, serialize_type=kind)
        )
    assert (answer.code, answer.ext, len(answer.body)) == (0, {"a": "ä"}, 200_000)
    assert answer.serialize_type is kind


@pytest.mark.asyncio
async def test_refusals_failures_and_unknown_codes() -> None:
    async with Served() as served:
        refused = await served.client.invoke(served.address, RemotingCommand(2))
        failed = await served.client.invoke(served.address, RemotingCommand(3))
        unknown = await served.client.invoke(served.address, RemotingCommand(4242))
        alive = await served.client.invoke(served.address, RemotingCommand(1))
    assert (refused.code, refused.remark) == (16, "not you")
    assert failed.code == ResponseCode.SYSTEM_ERROR
    assert unknown.code == ResponseCode.REQUEST_CODE_NOT_SUPPORTED
    assert unknown.remark is not None
    assert "4242" in unknown.remark
    assert alive.code == 0


@pytest.mark.asyncio
async def test_oneway_is_handled_and_not_answered() -> None:
    async with Served() as served:
        reader, writer = await asyncio.open_connection(HOST, served.port)
        writer.write(encode_command(RemotingCommand(1, {"n": "1"}, flag=2, opaque=1)))
        writer.write(encode_command(RemotingCommand(1, {"n": "2"}, opaque=2)))
        frame = await reader.readexactly(struct.unpack(">i", await reader.readexactly(4))[0])
        writer.close()
        await writer.wait_closed()
        assert decode_command(frame).opaque == 2
        assert [c.ext["n"] for c in served.seen] == ["1", "2"]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "garbage",
    [
        struct.pack(">i", 2**31 - 1) + b"xxxxxxxx",
        struct.pack(">i", -7) + b"xxxxxxxx",
        struct.pack(">iI", 12, 100) + b"xxxxxxxx",
        struct.pack(">iI", 12, 8) + b"{broken}",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
async def test_garbage_closes_that_connection_only(garbage: bytes) -> None:
    async with Served() as served:
        await served.client.invoke(served.address, RemotingCommand(1))
        reader, writer = await asyncio.open_connection(HOST, served.port)
        writer.write(garbage)
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        assert (await served.client.invoke(served.address, RemotingCommand(1))).code == 0


@pytest.mark.asyncio
async def test_a_call_times_out_and_its_late_answer_is_dropped() -> None:
    async with Served() as served:
        with pytest.raises(RemotingTimeoutError):
            await served.client.invoke(served.address, RemotingCommand(4), 30)
        served.gate.set()
        assert (await served.client.invoke(served.address, RemotingCommand(1))).code == 0
        connection = served.client.connected(served.address)
        assert connection is not None
        assert connection.call_count == 0


@pytest.mark.asyncio
async def test_a_server_that_stops_ends_the_calls_that_wait() -> None:
    async with Served() as served:
        task = asyncio.ensure_future(served.client.invoke(served.address, RemotingCommand(4), 20_000))
        await eventually(lambda: served.server.inflight_count == 1)
        await served.server.stop(grace_ms=0)
        with pytest.raises(RemotingClosedError):
            await task


@pytest.mark.asyncio
async def test_nobody_there() -> None:
    client = RemotingClient()
    with pytest.raises(RemotingConnectError):
        await client.invoke(f"{HOST}:{free_ports(1)[0]}", RemotingCommand(1))
    with pytest.raises(RemotingConnectError, match="HOST:PORT"):
        await client.invoke("nonsense", RemotingCommand(1))
    await client.close()


@pytest.mark.asyncio
async def test_the_server_may_ask_the_client() -> None:
    async with Served() as served:
        served.client.handlers[77] = lambda request, _: request.response(ext={"y": request.text("x") + "!"})
        answer = await served.client.invoke(served.address, RemotingCommand(5))
    assert answer.ext["got"] == "1!"


@pytest.mark.asyncio
async def test_too_many_requests_are_refused_at_once() -> None:
    async with Served(max_inflight_count=2) as served:
        waiting = [asyncio.ensure_future(served.client.invoke(served.address, RemotingCommand(4))) for _ in range(2)]
        await eventually(lambda: served.server.inflight_count == 2)
        assert (await served.client.invoke(served.address, RemotingCommand(4))).code == ResponseCode.SYSTEM_BUSY
        served.gate.set()
        assert [answer.code for answer in await asyncio.gather(*waiting)] == [0, 0]


@pytest.mark.asyncio
async def test_a_silent_connection_is_closed() -> None:
    async with Served(max_idle_ms=60) as served:
        reader, writer = await asyncio.open_connection(HOST, served.port)
        async with asyncio.timeout(30):
            assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()


@pytest.mark.asyncio
async def test_a_client_that_does_not_read_is_not_read_from() -> None:
    """Memory for a slow reader is bounded: its requests stay in the kernel."""
    async with Served() as served:
        reader, writer = await asyncio.open_connection(HOST, served.port, limit=1024)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        frame = encode_command(RemotingCommand(1, {}, b"x" * 100_000))
        sent = 0
        for _ in range(400):
            writer.write(frame)
            sent += 1
            try:
                await asyncio.wait_for(writer.drain(), 0.5)
            except TimeoutError:
                break
        assert sent < 400
        assert len(served.seen) < sent
        writer.transport.abort()
        del reader


@pytest.mark.asyncio
async def test_a_port_in_use_is_said() -> None:
    async with Served() as served:
        other = RemotingServer()
        with pytest.raises(UnexpectedArgumentError, match="in use"):
            await other.listen(HOST, served.port)
        await other.stop()


@pytest.mark.asyncio
async def test_a_bound_port_refuses_until_it_serves() -> None:
    server = RemotingServer()
    port = await server.bind(HOST, 0)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(HOST, port)
    await server.serve()
    _, writer = await asyncio.open_connection(HOST, port)
    writer.close()
    await writer.wait_closed()
    await server.stop()
