"""Ours, beyond the paper: votes of nodes that may have lost entries they acknowledged (``HardState.vote_floor``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from dledger.raft.messages import (
    UNKNOWN_FLOOR,
    AppendEntriesResponse,
    HardState,
    Heartbeat,
    HeartbeatResponse,
    LogId,
    ReadIndexRequest,
    ReadIndexResponse,
    RequestVoteResponse,
    Role,
    TimeoutNow,
)
from tests.raft.harness import (
    OPTIONS,
    Node,
    World,
    accepted,
    append,
    beat_answer,
    heartbeat,
    make_candidate,
    make_leader,
    make_pre_candidate,
    pick,
    vote,
    vote_request,
)

WIPED = HardState(vote_floor=UNKNOWN_FLOOR)
TORN = HardState(3, None, LogId(3, 50))
"""A tail was lost with the power: term and vote are known, what was acknowledged is known to reach no further."""


def world_of(logs: Mapping[str, Sequence[int]], floors: Mapping[str, LogId], size: int = 3) -> World:
    states = {}
    for number in range(size):
        name = f"n{number}"
        states[name] = HardState(max(logs.get(name, ()), default=0), None, floors.get(name))
    return World(size, logs=logs, hard_states=states)


@pytest.mark.parametrize("pre_vote", [False, True], ids=["vote", "poll"])
@pytest.mark.parametrize(
    ("floor", "log", "candidate", "provisional"),
    [
        (None, [1], (0, 1), False),
        # A wiped folder: nothing is known of what was promised.
        (UNKNOWN_FLOOR, [], (5, 3), True),
        (UNKNOWN_FLOOR, [1], (5, 3), True),
        (UNKNOWN_FLOOR, [], (-1, -1), False),  # two empty logs: a group that never had an entry
        # A damaged tail: the floor is the furthest entry that may have been acknowledged.
        (LogId(2, 5), [1], (5, 2), False),
        (LogId(2, 5), [1], (6, 2), False),
        (LogId(2, 5), [1], (0, 3), False),
        (LogId(2, 5), [1], (4, 2), True),
        (LogId(2, 5), [1], (9, 1), True),
    ],
)
def test_which_votes_are_provisional(
    floor: LogId | None, log: list[int], candidate: tuple[int, int], provisional: bool, pre_vote: bool
) -> None:
    """A vote for a log that reaches the floor is a full one; below it the voter may have held more."""
    world = World(logs={"n0": log}, hard_states={"n0": HardState(1, None, floor)})
    (answer,) = world.step("n0", vote_request("n1", 4, candidate, pre_vote=pre_vote))
    assert isinstance(answer, RequestVoteResponse)
    assert (answer.granted, answer.provisional) == (True, provisional)


def test_a_new_group_starts_with_a_majority() -> None:
    """Three empty folders, one machine not up yet: two are enough, and the floors go with the first entry."""
    world = World(hard_states={f"n{at}": WIPED for at in range(3)})
    world["n2"].crash()
    world.advance(3000)
    leader = world.leader
    assert leader is not None
    assert leader.core.commit_index == 0
    assert [world[name].core.hard_state.vote_floor for name in ("n0", "n1")] == [None, None]
    world["n2"].restart()
    world.advance(300)
    assert world["n2"].core.hard_state.vote_floor is None


def test_a_wiped_node_cannot_make_a_lagging_node_leader() -> None:
    """n0 and n2 hold three committed entries, n1 one; n2 is wiped, n0 down. Nobody may lead until n0 is back."""
    world = world_of({"n0": [1, 1, 1], "n1": [1]}, {"n2": UNKNOWN_FLOOR})
    world["n0"].crash()
    world.advance(30_000)
    assert world.leader is None
    assert "elected" not in world.transcript()
    world["n0"].restart()
    world.advance(5000)
    assert world.leader is world["n0"]
    assert [node.terms[:3] for node in world.nodes.values()] == [[1, 1, 1]] * 3
    assert world["n2"].core.hard_state.vote_floor is None


def test_without_the_floor_the_entries_would_be_lost() -> None:
    """The test of the test: the same story with a node that forgets that it was wiped."""
    world = world_of({"n0": [1, 1, 1], "n1": [1]}, {})
    world["n0"].crash()
    world.advance(30_000)
    assert world.leader is world["n1"]


def test_a_unanimous_provisional_election_works() -> None:
    """All are unsure, all are there: the furthest log wins, because nothing better has survived anywhere."""
    floors = {f"n{at}": UNKNOWN_FLOOR for at in range(3)}
    world = world_of({"n0": [1], "n1": [1, 1, 1], "n2": [1, 1]}, floors)
    world.advance(5000)
    assert world.leader is world["n1"]
    assert all(node.log == world["n1"].log for node in world.nodes.values())
    assert all(node.core.hard_state.vote_floor is None for node in world.nodes.values())


def test_an_unsure_majority_is_not_enough() -> None:
    """One of the three is missing, and it may be the one that has everything."""
    floors = {f"n{at}": UNKNOWN_FLOOR for at in range(3)}
    world = world_of({"n0": [1], "n1": [1, 1, 1], "n2": [1, 1]}, floors)
    world["n2"].crash()
    world.advance(30_000)
    assert world.leader is None


def test_a_sure_majority_needs_no_unsure_vote() -> None:
    """Two good logs of three: the wiped node waits and is filled."""
    world = world_of({"n0": [1, 1], "n1": [1, 1]}, {"n2": UNKNOWN_FLOOR})
    world.advance(3000)
    assert world.leader in {world["n0"], world["n1"]}
    assert world["n2"].log == world["n0"].log


def test_a_vote_forgotten_with_the_folder_does_not_make_two_leaders() -> None:
    """n2 voted for n0 in term 5, n0 leads it; n2 is wiped and asked by n1 in the same term."""
    states = {"n0": HardState(5, "n0"), "n1": HardState(4), "n2": WIPED}
    world = World(logs={"n0": [1, 5], "n1": [1]}, hard_states=states)
    candidate = make_candidate(world, "n1")
    assert candidate.core.term == 5
    for voter in ("n0", "n2"):
        for answer in world.step(voter, vote_request("n1", 5, (0, 1))):
            assert isinstance(answer, RequestVoteResponse)
            assert answer.granted is (voter == "n2")
            candidate.step(answer)
    assert not candidate.core.is_leader


def test_the_own_vote_is_provisional_too() -> None:
    """A node behind its own floor does not win with one more vote of three."""
    world = world_of({"n0": [1], "n1": [1], "n2": []}, {"n0": LogId(1, 7)})
    node = make_pre_candidate(world)
    for answer in world.step("n1", vote_request("n0", 2, (0, 1), pre_vote=True)):
        node.step(answer)
    assert node.core.term == 1  # the poll is not won
    for answer in world.step("n2", vote_request("n0", 2, (0, 1), pre_vote=True)):
        node.step(answer)
    assert node.core.term == 2  # all three agree


def test_the_own_vote_is_provisional_in_the_campaign_too() -> None:
    """Everybody granted the poll, one has fallen silent since: two of three, one of them unsure, elect nobody."""
    world = world_of({"n0": [1]}, {"n0": LogId(1, 7)})
    node = make_pre_candidate(world)
    for voter in ("n1", "n2"):
        node.step(vote(voter, 2, pre_vote=True))
    assert node.core.role is Role.CANDIDATE
    node.step(vote("n1", 2))
    assert not node.core.is_leader
    node.step(vote("n2", 2))
    assert node.core.is_leader


def test_a_node_behind_its_floor_is_no_transferee() -> None:
    """It does not campaign at a leader's word: the others' votes could not repair what it lost."""
    world = world_of({"n0": [1]}, {"n0": LogId(1, 7)})
    node = world["n0"]
    node.step(heartbeat("n1", 1))
    assert world.step("n0", TimeoutNow("n1", 1)) == []
    assert node.core.term == 1


# ---------------------------------------------------------------------- how the floor goes


def read_answer(node: Node, index: int) -> ReadIndexResponse:
    """What n1, leading term 3, answers to the node that asked what it must hold."""
    return ReadIndexResponse("n1", 3, node.core._recollection_id, index)


FLOORS = pytest.mark.parametrize("state", [WIPED, TORN], ids=["wiped", "torn"])


@FLOORS
def test_the_floor_goes_when_all_that_a_live_leader_calls_committed_is_here(state: HardState) -> None:
    """Not before: neither entries of older terms, nor entries of the leader's own term that are not the last, prove it."""
    world = World(hard_states={"n0": state})
    node = world["n0"]
    node.step(heartbeat("n1", 3, commit=9))
    node.step(read_answer(node, 9))
    node.step(append("n1", 3, (-1, -1), [1, 1, 2], commit=9))
    node.step(append("n1", 3, (2, 2), [3, 3], commit=9))
    assert node.core.commit_index == 4
    assert node.core.votes_provisionally  # it may have acknowledged 5 to 9 in this very term
    assert node.disk_hard_state.vote_floor == state.vote_floor
    node.step(append("n1", 3, (4, 3), [3] * 5, commit=9))
    assert not node.core.votes_provisionally
    assert node.disk_hard_state == HardState(3, "n1")
    assert "vote_floor_cleared" in world.transcript()


