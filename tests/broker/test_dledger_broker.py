"""Three brokers on one replicated log: one master, roles that follow the leader, nothing lost, slaves that forward."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from broker_adapter.broker.broker import Broker
from broker_adapter.broker.main import open_message_store
from broker_adapter.config import BrokerConfig
from broker_adapter.message import iter_messages
from broker_adapter.namesrv.server import NameServer
from broker_adapter.remoting.codes import RequestCode, ResponseCode
from broker_adapter.remoting.command import RemotingCommand
from tests.broker.harness import Client, dledger_configs, eventually, name_server


class Group:
    """A group of brokers and the name server they register with."""

    def __init__(self, server: NameServer, configs: list[BrokerConfig]) -> None:
        self.server = server
        self.configs = configs
        self.brokers: list[Broker | None] = [None] * len(configs)

    async def start(self, number: int) -> Broker:
        broker = Broker(self.configs[number], open_message_store)
        self.brokers[number] = broker
        await broker.start()
        return broker

    async def stop(self, number: int) -> None:
        broker, self.brokers[number] = self.brokers[number], None
        if broker is not None:
            await broker.stop()

    def alive(self) -> list[Broker]:
        return [broker for broker in self.brokers if broker is not None]

    async def master(self) -> Broker:
        """The master, once it is registered as such."""
        name = self.configs[0].broker_name

        def find() -> Broker | None:
            data = self.server.routes.brokers.get(name)
            address = data.addresses.get(0) if data is not None else None
            return next((b for b in self.alive() if b.address == address and b.roles.is_master), None)

        return await eventually(find, 30)  # type: ignore[no-any-return]

    async def slaves(self) -> list[Broker]:
        master = await self.master()
        return [broker for broker in self.alive() if broker is not master]


@asynccontextmanager
async def group_of_three(root: Path, **changes: Any) -> AsyncIterator[Group]:
    async with name_server() as server:
        group = Group(server, dledger_configs(root, server, **changes))
        async with AsyncExitStack() as stack:
            for number in range(3):
                stack.push_async_callback(group.stop, number)
                await group.start(number)
            await group.master()
            yield group


@pytest.mark.asyncio
async def test_one_master_and_two_slaves_register(tmp_path: Path) -> None:
    async with group_of_three(tmp_path) as group:
        master = await group.master()
        number = group.brokers.index(master)
        expected = {0: master.address}
        for other, broker in enumerate(group.alive()):
            if other != number:
                expected[other + 1] = broker.address
        await eventually(lambda: group.server.routes.brokers["RaftNode00"].addresses == expected)


@pytest.mark.asyncio
async def test_sends_reads_and_small_state_at_every_node(tmp_path: Path) -> None:
    async with group_of_three(tmp_path) as group:
        master = await group.master()
        async with Client(master.address) as client:
            await client.create_topic("T", 2)
            answers = [await client.send("T", b"%d" % n) for n in range(20)]
            assert [a.integer("queueOffset") for a in answers] == list(range(20))
            batch = await client.send_batch("T", [b"b%d" % n for n in range(10)], e="1")
            assert (batch.code, batch.integer("queueOffset")) == (0, 0)
            await client.commit("T", 0, 15)
            assert await client.committed("T", 0) == 15
        ids = {a.text("msgId")[-16:] for a in answers}
        for broker in group.alive():
            async with Client(broker.address) as client:
                assert [m.body for m in await client.read_all("T", 0, 20)] == [b"%d" % n for n in range(20)]
                assert [m.body for m in await client.read_all("T", 1, 10)] == [b"b%d" % n for n in range(10)]
                assert {f"{m.physical_offset:016X}" for m in await client.read_all("T", 0, 20)} == ids
                assert broker.topics.get("T") is not None
                # A slave's answer is the master's, so it is never behind.
                assert await client.committed("T", 0) == 15
                await eventually(lambda b=broker: b.offsets.query("T", "CG", 0) == 15)


@pytest.mark.asyncio
async def test_slaves_forward_what_only_a_master_can_do(tmp_path: Path) -> None:
    async with group_of_three(tmp_path) as group:
        master = await group.master()
        for number, slave in enumerate(await group.slaves()):
            topic = f"T{number}"
            async with Client(slave.address) as client:
                await client.create_topic(topic, 1)
                connection = await client.remoting.connect(client.address)
                calls = [connection.call(RemotingCommand(310, client.send_ext(topic), b"%d" % n)) for n in range(100)]
                assert [(await call).integer("queueOffset") for call in calls] == list(range(100))
                assert [m.body for m in await client.read_all(topic, 0, 100)] == [b"%d" % n for n in range(100)]
                auto = await client.send(f"Auto{number}", b"x")
                assert auto.code == 0
                await client.commit(topic, 0, 40)
                assert await client.committed(topic, 0) == 40
                assert master.offsets.query(topic, "CG", 0) == 40
                lock = {"consumerGroup": "G", "clientId": "c", "mqSet": [{"topic": topic, "queueId": 0}]}
                locked = await client.ask(RequestCode.LOCK_BATCH_MQ, body=json.dumps(lock).encode())
                assert [q["queueId"] for q in locked.json_object()["lockOKMQSet"]] == [0]
                end = await client.ask(RequestCode.GET_MAX_OFFSET, {"topic": topic, "queueId": 0})
                assert end.integer("offset") == 100
                (first, *_) = await client.pull_messages(topic, 0, 0)
                assert first.born_host[0] == "127.0.0.1"
                bad = await client.send("bad topic!", b"x")
                assert bad.code == ResponseCode.SYSTEM_ERROR
                table = await client.ask(RequestCode.GET_BROKER_RUNTIME_INFO)
                assert int(table.json_object()["table"]["forwardedTotal"]) >= 100


@pytest.mark.asyncio
async def test_a_planned_stop_hands_over_without_a_failed_send(tmp_path: Path) -> None:
    """SIGTERM's way: clients that only know the old master's address see waiting, not failure, until it is gone."""
    async with group_of_three(tmp_path) as group:
        old = await group.master()
        number = group.brokers.index(old)
        slave = (await group.slaves())[0]
        async with Client(slave.address) as client, Client(old.address) as direct:
            await client.create_topic("T")
            sent: list[bytes] = []
            stop = asyncio.Event()

            async def produce(one: Client, name: str) -> None:
                count = 0
                while not stop.is_set():
                    body = f"{name}-{count}".encode()
                    answer = await one.send("T", body)
                    assert answer.code == 0, answer.remark
                    sent.append(body)
                    count += 1

            producer = asyncio.ensure_future(produce(client, "slave"))
            await eventually(lambda: len(sent) > 20)
            before = await direct.send("T", b"direct")
            assert before.code == 0
            await group.stop(number)
            new = await group.master()
            assert new is not old
            count = len(sent)
            await eventually(lambda: len(sent) > count + 20)
            stop.set()
            await producer
        async with Client(new.address) as client:
            found = [m.body for m in await client.read_all("T", 0, len(sent) + 1)]
        assert [body for body in found if body != b"direct"] == sent


@pytest.mark.asyncio
async def test_after_a_failover_consumption_goes_on_where_it_was(tmp_path: Path) -> None:
    async with group_of_three(tmp_path) as group:
        old = await group.master()
        number = group.brokers.index(old)
        async with Client(old.address) as client:
            await client.create_topic("T")
            for count in range(10):
                await client.send("T", b"%d" % count)
            await client.heartbeat("CG")
            await client.commit("T", 0, 7)
            assert await old.offsets.flush()
            lock = {"consumerGroup": "CG", "clientId": "c1", "mqSet": [{"topic": "T", "queueId": 0}]}
            await client.ask(RequestCode.LOCK_BATCH_MQ, body=json.dumps(lock).encode())
        await group.stop(number)
        new = await group.master()
        async with Client(new.address) as client:
            assert await client.committed("T", 0) == 7
            other = {**lock, "clientId": "c2"}
            refused = await client.ask(RequestCode.LOCK_BATCH_MQ, body=json.dumps(other).encode())
            assert refused.json_object()["lockOKMQSet"] == []
            kept = await client.ask(RequestCode.LOCK_BATCH_MQ, body=json.dumps(lock).encode())
            assert len(kept.json_object()["lockOKMQSet"]) == 1
            assert new.groups.get("CG") is not None
            assert (await client.send("T", b"more")).integer("queueOffset") == 10
        await group.start(number)
        back = group.brokers[number]
        assert back is not None
        await eventually(lambda: group.server.routes.brokers["RaftNode00"].addresses.get(number + 1) == back.address)
        async with Client(back.address) as client:
            assert len(await client.read_all("T", 0, 11)) == 11
            assert (await client.send("T", b"through the one that came back")).code == 0


@pytest.mark.asyncio
async def test_delayed_messages_are_delivered_by_the_next_master(tmp_path: Path) -> None:
    async with group_of_three(tmp_path) as group:
        old = await group.master()
        async with Client(old.address) as client:
            await client.create_topic("T")
            for count in range(5):
                assert (await client.send("T", b"%d" % count, {"DELAY": "2"})).code == 0
        await group.stop(group.brokers.index(old))
        new = await group.master()
        async with Client(new.address) as client:
            bodies = [m.body for m in await client.read_all("T", 0, 5)]
        assert bodies == [b"%d" % count for count in range(5)]
        assert new.delay.is_running
        assert not any(broker.delay.is_running for broker in await group.slaves())


@pytest.mark.asyncio
async def test_without_a_majority_nothing_is_acknowledged(tmp_path: Path) -> None:
    async with group_of_three(tmp_path, forward_timeout_ms=500) as group:
        master = await group.master()
        async with Client(master.address) as client:
            await client.create_topic("T")
            for broker in await group.slaves():
                await group.stop(group.brokers.index(broker))
            answer = await client.send("T", b"x")
            assert answer.code in {ResponseCode.SYSTEM_ERROR, ResponseCode.SERVICE_NOT_AVAILABLE}
            await eventually(lambda: not master.roles.is_master)
            refused = await client.send("T", b"y")
            assert refused.code == ResponseCode.SERVICE_NOT_AVAILABLE


@pytest.mark.asyncio
async def test_slow_consumers_are_sent_to_an_id_that_exists(tmp_path: Path) -> None:
    """Upstream answers 1, which in DLedger mode is nobody's when n0 leads (#2157)."""
    async with group_of_three(tmp_path, slave_read_enable=True, physical_memory_bytes=20_000) as group:
        master = await group.master()
        async with Client(master.address) as client:
            await client.create_topic("T")
            for _ in range(40):
                await client.send("T", b"x" * 1000)
            await client.read_all("T", 0, 40)
            ids = {broker.roles.broker_id for broker in await group.slaves()}

            async def suggested() -> int:
                return (await client.pull("T", 0, 0, maxMsgNums=1)).integer("suggestWhichBrokerId")

            async def is_a_slave() -> bool:
                return await suggested() in ids

            await eventually(is_a_slave)
            # At the end of the queue nothing is behind: back to the master.
            assert (await client.pull("T", 0, 39, maxMsgNums=1)).integer("suggestWhichBrokerId") == 0


