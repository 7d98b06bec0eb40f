"""Ours: giving up leadership on request, and what a full disk does to a node's role."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dledger.raft.messages import Role, TimeoutNow
from dledger.raft.ready import ProposalRefusedError, RefusalReason
from tests.raft.harness import (
    OPTIONS,
    Node,
    World,
    accepted,
    append,
    make_candidate,
    make_follower,
    make_leader,
    make_pre_candidate,
    pick,
    role_of,
)

TIMEOUT = OPTIONS.election_timeout_ms


@pytest.mark.parametrize("make", [make_leader, make_candidate, make_pre_candidate], ids=["leader", "candidate", "poll"])
def test_step_down(make: Callable[[World], Node]) -> None:
    """Whoever leads or wants to becomes follower of the same term, and does not campaign for two election timeouts."""
    world = World()
    node = make(world)
    term = node.core.term
    node.core.step_down(world.now)
    node.pump()
    assert (role_of(node), node.core.term, node.core.leader_id) == (Role.FOLLOWER, term, None)
    assert "stepped_down reason=asked to" in world.transcript()
    world.wire.clear()
    end = world.now + 2 * TIMEOUT
    while node.core.deadline_ms < end:
        world.now = node.core.deadline_ms
        assert world.sent_by("n0", node.tick) == []
    world.now = node.core.deadline_ms
    assert world.sent_by("n0", node.tick) != []


def test_another_leads_after_a_step_down() -> None:
    """The others' timers fire first."""
    world = World()
    world.elect("n0")
    world["n0"].propose(2)
    world.deliver()
    world["n0"].core.step_down(world.now)
    world["n0"].pump()
    world.advance(2 * TIMEOUT)
    assert world.leader in {world["n1"], world["n2"]}
    assert world.leader.terms[:3] == [1, 1, 1]


def test_a_follower_asked_to_step_down_stays_one() -> None:
    """It keeps its leader, and does not campaign for a while."""
    world = World()
    node = make_follower(world, 1)
    node.core.step_down(world.now)
    assert (role_of(node), node.core.leader_id) == (Role.FOLLOWER, "n1")
    assert "stepped_down" not in world.transcript()


def test_proposals_after_a_step_down_are_refused() -> None:
    """Nothing is taken by one who does not lead, and the log is unchanged."""
    world = World()
    node = make_leader(world)
    node.core.step_down(world.now)
    with pytest.raises(ProposalRefusedError) as refused:
        node.propose()
    assert refused.value.reason is RefusalReason.NOT_LEADER
    assert node.terms == [1]


def test_answers_that_come_after_a_step_down_change_nothing() -> None:
    """Late acknowledgements of the term that this node led: it leads no more, and commits nothing."""
    world = World()
    node = make_leader(world)
    node.core.step_down(world.now)
    node.step(accepted("n1", 1, 0))
    assert node.core.commit_index == -1


# ---------------------------------------------------------------------- a full disk


def test_a_leader_with_a_full_disk_hands_over() -> None:
    """It looks for the best successor and takes nothing more itself."""
    world = World()
    world.elect("n0")
    world["n0"].propose(2)
    world.deliver()
    world["n0"].core.set_disk_full(True, world.now)
    with pytest.raises(ProposalRefusedError):
        world["n0"].propose()
    world["n0"].pump()
    world.deliver()
    assert world.leader in {world["n1"], world["n2"]}
    assert world["n0"].core.term == 2


def test_told_again_it_goes_on_handing_over() -> None:
    """The driver tells a full disk with each failed write: the transfer that runs is not broken off by that."""
    world = World()
    node = make_leader(world)
    node.propose()
    node.step(accepted("n1", 1, 0))
    node.core.set_disk_full(True, world.now)
    node.core.set_disk_full(True, world.now + 1)
    assert node.core.is_leader
    assert node.core.transferee == "n1"
    assert pick(world.step("n0", accepted("n1", 1, 1)), TimeoutNow) == [TimeoutNow("n0", 1)]


def test_without_a_successor_it_steps_down() -> None:
    """Nobody in reach, or nobody who takes it: a leader that cannot write does not keep the group."""
    world = World()
    node = make_leader(world)
    for name in ("n1", "n2"):
        node.peer_unreachable(name)
    node.core.set_disk_full(True, world.now)
    assert role_of(node) is Role.FOLLOWER
    world = World()
    world.elect("n0")
    world["n0"].core.set_disk_full(True, world.now)
    world["n0"].pump()
    world.take(TimeoutNow)
    world["n1"].core.set_disk_full(True, world.now)
    world["n2"].core.set_disk_full(True, world.now)
    world.advance(TIMEOUT)
    assert not world["n0"].core.is_leader


def test_a_full_disk_does_not_campaign() -> None:
    """Neither by its timer, nor at the leader's word, and a campaign under way ends."""
    world = World()
    node = make_follower(world, 1)
    node.core.set_disk_full(True, world.now)
    assert world.step("n0", TimeoutNow("n1", 1)) == []
    for _ in range(5):
        world.now = node.core.deadline_ms
        assert world.sent_by("n0", node.tick) == []
    assert node.core.term == 1
    for make in (make_candidate, make_pre_candidate):
        world = World()
        node = make(world)
        node.core.set_disk_full(True, world.now)
        assert role_of(node) is Role.FOLLOWER


def test_room_again() -> None:
    """It campaigns and leads as before."""
    world = World()
    node = world["n0"]
    node.core.set_disk_full(True, world.now)
    world.now = node.core.deadline_ms
    node.tick()
    node.core.set_disk_full(False, world.now)
    world.elect("n0")
    node.propose()


def test_a_full_follower_still_follows() -> None:
    """It hears its leader, votes, and takes what fits: only leading is not for it."""
    world = World()
    node = make_follower(world, 1)
    node.core.set_disk_full(True, world.now)
    world.step("n0", append("n1", 1, (-1, -1), [1], commit=0))
    assert node.core.commit_index == 0
    assert node.core.leader_id == "n1"
