"""Unmodified clients against three real broker processes: what they send arrives, however they send it.

Each scenario runs twice: in calm, and (``-m "interop and slow"``) while master after master is killed with -9. Then a
send that failed is sent again by the test, as an application would, so a message may come twice; none may be missing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.interop.conftest import Clients, Process, RealGroup

pytestmark = [pytest.mark.interop, pytest.mark.timeout(400)]

RESTART_AFTER_S = 0.5
BETWEEN_KILLS_S = 50.0
"""The C++ client lets a pull that was on its way run into its limit of 30 s; kills in quicker succession starve it."""
SEND_AGAIN_S = 120.0


class World:
    """The group, and whether its masters are being killed."""

    def __init__(self, group: RealGroup, *, is_killed: bool) -> None:
        self.group = group
        self.is_killed = is_killed
        self.kill_count = 0
        self._end = threading.Event()
        self._killer: threading.Thread | None = None
        self._failure: BaseException | None = None

    def name(self, what: str, clients: Clients) -> str:
        """A topic of one's own."""
        return f"{what}-{clients.kind}{'-killed' if self.is_killed else ''}"

    def begin(self) -> None:
        """Under kills: the master dies now, before anything else happens, and its successors after it."""
        if self.is_killed:
            victim = self.group.master()
            self.group.kill(victim)
            self._killer = threading.Thread(target=self._kill, args=(victim,), daemon=True)
            self._killer.start()

    def _kill(self, victim: int) -> None:
        try:
            while True:
                self.kill_count += 1
                time.sleep(RESTART_AFTER_S)
                self.group.start(victim)
                victim = self.group.master()
                if self._end.wait(BETWEEN_KILLS_S):
                    return
                self.group.kill(victim)
        except BaseException as error:
            self._failure = error
            raise

    def stop(self) -> None:
        self._end.set()
        if self._killer is not None:
            self._killer.join(120)
            assert self.kill_count > 0
        if self._failure is not None:
            raise self._failure

    def send(self, producer: Process, **wish: Any) -> dict[str, Any]:
        """Send once; under kills again until it is acknowledged."""
        deadline = time.monotonic() + SEND_AGAIN_S
        while True:
            sent = producer.ask(**wish)
            if sent["ok"] or not self.is_killed:
                assert sent["ok"], sent
                return sent
            assert time.monotonic() < deadline, f"not acknowledged within {SEND_AGAIN_S:.0f} s: {sent}"
            time.sleep(0.1)

    def collect(self, process: Process, wanted: list[str], timeout_s: float = 60) -> list[dict[str, Any]]:
        """The consumer's lines once every wanted body is among them; in calm there is nothing besides."""
        deadline = time.monotonic() + (180 if self.is_killed else timeout_s)
        while True:
            got = list(process.lines)
            missing = set(wanted) - {line["body"] for line in got}
            if not missing:
                break
            assert time.monotonic() < deadline, f"missing after {self.kill_count} kills: {sorted(missing)[:5]}"
            time.sleep(0.05)
        bodies = [line["body"] for line in got]
        if self.is_killed:
            assert set(bodies) == set(wanted)
        else:
            assert sorted(bodies) == sorted(wanted)
        return got


@pytest.fixture(params=["calm", pytest.param("killed", marks=pytest.mark.slow)])
def world(request: pytest.FixtureRequest, real_group: RealGroup) -> Iterator[World]:
    made = World(real_group, is_killed=request.param == "killed")
    yield made
    made.stop()


def test_send_and_push_consumption(clients: Clients, world: World) -> None:
    topic = world.name("Plain", clients)
    world.group.create_topic(topic)
    consumer = clients.run("consume", f"G-{topic}", topic, "*")
    producer = clients.run("produce", f"P-{topic}", topic)
    world.begin()
    wanted = [f"m{number}" for number in range(40)]
    for number, body in enumerate(wanted):
        assert world.send(producer, body=body, tags="A", keys=f"k{number}")["status"] == 0
    got = world.collect(consumer, wanted)
    assert {(line["tags"], line["again"]) for line in got} == {("A", 0)}
    assert f"k{got[0]['body'][1:]}" in got[0]["keys"]
    world.stop()
    assert "m7" in world.group.admin("queryMsgByKey", "-t", topic, "-k", "k7", "-o", "json")


def test_a_large_body_survives(clients: Clients, world: World) -> None:
    topic = world.name("Large", clients)
    world.group.create_topic(topic)
    consumer = clients.run("consume", f"G-{topic}", topic, "*")
    producer = clients.run("produce", f"P-{topic}", topic)
    world.begin()
    # The C++ client's own limit is 128 KiB; both compress what is longer than 4 KiB.
    body = "".join(f"line {number} of a long text\n" for number in range(4_000))
    world.send(producer, body=body)
    world.collect(consumer, [body])


def test_tags(clients: Clients, world: World) -> None:
    topic = world.name("Tags", clients)
    world.group.create_topic(topic)
    consumer = clients.run("consume", f"G-{topic}", topic, "A || B")
    producer = clients.run("produce", f"P-{topic}", topic)
    world.begin()
    for number in range(30):
        world.send(producer, body=f"m{number}", tags="ABC"[number % 3])
    got = world.collect(consumer, [f"m{number}" for number in range(30) if number % 3 != 2])
    assert {line["tags"] for line in got} == {"A", "B"}


