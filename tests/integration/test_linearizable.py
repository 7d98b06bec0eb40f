"""Reads at every node while appends go on and leadership moves, judged by the checker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest

from dledger import Entry, EntryType, ReadMode
from dledger.chaos.failover import Load, read_log
from dledger.checker import History, Read, check
from dledger.errors import DLedgerError, StoppedError
from tests.integration.conftest import OneNode, Servers, eventually


async def reader(node_id: str, node: OneNode, history: History, stop: asyncio.Event) -> int:
    """Read at one node until told to stop; what it showed goes into the history."""
    answered = 0
    number = 100 + int(node_id[1:])
    while not stop.is_set():
        linearizable = answered % 4 != 3
        mode = ReadMode.LINEARIZABLE if linearizable else ReadMode.LOCAL_COMMITTED
        call = time.monotonic()
        try:
            length = await node.commit_index(mode) + 1
            first = max(length - 5, 0)
            values: list[str | None] = []
            if answered % 2 and length:
                # The newest entries themselves. Two calls: the length is what the log had at least by the second.
                for entry in await node.entries(first, length - 1, mode):
                    values.append(entry.body.rstrip(b".").decode() if entry.type is EntryType.NORMAL else None)
                assert len(values) == length - first
        except DLedgerError:
            continue
        # A ReadIndex answer promises "at least": nothing acknowledged may be missing, more may be there.
        history.add_read(Read(number, call, time.monotonic(), linearizable, length, None, first, values, node_id))
        if linearizable:
            newest = max(
                (index for index, ret in zip(history.indexes, history.rets, strict=True) if ret < call), default=-1
            )
            assert length > newest, f"{node_id} showed {length} entries; index {newest} had been acknowledged"
        answered += 1
    return answered


@pytest.mark.asyncio
async def test_reads_at_all_nodes_see_all_that_was_acknowledged(servers) -> None:
    """Every node answers, followers too; leadership is handed around meanwhile; then the checker judges."""
    group: Servers = servers()
    await group.start()
    await group.wait_leader()
    await group.wait_caught_up()
    stop = asyncio.Event()
    direct = {node_id: group.one_node(node_id) for node_id in group.node_ids}
    async with group.connect() as client:
        load = Load(client, 4, entry_bytes=32)
        load.pace_s = 0.01
        readers = [asyncio.ensure_future(reader(name, node, load.history, stop)) for name, node in direct.items()]
        try:
            for target in ("n0", "n1", "n2"):
                await load.wait_acks(60)
                if group.leader() != target:
                    assert await client.transfer_leadership(target) == target
            await load.wait_acks(60)
        finally:
            stop.set()
            await load.stop()
            counts = await asyncio.gather(*readers)
            for node in direct.values():
                await node.__aexit__()
        log, _ = await read_log(client)
    assert not load.failures
    assert min(counts) > 5, f"reads answered at n0, n1, n2: {counts}"
    verdict = check(load.history, log)
    assert verdict.ok, verdict.report()
    assert verdict.reads == sum(counts)


@pytest.mark.asyncio
async def test_a_follower_that_was_cut_off_from_its_leader_answers_locally_only(servers) -> None:
    """Without a majority a linearizable read fails, it does not lie; a local one still answers what is committed."""
    group: Servers = servers(
        settings={"electionTimeoutMs": "300", "heartBeatTimeIntervalMs": "100", "maxWaitAckTimeMs": "600"}
    )
    await group.start()
    leader = await group.wait_leader()
    async with group.connect() as client:
        index = (await client.append(b"kept")).index
        await group.wait_caught_up()
    follower = next(node_id for node_id in group.node_ids if node_id != leader)
    await group.stop(*(node_id for node_id in group.node_ids if node_id != follower))
    async with group.one_node(follower) as direct:
        with pytest.raises(DLedgerError):
            await direct.get(index, timeout=2.0)
        assert (await direct.get(index, mode=ReadMode.LOCAL_COMMITTED)).body == b"kept"


@pytest.mark.asyncio
async def test_a_leader_that_is_cut_off_and_does_not_know_it_serves_nothing_stale(servers, monkeypatch) -> None:
    """Its clients still reach it, its peers do not, and its own patience is long: it believes that it leads.

    Without a round of the quorum for each read it would show an old log as the newest.
    """
    group: Servers = servers()
    await group.start("n0", electionTimeoutMs="6000")
    await group.start("n1", "n2", electionTimeoutMs="300", heartBeatTimeIntervalMs="50")
    await group.wait_leader()
    await group.wait_caught_up()
    async with group.connect() as client:
        if group.leader() != "n0":
            assert await client.transfer_leadership("n0") == "n0"
        before = (await client.append(b"before")).index
    old = group.nodes["n0"]
    async with group.one_node("n0") as direct, group.connect("n1", "n2") as client:
        assert await direct.commit_index() >= before
        monkeypatch.setattr(old.driver, "on_message", lambda _: None)
        monkeypatch.setattr(old.driver._transport, "send", lambda *_: None)
        await eventually(lambda: group.leader() in {"n1", "n2"}, 5, "the others elect")
        assert old.driver.core.is_leader, "it knows already: the test shows nothing"
        reads = [asyncio.ensure_future(direct.commit_index(timeout=1.0)) for _ in range(4)]
        gets = [asyncio.ensure_future(direct.get(before, timeout=1.0)) for _ in range(4)]
        taken = [asyncio.ensure_future(old.append(b"stale %d" % number)) for number in range(4)]
        after = (await client.append(b"after")).index
        assert after > before
        reads += [asyncio.ensure_future(direct.commit_index(timeout=1.0)) for _ in range(4)]
        answers = await asyncio.gather(*reads, *gets, return_exceptions=True)
        assert all(isinstance(answer, DLedgerError) for answer in answers), answers
        assert await direct.commit_index(ReadMode.LOCAL_COMMITTED) == before, "a local read may be old, and says so"
        assert old.driver.core.is_leader
        monkeypatch.undo()
        results = await asyncio.gather(*taken, return_exceptions=True)
        assert all(isinstance(result, DLedgerError) for result in results), results
        assert await direct.commit_index() >= after
        bodies = [entry.body async for entry in client.read()]
        assert bodies == [b"before", b"after"], "what the old leader had taken was truncated"


class Slow:
    """A state machine that is always a little behind the log."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    async def apply(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            await asyncio.sleep(0.001)
            if entry.type is EntryType.NORMAL:
                self.bodies.append(entry.body)


@pytest.mark.asyncio
async def test_after_a_read_barrier_the_state_machine_of_any_node_has_all_that_was_acknowledged(servers) -> None:
    group: Servers = servers()
    machines = {node_id: Slow() for node_id in group.node_ids}
    for node_id, machine in machines.items():
        await group.start(node_id, machine=machine)
    await group.wait_leader()
    written: list[bytes] = []
    async with group.connect() as client:
        for number in range(5):
            bodies = [b"%d:%d" % (number, n) for n in range(20)]
            await client.append_many(bodies)
            written += bodies
            behind = 0
            for node_id, node in group.nodes.items():
                behind += len(machines[node_id].bodies) < len(written)
                await node.read_barrier()
                assert machines[node_id].bodies == written, node_id
            assert behind > 0, "no machine was behind: the test shows nothing"
        follower = next(node_id for node_id in group.node_ids if node_id != group.leader())
        waiting = asyncio.ensure_future(group.nodes[follower].driver.wait_applied(10**6))
        await asyncio.sleep(0)
        await group.stop(follower)
        with pytest.raises(StoppedError):
            await waiting
