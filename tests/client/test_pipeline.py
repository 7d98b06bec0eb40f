"""The append pipeline on a scripted group: order, batching, exactly once, outcomes, deadlines, cancelling, closing."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from dledger.errors import (
    DiskFullError,
    EntryTooLargeError,
    LeaderNotReadyError,
    Outcome,
    PendingFullError,
    QuorumTimeoutError,
    ResponseCode,
    SequenceForgottenError,
    SessionExpiredError,
    StoppedError,
    UnavailableError,
    UnexpectedArgumentError,
)
from tests.client.conftest import settled
from tests.client.group import (
    APPEND_AND_BREAK,
    BREAK,
    DROP_ANSWER,
    DROP_REQUEST,
    HOLD,
    OK,
    ChaosScript,
    FakeGroup,
    Sequence,
    append_then,
    refuse,
)

pytestmark = pytest.mark.asyncio


@pytest.fixture
def long_pauses(monkeypatch):
    """One send and one refusal, then a pause beyond every deadline here: at a deadline nothing is on the wire."""
    monkeypatch.setattr("dledger.client.pipeline.RETRY_MIN_S", 3.0)
    monkeypatch.setattr("dledger.client.pipeline.RETRY_MAX_S", 3.0)


async def outcomes(futures):
    return await asyncio.gather(*futures, return_exceptions=True)


def numbered(count, prefix=b"e"):
    return [prefix + b"%d" % number for number in range(count)]


def positions(group):
    return {body: index for index, (_, _, _, body) in enumerate(group.log)}


async def test_one_append_returns_its_place(bench):
    one = bench()
    result = await one.submit(b"hello")
    assert (result.index, result.term) == (1, 1)  # 0 is the session's entry
    assert one.group.log[1][3] == b"hello"


async def test_appends_of_one_turn_travel_in_one_batch_and_keep_their_order(bench):
    one = bench()
    results = await asyncio.gather(*[one.submit(body) for body in numbered(100)])
    assert [result.index for result in results] == list(range(1, 101))
    assert one.group.bodies() == numbered(100)
    assert len(one.group.batches) == 1


async def test_an_open_batch_grows_while_the_wire_is_full(bench):
    one = bench(max_inflight_batches=2)
    one.group.script = lambda node, batch: HOLD
    futures = []
    for body in numbered(10):
        futures.append(one.submit(body))
        await settled(lambda: len(one.group.batches) >= min(len(futures), 2))
    assert [len(batch.bodies) for _, batch in one.group.batches] == [1, 1]
    one.transport.release(1)
    await settled(lambda: len(one.group.batches) == 3)
    assert [len(batch.bodies) for _, batch in one.group.batches] == [1, 1, 8]
    one.group.script = None
    one.transport.release()
    assert [result.index for result in await asyncio.gather(*futures)] == list(range(1, 11))


async def test_full_batches_leave_although_smaller_ones_would_wait(bench):
    one = bench(max_inflight_batches=1, batch_entries=5, max_wire_batches=3)
    one.group.script = lambda node, batch: HOLD
    futures = [one.submit(body) for body in numbered(22)]
    await settled(lambda: len(one.group.batches) == 3)
    assert [len(batch.bodies) for _, batch in one.group.batches] == [5, 5, 5]
    one.group.script = None
    one.transport.release()
    await asyncio.gather(*futures)
    assert one.group.bodies() == numbered(22)


async def test_batches_respect_the_groups_limits_also_for_what_was_queued_before_they_were_known(bench):
    group = FakeGroup(max_entry_bytes=1000, max_batch_bytes=3000, max_batch_entries=7)
    one = bench(group)
    singles = [one.submit(b"s%d" % number) for number in range(20)]
    large = one.submit(bytes(2000))
    many = one.submit_many([b"m%d" % number for number in range(30)] + [bytes(900)] * 6)
    spoiled = one.submit_many([b"x", bytes(1001)])
    await asyncio.gather(*singles)
    with pytest.raises(EntryTooLargeError) as caught:
        await large
    assert caught.value.outcome is Outcome.DEFINITE
    with pytest.raises(EntryTooLargeError):
        await spoiled
    assert len((await many).indexes()) == 36
    assert all(len(batch.bodies) <= 7 for _, batch in group.batches)
    assert all(sum(map(len, batch.bodies)) + 48 * len(batch.bodies) <= 3000 for _, batch in group.batches)
    assert group.bodies() == [b"s%d" % n for n in range(20)] + [b"m%d" % n for n in range(30)] + [bytes(900)] * 6
    with pytest.raises(EntryTooLargeError):
        one.submit(bytes(1001))
    with pytest.raises(EntryTooLargeError):
        one.submit_many([b"a", bytes(1001)])
    assert one.queue.pending_count == 0


async def test_many_are_split_kept_in_order_and_merged_into_runs(bench):
    one = bench(batch_entries=10)
    result = await one.submit_many(numbered(95))
    assert result.indexes() == list(range(1, 96))
    assert [(run.first_index, run.count) for run in result.runs] == [(1, 95)]
    assert one.group.bodies() == numbered(95)


async def test_singles_and_many_interleave_in_the_order_of_the_calls(bench):
    one = bench(batch_entries=8)
    first = one.submit(b"a")
    many = one.submit_many(numbered(20))
    last = one.submit(b"z")
    await asyncio.gather(first, many, last)
    assert one.group.bodies() == [b"a", *numbered(20), b"z"]


async def test_an_empty_batch_and_what_is_not_bytes_are_refused_at_once(bench):
    one = bench()
    with pytest.raises(UnexpectedArgumentError) as caught:
        one.submit_many([])
    assert caught.value.code is ResponseCode.REQUEST_WITH_EMPTY_BODYS
    with pytest.raises(UnexpectedArgumentError):
        one.submit("text")
    with pytest.raises(UnexpectedArgumentError):
        one.submit_many([b"a", 5])
    await one.submit(memoryview(b"view"))
    await one.submit_many([bytearray(b"array")])
    assert one.group.bodies() == [b"view", b"array"]


@pytest.mark.parametrize("seed", range(4))
async def test_exactly_once_under_hundreds_of_forced_retries(bench, seed):
    """Every kind of failure at random, leaders changing: each body stands once, in order, where its caller was told."""
    one = bench(batch_entries=16, max_wire_batches=8)
    script = one.group.script = ChaosScript(seed, 0.4)
    told = {}

    async def one_by_one(task):
        for number in range(60):
            body = b"%d/%d" % (task, number)
            told[body] = (await one.submit(body, 30.0)).index
            if number % 20 == 7:
                one.group.elect(one.group.node_ids[(task + number) % 3])

    async def in_lists():
        for number in range(20):
            bodies = numbered(40, b"list%d/" % number)
            told.update(zip(bodies, (await one.submit_many(bodies, 30.0)).indexes(), strict=True))

    await asyncio.gather(in_lists(), *[one_by_one(task) for task in range(20)])
    assert script.forced > 100
    assert len(one.group.bodies()) == len(set(one.group.bodies())) == len(told) == 2000
    assert told == {body: positions(one.group)[body] for body in told}
    for task in range(20):
        places = [told[b"%d/%d" % (task, number)] for number in range(60)]
        assert places == sorted(places)
    assert one.pipeline.session_count == 1


async def test_a_retry_of_a_batch_that_was_appended_returns_the_original_indexes(bench):
    one = bench()
    one.group.script = Sequence(append_then(ResponseCode.TERM_CHANGED))
    result = await one.submit(b"once")
    assert (result.index, one.group.bodies(), len(one.group.batches)) == (1, [b"once"], 2)


async def test_a_batch_that_a_dead_leader_had_begun_is_completed_in_two_runs(bench):
    """The old leader appended a prefix; the retry completes it in a later term, behind another entry."""
    one = bench()

    def script(node, batch):
        if len(one.group.batches) > 1:
            return OK
        prefix = batch._replace(bodies=batch.bodies[:4])
        one.group.append(node, prefix)
        one.group.elect("n1")
        one.group.append("n1", batch._replace(session_id=0, bodies=(b"other",)))
        return BREAK

    one.group.script = script
    result = await one.submit_many(numbered(10))
    assert [(run.first_index, run.count, run.term) for run in result.runs] == [(1, 4, 1), (6, 6, 2)]
    assert one.group.bodies() == [*numbered(4), b"other", *numbered(10)[4:]]


async def test_after_a_refusal_all_later_batches_follow_in_order(bench):
    """One batch refused for a full queue makes gaps of those behind it: all are sent again, none twice, order kept."""
    one = bench(batch_entries=4, max_wire_batches=8)
    one.group.script = Sequence(OK, refuse(ResponseCode.LEADER_PENDING_FULL))
    await asyncio.gather(*[one.submit(body) for body in numbered(40)])
    assert one.group.bodies() == numbered(40)
    assert len(one.transport.streams) == 1  # the stream is kept


async def test_answers_may_come_in_any_order(bench):
    one = bench(batch_entries=3, max_wire_batches=8, max_inflight_batches=4)
    one.group.script = lambda node, batch: HOLD
    futures = [one.submit(body) for body in numbered(12)]
    await settled(lambda: len(one.group.batches) == 4)
    for stream in one.transport.streams:
        stream.held.reverse()
    one.transport.release()
    assert [result.index for result in await asyncio.gather(*futures)] == list(range(1, 13))


async def test_a_named_leader_is_followed_at_once_without_asking_around(bench):
    one = bench()
    await one.submit(b"a")
    asked = one.group.metadata_count
    one.group.elect("n2")
    await one.submit(b"b")
    assert one.group.metadata_count == asked
    assert one.transport.streams[-1].address == "n2"
    assert one.group.bodies() == [b"a", b"b"]


async def test_a_dead_leader_is_replaced_as_soon_as_another_is_elected(bench):
    """The client adds little to the group's own fail-over: less than 20 ms, taken over several."""
    loop = asyncio.get_running_loop()
    waits = []
    for _ in range(5):
        one = bench()
        await one.submit(b"before")
        one.transport.kill("n0")
        one.group.elect(None)
        futures = [one.submit(body) for body in numbered(10)]
        await asyncio.sleep(0.05)  # the group elects; the client keeps asking meanwhile
        one.group.elect("n1")
        began = loop.time()
        await asyncio.gather(*futures)
        waits.append(loop.time() - began)
        assert one.group.bodies() == [b"before", *numbered(10)]
    assert sorted(waits)[2] < 0.04


