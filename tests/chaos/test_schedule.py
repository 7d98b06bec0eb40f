"""Schedules: drawn from the seed, every kind in them, over in time."""

from __future__ import annotations

from itertools import pairwise

import pytest

from dledger.chaos.schedule import Fault, make_schedule, parse_faults


def test_the_same_seed_gives_the_same_faults_and_another_does_not() -> None:
    first = make_schedule(42, 60, list(Fault))
    assert first == make_schedule(42, 60, list(Fault))
    assert first != make_schedule(43, 60, list(Fault))


@pytest.mark.parametrize("seed", range(20))
def test_every_kind_comes_and_all_end_in_time(seed: int) -> None:
    steps = make_schedule(seed, 60, list(Fault))
    assert {action.fault for step in steps for action in step.actions} == set(Fault)
    assert all(step.at_s + action.hold_s <= 60 for step in steps for action in step.actions)
    assert all(before.at_s < after.at_s for before, after in pairwise(steps))


def test_only_what_was_asked_for_comes() -> None:
    steps = make_schedule(1, 120, [Fault.KILL, Fault.PAUSE])
    assert {action.fault for step in steps for action in step.actions} == {Fault.KILL, Fault.PAUSE}
    variants = {action.variant for step in steps for action in step.actions if action.fault is Fault.KILL}
    assert {"leader", "follower"} <= variants


def test_faults_that_would_undo_each_other_do_not_go_together() -> None:
    together = [
        {action.fault for action in step.actions}
        for seed in range(50)
        for step in make_schedule(seed, 60, list(Fault))
        if len(step.actions) > 1
    ]
    assert together
    for pair in together:
        assert len(pair) == 2
        assert not pair <= {Fault.PARTITION, Fault.DELAY}
        assert not all(fault.of_disk for fault in pair)


def test_a_run_too_short_for_any_fault_has_none() -> None:
    assert make_schedule(1, 0.2, list(Fault)) == []
    assert make_schedule(1, 60, []) == []


def test_names_of_faults() -> None:
    assert parse_faults("kill, slow-disk,kill") == [Fault.KILL, Fault.SLOW_DISK]
    assert parse_faults("all") == list(Fault)
    with pytest.raises(ValueError, match='"kil" is no fault; there are kill, pause'):
        parse_faults("pause,kil")
    with pytest.raises(ValueError, match="no fault given"):
        parse_faults(" , ")
