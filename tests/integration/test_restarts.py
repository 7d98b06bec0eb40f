"""Nodes that go and come back: all at once, with an empty folder, far behind, after a hang, on a slow disk."""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path

import pytest

from dledger.chaos.failover import log_digest, read_log
from dledger.errors import QuorumTimeoutError, UnavailableError
from dledger.storage.filesystem import RealFileSystem
from dledger.storage.verify import verify_directory
from tests.integration.conftest import eventually


@pytest.mark.asyncio
async def test_all_three_killed_at_once_lose_nothing_acknowledged(processes) -> None:
    """Under load, so that the kill hits writes half done; twice, so that recovery itself is recovered from."""
    group = await processes()
    acknowledged: dict[int, bytes] = {}
    for life in range(2):
        async with group.connect(session=False) as client:
            tasks = [asyncio.ensure_future(_append_until_failure(client, life, n, acknowledged)) for n in range(16)]
            goal = len(acknowledged) + 500
            await eventually(lambda goal=goal: len(acknowledged) > goal, 20, "500 acknowledgements")
            await asyncio.gather(*(group.kill(node_id) for node_id in group.nodes))
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for node_id in group.nodes:
            await group.restart(node_id)
        await group.wait_leader()
    async with group.connect() as client:
        log = {entry.index: entry.body async for entry in client.read()}
        lost = {index: body for index, body in acknowledged.items() if log.get(index) != body}
        assert not lost
        await client.append(b"and it goes on")
        _, end_pos = await read_log(client)
    for node_id in group.nodes:
        await group.wait_caught_up(node_id)
    await group.stop()
    assert len({log_digest(node.data_dir, end_pos) for node in group.nodes.values()}) == 1


async def _append_until_failure(client, life: int, worker: int, acknowledged: dict[int, bytes]) -> None:
    number = 0
    while True:
        body = b"%d:%d:%d" % (life, worker, number)
        acknowledged[(await client.append(body)).index] = body
        number += 1


@pytest.mark.asyncio
async def test_a_node_whose_folder_was_deleted_comes_back_by_catch_up(processes) -> None:
    """Until it has, its vote counts only provisionally: with the other follower alone it makes no leader.

    It may have acknowledged entries that it lost; were its vote full, a leader without them could be elected.
    """
    group = await processes(settings={"electionTimeoutMs": "300", "heartBeatTimeIntervalMs": "100"})
    leader = await group.wait_leader()
    wiped, other = [node_id for node_id in group.nodes if node_id != leader]
    async with group.connect() as client:
        await client.append_many([b"%d" % number for number in range(500)])
        await group.wait_caught_up(other)
        await group.kill(wiped)
        shutil.rmtree(group.node(wiped).data_dir)
        await group.kill(leader)
        await group.restart(wiped)
        async with asyncio.timeout(20):
            while (await group.status())[wiped] is None:  # noqa: ASYNC110 - a process that starts signals nothing
                await asyncio.sleep(0.05)
        # Two of three are up, one of them without memory: nobody may lead.
        with pytest.raises(UnavailableError):
            await client.commit_index(timeout=2.5)
        found = await group.status()
        for status in found.values():
            assert status is None or status.role != "leader"
        assert found[wiped] is not None
        assert found[wiped].last_index == -1
        # With the third one everybody votes, the provisional vote counts, and the wiped node gets everything.
        await group.restart(leader)
        await group.wait_leader()
        caught_up = await group.wait_caught_up(wiped)
        assert caught_up.commit_index >= 500
        async with asyncio.timeout(30):  # known to be committed is a moment before durable here
            while (await group.status())[wiped].note:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        log, end_pos = await read_log(client)
        assert [value for value in log if value is not None][:500] == [str(number) for number in range(500)]
        # And its vote is whole again: it carries a leader together with one other.
        await group.wait_caught_up(leader)
        await group.kill(await group.wait_leader())
        await group.wait_leader(20)
    await group.stop()
    assert len({log_digest(node.data_dir, end_pos) for node in group.nodes.values()}) == 1


