"""What every client of the reference implementations must be able to do; Java's and Go's tests run these.

Each takes the client program and the group; topics are named after the client, so that one group serves all.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import pytest

from tests.interop.conftest import RealGroup
from tests.interop.driver import Driver, DriverError

LONG_BODY = "".join(f"line {number} of a long text\n" for number in range(2_000))
"""Clients compress what is longer than 4 KiB."""

RESTART_AFTER_S = 0.5
MESSAGES_BEFORE_KILL = 100
KILL_LIMIT_S = 120.0
REQUEST_TRIES = 15

Scenario = Callable[[Driver, RealGroup], None]


def topic_of(what: str, driver: Driver, queues: int = 4) -> str:
    """Make a topic of the scenario's own, with the client's own admin; its name."""
    name = driver.name(f"{what}-{driver.kind}-")
    driver.create_topic(name, queues)
    return name


def send_and_push(driver: Driver, group: RealGroup) -> None:
    """Every way to send; a push consumer gets all of it once, with tags, keys and properties."""
    topic = topic_of("Plain", driver)
    consumer = driver.push(topic)
    producer = driver.producer()
    sent = driver.do("send", id=producer, topic=topic, body="s", tags="A", keys="k1 k2", properties={"colour": "red"})
    assert sent["status"] == "SEND_OK"
    assert sent["msgId"]
    assert driver.do("send", id=producer, topic=topic, body="a", how="async")["status"] == "SEND_OK"
    driver.do("send", id=producer, topic=topic, body="o", how="oneway")
    batch = [f"b{number}" for number in range(10)]
    assert driver.do("batch", id=producer, topic=topic, bodies=batch)["status"] == "SEND_OK"
    driver.do("send", id=producer, topic=topic, body=LONG_BODY)
    got = {event["body"]: event for event in driver.consumed(consumer, ["s", "a", "o", *batch, LONG_BODY])}
    assert (got["s"]["tags"], got["s"]["keys"], got["s"]["properties"]["colour"]) == ("A", "k1 k2", "red")
    assert len({got[body]["queue"] for body in batch}) == 1


def tags(driver: Driver, group: RealGroup) -> None:
    topic = topic_of("Tags", driver)
    consumer = driver.push(topic, expression="A || B")
    producer = driver.producer()
    for number in range(12):
        driver.do("send", id=producer, topic=topic, body=f"m{number}", tags="ABC"[number % 3])
    driver.consumed(consumer, [f"m{number}" for number in range(12) if number % 3 != 2])


def one_queue_keeps_its_order(driver: Driver, group: RealGroup) -> None:
    """Sent to one queue, consumed by an orderly consumer, which asks the broker for the queue's lock."""
    topic = topic_of("Order", driver)
    consumer = driver.push(topic, orderly=True)
    producer = driver.producer()
    wanted = [f"m{number}" for number in range(30)]
    for body in wanted:
        assert driver.do("send", id=producer, topic=topic, body=body, queue=2)["queue"] == 2
    assert [event["body"] for event in driver.consumed(consumer, wanted)] == wanted


def a_delay_is_kept(driver: Driver, group: RealGroup) -> None:
    """Level 4 of the group's settings is 2 s. When the other one comes is nobody's promise: it is in another queue."""
    topic = topic_of("Delay", driver)
    consumer = driver.push(topic)
    producer = driver.producer()
    sent_at = time.time()
    driver.do("send", id=producer, topic=topic, body="later", delay=4)
    driver.do("send", id=producer, topic=topic, body="now")
    got = {event["body"]: event["at"] for event in driver.consumed(consumer, ["later", "now"])}
    assert got["later"] - sent_at >= 1.9


def failed_messages_come_again_and_die(driver: Driver, group: RealGroup) -> None:
    """One that fails once comes again; one that always fails ends in the dead letters."""
    again, dead = topic_of("Again", driver), topic_of("Dead", driver)
    name = f"G-{dead}"
    if driver.kind == "go":
        # It learns of topics that come while it runs with its next look at the routes, every 30 s.
        for one in (name, f"G-{again}"):
            driver.create_topic(f"%RETRY%{one}", 1)
    first = driver.push(again, group=f"G-{again}", fail="first")
    always = driver.push(dead, group=name, fail="always", maxReconsumeTimes=1)
    producer = driver.producer()
    driver.do("send", id=producer, topic=again, body="again", keys="k")
    driver.do("send", id=producer, topic=dead, body="never")
    for consumer, body in ((first, "again"), (always, "never")):
        got = driver.wait(lambda events: len(events) == 2, consumer=consumer)
        assert [(event["body"], event["again"]) for event in got] == [(body, 0), (body, 1)]
    group.admin_until('"maxOffset": 1', "topicStatus", "-t", f"%DLQ%{name}", "-o", "json")
    assert len(driver.events(consumer=first)) == len(driver.events(consumer=always)) == 2


def broadcasting_reaches_every_consumer(driver: Driver, group: RealGroup) -> None:
    topic = topic_of("Broadcast", driver)
    both = [driver.push(topic, group=f"G-{topic}", broadcast=True) for _ in range(2)]
    producer = driver.producer()
    wanted = [f"m{number}" for number in range(6)]
    for body in wanted:
        driver.do("send", id=producer, topic=topic, body=body)
    for consumer in both:
        driver.consumed(consumer, wanted)


