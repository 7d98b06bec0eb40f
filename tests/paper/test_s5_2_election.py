"""§5.2, leader election. Each campaign here is preceded by a poll (T§9.6, its own file)."""

from __future__ import annotations

import random

import pytest

from dledger.raft.core import RaftCore
from dledger.raft.messages import HardState, Heartbeat, RequestVote, RequestVoteResponse, Role, VoteResult
from dledger.raft.quorum import Configuration
from tests.raft.harness import (
    OPTIONS,
    Dice,
    Node,
    World,
    append,
    beat_answer,
    heartbeat,
    make_candidate,
    make_follower,
    make_leader,
    make_pre_candidate,
    pick,
    role_of,
    vote,
    vote_request,
)


def test_a_server_starts_as_follower() -> None:
    """§5.2: when servers start up, they begin as followers, without a leader."""
    for node in World(5).nodes.values():
        assert (node.core.role, node.core.leader_id, node.core.vote) == (Role.FOLLOWER, None, None)


def test_a_follower_stays_one_while_it_hears_its_leader() -> None:
    """§5.2: a server remains follower as long as it receives valid messages from a leader."""
    world = World()
    leader = world.elect("n0")
    world.advance(20_000)
    assert world.leader is leader
    assert leader.core.term == 1
    assert all(node.core.elections_started == (node is leader) for node in world.nodes.values())


def test_silence_starts_an_election() -> None:
    """§5.2: a follower that receives nothing over the election timeout begins an election, not before."""
    world = World()
    node = make_follower(world, 1)
    due = node.core.deadline_ms
    assert due - world.now >= OPTIONS.election_timeout_ms
    world.now = due - 1
    assert world.sent_by("n0", node.tick) == []
    assert node.core.role is Role.FOLLOWER
    world.now = due
    assert {type(message) for message in world.sent_by("n0", node.tick)} == {RequestVote}


def test_a_campaign_raises_the_term_votes_for_itself_and_asks_all() -> None:
    """§5.2: the follower increments its term, votes for itself, and issues RequestVote to each other server."""
    world = World(5)
    node = make_pre_candidate(world)
    assert node.core.term == 0
    node.step(vote("n1", 1, pre_vote=True))
    node.step(vote("n2", 1, pre_vote=True))
    assert (node.core.role, node.core.term, node.core.vote) == (Role.CANDIDATE, 1, "n0")
    requests = [envelope for envelope in world.wire if isinstance(envelope.message, RequestVote)]
    assert sorted(envelope.peer for envelope in requests) == ["n1", "n2", "n3", "n4"]
    assert {envelope.message for envelope in requests} == {RequestVote("n0", 1, -1, -1)}


@pytest.mark.parametrize(
    ("size", "votes", "role"),
    [
        (2, "y", Role.LEADER),
        (2, "n", Role.FOLLOWER),
        (2, "", Role.CANDIDATE),
        (3, "yy", Role.LEADER),
        (3, "y", Role.LEADER),
        (3, "ny", Role.LEADER),
        (3, "n", Role.CANDIDATE),
        (3, "nn", Role.FOLLOWER),
        (4, "y", Role.CANDIDATE),
        (4, "yy", Role.LEADER),
        (4, "ynn", Role.FOLLOWER),
        (5, "yy", Role.LEADER),
        (5, "y", Role.CANDIDATE),
        (5, "ynn", Role.CANDIDATE),
        (5, "nnn", Role.FOLLOWER),
        (5, "ynnn", Role.FOLLOWER),
        (5, "ynny", Role.LEADER),
    ],
)
def test_election_in_one_round(size: int, votes: str, role: Role) -> None:
    """§5.2: a candidate wins with the votes of a majority, loses when no majority can be had, and waits otherwise."""
    world = World(size)
    node = make_candidate(world)
    for number, answer in enumerate(votes):
        node.step(vote(f"n{number + 1}", 1, granted=answer == "y"))
    assert node.core.role is role
    assert node.core.term == 1


def test_each_voter_counts_once() -> None:
    """A doubled answer is one vote; a second, different one does not count."""
    world = World(5)
    node = make_candidate(world)
    for _ in range(3):
        node.step(vote("n1", 1))
    assert role_of(node) is Role.CANDIDATE
    node.step(vote("n2", 1, granted=False))
    node.step(vote("n2", 1))
    assert role_of(node) is Role.CANDIDATE
    node.step(vote("n3", 1))
    assert role_of(node) is Role.LEADER


def test_votes_for_another_campaign_do_not_count() -> None:
    """A vote is for one term and one kind of request: polls are not votes."""
    world = World(3, hard_states={"n0": HardState(4)})
    node = make_candidate(world)
    assert node.core.term == 5
    node.step(vote("n1", 5, pre_vote=True))
    node.step(vote("n1", 5, asked=4))
    assert role_of(node) is Role.CANDIDATE
    node.step(vote("n1", 5))
    assert role_of(node) is Role.LEADER