async def test_a_hung_leader_is_left_when_another_leads_a_later_term(bench):
    one = bench(stall_s=0.05)
    await one.submit(b"a")
    one.transport.hung.add("n0")
    future = one.submit(b"b")
    await asyncio.sleep(0.1)
    assert not future.done()
    one.group.elect("n1")
    await future
    assert one.group.bodies() == [b"a", b"b"]
    assert one.transport.streams[-1].address == "n1"


async def test_a_slow_leader_is_not_left_while_nobody_else_leads(bench):
    one = bench(stall_s=0.02)
    one.group.script = lambda node, batch: HOLD
    future = one.submit(b"a")
    await settled(lambda: one.group.metadata_count > 6)
    one.transport.release()
    await future
    assert len(one.transport.streams) == 1


async def test_nobody_reachable_is_a_definite_failure_at_the_deadline(bench):
    one = bench()
    one.transport.down.update(one.group.node_ids)
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(UnavailableError) as caught:
        await one.submit(b"a", 0.2)
    assert 0.19 <= loop.time() - began < 1.0
    assert (caught.value.outcome, caught.value.code) == (Outcome.DEFINITE, ResponseCode.NETWORK_ERROR)
    assert "connection refused" in caught.value.message


async def test_no_leader_is_told_apart_from_nobody_there(bench):
    one = bench(FakeGroup(leader=None))
    with pytest.raises(UnavailableError) as caught:
        await one.submit(b"a", 0.1)
    assert (caught.value.outcome, caught.value.code) == (Outcome.DEFINITE, ResponseCode.NOT_LEADER)
    one.group.elect("n1")
    await one.submit(b"b")
    assert one.group.bodies() == [b"b"]