@pytest.mark.asyncio
async def test_a_leader_commits_nothing_with_a_wiped_node_alone(processes) -> None:
    """The third is away: it could lead by now, and have committed with the wiped one what that one knows nothing of.

    The leader says what it waits for, and goes on as soon as the third is back.
    """
    group = await processes(settings={"electionTimeoutMs": "8000"})
    leader = await group.wait_leader()
    wiped, away = [node_id for node_id in group.nodes if node_id != leader]
    async with group.connect() as client:
        await client.append_many([b"%d" % number for number in range(50)])
        for node_id in (wiped, away):
            await group.wait_caught_up(node_id)
            await group.kill(node_id)
        shutil.rmtree(group.node(wiped).data_dir)
        await group.restart(wiped)
        waiting = asyncio.ensure_future(client.append(b"waits"))

        async def note() -> str:
            status = (await group.status())[leader]
            return "" if status is None else status.note

        async with asyncio.timeout(20):
            while f"{wiped} lost its data" not in await note():  # noqa: ASYNC110 - nothing signals it
                await asyncio.sleep(0.05)
        assert not waiting.done()
        await group.restart(away)
        index = (await waiting).index
        assert (await client.get(index)).body == b"waits"
        async with asyncio.timeout(30):
            while any(status is None or status.note for status in (await group.status()).values()):  # noqa: ASYNC110
                await asyncio.sleep(0.05)


@pytest.mark.asyncio
async def test_a_follower_behind_by_more_than_the_cache_catches_up_from_disk_while_appends_go_on(servers) -> None:
    group = servers(settings={"tailCacheBytes": "64KiB", "mappedFileSizeForEntryData": "1MiB", "maxEntryBytes": "4KiB"})
    await group.start()
    leader = await group.wait_leader()
    late = next(node_id for node_id in group.node_ids if node_id != leader)
    async with group.connect() as client:
        await client.append(b"before")
        await group.wait_caught_up()
        await group.stop(late)
        await client.append_many([b"%6d" % number + b"x" * 1000 for number in range(3000)])
        assert group.nodes[leader].driver.store.cached(1, 1, 1) is None, "the beginning must have left the cache"
        stop = False

        async def work(worker: int) -> int:
            number = 0
            while not stop:
                await client.append(b"%d:%d" % (worker, number))
                number += 1
            return number

        tasks = [asyncio.ensure_future(work(worker)) for worker in range(4)]
        try:
            await group.start(late)
            goal = group.nodes[leader].driver.core.commit_index
            await eventually(lambda: group.nodes[late].driver.core.commit_index >= goal, 20, "the late one catches up")
        finally:
            stop = True
            done = await asyncio.gather(*tasks)
        assert min(done) > 0, "appends stood still meanwhile"
        await group.wait_caught_up()
        log, end_pos = await read_log(client)
    assert group.nodes[late].driver.store.end_pos == end_pos
    await group.stop()
    directories = {group.config(node_id).node_dir for node_id in group.node_ids}
    assert len({log_digest(directory, end_pos) for directory in directories}) == 1
    assert len(log) > 3000


