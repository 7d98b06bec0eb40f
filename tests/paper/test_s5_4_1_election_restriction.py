"""§5.4.1, election restriction: a vote goes only to a candidate whose log is at least as up-to-date as the voter's."""

from __future__ import annotations

import pytest

from dledger.raft.messages import HardState, RequestVoteResponse, VoteResult
from tests.raft.harness import World, append, vote_request

ACCEPT = VoteResult.ACCEPT
OLD_TERM = VoteResult.REJECT_EXPIRED_LEDGER_TERM
SHORT = VoteResult.REJECT_SMALL_LEDGER_END_INDEX


@pytest.mark.parametrize("pre_vote", [False, True], ids=["vote", "poll"])
@pytest.mark.parametrize(
    ("log", "last", "result"),
    [
        # The same last term: the longer log is more up-to-date.
        ([1], (0, 1), ACCEPT),
        ([1], (1, 1), ACCEPT),
        ([1, 1], (0, 1), SHORT),
        ([1, 1, 1], (1, 1), SHORT),
        # The candidate's last term is higher: whatever the lengths.
        ([1], (0, 2), ACCEPT),
        ([1], (1, 2), ACCEPT),
        ([1, 1, 1, 1], (0, 2), ACCEPT),
        # The voter's is higher: whatever the lengths.
        ([2], (0, 1), OLD_TERM),
        ([2], (1, 1), OLD_TERM),
        ([1, 2], (9, 1), OLD_TERM),
        # Nothing in one of the logs, or in both.
        ([], (-1, -1), ACCEPT),
        ([], (0, 1), ACCEPT),
        ([1], (-1, -1), OLD_TERM),
    ],
)
def test_vote_by_last_term_and_index(log: list[int], last: tuple[int, int], result: VoteResult, pre_vote: bool) -> None:
    """§5.4.1: compare the last entries' terms first, then the lengths; polls obey the same rule."""
    world = World(logs={"n0": log}, hard_states={"n0": HardState(2)})
    (answer,) = world.step("n0", vote_request("n1", 3, last, pre_vote=pre_vote))
    assert isinstance(answer, RequestVoteResponse)
    assert (answer.granted, answer.result) == (result is ACCEPT, result)
    assert answer.pre_vote is pre_vote
    voted = "n1" if result is ACCEPT and not pre_vote else None
    assert world["n0"].disk_hard_state == HardState(2 if pre_vote else 3, voted)


def test_a_refused_vote_still_raises_the_term() -> None:
    """§5.1 with §5.4.1: the term is followed, the vote stays free for a better candidate of the same term."""
    world = World(logs={"n0": [1, 1]})
    world.step("n0", vote_request("n1", 5, (0, 1)))
    assert world["n0"].disk_hard_state == HardState(5)
    (answer,) = world.step("n0", vote_request("n2", 5, (1, 1)))
    assert isinstance(answer, RequestVoteResponse)
    assert answer.granted


def test_what_is_not_durable_yet_counts_in_the_comparison() -> None:
    """The voter compares the log that it has, written or not: it must not help a candidate that lacks what it may ack."""
    world = World()
    node = world["n0"]
    node.step(vote_request("n1", 1))
    node.auto_persist = False
    node.step(append("n1", 1, (-1, -1), [1, 1]))
    assert node.core.stable_index == -1
    node.core.peer_unreachable("n1", world.now)
    (answer,) = world.step("n0", vote_request("n2", 2, (0, 1), pre_vote=True))
    assert isinstance(answer, RequestVoteResponse)
    assert answer.result is SHORT


def test_only_a_complete_log_can_win() -> None:
    """§5.4.1: of three, one has all that is committed; with it and one other alive, only it can lead."""
    world = World(logs={"n0": [1, 1], "n1": [1, 1, 1], "n2": [1, 1, 1]})
    world["n2"].crash()
    world.advance(5000)
    assert world.leader is world["n1"]
    assert world["n0"].log == world["n1"].log
