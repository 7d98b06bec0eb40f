"""Leader losses: when each was noticed, repaired and over; and what is none."""

from __future__ import annotations

from array import array
from types import SimpleNamespace
from typing import Any

from dledger.chaos.monitor import LogEvent
from dledger.chaos.record import Election, FaultSpan, LeaderLoss, Record
from dledger.chaos.run import resolve_losses


def load(acks: list[tuple[float, int]]) -> Any:
    return SimpleNamespace(acks=array("d", [at for at, _ in acks]), terms=array("q", [term for _, term in acks]))


def record(kind: str, began: float, ended: float) -> Record:
    return Record(
        faults=[FaultSpan(kind, f"{kind} n0", ["n0"], began, ended, ["n0"])],
        losses=[LeaderLoss("n0", kind, began, True)],
        elections=[Election(0.0, "n0", 1), Election(10.2, "n1", 2)],
    )


EVENTS = [
    LogEvent(9.0, "n1", "role_changed", "pre_candidate", 1),
    LogEvent(10.05, "n0", "role_changed", "candidate", 2),
    LogEvent(10.1, "n1", "role_changed", "pre_candidate", 1),
    LogEvent(10.2, "n1", "role_changed", "leader", 2),
]
ACKS = [(9.9, 1), (9.98, 1), (10.3, 2), (10.31, 2)]


def test_a_kill_is_measured_from_the_signal_to_the_first_acknowledgement() -> None:
    found = record("kill", 10.0, 12.0)
    resolve_losses(found, EVENTS, load(ACKS), nodes=3)
    assert found.losses == [LeaderLoss("n0", "kill", 10.0, True, 100.0, 200.0, "n1", 2, 300.0, 320.0)]


def test_late_acknowledgements_of_the_old_leader_do_not_end_the_loss() -> None:
    found = record("kill", 10.0, 12.0)
    resolve_losses(found, EVENTS, load([(9.9, 1), (10.01, 1), (10.5, 2)]), nodes=3)
    assert found.losses[0].first_ack_ms == 500.0
    assert found.losses[0].gap_ms == 490.0


def test_a_pause_that_was_over_before_anybody_was_elected_is_no_loss() -> None:
    found = record("pause", 10.0, 10.15)
    resolve_losses(found, EVENTS, load(ACKS), nodes=3)
    assert found.losses == []


def test_without_a_majority_it_is_no_failover() -> None:
    found = record("kill", 10.0, 12.0)
    found.faults.append(FaultSpan("kill", "kill n2", ["n2"], 10.1, 11.0, ["n2"]))
    resolve_losses(found, EVENTS, load(ACKS), nodes=3)
    assert not found.losses[0].failover
    again = record("kill", 10.0, 12.0)
    again.faults.append(FaultSpan("kill", "kill n2", ["n2"], 10.1, 11.0, ["n2"]))
    resolve_losses(again, EVENTS, load(ACKS), nodes=5)
    assert again.losses[0].failover


def test_two_faults_that_take_the_same_leader_are_one_loss() -> None:
    found = record("kill", 10.0, 12.0)
    found.faults.append(FaultSpan("disk-full", "full n0", ["n0"], 10.001, 12.0, ["n0"]))
    found.losses.append(LeaderLoss("n0", "disk-full", 10.001, True))
    resolve_losses(found, EVENTS, load(ACKS), nodes=3)
    assert [loss.kind for loss in found.losses] == ["kill"]


def test_a_loss_that_nobody_repaired_before_the_end_has_no_gap() -> None:
    found = record("kill", 10.0, 12.0)
    resolve_losses(found, EVENTS, load(ACKS[:2]), nodes=3)
    assert found.losses[0].first_ack_ms is None
    assert found.losses[0].gap_ms is None


def test_a_silence_from_before_is_not_counted_again() -> None:
    found = record("kill", 10.0, 12.0)
    resolve_losses(found, EVENTS, load([(5.0, 1), (10.3, 2)]), nodes=3)
    assert found.losses[0].gap_ms == 300.0