async def test_a_batch_without_answer_fails_unknown_at_the_deadline(bench):
    one = bench()
    one.group.script = Sequence(DROP_ANSWER)
    with pytest.raises(QuorumTimeoutError) as caught:
        await one.submit(b"a", 0.1)
    assert caught.value.outcome is Outcome.UNKNOWN


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (ResponseCode.LEADER_PENDING_FULL, PendingFullError),
        (ResponseCode.LEADER_NOT_READY, LeaderNotReadyError),
    ],
)
async def test_a_batch_that_was_always_refused_fails_definite_with_the_reason(bench, long_pauses, code, kind):
    one = bench()
    one.group.script = lambda node, batch: refuse(code)
    with pytest.raises(kind) as caught:
        await one.submit(b"a", 0.15)
    assert caught.value.outcome is Outcome.DEFINITE
    one.group.script = None
    await one.submit(b"b")
    assert one.group.bodies() == [b"b"]  # its number was given back: no gap, no second session
    assert one.pipeline.session_count == 1


async def test_a_refusal_after_an_unknown_send_does_not_make_it_definite(bench):
    one = bench()
    one.group.script = lambda node, batch: (
        append_then(ResponseCode.TERM_CHANGED) if len(one.group.batches) == 1 else refuse(503)
    )
    with pytest.raises(PendingFullError) as caught:
        await one.submit(b"a", 0.15)
    assert caught.value.outcome is Outcome.UNKNOWN
    assert one.group.bodies() == [b"a"]


