"""T§6.2: a leader that does not hear from a majority within an election timeout steps down."""

from __future__ import annotations

import pytest

from dledger.raft.messages import AppendEntriesResponse, Message, ReadIndexRequest, Role
from dledger.raft.ready import ProposalRefusedError, RefusalReason
from tests.raft.harness import OPTIONS, World, accepted, beat_answer, make_leader, role_of

TIMEOUT = OPTIONS.election_timeout_ms


@pytest.mark.parametrize(
    ("size", "alive", "stays"), [(3, 1, True), (3, 0, False), (5, 2, True), (5, 1, False), (2, 0, False)]
)
def test_a_leader_needs_a_majority_in_reach(size: int, alive: int, stays: bool) -> None:
    """T§6.2: with a majority it leads on; without, it stops within two election timeouts, in the same term."""
    world = World(size)
    leader = world.elect("n0")
    for number in range(1 + alive, size):
        world[f"n{number}"].crash()
    world.advance(2 * TIMEOUT)
    assert leader.core.is_leader is stays
    assert leader.core.term == 1
    if not stays:
        assert (leader.core.leader_id, leader.core.vote) == (None, "n0")
        with pytest.raises(ProposalRefusedError) as refused:
            leader.propose()
        assert refused.value.reason is RefusalReason.NOT_LEADER


@pytest.mark.parametrize(
    "sign",
    [
        accepted("n1", 1, -1),
        AppendEntriesResponse("n1", 1, False, -1, -1, rejected_index=0, conflict_index=0),
        beat_answer("n1", 1),
        ReadIndexRequest("n1", 1, 5),
    ],
    ids=lambda message: type(message).__name__,
)
def test_any_sign_of_life_counts(sign: Message) -> None:
    """T§6.2: whatever a follower says shows that it is there."""
    world = World()
    leader = make_leader(world)
    world.now += TIMEOUT - 1
    leader.step(sign)
    world.now += TIMEOUT - 1
    leader.tick()
    assert role_of(leader) is Role.LEADER
    world.now += 1
    leader.tick()
    world.now += TIMEOUT
    leader.tick()
    assert role_of(leader) is Role.FOLLOWER


def test_an_old_term_is_no_sign_of_life() -> None:
    """T§6.2: only answers of the present term count."""
    world = World(logs={"n0": [4]})
    leader = make_leader(world)
    for _ in range(8):
        world.now += TIMEOUT // 4
        leader.step(accepted("n1", 4, 0))
        leader.tick()
    assert not leader.core.is_leader


def test_a_learner_does_not_keep_a_leader() -> None:
    """T§4.2.1: who does not vote is no part of the majority."""
    world = World(3, learners=("l0",))
    leader = world.elect("n0")
    world["n1"].crash()
    world["n2"].crash()
    world.advance(2 * TIMEOUT)
    assert not leader.core.is_leader


def test_who_waits_at_a_deposed_leader_is_told() -> None:
    """T§6.2: the point of it: clients do not wait for a leader that leads nobody."""
    world = World()
    leader = world.elect("n0")
    world.advance(10)
    world.isolate("n0")
    leader.read(1)
    world.advance(2 * TIMEOUT)
    assert leader.reads == {1: None}
    assert "stepped_down reason=no quorum" in world.transcript()


def test_a_leader_cut_off_steps_down_before_or_soon_after_its_successor_leads() -> None:
    """Both clocks run by the same timeout: two who think that they lead overlap by little."""
    world = World()
    old = world.elect("n0")
    world.advance(100)
    world.isolate("n0")
    world.advance(2 * TIMEOUT)
    new = world.leader
    assert new is not None and new is not old
    assert not old.core.is_leader