def a_group_goes_on_where_it_was(driver: Driver, group: RealGroup) -> None:
    """Offsets are kept by the broker: the group's next consumer gets what the one before did not."""
    topic = topic_of("Offsets", driver)
    producer = driver.producer()
    consumer = driver.push(topic, group=f"G-{topic}")
    for number in range(5):
        driver.do("send", id=producer, topic=topic, body=f"old{number}")
    driver.consumed(consumer, [f"old{number}" for number in range(5)])
    # What is being consumed when a consumer stops may come again; this test wants it committed.
    group.admin_until('"diffTotal": 0', "consumerProgress", "-g", f"G-{topic}", "-o", "json")
    driver.do("stop", id=consumer)
    for number in range(5):
        driver.do("send", id=producer, topic=topic, body=f"new{number}")
    driver.consumed(driver.push(topic, group=f"G-{topic}"), [f"new{number}" for number in range(5)])


def a_namespace_keeps_topics_apart(driver: Driver, group: RealGroup) -> None:
    name = driver.name(f"Spaced-{driver.kind}-")
    for topic in (name, f"INST%{name}"):
        driver.create_topic(topic)
    inside, outside = driver.push(name, namespace="INST"), driver.push(name)
    producer = driver.producer(namespace="INST")
    driver.do("send", id=producer, topic=name, body="inside")
    driver.do("send", id=driver.producer(), topic=name, body="outside")
    driver.consumed(inside, ["inside"])
    driver.consumed(outside, ["outside"])


def a_trace_is_stored(driver: Driver, group: RealGroup) -> None:
    """A producer with message trace on sends what it did to the trace topic, keyed by the message's id."""
    topic = topic_of("Traced", driver)
    producer = driver.producer(trace=True)
    sent = driver.do("send", id=producer, topic=topic, body="traced")
    search = ("queryMsgByKey", "-t", "RMQ_SYS_TRACE_TOPIC", "-k", sent["msgId"], "-o", "json")
    assert topic in group.admin_until(topic, *search)


def a_request_is_answered(driver: Driver, group: RealGroup) -> None:
    """Request and reply: the answer comes back over the asker's own connection to the master."""
    topic = topic_of("Ask", driver)
    driver.push(topic, replyWith=driver.producer())
    producer = driver.producer()
    for left in reversed(range(REQUEST_TRIES)):
        try:
            assert driver.do("request", id=producer, topic=topic, body="ask", timeout=3_000)["body"] == "re: ask"
            break
        except DriverError:
            # A broker can push to a producer once that has sent a heartbeat; Go's first may come after half a minute.
            assert left, "no request was answered"


def transactions_are_refused(driver: Driver, group: RealGroup) -> None:
    topic = topic_of("Half", driver)
    name = driver.name("transactional")
    if driver.kind != "go":
        driver.do("producer", id=name, group=f"P-{topic}", transactional=True)
    with pytest.raises(DriverError) as caught:
        driver.do("transaction", id=name, group=f"P-{topic}", topic=topic, body="half")
    assert caught.value.code in {3, None}
    assert "transaction messages are not supported" in str(caught.value.reply)
    assert '"maxOffset": 1' not in group.admin_until('"maxOffset": 0', "topicStatus", "-t", topic, "-o", "json")


def masters_are_killed(driver: Driver, group: RealGroup) -> None:
    """kill -9 of the master under a producer and a consumer: nothing acknowledged is lost, order holds."""
    topic = topic_of("Kill", driver, 1)
    consumer = driver.push(topic)
    flood = driver.name("flood")
    driver.do("flood", id=driver.producer(retries=2), **{"as": flood}, topic=topic, prefix=topic)
    driver.wait(lambda sent: len(sent) >= MESSAGES_BEFORE_KILL, acknowledged=True)
    victim = group.master()
    group.kill(victim)
    before = len(driver.events(acknowledged=True))
    time.sleep(RESTART_AFTER_S)  # the machine's own restart, not a wait of the test's
    group.start(victim)
    driver.wait(lambda sent: len(sent) >= before + MESSAGES_BEFORE_KILL, KILL_LIMIT_S, acknowledged=True)
    driver.do("stop", id=flood)
    wanted = [event["sent"] for event in driver.events(acknowledged=True)]
    got = driver.wait(lambda events: {e["body"] for e in events} >= set(wanted), KILL_LIMIT_S, consumer=consumer)
    place: dict[str, int] = {}
    for event in got:
        place[event["body"]] = min(event["offset"], place.get(event["body"], event["offset"]))
    # Consumed by many threads, but stored in the order of sending.
    assert sorted(wanted, key=place.__getitem__) == wanted
    times = [event["at"] for event in driver.events(acknowledged=True)]
    gap = max(later - earlier for earlier, later in itertools.pairwise(times))
    print(f"{driver.kind}: {len(wanted)} acknowledged, 0 lost, longest pause {gap:.1f} s")


ALL: tuple[Scenario, ...] = (
    send_and_push,
    tags,
    one_queue_keeps_its_order,
    a_delay_is_kept,
    failed_messages_come_again_and_die,
    broadcasting_reaches_every_consumer,
    a_group_goes_on_where_it_was,
    a_namespace_keeps_topics_apart,
    a_trace_is_stored,
    a_request_is_answered,
    transactions_are_refused,
    masters_are_killed,
)