@pytest.mark.parametrize(
    ("voted", "asks", "granted", "result"),
    [
        (None, "n1", True, VoteResult.ACCEPT),
        (None, "n2", True, VoteResult.ACCEPT),
        ("n1", "n1", True, VoteResult.ACCEPT),
        ("n2", "n2", True, VoteResult.ACCEPT),
        ("n1", "n2", False, VoteResult.REJECT_ALREADY_VOTED),
        ("n2", "n1", False, VoteResult.REJECT_ALREADY_VOTED),
        ("n0", "n1", False, VoteResult.REJECT_ALREADY_VOTED),
    ],
)
def test_one_vote_a_term_first_come_first_served(
    voted: str | None, asks: str, granted: bool, result: VoteResult
) -> None:
    """§5.2: at most one candidate gets a server's vote in a term; asked again, it repeats the same vote."""
    world = World(hard_states={"n0": HardState(1, voted)})
    (answer,) = world.step("n0", vote_request(asks, 1))
    assert isinstance(answer, RequestVoteResponse)
    assert (answer.granted, answer.result, answer.term, answer.request_term) == (granted, result, 1, 1)
    assert world["n0"].disk_hard_state.vote == (asks if voted is None else voted)


def test_no_vote_in_a_term_that_has_a_leader() -> None:
    """Whoever follows a leader of this term cannot vote in it any more: the election is over."""
    world = World()
    make_follower(world, 3)
    (answer,) = world.step("n0", vote_request("n2", 3))
    assert isinstance(answer, RequestVoteResponse)
    assert (answer.granted, answer.result) == (False, VoteResult.REJECT_ALREADY_HAS_LEADER)
    assert world["n0"].core.vote is None


@pytest.mark.parametrize("higher", [0, 1])
@pytest.mark.parametrize("kind", ["append", "heartbeat"])
def test_a_candidate_falls_back(higher: int, kind: str) -> None:
    """§5.2: a candidate that hears a leader of a term at least its own recognises it and becomes follower."""
    world = World()
    node = make_candidate(world)
    term = node.core.term + higher
    world.step("n0", append("n2", term, (-1, -1), [term]) if kind == "append" else heartbeat("n2", term))
    assert (node.core.role, node.core.leader_id, node.core.term) == (Role.FOLLOWER, "n2", term)
    node.step(vote("n1", 1))  # too late: the election is over
    assert not node.core.is_leader


def test_a_candidate_ignores_a_leader_of_an_older_term() -> None:
    """§5.2: if the term is smaller, the candidate rejects the message and stays candidate."""
    world = World(hard_states={"n0": HardState(4)})
    node = make_candidate(world)
    world.step("n0", append("n2", 4, (-1, -1), [4]))
    assert (node.core.role, node.core.term, node.log) == (Role.CANDIDATE, 5, [])


def test_a_leader_sends_heartbeats() -> None:
    """§5.2: at once upon election, and then each heartbeat interval, to all others."""
    world = World(5)
    node = make_candidate(world)
    node.step(vote("n1", 1))
    world.wire.clear()
    node.step(vote("n2", 1))
    first = [envelope.peer for envelope in world.wire if isinstance(envelope.message, Heartbeat)]
    assert sorted(first) == ["n1", "n2", "n3", "n4"]
    world.wire.clear()
    start = world.now
    for beat in range(1, 4):
        due = start + beat * OPTIONS.heartbeat_interval_ms
        world.now = due - 1
        assert pick(world.sent_by("n0", node.tick), Heartbeat) == []
        world.now = due
        assert len(pick(world.sent_by("n0", node.tick), Heartbeat)) == 4
        for peer in ("n1", "n2"):
            node.step(beat_answer(peer, 1))


@pytest.mark.parametrize("role", [Role.FOLLOWER, Role.CANDIDATE])
def test_timeouts_are_random(role: Role) -> None:
    """§5.2: each election timeout is drawn from [n, 2n), anew each time, over the whole range."""
    timeout = OPTIONS.election_timeout_ms
    world = World(dice=random.Random)
    node = world["n0"]
    seen = set()
    for term in range(1, 800):
        if role is Role.FOLLOWER:
            node.step(heartbeat("n1", term))
        else:
            node.step(heartbeat("n1", 2 * term))
            make_candidate(world)
        seen.add(node.core.deadline_ms - world.now)
        world.wire.clear()
    assert min(seen) >= timeout
    assert max(seen) < 2 * timeout
    assert len(seen) > timeout // 2  # as etcd's test: at least half of the possible values came


def test_the_first_timeout_is_shorter() -> None:
    """A group that starts has no leader to wait for: the first timeout is drawn from [n/4, n]."""
    seen = {World(1, dice=lambda at, seed=seed: random.Random(seed))["n0"].core.deadline_ms for seed in range(2000)}  # type: ignore[misc]
    assert min(seen) >= OPTIONS.election_timeout_ms // 4
    assert max(seen) <= OPTIONS.election_timeout_ms
    assert len(seen) > OPTIONS.election_timeout_ms // 3