@FLOORS
def test_a_leaders_own_word_clears_no_floor(state: HardState) -> None:
    """It may be one whose time is over, or count on what this node has lost: only a confirmed read tells."""
    world = World(hard_states={"n0": state})
    node = world["n0"]
    node.step(append("n1", 3, (-1, -1), [1, 1, 2, 3], commit=1))
    node.step(heartbeat("n1", 3, commit=3))
    assert node.core.commit_index == 3
    assert node.core.votes_provisionally
    node.step(read_answer(node, 3))
    assert not node.core.votes_provisionally


def test_heartbeats_tell_the_whole_commit_index() -> None:
    """Also to a follower that is far behind: one capped to what it holds would make it think that it holds all."""
    world = World()
    leader = make_leader(world)
    leader.propose(8)
    leader.step(accepted("n1", 1, 8))
    leader.step(accepted("n2", 1, 2, 8))
    world.wire.clear()
    world.tick_at_deadline("n0")
    world.tick_at_deadline("n0")
    told = {envelope.peer: envelope.message for envelope in world.take(Heartbeat)}
    assert isinstance(told["n2"], Heartbeat)
    assert told["n2"].commit_index == 8


@FLOORS
def test_the_floor_goes_under_load(state: HardState) -> None:
    """The leader's commit index runs ahead of this node's disk all the time: to have caught up once is enough."""
    world = World(hard_states={"n0": state})
    node = world["n0"]
    node.step(heartbeat("n1", 3))
    node.step(read_answer(node, 1))
    node.auto_persist = False
    node.step(append("n1", 3, (-1, -1), [3, 3], commit=1))
    node.start_write()
    node.step(append("n1", 3, (1, 3), [3, 3], commit=3))
    node.finish_write()
    node.pump()
    assert node.core.stable_index == 1
    assert not node.core.votes_provisionally


