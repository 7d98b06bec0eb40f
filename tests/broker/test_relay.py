"""What real clients of 4.9 and 5.3 asked that was not there: replies pushed to askers, questions passed on to consumers,
lite pull, and what upstream's tools read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker_adapter.broker import stats as stats_module
from broker_adapter.broker.stats import BrokerStats
from broker_adapter.message import iter_messages, parse_properties
from broker_adapter.namesrv.server import NameServerOptions
from broker_adapter.remoting.codes import RequestCode, ResponseCode
from broker_adapter.remoting.command import RemotingCommand
from tests.broker.harness import HOST, Client, local_config, name_server, running
from tests.broker.test_dledger_broker import group_of_three

REPLY = {"REPLY_TO_CLIENT": "asker", "CORRELATION_ID": "c1", "MSG_TYPE": "reply"}


@pytest.mark.asyncio
async def test_a_request_is_stored_with_the_cluster_that_a_reply_goes_to(tmp_path: Path) -> None:
    async with running(local_config(tmp_path)) as broker, Client(broker.address) as client:
        await client.send("T", b"ask", {"REPLY_TO_CLIENT": "asker"})
        await client.send("T", b"plain")
        ask, plain = await client.read_all("T", 0, 2)
        assert parse_properties(ask.properties) == {"REPLY_TO_CLIENT": "asker", "CLUSTER": "C"}
        assert plain.properties == b""
        assert "C_REPLY_TOPIC" in broker.topics.all()


@pytest.mark.asyncio
@pytest.mark.parametrize("code", [RequestCode.SEND_REPLY_MESSAGE, RequestCode.SEND_REPLY_MESSAGE_V2])
async def test_a_reply_is_pushed_to_who_asked(tmp_path: Path, code: RequestCode) -> None:
    async with (
        running(local_config(tmp_path)) as broker,
        Client(broker.address, "asker") as asker,
        Client(broker.address, "answerer") as answerer,
    ):
        pushed: list[RemotingCommand] = []

        def take(request: RemotingCommand, _connection: object) -> RemotingCommand:
            pushed.append(request)
            return request.response()

        asker.remoting.handlers[int(RequestCode.PUSH_REPLY_MESSAGE_TO_CLIENT)] = take
        await asker.heartbeat()
        ext = answerer.send_ext("C_REPLY_TOPIC", REPLY, f="1")
        if code is RequestCode.SEND_REPLY_MESSAGE:
            ext = {"producerGroup": "PG", "topic": ext["b"], "sysFlag": "1", "properties": ext["i"], "queueId": "0"}
        answer = await answerer.ask(code, ext, b"the answer")
        assert (answer.code, answer.text("msgId"), answer.integer("queueId")) == (0, "0", 0)
        (got,) = pushed
        assert bytes(got.body) == b"the answer"
        assert (got.text("topic"), got.integer("sysFlag")) == ("C_REPLY_TOPIC", 1)
        properties = parse_properties(got.text("properties").encode())
        assert properties.items() >= REPLY.items()
        assert int(properties["PUSH_REPLY_TIME"]) == got.integer("storeTimestamp")
        assert got.text("bornHost").startswith(f"{HOST}:")


@pytest.mark.asyncio
async def test_a_reply_that_nobody_waits_for_is_refused(tmp_path: Path) -> None:
    async with running(local_config(tmp_path)) as broker, Client(broker.address, "asker") as client:
        no_name = await client.ask(RequestCode.SEND_REPLY_MESSAGE_V2, client.send_ext("C_REPLY_TOPIC"), b"x")
        assert no_name.code == ResponseCode.SYSTEM_ERROR
        assert "REPLY_TO_CLIENT] is null" in (no_name.remark or "")
        ext = client.send_ext("C_REPLY_TOPIC", REPLY)
        gone = await client.ask(RequestCode.SEND_REPLY_MESSAGE_V2, ext, b"x")
        assert gone.code == ResponseCode.SYSTEM_ERROR
        assert "channel of <asker> not found" in (gone.remark or "")
        client.remoting.handlers[int(RequestCode.PUSH_REPLY_MESSAGE_TO_CLIENT)] = lambda request, _: request.response(
            ResponseCode.SYSTEM_ERROR, "too late"
        )
        await client.heartbeat()
        refused = await client.ask(RequestCode.SEND_REPLY_MESSAGE_V2, ext, b"x")
        assert refused.code == ResponseCode.SYSTEM_ERROR
        assert "too late" in (refused.remark or "")


@pytest.mark.asyncio
async def test_a_slave_of_the_log_hands_a_reply_to_the_master(tmp_path: Path) -> None:
    async with group_of_three(tmp_path) as group:
        master, slave = await group.master(), (await group.slaves())[0]
        async with Client(master.address, "asker") as asker, Client(slave.address) as answerer:
            pushed: asyncio.Queue[RemotingCommand] = asyncio.Queue()

            def take(request: RemotingCommand, _connection: object) -> RemotingCommand:
                pushed.put_nowait(request)
                return request.response()

            asker.remoting.handlers[int(RequestCode.PUSH_REPLY_MESSAGE_TO_CLIENT)] = take
            await asker.heartbeat()
            ext = answerer.send_ext("RaftCluster_REPLY_TOPIC", REPLY)
            answer = await answerer.ask(RequestCode.SEND_REPLY_MESSAGE_V2, ext, b"over the slave")
            assert answer.code == 0, answer.remark
            assert bytes((await pushed.get()).body) == b"over the slave"


@pytest.mark.asyncio
async def test_operators_questions_reach_the_consumer(tmp_path: Path) -> None:
    async with running(local_config(tmp_path)) as broker, Client(broker.address, "eater") as client:
        await client.create_topic("T")
        sent = await client.send("T", b"eat this")
        asked: list[RemotingCommand] = []

        def take(request: RemotingCommand, _connection: object) -> RemotingCommand:
            asked.append(request)
            return request.response(body=b'{"ok":true}')

        for code in (RequestCode.GET_CONSUMER_RUNNING_INFO, RequestCode.CONSUME_MESSAGE_DIRECTLY):
            client.remoting.handlers[int(code)] = take
        who = {"consumerGroup": "CG", "clientId": "eater"}
        offline = await client.ask(RequestCode.GET_CONSUMER_RUNNING_INFO, who)
        assert offline.code == ResponseCode.SYSTEM_ERROR
        assert "The Consumer <CG> <eater> not online" in (offline.remark or "")
        await client.heartbeat("CG")
        answer = await client.ask(RequestCode.GET_CONSUMER_RUNNING_INFO, {**who, "jstackEnable": "false"})
        assert (answer.code, bytes(answer.body)) == (0, b'{"ok":true}')
        assert asked[0].text("jstackEnable") == "false"
        await client.read_all("T", 0, 1)
        by_id = {**who, "msgId": sent.text("msgId")}
        answer = await client.ask(RequestCode.CONSUME_MESSAGE_DIRECTLY, by_id)
        assert (answer.code, bytes(answer.body)) == (0, b'{"ok":true}')
        assert asked[1].text("brokerName") == "b"
        assert [message.body for message in iter_messages(bytes(asked[1].body))] == [b"eat this"]
        for wrong in ("nonsense", "0" * 31 + "1"):
            refused = await client.ask(RequestCode.CONSUME_MESSAGE_DIRECTLY, {**by_id, "msgId": wrong})
            assert refused.code == ResponseCode.SYSTEM_ERROR
        assert len(asked) == 2


@pytest.mark.asyncio
async def test_lite_pull_is_a_pull(tmp_path: Path) -> None:
    """5.x's lite pull consumer sends 361; with code 3 for an answer it waited for messages for ever."""
    async with running(local_config(tmp_path)) as broker, Client(broker.address) as client:
        await client.send("T", b"one")
        await client.read_all("T", 0, 1)
        ext = {
            "consumerGroup": "CG", "topic": "T", "queueId": 0, "queueOffset": 0, "maxMsgNums": 32, "sysFlag": 4 | 16,
            "commitOffset": 0, "suspendTimeoutMillis": 0, "subscription": "*", "subVersion": 1, "expressionType": "TAG",
        }  # fmt: skip
        answer = await client.ask(RequestCode.LITE_PULL_MESSAGE, ext)
        assert answer.code == 0, answer.remark
        assert [message.body for message in iter_messages(bytes(answer.body))] == [b"one"]


