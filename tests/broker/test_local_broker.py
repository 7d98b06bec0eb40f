"""One broker with files of its own, spoken to over the wire: every request a client makes, and what it must refuse."""

from __future__ import annotations

import asyncio
import json
import random
import struct
import time
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from broker_adapter.broker.broker import Broker
from broker_adapter.broker.topics import TopicConfig
from broker_adapter.message import Message, iter_messages, join_batch, parse_properties, tags_code
from broker_adapter.remoting.codes import RequestCode, ResponseCode
from broker_adapter.remoting.command import RemotingCommand, SerializeType
from tests.broker.harness import HOST, Client, eventually, local_config, name_server, running


class Setup:
    def __init__(self, broker: Broker, client: Client) -> None:
        self.broker = broker
        self.client = client


@asynccontextmanager
async def started(root: Path, **changes: Any) -> AsyncIterator[Setup]:
    async with running(local_config(root, **changes)) as broker, Client(broker.address) as client:
        yield Setup(broker, client)


def properties_of(message: Message) -> dict[str, str]:
    return parse_properties(message.properties)


# ---------------------------------------------------------------------- sends


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", list(SerializeType))
async def test_a_send_in_both_spellings_and_header_types(tmp_path: Path, kind: SerializeType) -> None:
    async with started(tmp_path) as setup:
        client = setup.client
        ext = client.send_ext("T", {"TAGS": "A", "KEYS": "k"}, e="1")
        short = await client.ask(RequestCode.SEND_MESSAGE_V2, ext, b"one", serialize_type=kind)
        long_ext = {
            "producerGroup": "PG",
            "topic": "T",
            "defaultTopic": "TBW102",
            "defaultTopicQueueNums": 4,  # the C++ client writes numbers here
            "queueId": 1,
            "sysFlag": 0,
            "bornTimestamp": "1",
            "flag": 7,
            "properties": "TAGS\x01B\x02",
            "reconsumeTimes": "0",
            "unitMode": "0",
            "batch": "0",
        }
        long = await client.ask(RequestCode.SEND_MESSAGE, long_ext, b"two", serialize_type=kind)
        assert (short.code, long.code) == (0, 0)
        assert (short.integer("queueId"), short.integer("queueOffset"), long.integer("queueOffset")) == (1, 0, 1)
        assert len(short.text("msgId")) == 32
        assert short.text("MSG_REGION") == "DefaultRegion"
        one, two = await client.read_all("T", 1, 2)
        assert (one.body, one.tags, one.keys, two.body, two.flag, two.born_timestamp) == (
            b"one",
            "A",
            "k",
            b"two",
            7,
            1,
        )
        assert one.born_host[0] == HOST
        assert one.store_host == (HOST, setup.broker.port)


@pytest.mark.asyncio
async def test_a_topic_nobody_made_is_made_once(tmp_path: Path) -> None:
    async with started(tmp_path) as setup:
        answers = await asyncio.gather(*(setup.client.send("New", b"%d" % n, e="-1") for n in range(20)))
        assert {answer.code for answer in answers} == {0}
        topic = setup.broker.topics.get("New")
        assert topic == TopicConfig("New", 4, 4, 6)
        assert {answer.integer("queueId") for answer in answers} <= {0, 1, 2, 3}


@pytest.mark.asyncio
async def test_topics_are_not_made_where_that_is_off(tmp_path: Path) -> None:
    async with started(tmp_path, auto_create_topic_enable=False) as setup:
        answer = await setup.client.send("New", b"x")
        assert answer.code == ResponseCode.TOPIC_NOT_EXIST
        assert setup.broker.topics.get("New") is None