@pytest.mark.asyncio
async def test_dledger_status(tmp_path: Path) -> None:
    async with group_of_three(tmp_path) as group:
        master = await group.master()
        async with Client(master.address) as client:
            status = (await client.ask(RequestCode.GET_DLEDGER_STATUS)).json_object()
        assert (status["role"], status["brokerId"], status["isMaster"], len(status["peers"])) == ("leader", 0, True, 2)


@pytest.mark.asyncio
async def test_two_groups_share_a_topic(tmp_path: Path) -> None:
    async with name_server() as server, AsyncExitStack() as stack:
        groups = []
        for name in ("RaftNode00", "RaftNode01"):
            group = Group(server, dledger_configs(tmp_path, server, name))
            groups.append(group)
            for number in range(3):
                stack.push_async_callback(group.stop, number)
                await group.start(number)
        for number, group in enumerate(groups):
            master = await group.master()
            async with Client(master.address) as client:
                await client.create_topic("Wide", 4)
                assert (await client.send("Wide", b"%d" % number)).code == 0
        await eventually(lambda: len((server.routes.route("Wide") or {}).get("queueDatas", [])) == 2)  # type: ignore[arg-type]
        bodies = []
        for group in groups:
            async with Client((await group.master()).address) as client:
                bodies += [m.body for m in iter_messages(bytes((await client.pull("Wide", 0, 0)).body))]
        assert bodies == [b"0", b"1"]
