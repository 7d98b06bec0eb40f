"""The judge itself is judged: it must reject bad histories of every kind and agree with a search that knows no trick."""

from __future__ import annotations

import io
import random
import time
from math import inf

import pytest

from dledger.checker import ACKNOWLEDGED, FAILED, UNKNOWN, History, Kind, Read, check
from dledger.checker.brute import is_linearizable


def history_of(*appends, reads=()):
    """Appends as (value, call, ret, index) with index -1 for unknown and None for a definite failure."""
    history = History()
    for client, (value, call, ret, index) in enumerate(appends):
        operation = history.invoke(client, value, call)
        if index is None:
            history.fail(operation, ret, definite=True)
        elif index >= 0:
            history.acknowledge(operation, index, ret)
    for read in reads:
        history.add_read(read)
    return history


def exact(call, ret, values, *, linearizable=True):
    return Read(0, call, ret, linearizable, len(values), len(values) if linearizable else None, 0, values)


A0 = ("a", 0.0, 1.0, 0)
B1 = ("b", 2.0, 3.0, 1)

GOOD = [
    (history_of(A0, B1), ["a", "b"]),
    (history_of(("a", 0, 5, 1), ("b", 1, 4, 0)), ["b", "a"]),
    (history_of(A0, ("b", 2, inf, -1)), ["a"]),
    (history_of(A0, ("b", 2, inf, -1)), ["a", "b"]),
    (history_of(A0, ("b", 2, 3, None)), ["a"]),
    (history_of(("a", 0, 1, 1)), [None, "a", None]),
    (history_of(A0, B1, reads=[exact(2.5, 2.6, ["a"]), exact(2.5, 2.6, ["a", "b"])]), ["a", "b"]),
    (history_of(A0, B1, reads=[exact(9, 10, ["a"], linearizable=False)]), ["a", "b"]),
    (history_of(reads=[exact(0, 1, [])]), []),
]

BAD = [
    ("lost", history_of(A0, B1), ["a"], Kind.LOST),
    ("lost: another stands there", history_of(A0, ("b", 0, inf, -1)), ["b"], Kind.LOST),
    ("moved", history_of(A0, B1), ["a", None, "b"], Kind.MOVED),
    ("duplicated", history_of(A0), ["a", "a"], Kind.DUPLICATED),
    ("unknown one duplicated", history_of(("a", 0, inf, -1)), ["a", "a"], Kind.DUPLICATED),
    ("phantom", history_of(A0), ["a", "x"], Kind.PHANTOM),
    ("failed appears", history_of(A0, ("b", 2, 3, None)), ["a", "b"], Kind.FAILED_APPEARED),
    ("reordered", history_of(("a", 2, 3, 0), ("b", 0, 1, 1)), ["a", "b"], Kind.REORDERED),
    ("stale read", history_of(A0, B1, reads=[exact(3.5, 4, ["a"])]), ["a", "b"], Kind.STALE_READ),
    (
        "a read goes back behind an earlier one",
        history_of(("a", 0, inf, -1), reads=[exact(1, 2, ["a"]), exact(3, 4, [])]),
        ["a"],
        Kind.STALE_READ,
    ),
    (
        "a read goes back behind what a local read saw committed",
        history_of(("a", 0, inf, -1), reads=[exact(1, 2, ["a"], linearizable=False), exact(3, 4, [])]),
        ["a"],
        Kind.STALE_READ,
    ),
    (
        "not found after acknowledgement",
        history_of(A0, reads=[Read(0, 2, 3, True, 0, 0, 0, [])]),
        ["a"],
        Kind.STALE_READ,
    ),
    ("read before append", history_of(("a", 5, 6, 0), reads=[exact(1, 2, ["a"])]), ["a"], Kind.FUTURE_READ),
    ("uncommitted read", history_of(A0, reads=[exact(2, 3, ["a", "b"])]), ["a"], Kind.WRONG_READ),
    ("wrong value", history_of(A0, B1, reads=[exact(4, 5, ["a", "x"])]), ["a", "b"], Kind.WRONG_READ),
    ("wrong local read", history_of(A0, reads=[exact(2, 3, ["x"], linearizable=False)]), ["a"], Kind.WRONG_READ),
    ("length of a dream", history_of(A0, reads=[Read(0, 2, 3, True, 4, None, 0, [])]), ["a"], Kind.WRONG_READ),
]