@pytest.mark.asyncio
async def test_batches(tmp_path: Path) -> None:
    async with started(tmp_path) as setup:
        client = setup.client
        bodies = [b"m%d" % n for n in range(40)]
        answer = await client.send_batch("T", bodies)
        assert (answer.code, answer.integer("queueOffset")) == (0, 0)
        assert len(answer.text("msgId").split(",")) == 40
        # The C++ client: code 10 and batch=1; it compresses a large batch as a whole.
        data = join_batch([(0, b"c" * 300, b"TAGS\x01A\x02") for _ in range(10)])
        ext = {"producerGroup": "P", "topic": "T", "defaultTopic": "TBW102", "queueId": 0, "batch": "1", "sysFlag": 1}
        packed = await client.ask(RequestCode.SEND_MESSAGE, ext, zlib.compress(data))
        assert (packed.code, packed.integer("queueOffset")) == (0, 40)
        found = await client.read_all("T", 0, 50)
        assert [m.body for m in found[:40]] == bodies
        assert {(m.body, m.tags, m.sys_flag & 1) for m in found[40:]} == {(b"c" * 300, "A", 0)}


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("changes", "body", "code"),
    [
        ({"b": "bad topic!"}, b"x", ResponseCode.SYSTEM_ERROR),
        ({"b": ""}, b"x", ResponseCode.SYSTEM_ERROR),
        ({"b": "x" * 128}, b"x", ResponseCode.SYSTEM_ERROR),
        ({"b": "SCHEDULE_TOPIC_XXXX"}, b"x", ResponseCode.NO_PERMISSION),
        ({"e": "99"}, b"x", ResponseCode.SYSTEM_ERROR),
        ({"e": "many"}, b"x", ResponseCode.SYSTEM_ERROR),
        ({"b": None}, b"x", ResponseCode.SYSTEM_ERROR),
        ({}, b"x" * 100_001, ResponseCode.MESSAGE_ILLEGAL),
        ({"i": "k\x01" + "v" * 32_767 + "\x02"}, b"x", ResponseCode.MESSAGE_ILLEGAL),
        ({"f": "4"}, b"x", ResponseCode.REQUEST_CODE_NOT_SUPPORTED),
        ({"i": "TRAN_MSG\x01true\x02"}, b"x", ResponseCode.REQUEST_CODE_NOT_SUPPORTED),
        ({"m": "true"}, b"not a batch", ResponseCode.MESSAGE_ILLEGAL),
        ({"m": "true", "f": "1"}, b"not compressed", ResponseCode.MESSAGE_ILLEGAL),
        ({"m": "true", "f": "1"}, zlib.compress(b"x" * 10_000_000), ResponseCode.MESSAGE_ILLEGAL),
        ({"m": "true", "b": "%RETRY%G"}, b"x", ResponseCode.MESSAGE_ILLEGAL),
    ],
)
async def test_bad_sends_get_the_right_code_and_the_broker_goes_on(
    tmp_path: Path, changes: dict[str, Any], body: bytes, code: ResponseCode
) -> None:
    async with started(tmp_path, max_message_size_bytes=100_000) as setup:
        answer = await setup.client.ask(RequestCode.SEND_MESSAGE_V2, setup.client.send_ext("T", **changes), body)
        assert answer.code == code
        assert answer.remark
        assert (await setup.client.send("T", b"fine")).code == 0


@pytest.mark.asyncio
async def test_permissions(tmp_path: Path) -> None:
    async with started(tmp_path) as setup:
        client = setup.client
        await client.create_topic("ReadOnly", perm=4)
        await client.create_topic("WriteOnly", perm=2)
        assert (await client.send("ReadOnly", b"x")).code == ResponseCode.NO_PERMISSION
        assert (await client.send("WriteOnly", b"x")).code == 0
        assert (await client.pull("WriteOnly", 0, 0)).code == ResponseCode.NO_PERMISSION
        assert (await client.pull("ReadOnly", 0, 0)).code == ResponseCode.PULL_NOT_FOUND


@pytest.mark.asyncio
async def test_oneway_sends_are_stored(tmp_path: Path) -> None:
    async with started(tmp_path) as setup:
        client = setup.client
        await client.create_topic("T")
        for number in range(5):
            await client.remoting.send_oneway(
                client.address, RemotingCommand(310, client.send_ext("T"), b"%d" % number)
            )
        assert [m.body for m in await client.read_all("T", 0, 5)] == [b"0", b"1", b"2", b"3", b"4"]


@pytest.mark.asyncio
async def test_pipelined_sends_keep_their_order(tmp_path: Path) -> None:
    async with started(tmp_path) as setup:
        client = setup.client
        await client.create_topic("T")
        connection = await client.remoting.connect(client.address)
        calls = [connection.call(RemotingCommand(310, client.send_ext("T"), b"%d" % n)) for n in range(300)]
        assert [(await call).integer("queueOffset") for call in calls] == list(range(300))
        assert [m.body for m in await client.read_all("T", 0, 300)] == [b"%d" % n for n in range(300)]


