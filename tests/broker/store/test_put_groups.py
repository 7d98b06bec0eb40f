"""Puts gathered into groups: alone at once, together while one is on its way, in order, answered one by one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import accumulate

import pytest

from broker_adapter.message import Message
from broker_adapter.store.api import PutMessageStatus, PutResult
from broker_adapter.store.put_groups import ENTRY_HEADER_BYTES, GATHER_S, HOLD_S, Put, PutGroups
from dledger import AppendHook, BatchResult, IndexRun
from dledger.errors import DLedgerError, NotLeaderError, QuorumTimeoutError, TermChangedError
from tests.broker.harness import eventually

pytestmark = pytest.mark.asyncio

HOST_HEX = "7F00000100002A9F"
BODY_BYTES = 100


class Log:
    """A log that is told when its appends are through. Places bodies one after the other, as they come."""

    def __init__(self) -> None:
        self.groups: list[list[bytes]] = []
        self._done: list[Callable[[BatchResult | None, Exception | None], None]] = []
        self.pos = 0

    def append(
        self,
        bodies: Sequence[bytes],
        done: Callable[[BatchResult | None, Exception | None], None],
        hook: AppendHook,
    ) -> None:
        places = list(accumulate((ENTRY_HEADER_BYTES + len(body) for body in bodies), initial=self.pos))
        self.pos = places.pop()
        self.groups.append(list(hook(places, bodies)))
        self._done.append(done)

    def finish(self, error: DLedgerError | None = None) -> None:
        """Answer the oldest append."""
        done = self._done.pop(0)
        done(None if error else BatchResult((IndexRun(0, 1, 1),)), error)


class Setup:
    def __init__(self, max_waiting_bytes: int = 1 << 20) -> None:
        self.log = Log()
        self.refusal: PutResult | None = None
        self.offsets: dict[tuple[bytes, int], int] = {}
        self.groups = PutGroups(
            self.log.append,
            refuse=lambda: self.refusal,
            offsets=lambda: self.offsets,
            host=bytes.fromhex(HOST_HEX),
            max_waiting_bytes=max_waiting_bytes,
        )

    def put(self, queue_id: int = 0, count: int = 1, size: int = BODY_BYTES) -> asyncio.Future[PutResult]:
        future: asyncio.Future[PutResult] = asyncio.get_running_loop().create_future()
        message = Message("T", b"", queue_id)
        self.groups.add(Put(future.set_result, message, [bytes(size)] * count, size * count))
        return future


def queue_offsets(bodies: list[bytes]) -> list[int]:
    return [int.from_bytes(body[20:28], "big") for body in bodies]


async def test_one_put_waits_for_nobody() -> None:
    setup = Setup()
    first = setup.put()
    await asyncio.sleep(0)
    assert len(setup.log.groups) == 1
    setup.log.finish()
    result = await first
    assert (result.status, result.queue_offset, result.physical_offset) == (PutMessageStatus.PUT_OK, 0, 48)
    assert result.message_id == HOST_HEX + f"{48:016X}"
    second = setup.put()
    await asyncio.sleep(0)
    setup.log.finish()
    assert (await second).queue_offset == 1


async def test_what_comes_meanwhile_leaves_together_in_order() -> None:
    setup = Setup()
    first = setup.put()
    await asyncio.sleep(0)
    others = [setup.put(number % 2, count=1 + number % 3) for number in range(9)]
    await asyncio.sleep(0)
    assert len(setup.log.groups) == 1
    setup.log.finish()
    await first
    await asyncio.sleep(0)
    assert [len(group) for group in setup.log.groups] == [1, 18]
    setup.log.finish()
    results = [await other for other in others]
    assert [r.queue_offset for r in results if r.queue_id == 0] == [1, 2, 5, 7, 8]
    assert [r.queue_offset for r in results if r.queue_id == 1] == [0, 2, 3, 6]
    assert [r.count for r in results] == [1 + number % 3 for number in range(9)]
    places = [int(text, 16) for r in results for text in [part[-16:] for part in r.message_id.split(",")]]
    assert places == sorted(places)
    stored = [int.from_bytes(body[28:36], "big") for body in setup.log.groups[1]]
    assert stored == places
    assert setup.offsets == {(b"T", 0): 11, (b"T", 1): 8}


async def in_company(setup: Setup, count: int) -> None:
    """Have ``count`` producers put once, and be answered."""
    puts = [setup.put() for _ in range(count)]
    await asyncio.sleep(0)
    setup.log.finish()
    await asyncio.gather(*puts)
    setup.log.groups.clear()


async def test_a_group_waits_for_most_of_those_who_were_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = Setup()
    await in_company(setup, 12)
    monkeypatch.setattr("broker_adapter.store.put_groups.HOLD_S", 60.0)
    early = [setup.put() for _ in range(8)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not setup.log.groups
    early.append(setup.put())
    await asyncio.sleep(0)
    assert [len(group) for group in setup.log.groups] == [9]
    setup.log.finish()
    await asyncio.gather(*early)


async def test_who_comes_alone_after_company_waits_for_a_moment_and_then_for_nobody() -> None:
    setup = Setup()
    await in_company(setup, 12)
    began = asyncio.get_running_loop().time()
    first = setup.put()
    await eventually(lambda: setup.log.groups)
    assert asyncio.get_running_loop().time() - began >= HOLD_S * 0.9
    setup.log.finish()
    await first
    setup.put()
    await asyncio.sleep(0)
    assert [len(group) for group in setup.log.groups] == [1, 1]


async def test_what_waits_for_company_can_be_sent_at_once() -> None:
    setup = Setup()
    await in_company(setup, 12)
    setup.put()
    setup.groups.hurry()
    assert [len(group) for group in setup.log.groups] == [1]
    setup.groups.hurry()
    assert len(setup.log.groups) == 1


async def test_a_few_producers_are_not_waited_for() -> None:
    setup = Setup()
    await in_company(setup, 7)
    setup.put()
    await asyncio.sleep(0)
    assert [len(group) for group in setup.log.groups] == [1]


async def test_enough_puts_follow_a_group_that_is_on_its_way_and_no_third() -> None:
    setup = Setup()
    await in_company(setup, 100)
    puts = []
    for count in (48, 48, 48):
        puts += [setup.put() for _ in range(count)]
        await asyncio.sleep(0)
    assert [len(group) for group in setup.log.groups] == [48, 48]
    setup.log.finish()
    await asyncio.sleep(0)
    assert [len(group) for group in setup.log.groups] == [48, 48, 48]
    setup.log.finish()
    setup.log.finish()
    assert [result.queue_offset for result in await asyncio.gather(*puts)] == list(range(100, 244))


async def test_a_group_has_a_limit_and_a_large_put_goes_alone() -> None:
    setup = Setup(max_waiting_bytes=1 << 30)
    futures = [setup.put(size=size) for size in (100, 3 << 20, 600_000, 600_000, 100)]
    await asyncio.sleep(0)
    assert [[len(body) for body in group] for group in setup.log.groups] == [
        [100],
        [3 << 20],
        [600_000],
        [600_000, 100],
    ]
    for _ in range(4):
        setup.log.finish()
    assert [(await future).queue_offset for future in futures] == [0, 1, 2, 3, 4]


async def test_a_log_that_hangs_does_not_hold_the_next_group_for_long() -> None:
    setup = Setup()
    first = setup.put()
    await asyncio.sleep(0)
    began = asyncio.get_running_loop().time()
    second = setup.put()
    await eventually(lambda: len(setup.log.groups) == 2)
    assert asyncio.get_running_loop().time() - began >= GATHER_S * 0.9
    setup.log.finish(QuorumTimeoutError("no majority"))
    setup.log.finish()
    timed_out = await first
    assert (timed_out.status, timed_out.maybe_stored) == (PutMessageStatus.OS_PAGECACHE_BUSY, True)
    assert timed_out.remark.startswith("[PC_SYNCHRONIZED]")
    assert (await second).status is PutMessageStatus.PUT_OK


async def test_a_role_that_ends_refuses_what_has_no_place_yet() -> None:
    setup = Setup()
    first = setup.put()
    await asyncio.sleep(0)
    second = setup.put()
    setup.refusal = PutResult(PutMessageStatus.SERVICE_NOT_AVAILABLE, remark="leadership has changed")
    setup.log.finish(TermChangedError("lost"))
    lost, refused = await first, await second
    assert (lost.status, lost.maybe_stored) == (PutMessageStatus.UNKNOWN_ERROR, True)
    assert (refused.status, refused.maybe_stored) == (PutMessageStatus.SERVICE_NOT_AVAILABLE, False)
    assert len(setup.log.groups) == 1
    assert setup.offsets == {(b"T", 0): 1}


async def test_a_refusal_of_the_log_is_definite_where_nothing_was_placed() -> None:
    setup = Setup()

    def refuse(
        _bodies: Sequence[bytes],
        done: Callable[[BatchResult | None, Exception | None], None],
        _hook: AppendHook,
    ) -> None:
        asyncio.get_running_loop().call_soon(done, None, NotLeaderError("n1 leads"))

    setup.groups._append = refuse
    result = await setup.put()
    assert (result.status, result.maybe_stored) == (PutMessageStatus.SERVICE_NOT_AVAILABLE, False)


async def test_too_much_waiting_is_back_pressure() -> None:
    setup = Setup(max_waiting_bytes=250)
    first = setup.put()
    await asyncio.sleep(0)
    waiting = [setup.put(), setup.put()]
    refused = await setup.put()
    assert (refused.status, refused.maybe_stored) == (PutMessageStatus.OS_PAGECACHE_BUSY, False)
    setup.log.finish()
    await first
    await asyncio.sleep(0)
    setup.log.finish()
    assert [(await one).status for one in waiting] == [PutMessageStatus.PUT_OK] * 2


async def test_the_end_answers_everybody() -> None:
    setup = Setup()
    first = setup.put()
    await asyncio.sleep(0)
    second = setup.put()
    setup.refusal = PutResult(PutMessageStatus.SERVICE_NOT_AVAILABLE, remark="the store is stopping")
    setup.groups.close()
    assert (await second).status is PutMessageStatus.SERVICE_NOT_AVAILABLE
    setup.log.finish()
    assert (await first).status is PutMessageStatus.PUT_OK
