"""Golden transcripts: whole conversations of three cores, word for word.

Each file in ``transcripts/`` is the protocol as a reader of the paper can follow it: time in milliseconds, who says what
to whom, and what changed (``*``). ``UPDATE_TRANSCRIPTS=1`` rewrites them; a difference is a change of the protocol and is
read as one.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dledger.raft.messages import HardState, Heartbeat, ReadIndexRequest, RequestVote, RequestVoteResponse
from tests.raft.harness import OPTIONS, World

FOLDER = Path(__file__).parent / "transcripts"


def first_election_and_first_entry() -> World:
    world = World()
    world.note("n0's timer fires first: it polls, campaigns, leads, and appends the empty entry of its term")
    world.elect("n0")
    world.note("one append; idle links learn of the commit 20 ms later")
    world.advance(25)
    world.wire.clear()
    world["n0"].propose()
    world.deliver()
    world.advance(20)
    world.note("heartbeats")
    world.advance(100)
    return world


def kill_9_of_the_leader() -> World:
    world = World()
    world.elect("n0")
    world["n0"].propose(2)
    world.deliver()
    world.advance(50)
    world.lines.clear()
    world.note("n0 dies; the others see their connections to it close")
    world["n0"].crash()
    world["n1"].peer_unreachable("n0")
    world["n2"].peer_unreachable("n0")
    world.advance(60)
    world.note("n0 comes back with an old log, and is filled")
    leader = world.leader
    assert leader is not None
    leader.propose(3)
    world.deliver()
    world["n0"].restart()
    for node in ("n1", "n2"):
        world[node].peer_connected("n0")
    world.deliver()
    world.advance(25)
    return world


def repair_with_fast_back_up() -> World:
    terms = {
        "n0": [1, 1, 1, 4, 4, 5, 5, 6, 6, 6],
        "n1": [1, 1, 1, 1],  # (b): behind
        "n2": [1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3],  # (f): two terms that nobody else has
    }
    world = World(logs=terms, hard_states={name: HardState(6 if name == "n0" else 5) for name in terms})
    world.note("figure 7: n0 leads; n1 is behind, n2 has entries of terms 2 and 3 that were never committed")
    world.elect("n0")
    world.advance(110)
    return world


def transfer_of_leadership() -> World:
    world = World()
    world.elect("n0")
    world.advance(25)
    world.lines.clear()
    world.note("an append is on its way when n0 is asked to hand over to n2")
    world["n0"].propose(2)
    world["n0"].transfer("n2")
    world.deliver()
    world.advance(25)
    return world


def partitioned_leader_rejoins() -> World:
    world = World()
    world.elect("n0")
    world["n0"].propose()
    world.deliver()
    world.advance(25)
    world.lines.clear()
    world.note("n0 is cut off, and goes on taking appends that it cannot commit")
    world.isolate("n0")
    world["n0"].propose(3)
    world.deliver()
    world.note("time passes: the others elect n1; n0 steps down for want of a quorum")
    quiet = list(world.lines)
    world.advance(1000)
    world.lines = quiet + [
        line for line in world.lines[len(quiet) :] if "(lost)" not in line and "Heartbeat" not in line
    ]
    leader = world.leader
    assert leader is not None
    leader.propose()
    world.deliver()
    world.note("the cut heals: n0 learns of the new term and drops what was never committed")
    world.heal()
    world.advance(200)
    return world


def read_index_at_a_follower() -> World:
    world = World()
    world.elect("n0")
    world["n0"].propose()
    world.deliver()
    world.advance(25)
    world.lines.clear()
    world.note("n2 is asked for a linearizable read; the leader confirms itself with one round of heartbeats")
    world["n2"].read(7)
    world.deliver()
    assert world["n2"].reads == {7: 1}
    world.say("n2 * may read at 1")
    world.note("two reads while a round is open share the next round")
    world["n0"].read(8)
    world["n0"].read(9)
    world["n2"].read(10)
    world.deliver()
    assert world["n0"].reads == {8: 1, 9: 1}
    assert world["n2"].reads == {7: 1, 10: 1}
    world.note("a leader that is cut off answers nothing, and fails the read when it steps down")
    world.isolate("n0")
    world["n0"].read(11)
    for request in (Heartbeat, ReadIndexRequest):
        world.take(request)
    assert 11 not in world["n0"].reads
    world.now = world["n0"].core.deadline_ms + OPTIONS.election_timeout_ms
    world["n0"].tick()
    assert world["n0"].reads[11] is None
    world.say("n0 * read #11 failed")
    return world


def two_polls_one_yields() -> World:
    world = World()
    world.elect("n0")
    world.advance(25)
    world.lines.clear()
    world.note(
        "n0 dies; both others start at the same moment. Of two equal logs the higher name goes on: no split vote"
    )
    world["n0"].crash()
    for node in ("n1", "n2"):
        world[node].peer_unreachable("n0")
    world.now += 60
    world["n1"].tick()
    world["n2"].tick()
    world.deliver()
    return world


def split_vote() -> World:
    world = World(5)
    world.elect("n0")
    world.advance(25)
    world.lines.clear()
    world.note("n0 dies; n1 and n2 start at the same moment, and their polls reach n3 and n4 before each other")
    world["n0"].crash()
    for node in ("n1", "n2", "n3", "n4"):
        world[node].peer_unreachable("n0")
    world.now += 60
    world["n1"].tick()
    world["n2"].tick()
    crossing = [*world.take(sender="n1", peer="n2"), *world.take(sender="n2", peer="n1")]
    for envelope in world.take(RequestVote):
        world.deliver_one(envelope)
    for envelope in [*world.take(RequestVoteResponse, peer="n1"), *world.take(RequestVoteResponse, peer="n2")]:
        world.deliver_one(envelope)
    for envelope in crossing:
        world.deliver_one(envelope)
    world.note("n3 votes for n1, n4 for n2: two votes each of five")
    for envelope in [*world.take(sender="n1", peer="n3"), *world.take(sender="n2", peer="n4")]:
        world.deliver_one(envelope)
    world.deliver()
    world.note("all who live have answered: no waiting for the dead one. The delays before the next try differ")
    world.advance(150)
    return world


CONVERSATIONS: list[Callable[[], World]] = [
    first_election_and_first_entry,
    kill_9_of_the_leader,
    repair_with_fast_back_up,
    transfer_of_leadership,
    partitioned_leader_rejoins,
    read_index_at_a_follower,
    two_polls_one_yields,
    split_vote,
]


@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=lambda conversation: conversation.__name__)
def test_transcript(conversation: Callable[[], World]) -> None:
    """The cores say exactly what they said when the transcript was last read and approved."""
    path = FOLDER / f"{conversation.__name__}.txt"
    said = conversation().transcript()
    if os.environ.get("UPDATE_TRANSCRIPTS") == "1":
        path.write_text(said, encoding="utf-8")
    written = path.read_text(encoding="utf-8")
    diff = difflib.unified_diff(
        written.splitlines(), said.splitlines(), str(path.name), "what the cores say now", lineterm=""
    )
    assert said == written, "\n".join(diff)


def test_every_transcript_has_its_conversation() -> None:
    """No dead files."""
    assert {path.stem for path in FOLDER.glob("*")} == {conversation.__name__ for conversation in CONVERSATIONS}


def test_a_difference_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The test of the test: one changed word fails it, with a diff that shows the word."""
    monkeypatch.delenv("UPDATE_TRANSCRIPTS", raising=False)
    name = "first_election_and_first_entry"
    text = (FOLDER / f"{name}.txt").read_text(encoding="utf-8")
    (tmp_path / f"{name}.txt").write_text(text.replace("elected term=1", "elected term=2"), encoding="utf-8")
    monkeypatch.setattr("tests.raft.test_transcripts.FOLDER", tmp_path)
    with pytest.raises(AssertionError, match="elected term=2"):
        test_transcript(first_election_and_first_entry)
