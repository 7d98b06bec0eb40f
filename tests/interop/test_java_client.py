"""Apache's Java client and its mqadmin, unmodified, 4.9 and 5.3, against three real broker processes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop import scenarios
from tests.interop.conftest import JAVA_VERSIONS, RealGroup, java_driver
from tests.interop.driver import Driver, DriverError

pytestmark = [pytest.mark.interop, pytest.mark.timeout(400)]

POLLS = 30
ACL_FILE = """accounts:
  - accessKey: operator1
    secretKey: operators-secret
    admin: true
  - accessKey: producer1
    secretKey: producers-secret
    defaultTopicPerm: PUB|SUB
    defaultGroupPerm: SUB
"""


@pytest.fixture(scope="module", params=JAVA_VERSIONS)
def java(request: pytest.FixtureRequest, real_group: RealGroup) -> Iterator[Driver]:
    # 5.x is told by a setting of the producer how to compress; 4.9 by this property.
    driver = java_driver(request.param, real_group, "-Drocketmq.message.compressType=LZ4")
    yield driver
    driver.end()


@pytest.mark.parametrize("scenario", scenarios.ALL, ids=lambda scenario: scenario.__name__)
def test_java(java: Driver, real_group: RealGroup, scenario: scenarios.Scenario) -> None:
    if scenario is scenarios.a_request_is_answered and java.kind == "java533":
        pytest.skip("5.3.3's request() ends as soon as the broker has acknowledged it, with or without an answer")
    scenario(java, real_group)


def test_sql_filters_are_refused(java: Driver, real_group: RealGroup) -> None:
    topic = scenarios.topic_of("Sql", java)
    with pytest.raises(DriverError, match="filter message by SQL92") as caught:
        java.push(topic, sql=True, expression="price > 10")
    assert caught.value.code == 3


def _polled(java: Driver, consumer: str, count: int) -> list[str]:
    got: list[str] = []
    for _ in range(POLLS):
        got += [message["body"] for message in java.do("poll", id=consumer, timeout=1000)["messages"]]
        if len(got) >= count:
            break
    return sorted(got)


def test_the_lite_pull_consumer_seeks(java: Driver, real_group: RealGroup) -> None:
    """5.x asks with a request code of its own (361)."""
    topic = scenarios.topic_of("Lite", java)
    producer, consumer = java.producer(), java.name("lite")
    early = [f"early{number}" for number in range(6)]
    for number, body in enumerate(early):
        java.do("send", id=producer, topic=topic, body=body, queue=number % 4)
    time.sleep(0.01)  # the boundary between early and late, in the broker's milliseconds
    boundary = int(time.time() * 1000)
    time.sleep(0.01)
    late = [f"late{number}" for number in range(6)]
    for number, body in enumerate(late):
        java.do("send", id=producer, topic=topic, body=body, queue=number % 4)
    java.do("lite", id=consumer, group=f"G-{topic}", topic=topic, assign=True)
    java.do("seek", id=consumer, topic=topic, to="begin")
    assert _polled(java, consumer, 12) == early + late
    java.do("seek", id=consumer, topic=topic, time=boundary)
    assert _polled(java, consumer, 6) == late
    java.do("seek", id=consumer, topic=topic, to="end")
    assert java.do("poll", id=consumer, timeout=300)["messages"] == []


def test_the_old_pull_consumer(java: Driver, real_group: RealGroup) -> None:
    topic = scenarios.topic_of("OldPull", java)
    producer = java.producer()
    for number in range(5):
        java.do("send", id=producer, topic=topic, body=f"m{number}", tags="AB"[number % 2], queue=1)
    asked = {"id": java.name("puller"), "group": f"G-{topic}", "topic": topic, "queue": 1}
    now = int(time.time() * 1000)
    got = java.do("pull", **asked, offset=0, expression="A", time=now - 600_000, update=3)
    assert [message["body"] for message in got["messages"]] == ["m0", "m2", "m4"]
    assert (got["pulled"], got["next"], got["minOffset"], got["maxOffset"], got["byTime"]) == ("FOUND", 5, 0, 5, 0)
    assert abs(got["earliest"] - now) < 60_000
    got = java.do("pull", **asked, offset=1_000)
    assert (got["pulled"], got["messages"]) == ("OFFSET_ILLEGAL", [])
    assert got["stored"] == 3


def test_messages_are_found_by_key_and_by_id(java: Driver, real_group: RealGroup) -> None:
    topic = scenarios.topic_of("Find", java)
    producer = java.producer()
    sent = java.do("send", id=producer, topic=topic, body="found", keys="order-7 other")
    for text in (sent["msgId"], sent["offsetMsgId"]):
        assert java.do("view", id=producer, topic=topic, msgId=text)["message"]["body"] == "found"
    assert [m["msgId"] for m in java.do("query", id=producer, topic=topic, key="order-7")["messages"]] == [
        sent["msgId"]
    ]
    with pytest.raises(DriverError, match="no message"):
        java.do("query", id=producer, topic=topic, key="order-8")


def test_every_compression(java: Driver, real_group: RealGroup) -> None:
    """The type stands in the message's flags and is the clients' affair; the broker keeps them as they are."""
    topic = scenarios.topic_of("Packed", java)
    consumer = java.push(topic)
    types = {"LZ4": 1, "ZSTD": 2, "ZLIB": 3}
    if java.kind == "java498":
        types = {"LZ4": 1}
        producers = {"LZ4": java.producer()}
    else:
        producers = {name: java.producer(compression=name) for name in types}
    for name, producer in producers.items():
        java.do("send", id=producer, topic=topic, body=f"{name} {scenarios.LONG_BODY}")
    got = java.consumed(consumer, [f"{name} {scenarios.LONG_BODY}" for name in types])
    assert {event["body"].split()[0]: event["sysFlag"] >> 8 & 7 for event in got} == types


def test_upstreams_mqadmin(java: Driver, real_group: RealGroup, tmp_path: Path) -> None:
    """Its own tools, by what they print: they swallow failures, so what a command must say is looked for."""
    topic, name = java.name("Admin"), java.name("AdminGroup")

    def admin(*arguments: str) -> str:
        return str(java.do("admin", args=list(arguments))["text"])

    assert "success" in admin("updateTopic", "-c", "RaftCluster", "-t", topic, "-r", "4", "-w", "4")
    assert "success" in admin("updateSubGroup", "-c", "RaftCluster", "-g", name, "-r", "3")
    real_group.admin_until(topic, "topicList")
    producer, consumer = java.producer(), java.push(topic, group=name)
    sent = java.do("send", id=producer, topic=topic, body="seen", keys="admin-key")
    java.consumed(consumer, ["seen"])
    # Consumers commit every 5 s; some of the tables hold only what is committed.
    real_group.admin_until('"diffTotal": 0', "consumerProgress", "-g", name, "-o", "json")
    master = f"127.0.0.1:{real_group.ports[real_group.master()]}"
    client_id = f"@{consumer}"
    consumer_id = _id_of(admin("consumerConnection", "-g", name))
    is_old = java.kind == "java498"
    by_id = ["queryMsgById", "-i", sent["offsetMsgId"], *([] if is_old else ["-t", topic])]
    for arguments, wanted in (
        (["clusterList"], ["RaftCluster", "RaftNode00", master, "V4_9_8"]),
        (["clusterList", "-m"], ["#InTotalYest", "RaftNode00"]),
        (["topicList"], [topic, f"%RETRY%{name}"]),
        (["topicRoute", "-t", topic], [master, "writeQueueNums"]),
        (["topicStatus", "-t", topic], ["RaftNode00"]),
        (["topicClusterList", "-t", topic], ["RaftCluster"]),
        (["updateTopicPerm", "-t", topic, "-b", master, "-p", "4"], ["R--"]),
        (["updateTopicPerm", "-t", topic, "-b", master, "-p", "6"], ["RW-"]),
        (["brokerStatus", "-b", master], ["SYNC_MASTER", "putTps", "msgPutTotalTodayMorning"]),
        (["getBrokerConfig", "-b", master], ["dLegerSelfId", "traceTopicEnable"]),
        (["getNamesrvConfig"], ["listenPort"]),
        (["brokerConsumeStats", "-b", master], [topic, name, "Diff Total"]),
        (["consumerProgress", "-g", name], [topic, "Diff Total"]),
        (["consumerProgress"], [name]),
        (["consumerConnection", "-g", name], [client_id, "CONSUME_PASSIVELY", topic]),
        (["consumerStatus", "-g", name], [client_id, "Rebalance OK"]),
        (["consumerStatus", "-g", name, "-i", consumer_id], [topic, "PROP_"]),
        (["producer", "-b", master], [f"@{producer}"]),
        (["producerConnection", "-g", f"P-{producer}-{java.kind}", "-t", topic], [f"@{producer}"]),
        (["queryMsgByKey", "-t", topic, "-k", "admin-key"], [sent["msgId"]]),
        (["queryMsgByUniqueKey", "-i", sent["msgId"], "-t", topic], ["admin-key", "CONSUME"]),
        (by_id, ["admin-key", "CONSUME"]),
        ([*by_id, "-g", name, "-d", consumer_id], ["CR_SUCCESS"]),
        (["resetOffsetByTime", "-g", name, "-t", topic, "-s", "0"], ["#offset", "RaftNode00"]),
        (["skipAccumulatedMessage", "-g", name, "-t", topic], ["#offset", "RaftNode00"]),
        (["cloneGroupOffset", "-s", name, "-d", f"{name}x", "-t", topic], ["clone group offset success"]),
        (["updateOrderConf", "-m", "put", "-t", topic, "-v", "RaftNode00:4"], ["success"]),
        (["wipeWritePerm", "-b", "RaftNode00"], ["OK"]),
        (["addWritePerm", "-b", "RaftNode00"], ["OK"]),
        (["checkMsgSendRT", "-t", topic, "-a", "2", "-s", "10"], ["true", "Avg RT"]),
        (["statsAll", "-t", topic], [topic, name]),
        (["exportConfigs", "-c", "RaftCluster", "-f", str(tmp_path)], ["success"]),
        (["exportMetrics", "-c", "RaftCluster", "-f", str(tmp_path)], ["success"]),
        (["exportMetadata", "-c", "RaftCluster", "-f", str(tmp_path)], ["success"]),
        (["updateBrokerConfig", "-b", master, "-k", "flushDiskType", "-v", "ASYNC_FLUSH"], ["CODE: 3", "restart"]),
        (["deleteSubGroup", "-c", "RaftCluster", "-g", name], ["success"]),
        (["deleteTopic", "-c", "RaftCluster", "-t", topic], ["success"]),
    ):
        said = admin(*arguments)
        missing = [word for word in wanted if word not in said]
        assert not missing, f"mqadmin {' '.join(arguments)}: no {missing} in:\n{said}"


def _id_of(connections: str) -> str:
    """The client id in consumerConnection's table."""
    return next(word for word in connections.split() if "@" in word)