async def test_an_orphan_is_sent_again_while_a_later_entry_needs_it(bench):
    """Its caller has its error, but its number is taken: without it the log would not accept the next one."""
    one = bench(max_inflight_batches=2)
    one.group.script = lambda node, batch: DROP_REQUEST
    doomed = one.submit(b"doomed", 0.1)
    await settled(lambda: len(one.group.batches) == 1)
    later = one.submit(b"later", 5.0)
    with pytest.raises(QuorumTimeoutError):
        await doomed
    one.group.script = None
    one.transport.streams[0].break_soon("reset")
    await later
    assert one.group.bodies() == [b"doomed", b"later"]
    assert one.pipeline.session_count == 1


async def test_a_session_of_orphans_is_abandoned_and_nothing_of_it_is_sent_again(bench):
    one = bench()
    one.group.script = lambda node, batch: DROP_REQUEST
    with pytest.raises(QuorumTimeoutError):
        await one.submit(b"doomed", 0.05)
    one.transport.kill("n0")
    one.group.elect("n1")
    one.group.script = None
    await settled(lambda: one.queue.pending_count == 0)
    await one.submit(b"next")
    assert one.group.bodies() == [b"next"]
    assert one.pipeline.session_count == 2


async def test_during_an_outage_the_window_does_not_fill_with_the_dead(bench):
    one = bench(max_pending_count=10)
    await one.submit(b"a")
    for node in one.group.node_ids:
        one.transport.kill(node)
    for _ in range(5):
        results = await outcomes([one.submit(body, 0.03) for body in numbered(10)])
        assert all(isinstance(result, UnavailableError) for result in results)
    assert one.queue.pending_count == 0
    one.transport.down.clear()
    await one.submit(b"b")
    assert one.group.bodies() == [b"a", b"b"]


async def test_a_list_that_stands_in_part_fails_unknown(bench):
    one = bench(batch_entries=5, max_inflight_batches=1, max_wire_batches=1)
    one.group.script = lambda node, batch: OK if len(one.group.batches) == 1 else refuse(503)
    with pytest.raises(PendingFullError) as caught:
        await one.submit_many(numbered(20), 0.15)
    assert caught.value.outcome is Outcome.UNKNOWN
    assert one.group.bodies() == numbered(5)


async def test_a_list_fails_unknown_if_another_part_of_it_is_under_way(bench):
    """The refused part is surely not in the log, but the call is about all of them."""
    one = bench(batch_entries=5)
    one.group.script = Sequence(HOLD, refuse(ResponseCode.UNEXPECTED_ARGUMENT))
    with pytest.raises(UnexpectedArgumentError) as caught:
        await one.submit_many(numbered(10))
    assert caught.value.outcome is Outcome.UNKNOWN
    assert one.group.bodies() == numbered(5)
    one.transport.release()


async def test_a_list_that_was_refused_as_a_whole_fails_definite(bench, long_pauses):
    one = bench(batch_entries=5)
    one.group.script = lambda node, batch: refuse(503)
    with pytest.raises(PendingFullError) as caught:
        await one.submit_many(numbered(20), 0.1)
    assert caught.value.outcome is Outcome.DEFINITE
    assert one.group.bodies() == []


