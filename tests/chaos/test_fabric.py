"""The proxies between nodes: what flows, what is held, lost, refused or late, and what the two ends get to hear of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from dledger.chaos.fabric import OPEN, Fabric, Flow, Rule
from dledger.rpc.frames import CLIENT_PREFACE, PEER_PREFACE

BOTH = [("a", "b"), ("b", "a")]


class Echo:
    """Node ``b``: sends back what it hears, and remembers it."""

    def __init__(self) -> None:
        self.heard = b""
        self.connections = 0
        self.writers: list[asyncio.StreamWriter] = []
        self.ended = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.append(writer)
        try:
            while data := await reader.read(65536):
                self.heard += data
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            self.ended.set()
            writer.close()


@asynccontextmanager
async def network() -> AsyncIterator[tuple[Fabric, Echo]]:
    echo = Echo()
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    fabric = Fabric(["a", "b"])
    await fabric.open()
    fabric.set_target("b", *server.sockets[0].getsockname()[:2])
    try:
        yield fabric, echo
    finally:
        await fabric.close()
        for writer in echo.writers:
            writer.transport.abort()
        server.close()
        await server.wait_closed()


async def dial(fabric: Fabric) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", fabric.port("a", "b"))


async def silent(reader: asyncio.StreamReader, seconds: float = 0.15) -> bool:
    """Whether nothing comes, neither bytes nor an end."""
    try:
        async with asyncio.timeout(seconds):
            await reader.read(1)
    except TimeoutError:
        return True
    return False


async def ends(reader: asyncio.StreamReader) -> bool:
    """Whether the connection ends soon, with nothing more in it."""
    try:
        async with asyncio.timeout(30):
            return await reader.read(1) == b""
    except ConnectionError:
        return True


@pytest.mark.asyncio
async def test_bytes_flow_in_order_also_many_of_them() -> None:
    async with network() as (fabric, _):
        reader, writer = await dial(fabric)
        sent = bytes(range(256)) * 20_000
        writer.write(sent)
        assert await asyncio.wait_for(reader.readexactly(len(sent)), 20) == sent
        writer.close()


@pytest.mark.asyncio
async def test_what_is_held_comes_late_and_whole() -> None:
    async with network() as (fabric, echo):
        reader, writer = await dial(fabric)
        writer.write(b"one")
        assert await reader.readexactly(3) == b"one"
        fabric.set_rules(BOTH, Rule(Flow.HELD))
        writer.write(b"two")
        assert await silent(reader)
        assert echo.heard == b"one"
        fabric.set_rules(BOTH, OPEN)
        assert await asyncio.wait_for(reader.readexactly(3), 30) == b"two"
        assert echo.connections == 1
        writer.close()


@pytest.mark.asyncio
async def test_one_way_a_request_gets_through_and_its_answer_does_not() -> None:
    async with network() as (fabric, echo):
        reader, writer = await dial(fabric)
        fabric.set_rules([("b", "a")], Rule(Flow.HELD))
        assert fabric.cut_flows() == {("b", "a")}
        writer.write(b"asked")
        assert await silent(reader)
        fabric.heal()
        assert await asyncio.wait_for(reader.readexactly(5), 30) == b"asked"
        assert echo.heard == b"asked"
        writer.close()


@pytest.mark.asyncio
async def test_what_is_lost_is_lost_and_the_connection_is_reset_once_there_is_news() -> None:
    async with network() as (fabric, echo):
        reader, writer = await dial(fabric)
        writer.write(b"one")
        await reader.readexactly(3)
        fabric.set_rules(BOTH, Rule(Flow.LOST))
        writer.write(b"two")
        assert await silent(reader)
        fabric.set_rules(BOTH, OPEN)
        assert await ends(reader)
        assert echo.heard == b"one"
        writer.close()


@pytest.mark.asyncio
async def test_refused_is_told_at_once_and_new_connections_are_refused_too() -> None:
    async with network() as (fabric, echo):
        reader, writer = await dial(fabric)
        writer.write(b"one")
        await reader.readexactly(3)
        fabric.set_rules(BOTH, Rule(Flow.REFUSED))
        assert await ends(reader)
        again, other = await dial(fabric)
        assert await ends(again)
        assert echo.connections == 1
        fabric.heal()
        last, third = await dial(fabric)
        third.write(b"new")
        assert await asyncio.wait_for(last.readexactly(3), 30) == b"new"
        for each in (writer, other, third):
            each.close()


@pytest.mark.asyncio
async def test_behind_a_silent_cut_nobody_hears_that_the_other_is_dead() -> None:
    async with network() as (fabric, echo):
        reader, writer = await dial(fabric)
        writer.write(b"one")
        await reader.readexactly(3)
        fabric.set_rules(BOTH, Rule(Flow.HELD))
        echo.writers[0].transport.abort()
        await asyncio.wait_for(echo.ended.wait(), 30)
        assert await silent(reader)
        fabric.heal()
        assert await ends(reader)
        writer.close()


@pytest.mark.asyncio
async def test_a_connection_begun_in_a_silent_cut_hangs_and_works_once_healed() -> None:
    async with network() as (fabric, echo):
        fabric.set_rules(BOTH, Rule(Flow.HELD))
        reader, writer = await dial(fabric)
        writer.write(b"hello")
        assert await silent(reader)
        assert echo.connections == 0
        fabric.heal()
        assert await asyncio.wait_for(reader.readexactly(5), 30) == b"hello"
        writer.close()


@pytest.mark.asyncio
async def test_delay_is_added_in_each_direction_and_order_stays() -> None:
    async with network() as (fabric, _):
        reader, writer = await dial(fabric)
        fabric.set_rules(BOTH, Rule(delay_s=0.1))
        loop = asyncio.get_running_loop()
        began = loop.time()
        for number in range(10):
            writer.write(bytes([number]))
            await writer.drain()
        assert await asyncio.wait_for(reader.readexactly(10), 30) == bytes(range(10))
        assert loop.time() - began >= 0.2
        writer.close()


@pytest.mark.asyncio
async def test_a_node_that_is_down_looks_down() -> None:
    async with network() as (fabric, _):
        fabric.set_target("b", "127.0.0.1", 1)
        reader, writer = await dial(fabric)
        assert await ends(reader)
        writer.close()


@pytest.mark.asyncio
async def test_the_first_bytes_tell_whom_of_a_node_a_connection_is_for() -> None:
    """One address for two ports: frames (of peers and clients) go to the one, all else to the other; cuts are for both."""
    async with network() as (fabric, echo):
        peers = Echo()
        server = await asyncio.start_server(peers.serve, "127.0.0.1", 0)
        host, port = fabric.links["a", "b"].target
        fabric.set_target("b", host, port, server.sockets[0].getsockname()[1])
        for first, heard_by in (
            (PEER_PREFACE + b"x", peers),
            (PEER_PREFACE[:3], peers),
            (CLIENT_PREFACE + b"x", peers),
            (b"PRI * HTTP/2.0", echo),
        ):
            reader, writer = await dial(fabric)
            writer.write(first)
            assert await reader.readexactly(len(first)) == first
            assert heard_by.heard.endswith(first)
            fabric.set_rules(BOTH, Rule(Flow.HELD))
            writer.write(b"later")
            assert await silent(reader)
            fabric.set_rules(BOTH, OPEN)
            assert await reader.readexactly(5) == b"later"
            writer.close()
        assert (peers.connections, echo.connections) == (3, 1)
        for writer in peers.writers:
            writer.transport.abort()
        server.close()
        await server.wait_closed()


def test_links_join_all_nodes_and_outsiders_reach_each() -> None:
    assert set(Fabric(["a", "b", "c"]).links) == {(x, y) for x in "abc" for y in "abc" if x != y}
    assert set(Fabric(["a", "b"], ["clients"], between=False).links) == {("clients", "a"), ("clients", "b")}
