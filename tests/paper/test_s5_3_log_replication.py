"""§5.3, log replication: the consistency check, conflicts, fast back-up, commit by majority."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dledger.raft.messages import (
    NO_TERM,
    AppendEntries,
    AppendEntriesResponse,
    HardState,
    Heartbeat,
    HeartbeatResponse,
    InvariantError,
    TermRun,
)
from tests.raft.harness import (
    OPTIONS,
    Node,
    World,
    accepted,
    append,
    beat_answer,
    heartbeat,
    make_leader,
    pick,
    records_of,
    vote,
)

# ---------------------------------------------------------------------- the follower


@pytest.mark.parametrize(
    ("prev", "ok", "conflict"),
    [
        ((-1, -1), True, None),
        ((0, 1), True, None),
        ((2, 2), True, None),
        ((4, 3), True, None),
        # The log ends before: go on just after its end.
        ((5, 3), False, (NO_TERM, 5)),
        ((9, 4), False, (NO_TERM, 5)),
        # Another term stands there: that term, and where it begins.
        ((4, 4), False, (3, 4)),
        ((3, 4), False, (2, 2)),
        ((2, 1), False, (2, 2)),
        ((1, 2), False, (1, 0)),
    ],
)
def test_consistency_check(prev: tuple[int, int], ok: bool, conflict: tuple[int, int] | None) -> None:
    """§5.3: a follower without the entry before the new ones refuses them, and says where its log may agree."""
    log = [1, 1, 2, 2, 3]
    world = World(logs={"n0": log}, hard_states={"n0": HardState(4)})
    (answer,) = world.step("n0", append("n1", 4, prev))
    assert isinstance(answer, AppendEntriesResponse)
    assert answer.success is ok
    assert answer.last_index == 4
    if ok:
        assert answer.match_index == prev[0]  # only what was compared
    else:
        assert answer.rejected_index == prev[0]
        assert (answer.conflict_term, answer.conflict_index) == conflict
        assert answer.match_index == -1
    assert world["n0"].terms == log


@pytest.mark.parametrize(
    ("prev", "new", "expected"),
    [
        ((4, 3), [4], [1, 1, 2, 2, 3, 4]),  # at the end
        ((4, 3), [4, 4, 4], [1, 1, 2, 2, 3, 4, 4, 4]),
        ((3, 2), [4], [1, 1, 2, 2, 4]),  # replaces one
        ((1, 1), [4], [1, 1, 4]),  # replaces all that follows
        ((1, 1), [2, 4], [1, 1, 2, 4]),  # keeps what agrees
        ((-1, -1), [4, 4], [4, 4]),
        ((-1, -1), [1, 1, 2, 2, 3], [1, 1, 2, 2, 3]),  # a duplicate
        ((-1, -1), [1, 1], [1, 1, 2, 2, 3]),  # an old, shorter message truncates nothing
        ((0, 1), [1, 2], [1, 1, 2, 2, 3]),
        ((2, 2), [2, 3, 4], [1, 1, 2, 2, 3, 4]),  # overlaps and goes on
        ((2, 2), [], [1, 1, 2, 2, 3]),  # a probe
    ],
)
def test_follower_appends(prev: tuple[int, int], new: list[int], expected: list[int]) -> None:
    """§5.3: delete from the first entry that conflicts, never more; append what is new."""
    world = World(logs={"n0": [1, 1, 2, 2, 3]}, hard_states={"n0": HardState(4)})
    node = world["n0"]
    message = append("n1", 4, prev, new)
    (answer,) = world.step("n0", message)
    assert answer == accepted("n0", 4, prev[0] + len(new), len(expected) - 1)
    assert node.terms == node.terms_on_disk == expected
    assert node.disk_log == records_of(expected)
    assert world.step("n0", message) == [answer]  # idempotent
    assert node.terms == expected


def test_an_empty_follower_takes_everything() -> None:
    """§5.3: from the very first entry, terms of many leaders in one message."""
    world = World()
    terms = [1, 1, 4, 4, 5, 5, 6, 6, 6]
    (answer,) = world.step("n0", append("n1", 6, (-1, -1), terms))
    assert answer == accepted("n0", 6, 8)
    assert world["n0"].terms == terms


@pytest.mark.parametrize(
    ("prev", "new", "commit", "expected"),
    [
        ((2, 1), [1], 0, 0),
        ((2, 1), [1], 3, 3),
        ((2, 1), [1], 9, 3),  # no further than what this message verified
        ((1, 1), [], 9, 1),
        ((-1, -1), [1], 9, 0),  # the log goes on to 2, but that may differ from the leader's
        ((2, 1), [2, 2], 4, 4),
    ],
)
def test_follower_learns_of_the_commit(prev: tuple[int, int], new: list[int], commit: int, expected: int) -> None:
    """§5.3 and figure 2: commit index = min(leader's, index of the last new entry)."""
    world = World(logs={"n0": [1, 1, 1]}, hard_states={"n0": HardState(2)})
    world.step("n0", append("n1", 2, prev, new, commit=commit))
    assert world["n0"].core.commit_index == expected


@pytest.mark.parametrize(("told", "expected"), [(-1, 1), (0, 1), (1, 1), (3, 3), (9, 3)])
def test_heartbeats_carry_the_commit(told: int, expected: int) -> None:
    """A heartbeat raises the commit index, at most to what this leader's entries have verified, and never lowers it."""
    world = World(logs={"n0": [1, 1, 1, 1, 1, 1]}, hard_states={"n0": HardState(2)})
    node = world["n0"]
    world.step("n0", append("n1", 2, (1, 1), [1, 1], commit=1))
    assert node.core.commit_index == 1
    (answer,) = world.step("n0", heartbeat("n1", 2, commit=told))
    assert node.core.commit_index == expected
    assert isinstance(answer, HeartbeatResponse)
    assert (answer.match_index, answer.last_index) == (3, 3)  # what stands at 4 and 5 is not this leader's


def test_heartbeats_before_any_entry_commit_nothing() -> None:
    """A follower that has compared nothing with this leader commits nothing, whatever it hears."""
    world = World(logs={"n0": [1, 1, 1]}, hard_states={"n0": HardState(2)})
    world.step("n0", heartbeat("n1", 2, commit=2))
    assert world["n0"].core.commit_index == -1


@pytest.mark.parametrize(
    "message",
    [
        append("n1", 2, (0, 1), [2, 2], commit=1),  # another entry at 1
        append("n1", 2, (1, 2), [2], commit=1),  # another entry before the new ones, at the commit index: refused
        append("n1", 2, (0, 2), [1, 1, 2], commit=1),  # and below it
    ],
)
def test_what_is_committed_is_never_truncated(message: AppendEntries) -> None:
    """State machine safety: a leader that contradicts a committed entry stops the node; nothing is changed."""
    world = World(logs={"n0": [1, 1]}, hard_states={"n0": HardState(2)})
    node = world["n0"]
    world.step("n0", append("n1", 2, (1, 1), [1], commit=1))
    try:
        sent = world.step("n0", message)
    except InvariantError:
        pass
    else:
        assert not pick(sent, AppendEntriesResponse)[0].success
    assert node.terms[:2] == [1, 1]
    assert node.core.commit_index == 1


def test_truncating_a_committed_entry_raises() -> None:
    """The same, for the plain case: the invariant is an error of its own kind."""
    world = World(logs={"n0": [1, 1]}, hard_states={"n0": HardState(2)})
    world.step("n0", append("n1", 2, (1, 1), [], commit=1))
    with pytest.raises(InvariantError, match="committed entry is never truncated"):
        world["n0"].step(append("n1", 2, (0, 1), [2, 2], commit=1))


# ---------------------------------------------------------------------- the leader


def test_leader_appends_and_sends_in_parallel() -> None:
    """§5.3: the leader appends the entry to its log, then sends it to all others, with the place before it."""
    world = World()
    node = make_leader(world)
    for peer in ("n1", "n2"):
        node.step(accepted(peer, 1, 0))
    sent = pick(world.sent_by("n0", lambda: node.propose(2)), AppendEntries)
    assert node.terms == [1, 1, 1]
    expected = AppendEntries("n0", 1, 0, 1, 2, (TermRun(1, 1),), 0)
    assert sent == [expected, expected]
    assert [message.payload for message in sent] == [tuple(node.log[1:])] * 2


@pytest.mark.parametrize(
    ("size", "acks", "expected"),
    [
        (1, {}, 4),
        (2, {}, -1),
        (2, {"n1": 4}, 4),
        (3, {}, -1),
        (3, {"n1": 4}, 4),
        (3, {"n2": 2}, 2),
        (3, {"n1": 1, "n2": 3}, 3),
        (4, {"n1": 4}, -1),
        (4, {"n1": 4, "n2": 3}, 3),
        (5, {"n1": 4}, -1),
        (5, {"n1": 4, "n2": 2}, 2),
        (5, {"n1": 4, "n2": 2, "n3": 3}, 3),
        (5, {"n1": 1, "n2": 1, "n3": 1, "n4": 4}, 1),
    ],
)
def test_leader_commits_by_majority(size: int, acks: dict[str, int], expected: int) -> None:
    """§5.3: an entry is committed once the leader that made it has it on a majority of the servers."""
    world = World(size)
    node = make_leader(world) if size > 1 else world.elect("n0")
    for _ in range(4):
        node.propose()
    for peer, index in acks.items():
        node.step(accepted(peer, 1, index))
    assert node.core.commit_index == expected


def test_what_precedes_a_committed_entry_is_committed() -> None:
    """§5.3: committing an entry commits all before it, also those of earlier leaders."""
    world = World(logs={"n0": [1, 2, 2]})
    node = make_leader(world)
    assert node.core.commit_index == -1
    node.step(accepted("n1", 3, 3))
    assert node.core.commit_index == 3


def test_the_commit_reaches_idle_followers_within_milliseconds() -> None:
    """§5.3: followers learn of the commit by the next message; on an idle link one goes for that alone."""
    world = World()
    world.elect("n0")
    world.advance(50)
    index = world["n0"].propose()
    world.deliver()
    assert [node.core.commit_index for node in world.nodes.values()] == [index, index - 1, index - 1]
    world.advance(world["n0"].options.commit_notice_ms)
    assert [node.core.commit_index for node in world.nodes.values()] == [index] * 3


def test_busy_links_need_no_notice() -> None:
    """The commit travels with the appends that flow anyway: no message of its own."""
    world = World()
    world.elect("n0")
    world.advance(50)
    world.lines.clear()
    for _ in range(20):
        world["n0"].propose()
        world.deliver()
        world.advance(1)
    assert not [line for line in world.lines if " Heartbeat " in line]


def test_leader_fills_a_follower_that_was_away() -> None:
    """§5.3: the leader retries until all followers store all entries, even after it has answered its client."""
    world = World()
    world.elect("n0")
    world["n2"].crash()
    world["n0"].propose(5)
    world.deliver()
    assert world["n0"].core.commit_index == 5
    world.advance(3000)
    world["n2"].restart()
    world.advance(300)
    assert world["n2"].log == world["n0"].log
    assert world["n2"].core.commit_index == 5


FIGURE_7 = {
    "a": [1, 1, 1, 4, 4, 5, 5, 6, 6],
    "b": [1, 1, 1, 4],
    "c": [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6],
    "d": [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7],
    "e": [1, 1, 1, 4, 4, 4, 4],
    "f": [1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3],
}
LEADER_OF_FIGURE_7 = [1, 1, 1, 4, 4, 5, 5, 6, 6, 6]


@pytest.mark.parametrize(
    ("case", "refusals"),
    # One for each term of the follower that the leader must skip, and one where its log is merely short.
    [("a", 1), ("b", 1), ("c", 0), ("d", 0), ("e", 2), ("f", 2)],
)
def test_figure_7(case: str, refusals: int) -> None:
    """§5.3, figure 7: whatever a follower missed or has too much, the leader makes its log equal, a term a round."""
    logs = {"n0": LEADER_OF_FIGURE_7, "n1": FIGURE_7[case]}
    world = World(logs=logs, hard_states={name: HardState(7) for name in ("n0", "n1", "n2")})
    world["n2"].crash()
    leader = world["n0"]
    world.now = leader.core.deadline_ms
    leader.tick()
    world.wire.clear()  # n1 may have the longer log and not vote for n0: n2's voice is the test's
    leader.step(vote("n2", 8, pre_vote=True))
    world.wire.clear()
    leader.step(vote("n2", 8))
    world.deliver()
    world.advance(300)
    assert world["n1"].log == leader.log
    assert world["n1"].terms == [*LEADER_OF_FIGURE_7, 8]
    assert leader.core.commit_index == len(LEADER_OF_FIGURE_7)
    assert world.transcript().count("REFUSED") == refusals


@pytest.mark.parametrize("length", [10, 10_000])
def test_back_up_needs_one_round_a_term_not_an_entry(length: int) -> None:
    """§5.3, end: one refusal because the log is shorter, then one for each conflicting term, however long they are."""
    stray = [1] + [2] * length + [3] * length + [4] * length
    mine = [1] + [5] * (4 * length)
    world = World(logs={"n0": mine, "n1": stray, "n2": mine}, hard_states={f"n{at}": HardState(5) for at in range(3)})
    world.elect("n0")
    world.advance(100)
    assert world["n1"].log == world["n0"].log
    assert world.transcript().count("REFUSED") == 4


def test_a_follower_with_many_terms_that_the_leader_has_too() -> None:
    """The leader uses its own knowledge of the conflicting term: it goes to the end of its part, not to its start."""
    shared = [1, 2, 3] + [4] * 50
    world = World(
        logs={"n0": [*shared, 6], "n1": [*shared, 4, 4, 4, 4]}, hard_states={"n0": HardState(6), "n1": HardState(6)}
    )
    world["n2"].crash()
    leader = world["n0"]
    world.now = leader.core.deadline_ms
    leader.tick()
    world.deliver()
    assert leader.core.is_leader
    world.advance(200)
    assert world["n1"].log == leader.log
    resent = [line for line in world.lines if "entries [" in line and "n0→n1" in line]
    assert not [line for line in resent if "entries [3" in line]  # nothing of the shared part goes again
    assert world.transcript().count("REFUSED") == 1


# ---------------------------------------------------------------------- windows


def _replicating(**options: int) -> tuple[World, Node]:
    world = World(options=replace(OPTIONS, **options))  # type: ignore[arg-type]
    node = make_leader(world)
    for peer in ("n1", "n2"):
        node.step(accepted(peer, 1, 0))
    world.wire.clear()
    return world, node


def test_a_probe_goes_alone() -> None:
    """Until the common point is known there is one message on the way, however much is appended."""
    world = World()
    node = make_leader(world)
    sent = [message for _ in range(5) for message in pick(world.sent_by("n0", node.propose), AppendEntries)]
    assert sent == []


def test_the_window_limits_messages() -> None:
    """Flow control: at most ``max_inflight_count`` unanswered messages a peer; each answer makes room for one."""
    world, node = _replicating(max_inflight_count=3)
    sent = [message for _ in range(10) for message in world.sent_by("n0", node.propose)]
    per_peer = pick(sent, AppendEntries)
    assert [message.last_index for message in per_peer] == [1, 1, 2, 2, 3, 3]
    answered = pick(world.step("n0", accepted("n1", 1, 1)), AppendEntries)
    assert [(message.prev_log_index, message.last_index) for message in answered] == [
        (3, 10)
    ]  # all that waits, at once
    assert pick(world.step("n0", accepted("n1", 1, 1)), AppendEntries) == []  # the same answer again frees nothing


def test_the_window_limits_bytes() -> None:
    """Flow control: nothing more is sent once ``max_inflight_bytes`` are on the way, and messages are cut to size."""
    world, node = _replicating(max_inflight_bytes=600, max_append_bytes=300)
    sent = pick(world.sent_by("n0", lambda: node.propose(20)), AppendEntries)
    ranges = [(message.prev_log_index + 1, message.last_index) for message in sent]
    assert sorted(set(ranges)) == [(1, 3), (4, 6)]  # entries of 100 bytes
    assert all(progress.inflight_bytes == 600 for progress in node.core.progress.values())
    more = pick(world.step("n0", accepted("n1", 1, 3)), AppendEntries)
    assert [(message.prev_log_index + 1, message.last_index) for message in more] == [(7, 9)]


def test_a_full_window_drains() -> None:
    """With everything answered the whole log gets across, whatever the window."""
    world, node = _replicating(max_inflight_count=2, max_inflight_bytes=500, max_append_bytes=200)
    for _ in range(30):
        node.propose(7)
    world.deliver()
    world.advance(300)
    assert world["n1"].log == world["n2"].log == node.log
    assert node.core.commit_index == 210


# ---------------------------------------------------------------------- loss, doubles, disorder


def test_a_lost_append_is_found_by_the_heartbeat() -> None:
    """A follower's heartbeat answer shows what never arrived; the leader sends it again."""
    world = World()
    world.elect("n0")
    world["n0"].propose(3)
    assert len(world.take(AppendEntries)) == 2
    world.advance(100)
    assert world["n1"].log == world["n2"].log == world["n0"].log
    assert world["n0"].core.commit_index == 3


def test_a_lost_answer_is_found_by_the_heartbeat() -> None:
    """The follower has it, the leader does not know: the heartbeat's answer says so, and nothing is sent again."""
    world = World()
    world.elect("n0")
    world["n0"].propose(3)
    for envelope in world.take(AppendEntries):
        world.deliver_one(envelope)
    assert len(world.take(AppendEntriesResponse)) == 2
    assert world["n0"].core.commit_index == 0
    world.lines.clear()
    world.advance(100)
    assert world["n0"].core.commit_index == 3
    assert not [line for line in world.lines if "AppendEntries t1" in line]


def test_an_old_tail_does_not_hide_a_lost_append() -> None:
    """A follower whose log is longer than what was sent: what was lost is found all the same, however full the window."""
    options = replace(OPTIONS, max_inflight_count=2, max_append_bytes=100)
    tail = [1] * 3 + [2] * 50
    world = World(
        options=options, logs={"n0": [1, 1, 1, 3], "n1": tail}, hard_states={f"n{at}": HardState(3) for at in range(3)}
    )
    leader = make_leader(world)
    leader.step(accepted("n1", 4, 2, 52))  # equal up to 2; entries 3 to 52 of the follower are old
    leader.propose(20)
    world.take(AppendEntries)  # all that the window holds is lost
    world["n1"].step(heartbeat("n0", 4))
    world.deliver()
    world.advance(1000)
    assert world["n1"].log == leader.log


@pytest.mark.parametrize("lost", ["probe", "answer"])
def test_a_lost_probe_is_repeated(lost: str) -> None:
    """The first message of a leader, or its answer, may be lost as well."""
    world = World()
    node = world["n0"]
    world.now = node.core.deadline_ms
    node.tick()
    while not node.core.is_leader:
        world.deliver_one(world.wire.popleft())
    world.take(Heartbeat)  # its answer would tell the same
    if lost == "answer":
        for envelope in world.take(AppendEntries):
            world.deliver_one(envelope)
    assert len(world.take(AppendEntries if lost == "probe" else AppendEntriesResponse)) == 2
    world.deliver()
    assert node.core.commit_index == -1
    world.advance(200)
    assert node.core.commit_index == 0


def test_a_heartbeat_that_overtakes_the_probe_does_not_double_it() -> None:
    """Only a heartbeat that left after the probe can prove it lost."""
    world = World()
    node = make_leader(world)
    assert world.step("n0", beat_answer("n1", 1)) == []  # to the heartbeat that left with the election
    world.now = node.core.deadline_ms
    assert len(pick(world.sent_by("n0", node.tick), Heartbeat)) == 2
    assert len(pick(world.step("n0", beat_answer("n1", 1)), AppendEntries)) == 1


def test_stale_doubled_and_late_messages_change_nothing() -> None:
    """Every message of a conversation, delivered again at its end in any order, leaves all as it is."""
    world = World()
    seen = []
    world.elect("n0")
    for _ in range(4):
        world["n0"].propose(2)
        while world.wire:
            envelope = world.wire.popleft()
            seen.append(envelope)
            world.deliver_one(envelope)
        world.advance(100)
    before = [(node.log, node.core.hard_state, node.core.commit_index, node.core.role) for node in world.nodes.values()]
    for order in (seen, seen[::-1], seen[::2] + seen[1::2]):
        for envelope in order:
            world.deliver_one(envelope)
        world.deliver()
    world.advance(200)
    after = [(node.log, node.core.hard_state, node.core.commit_index, node.core.role) for node in world.nodes.values()]
    assert after == before


def test_a_late_refusal_does_not_lower_what_is_known() -> None:
    """A refusal of something that was accepted since is stale."""
    world, node = _replicating()
    node.propose(4)
    node.step(accepted("n1", 1, 4))
    progress = node.core.progress["n1"]
    world.step("n0", AppendEntriesResponse("n1", 1, False, -1, 0, rejected_index=2, conflict_index=1))
    assert (progress.match_index, progress.next_index) == (4, 5)


def test_a_late_refusal_during_a_search_does_not_either() -> None:
    """Nor where it refuses just what is probed: a follower that still has its log has lost nothing."""
    world, node = _replicating()
    node.propose(4)
    node.step(accepted("n1", 1, 4))
    node.peer_unreachable("n1")
    world.step("n0", AppendEntriesResponse("n1", 1, False, -1, 9, rejected_index=4, conflict_index=4))
    assert node.core.progress["n1"].match_index == 4
    assert "peer_lost_entries" not in world.transcript()


def test_a_follower_that_forgot_and_holds_another_leaders_tail_is_filled_again() -> None:
    """Its log does not end before what it once acknowledged here, but it says itself that it forgot. (Seed 206.)"""
    world, node = _replicating()
    node.propose(4)
    node.step(accepted("n1", 1, 4))
    node.peer_unreachable("n1")
    progress = node.core.progress["n1"]
    refusal = AppendEntriesResponse("n1", 1, False, 1, 9, rejected_index=4, conflict_index=3, conflict_term=0)
    world.step("n0", replace(refusal, forgetful=True))
    assert (progress.match_index, progress.sworn_index, progress.next_index) == (1, 1, 3)


def test_a_follower_that_lost_its_log_is_filled_again() -> None:
    """A deleted folder, under the same leader in the same term: what it once acknowledged it must get again."""
    world = World()
    world.elect("n0")
    world["n0"].propose(5)
    world.deliver()
    world["n1"].crash()
    world["n1"].wipe()
    world["n1"].restart()
    world.advance(400)
    assert world["n1"].log == world["n0"].log
    assert world["n0"].core.term == 1
    assert world["n1"].core.commit_index == 5
    assert world["n1"].core.hard_state.vote_floor is None


def test_a_follower_that_lost_its_tail_is_filled_again() -> None:
    """The same for a tail that a power failure damaged and recovery cut."""
    world = World()
    world.elect("n0")
    world["n0"].propose(5)
    world.deliver()
    world["n1"].crash()
    del world["n1"].disk_log[2:]
    world["n1"].restart()
    world["n0"].peer_unreachable("n1")
    world["n0"].peer_connected("n1")
    world.deliver()
    world.advance(200)
    assert world["n1"].log == world["n0"].log
    assert "peer_lost_entries peer=n1 had=5 has=1" in world.transcript()


def test_a_peer_that_was_away_is_not_sent_the_whole_log() -> None:
    """A node that restarts under a leader that never heard of it: the search starts at the end, not at index 0."""
    world = World(logs={f"n{at}": [1] * 1000 for at in range(3)})
    world["n2"].crash()
    world.elect("n0")
    world["n0"].propose(3)
    world.deliver()
    world["n0"].peer_unreachable("n2")
    world.advance(50)
    world["n2"].restart()
    world.lines.clear()
    world["n0"].peer_connected("n2")
    world.deliver()
    assert world["n2"].log == world["n0"].log
    sent = [line for line in world.lines if "n0→n2 AppendEntries" in line]
    assert len(sent) == 1
    assert "entries [1000..1003]" in sent[0]


def test_a_fetch_that_fails_is_tried_again() -> None:
    """The driver could not read the entries: the next heartbeat's answer asks anew."""
    world, node = _replicating()
    node.auto_fetch = False
    node.propose()
    assert {request.peer for request in node.fetches} == {"n1", "n2"}
    for request in node.fetches:
        node.core.fetch_failed(request)
    node.fetches.clear()
    node.pump()
    assert node.fetches == []
    node.auto_fetch = True
    world.advance(100)
    assert world["n1"].log == world["n2"].log == node.log


def test_a_fetch_for_an_older_place_or_term_is_dropped() -> None:
    """Entries that come out of the store too late are not sent."""
    world, node = _replicating()
    node.auto_fetch = False
    node.propose()
    request = next(request for request in node.fetches if request.peer == "n1")
    node.step(beat_answer("n1", 1, sent=0, match=1))  # it turned out to have the entry
    assert node.core.entries_fetched(request, 1, 100, world.now) is None
    other = next(request for request in node.fetches if request.peer == "n2")
    node.step(heartbeat("n2", 2))
    assert node.core.entries_fetched(other, 1, 100, world.now) is None


def test_a_fetch_that_was_given_up_frees_no_place_for_another() -> None:
    """One fetch at a time for each peer: else every later piece of the log would be read twice."""
    world, node = _replicating()
    node.propose()
    node.step(accepted("n2", 1, 1))
    node.auto_fetch = False
    node.peer_connected("n1")
    while node.fetches:
        node.answer_fetch()  # a probe behind entry 0, which n1 held once
    while not node.core.progress["n1"].probe_precedes_heartbeat:
        world.tick_at_deadline("n0")
    node.step(beat_answer("n1", 1, sent=1, match=0))  # no answer to the probe yet: it is asked again
    (given_up,) = node.fetches
    node.fetches.clear()
    node.step(AppendEntriesResponse("n1", 1, False, -1, -1, rejected_index=0, conflict_index=0))  # it has lost all
    (current,) = node.fetches
    node.fetches.clear()
    assert (given_up.first_index, current.first_index) == (1, 0)
    assert node.core.entries_fetched(given_up, 1, 100, world.now) is None
    node.core.fetch_failed(given_up)
    node.propose()
    assert [request for request in node.fetches if request.peer == "n1"] == []
    assert node.core.entries_fetched(current, -1, 0, world.now) is not None


def test_a_fetch_of_an_earlier_leadership_is_dropped() -> None:
    """The bytes were read before another leader replaced them; the place is asked for again in this term."""
    world, node = _replicating()
    node.step(accepted("n1", 1, 0))
    node.auto_fetch = False
    node.propose()
    old = next(request for request in node.fetches if request.peer == "n1")
    node.step(append("n2", 2, (0, 1), [2]))
    node.fetches.clear()
    world.advance(1)
    node = make_leader(world)
    node.fetches.clear()
    node.core.entries_fetched(replace(old, first_index=2, last_index=1, term=3), 1, 0, world.now)
    node.step(AppendEntriesResponse("n1", 3, False, -1, 0, rejected_index=1, conflict_index=1))
    (new,) = [request for request in node.fetches if request.peer == "n1"]
    assert (new.first_index, new.term) == (old.first_index, 3)
    assert node.core.entries_fetched(old, 1, 100, world.now) is None
    assert node.core.entries_fetched(new, 0, 0, world.now) is not None


def test_two_leaders_in_one_term_stop_the_node() -> None:
    """Election safety: what must never be seen raises, at a leader and at a follower, whatever the message."""
    for message in (append("n1", 1, (-1, -1), [1]), heartbeat("n1", 1)):
        world = World()
        leader = make_leader(world)
        with pytest.raises(InvariantError, match="n1 claims to lead term 1"):
            leader.step(message)
        world = World()
        world["n0"].step(heartbeat("n2", 1))
        with pytest.raises(InvariantError, match="two leaders in one term"):
            world["n0"].step(message)


@pytest.mark.parametrize("message", [accepted("n1", 1, 7), beat_answer("n1", 1, match=7)])
def test_a_follower_that_matches_more_than_there_is_stops_the_leader(
    message: AppendEntriesResponse | HeartbeatResponse,
) -> None:
    """An acknowledgement beyond the leader's log means that something is broken at the root."""
    node = make_leader(World())
    with pytest.raises(InvariantError, match="leader lacks"):
        node.step(message)
