"""Pipelines on the in-memory group, clients on real ports; each test ends with no task left."""

from __future__ import annotations

import asyncio
import gc
import random

import pytest_asyncio

from dledger.client import connect
from dledger.client.discovery import Directory
from dledger.client.options import PipelineOptions
from dledger.client.pipeline import AppendPipeline
from tests.client.group import FakeGroup, GrpcNode, MemoryTransport


class Bench:
    """A pipeline, its transport and its group."""

    def __init__(self, group=None, *, delay_s=0.0, **options):
        self.group = group or FakeGroup()
        self.transport = MemoryTransport(self.group, delay_s=delay_s)
        self.directory = Directory({node: node for node in self.group.node_ids})
        self.pipeline = AppendPipeline(self.transport, self.directory, PipelineOptions(**options), random.Random(7))
        self.queue = self.pipeline.queue

    def submit(self, body, timeout=5.0):
        return self.queue.submit(body, timeout)

    def submit_many(self, bodies, timeout=5.0):
        return self.queue.submit_many(bodies, timeout)


async def settled(condition, limit_s=5.0):
    """Let the loop turn until the condition holds."""
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110 - about plain state, which signals nothing
            await asyncio.sleep(0.001)


@pytest_asyncio.fixture
async def bench():
    """Make benches; at the end close them and see that nothing is left."""
    made = []

    def make(*args, **kwargs):
        made.append(Bench(*args, **kwargs))
        return made[-1]

    yield make
    for one in made:
        await one.pipeline.close()
    for one in made:
        assert one.queue.pending_count == 0
        assert one.queue.pending_bytes == 0
        assert one.transport.open_count == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest_asyncio.fixture(params=["grpc", "frames"])
async def nodes(request):
    """Three nodes of one group on real ports; without and with one for frames."""
    group = FakeGroup()
    framed = request.param == "frames"
    started = {node_id: await GrpcNode(group, node_id, framed).start() for node_id in group.node_ids}
    yield started
    for node in started.values():
        await node.kill()


@pytest_asyncio.fixture
async def client(nodes):
    group = nodes["n0"].group
    made = connect(dict(group.addresses), group=group.name, timeout=5.0, rng=random.Random(7))
    yield made
    await made.close()
    gc.collect()
