"""T§3.10, leadership transfer: the leader stops taking entries, fills the target, and tells it to campaign at once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dledger.raft.messages import RequestVote, RequestVoteResponse, Role, TimeoutNow
from dledger.raft.ready import ProposalRefusedError, RefusalReason
from tests.raft.harness import (
    OPTIONS,
    World,
    accepted,
    beat_answer,
    make_candidate,
    make_follower,
    make_leader,
    make_pre_candidate,
    pick,
    role_of,
    vote_request,
)


def group(**options: object) -> World:
    world = World(options=replace(OPTIONS, **options))  # type: ignore[arg-type]
    world.elect("n0")
    world["n0"].propose(3)
    world.deliver()
    world.advance(10)
    return world


def reason(world: World, target: str | None) -> RefusalReason:
    with pytest.raises(ProposalRefusedError) as refused:
        world["n0"].transfer(target)
    return refused.value.reason


def test_transfer_to_an_up_to_date_follower() -> None:
    """T§3.10: the target leads the next term, with every entry; nothing is lost or doubled on the way."""
    world = group()
    assert world["n0"].transfer("n2") == "n2"
    world.deliver()
    assert world.leader is world["n2"]
    assert world["n2"].core.term == 2
    assert role_of(world["n0"]) is Role.FOLLOWER
    world.advance(10)
    assert [node.terms for node in world.nodes.values()] == [[1, 1, 1, 1, 2]] * 3
    world["n2"].propose()
    world.deliver()
    assert world["n2"].core.commit_index == 5


def test_proposals_are_refused_while_it_runs() -> None:
    """T§3.10, step 1: the leader stops accepting new client requests; reads go on."""
    world = group()
    world["n0"].transfer("n2")
    with pytest.raises(ProposalRefusedError) as refused:
        world["n0"].propose()
    assert refused.value.reason is RefusalReason.TRANSFERRING
    assert len(world["n0"].log) == 4


def test_a_lagging_target_is_filled_first() -> None:
    """T§3.10, step 2: TimeoutNow leaves only when the target's log equals the leader's."""
    world = World()
    node = make_leader(world)
    node.step(accepted("n1", 1, 0))
    node.propose(5)
    assert pick(world.sent_by("n0", lambda: node.transfer("n1")), TimeoutNow) == []
    assert pick(world.step("n0", accepted("n1", 1, 4)), TimeoutNow) == []
    assert pick(world.step("n0", accepted("n2", 1, 5)), TimeoutNow) == []  # another one has it all
    assert pick(world.step("n0", accepted("n1", 1, 5)), TimeoutNow) == [TimeoutNow("n0", 1)]


def test_an_up_to_date_target_is_told_at_once() -> None:
    """T§3.10: no waiting where there is nothing to wait for."""
    world = group()
    assert world.sent_by("n0", lambda: world["n0"].transfer("n1")) == [TimeoutNow("n0", 1)]


def test_a_lost_timeout_now_is_repeated() -> None:
    """With each heartbeat, as long as the transfer runs."""
    world = group()
    world["n0"].transfer("n1")
    assert len(world.take(TimeoutNow)) == 1
    world.advance(100)
    assert world.leader is world["n1"]


def test_given_up_after_an_election_timeout() -> None:
    """T§3.10: if the transfer does not complete, the leader resumes taking requests, and it never stopped leading."""
    world = group()
    world["n0"].transfer("n2")
    world.take(TimeoutNow)
    world["n2"].crash()
    world.advance(OPTIONS.election_timeout_ms - 1)
    assert world["n0"].core.transferee == "n2"
    world.advance(1)
    assert world["n0"].core.transferee is None
    assert "transfer_given_up target=n2" in world.transcript()
    index = world["n0"].propose()
    world.deliver()
    assert (world["n0"].core.commit_index, world["n0"].core.term) == (index, 1)


def test_timeout_now_skips_the_poll_and_the_stickiness() -> None:
    """T§3.10 with T§4.2.3: the target campaigns at once, and its requests say that the leader wants it."""
    world = World()
    node = make_follower(world, 3)
    sent = world.step("n0", TimeoutNow("n1", 3))
    assert sent == [RequestVote("n0", 4, -1, -1, leadership_transfer=True)] * 2
    assert (node.core.role, node.core.term) == (Role.CANDIDATE, 4)
    world = World()
    make_follower(world, 3)
    (answer,) = world.step("n0", vote_request("n2", 4, (5, 3), transfer=True))
    assert isinstance(answer, RequestVoteResponse)
    assert answer.granted


def test_a_campaign_after_a_failed_transfer_is_an_ordinary_one() -> None:
    """The permission to disturb the leader is for one campaign."""
    world = World()
    node = make_follower(world, 3)
    world.step("n0", TimeoutNow("n1", 3))
    world.now = node.core.deadline_ms
    polls = pick(world.sent_by("n0", node.tick), RequestVote)
    assert polls
    assert all(poll.pre_vote and not poll.leadership_transfer for poll in polls)


@pytest.mark.parametrize("role", [Role.PRE_CANDIDATE, Role.CANDIDATE, Role.LEADER, Role.LEARNER])
def test_only_a_follower_obeys_timeout_now(role: Role) -> None:
    """Who campaigns already, leads, or does not vote, ignores it."""
    if role is Role.LEARNER:
        world = World(3, learners=("l0",))
        assert world.step("l0", TimeoutNow("n1", 0)) == []
        assert world["l0"].core.role is Role.LEARNER
        return
    world = World()
    make = {Role.PRE_CANDIDATE: make_pre_candidate, Role.CANDIDATE: make_candidate, Role.LEADER: make_leader}[role]
    node = make(world)
    term = node.core.term
    assert world.step("n0", TimeoutNow("n1", term)) == []
    assert (node.core.role, node.core.term) == (role, term)


def test_refusals() -> None:
    """What cannot be done is said at once, with the reason, and nothing has changed."""
    world = group(max_transfer_lag=2)
    assert reason(world, "n9") is RefusalReason.NOT_MEMBER
    with pytest.raises(ProposalRefusedError) as refused:
        world["n1"].transfer("n2")
    assert refused.value.reason is RefusalReason.NOT_LEADER
    world["n2"].crash()
    world["n0"].propose(3)
    world.deliver()
    assert reason(world, "n2") is RefusalReason.FALLEN_BEHIND
    world.advance(OPTIONS.election_timeout_ms)
    assert reason(world, "n2") is RefusalReason.UNREACHABLE
    assert world["n0"].core.transferee is None
    world["n0"].propose()
    world["n0"].transfer("n1")
    assert reason(world, "n2") is RefusalReason.TRANSFERRING
    assert world["n0"].core.transferee == "n1"


def test_transfer_to_oneself_does_nothing() -> None:
    """The wish is fulfilled already."""
    world = group()
    assert world["n0"].transfer("n0") == "n0"
    assert world["n0"].core.transferee is None
    world["n0"].propose()


def test_a_broken_connection_is_no_target() -> None:
    """A peer whose connection broke a moment ago was heard of lately, and is gone all the same."""
    world = group()
    world["n0"].peer_unreachable("n2")
    assert reason(world, "n2") is RefusalReason.UNREACHABLE
    assert world["n0"].transfer(None) == "n1"


def test_no_target_named_takes_the_best() -> None:
    """The follower that is furthest ahead; a preferred one first, unless it is too far behind."""
    for preferred, acks, expected in (
        ((), {"n1": 4, "n2": 5}, "n2"),
        ((), {"n1": 5, "n2": 4}, "n1"),
        (("n1",), {"n1": 4, "n2": 5}, "n1"),
        (("n1",), {"n1": 0, "n2": 5}, "n2"),  # five behind, two are allowed
    ):
        world = World(options=replace(OPTIONS, preferred_leader_ids=preferred, max_transfer_lag=2))
        node = make_leader(world)
        node.propose(5)
        for peer, index in acks.items():
            node.step(accepted(peer, 1, index))
        assert node.transfer(None) == expected


def test_nobody_to_hand_over_to() -> None:
    """All others are gone: the caller learns it."""
    world = group()
    for name in ("n1", "n2"):
        world[name].crash()
        world["n0"].peer_unreachable(name)
    assert reason(world, None) is RefusalReason.UNREACHABLE


def test_a_target_whose_disk_is_full_does_not_campaign() -> None:
    """It could not take entries as leader: the transfer is given up."""
    world = group()
    world["n2"].core.set_disk_full(True, world.now)
    world["n0"].transfer("n2")
    world.advance(OPTIONS.election_timeout_ms)
    assert world.leader is world["n0"]
    assert world["n0"].core.transferee is None


def test_a_stale_timeout_now_is_ignored() -> None:
    """Doubled or late, from an older term."""
    world = World()
    node = make_follower(world, 3)
    world.step("n0", TimeoutNow("n1", 3))
    term = node.core.term
    world.step("n0", TimeoutNow("n1", 3))
    assert node.core.term == term


# ---------------------------------------------------------------------- preferred leaders (DLedger: preferredLeaderId)


def test_leadership_goes_to_the_preferred_node() -> None:
    """A node that is preferred, up and close enough is handed the lead by whoever has it."""
    world = World(options=replace(OPTIONS, preferred_leader_ids=("n2",)))
    world.elect("n0")
    world.advance(500)
    assert world.leader is world["n0"]
    world.advance(1000)
    assert world.leader is world["n2"]
    world.advance(10_000)
    assert world["n2"].core.term == 2  # and there it stays


def test_a_preferred_node_that_is_down_or_behind_is_waited_for() -> None:
    """No hand-over into the blue: only to one that answers and is near the end."""
    world = World(options=replace(OPTIONS, preferred_leader_ids=("n2",), max_transfer_lag=5))
    world.elect("n0")
    world["n2"].crash()
    world["n0"].propose(10)
    world.deliver()
    world.advance(5000)
    assert world.leader is world["n0"]
    assert "prefers_another_leader" not in world.transcript()
    world["n2"].restart()
    world.advance(3000)
    assert world.leader is world["n2"]


def test_a_preferred_node_with_a_slow_disk_is_waited_for() -> None:
    """It answers, and its log is far behind: no hand-over until it has caught up."""
    world = World(options=replace(OPTIONS, preferred_leader_ids=("n2",), max_transfer_lag=5))
    world.elect("n0")
    world.advance(10)
    world["n2"].auto_persist = False
    world["n0"].propose(6)
    world.deliver()
    world.advance(3000)
    assert world.leader is world["n0"]
    assert "prefers_another_leader" not in world.transcript()
    world["n2"].auto_persist = True
    world["n2"].settle()
    world.advance(1100)
    assert world.leader is world["n2"]


def test_two_preferred_nodes_do_not_play_ball() -> None:
    """One preferred node does not hand over to another."""
    world = World(options=replace(OPTIONS, preferred_leader_ids=("n1", "n2")))
    world.elect("n1")
    world.advance(10_000)
    assert world.leader is world["n1"]
    assert world["n1"].core.term == 1


def test_a_preferred_node_that_will_not_is_asked_ever_more_rarely() -> None:
    """After a transfer that was given up the next is tried ten checks later: appends are refused meanwhile."""
    world = World(options=replace(OPTIONS, preferred_leader_ids=("n2",)))
    world.elect("n0")
    world["n2"].core.set_disk_full(True, world.now)
    world.advance(12_000)
    assert world.transcript().count("prefers_another_leader") == 2


def test_the_transfer_waits_for_the_window() -> None:
    """What is on its way to the target comes first, however the answers arrive."""
    world = World()
    node = make_leader(world)
    node.step(accepted("n1", 1, 0))
    node.propose(2)
    node.transfer("n1")
    assert pick(world.step("n0", beat_answer("n1", 1, sent=2, match=1, last=2)), TimeoutNow) == []
    assert pick(world.step("n0", beat_answer("n1", 1, sent=2, match=2)), TimeoutNow) == [TimeoutNow("n0", 1)]