# ---------------------------------------------------------------------- pulls


@pytest.mark.asyncio
async def test_pull_codes_and_offsets(tmp_path: Path) -> None:
    async with started(tmp_path) as setup:
        client = setup.client
        await client.create_topic("T")
        for number in range(3):
            await client.send("T", b"%d" % number, {"TAGS": "AB"[number % 2]})
        await client.read_all("T", 0, 3)
        found = await client.pull("T", 0, 1)
        assert found.code == ResponseCode.SUCCESS
        assert found.integer("nextBeginOffset") == 3
        assert (found.integer("minOffset"), found.integer("maxOffset")) == (0, 3)
        assert found.integer("suggestWhichBrokerId") == 0
        assert (await client.pull("T", 0, 3)).code == ResponseCode.PULL_NOT_FOUND
        # Upstream's rule: beyond the end of a queue that still has its first message, go back to that.
        far = await client.pull("T", 0, 99)
        assert (far.code, far.integer("nextBeginOffset")) == (ResponseCode.PULL_OFFSET_MOVED, 0)
        below = await client.pull("T", 0, -5)
        assert (below.code, below.integer("nextBeginOffset")) == (ResponseCode.PULL_OFFSET_MOVED, 0)
        assert [m.body for m in await client.pull_messages("T", 0, 0, subscription="A")] == [b"0", b"2"]
        assert [m.body for m in await client.pull_messages("T", 0, 0, subscription="A || B")] == [b"0", b"1", b"2"]
        none = await client.pull("T", 0, 0, subscription="C")
        assert (none.code, none.integer("nextBeginOffset")) == (ResponseCode.PULL_RETRY_IMMEDIATELY, 3)
        assert (await client.pull("T", 9, 0)).code == ResponseCode.SYSTEM_ERROR
        assert (await client.pull("Nowhere", 0, 0)).code == ResponseCode.TOPIC_NOT_EXIST
        assert (await client.pull("T", 0, 0, maxMsgNums=1)).integer("nextBeginOffset") == 1
        sql = await client.pull("T", 0, 0, expressionType="SQL92", subscription="a > 1")
        assert sql.code == ResponseCode.REQUEST_CODE_NOT_SUPPORTED
        assert "SQL92" in (sql.remark or "")


@pytest.mark.asyncio
async def test_a_consumer_without_a_subscription(tmp_path: Path) -> None:
    async with started(tmp_path) as setup:
        client = setup.client
        await client.send("T", b"x", {"TAGS": "A"})
        assert (await client.pull("T", 0, 0, sysFlag=0)).code == ResponseCode.SUBSCRIPTION_NOT_EXIST
        await client.heartbeat("CG", expression="A")
        await client.read_all("T", 0, 1)
        assert (await client.pull("T", 0, 0, sysFlag=0)).code == ResponseCode.SUCCESS
        late = await client.pull("T", 0, 0, sysFlag=0, subVersion=2)
        assert late.code == ResponseCode.SUBSCRIPTION_NOT_LATEST


@pytest.mark.asyncio
async def test_groups_nobody_made(tmp_path: Path) -> None:
    async with started(tmp_path, auto_create_subscription_group=False) as setup:
        client = setup.client
        await client.send("T", b"x")
        assert (await client.pull("T", 0, 0)).code == ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST
        group = {"groupName": "CG", "consumeEnable": False}
        made = await client.ask(RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, body=json.dumps(group).encode())
        assert made.code == 0
        assert (await client.pull("T", 0, 0)).code == ResponseCode.NO_PERMISSION


@pytest.mark.asyncio
async def test_a_held_pull_is_answered_by_an_arrival(tmp_path: Path) -> None:
    async with started(tmp_path) as setup:
        client = setup.client
        await client.create_topic("T")
        all_of_it = asyncio.ensure_future(client.pull("T", 0, 0, sysFlag=6))
        only_b = asyncio.ensure_future(client.pull("T", 0, 0, sysFlag=6, subscription="B", consumerGroup="C2"))
        await eventually(lambda: setup.broker.pulls.hold.count == 2)
        began = time.monotonic()
        await client.send("T", b"1", {"TAGS": "A"})
        assert [m.body for m in iter_messages(bytes((await all_of_it).body))] == [b"1"]
        assert time.monotonic() - began < 3
        assert not only_b.done()
        await client.send("T", b"2", {"TAGS": "B"})
        assert [m.body for m in iter_messages(bytes((await only_b).body))] == [b"2"]
        assert setup.broker.pulls.hold.count == 0


