"""`LedgerClient` over real gRPC: fail-over, reads that resume, status, admin calls, closing."""

from __future__ import annotations

import asyncio
import gc
import warnings

import pytest

from dledger.client import DownNode, PipelineOptions, connect
from dledger.errors import (
    ConfigError,
    EntryTooLargeError,
    IndexOutOfRangeError,
    NotLeaderError,
    Outcome,
    StoppedError,
    UnavailableError,
    UnexpectedArgumentError,
    UnknownGroupError,
)
from dledger.raft.messages import EntryType
from dledger.types import NodeStatus, ReadMode
from tests.client.conftest import settled
from tests.client.group import APPEND_AND_BREAK, BREAK, DROP_ANSWER, ChaosScript, FakeGroup, GrpcNode, Sequence

pytestmark = pytest.mark.asyncio


def numbered(count):
    return [b"e%d" % number for number in range(count)]


async def collect(entries):
    return [entry async for entry in entries]


async def test_append_get_and_read(nodes, client):
    results = await asyncio.gather(*[client.append(body) for body in numbered(50)])
    assert [result.index for result in results] == list(range(1, 51))
    batch = await client.append_many(numbered(10))
    assert (batch.first_index, batch.last_index) == (51, 60)
    assert (await client.append_nowait(b"soon")).index == 61
    entry = await client.get(7)
    assert (entry.index, entry.body, entry.type, entry.pos) == (7, b"e6", EntryType.NORMAL, 7000)
    entries = await collect(client.read())
    assert [entry.body for entry in entries] == [*numbered(50), *numbered(10), b"soon"]
    assert [entry.index for entry in await collect(client.read(10, 20))] == list(range(10, 20))
    everything = await collect(client.read(all_types=True))
    assert [entry.type for entry in everything[:2]] == [EntryType.SESSION, EntryType.NORMAL]
    assert await client.commit_index() == 61
    assert await client.commit_index(ReadMode.LOCAL_COMMITTED) == 61


async def test_a_leader_that_dies_and_returns_on_its_port(nodes, client):
    group = nodes["n0"].group
    await client.append(b"a")
    await nodes["n0"].kill()
    group.elect("n1")
    assert (await client.append(b"b")).term == 2
    await nodes["n0"].start()
    await nodes["n1"].kill()
    await nodes["n2"].kill()
    group.elect("n0")
    assert (await client.append(b"c")).term == 3
    assert group.bodies() == [b"a", b"b", b"c"]


async def test_exactly_once_over_real_streams(nodes, client):
    group = nodes["n0"].group
    script = group.script = ChaosScript(3, 0.3)

    async def one_task(task):
        for number in range(25):
            await client.append(b"%d/%d" % (task, number))
            if number % 10 == task % 10:
                group.elect(group.node_ids[task % 3])

    await asyncio.gather(*[one_task(task) for task in range(12)])
    assert script.forced >= 5
    assert sorted(group.bodies()) == sorted(b"%d/%d" % (task, number) for task in range(12) for number in range(25))


async def test_one_reachable_node_is_enough_to_find_the_others(nodes):
    group = nodes["n0"].group
    group.elect("n2")
    async with connect([nodes["n1"].address], group="g") as client:
        await client.append(b"a")
        assert (await client.metadata()).members == group.addresses
        assert sorted(node.node_id for node in await client.status(timeout=20.0)) == ["n0", "n1", "n2"]


async def test_an_unknown_group_is_a_final_error_at_once(nodes):
    async with connect(dict(nodes["n0"].group.addresses), group="other") as client:
        for call in (client.append(b"a"), client.get(0), client.commit_index(), client.metadata()):
            with pytest.raises(UnknownGroupError) as caught:
                async with asyncio.timeout(20):
                    await call
            assert caught.value.outcome is Outcome.DEFINITE


async def test_reads_fall_back_to_other_nodes(nodes, client):
    await client.append_many(numbered(20))
    await nodes["n0"].kill()  # the leader; the model still calls it that, so that reads are served elsewhere
    assert (await client.get(5)).body == b"e4"
    assert len(await collect(client.read(1))) == 20
    assert await client.commit_index() == 20


async def test_a_read_resumes_without_gap_or_repeat(nodes, client):
    await client.append_many(numbered(200))
    for node in nodes.values():
        node.read_break_after = 30
    entries = await collect(client.read(1))
    assert [entry.index for entry in entries] == list(range(1, 201))
    assert sum(len(node.reads) for node in nodes.values()) >= 6


async def test_a_read_ends_where_the_log_ended_when_it_began_though_it_resumed_later(nodes, client):
    await client.append_many(numbered(40))
    nodes["n0"].read_break_after = 10
    entries = client.read(1)
    first = await anext(entries)
    await client.append_many(numbered(5))
    rest = await collect(entries)
    assert [first.index, *[entry.index for entry in rest]] == list(range(1, 41))


