"""Three brokers on one replicated log: one master, roles that follow the leader, nothing lost, slaves that forward."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from broker_adapter.broker.broker import Broker
from broker_adapter.broker.command import open_message_store
from broker_adapter.config import BrokerConfig
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
async def test_the_largest_message_reaches_every_node(tmp_path: Path) -> None:
    """A body of maxMessageSize with the longest properties: 4 MiB as upstream, and not a byte more."""
    largest = 4 * 1024 * 1024
    body = random.Random(4).randbytes(largest)
    properties = {"long": "x" * 32_000}
    async with group_of_three(tmp_path, mapped_file_size_commit_log_bytes=32 * 1024 * 1024) as group:
        master = await group.master()
        async with Client(master.address) as client:
            await client.create_topic("Large", 1)
            sent = await client.send("Large", body, properties)
            assert (sent.code, sent.integer("queueOffset")) == (0, 0), sent.remark
            refused = await client.send("Large", body + b"!")
            assert refused.code == ResponseCode.MESSAGE_ILLEGAL
            assert "maxMessageSize" in (refused.remark or "")
            halves = await client.send_batch("Large", [body[: largest // 2 - 100], body[: largest // 2 - 100]])
            assert halves.code == 0, halves.remark
        for broker in group.alive():
            async with Client(broker.address) as client:
                found = await client.read_all("Large", 0, 3)
                assert found[0].body == body
                assert found[0].get("long") == properties["long"]
                assert [len(message.body) for message in found[1:]] == [largest // 2 - 100] * 2
        slave = (await group.slaves())[0]
        async with Client(slave.address) as client:
            assert (await client.send("Large", body, properties)).code == 0


@asynccontextmanager
async def two_groups(root: Path) -> AsyncIterator[list[Group]]:
    """RaftNode00 and RaftNode01: two groups of three in one cluster, at one name server."""
    async with name_server() as server, AsyncExitStack() as stack:
        groups = [Group(server, dledger_configs(root, server, name)) for name in ("RaftNode00", "RaftNode01")]
        for group in groups:
            for number in range(3):
                stack.push_async_callback(group.stop, number)
                await group.start(number)
        for group in groups:
            await group.master()
        yield groups


@pytest.mark.asyncio
async def test_two_groups_share_a_topic(tmp_path: Path) -> None:
    """Groups scale out: a topic made in the cluster has queues at both; one group's failover leaves the other alone."""
    async with two_groups(tmp_path) as groups:
        server = groups[0].server
        masters = [await group.master() for group in groups]
        for master in masters:
            async with Client(master.address) as client:
                await client.create_topic("Wide", 4)

        def wide_route() -> dict[str, Any] | None:
            route = server.routes.route("Wide")
            whole = route is not None and [len(data["brokerAddrs"]) for data in route["brokerDatas"]] == [3, 3]
            return route if whole else None

        route = await eventually(wide_route)
        assert {data["brokerName"]: data["readQueueNums"] for data in route["queueDatas"]} == {
            "RaftNode00": 4,
            "RaftNode01": 4,
        }
        # As a client does it: round and round over the queues of all brokers.
        addresses = [data["brokerAddrs"]["0"] for data in route["brokerDatas"]]
        for number in range(80):
            async with Client(addresses[number % 2]) as client:
                assert (await client.send("Wide", b"%d" % number, e=str(number // 2 % 4))).code == 0
        # The first group loses its master; the other one's queues go on without a pause.
        await groups[0].stop(groups[0].brokers.index(masters[0]))
        async with Client(masters[1].address) as client:
            assert (await client.send("Wide", b"during", e="0")).code == 0
        assert (await groups[0].master()) is not masters[0]
        assert (await groups[1].master()) is masters[1]
        bodies: list[list[bytes]] = []
        for group in groups:
            async with Client((await group.master()).address) as client:
                bodies.append([m.body for queue in range(4) for m in await client.read_all("Wide", queue, 10)])
        assert sorted(map(int, bodies[0])) == list(range(0, 80, 2))
        assert sorted(bodies[1]) == sorted([b"during", *[b"%d" % number for number in range(1, 80, 2)]])