async def test_bytes_that_will_never_be_taken_fail_alone(bench):
    one = bench(batch_entries=2, max_wire_batches=4)
    one.group.script = lambda node, batch: refuse(ResponseCode.UNEXPECTED_ARGUMENT) if b"bad" in batch.bodies else OK
    futures = [one.submit(body) for body in (b"a", b"b", b"bad", b"c", b"d", b"e")]
    results = await outcomes(futures)
    assert [type(result) for result in results[2:4]] == [UnexpectedArgumentError] * 2  # one batch, one fate
    assert results[2].outcome is Outcome.DEFINITE
    assert one.group.bodies() == [b"a", b"b", b"d", b"e"]
    assert one.pipeline.session_count == 1


async def test_an_evicted_session_fails_the_unclear_and_moves_the_rest(bench):
    one = bench(batch_entries=1, max_wire_batches=1)
    await one.submit(b"a")

    def script(node, batch):
        if len(one.group.batches) > 2:
            return OK
        one.group.append(node, batch)
        one.group.evict()
        return BREAK

    one.group.script = script
    unclear, unsent = one.submit(b"unclear"), one.submit(b"unsent")
    with pytest.raises(SessionExpiredError) as caught:
        await unclear
    assert caught.value.outcome is Outcome.UNKNOWN
    await unsent
    assert one.group.bodies() == [b"a", b"unclear", b"unsent"]
    assert one.pipeline.session_count == 2


async def test_an_idle_session_that_was_evicted_is_replaced_silently(bench):
    one = bench()
    await one.submit(b"a")
    one.group.evict()
    results = await asyncio.gather(*[one.submit(body) for body in numbered(10)])
    assert [result.index for result in results] == list(range(3, 13))
    assert one.pipeline.session_count == 2


async def test_a_forgotten_sequence_fails_unknown_and_the_rest_goes_on(bench):
    one = bench()
    one.group.script = Sequence(append_then(ResponseCode.SEQUENCE_FORGOTTEN))
    with pytest.raises(SequenceForgottenError) as caught:
        await one.submit(b"a")
    assert caught.value.outcome is Outcome.UNKNOWN
    await one.submit(b"b")
    assert one.group.bodies() == [b"a", b"b"]


async def test_without_session_an_unclear_outcome_is_reported_and_never_sent_again(bench):
    one = bench(session=False)
    one.group.script = Sequence(APPEND_AND_BREAK, append_then(ResponseCode.TERM_CHANGED), refuse(503))
    for body in (b"a", b"b"):
        with pytest.raises((UnavailableError, Exception)) as caught:
            await one.submit(body)
        assert caught.value.outcome is Outcome.UNKNOWN
    await one.submit(b"c")  # a refusal is sent again
    assert one.group.bodies() == [b"a", b"b", b"c"]
    assert one.group.sessions == {}


@pytest.mark.parametrize("seed", range(4))
async def test_without_session_nothing_is_doubled_and_no_definite_failure_stands(bench, seed):
    one = bench(session=False, batch_entries=8)
    one.group.script = ChaosScript(seed, 0.4)
    bodies = numbered(300)
    results = []
    for at in range(0, 300, 30):
        results += await outcomes([one.submit(body, 2.0) for body in bodies[at : at + 30]])
    stands = one.group.bodies()
    assert len(stands) == len(set(stands))
    for body, result in zip(bodies, results, strict=True):
        if not isinstance(result, Exception):
            assert one.group.log[result.index][3] == body
        elif result.outcome is Outcome.DEFINITE:
            assert body not in stands


@pytest.mark.parametrize("seed", range(6))
async def test_no_definite_failure_ever_stands_and_no_success_is_lost(bench, seed):
    """Deadlines that strike in the middle of everything: whatever was said of an entry is true at the end."""
    one = bench(batch_entries=8, max_wire_batches=4, stall_s=0.02)
    script = one.group.script = ChaosScript(seed, 0.7)
    bodies = numbered(400)
    results = []
    for at in range(0, 400, 40):
        chunk = bodies[at : at + 40]
        results += await outcomes([one.submit(body, 0.002 * (1 + number % 20)) for number, body in enumerate(chunk)])
    one.group.script = None
    await one.submit(b"last")
    stands = one.group.bodies()
    assert len(stands) == len(set(stands))
    kinds = set()
    for body, result in zip(bodies, results, strict=True):
        if not isinstance(result, Exception):
            assert one.group.log[result.index][3] == body
        else:
            kinds.add(result.outcome)
            assert result.outcome is Outcome.UNKNOWN or body not in stands
    assert script.forced > 5
    assert kinds  # some deadlines struck


