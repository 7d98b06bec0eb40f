"""Unmodified clients while master after master is killed with -9: nothing acknowledged is lost, order holds."""

from __future__ import annotations

import os
import statistics
import time
from typing import Any

import pytest

from tests.interop.conftest import Clients, RealGroup

pytestmark = [pytest.mark.interop, pytest.mark.timeout(1800)]

KILLS = int(os.environ.get("DLEDGER_INTEROP_KILLS", "3"))
RESTART_AFTER_S = 0.5
BETWEEN_S = 10.0
CATCH_UP_S = 120.0


def gaps(acknowledged: list[dict[str, Any]], kills: list[float]) -> list[float]:
    """Seconds between the last acknowledgement before and the first after each kill."""
    found = []
    for at in kills:
        before = [line["at"] for line in acknowledged if line["at"] <= at]
        after = [line["at"] for line in acknowledged if line["at"] > at + 0.05]
        if before and after:
            found.append(after[0] - before[-1])
    return found


def test_masters_are_killed_under_a_producer_and_a_consumer(
    clients: Clients, real_group: RealGroup, record_property: Any
) -> None:
    topic = f"Kill-{clients.kind}"
    real_group.create_topic(topic)
    consumer = clients.run("consume", f"G-{topic}", topic, "*")
    producer = clients.run("flood", f"P-{topic}", topic, "x", wait=False)
    while not any(line.get("ok") for line in producer.lines):
        time.sleep(0.05)
    kills: list[float] = []
    for _ in range(KILLS):
        time.sleep(BETWEEN_S)
        victim = real_group.master()
        kills.append(time.time())
        real_group.kill(victim)
        time.sleep(RESTART_AFTER_S)
        real_group.start(victim)
        real_group.master()
    # Until the producer is through, whatever its library waits for.
    count = len(producer.lines)
    deadline = time.monotonic() + CATCH_UP_S
    while not any(line.get("ok") for line in producer.lines[count:]):
        assert time.monotonic() < deadline, f"no acknowledgement after the last kill: {producer.lines[-2:]}"
        time.sleep(0.05)
    producer.end()
    acknowledged = [line for line in producer.lines if line["ok"]]
    wanted = {line["body"] for line in acknowledged}
    deadline = time.monotonic() + CATCH_UP_S
    while not wanted <= {line["body"] for line in consumer.lines}:
        missing = wanted - {line["body"] for line in consumer.lines}
        assert time.monotonic() < deadline, f"{len(missing)} acknowledged messages are missing: {sorted(missing)[:5]}"
        time.sleep(0.2)
    first_seen: dict[str, tuple[int, int]] = {}
    for line in consumer.lines:
        first_seen.setdefault(line["body"], (int(line["queue"]), int(line["offset"])))
    by_queue: dict[int, list[int]] = {}
    for queue_id, offset in first_seen.values():
        by_queue.setdefault(queue_id, []).append(offset)
    assert all(offsets == sorted(offsets) for offsets in by_queue.values()), "order within a queue is broken"
    # Between kills one queue takes them in the order in which they were sent.
    again = len(consumer.lines) - len(first_seen)
    found = gaps(acknowledged, kills)
    report = {
        "client": clients.kind,
        "acknowledged": len(acknowledged),
        "failed": len(producer.lines) - len(acknowledged),
        "consumed_again": again,
        "producer_gap_median_s": round(statistics.median(found), 3) if found else None,
        "producer_gap_worst_s": round(max(found), 3) if found else None,
    }
    record_property("failover", report)
    print(report)