def test_the_floor_goes_under_the_next_leader_too() -> None:
    """What one leader told is not taken for the next one's word, and does not stand in its way."""
    world = World(hard_states={"n0": TORN})
    node = world["n0"]
    node.step(heartbeat("n1", 3, commit=9))
    node.step(append("n1", 3, (-1, -1), [3, 3], commit=9))
    make_candidate(world)
    node.step(append("n2", 4, (1, 3), [4], commit=2))
    assert not node.core.votes_provisionally


@FLOORS
def test_the_floor_goes_only_once_the_entries_are_durable(state: HardState) -> None:
    """What a power failure could take again proves nothing."""
    world = World(hard_states={"n0": state})
    node = world["n0"]
    node.step(heartbeat("n1", 3))
    node.step(read_answer(node, 0))
    node.auto_persist = False
    node.step(append("n1", 3, (-1, -1), [3], commit=0))
    assert node.core.votes_provisionally
    node.settle()
    assert not node.core.votes_provisionally
    assert node.disk_hard_state.vote_floor == state.vote_floor
    node.settle()
    assert node.disk_hard_state.vote_floor is None


def test_a_wiped_node_half_filled_does_not_elect_a_lagging_one() -> None:
    """n0 leads term 1, n2 has all, n1 lags. n2 is wiped and half filled when n0 dies: nobody may lead until it is back."""
    world = World()
    leader = world.elect("n0")
    world.advance(10)
    world["n1"].auto_persist = False  # its disk hangs
    world.isolate("n1")
    leader.propose(40)
    world.deliver()
    assert leader.core.commit_index == 40
    world["n2"].crash()
    world["n2"].wipe()
    world["n2"].restart()
    # The first slices arrive, the rest does not.
    for state in (append("n0", 1, (-1, -1), [], commit=40), heartbeat("n0", 1, commit=40)):
        world["n2"].step(state)
    world.wire.clear()
    world["n2"].step(replace(append("n0", 1, (-1, -1), [1] * 5, commit=40), payload=tuple(leader.log[:5])))
    world.wire.clear()
    leader.crash()
    world.heal()
    world["n1"].auto_persist = True
    world["n1"].settle()
    world.advance(20_000)
    assert world.leader is None
    leader.restart()
    world.advance(5000)
    assert world.leader is leader
    assert [node.log[:41] for node in world.nodes.values()] == [leader.log[:41]] * 3


