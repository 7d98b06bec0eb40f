"""Clients' frames go where their gRPC calls go: through the links of the fabric, so that what hurts one hurts the other."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from dledger.chaos.fabric import OPEN, Fabric, Rule
from dledger.chaos.group import CLIENTS, ChaosGroup
from dledger.client import LedgerClient, connect
from tests.rpc.fakes import eventually

DELAY_S = 0.3


def framed(client: LedgerClient) -> list[bool]:
    transport = client._transport
    return [] if transport is None else [stream.is_framed for stream in transport._streams]


@pytest.mark.asyncio
async def test_what_is_done_to_a_clients_link_is_done_to_its_frames(tmp_path: Path) -> None:
    """A delay on the link is a delay of every append, and a client is not led around links that only we know of."""
    async with ChaosGroup(tmp_path, nodes=3, group="g", proxied_clients=True) as group:
        async with group.connect_as_client(timeout=60) as client:
            await client.append(b"first")
            await eventually(lambda: framed(client) == [True], timeout=30)
            flows = [(CLIENTS, node_id) for node_id in group.nodes]
            group.fabric.set_rules(flows, Rule(delay_s=DELAY_S))
            loop = asyncio.get_running_loop()
            began = loop.time()
            await client.append(b"second")
            assert loop.time() - began >= DELAY_S
            assert framed(client) == [True]
            group.fabric.set_rules(flows, OPEN)
        foreign = Fabric(group.nodes, [CLIENTS], between=False)
        await foreign.open()
        try:
            for node_id, node in group.nodes.items():
                foreign.set_target(node_id, "127.0.0.1", node.peer.port)
            addresses = {node_id: f"127.0.0.1:{foreign.port(CLIENTS, node_id)}" for node_id in group.nodes}
            async with connect(addresses, group="g", timeout=60) as client:
                for _ in range(3):
                    await client.append(b"third")
                assert framed(client) == [False]
        finally:
            await foreign.close()
