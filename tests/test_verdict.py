"""The verdict of the quick start: it must see every kind of damage, and equal lines must not confuse it."""

from __future__ import annotations

import pytest

from dledger.verdict import judge, longest_gap

LINES = [b"a", b"same", b"same", b"b"]
ACKNOWLEDGED = {0: 1, 1: 2, 2: 3, 3: 5}
LOG = {1: b"a", 2: b"same", 3: b"same", 5: b"b"}


def test_a_faithful_log_is_clean() -> None:
    assert judge(LINES, ACKNOWLEDGED, LOG).clean


@pytest.mark.parametrize(
    ("acknowledged", "log", "lost", "duplicated", "reordered"),
    [
        (ACKNOWLEDGED, {1: b"a", 2: b"same", 3: b"same"}, {3}, set(), set()),
        (ACKNOWLEDGED, LOG | {3: b"else"}, {2}, {3}, set()),
        (ACKNOWLEDGED, LOG | {6: b"b"}, set(), {6}, set()),
        (ACKNOWLEDGED, LOG | {4: b"same"}, set(), {4}, set()),
        ({0: 1, 1: 2, 2: 2, 3: 5}, LOG, {2}, {3}, set()),
        ({0: 5, 1: 2, 2: 3, 3: 1}, {5: b"a", 2: b"same", 3: b"same", 1: b"b"}, set(), set(), {1, 2, 3}),
        ({}, {}, set(), set(), set()),
    ],
    ids=["missing", "other-body", "doubled", "equal-line-doubled", "two-lines-one-index", "order", "nothing"],
)
def test_damage_is_seen(acknowledged, log, lost, duplicated, reordered) -> None:
    found = judge(LINES, acknowledged, log)
    assert (found.lost, found.duplicated, found.reordered) == (lost, duplicated, reordered)


def test_an_unacknowledged_line_may_stand_once_or_not_at_all() -> None:
    without = {line: index for line, index in ACKNOWLEDGED.items() if line != 3}
    assert judge(LINES, without, LOG).clean
    assert judge(LINES, without, {i: b for i, b in LOG.items() if i != 5}).clean
    assert judge(LINES, without, LOG | {6: b"b"}).duplicated == {6}


def test_copies_are_merged() -> None:
    found = judge(LINES, ACKNOWLEDGED, LOG)
    found.merge(judge(LINES, ACKNOWLEDGED, {}))
    assert found.lost == {0, 1, 2, 3}
    assert not found.clean


def test_the_gap_is_the_longest_wait_that_ends_after_the_kill() -> None:
    assert longest_gap([0.0, 5.0, 5.1, 5.2, 6.0, 6.1], since=5.15) == pytest.approx(0.8)
    assert longest_gap([0.0, 1.0], since=2.0) is None
    assert longest_gap([], since=0.0) is None