@pytest.mark.parametrize(("history", "log"), GOOD)
def test_accepts_good_histories(history, log):
    """Nothing that a correct log can show is called a violation."""
    verdict = check(history, log)
    assert verdict.ok, verdict.report()
    assert is_linearizable(history, log)
    assert "no violation" in verdict.report()


@pytest.mark.parametrize(("name", "history", "log", "kind"), BAD, ids=[bad[0] for bad in BAD])
def test_rejects_bad_histories_by_their_name(name, history, log, kind):
    """Each kind of wrong is found and called what it is."""
    verdict = check(history, log)
    assert kind in verdict.counts, verdict.report()
    assert kind.value in verdict.report()
    assert not is_linearizable(history, log)


def test_streams_keep_their_order():
    """Two appends of one stream whose order in the log is not that of their calls, though they overlap in time."""
    history = History()
    for value, index in (("a", 1), ("b", 0)):
        history.acknowledge(history.invoke(0, value, 0.0, stream=7), index, 5.0)
    assert check(history, ["b", "a"]).counts == {Kind.REORDERED: 1}
    other = History()
    for stream, value, index in ((1, "a", 1), (2, "b", 0)):
        other.acknowledge(other.invoke(0, value, 0.0, stream=stream), index, 5.0)
    assert check(other, ["b", "a"]).ok


def test_values_must_be_unique():
    """A history in which two appends cannot be told apart is refused, not judged wrongly."""
    with pytest.raises(ValueError, match="not unique"):
        check(history_of(("a", 0, 1, 0), ("a", 2, 3, 1)), ["a", "a"])


def _random_case(rng: random.Random) -> tuple[History, list[str | None]]:
    """A history made by a correct log, then (mostly) spoiled by random changes of times, answers and the log."""
    appends = rng.randint(0, 5)
    history = History()
    instants = sorted(rng.uniform(0, 10) for _ in range(appends + 3))
    log: list[str | None] = []
    lengths: list[tuple[float, int]] = [(-inf, 0)]
    for number in range(appends):
        at = instants[number]
        value = f"v{number}"
        operation = history.invoke(number, value, at - rng.uniform(0, 3))
        kind = rng.choices([ACKNOWLEDGED, UNKNOWN, FAILED], [6, 3, 1])[0]
        if kind == FAILED:
            history.fail(operation, at + rng.uniform(0, 3), definite=True)
            continue
        if kind == UNKNOWN and rng.random() < 0.5:
            continue
        if rng.random() < 0.2:
            log.append(None)
        if kind == ACKNOWLEDGED:
            history.acknowledge(operation, len(log), at + rng.uniform(0, 3))
        log.append(value)
        lengths.append((at, len(log)))
    for _ in range(rng.randint(0, 4)):
        at = rng.uniform(0, 12)
        length = next(n for t, n in reversed(lengths) if t <= at)
        call, ret = at - rng.uniform(0, 2), at + rng.uniform(0, 2)
        style = rng.randrange(4)
        if style == 0:
            history.add_read(exact(call, ret, list(log[:length])))
        elif style == 1:
            seen = list(log[: rng.randint(0, length)])
            history.add_read(Read(9, call, ret, False, len(seen), None, 0, seen))
        elif style == 2 and length:
            index = rng.randrange(length)
            history.add_read(Read(9, call, ret, True, index + 1, None, index, [log[index]]))
        else:
            absent = length + rng.randint(0, 2)
            history.add_read(Read(9, call, ret, True, 0, absent, absent, []))
    for _ in range(rng.choice([0, 1, 1, 2])):
        _spoil(rng, history, log)
    return history, log