@pytest.mark.asyncio
async def test_what_upstreams_tools_read(tmp_path: Path) -> None:
    async with running(local_config(tmp_path, trace_topic_enable=True)) as broker, Client(broker.address) as client:
        await client.create_topic("T", 2)
        for number in range(3):
            await client.send("T", b"%d" % number)
        await client.read_all("T", 0, 3)
        await client.heartbeat("CG")
        await client.commit("T", 0, 1)

        async def read(code: RequestCode, **ext: Any) -> Any:
            answer = await client.ask(code, ext)
            assert answer.code == 0, answer.remark
            return bytes(answer.body).decode()

        topic = json.loads(await read(RequestCode.GET_TOPIC_CONFIG, topic="T"))
        assert (topic["topicName"], topic["readQueueNums"], topic["perm"]) == ("T", 2, 6)
        trace = json.loads(await read(RequestCode.GET_TOPIC_CONFIG, topic="RMQ_SYS_TRACE_TOPIC"))
        assert trace["writeQueueNums"] == 1
        assert (await client.ask(RequestCode.GET_TOPIC_CONFIG, {"topic": "No"})).code == ResponseCode.TOPIC_NOT_EXIST
        group = json.loads(await read(RequestCode.GET_SUBSCRIPTIONGROUP_CONFIG, group="CG"))
        assert (group["groupName"], group["retryMaxTimes"]) == ("CG", 16)
        nobody = await client.ask(RequestCode.GET_SUBSCRIPTIONGROUP_CONFIG, {"group": "No"})
        assert nobody.code == ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST
        assert json.loads(await read(RequestCode.QUERY_TOPICS_BY_CONSUMER, group="CG")) == {"topicList": ["T"]}
        (producer,) = json.loads(await read(RequestCode.GET_ALL_PRODUCER_INFO))["data"]["PG"]
        assert (producer["clientId"], producer["version"]) == ("client-1", 409)
        everything = await read(RequestCode.GET_BROKER_CONSUME_STATS, isOrder="false")
        # A MessageQueue is a key in it, as fastjson writes one: no JSON that this library reads.
        assert '{"CG":[{"consumeTps":' in everything
        assert '"queueId":0,"topic":"T"}:{"brokerOffset":3,"consumerOffset":1,' in everything
        assert everything.endswith('"totalDiff":2}')
        assert '"consumeStatsList":[]' in await read(RequestCode.GET_BROKER_CONSUME_STATS, isOrder="true")
        settings = dict(line.split("=", 1) for line in (await read(RequestCode.GET_BROKER_CONFIG)).splitlines())
        assert settings["traceTopicEnable"] == "true"
        assert {"filterServerNums", "msgTraceTopicName", "useTLS"} <= set(settings)
        table = json.loads(await read(RequestCode.GET_BROKER_RUNTIME_INFO))["table"]
        assert table["msgPutTotalTodayMorning"] == "0"
        assert float(table["putMessageAverageSize"]) > 0


