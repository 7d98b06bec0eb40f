"""History goes at its rate while clients append, and as fast as it can otherwise."""

from __future__ import annotations

import pytest

from dledger.driver.pace import CatchUpPace

MIB = 1024 * 1024


def send(pace: CatchUpPace, seconds: float, *, appending: bool, read_s: float = 0.001) -> float:
    """Return the bytes a second that go out: a MiB at a time, each read within ``read_s``."""
    now, index, sent = 100.0, 0, 0
    while now < 100.0 + seconds:
        index += appending
        now += pace.delay_s(index, now) + read_s
        pace.sent(MIB, now)
        sent += MIB
    return sent / seconds


def test_the_rate_is_kept_while_clients_append() -> None:
    assert send(CatchUpPace(50 * MIB), 10, appending=True) == pytest.approx(50 * MIB, rel=0.03)


def test_nothing_is_held_back_while_nobody_appends() -> None:
    assert send(CatchUpPace(50 * MIB), 10, appending=False) == pytest.approx(1000 * MIB, rel=0.03)


def test_no_limit_is_none() -> None:
    assert send(CatchUpPace(0), 10, appending=True) == pytest.approx(1000 * MIB, rel=0.03)


def test_a_disk_that_stutters_keeps_the_rate() -> None:
    """A read that took long is made up for, up to a tenth of a second."""
    pace = CatchUpPace(50 * MIB)
    now, sent = 0.0, 0
    while now < 10:
        now += pace.delay_s(sent, now) + (0.08 if sent % 10 == 0 else 0.001)
        pace.sent(MIB, now)
        sent += 1
    assert sent / 10 == pytest.approx(50, rel=0.03)
    assert pace.delay_s(sent, now + 60) == 0.0
    for _ in range(100):
        pace.sent(MIB, now + 60)  # a minute without a read is not made up for
    waited = 0.0
    while delay := pace.delay_s(sent + 1, now + 60 + waited):
        waited += delay
        sent += 1
    assert waited == pytest.approx(100 / 50 - 0.1)


def test_a_log_that_grew_long_ago_holds_nobody_back() -> None:
    pace = CatchUpPace(MIB)
    pace.delay_s(1, 10.0)
    pace.delay_s(2, 10.1)
    pace.sent(100 * MIB, 10.2)
    assert pace.delay_s(2, 10.3) == 1.0  # a hundred in all, but nobody may append any more by then
    assert pace.delay_s(2, 11.2) == 0.0
    assert pace.delay_s(3, 11.3) == 1.0