def _spoil(rng: random.Random, history: History, log: list[str | None]) -> None:
    choice = rng.randrange(9)
    acknowledged = [i for i, outcome in enumerate(history.outcomes) if outcome == ACKNOWLEDGED]
    if choice == 0 and len(log) > 1:
        i, j = rng.sample(range(len(log)), 2)
        log[i], log[j] = log[j], log[i]
    elif choice == 1 and log:
        del log[rng.randrange(len(log))]
    elif choice == 2 and log:
        log.insert(rng.randint(0, len(log)), rng.choice(log))
    elif choice == 3:
        log.insert(rng.randint(0, len(log)), "phantom")
    elif choice == 4 and acknowledged:
        history.indexes[rng.choice(acknowledged)] += rng.choice([-1, 1])
    elif choice == 5 and acknowledged:
        i = rng.choice(acknowledged)
        shift = rng.uniform(-6, 6)
        history.calls[i] += shift
        history.rets[i] += shift
    elif history.reads:
        read = rng.choice(history.reads)
        if choice == 6:
            shift = rng.uniform(-6, 6)
            read.call += shift
            read.ret += shift
        elif choice == 7 and read.max_length is not None:
            read.max_length = max(0, read.max_length - 1)
        elif read.values:
            read.values = [*read.values[:-1], rng.choice(["v0", "v1", None, "x"])]


def test_agrees_with_brute_force_on_small_random_histories():
    """Ten thousand small histories, good and bad: the linear-time verdict is the search's verdict, every time."""
    rng = random.Random(20)
    good = 0
    for number in range(10_000):
        history, log = _random_case(rng)
        fast = check(history, log)
        slow = is_linearizable(history, log)
        good += slow
        assert fast.ok == slow, f"case {number}: search says {slow}\n{fast.report()}\nlog {log}"
    assert 2_000 < good < 8_000, "the generator must make enough of both"


def _large(appends: int, clients: int) -> tuple[History, list[str]]:
    history = History()
    log = [f"v{i}" for i in range(appends)]
    for i, value in enumerate(log):
        operation = history.invoke(i % clients, value, i - 0.5 * (i % clients), stream=-1)
        history.acknowledge(operation, i, i + 1.0)
    for i in range(0, appends, 10):
        history.add_read(Read(1, i + 0.9, i + 1.1, True, i + 1, i + 1, i, [log[i]]))
    return history, log


def test_judges_a_million_operations_in_seconds():
    """Linear time: a million operations, and one stale read among them is found."""
    history, log = _large(910_000, 8)
    assert len(history) > 1_000_000
    started = time.process_time()
    verdict = check(history, log)
    took = time.process_time() - started
    assert verdict.ok, verdict.report()
    assert took < 30, f"{took:.1f} s"  # about 2 s on an idle core; the bound only catches a change of complexity
    history.add_read(Read(3, 500_010.0, 500_011.0, True, 500_001, 500_001, 0, []))
    assert check(history, log).counts.keys() == {Kind.STALE_READ}


def test_history_survives_a_file():
    """What is dumped is what is loaded, and the verdict is the same."""
    history = history_of(A0, B1, ("c", 2, inf, -1), ("d", 1, 2, None), reads=[exact(3.5, 4, ["a"])])
    file = io.StringIO()
    history.dump(file)
    again = History.load(file.getvalue().splitlines())
    assert check(again, ["a", "b"]).violations == check(history, ["a", "b"]).violations
    assert (again.values, again.calls, again.rets, again.reads) == (
        history.values,
        history.calls,
        history.rets,
        history.reads,
    )


@pytest.mark.parametrize("line", ["", "[]", '["x"]', '["a", 1]', '{"a": 1}', '["r", 1, 2]', "nonsense"])
def test_a_damaged_history_file_is_refused(line):
    """The error names the line."""
    with pytest.raises(ValueError, match="line 1 of the history"):
        History.load([line])
