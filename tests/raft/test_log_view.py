"""The log as runs of terms, against the plainest model there is: a list with the term of each entry."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dledger.raft.log_view import LogView
from dledger.raft.messages import NO_TERM, InvariantError, LogId, TermRun
from tests.raft.harness import runs_of

PROFILE = settings(derandomize=True, deadline=None, max_examples=100, database=None)

terms_of_a_log = st.lists(st.integers(0, 6), max_size=30).map(sorted)


def view(terms: list[int]) -> LogView:
    return LogView(runs_of(terms), last_index=len(terms) - 1)


def read_back(log: LogView) -> list[int | None]:
    return [log.term_at(index) for index in range(log.last_index + 1)]


@PROFILE
@given(terms_of_a_log)
def test_term_at(terms: list[int]) -> None:
    """Each index has its term; outside there is none; just before the first entry stands `NO_TERM`."""
    log = view(terms)
    assert read_back(log) == terms
    assert log.term_at(-1) == NO_TERM
    assert log.term_at(len(terms)) is None
    assert log.term_at(-2) is None
    assert log.last_id == LogId(terms[-1] if terms else NO_TERM, len(terms) - 1)


@PROFILE
@given(terms_of_a_log, st.lists(st.tuples(st.integers(1, 5), st.integers(0, 2)), max_size=8))
def test_append(terms: list[int], appends: list[tuple[int, int]]) -> None:
    """Entries are added at the end; a run of the same term grows."""
    log, model = view(terms), list(terms)
    for count, step in appends:
        term = (model[-1] if model else 0) + step
        model += [term] * count
        log.append(len(model) - 1, term)
    assert read_back(log) == model
    assert log.runs_between(0, log.last_index) == runs_of(model)


@PROFILE
@given(terms_of_a_log, st.integers(0, 31), terms_of_a_log)
def test_truncate_then_append_runs(terms: list[int], cut: int, more: list[int]) -> None:
    """What a follower does at a conflict: the tail goes, the leader's entries come."""
    log = view(terms)
    cut = min(cut, len(terms))
    log.truncate(cut)
    model = terms[:cut]
    assert read_back(log) == model
    more = [term + (model[-1] if model else 0) for term in more]
    if more:
        runs = tuple(TermRun(run.first_index + cut, run.term) for run in runs_of(more))
        log.append_runs(runs, cut, cut + len(more) - 1)
    assert read_back(log) == model + more


@PROFILE
@given(terms_of_a_log, st.integers(0, 29), st.integers(0, 29))
def test_runs_between(terms: list[int], low: int, high: int) -> None:
    """The runs of a stretch say the same as its terms, and start where it starts."""
    log = view(terms)
    if not terms or low > high:
        assert log.runs_between(high + 1, high) == ()
        return
    low, high = min(low, len(terms) - 1), min(high, len(terms) - 1)
    expected = tuple(TermRun(run.first_index + low, run.term) for run in runs_of(terms[low : high + 1]))
    assert log.runs_between(low, high) == expected


@PROFILE
@given(terms_of_a_log, terms_of_a_log, st.integers(0, 29))
def test_first_conflict(mine: list[int], others: list[int], start: int) -> None:
    """The first index where both logs have an entry, of different terms; a prefix or an extension is no conflict."""
    start = min(start, len(others))
    stretch = others[start:]
    runs = tuple(TermRun(run.first_index + start, run.term) for run in runs_of(stretch))
    both = range(start, min(len(mine), len(others)))
    expected = next((index for index in both if mine[index] != others[index]), None)
    assert view(mine).first_conflict(runs, len(others) - 1) == expected


@PROFILE
@given(terms_of_a_log, st.integers(-1, 7), st.integers(-1, 31))
def test_last_index_at_or_below_term(terms: list[int], term: int, bound: int) -> None:
    """Where a leader looks for the last entry that it could share with a follower that is in ``term``."""
    fits = [index for index, its in enumerate(terms) if its <= term and index <= bound]
    assert view(terms).last_index_at_or_below_term(term, bound) == (fits[-1] if fits else -1)


@PROFILE
@given(terms_of_a_log.filter(bool), st.integers(0, 29))
def test_first_index_of_run(terms: list[int], index: int) -> None:
    """Where the term of an entry begins."""
    index = min(index, len(terms) - 1)
    assert view(terms).first_index_of_run(index) == terms.index(terms[index])


def test_a_million_entries_are_one_run() -> None:
    """The view's size goes with the number of elections, not of entries."""
    log = LogView()
    for number in range(1000):
        log.append((number + 1) * 1000 - 1, 1)
    assert log.runs_between(0, 999_999) == (TermRun(0, 1),)


@pytest.mark.parametrize(
    "runs",
    [
        [TermRun(0, 2), TermRun(5, 1)],  # terms fall
        [TermRun(0, 1), TermRun(5, 1)],  # the same term twice
        [TermRun(5, 1), TermRun(5, 2)],  # two runs at one place
    ],
)
def test_bad_runs_are_refused(runs: list[TermRun]) -> None:
    """A store that recovered nonsense must not come into the core."""
    with pytest.raises(InvariantError):
        LogView(runs, last_index=9)


def test_bad_appends_are_refused() -> None:
    """An append extends the log, its term never falls, and received runs continue where the log ends."""
    log = view([1, 1, 2])
    with pytest.raises(InvariantError, match="terms never fall"):
        log.append(3, 1)
    with pytest.raises(InvariantError, match="extends"):
        log.append(2, 2)
    with pytest.raises(InvariantError, match="continues"):
        log.append_runs((TermRun(4, 2),), 4, 5)
    assert read_back(log) == [1, 1, 2]


def test_a_log_that_does_not_start_at_zero() -> None:
    """After old segments were deleted: indexes before the first are outside, the one just before is the edge."""
    log = LogView([TermRun(10, 3), TermRun(12, 4)], first_index=10, last_index=13)
    assert [log.term_at(index) for index in range(8, 15)] == [None, NO_TERM, 3, 3, 4, 4, None]
    assert log.last_index_at_or_below_term(2, 13) == 9
    assert log.last_index_at_or_below_term(3, 13) == 11