def test_signed_requests(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """With access control on, the client's AclClientRPCHook is let in, a wrong secret and an unsigned send are not."""
    root = tmp_path_factory.mktemp("acl")
    accounts = root / "plain_acl.yml"
    accounts.write_text(ACL_FILE, encoding="utf-8")
    monkeypatch.setenv("ROCKETMQ_ACCESS_KEY", "operator1")
    monkeypatch.setenv("ROCKETMQ_SECRET_KEY", "operators-secret")
    group = RealGroup(root, f"aclEnable=true\naclFile={accounts}")
    driver = None
    try:
        tools = root / "conf" / "tools.yml"  # whose keys upstream's mqadmin signs with
        tools.parent.mkdir()
        tools.write_text("accessKey: operator1\nsecretKey: operators-secret\n", encoding="utf-8")
        driver = java_driver(JAVA_VERSIONS[0], group)
        topic = driver.name("Signed")
        driver.create_topic(topic)
        right = {"accessKey": "producer1", "secretKey": "producers-secret"}
        consumer = driver.push(topic, **right)
        driver.do("send", id=driver.producer(**right), topic=topic, body="signed")
        driver.consumed(consumer, ["signed"])
        for wrong in ({}, {**right, "secretKey": "another-secret"}):
            with pytest.raises(DriverError) as caught:
                driver.do("send", id=driver.producer(**wrong), topic=topic, body="not signed")
            assert caught.value.code == 16
        tools.write_text("accessKey: producer1\nsecretKey: producers-secret\n", encoding="utf-8")
        refused = driver.do("admin", args=["deleteTopic", "-c", "RaftCluster", "-t", topic])
        assert "is no admin" in refused["text"]
    finally:
        if driver is not None:
            driver.end()
        group.stop()
