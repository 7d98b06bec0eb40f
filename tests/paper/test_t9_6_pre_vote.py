"""T§9.6, PreVote: nobody raises the term before a majority says that a campaign could be won."""

from __future__ import annotations

import random

import pytest

from dledger.raft.messages import HardState, RequestVote, RequestVoteResponse, Role, VoteResult
from tests.raft.harness import (
    OPTIONS,
    World,
    heartbeat,
    make_follower,
    make_leader,
    make_pre_candidate,
    pick,
    role_of,
    vote,
    vote_request,
)


def test_a_poll_raises_no_term_and_costs_no_vote() -> None:
    """T§9.6: neither the one who asks nor the one who answers changes term or vote."""
    world = World(hard_states={"n0": HardState(4, "n2"), "n1": HardState(4)})
    node = world["n1"]
    world.now = node.core.deadline_ms
    polls = pick(world.sent_by("n1", node.tick), RequestVote)
    assert polls == [RequestVote("n1", 5, -1, -1, pre_vote=True)] * 2
    assert (node.core.role, node.disk_hard_state) == (Role.PRE_CANDIDATE, HardState(4))
    (answer,) = world.step("n0", polls[0])
    assert answer == RequestVoteResponse("n0", 5, request_term=5, granted=True, pre_vote=True)
    assert world["n0"].disk_hard_state == HardState(4, "n2")


@pytest.mark.parametrize(
    ("size", "answers", "role"),
    [
        (3, "y", Role.CANDIDATE),
        (3, "n", Role.PRE_CANDIDATE),
        (3, "nn", Role.FOLLOWER),
        (3, "ny", Role.CANDIDATE),
        (5, "y", Role.PRE_CANDIDATE),
        (5, "yy", Role.CANDIDATE),
        (5, "ynnn", Role.FOLLOWER),
    ],
)
def test_a_poll_is_won_like_an_election(size: int, answers: str, role: Role) -> None:
    """T§9.6: a majority of granted polls starts the campaign, refusals end the poll without one."""
    world = World(size)
    node = make_pre_candidate(world)
    for number, answer in enumerate(answers):
        if answer == "y":
            node.step(vote(f"n{number + 1}", 1, pre_vote=True))
        else:
            node.step(vote(f"n{number + 1}", 0, granted=False, pre_vote=True, asked=1))
    assert node.core.role is role
    assert node.core.term == (1 if role is Role.CANDIDATE else 0)


def test_who_hears_a_leader_refuses_polls() -> None:
    """T§9.6: a server that heard its leader within the minimum election timeout grants no poll; after that it does."""
    world = World()
    make_follower(world, 1)
    world.now += OPTIONS.election_timeout_ms - 1
    (answer,) = world.step("n0", vote_request("n2", 2, (9, 9), pre_vote=True))
    assert isinstance(answer, RequestVoteResponse)
    assert (answer.granted, answer.result, answer.term) == (False, VoteResult.REJECT_ALREADY_HAS_LEADER, 1)
    world.now += 1
    (answer,) = world.step("n0", vote_request("n2", 2, (9, 9), pre_vote=True))
    assert isinstance(answer, RequestVoteResponse)
    assert answer.granted


def test_a_leader_refuses_polls() -> None:
    """T§9.6: nobody knows better than the leader that there is one."""
    world = World()
    node = make_leader(world)
    (answer,) = world.step("n0", vote_request("n2", 2, (9, 9), pre_vote=True))
    assert isinstance(answer, RequestVoteResponse)
    assert answer.result is VoteResult.REJECT_ALREADY_HAS_LEADER
    assert node.core.is_leader


def test_who_hears_a_leader_ignores_campaigns() -> None:
    """§6, end (leader stickiness): a real vote request does not raise the term either while the leader is heard of."""
    world = World()
    node = make_follower(world, 1)
    (answer,) = world.step("n0", vote_request("n2", 7, (9, 9)))
    assert isinstance(answer, RequestVoteResponse)
    assert (answer.granted, answer.term) == (False, 1)
    assert (node.core.term, node.core.leader_id) == (1, "n1")


def test_a_partitioned_node_rejoins_without_deposing() -> None:
    """T§9.6: a node that was cut off comes back in the old term; the leader it finds goes on."""
    world = World()
    leader = world.elect("n0")
    leader.propose(2)
    world.deliver()
    world.isolate("n2")
    world.advance(20_000)
    assert world["n2"].core.term == 1
    leader.propose(2)
    world.deliver()
    world.heal()
    world.advance(2000)
    assert world.leader is leader
    assert [node.core.term for node in world.nodes.values()] == [1, 1, 1]
    assert world["n2"].log == leader.log


def test_a_one_way_link_does_not_depose() -> None:
    """T§9.6: a node that hears nothing but is heard polls for ever, and changes nothing."""
    world = World()
    leader = world.elect("n0")
    world.cut |= {("n0", "n2")}
    world.advance(20_000)
    assert world.leader is leader
    assert leader.core.term == 1
    assert world["n2"].core.elections_started == 0