@pytest.mark.asyncio
async def test_a_node_killed_while_it_catches_up_goes_on_from_there(processes) -> None:
    """History is written in large pieces, which are not kept in memory, while clients append; kill -9 in the middle, three times."""
    settings = {"tailCacheBytes": "64KiB", "maxAppendBytes": "256KiB", "maxCatchUpBytes": "8MiB"}
    group = await processes(settings={**settings, "mappedFileSizeForEntryData": "8MiB"})
    leader = await group.wait_leader()
    late = next(node_id for node_id in group.nodes if node_id != leader)
    async with group.connect() as client:
        await group.wait_caught_up(late)
        await group.kill(late)
        shutil.rmtree(group.node(late).data_dir)
        for size in (100, 1000, 17, 3000):  # long runs of one size, and what is not uniform
            await client.append_many([b"%6d" % number + b"x" * size for number in range(6_000_000 // (size + 54))])
        await client.append_many([b"y" * (number * 37 % 5000) for number in range(500)])
        goal, stop = await client.commit_index(), False

        async def work() -> None:
            while not stop:
                await client.append(b"meanwhile")

        tasks = [asyncio.ensure_future(work()) for _ in range(4)]
        try:
            reached = [0]
            for _ in range(3):
                await group.restart(late)
                async with asyncio.timeout(20):
                    while not (status := (await group.status())[late]) or status.commit_index <= reached[-1]:  # noqa: ASYNC110
                        await asyncio.sleep(0.02)
                reached.append(status.commit_index)
                await group.kill(late)
            await group.restart(late)
        finally:
            stop = True
            await asyncio.gather(*tasks)
        assert reached[-1] < goal, "killed in the middle"
        await group.wait_caught_up(late)
        _, end_pos = await read_log(client)
    await group.stop()
    assert len({log_digest(node.data_dir, end_pos) for node in group.nodes.values()}) == 1
    for node in group.nodes.values():
        found = verify_directory(RealFileSystem(), str(node.data_dir))
        assert (found.damage, found.torn_tail, found.last_index >= goal) == ([], None, True)


@pytest.mark.asyncio
async def test_a_follower_that_hangs_for_five_seconds_holds_up_nobody_and_catches_up(processes) -> None:
    group = await processes()
    leader = await group.wait_leader()
    follower = next(node_id for node_id in group.nodes if node_id != leader)
    async with group.connect() as client:
        term = (await client.append(b"first")).term
        group.pause(follower)
        end = time.monotonic() + 5
        worst = count = 0.0
        while time.monotonic() < end:
            began = time.monotonic()
            assert (await client.append(b"x" * 10_000)).term == term, "the leader lost its office to a hung follower"
            worst = max(worst, time.monotonic() - began)
            count += 1
        assert count > 100
        assert worst < 1, f"an append took {worst:.3f} s"
        group.resume(follower)
        found = await group.wait_caught_up(follower)
        assert found.commit_index >= count
        assert (await client.append(b"last")).term == term, "the woken follower disturbed the leader"


class SlowDisk(RealFileSystem):
    """Every sync takes 60 ms more."""

    def sync(self, handle: int) -> None:
        time.sleep(0.06)
        super().sync(handle)


@pytest.mark.asyncio
async def test_a_leader_with_a_slow_disk_goes_on_with_its_followers_disks(servers, monkeypatch) -> None:
    """The leader counts itself only when durable, but two fast followers are a majority: its disk delays nobody."""
    group = servers()
    monkeypatch.setattr("dledger.server.RealFileSystem", SlowDisk)
    await group.start("n0")
    monkeypatch.undo()
    await group.start("n1", "n2")
    await group.wait_leader()
    await group.wait_caught_up()
    async with group.connect() as client:
        if group.leader() != "n0":
            assert await client.transfer_leadership("n0") == "n0"
        await client.append(b"warm")
        times = []
        for number in range(20):
            began = time.monotonic()
            await client.append(b"%d" % number)
            times.append(time.monotonic() - began)
    assert sorted(times)[10] < 0.06, f"median {sorted(times)[10]:.3f} s: appends wait for the slow disk"
    leader = group.nodes["n0"].driver
    assert leader.core.is_leader
    assert leader.core.commit_index >= 20


@pytest.mark.asyncio
async def test_without_a_majority_nothing_is_acknowledged_and_later_nothing_is_lost(servers) -> None:
    group = servers(settings={"maxWaitAckTimeMs": "400"})
    await group.start()
    leader = await group.wait_leader()
    await group.wait_caught_up()
    others = [node_id for node_id in group.node_ids if node_id != leader]
    async with group.connect(timeout=15) as client:
        await client.append(b"before")
        await group.stop(*others)
        # Refused or unknown, but never acknowledged.
        with pytest.raises((QuorumTimeoutError, UnavailableError)):
            async with group.connect(timeout=1.5, session=False) as other:
                await other.append(b"alone")
        waiting = client.append_nowait(b"patient")
        await group.start(*others)
        assert (await waiting).index > 0
        bodies = [entry.body async for entry in client.read()]
    assert bodies.count(b"patient") == 1
    assert bodies.count(b"alone") <= 1


@pytest.mark.asyncio
async def test_the_preferred_leader_leads_again_after_its_restart(servers) -> None:
    group = servers(settings={"preferredLeaderId": "n1", "electionTimeoutMs": "300", "heartBeatTimeIntervalMs": "50"})
    await group.start()
    await eventually(lambda: group.leader() == "n1", 10, "n1 leads")
    async with group.connect() as client:
        await group.wait_caught_up()
        await group.stop("n1")
        await eventually(lambda: group.leader() in {"n0", "n2"}, 10, "another leads")
        await client.append_many([b"%d" % number for number in range(100)])
        await group.start("n1")
        await eventually(lambda: group.leader() == "n1", 10, "n1 leads again")
        assert len([entry async for entry in client.read()]) == 100
        await client.append(b"under the preferred leader")


def test_the_digest_sees_one_changed_byte(tmp_path: Path) -> None:
    """What proves logs equal must be able to tell them apart."""
    (tmp_path / "a" / "data").mkdir(parents=True)
    (tmp_path / "b" / "data").mkdir(parents=True)
    name = "0" * 20
    (tmp_path / "a" / "data" / name).write_bytes(b"0123456789")
    (tmp_path / "b" / "data" / name).write_bytes(b"01234567x9")
    assert log_digest(tmp_path / "a", 8) == log_digest(tmp_path / "b", 8)
    assert log_digest(tmp_path / "a", 9) != log_digest(tmp_path / "b", 9)