async def test_following_the_tail_goes_on_over_a_leader_change(nodes, client):
    await client.append(b"e0")
    seen = []

    async def follow():
        async for entry in client.read(follow=True):
            seen.append(entry.body)

    task = asyncio.ensure_future(follow())
    await settled(lambda: seen == [b"e0"])
    await client.append(b"e1")
    await settled(lambda: seen == [b"e0", b"e1"])
    group = nodes["n0"].group
    await nodes["n0"].kill()
    group.elect("n1")
    await client.append_many([b"e2", b"e3"])
    await settled(lambda: seen == numbered(4))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_following_up_to_a_stop_that_is_yet_to_come(nodes, client):
    task = asyncio.ensure_future(collect(client.read(0, 4, follow=True)))
    await asyncio.sleep(0.01)
    for body in numbered(5):
        await client.append(body)
    assert [entry.body for entry in await task] == numbered(3)  # index 0 is the session's entry


async def test_a_silent_node_is_left_by_a_reader(nodes, client, monkeypatch):
    monkeypatch.setattr("dledger.client.reader.SILENCE_S", 0.2)
    monkeypatch.setattr("dledger.client.reader.PROBE_TIMEOUT_S", 0.2)
    await client.append_many(numbered(3))
    nodes["n0"].hang = True
    assert len(await collect(client.read(1))) == 3
    follower = client.read(1, follow=True)
    assert (await anext(follower)).body == b"e0"
    await follower.aclose()


async def test_ranges_that_are_not_there(nodes, client):
    await client.append(b"a")
    with pytest.raises(IndexOutOfRangeError):
        await client.get(2)
    with pytest.raises(IndexOutOfRangeError):
        await collect(client.read(3))
    with pytest.raises(IndexOutOfRangeError):
        await collect(client.read(0, 5))
    with pytest.raises(IndexOutOfRangeError):
        await collect(client.read(-1))
    assert await collect(client.read(2)) == []
    assert await collect(client.read(1, 1)) == []


async def test_nobody_answers_a_read_within_the_timeout():
    client = connect("127.0.0.1:1,127.0.0.1:2", group="g", timeout=0.3)
    for call in (client.get(0), collect(client.read()), client.commit_index(), client.transfer_leadership("n1")):
        with pytest.raises(UnavailableError):
            async with asyncio.timeout(10):  # whose TimeoutError would be another
                await call
    await client.close()


async def test_a_linearizable_read_without_leader_fails_in_time(nodes, client):
    nodes["n0"].group.elect(None)
    with pytest.raises((NotLeaderError, UnavailableError)):  # the latter if the last attempt has no time to be answered
        async with asyncio.timeout(10):  # whose TimeoutError would be another
            await client.get(0, timeout=0.2)


async def test_status_lists_the_dead_with_the_reason_within_the_timeout(nodes, client):
    await nodes["n1"].kill()
    nodes["n2"].hang = True
    async with asyncio.timeout(20):
        found = await client.status(timeout=2.0)
    assert [node.node_id for node in found] == ["n0", "n1", "n2"]
    assert isinstance(found[0], NodeStatus)
    assert (found[0].role, found[0].leader_id) == ("leader", "n0")
    assert isinstance(found[1], DownNode)
    assert found[1].address == nodes["n1"].address
    assert "UNAVAILABLE" in found[1].reason
    assert "DEADLINE_EXCEEDED" in found[2].reason


async def test_status_of_a_node_of_another_group_is_down_with_the_reason(nodes):
    stranger = await GrpcNode(FakeGroup(name="other"), "n9").start()
    try:
        peers = {"n0": nodes["n0"].address, "n9": stranger.address}
        async with connect(peers, group="g") as client:
            found = await client.status(timeout=20.0)
        assert {node.node_id: node.reason for node in found if isinstance(node, DownNode)} == {"n9": "no group g"}
    finally:
        await stranger.kill()


async def test_transfer_asks_the_leader_once_and_step_down_too(nodes, client):
    assert await client.transfer_leadership("n2") == "n2"
    assert await client.transfer_leadership() == "n0"
    assert [node.transfers for node in nodes.values()] == [["n2"], [], [""]]
    await client.step_down()
    assert nodes["n0"].group.leader is None
    with pytest.raises(NotLeaderError):
        await client.transfer_leadership("n1", timeout=0.2)


async def test_transfer_finds_the_leader_past_dead_nodes(nodes):
    group = nodes["n0"].group
    group.elect("n2")
    await nodes["n0"].kill()
    async with connect(dict(group.addresses), group="g") as client:
        assert await client.transfer_leadership("n1") == "n1"


async def test_entries_over_the_limit(nodes, client):
    limit = nodes["n0"].group.max_entry_bytes
    assert (await client.append(bytes(limit))).index == 1
    for call in (client.append(bytes(limit + 1)), client.append_many([b"a", bytes(limit + 1)])):
        with pytest.raises(EntryTooLargeError) as caught:
            await call
        assert str(limit) in caught.value.message
    with pytest.raises(EntryTooLargeError):
        await client.append(bytes(9 * 1024 * 1024))


