"""One node, five nodes, two of three, and a group without disks."""

from __future__ import annotations

import asyncio
import signal

import pytest

from dledger import ReadMode
from dledger.errors import UnavailableError
from tests.integration.conftest import eventually


@pytest.mark.asyncio
async def test_a_group_of_one_leads_at_once_and_keeps_its_log(processes) -> None:
    group = await processes(nodes=1)
    async with group.connect() as client:
        indexes = (await client.append_many([b"%d" % number for number in range(200)])).indexes()
        assert indexes == list(range(indexes[0], indexes[0] + 200))
        await group.kill("n0")
        await group.restart("n0")
        assert await group.wait_leader() == "n0"
        await client.append(b"after the kill")
        bodies = [entry.body async for entry in client.read()]
    assert bodies == [b"%d" % number for number in range(200)] + [b"after the kill"]
    assert group.node("n0").pid is not None


@pytest.mark.asyncio
async def test_five_nodes_lose_two_leaders_and_go_on_and_three_are_not_enough_to_lose(servers) -> None:
    group = servers(5, {"electionTimeoutMs": "300", "heartBeatTimeIntervalMs": "50"})
    await group.start()
    async with group.connect() as client:
        await client.append(b"five")
        await group.wait_caught_up()
        await group.stop(await group.wait_leader())
        await client.append(b"four")
        await group.stop(await group.wait_leader())
        await client.append(b"three")
        assert [entry.body async for entry in client.read()] == [b"five", b"four", b"three"]
        await group.wait_caught_up()
        await group.stop(next(node_id for node_id in group.nodes if node_id != group.leader()))
        with pytest.raises(UnavailableError):
            await client.commit_index(timeout=1.0)
        assert await client.commit_index(ReadMode.LOCAL_COMMITTED) >= 2


@pytest.mark.asyncio
async def test_two_of_three_nodes_of_a_new_group_elect_a_leader(servers) -> None:
    """The third need never have been there: votes of fresh nodes count in full while no log has an entry."""
    group = servers()
    await group.start("n0", "n2")
    leader = await group.wait_leader()
    async with group.connect() as client:
        await client.append(b"two of three")
        await group.start("n1")
        await group.wait_caught_up()
        await eventually(lambda: group.nodes["n1"].status().leader_id == leader, 5, "the third follows")
        assert group.leader() == leader, "the latecomer disturbed the leader"
        assert [entry.body async for entry in client.read()] == [b"two of three"]


@pytest.mark.asyncio
async def test_a_group_in_memory_replicates_and_forgets(processes) -> None:
    group = await processes(settings={"storeType": "MEMORY"})
    async with group.connect() as client:
        await client.append_many([b"%d" % number for number in range(100)])
        leader = await group.wait_leader()
        await group.kill(leader)
        await client.append(b"survives its leader")
        assert len([entry async for entry in client.read()]) == 101
        for node in group.nodes.values():
            assert not node.data_dir.exists(), "a group in memory wrote to disk"
        status = await group.status()
        assert {found.store_type for found in status.values() if found} == {"MEMORY"}
        assert group.node(leader).exit_code == -signal.SIGKILL
        # What was killed has forgotten everything, and gets it from the others.
        await group.restart(leader)
        caught_up = await group.wait_caught_up(leader)
        assert caught_up.commit_index >= 100


@pytest.mark.asyncio
async def test_a_server_stops_twice_and_its_port_and_folder_are_free_again(servers) -> None:
    group = servers(1)
    await group.start()
    await group.wait_leader()
    server = group.nodes["n0"]
    result = await server.append(b"embedded")
    assert (await server.get(result.index)).body == b"embedded"
    await asyncio.gather(server.stop(), server.stop())
    await server.stop()
    await group.start()
    await group.wait_leader()
    assert [entry.body async for entry in group.nodes["n0"].read()] == [b"embedded"]
