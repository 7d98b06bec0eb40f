"""T§10.2.1 and figure 2 ("updated on stable storage before responding"): what may leave before what is on the disk."""

from __future__ import annotations

import pytest

from dledger.raft.messages import (
    AppendEntries,
    AppendEntriesResponse,
    HardState,
    HeartbeatResponse,
    Message,
    RequestVote,
    RequestVoteResponse,
    Role,
)
from tests.raft.harness import (
    World,
    accepted,
    append,
    heartbeat,
    make_leader,
    make_pre_candidate,
    pick,
    role_of,
    vote,
    vote_request,
)


def held(world: World, node_id: str = "n0") -> None:
    """From here on the test says when this node's disk is done."""
    world[node_id].auto_persist = False


# ---------------------------------------------------------------------- the leader


def test_the_leader_sends_before_its_own_write_is_durable() -> None:
    """T§10.2.1: the leader replicates in parallel with its own disk write."""
    world = World()
    node = make_leader(world)
    node.step(accepted("n1", 1, 0))
    held(world)
    sent = pick(world.sent_by("n0", node.propose), AppendEntries)
    assert [message.last_index for message in sent] == [1]
    assert node.core.stable_index == 0


def test_the_leader_counts_itself_only_once_it_is_durable() -> None:
    """T§10.2.1: its own copy counts after the write; the others' may commit without it."""
    world = World()
    node = make_leader(world)
    node.step(accepted("n1", 1, 0))
    held(world)
    node.propose()
    node.step(accepted("n1", 1, 1))
    assert node.core.commit_index == 0  # one of three: its own copy is not on the disk
    node.step(accepted("n2", 1, 1))
    assert node.core.commit_index == 1  # a majority without the leader
    node.propose()
    node.step(accepted("n1", 1, 2))
    assert node.core.commit_index == 1
    node.settle()
    assert node.core.commit_index == 2


def test_a_leader_alone_in_its_disk_does_not_commit_its_first_entry() -> None:
    """The same for the empty entry of the term."""
    world = World(2)
    held(world)
    node = make_pre_candidate(world)
    node.step(vote("n1", 1, pre_vote=True))
    node.settle()
    node.step(vote("n1", 1))
    assert role_of(node) is Role.LEADER
    node.step(accepted("n1", 1, 0))
    assert node.core.commit_index == -1
    node.settle()
    assert node.core.commit_index == 0


# ---------------------------------------------------------------------- the follower


def test_a_follower_acknowledges_after_the_write() -> None:
    """Figure 2: the answer leaves when the entries are durable, not when they are taken."""
    world = World()
    node = world["n0"]
    node.step(heartbeat("n1", 1))
    held(world)
    assert pick(world.step("n0", append("n1", 1, (-1, -1), [1, 1])), AppendEntriesResponse) == []
    assert node.core.last_index == 1
    sent = world.sent_by("n0", node.settle)
    assert sent == [accepted("n0", 1, 1)]


def test_one_answer_for_a_group_of_writes() -> None:
    """Group commit: several slices, one flush, one acknowledgement of the last."""
    world = World()
    node = world["n0"]
    node.step(heartbeat("n1", 1))
    held(world)
    for index in range(5):
        world.step("n0", append("n1", 1, (index - 1, 1 if index else -1), [1]))
    assert world.sent_by("n0", node.settle) == [accepted("n0", 1, 4)]


def test_a_partly_durable_log_is_acknowledged_so_far() -> None:
    """The write that was under way ends: what it covered counts, what came meanwhile does not."""
    world = World()
    node = world["n0"]
    node.step(heartbeat("n1", 1))
    held(world)
    world.step("n0", append("n1", 1, (-1, -1), [1]))
    node.start_write()
    world.step("n0", append("n1", 1, (0, 1), [1]))

    def finish() -> None:
        node.finish_write()
        node.pump()

    assert world.sent_by("n0", finish) == [accepted("n0", 1, 0, 1)]
    assert world.sent_by("n0", node.settle) == [accepted("n0", 1, 1)]