def test_a_node_in_a_higher_term_cannot_be_left_behind() -> None:
    """A leader meets a node that once campaigned: it learns of the term and leads a later one, with all entries."""
    world = World(logs={"n0": [1, 1], "n1": [1, 1]}, hard_states={"n2": HardState(8, "n2")})
    world.elect("n0")
    world.advance(5000)
    leader = world.leader
    assert leader is not None
    assert leader.core.term > 8
    assert all(node.log == leader.log for node in world.nodes.values())


def test_polls_of_a_term_that_has_come_are_refused() -> None:
    """Who polls for the term that is on already has missed something: it learns of it by the answer."""
    world = World(hard_states={"n0": HardState(5)})
    (answer,) = world.step("n0", vote_request("n1", 5, pre_vote=True))
    assert isinstance(answer, RequestVoteResponse)
    assert (answer.granted, answer.term, answer.result) == (False, 5, VoteResult.REJECT_EXPIRED_VOTE_TERM)
    node = world["n1"]
    make_pre_candidate(world, "n1")
    node.step(answer)
    assert (node.core.term, node.core.role) == (5, Role.FOLLOWER)


def test_answers_to_an_older_poll_do_not_count() -> None:
    """Each poll is for one term."""
    world = World(hard_states={"n0": HardState(4)})
    node = make_pre_candidate(world)
    node.step(vote("n1", 4, pre_vote=True, asked=4))
    node.step(vote("n1", 6, pre_vote=True, asked=6))  # asked for by nobody
    node.step(vote("n1", 5))  # a vote, not a poll: its term is real, and followed
    assert role_of(node) is Role.FOLLOWER
    assert node.core.elections_started == 0


def test_a_leaders_message_ends_the_poll() -> None:
    """Whoever polls and hears the leader of its term follows it again."""
    world = World(hard_states={"n0": HardState(4)})
    node = make_pre_candidate(world)
    node.step(heartbeat("n1", 4))
    assert (role_of(node), node.core.leader_id, node.core.term) == (Role.FOLLOWER, "n1", 4)
    node.step(vote("n1", 5, pre_vote=True))
    assert role_of(node) is Role.FOLLOWER


def test_granting_a_poll_lets_the_other_go_first() -> None:
    """Two candidates at once split the vote: who has just granted a poll waits a moment before its own."""
    world = World()
    node = world["n0"]
    world.now = node.core.deadline_ms - 1
    world.step("n0", vote_request("n1", 1, pre_vote=True))
    assert node.core.deadline_ms == world.now + 2 * OPTIONS.lost_leader_max_ms


@pytest.mark.parametrize(
    ("mine", "other", "sender", "yields"),
    [
        ([1], (0, 1), "n2", True),  # equal logs: the higher name goes on
        ([1], (0, 1), "n0", False),
        ([1], (1, 1), "n0", True),  # a better log goes on, whatever the name
        ([1], (0, 2), "n0", True),
    ],
)
def test_of_two_who_poll_each_other_one_yields(
    mine: list[int], other: tuple[int, int], sender: str, yields: bool
) -> None:
    """Both grant; only one counts what it gets. Nobody refuses, so nothing can block."""
    world = World(logs={"n1": mine}, hard_states={"n1": HardState(2)})
    node = make_pre_candidate(world, "n1")
    (answer,) = world.step("n1", vote_request(sender, 3, other, pre_vote=True))
    assert isinstance(answer, RequestVoteResponse)
    assert answer.granted
    node.step(vote(sender, 3, pre_vote=True))
    assert role_of(node) is (Role.FOLLOWER if yields else Role.CANDIDATE)


def test_two_at_once_elect_one_without_a_split() -> None:
    """After a kill -9 both survivors may start in the same millisecond; one term is enough."""
    for seed in range(30):
        world = World(dice=lambda at, seed=seed: random.Random(seed * 10 + at))  # type: ignore[misc]
        world.elect("n0")
        world.advance(10)
        world["n0"].crash()
        for name in ("n1", "n2"):
            world[name].peer_unreachable("n0")
        world.now += OPTIONS.lost_leader_max_ms
        world["n1"].tick()
        world["n2"].tick()
        world.deliver()
        assert world.leader is world["n2"]
        assert world["n2"].core.term == 2


def test_a_link_that_comes_back_is_asked_again() -> None:
    """Whoever polls asks a peer that connects meanwhile, once."""
    world = World()
    node = make_pre_candidate(world)
    sent = world.sent_by("n0", lambda: node.peer_connected("n1"))
    assert sent == [RequestVote("n0", 1, -1, -1, pre_vote=True)]
    node.step(vote("n1", 0, granted=False, pre_vote=True, asked=1))
    assert world.sent_by("n0", lambda: node.peer_connected("n1")) == []