@pytest.mark.parametrize("size", [3, 4, 5])
def test_random_timeouts_make_conflicts_rare(size: int) -> None:
    """§5.2: in nearly all elections a single candidate times out first; every group gets its leader."""
    campaigns = 0
    for seed in range(40):
        world = World(size, dice=lambda at, seed=seed: random.Random(seed * 100 + at))  # type: ignore[misc]
        world.advance(2 * OPTIONS.election_timeout_ms)
        assert world.leader is not None
        campaigns += sum(node.core.elections_started for node in world.nodes.values())
    assert campaigns <= 44


def test_a_split_vote_is_resolved() -> None:
    """§5.2: with no winner each candidate times out and starts a new election, in a new term, at another moment."""
    world = World(4)
    for name in ("n0", "n1"):
        make_candidate(world, name)
    world["n2"].step(vote_request("n0", 1))
    world["n3"].step(vote_request("n1", 1))
    world.deliver()
    assert world.leader is None
    assert [node.core.vote for node in world.nodes.values()] == ["n0", "n1", "n0", "n1"]
    world.advance(4 * OPTIONS.election_timeout_ms)
    assert world.leader is not None
    assert world.leader.core.term >= 2


def test_a_refused_candidate_tries_again_after_a_random_wait() -> None:
    """A lost election is not repeated at once, nor only after a whole timeout; repeated losses wait longer."""
    world = World(dice=random.Random)
    waits = []
    for _ in range(6):
        node = make_candidate(world)
        term = node.core.term
        node.step(vote("n1", term, granted=False))
        node.step(vote("n2", term, granted=False))
        assert node.core.role is Role.FOLLOWER
        waits.append(node.core.deadline_ms - world.now)
    assert all(OPTIONS.lost_leader_min_ms <= wait <= 2 * OPTIONS.election_timeout_ms for wait in waits)
    assert len(set(waits)) == len(waits)
    assert max(waits[3:]) > max(waits[:1])


def test_a_vote_delays_the_voters_own_campaign() -> None:
    """§5.2: granting a vote restarts the voter's timer; refusing one does not."""
    world = World(logs={"n0": [1, 1]})
    node = world["n0"]
    before = node.core.deadline_ms
    world.now = before - 10
    node.step(vote_request("n1", 1, (0, 1)))  # log too short: refused
    assert node.core.deadline_ms == before
    node.step(vote_request("n1", 1, (1, 1)))
    assert node.core.deadline_ms >= world.now + OPTIONS.election_timeout_ms


def test_learners_never_campaign() -> None:
    """A learner replicates and is never counted: its timer starts nothing."""
    world = World(3, learners=("l0",))
    learner = world["l0"]
    assert learner.core.role is Role.LEARNER
    world.now = learner.core.deadline_ms
    assert world.sent_by("l0", learner.tick) == []
    world.elect("n0")
    world["n0"].propose(2)
    world.deliver()
    world.advance(OPTIONS.commit_notice_ms)
    assert learner.core.role is Role.LEARNER
    assert learner.log == world["n0"].log
    assert learner.core.commit_index == 2


def test_a_learners_copy_does_not_commit() -> None:
    """A learner's acknowledgement is not counted: with two of three voters silent nothing is committed."""
    world = World(3, learners=("l0",))
    world.elect("n0")
    world["n1"].crash()
    world["n2"].crash()
    index = world["n0"].propose()
    world.deliver()
    assert world["l0"].core.stable_index == index
    assert world["n0"].core.commit_index < index


def test_one_core_alone_elects_itself() -> None:
    """A single-node group leads without asking anybody, but only with its vote on its disk."""
    world = World(1)
    node: Node = world["n0"]
    node.auto_persist = False
    world.now = node.core.deadline_ms
    node.tick()
    assert role_of(node) is Role.CANDIDATE
    node.settle()
    assert role_of(node) is Role.LEADER
    assert node.core.commit_index == -1  # its first entry is not durable yet
    node.settle()
    assert (node.core.commit_index, node.leader_ready) == (0, True)
    node.propose(3)
    assert node.core.commit_index == 0
    node.settle()
    assert node.core.commit_index == 3
    node.read(1)
    assert node.reads == {1: 3}
    node.crash()
    node.restart()
    assert (node.core.term, node.core.vote, node.core.commit_index) == (1, "n0", -1)
    node.auto_persist = True
    world.advance(OPTIONS.election_timeout_ms)
    assert (node.core.term, node.core.commit_index) == (2, 4)


def test_the_core_draws_from_the_source_it_is_given() -> None:
    """No randomness of its own: the same source, the same timers."""

    def core(source: random.Random) -> RaftCore:
        return RaftCore(
            "n0",
            Configuration(frozenset({"n0", "n1"})),
            OPTIONS,
            hard_state=HardState(),
            runs=(),
            first_index=0,
            last_index=-1,
            commit_index=-1,
            random=source,
            now_ms=0,
        )

    assert core(random.Random(3)).deadline_ms == core(random.Random(3)).deadline_ms
    assert Dice(0.0).randint(10, 20) == 10


def test_make_leader_is_a_real_election() -> None:
    """The helper that other files use leaves a leader with its first entry appended and nothing acknowledged."""
    world = World()
    node = make_leader(world)
    assert (node.core.term, node.terms, node.core.commit_index) == (1, [1], -1)
    assert {progress.match_index for progress in node.core.progress.values()} == {-1}