def test_heartbeats_say_only_what_is_durable() -> None:
    """The match index in a heartbeat's answer is a promise like any other."""
    world = World()
    node = world["n0"]
    node.step(heartbeat("n1", 1))
    held(world)
    world.step("n0", append("n1", 1, (-1, -1), [1, 1]))
    (answer,) = world.step("n0", heartbeat("n1", 1))
    assert isinstance(answer, HeartbeatResponse)
    assert (answer.match_index, answer.last_index) == (-1, 1)


def test_a_late_completion_does_not_vouch_for_what_replaced_it() -> None:
    """A write of entries that were truncated meanwhile ends: index and term no longer name what was written."""
    world = World()
    node = world["n0"]
    node.step(heartbeat("n1", 1))
    held(world)
    world.step("n0", append("n1", 1, (-1, -1), [1, 1, 1]))
    node.start_write()
    world.step("n0", append("n2", 2, (0, 1), [2, 2]))
    assert node.terms == [1, 2, 2]

    def finish() -> None:
        node.finish_write()
        node.pump()

    assert world.sent_by("n0", finish) == []
    assert node.terms_on_disk == [1, 1, 1]
    assert node.core.stable_index == -1
    assert world.sent_by("n0", node.settle) == [accepted("n0", 2, 2)]
    assert node.terms_on_disk == [1, 2, 2]


@pytest.mark.parametrize(("index", "term"), [(1, 1), (2, 1), (3, 2), (9, 2), (0, 1), (-1, -1)])
def test_completions_that_name_nothing_new_are_ignored(index: int, term: int) -> None:
    """Another term at that index, an index beyond the log, or what is known already."""
    world = World(logs={"n0": [1]})
    node = world["n0"]
    held(world)
    world.step("n0", append("n1", 2, (0, 1), [2, 2]))
    node.core.persisted(index, term, world.now)
    assert node.core.stable_index == 0


def test_a_truncation_takes_the_durable_mark_with_it() -> None:
    """What stands at a truncated index is not durable until it is written again."""
    world = World(logs={"n0": [1, 1, 1]})
    node = world["n0"]
    held(world)
    world.step("n0", append("n1", 2, (0, 1), [2]))
    assert node.core.stable_index == 0
    node.settle()
    assert node.core.stable_index == 1


# ---------------------------------------------------------------------- term and vote

RESTS_ON_THE_TERM: list[tuple[str, Message, type[Message]]] = [
    ("vote", vote_request("n1", 5), RequestVoteResponse),
    ("append", append("n1", 5, (-1, -1)), AppendEntriesResponse),
    ("append refused", append("n1", 5, (7, 5)), AppendEntriesResponse),
    ("heartbeat", heartbeat("n1", 5), HeartbeatResponse),
]


@pytest.mark.parametrize(("name", "message", "answer"), RESTS_ON_THE_TERM, ids=[row[0] for row in RESTS_ON_THE_TERM])
def test_nothing_that_rests_on_a_term_leaves_before_it_is_durable(
    name: str, message: Message, answer: type[Message]
) -> None:
    """Figure 2: currentTerm and votedFor are on stable storage before the server responds."""
    world = World()
    held(world)
    node = world["n0"]
    assert world.step("n0", message) == []
    assert node.core.term == 5
    assert node.disk_hard_state == HardState()
    sent = world.sent_by("n0", node.settle)
    assert [type(message) for message in sent] == [answer]
    assert node.disk_hard_state.term == 5


def test_a_stale_answer_waits_for_the_term_too() -> None:
    """Even a refusal tells the new term: it must not be forgotten after it was told."""
    world = World()
    held(world)
    world.step("n0", heartbeat("n1", 5))
    assert world.step("n0", heartbeat("n2", 3)) == []
    sent = world.sent_by("n0", world["n0"].settle)
    assert AppendEntriesResponse("n0", 5, False, -1, -1) in sent


