"""When single calls begin a round: alone at once, in company after a moment at most, never more than two at a time."""

from __future__ import annotations

import asyncio
import itertools

import pytest
import pytest_asyncio

from dledger.errors import NotLeaderError, PendingFullError
from dledger.rpc import gather
from dledger.rpc.gather import GatheredAppends, GatheredReads, Rounds
from dledger.storage.entry import iter_entries
from dledger.types import AppendResult, ReadMode
from tests.rpc.fakes import FakeBackend, eventually

pytestmark = pytest.mark.asyncio


async def turns(count=5):
    """Let the loop turn."""
    for _ in range(count):
        await asyncio.sleep(0)


class Bench:
    """Rounds whose beginnings are noted; ``limit`` is what one takes."""

    def __init__(self, limit=1000):
        self.begun = []
        self.limit = limit
        self.rounds = Rounds(self._begin)

    def _begin(self, waiting):
        self.begun.append(waiting[: self.limit])
        return waiting[self.limit :]

    def join(self, *items):
        for item in items:
            self.rounds.join(item)


@pytest_asyncio.fixture
async def patient(monkeypatch):
    """A clock on which every round takes a minute, and that long the next may wait."""
    minutes = itertools.count(step=60)
    monkeypatch.setattr(gather, "MAX_HOLD_S", 3600)
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: next(minutes))


async def test_one_alone_begins_at_once():
    bench = Bench()
    for number in range(3):
        bench.join(number)
        assert bench.begun[number:] == [[number]]
        bench.rounds.ended(1)


async def test_who_comes_meanwhile_waits_until_all_have_come_again(patient):
    bench = Bench()
    bench.join("a", "b", "c")
    bench.rounds.ended(1)
    assert bench.begun == [["a"]]
    bench.join("a")
    assert bench.begun[1:] == [["b", "c", "a"]]
    bench.join("d")
    bench.rounds.ended(3)
    bench.join("a", "b")
    assert len(bench.begun) == 2
    bench.join("c")
    assert bench.begun[2:] == [["d", "a", "b", "c"]]


async def test_but_only_for_as_long_as_the_last_round_took():
    bench = Bench()
    bench.join("a", "b", "c")
    bench.rounds.ended(1)
    await eventually(lambda: bench.begun[1:] == [["b", "c"]])
    bench.rounds.ended(2)
    bench.join("d")
    await eventually(lambda: bench.begun[2:] == [["d"]])
    bench.rounds.ended(1)
    bench.join("e")
    assert bench.begun[3:] == [["e"]], "alone again: at once"


async def test_now_and_then_a_round_waits_for_callers_that_are_not_known_yet(patient, monkeypatch):
    monkeypatch.setattr(gather, "_PROBE_EVERY", 3)
    bench = Bench()
    bench.join("a", "b")
    bench.rounds.ended(1)
    bench.join("a")
    bench.rounds.ended(2)
    bench.join("a", "b")
    assert [len(begun) for begun in bench.begun] == [1, 2, 2]
    bench.rounds.ended(2)
    bench.join("a", "b", "c")
    assert len(bench.begun) == 3
    bench.join("d")
    bench.rounds.ended(4)
    bench.join(*"abcdefgh")
    assert [len(begun) for begun in bench.begun][3:] == [4, 8], "it found more, so the next one looks, too"
    bench.rounds.ended(8)
    bench.join(*"abcdefgh")
    assert len(bench.begun) == 5
    bench.rounds.hurry()
    bench.rounds.ended(8)
    bench.join(*"abcdefgh")
    assert [len(begun) for begun in bench.begun][5:] == [8, 8], "none came: no look for the next three"


async def test_one_caller_alone_is_never_made_to_wait_for_others(patient, monkeypatch):
    monkeypatch.setattr(gather, "_PROBE_EVERY", 3)
    bench = Bench()
    for number in range(20):
        bench.join(number)
        assert bench.begun[number:] == [[number]]
        bench.rounds.ended(1)


async def test_a_crowd_that_is_late_once_is_still_believed_in(patient):
    bench = Bench()
    bench.join(*range(40))
    bench.rounds.ended(1)
    bench.join("a")
    bench.rounds.ended(40)
    bench.join("a")
    bench.rounds.hurry()
    bench.rounds.ended(1)
    bench.join(*range(29))
    assert len(bench.begun) == 3, "three quarters of 40 are expected"
    bench.join("b")
    assert [len(begun) for begun in bench.begun] == [1, 40, 1, 30]