@FLOORS
def test_clearing_keeps_term_and_vote(state: HardState) -> None:
    """Three facts, one durable value."""
    world = World(hard_states={"n0": state})
    node = world["n0"]
    node.step(vote_request("n1", 3, (4, 2)))
    node.step(append("n1", 3, (-1, -1), [1, 1, 2, 2, 2, 3], commit=5))
    node.step(read_answer(node, 5))
    assert node.disk_hard_state == HardState(3, "n1")


@FLOORS
def test_acknowledgements_wait_for_the_cleared_floor_without_being_lost(state: HardState) -> None:
    """The floor is part of the hard state: answers leave after it is durable, none is forgotten."""
    world = World(hard_states={"n0": state})
    node = world["n0"]
    node.step(heartbeat("n1", 3))
    node.step(read_answer(node, 0))
    node.auto_persist = False
    node.step(append("n1", 3, (-1, -1), [3], commit=0))
    assert world.sent_by("n0", node.settle) == []
    sent = world.sent_by("n0", node.settle)
    assert AppendEntriesResponse("n0", 3, True, 0, 0) in sent
    assert isinstance(world.step("n0", heartbeat("n1", 3))[0], HeartbeatResponse)


def test_what_a_node_acknowledged_before_it_asked_does_not_count() -> None:
    """It asks what it must hold, and a late answer of its former self arrives: nothing may be committed by that.

    Else the index that it was told would be too low for what is committed with entries that it no longer has.
    """
    world = World(logs={f"n{at}": [1] for at in range(3)})
    leader = make_leader(world)
    term = leader.core.term
    leader.propose(5)
    index = leader.core.last_index
    leader.step(ReadIndexRequest("n1", term, 9, recollects=True))
    late = accepted("n1", term, index)
    leader.step(late)
    assert leader.core.commit_index < index
    leader.step(replace(late, epoch=leader.core.progress["n1"].epoch))
    assert leader.core.commit_index == index


def test_a_late_answer_does_not_count_after_the_loss_was_noticed() -> None:
    """Nor where the loss shows by a refusal, as of a follower whose tail went with the power."""
    world = World(logs={f"n{at}": [1] for at in range(3)})
    leader = make_leader(world)
    term = leader.core.term
    leader.propose(5)
    index = leader.core.last_index
    leader.step(accepted("n1", term, index - 2))
    leader.peer_unreachable("n1")
    leader.step(AppendEntriesResponse("n1", term, False, 0, 0, rejected_index=index - 2, conflict_index=1))
    assert leader.core.progress["n1"].match_index == 0
    leader.step(accepted("n1", term, index))
    assert (leader.core.progress["n1"].match_index, leader.core.commit_index) == (0, index - 2)


