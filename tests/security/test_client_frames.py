"""Who gets a ticket for frames: those who may write, from a node in plaintext that has a port for them."""

from __future__ import annotations

import pytest
from grpc import aio

from dledger.rpc.client_door import FRAMES_KEY, TICKET_KEY
from tests.security.conftest import APP, READER, WRITER, client_tls, eventually, tls_settings

pytestmark = pytest.mark.asyncio

METHOD = "/dledger.v1.LedgerService/AppendStream"


async def three_nodes(group, settings=lambda _: {}):
    nodes = group(3)
    for node_id in nodes.node_ids:
        await nodes.start(node_id, **settings(node_id))
    return nodes, await nodes.wait_leader()


def streams(client):
    return [stream.is_framed for stream in client._transport._streams]


async def test_without_the_right_to_write_there_is_no_ticket(group, tokens):
    nodes, leader = await three_nodes(group, lambda _: {"tokensFile": str(tokens)})
    door = nodes.running[leader]._grpc._transport.clients
    port = str(nodes.ports[leader])
    async with aio.insecure_channel(nodes.address(leader)) as channel:
        for token in (None, READER, "nobody's-token-012345"):
            bearer = () if token is None else (("authorization", f"Bearer {token}"),)
            call = channel.stream_stream(METHOD)(metadata=((FRAMES_KEY, port), *bearer))
            assert (await call.code()).name in {"UNAUTHENTICATED", "PERMISSION_DENIED"}
            assert TICKET_KEY not in dict(await call.initial_metadata())
            assert not door._open
        call = channel.stream_stream(METHOD)(metadata=((FRAMES_KEY, port), ("authorization", f"Bearer {WRITER}")))
        assert TICKET_KEY in dict(await call.initial_metadata())
        call.cancel()
    async with nodes.connect(token=APP) as client:
        await client.append(b"x")
        await eventually(lambda: streams(client) == [True])
        assert (await client.append(b"y")).index > 0


async def test_with_tls_appends_stay_with_grpc(group, certs):
    nodes, leader = await three_nodes(group, lambda node_id: tls_settings(certs, node_id))
    async with nodes.connect(tls=client_tls(certs)) as client:
        await client.append(b"x")
        assert streams(client) == [False]
    assert nodes.running[leader]._grpc._transport.clients._bound is None


async def test_without_a_peer_port_appends_stay_with_grpc(group):
    nodes, _ = await three_nodes(group, lambda _: {"peerPort": "-1"})
    async with nodes.connect() as client:
        for body in (b"a", b"b", b"c"):
            await client.append(body)
        assert streams(client) == [False]
