"""mqadmin against a running broker: upstream's columns, JSON, exit codes."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import broker_adapter.admin.commands  # noqa: F401 - registers the commands
from broker_adapter.admin.client import parse_offset_table
from broker_adapter.admin.main import cli
from dledger.local_group import free_ports
from tests.broker.harness import HOST, Client, eventually, local_config, name_server, running


class Served:
    """A name server and a broker on a thread of their own, so that the command runs as its users run it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self.namesrv = ""
        self.broker = ""

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with name_server() as server, running(local_config(self._root, server)) as broker:
            await eventually(lambda: server.routes.brokers)
            self.namesrv, self.broker = f"{HOST}:{server.port}", broker.address
            self._ready.set()
            await self._stop.wait()

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(20)

    def stop(self) -> None:
        assert self._loop is not None
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(cli, [*arguments, "-n", self.namesrv], standalone_mode=False, catch_exceptions=False)

    def json(self, *arguments: str) -> Any:
        result = self.run(*arguments)
        assert result.return_value == 0, result.output
        return json.loads(result.stdout)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    one = Served(tmp_path_factory.mktemp("admin"))
    one.start()
    yield one
    one.stop()


def test_cluster_list(served: Served) -> None:
    lines = served.run("clusterList").stdout.splitlines()
    assert lines[0].split() == [
        "#Cluster", "Name", "#Broker", "Name", "#BID", "#Addr", "#Version", "#InTPS(LOAD)", "#OutTPS(LOAD)",
        "#PCWait(ms)", "#Hour", "#SPACE",
    ]  # fmt: skip
    assert lines[1].split()[:5] == ["C", "b", "0", served.broker, "V4_9_8"]
    (row,) = served.json("clusterList", "-o", "json")
    assert (row["brokerId"], row["up"]) == (0, True)


def test_topics(served: Served) -> None:
    made = served.run("updateTopic", "-c", "C", "-t", "Adm", "-r", "3", "-w", "2")
    assert made.return_value == 0
    assert f"create topic to {served.broker} success." in made.stdout
    assert _soon(lambda: "Adm" in served.run("topicList").stdout.split())
    route = served.json("topicRoute", "-t", "Adm")
    assert (route["queueDatas"][0]["readQueueNums"], route["queueDatas"][0]["writeQueueNums"]) == (3, 2)
    status = served.run("topicStatus", "-t", "Adm").stdout.splitlines()
    assert status[0].split() == ["#Broker", "Name", "#QID", "#Min", "Offset", "#Max", "Offset", "#Last", "Updated"]
    assert len(status) == 4
    gone = served.run("deleteTopic", "-c", "C", "-t", "Adm")
    assert "from cluster [C] success" in gone.stdout
    assert served.run("topicRoute", "-t", "Adm").return_value == 6


def test_messages(served: Served) -> None:
    served.run("updateTopic", "-c", "C", "-t", "Msg", "-r", "1", "-w", "1")
    assert _soon(lambda: served.run("topicRoute", "-t", "Msg").return_value == 0)
    sent = served.json("sendMessage", "-t", "Msg", "-p", "hello", "-k", "key1", "-c", "tagA", "-o", "json")
    assert (sent["sendResult"], sent["queueOffset"]) == ("SEND_OK", 0)
    shown = served.json("queryMsgById", "-i", sent["msgId"], "-o", "json")
    assert (shown["Message Body"], shown["Tags"], shown["Keys"], shown["OffsetID"]) == (
        "hello", "tagA", "key1", sent["msgId"],
    )  # fmt: skip
    assert _soon(lambda: served.run("queryMsgByKey", "-t", "Msg", "-k", "key1").return_value == 0)
    by_offset = served.run("queryMsgByOffset", "-t", "Msg", "-b", "b", "-i", "0", "-o", "0")
    assert "hello" in by_offset.stdout
    as_json = served.json("queryMsgByOffset", "-t", "Msg", "-b", "b", "-i", "0", "-o", "0", "-o", "json")
    assert as_json["Message Body"] == "hello"
    assert served.json("consumeMessage", "-t", "Msg", "-i", "0", "-o", "0", "-o", "json")["OffsetID"] == sent["msgId"]
    consumed = served.run("consumeMessage", "-t", "Msg")
    assert consumed.stdout.splitlines() == [f"MSGID: {sent['msgId']} Msg 0 BODY: hello"]
    assert served.run("queryMsgByKey", "-t", "Msg", "-k", "none").return_value == 6
    assert served.run("queryMsgByOffset", "-t", "Msg", "-b", "b", "-i", "0", "-o", "9").return_value == 6
    missing = sent["msgId"][:-2] + "01"
    assert served.run("queryMsgById", "-i", missing).return_value == 1