@pytest.mark.asyncio
async def test_a_held_pull_ends_with_its_time_and_with_its_connection(tmp_path: Path) -> None:
    async with started(tmp_path) as setup:
        client = setup.client
        await client.create_topic("T")
        timed = await client.pull("T", 0, 0, sysFlag=6, suspendTimeoutMillis=100)
        assert timed.code == ResponseCode.PULL_NOT_FOUND
        async with Client(client.address) as other:
            waiting = asyncio.ensure_future(other.pull("T", 0, 0, sysFlag=6))
            await eventually(lambda: setup.broker.pulls.hold.count == 1)
        await asyncio.gather(waiting, return_exceptions=True)
        await eventually(lambda: setup.broker.pulls.hold.count == 0)


@pytest.mark.asyncio
async def test_many_held_pulls_lose_no_message(tmp_path: Path) -> None:
    """Held pulls and sends race; each consumer sees every message once and in order."""
    async with started(tmp_path) as setup:
        await setup.client.create_topic("T")
        seen: list[list[bytes]] = [[] for _ in range(4)]

        async def consume(number: int) -> None:
            async with Client(setup.client.address) as one:
                at = 0
                while len(seen[number]) < 200:
                    answer = await one.pull("T", 0, at, sysFlag=6, consumerGroup=f"G{number}")
                    for message in iter_messages(bytes(answer.body)):
                        seen[number].append(message.body)
                    at = answer.integer("nextBeginOffset")

        consumers = [asyncio.ensure_future(consume(n)) for n in range(4)]
        chance = random.Random(7)
        for number in range(200):
            await setup.client.send("T", b"%d" % number)
            if chance.random() < 0.3:
                await asyncio.sleep(0)
        await asyncio.wait_for(asyncio.gather(*consumers), 60)
        assert all(bodies == [b"%d" % n for n in range(200)] for bodies in seen)


# ---------------------------------------------------------------------- consumers


@pytest.mark.asyncio
async def test_heartbeats_lists_and_notifications(tmp_path: Path) -> None:
    async with started(tmp_path) as setup, Client(setup.client.address, "client-2") as second:
        told: list[str] = []
        setup.client.remoting.handlers[40] = lambda request, _: told.append(request.text("consumerGroup"))
        assert (await setup.client.heartbeat("G")).code == 0
        await eventually(lambda: told == ["G"])
        listed = await setup.client.ask(RequestCode.GET_CONSUMER_LIST_BY_GROUP, {"consumerGroup": "G"})
        assert listed.json_object() == {"consumerIdList": ["client-1"]}
        assert setup.broker.topics.get("%RETRY%G") == TopicConfig("%RETRY%G", 1, 1)
        await second.heartbeat("G")
        await eventually(lambda: told == ["G", "G"])
        await setup.client.heartbeat("G")  # changes nothing
        await second.ask(RequestCode.UNREGISTER_CLIENT, {"clientID": "client-2", "consumerGroup": "G"})
        await eventually(lambda: told == ["G", "G", "G"])
        await second.heartbeat("G")
        await second.remoting.close()
        await eventually(lambda: len(told) == 5)
        listed = await setup.client.ask(RequestCode.GET_CONSUMER_LIST_BY_GROUP, {"consumerGroup": "G"})
        assert listed.json_object() == {"consumerIdList": ["client-1"]}
        nobody = await setup.client.ask(RequestCode.GET_CONSUMER_LIST_BY_GROUP, {"consumerGroup": "Nobody"})
        assert nobody.code == ResponseCode.SYSTEM_ERROR


