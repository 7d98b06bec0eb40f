"""Ours, beyond the paper: a broken connection hastens the election; PreVote keeps the hint harmless."""

from __future__ import annotations

import random

import pytest

from dledger.raft.messages import RequestVote, RequestVoteResponse, Role
from tests.raft.harness import (
    OPTIONS,
    World,
    heartbeat,
    make_candidate,
    make_follower,
    make_pre_candidate,
    pick,
    role_of,
    vote,
    vote_request,
)


def killed(size: int = 3, seed: int = 0) -> World:
    """n0 leads, then dies by kill -9: everybody sees its connections close."""
    world = World(size, dice=lambda at: random.Random(seed * 10 + at))
    world.elect("n0")
    world["n0"].propose(3)
    world.deliver()
    world.advance(50)
    world["n0"].crash()
    for node in world.nodes.values():
        if node.alive:
            node.peer_unreachable("n0")
    return world


@pytest.mark.parametrize("size", [3, 5])
def test_a_kill_is_answered_within_tens_of_milliseconds(size: int) -> None:
    """A new leader has committed its first entry within 200 ms at worst, 60 at median, of group time (no disk, no wire)."""
    gaps = []
    for seed in range(60):
        world = killed(size, seed)
        start = world.now
        while world.leader is None or not world.leader.core.is_leader_ready:
            world.advance(1)
            assert world.now - start < 2 * OPTIONS.election_timeout_ms
        gaps.append(world.now - start)
    gaps.sort()
    assert gaps[len(gaps) // 2] <= OPTIONS.lost_leader_max_ms
    assert gaps[-1] <= 200


def test_the_delay_is_random_within_its_limits() -> None:
    """Each survivor waits a random moment, so that they do not start together."""
    seen = set()
    for seed in range(300):
        world = World(dice=lambda at, seed=seed: random.Random(seed))  # type: ignore[misc]
        node = make_follower(world, 1)
        node.peer_unreachable("n1")
        seen.add(node.core.deadline_ms - world.now)
    assert min(seen) == OPTIONS.lost_leader_min_ms
    assert max(seen) == OPTIONS.lost_leader_max_ms


def test_who_lost_its_leader_grants_a_poll_at_once() -> None:
    """No waiting for the minimum election timeout: the connection is gone."""
    world = World()
    node = make_follower(world, 1)
    request = vote_request("n2", 2, (0, 1), pre_vote=True)
    (answer,) = world.step("n0", request)
    assert isinstance(answer, RequestVoteResponse)
    assert not answer.granted
    node.peer_unreachable("n1")
    (answer,) = world.step("n0", request)
    assert isinstance(answer, RequestVoteResponse)
    assert answer.granted


def test_a_broken_link_alone_deposes_nobody() -> None:
    """Only the link between one follower and the leader broke: the others hear the leader and refuse the poll."""
    world = World()
    leader = world.elect("n0")
    for _ in range(20):
        world["n1"].peer_unreachable("n0")
        leader.peer_unreachable("n1")
        world.advance(30)
        world["n1"].peer_connected("n0")
        leader.peer_connected("n1")
        world.deliver()
        leader.propose()
        world.deliver()
        world.advance(100)
    assert world.leader is leader
    assert leader.core.term == 1
    assert world["n1"].log == leader.log
    assert all(node.core.elections_started == (node is leader) for node in world.nodes.values())


def test_a_lasting_one_link_cut_deposes_nobody() -> None:
    """The same when the link stays down."""
    world = World()
    leader = world.elect("n0")
    world.cut_link("n0", "n1")
    world["n1"].peer_unreachable("n0")
    leader.peer_unreachable("n1")
    for _ in range(50):
        world.advance(200)
        leader.propose()
        world.deliver()
    assert world.leader is leader
    assert leader.core.term == 1
    world.heal()
    world.advance(1000)
    assert world["n1"].log == leader.log


def test_a_sign_of_life_takes_the_hint_back() -> None:
    """The leader is heard again before the delay is over: no poll."""
    world = World()
    node = make_follower(world, 1)
    node.peer_unreachable("n1")
    assert node.core.deadline_ms <= world.now + OPTIONS.lost_leader_max_ms
    node.step(heartbeat("n1", 1))
    assert node.core.deadline_ms >= world.now + OPTIONS.election_timeout_ms
    (answer,) = world.step("n0", vote_request("n2", 2, (0, 1), pre_vote=True))
    assert isinstance(answer, RequestVoteResponse)
    assert not answer.granted


def test_the_hint_counts_once() -> None:
    """Both streams to the dead leader break: the second report draws no new delay, nor prolongs the first."""
    world = World()
    node = make_follower(world, 1)
    node.peer_unreachable("n1")
    due = node.core.deadline_ms
    world.now += 5
    node.peer_unreachable("n1")
    assert node.core.deadline_ms == due


def test_other_peers_are_no_leader() -> None:
    """A connection to another follower broke: nothing to hurry for."""
    world = World()
    node = make_follower(world, 1)
    due = node.core.deadline_ms
    node.peer_unreachable("n2")
    assert node.core.deadline_ms == due
    node.core.peer_unreachable("n9", world.now)
    assert node.core.deadline_ms == due


def test_a_split_vote_among_survivors_is_not_waited_out() -> None:
    """Everybody who lives has answered: the candidate tries again at once, not after the election timeout."""
    world = World()
    make_follower(world, 1)
    node = make_candidate(world)
    node.peer_unreachable("n1")
    node.step(vote("n2", node.core.term, granted=False))
    assert role_of(node) is Role.FOLLOWER
    assert node.core.deadline_ms - world.now <= 3 * OPTIONS.lost_leader_max_ms


def test_a_voter_that_dies_before_it_answers_is_not_waited_for() -> None:
    """The same when the connection breaks last."""
    world = World()
    node = make_candidate(world)
    node.step(vote("n2", node.core.term, granted=False))
    assert role_of(node) is Role.CANDIDATE
    node.peer_unreachable("n1")
    assert role_of(node) is Role.FOLLOWER


def test_a_refused_poll_among_survivors_is_repeated_soon() -> None:
    """The other survivor had not noticed yet that the leader is dead: it is asked again a moment later."""
    world = World()
    make_follower(world, 1)
    world["n0"].peer_unreachable("n1")
    node = make_pre_candidate(world)
    node.step(vote("n2", 1, granted=False, pre_vote=True, asked=2))
    assert role_of(node) is Role.FOLLOWER
    assert node.core.deadline_ms - world.now <= 3 * OPTIONS.lost_leader_max_ms


def test_a_node_alone_does_not_hurry() -> None:
    """Nobody can be reached: polling at the pace of the election timeout is enough."""
    world = World()
    node = make_follower(world, 1)
    node.peer_unreachable("n1")
    node.peer_unreachable("n2")
    start = world.now
    polls = 0
    while world.now < start + 10_000:
        world.now = node.core.deadline_ms
        polls += bool(pick(world.sent_by("n0", node.tick), RequestVote))
    assert polls <= 10_000 // OPTIONS.election_timeout_ms + 2
    assert node.core.term == 1


def test_a_message_shows_that_a_peer_is_back() -> None:
    """A peer that broke off and was heard of since is waited for again."""
    world = World()
    node = make_candidate(world)
    node.peer_unreachable("n1")
    node.step(vote_request("n1", 0))  # anything at all
    node.step(vote("n2", node.core.term, granted=False))
    assert role_of(node) is Role.CANDIDATE


def test_a_connection_that_is_back_is_waited_for() -> None:
    """The same for a link that was made anew, before anything came over it."""
    world = World()
    node = make_candidate(world)
    node.peer_unreachable("n1")
    node.peer_connected("n1")
    node.step(vote("n2", node.core.term, granted=False))
    assert role_of(node) is Role.CANDIDATE


def test_the_leader_stops_sending_to_a_broken_link() -> None:
    """Nothing is fetched for a peer that is gone until it shows itself; then the rest goes at once."""
    world = World()
    leader = world.elect("n0")
    world.advance(10)
    leader.peer_unreachable("n1")
    leader.propose(5)
    assert not [envelope for envelope in world.wire if envelope.peer == "n1"]
    leader.peer_connected("n1")
    assert [envelope for envelope in world.wire if envelope.peer == "n1"]
    world.deliver()
    assert world["n1"].log == leader.log
