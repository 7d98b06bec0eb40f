"""Unmodified clients against three real broker processes: what they send arrives, however they send it."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.interop.conftest import Clients, Process, RealGroup

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]


def collected(process: Process, count: int, timeout_s: float = 60) -> list[dict[str, Any]]:
    """The consumer's lines once there are ``count``."""
    deadline = time.monotonic() + timeout_s
    while len(process.lines) < count:
        assert time.monotonic() < deadline, f"{len(process.lines)} of {count}: {process.lines[-3:]}"
        time.sleep(0.05)
    return list(process.lines)


def test_send_and_push_consumption(clients: Clients, real_group: RealGroup) -> None:
    topic = f"Plain-{clients.kind}"
    real_group.create_topic(topic)
    consumer = clients.run("consume", f"G-{topic}", topic, "*")
    producer = clients.run("produce", f"P-{topic}", topic)
    for number in range(40):
        sent = producer.ask(body=f"m{number}", tags="A", keys=f"k{number}")
        assert (sent["ok"], sent["status"]) == (True, 0)
    got = collected(consumer, 40)
    assert sorted(line["body"] for line in got) == sorted(f"m{number}" for number in range(40))
    assert {(line["tags"], line["again"]) for line in got} == {("A", 0)}
    assert f"k{got[0]['body'][1:]}" in got[0]["keys"]
    assert "m7" in real_group.admin("queryMsgByKey", "-t", topic, "-k", "k7", "-o", "json")


def test_a_large_body_survives(clients: Clients, real_group: RealGroup) -> None:
    topic = f"Large-{clients.kind}"
    real_group.create_topic(topic)
    consumer = clients.run("consume", f"G-{topic}", topic, "*")
    producer = clients.run("produce", f"P-{topic}", topic)
    # The C++ client's own limit is 128 KiB; both compress what is longer than 4 KiB.
    body = "".join(f"line {number} of a long text\n" for number in range(4_000))
    assert producer.ask(body=body)["ok"]
    assert collected(consumer, 1)[0]["body"] == body


def test_tags(clients: Clients, real_group: RealGroup) -> None:
    topic = f"Tags-{clients.kind}"
    real_group.create_topic(topic)
    consumer = clients.run("consume", f"G-{topic}", topic, "A || B")
    producer = clients.run("produce", f"P-{topic}", topic)
    for number in range(30):
        assert producer.ask(body=f"m{number}", tags="ABC"[number % 3])["ok"]
    got = collected(consumer, 20)
    assert {line["tags"] for line in got} == {"A", "B"}
    assert sorted(line["body"] for line in got) == sorted(f"m{n}" for n in range(30) if n % 3 != 2)


def test_one_queue_keeps_its_order(clients: Clients, real_group: RealGroup) -> None:
    topic = f"Order-{clients.kind}"
    real_group.create_topic(topic)
    orderly = ["orderly"] if clients.kind == "cpp" else []
    consumer = clients.run("consume", f"G-{topic}", topic, "*", *orderly)
    producer = clients.run("produce", f"P-{topic}", topic)
    for number in range(40):
        # A key that ali-ons does not map to queue 0, which it takes for "any".
        assert producer.ask(body=f"m{number}", key=2)["ok"]
    got = collected(consumer, 40)
    assert [line["body"] for line in got] == [f"m{number}" for number in range(40)]
    assert len({line["queue"] for line in got}) == 1


def test_a_failed_message_comes_again(clients: Clients, real_group: RealGroup) -> None:
    topic = f"Retry-{clients.kind}"
    real_group.create_topic(topic)
    consumer = clients.run("consume", f"G-{topic}", topic, "*", "failfirst")
    producer = clients.run("produce", f"P-{topic}", topic)
    assert producer.ask(body="again")["ok"]
    # The clients learn of the retry topic with their next look at the routes, every 30 s.
    first, second = collected(consumer, 2, 90)
    assert (first["body"], first["again"], first["failed"]) == ("again", 0, True)
    assert (second["body"], second["again"], second["failed"]) == ("again", 1, False)
    assert "again" in real_group.admin("consumeMessage", "-t", f"%RETRY%G-{topic}")


def test_a_message_that_always_fails_ends_in_the_dead_letters(clients: Clients, real_group: RealGroup) -> None:
    topic = f"Dead-{clients.kind}"
    group = f"G-{topic}"
    real_group.create_topic(topic)
    # The C++ client leaves the limit to the group's configuration, the Node client names its own in the send-back.
    assert "success" in real_group.admin("updateSubGroup", "-c", "RaftCluster", "-g", group, "-r", "1")
    consumer = clients.run("consume", group, topic, "*", "failalways")
    producer = clients.run("produce", f"P-{topic}", topic)
    assert producer.ask(body="never")["ok"]
    deadline = time.monotonic() + 120
    while "#QID" not in real_group.admin("topicStatus", "-t", f"%DLQ%{group}"):
        assert time.monotonic() < deadline, f"no dead letter: {consumer.lines}"
    assert [line["again"] for line in consumer.lines] == [0, 1]


def test_delay(clients: Clients, real_group: RealGroup) -> None:
    topic = f"Delay-{clients.kind}"
    real_group.create_topic(topic)
    consumer = clients.run("consume", f"G-{topic}", topic, "*")
    producer = clients.run("produce", f"P-{topic}", topic)
    sent_at = time.time()
    assert producer.ask(body="later", delay=4)["ok"]
    assert producer.ask(body="now")["ok"]
    got = {line["body"]: line for line in collected(consumer, 2)}
    assert got["later"]["at"] - sent_at >= 1.9
    assert got["now"]["at"] < got["later"]["at"]


def test_oneway_batch_and_pull_of_the_cpp_client(cpp: Clients, real_group: RealGroup) -> None:
    topic = "Ways-cpp"
    real_group.create_topic(topic)
    producer = cpp.run("produce", f"P-{topic}", topic)
    for number in range(10):
        assert producer.ask(body=f"o{number}", oneway=True)["ok"]
    assert producer.ask(batch=[f"b{number}" for number in range(20)])["ok"]
    # Above 4 KiB this client compresses the batch as a whole.
    large = [f"c{number}" + "x" * 500 for number in range(20)]
    assert producer.ask(batch=large)["ok"]
    puller = cpp.run("pull", f"G-{topic}", topic, "50", wait=False)
    got = collected(puller, 50)
    wanted = [f"o{number}" for number in range(10)] + [f"b{number}" for number in range(20)] + large
    assert sorted(line["body"] for line in got) == sorted(wanted)


def test_two_consumers_share_the_queues(clients: Clients, real_group: RealGroup) -> None:
    topic = f"Share-{clients.kind}"
    real_group.create_topic(topic)
    group = f"G-{topic}"
    first = clients.run("consume", group, topic, "*")
    second = clients.run("consume", group, topic, "*")
    producer = clients.run("produce", f"P-{topic}", topic)
    bodies: set[str] = set()
    deadline = time.monotonic() + 90
    while not (first.lines and second.lines):
        body = f"m{len(bodies)}"
        assert producer.ask(body=body)["ok"]
        bodies.add(body)
        assert time.monotonic() < deadline, "one consumer got nothing"
    while {line["body"] for line in first.lines + second.lines} != bodies:
        assert time.monotonic() < deadline, "a message is missing"
        time.sleep(0.05)
