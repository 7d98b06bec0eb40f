"""Apache's Go client, unmodified, against three real broker processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.interop import scenarios
from tests.interop.conftest import RealGroup, go_driver
from tests.interop.driver import Driver

pytestmark = [pytest.mark.interop, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def go(real_group: RealGroup) -> Iterator[Driver]:
    driver = go_driver(real_group)
    yield driver
    driver.end()


@pytest.mark.parametrize("scenario", scenarios.ALL, ids=lambda scenario: scenario.__name__)
def test_go(go: Driver, real_group: RealGroup, scenario: scenarios.Scenario) -> None:
    scenario(go, real_group)


def test_the_pull_consumer_gets_everything(go: Driver, real_group: RealGroup) -> None:
    topic = scenarios.topic_of("Pull", go)
    producer = go.producer()
    wanted = [f"m{number}" for number in range(20)]
    for body in wanted:
        go.do("send", id=producer, topic=topic, body=body)
    puller = go.name("puller")
    go.do("lite", id=puller, group=f"G-{topic}", topic=topic)
    got: list[str] = []
    for _ in range(60):
        got += [message["body"] for message in go.do("poll", id=puller, timeout=1000)["messages"]]
        if len(got) >= len(wanted):
            break
    assert sorted(got) == sorted(wanted)


def test_its_admin_makes_finds_and_deletes_topics(go: Driver, real_group: RealGroup) -> None:
    """Sent to a broker that is not the master, too: it hands them on."""
    name = go.name("AdminGo")
    other = next(n for n in range(3) if n != real_group.master())
    go.do("topic", topic=name, broker=f"127.0.0.1:{real_group.ports[other]}", queues=5)
    real_group.admin_until(name, "topicList")
    assert name in go.do("topics")["topics"]
    assert go.do("routed", topic=name)["count"] == 5
    go.do("delete", topic=name)
    assert name not in real_group.admin("topicList").split()
