"""The session table: sequences, eviction, rollback, and the same table whatever the slices were."""

from __future__ import annotations

import random

import pytest

from dledger.errors import SequenceForgottenError, SequenceGapError, SessionExpiredError
from dledger.storage.entry import SessionRun
from dledger.storage.sessions import MAX_RUNS, MAX_SESSIONS, SessionJournal, SessionTable


def table(*runs: SessionRun) -> SessionTable:
    result = SessionTable()
    for run in runs:
        result.apply(run)
    return result


def test_the_kth_entry_of_a_session_is_sequence_k():
    sessions = table(SessionRun(1, 0, 1, b"c"), SessionRun(1, 5, 3), SessionRun(1, 20, 2))
    assert sessions.get(1).next_sequence == 5
    assert sessions.locate(1, 0, 3) == [(5, 3)]
    assert sessions.locate(1, 1, 4) == [(6, 2), (20, 2)]
    assert sessions.locate(1, 4, 10) == [(21, 1)]
    assert sessions.locate(1, 5, 10) == []


def test_refusals_say_what_is_wrong():
    sessions = table(SessionRun(1, 0, 1, b"c"), SessionRun(1, 1, 1))
    with pytest.raises(SessionExpiredError):
        sessions.locate(2, 0, 1)
    with pytest.raises(SequenceGapError):
        sessions.locate(1, 2, 1)


def test_old_sequences_are_forgotten_not_mistaken():
    runs = [SessionRun(1, 10 * n, 1) for n in range(1, MAX_RUNS + 10)]
    sessions = table(SessionRun(1, 0, 1, b"c"), *runs)
    with pytest.raises(SequenceForgottenError):
        sessions.locate(1, 0, 1)
    assert sessions.locate(1, MAX_RUNS + 8, 1) == [(10 * (MAX_RUNS + 9), 1)]


def test_opening_again_is_found_by_the_clients_id():
    sessions = table(SessionRun(1, 0, 1, b"c"))
    assert sessions.find(b"c").session_id == 1
    assert sessions.find(b"other") is None
    assert sessions.next_session_id() == 2


def test_the_least_recently_used_session_goes_first():
    sessions = SessionTable()
    for number in range(MAX_SESSIONS):
        sessions.apply(SessionRun(number + 1, number, 1, b"%d" % number))
    sessions.apply(SessionRun(1, MAX_SESSIONS, 1))  # the oldest is used again
    sessions.apply(SessionRun(MAX_SESSIONS + 1, MAX_SESSIONS + 1, 1, b"new"))
    assert len(sessions) == MAX_SESSIONS
    assert sessions.get(1) is not None
    assert sessions.get(2) is None
    assert sessions.find(b"1") is None
    assert sessions.next_session_id() == MAX_SESSIONS + 2


def test_the_table_is_the_same_whatever_the_slices():
    """Replicas see the same entries in different slices; their tables must agree to the byte."""
    rng = random.Random(4)
    runs = [SessionRun(1, 0, 1, b"a"), SessionRun(2, 1, 1, b"b")]
    index = 2
    for _ in range(300):
        count = rng.randint(1, 6)
        runs.append(SessionRun(rng.choice([1, 1, 2]), index, count))
        index += count + rng.choice([0, 0, 1])
    cut = []
    for run in runs:
        at = 0
        while at < run.count:
            take = rng.randint(1, run.count - at)
            cut.append(SessionRun(run.channel, run.first_index + at, take, run.client_id))
            at += take
    assert table(*runs).to_json() == table(*cut).to_json()


def test_a_truncation_rolls_back_and_a_commit_folds():
    """tail == base + journal, after any mixture of appends, commits and truncations."""
    rng = random.Random(7)
    for _ in range(200):
        journal = SessionJournal(SessionTable(), -1)
        applied: list[SessionRun] = []
        index, committed = 0, -1
        for _ in range(30):
            action = rng.random()
            if action < 0.6 or index == 0:
                known = sorted({run.channel for run in applied if run.client_id})
                if not known or rng.random() < 0.2:
                    run = SessionRun(len(known) + 1, index, 1, b"%d" % rng.randrange(10**9))
                else:
                    run = SessionRun(rng.choice(known), index, rng.randint(1, 5))
                journal.append([run])
                applied.append(run)
                index += run.count
            elif action < 0.8:
                committed = rng.randint(committed, index - 1)
                journal.commit(committed)
            elif committed + 1 < index:
                cut = rng.randint(committed + 1, index - 1)
                journal.truncate(cut)
                applied = [
                    SessionRun(r.channel, r.first_index, min(r.count, cut - r.first_index), r.client_id)
                    for r in applied
                    if r.first_index < cut
                ]
                index = cut
        assert journal.tail.to_json() == table(*applied).to_json()
        upto = [
            SessionRun(r.channel, r.first_index, min(r.count, committed + 1 - r.first_index), r.client_id)
            for r in applied
            if r.first_index <= committed
        ]
        assert journal.base.to_json() == table(*upto).to_json()


def test_the_table_survives_serialisation():
    sessions = table(SessionRun(1, 0, 1, b"\x00\xff"), SessionRun(1, 5, 3), SessionRun(2, 9, 1, b"z"))
    again = SessionTable.from_json(sessions.to_json())
    assert again.to_json() == sessions.to_json()
    assert again.locate(1, 0, 3) == [(5, 3)]
    assert again.next_session_id() == 3