@pytest.mark.asyncio
async def test_enums_as_numbers_and_other_loose_heartbeats(tmp_path: Path) -> None:
    async with started(tmp_path) as setup:
        consumer = {
            "groupName": "G",
            "consumeType": 1,
            "messageModel": 1,
            "consumeFromWhere": 0,
            "subscriptionDataSet": [{"topic": "T", "subString": "*", "subVersion": "12"}, "nonsense"],
        }
        data = {"clientID": "c", "consumerDataSet": [consumer, 5], "producerDataSet": None}
        assert (await setup.client.ask(RequestCode.HEART_BEAT, body=json.dumps(data).encode())).code == 0
        group = setup.broker.clients.consumers["G"]
        assert (group.consume_type, group.message_model) == ("CONSUME_PASSIVELY", "CLUSTERING")
        assert group.subscriptions["T"].version == 12
        for bad in (b"", b"[]", b'{"clientID":""}', b"\xff"):
            assert (await setup.client.ask(RequestCode.HEART_BEAT, body=bad)).code == ResponseCode.SYSTEM_ERROR


@pytest.mark.asyncio
async def test_silent_clients_expire(tmp_path: Path) -> None:
    async with started(tmp_path, client_expire_ms=100) as setup:
        await setup.client.heartbeat("G")
        await eventually(lambda: not setup.broker.clients.consumers)


@pytest.mark.asyncio
async def test_offsets(tmp_path: Path) -> None:
    async with started(tmp_path) as setup:
        client = setup.client
        # A young queue is consumed from its start, whatever the group wished.
        assert await client.committed("T", 0) == 0
        assert (await client.commit("T", 0, 12)).code == 0
        assert await client.committed("T", 0) == 12
        await client.create_topic("T")
        await client.pull("T", 0, 0, sysFlag=5, commitOffset=20)
        assert await client.committed("T", 0) == 20
        for bad in ({"commitOffset": "-4"}, {"commitOffset": str(2**70)}, {"queueId": "-1"}, {"topic": "a@b"}):
            ext = {"consumerGroup": "CG", "topic": "T", "queueId": 0, "commitOffset": 1, **bad}
            answer = await client.ask(RequestCode.UPDATE_CONSUMER_OFFSET, ext)
            assert answer.code == ResponseCode.SYSTEM_ERROR
        table = (await client.ask(RequestCode.GET_ALL_CONSUMER_OFFSET)).json_object()["offsetTable"]
        assert table == {"T@CG": {"0": 20}}


@pytest.mark.asyncio
async def test_queue_locks(tmp_path: Path) -> None:
    async with started(tmp_path, queue_lock_expire_ms=60_000) as setup:
        queues = [{"topic": "T", "brokerName": "b", "queueId": n} for n in range(2)]

        async def lock(client: str, count: int = 2) -> list[int]:
            body = json.dumps({"consumerGroup": "G", "clientId": client, "mqSet": queues[:count]}).encode()
            answer = await setup.client.ask(RequestCode.LOCK_BATCH_MQ, body=body)
            return sorted(queue["queueId"] for queue in answer.json_object()["lockOKMQSet"])

        assert await lock("c1", 1) == [0]
        assert await lock("c2") == [1]
        assert await lock("c1") == [0]
        body = json.dumps({"consumerGroup": "G", "clientId": "c2", "mqSet": queues}).encode()
        assert (await setup.client.ask(RequestCode.UNLOCK_BATCH_MQ, body=body)).code == 0
        assert await lock("c1") == [0, 1]


@pytest.mark.asyncio
async def test_concurrent_locks_have_one_winner_for_each_queue(tmp_path: Path) -> None:
    async with started(tmp_path) as setup:
        manager = setup.broker.context.locks
        queues = [("T", n) for n in range(16)]
        got = await asyncio.gather(*(manager.lock("G", f"c{n}", queues) for n in range(8)))
        assert sorted(queue for part in got for queue in part) == queues


@pytest.mark.asyncio
async def test_an_expired_lock_is_free(tmp_path: Path) -> None:
    async with started(tmp_path, queue_lock_expire_ms=20) as setup:
        manager = setup.broker.context.locks
        assert await manager.lock("G", "c1", [("T", 0)])
        await eventually(lambda: manager.holder("G@T@0") is None)
        assert await manager.lock("G", "c2", [("T", 0)])


# ---------------------------------------------------------------------- retry, dead letters, delay


