"""Two groups in a cluster: a client spreads over both, and goes on with one while the other has lost its master."""

from __future__ import annotations

import itertools
import time
from collections import Counter

import pytest

from tests.interop.conftest import RealGroup, ali_clients, cpp_clients

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]

MESSAGES = 60
DEAD_S = 20.0
LONGEST_GAP_S = 12.0


@pytest.mark.parametrize("kind", ["cpp", "ali"])
def test_a_topic_over_two_groups(
    kind: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if kind == "cpp":
        make, where = cpp_clients, request.getfixturevalue("cpp_python")
    else:
        make, where = ali_clients, request.getfixturevalue("node_modules")
    root = tmp_path_factory.mktemp(f"groups-{kind}")
    (root / "second").mkdir()
    first = RealGroup(root)
    second = RealGroup(root / "second", name="RaftNode01", beside=first)
    clients = make(where, first)
    try:
        first.create_topic("Wide")
        first.admin_until("RaftNode01", "topicRoute", "-t", "Wide")
        consumer = clients.run("consume", "G-Wide", "Wide", "*")
        producer = clients.run("produce", "P-Wide", "Wide")
        wanted = [f"m{number}" for number in range(MESSAGES)]
        for body in wanted:
            assert producer.ask(body=body)["ok"]
        status = first.admin("topicStatus", "-t", "Wide")
        used = Counter(line.split()[0] for line in status.splitlines()[1:] if line.split()[3] != "0")
        assert set(used) == {"RaftNode00", "RaftNode01"}
        # One group loses its master for good; what its own clients would wait for, the other group takes.
        first.kill(first.master())
        acknowledged = []
        times = [time.monotonic()]
        while times[-1] - times[0] < DEAD_S:
            body = f"n{len(acknowledged)}"
            if producer.ask(body=body)["ok"]:
                acknowledged.append(body)
                times.append(time.monotonic())
        gap = max(after - before for before, after in itertools.pairwise(times))
        assert gap < LONGEST_GAP_S, f"writes stood still for {gap:.1f} s although a whole group was there"
        deadline = time.monotonic() + 90
        while not {*wanted, *acknowledged} <= {line["body"] for line in consumer.lines}:
            missing = {*wanted, *acknowledged} - {line["body"] for line in consumer.lines}
            assert time.monotonic() < deadline, f"{len(missing)} are missing: {sorted(missing)[:5]}"
            time.sleep(0.1)
        print({"client": kind, "acknowledged": len(acknowledged), "longest_gap_s": round(gap, 2)})
    finally:
        clients.end()
        second.stop()
        first.stop()
