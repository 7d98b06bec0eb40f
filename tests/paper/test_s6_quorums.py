"""§6 and T§4.3: what a majority is, also of a joint configuration, where both halves must agree."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dledger.raft.quorum import MAX_INDEX, Configuration, VoteOutcome, committed_index, has_quorum, vote_outcome

PROFILE = settings(derandomize=True, deadline=None, max_examples=100, database=None)

NODES = "abcdefg"

configurations = st.builds(
    Configuration,
    st.sets(st.sampled_from(NODES), min_size=1).map(frozenset),
    st.sets(st.sampled_from(NODES)).map(frozenset),
    st.sets(st.sampled_from("xyz")).map(frozenset),
)


def majorities(voters: frozenset[str]) -> list[frozenset[str]]:
    """Every majority, by brute force. No voters: nobody is needed."""
    needed = len(voters) // 2 + 1 if voters else 0
    return [frozenset(group) for size in range(needed, len(voters) + 1) for group in combinations(sorted(voters), size)]


def is_quorum(configuration: Configuration, present: frozenset[str]) -> bool:
    halves = [half for half in (configuration.voters, configuration.outgoing) if half]
    return all(any(group <= present for group in majorities(half)) for half in halves)


@pytest.mark.parametrize(
    ("voters", "outgoing", "match", "expected"),
    [
        ("a", "", {"a": 5}, 5),
        ("a", "", {}, -1),
        ("ab", "", {"a": 5}, -1),
        ("ab", "", {"a": 5, "b": 3}, 3),
        ("abc", "", {"a": 5}, -1),
        ("abc", "", {"a": 5, "b": 3}, 3),
        ("abc", "", {"a": 5, "b": 3, "c": 4}, 4),
        ("abcd", "", {"a": 9, "b": 8, "c": 7, "d": 6}, 7),
        ("abcde", "", {"a": 9, "b": 8, "c": 7, "d": 6, "e": 5}, 7),
        ("abcde", "", {"a": 9, "b": 8, "c": 7}, 7),
        ("abc", "", {"a": 5, "b": 3, "z": 9}, 3),  # who does not vote is not counted
        # Joint: the smaller of the two halves.
        ("abc", "def", {"a": 5, "b": 5, "c": 5}, -1),
        ("abc", "def", {"a": 5, "b": 5, "d": 3, "e": 2}, 2),
        ("abc", "cde", {"c": 9, "a": 4, "e": 6}, 4),
        ("abc", "abd", {"a": 7, "b": 5, "c": 9, "d": 1}, 5),
    ],
)
def test_committed_index(voters: str, outgoing: str, match: dict[str, int], expected: int) -> None:
    """§5.3 and T§4.3: the highest index that a majority holds, of both halves."""
    assert committed_index(Configuration(frozenset(voters), frozenset(outgoing)), match) == expected


@PROFILE
@given(configurations, st.dictionaries(st.sampled_from(NODES), st.integers(-1, 12)))
def test_committed_index_against_brute_force(configuration: Configuration, match: dict[str, int]) -> None:
    """The highest index i such that those who hold i are a quorum."""
    holders = {
        index: frozenset(voter for voter in configuration.all_voters if match.get(voter, -1) >= index)
        for index in range(13)
    }
    fits = [index for index, group in holders.items() if is_quorum(configuration, group)]
    assert committed_index(configuration, match) == max(fits, default=-1)


@PROFILE
@given(configurations, st.sets(st.sampled_from(NODES + "xyz")))
def test_has_quorum_against_brute_force(configuration: Configuration, present: set[str]) -> None:
    """Learners and strangers never help."""
    assert has_quorum(configuration, present) is is_quorum(configuration, frozenset(present))


@PROFILE
@given(configurations, st.sets(st.sampled_from(NODES)), st.sets(st.sampled_from(NODES)))
def test_any_two_quorums_share_a_voter(configuration: Configuration, one: set[str], other: set[str]) -> None:
    """What all of Raft rests on."""
    if has_quorum(configuration, one) and has_quorum(configuration, other):
        assert one & other & configuration.all_voters


def test_an_empty_half_asks_nothing() -> None:
    """A configuration that is not joint takes the answer of its one half."""
    empty: frozenset[str] = frozenset()
    assert committed_index(Configuration(empty, empty), {"a": 3}) == MAX_INDEX
    assert committed_index(Configuration(frozenset("a"), empty), {"a": 3}) == 3


@pytest.mark.parametrize(
    ("voters", "full", "provisional", "refused", "expected"),
    [
        ("abc", "ab", "", "", VoteOutcome.WON),
        ("abc", "a", "", "", VoteOutcome.PENDING),
        ("abc", "a", "", "b", VoteOutcome.PENDING),
        ("abc", "a", "", "bc", VoteOutcome.LOST),
        ("abcd", "ab", "", "cd", VoteOutcome.LOST),  # two of four are no majority
        ("abcd", "ab", "", "c", VoteOutcome.PENDING),
        # Provisional votes: worth something only if every voter says yes.
        ("abc", "a", "b", "", VoteOutcome.PENDING),
        ("abc", "a", "b", "c", VoteOutcome.LOST),
        ("abc", "a", "bc", "", VoteOutcome.WON),
        ("abc", "ac", "b", "", VoteOutcome.WON),
        ("abc", "", "abc", "", VoteOutcome.WON),
        ("abc", "", "ab", "", VoteOutcome.PENDING),
        ("abcde", "ab", "c", "", VoteOutcome.PENDING),
        ("abcde", "ab", "c", "d", VoteOutcome.PENDING),  # e's full vote would do
        ("abcde", "ab", "ce", "d", VoteOutcome.LOST),
        ("abcde", "a", "bcde", "", VoteOutcome.WON),
        ("abcde", "a", "bcd", "e", VoteOutcome.LOST),
    ],
)
def test_vote_outcome(voters: str, full: str, provisional: str, refused: str, expected: VoteOutcome) -> None:
    """§5.2, with votes of voters that may have lost entries they acknowledged."""
    assert vote_outcome(Configuration(frozenset(voters)), set(full), set(provisional), set(refused)) is expected


@PROFILE
@given(configurations, st.dictionaries(st.sampled_from(NODES), st.sampled_from("fpr")))
def test_vote_outcome_against_brute_force(configuration: Configuration, answers: dict[str, str]) -> None:
    """WON if it is won now, PENDING if some future answers could win it, LOST otherwise."""
    voters = configuration.all_voters
    given_answers = {voter: answer for voter, answer in answers.items() if voter in voters}

    def won(votes: dict[str, str]) -> bool:
        full = frozenset(voter for voter, answer in votes.items() if answer == "f")
        return is_quorum(configuration, full) or (voters <= votes.keys() and "r" not in votes.values())

    best = {**dict.fromkeys(voters, "f"), **given_answers}
    expected = VoteOutcome.WON if won(given_answers) else VoteOutcome.PENDING if won(best) else VoteOutcome.LOST
    by_kind = {kind: {voter for voter, answer in given_answers.items() if answer == kind} for kind in "fpr"}
    assert vote_outcome(configuration, by_kind["f"], by_kind["p"], by_kind["r"]) is expected


def test_members() -> None:
    """Voters of both halves and learners are members; learners do not vote."""
    configuration = Configuration(frozenset("ab"), frozenset("bc"), frozenset("x"))
    assert configuration.all_voters == frozenset("abc")
    assert configuration.members == frozenset("abcx")