@pytest.mark.asyncio
async def test_send_back_goes_through_retry_to_the_dead_letters(tmp_path: Path) -> None:
    async with started(tmp_path, message_delay_level="1h 2h") as setup:
        client = setup.client
        await client.send("T", b"again", {"KEYS": "k1", "TAGS": "A"})
        (original,) = await client.read_all("T", 0, 1)

        async def back(message: Message, **changes: Any) -> RemotingCommand:
            ext = {
                "group": "G",
                "offset": message.physical_offset,
                "delayLevel": 0,
                "originMsgId": message.message_id,
                "originTopic": "T",
                "unitMode": "false",
                "maxReconsumeTimes": 1,
                **changes,
            }
            return await client.ask(RequestCode.CONSUMER_SEND_MSG_BACK, ext)

        assert (await back(original)).code == 0
        # It waits in the schedule topic at level 3 + 0, capped at the last level there is.
        waiting = await client.read_all("SCHEDULE_TOPIC_XXXX", 1, 1)
        (delayed,) = waiting
        assert properties_of(delayed)["REAL_TOPIC"] == "%RETRY%G"
        assert properties_of(delayed)["RETRY_TOPIC"] == "T"
        assert properties_of(delayed)["ORIGIN_MESSAGE_ID"] == original.message_id
        assert delayed.reconsume_times == 1
        assert (await back(delayed)).code == 0
        await eventually(lambda: setup.broker.store.max_offset("%DLQ%G", 0) == 1)
        assert setup.broker.topics.get("%DLQ%G") == TopicConfig("%DLQ%G", 1, 1, 2)
        assert (await back(original, delayLevel=-1)).code == 0
        await eventually(lambda: setup.broker.store.max_offset("%DLQ%G", 0) == 2)
        assert (await back(original, offset=10**9)).code == ResponseCode.SYSTEM_ERROR


@pytest.mark.asyncio
async def test_a_client_that_retries_by_itself_reaches_the_dead_letters(tmp_path: Path) -> None:
    async with started(tmp_path) as setup:
        client = setup.client
        assert (await client.send("%RETRY%G", b"1", j="3", l="16")).code == 0
        assert setup.broker.store.max_offset("%RETRY%G", 0) >= 0
        assert (await client.send("%RETRY%G", b"2", j="16", l="16")).code == 0
        await eventually(lambda: setup.broker.store.max_offset("%DLQ%G", 0) == 1)
        await eventually(lambda: setup.broker.store.max_offset("%RETRY%G", 0) == 1)


@pytest.mark.asyncio
async def test_delayed_messages_come_when_they_are_due_and_in_order(tmp_path: Path) -> None:
    async with started(tmp_path) as setup:
        client = setup.client
        await client.create_topic("T")
        began = time.time()
        for number in range(5):
            await client.send("T", b"late %d" % number, {"DELAY": "1", "TAGS": "A", "KEYS": "k"})
        await client.send("T", b"now")
        found = await client.read_all("T", 0, 6)
        assert time.time() - began >= 0.95
        assert [m.body for m in found] == [b"now"] + [b"late %d" % n for n in range(5)]
        assert (found[1].tags, found[1].keys, found[1].get("DELAY")) == ("A", "k", None)
        assert setup.broker.delay.table()["1"] == 5


@pytest.mark.asyncio
async def test_delay_progress_survives_a_restart(tmp_path: Path) -> None:
    config = local_config(tmp_path)
    async with running(config) as broker, Client(broker.address) as client:
        await client.send("T", b"1", {"DELAY": "1"})
        await client.read_all("T", 0, 1)
    async with running(config) as broker, Client(broker.address) as client:
        await client.send("T", b"2", {"DELAY": "1"})
        assert [m.body for m in await client.read_all("T", 0, 2)] == [b"1", b"2"]


# ---------------------------------------------------------------------- queries and administration