def test_a_leaders_floor_goes_with_its_first_entry() -> None:
    """A leader that all voted for has everything that survived."""
    world = World(hard_states={f"n{at}": WIPED for at in range(3)})
    leader = world.elect("n0")
    assert leader.disk_hard_state == HardState(1, "n0")
    assert leader.core.commit_index == 0


def test_a_known_floor_goes_by_itself_when_the_log_reaches_it() -> None:
    """A log that has come to the floor again votes in full, even before the floor is erased."""
    world = world_of({"n0": [1, 1, 1]}, {"n0": LogId(1, 4)})
    node = world["n0"]
    assert node.core.votes_provisionally
    node.step(append("n1", 2, (2, 1), [1, 1]))
    assert not node.core.votes_provisionally
    assert node.disk_hard_state.vote_floor == LogId(1, 4)


# ---------------------------------------------------------------------- a node that has forgotten its terms, too


def _old_leader_and_its_successor() -> World:
    """n0 leads term 1 and is cut off; n2 leads term 2 with n1 and commits there what n0 knows nothing of."""
    world = World()
    world.elect("n0")
    world.advance(10)
    world.isolate("n0")
    world["n0"].propose(7)
    world.deliver()
    for follower in ("n1", "n2"):
        world[follower].peer_unreachable("n0")  # so they need no election timeout, and the old leader still believes
    world.elect("n2")
    world["n2"].propose(7)
    world.deliver()
    assert world["n2"].core.commit_index == world["n1"].core.last_index > world["n0"].core.commit_index
    return world


def test_a_leader_whose_time_is_over_commits_nothing_with_a_node_that_forgot_the_next_one() -> None:
    """n1 is wiped and hears the old leader only: together they are a majority, and the new leader's entries are committed.

    (Simulator, seed 1314: the old leader committed other entries at the same indexes.)
    """
    world = _old_leader_and_its_successor()
    committed = world["n2"].log[: world["n2"].core.commit_index + 1]
    world["n1"].crash()
    world["n1"].wipe()
    world["n1"].restart()
    world.heal()
    world.isolate("n2")
    before = world["n0"].core.commit_index
    world["n0"].read(77)
    world.advance(400)  # less than the election timeout, in which the old leader may still believe in itself
    assert world["n1"].log == world["n0"].log  # it follows the old leader, and holds all of its entries
    assert world["n0"].core.commit_index == before
    assert world["n1"].disk_hard_state.vote_floor == UNKNOWN_FLOOR
    assert 77 not in world["n0"].reads
    world.heal()
    world.advance(5000)
    assert world.leader is not None
    assert [node.log[: len(committed)] for node in world.nodes.values()] == [committed] * 3
    assert world["n1"].disk_hard_state.vote_floor is None


def test_a_node_that_forgot_asks_its_leader_what_a_majority_stands_for() -> None:
    """And is itself again once it holds that much, durably; nothing that the leader says by itself is enough."""
    world = World(hard_states={"n0": WIPED})
    node = world["n0"]
    (request,) = pick(world.step("n0", heartbeat("n1", 3, commit=3)), ReadIndexRequest)
    node.step(append("n1", 3, (-1, -1), [1, 2, 3, 3], commit=3))
    node.step(ReadIndexResponse("n1", 3, request.request_id, -2))  # refused
    node.step(ReadIndexResponse("n1", 3, request.request_id + 1, 3))  # somebody else's
    assert node.disk_hard_state.vote_floor == UNKNOWN_FLOOR
    node.step(ReadIndexResponse("n1", 3, request.request_id, 5))
    assert node.disk_hard_state.vote_floor == UNKNOWN_FLOOR
    sent = world.sent_by("n0", lambda: node.step(append("n1", 3, (3, 3), [3, 3], commit=3)))
    assert node.disk_hard_state == HardState(3, "n1")  # in a term that it may have voted in before: no second vote
    assert AppendEntriesResponse("n0", 3, True, 5, 5) in sent


