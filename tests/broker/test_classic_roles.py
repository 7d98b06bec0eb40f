"""Classic master and slave: what the master says of its slave, what the slave takes over, reads when the master is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from broker_adapter.broker.broker import Broker
from broker_adapter.broker.topics import TopicConfig
from broker_adapter.config import BrokerConfig, BrokerRole
from broker_adapter.namesrv.server import NameServer
from broker_adapter.remoting.codes import RequestCode, ResponseCode
from tests.broker.harness import Client, eventually, local_config, name_server, running


def master_config(root: Path, server: NameServer, role: BrokerRole, **changes: Any) -> BrokerConfig:
    return local_config(root / "master", server, broker_role=role, slave_timeout_ms=1000, **changes)


def slave_config(root: Path, server: NameServer, **changes: Any) -> BrokerConfig:
    return local_config(root / "slave", server, broker_role=BrokerRole.SLAVE, broker_id=1, **changes)


@asynccontextmanager
async def pair(root: Path, role: BrokerRole, **changes: Any) -> AsyncIterator[tuple[NameServer, Broker, Broker]]:
    async with name_server() as server, running(master_config(root, server, role, **changes)) as master:
        await eventually(lambda: server.routes.brokers)
        async with running(slave_config(root, server, **changes)) as slave:
            await eventually(lambda: master.store.ha_status().slaves)
            yield server, master, slave


@pytest.mark.asyncio
async def test_a_sync_master_without_a_slave_says_so_and_stores_all_the_same(tmp_path: Path) -> None:
    async with name_server() as server, AsyncExitStack() as stack:
        master = await stack.enter_async_context(running(master_config(tmp_path, server, BrokerRole.SYNC_MASTER)))
        async with Client(master.address) as client:
            await client.create_topic("T")
            answer = await client.send("T", b"x")
            assert (answer.code, answer.integer("queueOffset")) == (ResponseCode.SLAVE_NOT_AVAILABLE, 0)
            # A message that does not wait for the store is not told of slaves.
            assert (await client.send("T", b"y", {"WAIT": "false"})).code == ResponseCode.SUCCESS
            assert [m.body for m in await client.read_all("T", 0, 2)] == [b"x", b"y"]


@pytest.mark.asyncio
async def test_send_ok_means_that_the_slave_has_it(tmp_path: Path) -> None:
    async with pair(tmp_path, BrokerRole.SYNC_MASTER) as (server, master, slave):
        async with Client(master.address) as client:
            await client.create_topic("T")

            async def in_sync() -> bool:
                return (await client.send("T", b"probe")).code == 0

            await eventually(in_sync)
            answers = await asyncio.gather(*(client.send("T", b"%d" % n) for n in range(50)))
            assert {answer.code for answer in answers} == {0}
            places = {int(answer.text("msgId")[-16:], 16) for answer in answers}
        assert slave.store.max_physical_offset >= max(places)
        assert server.routes.brokers["b"].addresses == {0: master.address, 1: slave.address}
        status = master.store.ha_status()
        assert len(status.slaves) == 1
        assert slave.store.ha_status().connected


@pytest.mark.asyncio
async def test_the_slave_takes_over_topics_groups_and_offsets_and_serves_on(tmp_path: Path) -> None:
    async with name_server() as server, running(master_config(tmp_path, server, BrokerRole.ASYNC_MASTER)) as master:
        await eventually(lambda: server.routes.brokers)
        async with running(slave_config(tmp_path, server, slave_read_enable=True)) as slave:
            async with Client(master.address) as client:
                await client.create_topic("T", 2)
                for number in range(10):
                    assert (await client.send("T", b"%d" % number)).code == 0
                await client.heartbeat("CG")
                await client.commit("T", 0, 6)
            await eventually(lambda: slave.store.max_offset("T", 0) == 10)
            await eventually(lambda: slave.slave_sync.master_address == master.address)
            assert await slave.slave_sync.sync()
            assert slave.topics.get("T") == TopicConfig("T", 2, 2)
            assert slave.groups.get("CG") is not None
            assert slave.offsets.query("T", "CG", 0) == 6
            await master.stop()
            await eventually(lambda: server.routes.brokers["b"].addresses == {1: slave.address})
            async with Client(slave.address) as client:
                assert await client.committed("T", 0) == 6
                assert [m.body for m in await client.pull_messages("T", 0, 6)] == [b"6", b"7", b"8", b"9"]
                refused = await client.send("T", b"x")
                assert refused.code == ResponseCode.SERVICE_NOT_AVAILABLE


@pytest.mark.asyncio
async def test_a_slow_consumer_moves_to_the_slave_and_back(tmp_path: Path) -> None:
    async with (
        pair(tmp_path, BrokerRole.ASYNC_MASTER, slave_read_enable=True, physical_memory_bytes=20_000) as (
            _server,
            master,
            slave,
        ),
        Client(master.address) as at_master,
        Client(slave.address) as at_slave,
    ):
        await at_master.create_topic("T")
        for _ in range(40):
            await at_master.send("T", b"x" * 1000)
        await at_master.read_all("T", 0, 40)
        await eventually(lambda: slave.store.max_offset("T", 0) == 40)
        await eventually(lambda: slave.slave_sync.master_address)
        await slave.slave_sync.sync()

        async def moved() -> bool:
            return (await at_master.pull("T", 0, 0)).integer("suggestWhichBrokerId") == 1

        await eventually(moved)
        on = await at_slave.pull("T", 0, 0, maxMsgNums=2)
        assert (on.code, on.integer("suggestWhichBrokerId")) == (0, 1)
        end = await at_slave.pull("T", 0, 38)
        assert (end.code, end.integer("suggestWhichBrokerId")) == (0, 0)


@pytest.mark.asyncio
async def test_a_slave_that_is_not_read_from_sends_everyone_to_the_master(tmp_path: Path) -> None:
    async with pair(tmp_path, BrokerRole.ASYNC_MASTER) as (server, master, slave):
        assert len(server.routes.brokers) == 1
        async with Client(master.address) as at_master, Client(slave.address) as at_slave:
            await at_master.create_topic("T")
            await at_master.send("T", b"x")
            await eventually(lambda: slave.store.max_offset("T", 0) == 1)
            await eventually(lambda: slave.slave_sync.master_address)
            await slave.slave_sync.sync()
            found = await at_slave.pull("T", 0, 0)
            assert found.integer("suggestWhichBrokerId") == 0
            moved = await at_slave.pull("T", 0, 50)
            assert moved.code == ResponseCode.PULL_RETRY_IMMEDIATELY
            assert moved.integer("nextBeginOffset") == 50


@pytest.mark.asyncio
async def test_ha_status_over_the_wire(tmp_path: Path) -> None:
    async with pair(tmp_path, BrokerRole.SYNC_MASTER) as (_server, master, slave):
        async with Client(master.address) as client:
            await client.send("T", b"x")

            async def caught_up() -> bool:
                status = (await client.ask(RequestCode.GET_BROKER_HA_STATUS)).json_object()
                return bool(status["inSyncSlaveNums"] == 1 and status["haConnectionInfo"][0]["diff"] == 0)

            await eventually(caught_up)
        async with Client(slave.address) as client:
            status = (await client.ask(RequestCode.GET_BROKER_HA_STATUS)).json_object()
            assert (status["master"], status["haClientRuntimeInfo"]["connected"]) == (False, True)