async def test_a_full_round_begins_beside_another_but_no_third(patient):
    bench = Bench()
    bench.join("a", *range(120))
    assert [len(begun) for begun in bench.begun] == [1, 48]
    bench.rounds.ended(1)
    assert [len(begun) for begun in bench.begun] == [1, 48, 72]


async def test_what_does_not_fit_goes_with_the_next(patient):
    bench = Bench(limit=2)
    bench.join("a", "b", "c", "d", "e")
    bench.rounds.ended(1)
    bench.join("f")
    assert bench.begun == [["a"], ["b", "c"]]
    bench.rounds.hurry()
    assert bench.begun[2:] == [["d", "e"]]
    bench.rounds.hurry()
    assert bench.begun[3:] == [["f"]]


async def test_appends_stand_in_the_order_of_the_calls_within_the_limits():
    backend = FakeBackend()
    backend.hold = True
    appends = GatheredAppends(backend)
    futures = [appends.append(bytes([number]) * 400) for number in range(20)]
    everything = asyncio.gather(*futures)
    while not everything.done():
        assert len(backend.held) <= 2
        backend.release()
        await eventually(lambda: backend.held or everything.done())
    assert [await future for future in futures] == [AppendResult(index, 3) for index in range(20)]
    assert [entry.body[:1] for part in backend.slices for entry in iter_entries(part.data)] == [
        bytes([number]) for number in range(20)
    ]
    sizes = [sum(map(len, bodies)) for name, bodies, *_ in backend.calls if name == "submit"]
    assert max(sizes) <= backend.max_batch_bytes
    assert len(sizes) < 10


async def test_a_refusal_is_everybodys_and_a_caller_that_left_disturbs_nobody():
    backend = FakeBackend()
    backend.hold = True
    appends = GatheredAppends(backend)
    futures = [appends.append(b"x") for _ in range(4)]
    backend.release()
    futures[2].cancel()
    backend.fail_with = PendingFullError("full")
    await eventually(lambda: backend.held)
    backend.release()
    assert futures[0].result() == AppendResult(0, 3)
    for future in (futures[1], futures[3]):
        with pytest.raises(PendingFullError):
            future.result()
    backend.fail_with = None
    backend.hold = False
    assert await appends.append(b"y") == AppendResult(1, 3)


async def test_a_mistake_of_ours_ends_its_round_too():
    backend = FakeBackend()
    works, backend.submit = backend.submit, None
    appends = GatheredAppends(backend)
    for _ in range(3):
        with pytest.raises(TypeError):
            await appends.append(b"x")
    backend.submit = works
    assert await appends.append(b"y") == AppendResult(0, 3)


async def test_a_read_index_is_asked_for_after_the_last_who_shares_it_came():
    backend = FakeBackend()
    asked = []
    answers = [asyncio.get_running_loop().create_future() for _ in range(2)]

    async def read_index(mode):
        asked.append(mode)
        return await answers[len(asked) - 1]

    backend.read_index = read_index
    reads = GatheredReads(backend)
    first = asyncio.ensure_future(reads.read_index(ReadMode.LINEARIZABLE))
    await turns()
    others = [asyncio.ensure_future(reads.read_index(ReadMode.LINEARIZABLE)) for _ in range(5)]
    await turns()
    assert len(asked) == 1
    answers[0].set_result(7)
    assert await first == 7
    await eventually(lambda: len(asked) == 2)
    others[0].cancel()
    answers[1].set_result(9)
    assert await asyncio.gather(*others[1:]) == [9] * 4


async def test_a_local_read_asks_nobody_and_an_error_is_told():
    backend = FakeBackend()
    backend.put(b"a")
    reads = GatheredReads(backend)
    assert await reads.read_index(ReadMode.LOCAL_COMMITTED) == 0
    backend.fail_with = NotLeaderError("not me")
    with pytest.raises(NotLeaderError):
        await reads.read_index(ReadMode.LINEARIZABLE)
    backend.fail_with = None
    assert await reads.read_index(ReadMode.LINEARIZABLE) == 0