@pytest.mark.asyncio
async def test_queries(tmp_path: Path) -> None:
    async with started(tmp_path) as setup:
        client = setup.client
        answers = [await client.send("T", b"%d" % n, {"KEYS": f"k{n} all", "UNIQ_KEY": f"U{n}"}) for n in range(3)]
        messages = await client.read_all("T", 0, 3)
        assert [m.message_id for m in messages] == [a.text("msgId") for a in answers]
        seen = await client.ask(RequestCode.VIEW_MESSAGE_BY_ID, {"offset": messages[1].physical_offset})
        assert [m.body for m in iter_messages(bytes(seen.body))] == [b"1"]
        for offset in (messages[1].physical_offset + 1, 10**15, -1):
            assert (await client.ask(RequestCode.VIEW_MESSAGE_BY_ID, {"offset": offset})).code == 1
        ext = {"topic": "T", "key": "all", "maxNum": 64, "beginTimestamp": 0, "endTimestamp": 2**62}

        async def by_key(**changes: Any) -> list[bytes]:
            answer = await client.ask(RequestCode.QUERY_MESSAGE, {**ext, **changes})
            return sorted(m.body for m in iter_messages(bytes(answer.body)))

        await eventually(by_key)
        assert await by_key() == [b"0", b"1", b"2"]
        assert await by_key(key="k1") == [b"1"]
        assert await by_key(key="U2", _UNIQUE_KEY_QUERY="true") == [b"2"]
        missing = await client.ask(RequestCode.QUERY_MESSAGE, {**ext, "key": "none"})
        assert missing.code == ResponseCode.QUERY_NOT_FOUND
        assert await by_key(endTimestamp=1) == []
        queue = {"topic": "T", "queueId": 0}
        assert (await client.ask(RequestCode.GET_MAX_OFFSET, queue)).integer("offset") == 3
        assert (await client.ask(RequestCode.GET_MIN_OFFSET, queue)).integer("offset") == 0
        at = messages[2].store_timestamp
        searched = await client.ask(RequestCode.SEARCH_OFFSET_BY_TIMESTAMP, {**queue, "timestamp": at + 1})
        assert searched.integer("offset") == 3
        searched = await client.ask(RequestCode.SEARCH_OFFSET_BY_TIMESTAMP, {**queue, "timestamp": 1})
        assert searched.integer("offset") == 0
        earliest = await client.ask(RequestCode.GET_EARLIEST_MSG_STORETIME, queue)
        assert earliest.integer("timestamp") == messages[0].store_timestamp


@pytest.mark.asyncio
async def test_what_is_not_there_says_so(tmp_path: Path) -> None:
    async with started(tmp_path) as setup:
        for code in (37, 306, 200050, 25, 9999):
            answer = await setup.client.ask(code)
            assert answer.code == ResponseCode.REQUEST_CODE_NOT_SUPPORTED
            assert answer.remark
        assert (await setup.client.ask(RequestCode.GET_DLEDGER_STATUS)).code == 3
        check = json.dumps({"subscriptionData": {"expressionType": "SQL92"}}).encode()
        assert (await setup.client.ask(RequestCode.CHECK_CLIENT_CONFIG, body=check)).code == 3
        assert (await setup.client.ask(RequestCode.CHECK_CLIENT_CONFIG, body=b"{}")).code == 0


@pytest.mark.asyncio
async def test_topics_groups_and_offsets_survive_a_restart(tmp_path: Path) -> None:
    config = local_config(tmp_path)
    async with running(config) as broker, Client(broker.address) as client:
        await client.create_topic("Kept", 3)
        await client.create_topic("Gone")
        await client.ask(RequestCode.DELETE_TOPIC_IN_BROKER, {"topic": "Gone"})
        await client.heartbeat("G")
        await client.commit("Kept", 2, 77)
    async with running(config) as broker, Client(broker.address) as client:
        assert broker.topics.get("Kept") == TopicConfig("Kept", 3, 3)
        assert broker.topics.get("Gone") is None
        assert broker.groups.get("G") is not None
        assert await client.committed("Kept", 2) == 77


@pytest.mark.asyncio
async def test_reset_by_time_moves_the_group_and_tells_its_consumers(tmp_path: Path) -> None:
    async with started(tmp_path) as setup:
        client = setup.client
        told: list[RemotingCommand] = []
        client.remoting.handlers[220] = lambda request, _: told.append(request)
        await client.create_topic("T")
        for number in range(4):
            await client.send("T", b"%d" % number)
        await client.read_all("T", 0, 4)
        await client.heartbeat("CG")
        await client.commit("T", 0, 4)
        ext = {"topic": "T", "group": "CG", "timestamp": 0, "isForce": "true"}
        answer = await client.ask(RequestCode.INVOKE_BROKER_TO_RESET_OFFSET, ext)
        assert answer.code == 0
        assert b'"queueId":0,"topic":"T"}:0' in bytes(answer.body)
        assert await client.committed("T", 0) == 0
        await eventually(lambda: told)
        assert told[0].text("group") == "CG"
        # Without force, offsets only go back.
        end = {**ext, "timestamp": -1, "isForce": "false"}
        await client.ask(RequestCode.INVOKE_BROKER_TO_RESET_OFFSET, end)
        assert await client.committed("T", 0) == 0


