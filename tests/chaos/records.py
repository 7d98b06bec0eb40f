"""A made-up run for tests: what a good one leaves, to be spoilt in one point."""

from __future__ import annotations

from dledger.chaos.record import Election, Event, FaultSpan, LeaderLoss, NodeSample, Record
from dledger.checker import Read


def good_record(appends: int = 60) -> Record:
    """Three nodes, one kill of the leader, a refused, an unknown lost and an unknown found append."""
    record = Record()
    record.meta = {"seed": 7, "load_s": 10.0, "fsync": "fsync on", "counts": {"kills": 1}, "faults": ["kill"]}
    history = record.history
    for number in range(appends):
        at = 0.1 + number * 9.0 / appends
        operation = history.invoke(number % 3, f"v{number}", at, stream=-1)
        if number == 20:
            history.fail(operation, at + 0.5, definite=True)
        elif number not in {21, 22}:
            history.acknowledge(operation, len(record.log), at + 0.01)
        if number not in {20, 21}:
            record.log.append(f"v{number}")
    record.log.append(None)
    history.add_read(Read(9, 9.5, 9.6, True, len(record.log) - 1, None, 0, record.log[:2], "n1"))
    record.faults = [FaultSpan("kill", "kill -9 n0 (leader)", ["n0"], 3.0, 5.0, ["n0"])]
    record.events = [Event(3.0, "kill -9 n0 (leader)"), Event(3.3, "n1 elected, term 2")]
    record.elections = [Election(0.0, "n0", 1), Election(3.3, "n1", 2)]
    record.losses = [LeaderLoss("n0", "kill", 3.0, True, 40.0, 300.0, "n1", 2, 350.0, 420.0)]
    for tenth in range(100):
        at = tenth / 10
        down = 3.0 <= at < 5.0
        for node in ("n0", "n1", "n2"):
            leads = node == ("n0" if at < 3.3 else "n1")
            state = "down" if down and node == "n0" else "leader" if leads else "follower"
            term = 1 if at < 3.3 else 2
            record.samples.append(NodeSample(at, node, state, False, term, tenth // 2, tenth // 2, 100))
    record.digests = {"n0": "same", "n1": "same", "n2": "same"}
    return record