@pytest.mark.asyncio
async def test_the_name_server_tells_its_settings() -> None:
    async with name_server() as server, Client(f"{HOST}:{server.port}") as client:
        answer = await client.ask(RequestCode.GET_NAMESRV_CONFIG)
        settings = dict(line.split("=", 1) for line in bytes(answer.body).decode().splitlines())
        assert settings["listenPort"] == str(server.port)
        assert settings["brokerChannelExpiredTime"] == str(NameServerOptions().broker_timeout_ms)


@pytest.fixture
def calendar(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The day of the year, and seconds that pass, both set by the test."""
    now = [100, 0]

    class Clock:
        time = staticmethod(lambda: 0.0)
        monotonic = staticmethod(lambda: float(now[1]))
        localtime = staticmethod(lambda: type("Day", (), {"tm_yday": now[0]}))

    monkeypatch.setattr(stats_module, "time", Clock)
    yield now


def test_mornings_are_where_the_counters_stood_at_midnight(calendar: list[int]) -> None:
    stats = BrokerStats()
    seen = []
    for day, put, got in ((100, 5, 2), (101, 7, 3), (102, 4, 0)):
        calendar[0], calendar[1] = day, calendar[1] + 10
        stats.sample()
        stats.put_count += put
        stats.get_count += got
        table = stats.to_runtime()
        names = ("msgPutTotalYesterdayMorning", "msgPutTotalTodayMorning", "msgPutTotalTodayNow")
        seen.append([int(table[name]) for name in names])
    assert seen == [[0, 0, 5], [0, 5, 12], [5, 12, 16]]