async def test_cancelled_before_it_left_an_entry_is_not_appended(bench):
    one = bench(FakeGroup(leader=None))
    cancelled = [asyncio.ensure_future(_await(one.submit(body))) for body in numbered(5, b"gone")]
    kept = one.submit(b"kept")
    await asyncio.sleep(0)
    for task in cancelled:
        task.cancel()
    results = await outcomes(cancelled)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)
    one.group.elect("n0")
    await kept
    assert one.group.bodies() == [b"kept"]


async def test_cancelled_after_it_left_an_entry_may_commit_and_nothing_leaks(bench):
    one = bench()
    one.group.script = lambda node, batch: HOLD
    future = one.submit(b"gone")
    await settled(lambda: len(one.group.batches) == 1)
    future.cancel()
    one.transport.release()
    await settled(lambda: one.queue.pending_count == 0)
    one.group.script = None
    assert (await one.submit(b"next")).index == 2
    assert one.group.bodies() == [b"gone", b"next"]


async def _await(future):
    return await future


async def test_a_full_window_makes_appends_wait_in_order_and_nowait_refuse(bench):
    one = bench(max_pending_count=4, batch_entries=2)
    one.group.script = lambda node, batch: HOLD
    futures = [one.submit(body) for body in numbered(10)]
    await settled(lambda: len(one.group.batches) == 2)
    assert one.queue.pending_count == 4
    with pytest.raises(PendingFullError) as caught:
        one.queue.submit_nowait(b"no", 5.0)
    assert caught.value.outcome is Outcome.DEFINITE
    one.group.script = None
    one.transport.release()
    await asyncio.gather(*futures)
    assert one.group.bodies() == numbered(10)


async def test_the_window_counts_bytes_and_takes_one_large_entry_when_empty(bench):
    one = bench(max_pending_bytes=1000)
    one.group.script = lambda node, batch: HOLD
    large = one.submit(bytes(5000))
    small = one.submit(b"small")
    await settled(lambda: len(one.group.batches) == 1)
    assert one.queue.pending_count == 1
    one.group.script = None
    one.transport.release()
    await asyncio.gather(large, small)
    assert one.group.bodies() == [bytes(5000), b"small"]


async def test_waiting_for_the_window_has_the_same_deadline_and_may_be_cancelled(bench):
    one = bench(max_pending_count=1)
    one.group.script = Sequence(HOLD)
    first = one.submit(b"first")
    late, gone, kept = one.submit(b"late", 0.05), one.submit(b"gone"), one.submit(b"kept")
    with pytest.raises(QuorumTimeoutError) as caught:
        await late
    assert caught.value.outcome is Outcome.DEFINITE
    gone.cancel()
    one.transport.release()
    await asyncio.gather(first, kept)
    assert one.group.bodies() == [b"first", b"kept"]


async def test_close_resolves_everything_with_its_outcome(bench):
    one = bench(max_pending_count=3, batch_entries=1, max_wire_batches=1)
    one.group.script = lambda node, batch: DROP_ANSWER
    futures = [one.submit(body) for body in numbered(6)]
    many = one.submit_many(numbered(3))
    await settled(lambda: len(one.group.batches) == 1)
    await one.pipeline.close()
    results = await outcomes([*futures, many])
    assert all(isinstance(result, StoppedError) for result in results)
    assert [result.outcome for result in results] == [Outcome.UNKNOWN] + [Outcome.DEFINITE] * 6
    await one.pipeline.close()
    with pytest.raises(StoppedError):
        one.submit(b"late")
    with pytest.raises(StoppedError):
        one.submit_many([b"late"])


async def test_close_without_session_resolves_everything(bench):
    one = bench(session=False, batch_entries=1, max_inflight_batches=4)
    one.group.script = lambda node, batch: DROP_ANSWER
    futures = [one.submit(body) for body in numbered(3)]
    await settled(lambda: len(one.group.batches) == 3)
    await one.pipeline.close()
    assert {result.outcome for result in await outcomes(futures)} == {Outcome.UNKNOWN}


