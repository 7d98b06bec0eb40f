"""Disks of real processes: one whose sync fails, one that is full, one that is slow."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from dledger import connect
from dledger.chaos.disks import why_no_shim
from dledger.chaos.group import ChaosGroup
from dledger.cli.exit_codes import ExitCode
from dledger.errors import DiskFullError, UnavailableError
from tests.chaos.conftest import leaders_since, loaded, log_marks, until

pytestmark = pytest.mark.skipif(why_no_shim() is not None, reason=f"skipped: {why_no_shim()}")

ON_THE_WAY_S = 0.25


@pytest.mark.asyncio
async def test_a_leader_whose_sync_fails_stops_and_acknowledges_nothing_more(
    chaos_group: Callable[..., ChaosGroup],
) -> None:
    group = chaos_group(with_disks=True)
    async with group, loaded(group) as load:
        leader = await group.wait_leader()
        term = load.term
        marks = log_marks(group)
        disk, node = group.disks[leader], group.node(leader)
        disk.fail_syncs()
        await until(lambda: disk.failed_syncs > 0, 5, "the first failed sync")
        failed_at = time.monotonic()
        # Between the failed call and the end of the process: at most a second.
        await until(lambda: node.pid is None, 1.0, "the node's end")
        assert node.process is not None and node.process.returncode == ExitCode.FAILED
        assert "fdatasync" in node.log_tail() or "fsync" in node.log_tail()
        await load.wait(lambda: load.term > term, 10, "an acknowledgement of another leader")
        # What was on the way when the sync failed may still arrive; nothing is acknowledged after it.
        by_the_failed = [at for at, of in zip(load.times, load.terms, strict=True) if of == term]
        assert max(by_the_failed) < failed_at + ON_THE_WAY_S
        assert [node_id for node_id, _ in leaders_since(group, marks)][-1] != leader
        # Nothing was tried again on a disk that had failed once.
        assert disk.failed_syncs <= 2
        disk.heal()
        await group.restart(leader)
        await group.wait_caught_up(leader)
        assert not load.failures


@pytest.mark.asyncio
async def test_a_full_disk_moves_leadership_and_the_node_returns_with_space(
    chaos_group: Callable[..., ChaosGroup],
) -> None:
    group = chaos_group(with_disks=True)
    async with group, loaded(group) as load:
        leader = await group.wait_leader()
        pids = [node.pid for node in group.nodes.values()]
        term = load.term
        group.disks[leader].fill(1000)
        await load.wait(lambda: load.term > term, 5, "an acknowledgement of another leader")
        await load.wait_acks(100)
        assert group.disks[leader].refused_writes > 0
        assert await group.leader() != leader
        status = (await group.status())[leader]
        assert status is not None and "full" in status.note
        group.disks[leader].heal()
        await group.wait_caught_up(leader, 10)
        assert [node.pid for node in group.nodes.values()] == pids
        assert not load.failures


@pytest.mark.asyncio
async def test_when_all_disks_are_full_the_client_is_told_within_a_second(
    chaos_group: Callable[..., ChaosGroup],
) -> None:
    group = chaos_group(with_disks=True)
    async with group:
        await group.wait_leader()
        pids = [node.pid for node in group.nodes.values()]
        async with connect(group.addresses(), group=group.group, timeout=20.0) as client:
            first = await client.append(b"before")
            for disk in group.disks.values():
                disk.fill(0)
            began = asyncio.get_running_loop().time()
            # A leader without room gives up; where nobody has any, there is none to take over.
            with pytest.raises((DiskFullError, UnavailableError)) as caught:
                await client.append(b"x" * 100_000, timeout=0.9)
            assert asyncio.get_running_loop().time() - began < 1.5
            assert caught.value.retriable
            for status in (await group.status()).values():
                assert status is not None and "full" in status.note
            for disk in group.disks.values():
                disk.heal()
            last = await client.append(b"after")
            assert last.index > first.index
            assert (await client.get(first.index)).body == b"before"
        assert [node.pid for node in group.nodes.values()] == pids


@pytest.mark.asyncio
async def test_one_slow_disk_among_followers_slows_nobody(chaos_group: Callable[..., ChaosGroup]) -> None:
    group = chaos_group(with_disks=True)
    async with group, loaded(group) as load:
        leader = await group.wait_leader()
        marks = log_marks(group)
        slow = next(node_id for node_id in group.node_ids if node_id != leader)
        group.disks[slow].slow(1.0)
        began = asyncio.get_running_loop().time()
        await load.wait_acks(200)
        assert asyncio.get_running_loop().time() - began < 10.0, "each append waits for the slow disk"
        group.disks[slow].heal()
        await group.wait_caught_up(slow)
        assert leaders_since(group, marks) == []
        assert not load.failures
