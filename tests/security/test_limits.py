"""Floods: connections, streams, message sizes, readers that do not read. Each is bounded, and the others are served."""

from __future__ import annotations

import asyncio
import contextlib

import grpc
import pytest
from grpc import aio

from dledger.v1 import ledger_pb2
from tests.security.conftest import eventually, until

pytestmark = pytest.mark.asyncio

LEDGER = "/dledger.v1.LedgerService/"
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]
NARROW = [*OWN_CONNECTION, ("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536)]
"""A client's window that does not grow, else gRPC takes megabytes that the client never asked for."""


async def one_node(group, **settings):
    nodes = group(1)
    server = await nodes.start("n0", **settings)
    await nodes.wait_leader()
    return nodes, server


async def test_connections_beyond_the_limit_are_closed_and_the_others_work_on(group):
    nodes, _ = await one_node(group, maxConnections="8")
    request = ledger_pb2.MetadataRequest(group="g").SerializeToString()

    async def ask(channel):
        return await channel.unary_unary(LEDGER + "Metadata")(request, timeout=5)

    async with contextlib.AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(aio.insecure_channel(nodes.address("n0"), options=OWN_CONNECTION))
            for _ in range(24)
        ]
        answers = await asyncio.gather(*(ask(channel) for channel in channels), return_exceptions=True)
        served = [channel for channel, answer in zip(channels, answers, strict=True) if isinstance(answer, bytes)]
        refused = [answer for answer in answers if isinstance(answer, aio.AioRpcError)]
        assert len(served) == 8
        assert len(refused) == 16
        assert {error.code() for error in refused} == {grpc.StatusCode.UNAVAILABLE}
        for channel in served:
            assert isinstance(await ask(channel), bytes)
            await channel.close()

        async def served_again():
            with contextlib.suppress(aio.AioRpcError):
                async with aio.insecure_channel(nodes.address("n0"), options=OWN_CONNECTION) as channel:
                    return await ask(channel)
            return None

        await until(served_again)  # closed connections are counted until the server has seen their end


async def test_streams_beyond_the_limit_are_refused_and_the_others_work_on(group):
    nodes, server = await one_node(group, maxStreams="5")
    read = ledger_pb2.ReadRequest(group="g", to_index=-1, follow=True).SerializeToString()
    append = ledger_pb2.AppendBatchRequest(group="g", bodies=[b"x"], request_id=7).SerializeToString()
    async with aio.insecure_channel(nodes.address("n0")) as channel:
        open_streams = [channel.stream_stream(LEDGER + "AppendStream")() for _ in range(5)]
        for stream in open_streams:
            await stream.write(append)
            await stream.read()
        refused = [channel.stream_stream(LEDGER + "AppendStream")() for _ in range(20)]
        for call in refused:
            with contextlib.suppress(aio.AioRpcError, asyncio.InvalidStateError):
                await call.write(append)
        refused += [channel.unary_stream(LEDGER + "Read")(read) for _ in range(20)]
        assert {await call.code() for call in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert "maxStreams" in await refused[0].details()
        await open_streams[0].write(append)
        answer = ledger_pb2.AppendBatchResponse.FromString(await open_streams[0].read())
        assert answer.header.code == 200
        open_streams[1].cancel()
        await eventually(lambda: server._grpc.guard.open_count == 4)
        again = channel.unary_stream(LEDGER + "Read")(read)
        assert isinstance(await again.read(), bytes)
        assert server._grpc.guard.refused_count == 40


async def test_a_message_beyond_the_limit_is_refused_and_the_connection_works_on(group):
    nodes, _ = await one_node(group)
    async with aio.insecure_channel(nodes.address("n0"), options=[("grpc.max_send_message_length", -1)]) as channel:
        for _ in range(5):
            with pytest.raises(aio.AioRpcError) as caught:
                await channel.unary_unary(LEDGER + "Append")(bytes(9 * 1024 * 1024), timeout=10)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        request = ledger_pb2.MetadataRequest(group="g").SerializeToString()
        assert await channel.unary_unary(LEDGER + "Metadata")(request, timeout=5)


async def test_large_metadata_is_refused(group):
    nodes, _ = await one_node(group)
    async with aio.insecure_channel(nodes.address("n0")) as channel:
        call = channel.unary_unary(LEDGER + "Metadata")(b"", metadata=(("x", "y" * 200_000),), timeout=5)
        assert await call.code() in {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE}
        request = ledger_pb2.MetadataRequest(group="g").SerializeToString()
        assert await channel.unary_unary(LEDGER + "Metadata")(request, timeout=5)


async def test_readers_that_do_not_read_are_ended(group):
    """Forty reads of 8 MiB, of which nobody takes anything: each holds one chunk, then the node ends it."""
    nodes, server = await one_node(group, slowReaderTimeout="300ms", maxStreams="40")
    async with nodes.connect() as client:
        await client.append_many([bytes(512 * 1024)] * 16)
    read = ledger_pb2.ReadRequest(group="g", to_index=-1, raw=True).SerializeToString()
    async with aio.insecure_channel(nodes.address("n0"), options=NARROW) as channel:
        calls = [channel.unary_stream(LEDGER + "Read")(read) for _ in range(40)]
        await eventually(lambda: server._grpc.guard.slow_count == 40, what="40 ended")
        await eventually(lambda: server._grpc.guard.open_count == 0)
        for call in calls:
            call.cancel()
    async with nodes.connect() as client:
        assert len([entry async for entry in client.read()]) == 16


async def test_a_reader_that_is_only_slow_gets_everything(group):
    nodes, server = await one_node(group, slowReaderTimeout="2s")
    async with nodes.connect() as client:
        await client.append_many([bytes(512 * 1024)] * 16)
        count = 0
        async for _ in client.read():
            count += 1
            await asyncio.sleep(0.02)
    assert count == 16
    assert server._grpc.guard.slow_count == 0


async def test_an_appender_that_reads_no_answers_is_held_back_then_ended(group):
    """Answers wait for their reader; past the stream's window nothing more is taken from it, and its end is decided.

    The end stands behind the answers, so a client that never reads keeps the call, which counts as open, until it goes.
    """
    nodes, server = await one_node(group, slowReaderTimeout="300ms")
    request = ledger_pb2.AppendBatchRequest(group="nobody" * 2000, bodies=[b"x"]).SerializeToString()
    async with aio.insecure_channel(nodes.address("n0"), options=NARROW) as channel:
        stream = channel.stream_stream(LEDGER + "AppendStream")()

        async def flood():
            with contextlib.suppress(aio.AioRpcError, asyncio.InvalidStateError):
                while True:
                    await stream.write(request)  # refused with an answer that names the group: as long as the request

        flooding = asyncio.ensure_future(flood())
        await eventually(lambda: server._grpc.guard.slow_count == 1)
        flooding.cancel()
        await asyncio.gather(flooding, return_exceptions=True)
        async with nodes.connect() as client:
            await client.append(b"others are served")
        stream.cancel()
        await eventually(lambda: server._grpc.guard.open_count == 0)
