"""A real consumer that lags is sent to a slave, and comes back to the master when it has caught up."""

from __future__ import annotations

import json
import time

import pytest

from tests.interop.conftest import RealGroup, ali_clients, cpp_clients

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]

MESSAGES = 600


def delivered(group: RealGroup) -> dict[str, int]:
    """Messages handed out so far, by broker address."""
    tables = json.loads(group.admin("brokerStatus", "-c", "RaftCluster", "-o", "json"))
    return {address: int(table["msgGetTotalTodayNow"]) for address, table in tables.items()}


@pytest.mark.parametrize("kind", ["cpp", "ali"])
def test_a_slow_consumer_moves_to_a_slave_and_back(
    kind: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if kind == "cpp":
        make, where = cpp_clients, request.getfixturevalue("cpp_python")
    else:
        make, where = ali_clients, request.getfixturevalue("node_modules")
    # "Physical memory" of 500 KB: a consumer is slow from 200 KB behind (150 KB at a slave).
    settings = "slaveReadEnable=true\nphysicalMemoryBytes=500000\n"
    group = RealGroup(tmp_path_factory.mktemp(f"split-{kind}"), settings)
    clients = make(where, group)
    try:
        topic = f"Split-{kind}"
        group.create_topic(topic, 1)
        producer = clients.run("produce", "P-split", topic)
        # The group gets a place first: a new one would start at the end of a queue whose beginning is "on disk".
        early = clients.run("consume", "G-split", topic, "*")
        assert producer.ask(body="early")["ok"]
        deadline = time.monotonic() + 60
        while '"consumerOffset": 1,' not in group.admin("consumerProgress", "-g", "G-split", "-o", "json"):
            assert time.monotonic() < deadline, f"no offset was committed: {early.lines}"
        early.end()
        for number in range(MESSAGES):
            assert producer.ask(body=f"{number} " + "x" * 1000)["ok"]
        master = f"127.0.0.1:{group.ports[group.master()]}"
        consumer = clients.run("consume", "G-split", topic, "*")
        deadline = time.monotonic() + 90
        while len(consumer.lines) < MESSAGES:
            assert time.monotonic() < deadline, f"{len(consumer.lines)} of {MESSAGES}"
            time.sleep(0.05)
        lagging = delivered(group)
        assert sum(count for address, count in lagging.items() if address != master) > 0, lagging
        # Caught up: after one more answer from the slave the master serves again.
        while delivered(group)[master] <= lagging[master]:
            assert producer.ask(body="and one more")["ok"]
            assert time.monotonic() < deadline, "it never came back to the master"
        bodies = {line["body"] for line in consumer.lines}
        assert {f"{number} " + "x" * 1000 for number in range(MESSAGES)} <= bodies
    finally:
        clients.end()
        group.stop()