def test_a_node_that_forgot_asks_again_when_no_answer_comes_and_in_each_term() -> None:
    """Requests and answers may be lost; what the leader of another term was asked is nothing to the next."""
    world = World(hard_states={"n0": WIPED})

    def asked(term: int) -> list[int]:
        sent = world.step("n0", heartbeat("n1", term))
        return [message.request_id for message in pick(sent, ReadIndexRequest)]

    first = asked(3)
    assert len(first) == 1
    assert asked(3) == []
    world.now += OPTIONS.election_timeout_ms
    assert asked(3) == first
    assert len(asked(4)) == 1
    world["n0"].step(ReadIndexResponse("n1", 3, first[0], -1))
    assert world["n0"].disk_hard_state.vote_floor == UNKNOWN_FLOOR


@pytest.mark.parametrize("forgetful", [False, True])
def test_what_forgetful_nodes_acknowledge_counts_where_all_do(forgetful: bool) -> None:
    """Three nodes, a log that began before this leader: one that forgot is no majority, all of them are."""
    world = World(logs={f"n{at}": [1] for at in range(3)})
    leader = make_leader(world)
    (index,) = (leader.core.last_index,)
    leader.step(replace(accepted("n1", leader.core.term, index), forgetful=forgetful))
    assert (leader.core.commit_index == index) is not forgetful
    assert leader.core.forgetful_peers == ["n1"] * forgetful
    leader.step(replace(accepted("n2", leader.core.term, index), forgetful=forgetful))
    assert leader.core.commit_index == index


def test_a_late_answer_of_a_node_that_remembered_vouches_for_no_more_than_it_says() -> None:
    """Sent before its folder was emptied: what it acknowledged since without memory is not sworn to by that."""
    world = World(logs={f"n{at}": [1] for at in range(3)})
    leader = make_leader(world)
    term, index = leader.core.term, leader.core.last_index
    leader.propose(5)
    leader.step(replace(accepted("n1", term, index + 5), forgetful=True))
    leader.step(accepted("n1", term, index))
    assert leader.core.commit_index == index


@pytest.mark.parametrize("forgetful", [False, True])
def test_a_read_is_confirmed_by_those_that_remember(forgetful: bool) -> None:
    """A leader whose time is over must not learn from a node that forgot its successor that it still leads."""
    world = World(logs={f"n{at}": [1] for at in range(3)})
    leader = make_leader(world)
    term, index = leader.core.term, leader.core.last_index
    leader.step(accepted("n1", term, index))
    leader.step(accepted("n2", term, index))
    leader.read(77)
    beats = [envelope.message for envelope in world.take(Heartbeat)]
    number = max(beat.round for beat in beats if isinstance(beat, Heartbeat))
    leader.step(replace(beat_answer("n1", term, round_=number, match=index), forgetful=forgetful))
    assert (77 in leader.reads) is not forgetful
    leader.step(replace(beat_answer("n2", term, round_=number, match=index), forgetful=forgetful))
    assert 77 in leader.reads


def test_wiped_and_restarted_under_load() -> None:
    """The whole story: a folder is deleted, the node comes back, is filled, and its vote counts in full again."""
    world = World()
    leader = world.elect("n0")
    leader.propose(50)
    world.deliver()
    world["n2"].crash()
    world["n2"].wipe()
    leader.propose(50)
    world.deliver()
    world["n2"].restart()
    world.advance(500)
    assert world["n2"].log == leader.log
    world["n0"].crash()
    world.advance(3 * OPTIONS.election_timeout_ms)
    assert world.leader in {world["n1"], world["n2"]}
    assert world.leader.core.commit_index == 101
