"""Nodes that are stopped whatever the test did."""

from __future__ import annotations

import pytest_asyncio
from grpc import aio

from tests.rpc.fakes import Node, started


@pytest_asyncio.fixture(params=["grpc", "frames"])
async def nodes(request):
    """``await nodes("n0", "n1")`` → connected nodes; all are stopped afterwards. By gRPC streams, and by frames."""
    made: list[Node] = []

    async def make(*node_ids, **kwargs):
        new = await started(*node_ids, **{"framed": request.param == "frames"} | kwargs)
        made.extend(new)
        return new

    yield make
    for node in made:
        await node.stop()


@pytest_asyncio.fixture
async def node():
    """One node that listens and runs, with nobody else in its group but ``n1`` at a port where nobody listens."""
    one = Node("n0")
    await one.listen({"n0": "127.0.0.1:1", "n1": "127.0.0.1:1"})
    await one.start({})
    yield one
    await one.stop()


@pytest_asyncio.fixture
async def channel(node):
    """A client's channel to ``node``."""
    async with aio.insecure_channel(f"127.0.0.1:{node.port}") as open_channel:
        yield open_channel