@pytest.mark.asyncio
async def test_the_broker_registers_its_topics_at_once_and_leaves_at_once(tmp_path: Path) -> None:
    async with name_server() as first, name_server() as second:
        async with running(local_config(tmp_path, first, second)) as broker, Client(broker.address) as client:
            for server in (first, second):
                await eventually(lambda s=server: s.routes.route("TBW102"))
            await client.create_topic("T", 2)
            for server in (first, second):
                await eventually(lambda s=server: s.routes.route("T"))
                assert server.routes.brokers["b"].addresses == {0: broker.address}
        assert first.routes.brokers == {}
        assert second.routes.brokers == {}


@pytest.mark.asyncio
async def test_one_dead_name_server_does_not_matter(tmp_path: Path) -> None:
    async with name_server() as dead, name_server() as alive:
        config = local_config(tmp_path, dead, alive)
        await dead.stop()
        async with running(config):
            await eventually(lambda: alive.routes.brokers)


@pytest.mark.asyncio
async def test_fuzzed_requests_never_stop_the_broker(tmp_path: Path) -> None:
    """Random fields for every code: some answer each time, and the broker serves on."""
    async with started(tmp_path) as setup:
        client = setup.client
        await client.send("T", b"x")
        chance = random.Random(11)
        values: list[Any] = [
            "T",
            "",
            "-1",
            "0",
            str(2**63),
            "x" * 300,
            None,
            5,
            True,
            [1],
            {"a": 1},
            "\x00",
            "\ud83d\ude00",
        ]
        names = [
            "topic",
            "queueId",
            "consumerGroup",
            "queueOffset",
            "maxMsgNums",
            "sysFlag",
            "offset",
            "group",
            "b",
            "a",
        ]
        names += ["e", "i", "m", "timestamp", "key", "commitOffset", "delayLevel", "subscription", "readQueueNums"]
        bodies = [b"", b"{}", b"[]", b"\xff\x00", b'{"clientID":"x"}', b'{"mqSet":[{"queueId":"x"}]}']
        codes = [code for code in setup.broker._server.handlers if code != 222]
        for _ in range(400):
            ext = {name: chance.choice(values) for name in chance.sample(names, chance.randrange(len(names)))}
            code = chance.choice(codes)
            suspend = {"sysFlag": 4} if code == 11 else {}
            answer = await client.ask(code, {**ext, **suspend}, chance.choice(bodies))
            assert answer.is_response
        assert (await client.send("T", b"still here")).code == 0


@pytest.mark.asyncio
async def test_raw_garbage_on_the_port(tmp_path: Path) -> None:
    async with started(tmp_path) as setup:
        for garbage in (b"\x7f\xff\xff\xff" * 10, struct.pack(">iI", 12, 8) + b"{broken}", b"\x00" * 100):
            reader, writer = await asyncio.open_connection(HOST, setup.broker.port)
            writer.write(garbage)
            assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()
        assert (await setup.client.send("T", b"x")).code == 0


@pytest.mark.asyncio
async def test_runtime_information(tmp_path: Path) -> None:
    async with started(tmp_path) as setup:
        await setup.client.send("T", b"x")
        await setup.client.read_all("T", 0, 1)
        table = (await setup.client.ask(RequestCode.GET_BROKER_RUNTIME_INFO)).json_object()["table"]
        for key in (
            "bootTimestamp", "brokerVersionDesc", "putTps", "getTotalTps", "getTransferedTps", "msgPutTotalTodayNow",
            "dispatchBehindBytes", "commitLogMinOffset", "commitLogMaxOffset", "commitLogDirCapacity",
            "earliestMessageTimeStamp", "sendThreadPoolQueueSize", "pullThreadPoolQueueSize",
            "queryThreadPoolQueueSize", "pageCacheLockTimeMills", "remainHowManyDataToFlush", "runtime",
        ):  # fmt: skip
            assert key in table, key
        assert table["msgPutTotalTodayNow"] == "1"
        config = (await setup.client.ask(RequestCode.GET_BROKER_CONFIG)).body
        assert b"brokerName=b\n" in bytes(config)


def test_tag_hashes_are_javas() -> None:
    assert tags_code("TagA") == 2598919