async def test_bad_arguments(nodes, client):
    with pytest.raises(UnexpectedArgumentError):
        await client.append_many([])
    with pytest.raises(UnexpectedArgumentError):
        await client.append("text")
    with pytest.raises(UnexpectedArgumentError):
        await client.append(b"a", timeout=0)
    for arguments in (
        {"peers": "nowhere"},
        {"peers": "h:1", "timeout": 0},
        {"peers": "h:1", "group": ""},
        {"peers": "h:1", "options": PipelineOptions(max_inflight_batches=0)},
    ):
        with pytest.raises(ConfigError):
            connect(**arguments)


async def test_close_ends_everything_and_twice_is_fine(nodes):
    group = nodes["n0"].group
    client = connect(dict(group.addresses), group="g", options=PipelineOptions(batch_entries=1, max_wire_batches=1))
    group.script = lambda node, batch: DROP_ANSWER
    appends = [asyncio.ensure_future(client.append(body)) for body in numbered(3)]
    await settled(lambda: len(group.batches) == 1)
    follower = client.read(follow=True, all_types=True)
    assert [(await anext(follower)).index, (await anext(follower)).index] == [0, 1]
    nodes["n1"].hang = nodes["n2"].hang = nodes["n0"].hang = True
    reading = asyncio.ensure_future(anext(follower))
    getting = asyncio.ensure_future(client.get(0))
    await asyncio.sleep(0.01)
    await client.close()
    await client.close()
    results = await asyncio.gather(*appends, getting, return_exceptions=True)
    assert [type(result) for result in results] == [StoppedError] * 4
    assert [result.outcome for result in results[:3]] == [Outcome.UNKNOWN, Outcome.DEFINITE, Outcome.DEFINITE]
    ended = await asyncio.gather(reading, return_exceptions=True)
    assert isinstance(ended[0], StoppedError | StopAsyncIteration | UnavailableError)
    for call in (client.append(b"a"), client.get(0), client.status()):
        with pytest.raises(StoppedError):
            await call
    assert [task for task in asyncio.all_tasks() if "/dledger/client/" in repr(task)] == []


async def test_leaving_the_context_waits_for_what_is_pending(nodes):
    group = nodes["n0"].group
    async with connect(dict(group.addresses), group="g") as client:
        futures = [client.append_nowait(body) for body in numbered(20)]
    assert all(future.done() and not future.exception() for future in futures)
    with pytest.raises(ZeroDivisionError):
        async with connect(dict(group.addresses), group="g") as client:
            group.script = lambda node, batch: DROP_ANSWER
            future = client.append_nowait(b"never")
            await asyncio.sleep(0.01)
            raise ZeroDivisionError
    assert isinstance(future.exception(), StoppedError)


async def test_a_client_that_was_never_closed_warns(nodes):
    client = connect(dict(nodes["n0"].group.addresses), group="g")
    await client.append(b"a")
    transport, pipeline = client._transport, client._pipeline
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del client
        gc.collect()
    told = [warning for warning in caught if "LedgerClient" in str(warning.message)]
    assert [warning.category for warning in told] == [ResourceWarning]
    await pipeline.close()
    await transport.close()


async def test_a_client_that_was_never_used_needs_neither_loop_nor_close():
    def construct():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            client = connect("n0-127.0.0.1:1;n1-127.0.0.1:2", group="g")
            assert repr(client) == "<LedgerClient g 127.0.0.1:1,127.0.0.1:2>"
            del client
            gc.collect()

    await asyncio.to_thread(construct)


async def test_garbage_from_the_node_is_an_unavailable_node(nodes, client, monkeypatch):
    await client.append(b"a")

    async def garbage(request, context):
        return b"\xff\xff\xff"

    await nodes["n0"].kill()
    monkeypatch.setattr(nodes["n0"], "_get", garbage)
    monkeypatch.setattr("tests.client.group._out", lambda m: m if isinstance(m, bytes) else m.SerializeToString())
    await nodes["n0"].start()
    for node in ("n1", "n2"):
        await nodes[node].kill()
    with pytest.raises(UnavailableError, match=r"malformed|Connection|refused|failed|no answer within"):
        await client.get(0, timeout=0.3)


async def test_cancelled_appends_leave_nothing_behind(nodes, client):
    group = nodes["n0"].group
    await client.append(b"first")
    held = asyncio.Event()
    tasks = [asyncio.ensure_future(client.append(body)) for body in numbered(50)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    held.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results[::2])
    for body, result in list(zip(numbered(50), results, strict=True))[1::2]:
        assert group.log[result.index][3] == body
    assert client._pipeline.queue.pending_count == 0


async def test_broken_streams_are_resumed_for_a_lone_append(nodes, client):
    nodes["n0"].group.script = Sequence(APPEND_AND_BREAK, BREAK, APPEND_AND_BREAK)
    assert (await client.append(b"once")).index == 1
    assert nodes["n0"].group.bodies() == [b"once"]


async def test_two_clients_have_two_sessions(nodes):
    group = nodes["n0"].group
    for _ in range(2):
        async with connect(dict(group.addresses), group="g") as client:
            await client.append(b"a")
    assert len(group.clients) == 2
    assert group.bodies() == [b"a", b"a"]