async def test_close_while_no_node_can_be_reached(bench):
    one = bench()
    one.transport.hung.update(one.group.node_ids)
    future = one.submit(b"a")
    await asyncio.sleep(0.01)
    await one.pipeline.close()
    with pytest.raises(StoppedError):
        await future


async def test_flush_waits_for_what_was_begun_before_and_no_longer(bench):
    one = bench(max_pending_count=2)
    one.group.script = lambda node, batch: HOLD
    futures = [one.submit(body) for body in numbered(4)]
    await settled(lambda: len(one.group.batches) == 1)
    flushed = asyncio.ensure_future(one.pipeline.flush())
    await asyncio.sleep(0)
    late = one.submit(b"late")
    one.transport.release()
    await settled(lambda: len(one.group.batches) == 2)
    assert not flushed.done()
    one.group.script = None
    one.transport.release()
    await flushed
    assert all(future.done() for future in futures)
    await late


async def test_bodies_and_waiters_are_freed_when_they_are_resolved(bench):
    one = bench()
    future = one.submit(b"x")
    many = one.submit_many([b"y"] * 100)
    references = [weakref.ref(future), weakref.ref(many)]
    await asyncio.gather(future, many)
    del future, many
    await one.submit(b"z")
    gc.collect()
    assert [reference() for reference in references] == [None, None]
    assert list(one.pipeline._held) == []
    assert one.queue.batches() == []


async def test_a_defect_in_the_loop_fails_the_callers_instead_of_hanging_them(bench):
    one = bench()
    seen = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: seen.append(context["message"]))

    async def broken(address, timeout):
        raise ValueError("defect")

    one.transport.metadata = broken
    with pytest.raises(Exception, match="defect") as caught:
        await one.submit(b"a")
    assert caught.value.outcome is Outcome.DEFINITE
    assert "defect" in seen[0]
    asyncio.get_running_loop().set_exception_handler(None)


async def test_an_answer_that_does_not_fit_its_batch_is_not_believed(bench):
    one = bench()
    real = one.group.append
    lies = []

    def lying(node, batch):
        answer = real(node, batch)
        if not lies:
            lies.append(1)
            return answer._replace(runs=())
        return answer

    one.group.append = lying
    assert (await one.submit(b"a")).index == 1
    assert one.group.bodies() == [b"a"]
    assert len(one.transport.streams) == 2


async def test_the_same_seed_gives_the_same_conversation(bench):
    """No randomness but the one handed in."""

    async def talk():
        one = bench()
        one.group.script = Sequence(refuse(503), BREAK)
        await asyncio.gather(*[one.submit(body) for body in numbered(20)])
        return [(node, batch) for node, batch in one.group.batches], sorted(one.group.clients)

    assert await talk() == await talk()


async def test_a_leader_that_gave_up_because_its_disk_is_full_is_the_reason_at_the_deadline(bench):
    """Told DISK_FULL, then nobody leads: "no leader" would hide what the operator has to do."""
    one = bench()

    def full(node, _batch):
        if node != one.group.leader:
            return OK
        one.group.elect(None)  # it gives up, and nobody else has room either
        return refuse(ResponseCode.DISK_FULL)

    one.group.script = full
    with pytest.raises(DiskFullError, match="no other node leads") as caught:
        await one.submit(b"first", timeout=0.4)
    assert (caught.value.outcome, caught.value.retriable) == (Outcome.DEFINITE, True)
    assert caught.value.code == ResponseCode.DISK_FULL


async def test_a_full_disk_is_no_reason_any_more_once_another_node_has_led(bench):
    """The next leader takes appends; when that one is lost too, the deadline says that there is no leader."""
    one = bench()

    def full(node, _batch):
        if node != "n0" or one.group.leader != "n0":
            return OK
        one.group.elect("n1")
        return refuse(ResponseCode.DISK_FULL)

    one.group.script = full
    assert (await one.submit(b"taken", timeout=5)).index == 1
    one.group.script = None
    one.group.elect(None)
    with pytest.raises(UnavailableError, match="no leader"):
        await one.submit(b"nobody", timeout=0.4)