def test_a_candidate_asks_only_once_its_own_vote_is_durable() -> None:
    """Else a restart could vote for another in the same term."""
    world = World()
    held(world)
    node = make_pre_candidate(world)
    node.step(vote("n1", 1, pre_vote=True))
    assert (node.core.role, node.core.term) == (Role.CANDIDATE, 1)
    assert pick([envelope.message for envelope in world.wire], RequestVote) == []
    sent = world.sent_by("n0", node.settle)
    assert [type(message) for message in sent] == [RequestVote, RequestVote]
    assert node.disk_hard_state == HardState(1, "n0")


def test_a_candidate_counts_itself_only_once_its_vote_is_durable() -> None:
    """Votes of all others do not make a leader whose own disk knows nothing of it."""
    world = World()
    held(world)
    node = make_pre_candidate(world)
    node.step(vote("n1", 1, pre_vote=True))
    node.step(vote("n1", 1))
    assert role_of(node) is Role.CANDIDATE
    node.settle()
    assert role_of(node) is Role.LEADER


def test_an_older_state_that_becomes_durable_releases_nothing() -> None:
    """Two changes in a row: the first write's end is not the second's."""
    world = World()
    held(world)
    node = world["n0"]
    world.step("n0", vote_request("n1", 5))
    node.start_write()
    world.step("n0", vote_request("n2", 6))

    def finish() -> None:
        node.finish_write()
        node.pump()

    first = world.sent_by("n0", finish)
    assert [message.term for message in first] == [5]  # true, and durable, when it was given
    assert world.step("n0", heartbeat("n2", 6)) == []
    second = world.sent_by("n0", node.settle)
    assert {message.term for message in second} == {6}


def test_messages_that_rest_on_nothing_new_do_not_wait() -> None:
    """Once the term is durable, answers leave at once; the log's writes hold nothing else back."""
    world = World()
    node = world["n0"]
    node.step(heartbeat("n1", 1))
    held(world)
    world.step("n0", append("n1", 1, (-1, -1), [1]))
    assert len(world.step("n0", heartbeat("n1", 1))) == 1


@pytest.mark.parametrize("when", ["before the write", "after the write"])
def test_a_restart_keeps_term_and_vote(when: str) -> None:
    """§5.1, §5.2: what was told is remembered; what was not told may be forgotten. Never two votes in a term."""
    world = World()
    held(world)
    node = world["n0"]
    told = world.step("n0", vote_request("n1", 5))
    if when == "after the write":
        told += world.sent_by("n0", node.settle)
    node.crash()
    node.restart()
    node.auto_persist = True
    (answer,) = world.step("n0", vote_request("n2", 5))
    assert isinstance(answer, RequestVoteResponse)
    assert answer.granted is (told == [])


def test_a_restarted_follower_keeps_what_it_acknowledged() -> None:
    """Figure 2: the log is persistent state."""
    world = World()
    world.elect("n0")
    world["n0"].propose(3)
    world.deliver()
    world["n1"].crash()
    world["n1"].restart()
    assert world["n1"].log == world["n0"].log
    assert world["n1"].core.commit_index == -1  # volatile: learned again from the leader
    world.advance(200)
    assert world["n1"].core.commit_index == 3


def test_a_crash_in_the_middle_of_a_write_loses_only_what_nobody_was_told() -> None:
    """Any prefix of what was under way may be on the disk; the node works on with each."""
    for keep in range(4):
        world = World()
        world.elect("n0")
        world.advance(10)
        world["n1"].auto_persist = False
        for _ in range(3):
            world["n0"].propose()
            world.deliver()
        assert world["n0"].core.progress["n1"].match_index == 0
        world["n1"].crash(keep)
        assert len(world["n1"].disk_log) == 1 + keep
        world["n1"].restart()
        world["n1"].auto_persist = True
        world.advance(300)
        assert world["n1"].log == world["n0"].log
