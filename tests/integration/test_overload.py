"""Many times more than the leader will hold: refused at once, memory flat, and nothing lost afterwards."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc.aio
import pytest

from dledger.errors import ResponseCode
from dledger.local_group import LocalGroup
from dledger.v1 import ledger_pb2, ledger_pb2_grpc

PENDING_BYTES = 1024 * 1024
TIMES_OFFERED = 120
CLIENTS = 5
BATCH = 16
BODY_BYTES = 16 * 1024
BATCHES_A_CLIENT = TIMES_OFFERED * PENDING_BYTES // (CLIENTS * BATCH * BODY_BYTES)

GROWTH_BYTES = 80 * 1024 * 1024
"""Generous for 1 MiB pending, and well below the 120 MiB that are offered. Most of it is gRPC's flow-control windows."""


def resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


class Flood:
    """A raw append stream that sends everything without waiting for answers: the client library would hold back."""

    def __init__(self, group: LocalGroup, address: str, name: bytes, codes: dict[bytes, int]) -> None:
        self._group = group
        self._address = address
        self._name = name
        self._codes = codes

    def _requests(self):
        for number in range(BATCHES_A_CLIENT):
            bodies = [(b"%b:%d:%d" % (self._name, number, n)).ljust(BODY_BYTES, b".") for n in range(BATCH)]
            yield ledger_pb2.AppendBatchRequest(group=self._group.group, bodies=bodies, request_id=number)

    async def run(self) -> None:
        async with grpc.aio.insecure_channel(self._address) as channel:
            async for answer in ledger_pb2_grpc.LedgerServiceStub(channel).AppendStream(self._requests()):
                self._codes[b"%b:%d" % (self._name, answer.request_id)] = answer.header.code


@pytest.mark.asyncio
async def test_a_hundred_and_twenty_times_the_pending_limit_from_five_clients(processes) -> None:
    """The followers hang meanwhile, so that nothing commits and what is pending stays pending."""
    group = await processes(
        settings={
            "maxPendingBytes": str(PENDING_BYTES),
            "maxBatchBytes": "1MiB",
            "maxEntryBytes": "64KiB",
            "tailCacheBytes": "1MiB",
            "electionTimeoutMs": "6000",
        }
    )
    leader = await group.wait_leader()
    followers = [node_id for node_id in group.nodes if node_id != leader]
    pid = group.node(leader).pid
    assert pid is not None
    codes: dict[bytes, int] = {}
    async with group.connect() as client:
        await client.append_many([b"warm"] * 1000)
        for node_id in followers:
            group.pause(node_id)
        before = peak = resident_bytes(pid)
        address = group.node(leader).address
        floods = [asyncio.ensure_future(Flood(group, address, b"c%d" % n, codes).run()) for n in range(CLIENTS)]
        try:
            async with asyncio.timeout(20):
                # What the leader refuses it refuses at once, though nothing moves.
                while len(codes) < CLIENTS * BATCHES_A_CLIENT * 8 // 10:
                    peak = max(peak, resident_bytes(pid))
                    await asyncio.sleep(0.01)
            assert set(codes.values()) == {ResponseCode.LEADER_PENDING_FULL}
            for node_id in followers:
                group.resume(node_id)
            async with asyncio.timeout(20):
                await asyncio.gather(*floods)
        finally:
            for node_id in followers:
                group.resume(node_id)
            for flood in floods:
                flood.cancel()
            await asyncio.gather(*floods, return_exceptions=True)
        peak = max(peak, resident_bytes(pid))
        taken = [batch for batch, code in codes.items() if code == ResponseCode.SUCCESS]
        assert len(codes) == CLIENTS * BATCHES_A_CLIENT
        assert set(codes.values()) == {ResponseCode.SUCCESS, ResponseCode.LEADER_PENDING_FULL}
        assert taken
        assert peak - before < GROWTH_BYTES, f"the leader grew by {(peak - before) / 2**20:.0f} MiB"
        # What was acknowledged is there once, what was refused is not there at all.
        found = [entry.body.rstrip(b".") async for entry in client.read() if entry.body != b"warm"]
        assert sorted(found) == sorted(b"%b:%d" % (batch, n) for batch in taken for n in range(BATCH))
        await client.append(b"and it goes on")
    for node_id in group.nodes:
        await group.wait_caught_up(node_id)


@pytest.mark.asyncio
async def test_the_client_library_rides_out_a_full_leader(servers) -> None:
    """Five clients with a thousand appends in flight each, a leader that holds a hundred: slower, and all arrive once."""
    group = servers(settings={"maxPendingRequestsNum": "100", "maxBatchEntries": "50"})
    await group.start()
    leader = group.nodes[await group.wait_leader()]
    refused = 0
    refuse = leader.driver.appends.refuse

    def counting(count: int, byte_count: int):
        nonlocal refused
        error = refuse(count, byte_count)
        refused += error is not None
        return error

    leader.driver.appends.refuse = counting  # type: ignore[method-assign]
    clients = [group.connect() for _ in range(5)]
    try:
        results = await asyncio.gather(
            *(client.append(b"%d:%d" % (name, n)) for name, client in enumerate(clients) for n in range(1000))
        )
        assert len({result.index for result in results}) == 5000
        bodies = [entry.body async for entry in clients[0].read()]
    finally:
        await asyncio.gather(*(client.close() for client in clients))
    assert refused > 0, "the leader was never full: the test shows nothing"
    assert len(bodies) == 5000
    for name in range(5):
        own = [body for body in bodies if body.startswith(b"%d:" % name)]
        assert own == [b"%d:%d" % (name, n) for n in range(1000)], "order of one client"
