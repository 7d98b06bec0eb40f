"""The broker's page under RocketMQ's names, after real sends and pulls."""

from __future__ import annotations

import re

import pytest

from broker_adapter.metrics import RpcWatch
from broker_adapter.remoting.client import RemotingClient
from broker_adapter.remoting.codes import RequestCode
from broker_adapter.remoting.command import RemotingCommand
from tests.broker.harness import local_config, running
from tests.metrics.conftest import fetch, promtool

pytestmark = pytest.mark.asyncio

SEND = {"a": "g", "b": "T", "c": "TBW102", "d": 4, "e": 0, "f": 0, "g": 1, "h": 0, "i": "", "j": 0}
PULL = {
    "consumerGroup": "C", "topic": "T", "queueId": 0, "queueOffset": 0, "maxMsgNums": 32, "sysFlag": 4,
    "commitOffset": 0, "suspendTimeoutMillis": 0, "subscription": "*", "subVersion": 0, "expressionType": "TAG",
}  # fmt: skip


def value(page: str, name: str, **labels: str) -> float:
    for line in page.splitlines():
        if line.startswith((f"{name}{{", f"{name} ")) and all(
            f'{key}="{text}"' in line for key, text in labels.items()
        ):
            return float(line.rsplit(" ", 1)[1])
    raise AssertionError(f"no {name} {labels} in\n{page}")


async def test_what_passed_through_is_there_under_rocketmqs_names(tmp_path, monkeypatch):
    monkeypatch.setattr(RpcWatch, "EVERY", 1)
    config = local_config(tmp_path, metrics_exporter_type="PROM", metrics_prom_exporter_port=0)
    async with running(config) as broker:
        client = RemotingClient()
        topic = {"topic": "T", "readQueueNums": 1, "writeQueueNums": 1, "perm": 6, "defaultTopic": "TBW102"}
        await client.invoke(broker.address, RemotingCommand(int(RequestCode.UPDATE_AND_CREATE_TOPIC), topic))
        for _ in range(5):
            sent = await client.invoke(
                broker.address, RemotingCommand(int(RequestCode.SEND_MESSAGE_V2), dict(SEND), b"x")
            )
            assert sent.code == 0, sent.remark
        await broker.store.wait_dispatched()
        pulled = await client.invoke(broker.address, RemotingCommand(int(RequestCode.PULL_MESSAGE), dict(PULL)))
        assert pulled.code == 0, pulled.remark
        offset = {"consumerGroup": "C", "topic": "T", "queueId": 0, "commitOffset": 3}
        await client.invoke(broker.address, RemotingCommand(int(RequestCode.UPDATE_CONSUMER_OFFSET), offset))
        status, page = await fetch(broker.metrics_address, "/metrics")
        assert status == 200
        assert await fetch(broker.metrics_address, "/readyz") == (200, "ok\n")
        await client.close()
    checked = promtool("check", "metrics", page=page.encode())
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
    assert value(page, "rocketmq_messages_in_total", topic="T", cluster="C", node_id="b") == 5
    assert value(page, "rocketmq_messages_out_total", topic="T", consumer_group="C") == 5
    assert value(page, "rocketmq_consumer_lag_messages", topic="T", consumer_group="C") == 2
    assert value(page, "rocketmq_storage_dispatch_behind_bytes") == 0
    assert value(page, "rocketmq_storage_size") > 5
    assert value(page, "rocketmq_broker_is_master") == 1
    sends = {"request_code": "send_message_v2", "response_code": "0"}
    assert value(page, "rocketmq_rpc_latency_count", **sends) == 5
    assert 0 < value(page, "rocketmq_rpc_latency_sum", **sends) < 60_000
    assert set(re.findall(r"^# TYPE (\S+)", page, re.M)) >= {"rocketmq_throughput_in_total", "rocketmq_topic_number"}


async def test_nothing_is_served_unless_the_file_asks(tmp_path):
    async with running(local_config(tmp_path)) as broker:
        assert broker.metrics_address is None
        assert broker.remoting_server.watch is None


async def test_requests_are_timed_by_sample_and_bounded():
    watch, connection = RpcWatch(), object()
    for number in range(RpcWatch.EVERY * 3000):
        watch.began(connection, RemotingCommand(10, opaque=number))
    assert len(watch._open) == 1024
    for number in range(RpcWatch.EVERY * 3000):
        watch.ended(connection, RemotingCommand(10, opaque=number), 0)
    assert watch.latency[10, 0].count == 1024
    assert not watch._open