def test_groups_and_progress(served: Served) -> None:
    served.run("updateTopic", "-c", "C", "-t", "Prog", "-r", "1", "-w", "1")
    assert _soon(lambda: served.run("topicRoute", "-t", "Prog").return_value == 0)
    assert served.run("updateSubGroup", "-c", "C", "-g", "PG1", "-r", "3").return_value == 0

    async def consume() -> None:
        async with Client(served.broker) as client:
            for _ in range(4):
                await client.send("Prog", b"x")
            await client.heartbeat("PG1", topics=("Prog",))
            assert len(await client.pull_messages("Prog", consumerGroup="PG1")) == 4
            await client.commit("Prog", 0, 1, "PG1")

    asyncio.run(consume())
    assert _soon(lambda: served.json("consumerProgress", "-g", "PG1", "-o", "json")["diffTotal"] == 3)
    lines = served.run("consumerProgress", "-g", "PG1").stdout.splitlines()
    assert lines[0].split()[:2] == ["#Topic", "#Broker"]
    assert lines[-1] == "Diff Total: 3"
    assert float(lines[-2].removeprefix("Consume TPS: ")) > 0
    assert served.json("consumerProgress", "-g", "PG1", "-o", "json")["consumeTps"] > 0
    assert any(row["group"] == "PG1" for row in served.json("consumerProgress", "-o", "json"))
    reset = served.json("resetOffsetByTime", "-g", "PG1", "-t", "Prog", "-s", "0", "-o", "json")
    assert reset == [{"brokerName": "b", "queueId": 0, "offset": 0}]
    assert served.json("consumerProgress", "-g", "PG1", "-o", "json")["diffTotal"] == 4
    assert served.run("consumerProgress", "-g", "Nobody").return_value == 6


def test_status(served: Served) -> None:
    table = served.json("brokerStatus", "-b", served.broker, "-o", "json")[served.broker]
    assert table["brokerVersionDesc"] == "V4_9_8"
    assert served.run("brokerStatus", "-c", "C").stdout.count(served.broker) > 20
    ha = served.json("haStatus", "-c", "C", "-o", "json")[served.broker]
    assert (ha["master"], ha["brokerRole"]) == (True, "ASYNC_MASTER")
    assert served.run("haStatus", "-b", served.broker).return_value == 0
    assert served.run("dledgerStatus", "-c", "C").return_value == 6


def test_exit_codes(served: Served) -> None:
    runner = CliRunner()
    nobody = f"{HOST}:{free_ports(1)[0]}"
    assert runner.invoke(cli, ["clusterList", "-n", nobody], standalone_mode=False).return_value == 5
    assert runner.invoke(cli, ["clusterList"], standalone_mode=False, env={"NAMESRV_ADDR": ""}).return_value == 5
    assert served.run("updateTopic", "-c", "Nowhere", "-t", "x").return_value == 6
    assert served.run("updateTopic", "-c", "C", "-t", "bad topic!").return_value == 1
    for wrong in (["updateTopic", "-t", "x"], ["nonsense"], ["queryMsgById", "-i", "zz"]):
        assert runner.invoke(cli, [*wrong, *([] if wrong == ["nonsense"] else ["-n", served.namesrv])]).exit_code == 2


def test_queues_as_keys() -> None:
    body = b'{"consumeTps":0.0,"offsetTable":{{"brokerName":"b","queueId":1,"topic":"T"}:{"a":1},' \
        b'{"brokerName":"b","queueId":0,"topic":"T"}:{"a":2}}}'  # fmt: skip
    assert [(row.queue_id, row.value) for row in parse_offset_table(body)] == [(0, {"a": 2}), (1, {"a": 1})]
    plain = b'{"offsetTable":{{"brokerName":"b","queueId":1,"topic":"T"}:-5}}'
    assert parse_offset_table(plain)[0].value == -5
    assert parse_offset_table(b'{"offsetTable":{}}') == []


def _soon(check: Callable[[], Any], timeout_s: float = 10.0) -> bool:
    """Ask again until it is so; each question is a whole command with an event loop of its own."""
    deadline = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline, f"not so within {timeout_s} s"
    return True
