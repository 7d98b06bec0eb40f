"""Groups of real processes: started, hung, killed, restarted, ended; and nothing left behind."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest

from dledger.errors import ConfigError, UnavailableError
from dledger.local_group import LocalGroup, free_ports
from tests.processes import runs


@pytest.mark.asyncio
async def test_a_life_of_a_group(tmp_path: Path) -> None:
    async with LocalGroup(tmp_path / "group", settings={"electionTimeoutMs": "400"}) as group:
        pids = [node.pid for node in group.nodes.values()]
        leader = await group.leader()
        assert leader in group.nodes
        async with group.connect() as client:
            first = await client.append(b"one")
            # A hung leader is replaced, and comes back as a follower.
            group.pause(leader)
            second_leader = await group.wait_leader(20, other_than=leader)
            assert second_leader != leader
            await client.append(b"two")
            group.resume(leader)
            assert (await group.wait_caught_up(leader)).commit_index > first.index
            # A killed one is restarted on its folder.
            await group.kill(second_leader)
            assert group.node(second_leader).exit_code == -signal.SIGKILL
            assert (await group.status())[second_leader] is None
            await group.wait_leader(20, other_than=second_leader)
            await client.append(b"three")
            await group.restart(second_leader)
            await group.wait_caught_up(second_leader)
            assert [entry.body async for entry in client.read()] == [b"one", b"two", b"three"]
        pids += [group.node(second_leader).pid]
        last = group.node(leader)
        await group.stop_node(leader)
        assert last.exit_code == 0
    assert not any(runs(pid) for pid in pids if pid is not None)
    assert all(node.pid is None for node in group.nodes.values())


@pytest.mark.asyncio
async def test_a_group_that_has_started_can_lose_its_leader_at_once(tmp_path: Path) -> None:
    async with LocalGroup(tmp_path / "group") as group:
        assert [status.note for status in (await group.status()).values() if status] == ["", "", ""]
    async with LocalGroup(tmp_path / "other") as group:
        leader = await group.wait_leader()
        await group.kill(leader)
        assert await group.wait_leader(20, other_than=leader) != leader


@pytest.mark.asyncio
async def test_a_node_that_cannot_start_is_told_with_its_words(tmp_path: Path) -> None:
    (tmp_path / "group" / "store").mkdir(parents=True)
    (tmp_path / "group" / "store" / "dledger-n1").write_text("a file where the folder should be")
    with pytest.raises(UnavailableError, match="n1 ended with exit code 1: ") as caught:
        async with LocalGroup(tmp_path / "group"):
            pass
    assert "dledger-n1" in str(caught.value)


@pytest.mark.asyncio
async def test_settings_are_checked_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean"):
        await LocalGroup(tmp_path, settings={"flushDiskTyp": "x"}).start()


def test_free_ports_are_different_free_and_below_the_ephemeral_range() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert all(10_000 <= port < low for port in ports)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", ports[0]))