def test_one_queue_keeps_its_order(clients: Clients, world: World) -> None:
    topic = world.name("Order", clients)
    world.group.create_topic(topic)
    orderly = ["orderly"] if clients.kind == "cpp" else []
    consumer = clients.run("consume", f"G-{topic}", topic, "*", *orderly)
    producer = clients.run("produce", f"P-{topic}", topic)
    world.begin()
    wanted = [f"m{number}" for number in range(40)]
    for body in wanted:
        # A key that ali-ons does not map to queue 0, which it takes for "any".
        world.send(producer, body=body, key=2)
    got = world.collect(consumer, wanted)
    # Whatever comes twice, each comes first in the order of sending.
    assert list(dict.fromkeys(line["body"] for line in got)) == wanted
    assert len({line["queue"] for line in got}) == 1


def test_a_failed_message_comes_again(clients: Clients, world: World) -> None:
    topic = world.name("Retry", clients)
    world.group.create_topic(topic)
    consumer = clients.run("consume", f"G-{topic}", topic, "*", "failfirst")
    producer = clients.run("produce", f"P-{topic}", topic)
    world.begin()
    world.send(producer, body="again")
    # The clients learn of the retry topic with their next look at the routes, every 30 s.
    deadline = time.monotonic() + (240 if world.is_killed else 90)
    while not any(line["again"] == 1 for line in consumer.lines):
        assert time.monotonic() < deadline, f"it did not come again: {consumer.lines}"
        time.sleep(0.05)
    assert {(line["body"], line["again"], line["failed"]) for line in consumer.lines} == {
        ("again", 0, True),
        ("again", 1, False),
    }
    world.stop()
    assert "again" in world.group.admin("consumeMessage", "-t", f"%RETRY%G-{topic}")


def test_a_message_that_always_fails_ends_in_the_dead_letters(clients: Clients, world: World) -> None:
    topic = world.name("Dead", clients)
    group = f"G-{topic}"
    world.group.create_topic(topic)
    # The C++ client leaves the limit to the group's configuration, the Node client names its own in the send-back.
    world.group.admin_until("success", "updateSubGroup", "-c", "RaftCluster", "-g", group, "-r", "1")
    consumer = clients.run("consume", group, topic, "*", "failalways")
    producer = clients.run("produce", f"P-{topic}", topic)
    world.begin()
    world.send(producer, body="never")
    deadline = time.monotonic() + (300 if world.is_killed else 120)
    dead = f"%DLQ%{group}"
    while '"maxOffset": 1' not in world.group.admin("topicStatus", "-t", dead, "-o", "json"):
        assert time.monotonic() < deadline, f"no dead letter: {consumer.lines}"
    world.stop()
    # Dead letters are write only until an operator allows reading.
    world.group.admin_until("success", "updateTopic", "-c", "RaftCluster", "-t", dead, "-r", "1", "-w", "1", "-p", "6")
    assert "never" in world.group.admin_until("never", "consumeMessage", "-t", dead)
    again = [line["again"] for line in consumer.lines]
    assert set(again) == {0, 1}
    assert world.is_killed or again == [0, 1]


def test_delay(clients: Clients, world: World) -> None:
    topic = world.name("Delay", clients)
    world.group.create_topic(topic)
    consumer = clients.run("consume", f"G-{topic}", topic, "*")
    producer = clients.run("produce", f"P-{topic}", topic)
    world.begin()
    sent_at = time.time()
    world.send(producer, body="later", delay=4)
    world.send(producer, body="now")
    got = {line["body"]: line for line in world.collect(consumer, ["later", "now"])[::-1]}
    assert got["later"]["at"] - sent_at >= 1.9
    assert world.is_killed or got["now"]["at"] < got["later"]["at"]


def test_oneway_batch_and_pull_of_the_cpp_client(cpp: Clients, world: World) -> None:
    topic = world.name("Ways", cpp)
    world.group.create_topic(topic)
    producer = cpp.run("produce", f"P-{topic}", topic)
    world.begin()
    oneway = [f"o{number}" for number in range(10)]
    for body in oneway:
        world.send(producer, body=body, oneway=True)
    small = [f"b{number}" for number in range(20)]
    world.send(producer, batch=small)
    # Above 4 KiB this client compresses the batch as a whole.
    large = [f"c{number}" + "x" * 500 for number in range(20)]
    world.send(producer, batch=large)
    world.stop()
    puller = cpp.run("pull", f"G-{topic}", topic, "50" if not world.is_killed else "100000", wait=False)
    if not world.is_killed:
        world.collect(puller, oneway + small + large)
        return
    deadline = time.monotonic() + 90
    while not {*small, *large} <= {line["body"] for line in puller.lines}:
        assert time.monotonic() < deadline, "a message of a batch is missing"
        time.sleep(0.1)
    # Nobody acknowledges a one-way message; the test only knows that no other one came.
    assert {line["body"] for line in puller.lines} <= {*oneway, *small, *large}


def test_two_consumers_share_the_queues(clients: Clients, world: World) -> None:
    topic = world.name("Share", clients)
    world.group.create_topic(topic)
    group = f"G-{topic}"
    first = clients.run("consume", group, topic, "*")
    second = clients.run("consume", group, topic, "*")
    producer = clients.run("produce", f"P-{topic}", topic)
    world.begin()
    bodies: set[str] = set()
    deadline = time.monotonic() + (240 if world.is_killed else 90)
    while not (first.lines and second.lines):
        body = f"m{len(bodies)}"
        world.send(producer, body=body)
        bodies.add(body)
        assert time.monotonic() < deadline, "one consumer got nothing"
    while {line["body"] for line in first.lines + second.lines} != bodies:
        assert time.monotonic() < deadline, "a message is missing"
        time.sleep(0.05)
