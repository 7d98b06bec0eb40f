"""A client's reads over streams, against a real server: gets of many callers, ranges, and where a node wants neither."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
import pytest_asyncio

from dledger.client import read_call
from dledger.client.grpc_transport import CLIENT_NETWORK, GrpcClientTransport
from dledger.client.read_call import GetCall, RangeCall
from dledger.errors import IndexOutOfRangeError, StoppedError, UnavailableError
from dledger.rpc.frames import FrameConnection
from dledger.storage.entry import iter_entries
from dledger.types import ReadMode
from dledger.v1 import ledger_pb2 as pb
from tests.rpc.fakes import FAST, GROUP, Node, eventually

pytestmark = pytest.mark.asyncio

LINEARIZABLE = ReadMode.LINEARIZABLE


async def listening(options=FAST):
    node = Node("n0", framed=True, options=options)
    await node.listen({"n0": "127.0.0.1:1", "n1": "127.0.0.1:1"})
    await node.start({})
    node.backend.put(*[b"%d" % number for number in range(100)])
    return node


@pytest_asyncio.fixture
async def node():
    one = await listening()
    yield one
    await one.stop()


@pytest_asyncio.fixture
async def transport():
    """A client's network; at its end no task and no socket of it is left."""
    made = GrpcClientTransport(GROUP, replace(CLIENT_NETWORK, connect_timeout_ms=2000))
    yield made
    await made.close()
    assert not made._streams
    assert [task for task in asyncio.all_tasks() if "/dledger/client/" in repr(task)] == []


def address_of(node):
    return f"127.0.0.1:{node.port}"


def waits_for_ever(node):
    """Let reads of the node hang."""

    async def read_index(mode):
        await asyncio.get_running_loop().create_future()

    node.backend.read_index = read_index


async def whole_range(transport, address, first=0, last=-1, **more):
    call = transport.read(address, first, last, **{"follow": False, "mode": LINEARIZABLE} | more)
    found = []
    try:
        while True:
            chunk = await call.next_chunk()
            assert chunk.header.ok
            found += [entry.body for entry in iter_entries(chunk.data)]
            if chunk.end:
                return found, call
    finally:
        call.close()


# -- gets


async def test_gets_of_many_callers_go_by_one_call_and_by_frames(transport, node):
    address = address_of(node)
    for _ in range(3):
        answers = await asyncio.gather(*[transport.get(address, n % 100, LINEARIZABLE, 10) for n in range(300)])
        assert [entry.body for header, entry in answers if header.ok] == [b"%d" % (n % 100) for n in range(300)]
        (call,) = transport._streams
        await eventually(lambda: next(iter(transport._streams)).is_framed)
    assert isinstance(call, GetCall)
    assert not call._waiting


async def test_an_entry_that_is_not_there_is_the_answers_code(transport, node):
    header, entry = await transport.get(address_of(node), 100, LINEARIZABLE, 10)
    assert entry is None
    assert isinstance(header.error(), IndexOutOfRangeError)


async def test_no_answer_in_time_is_an_error_and_the_call_goes_on(transport, node):
    address = address_of(node)
    works = node.backend.read_index
    waits_for_ever(node)
    with pytest.raises(UnavailableError, match="no answer within"):
        await transport.get(address, 1, LINEARIZABLE, 0.05)
    node.backend.read_index = works
    assert (await transport.get(address, 2, ReadMode.LOCAL_COMMITTED, 10))[1].body == b"2"
    assert len(transport._streams) == 1


async def test_a_caller_that_leaves_disturbs_nobody(transport, node):
    gets = [asyncio.ensure_future(transport.get(address_of(node), n, LINEARIZABLE, 10)) for n in range(10)]
    await asyncio.sleep(0)
    gets[3].cancel()
    done = await asyncio.gather(*gets, return_exceptions=True)
    assert isinstance(done[3], asyncio.CancelledError)
    assert [entry.body for _, entry in done[:3] + done[4:]] == [b"%d" % n for n in range(10) if n != 3]


@pytest.mark.parametrize("how", ["call", "connection"])
async def test_the_end_of_the_call_is_everybodys_error_and_the_next_get_begins_another(transport, node, how):
    address = address_of(node)
    await transport.get(address, 1, LINEARIZABLE, 10)
    (call,) = transport._streams
    await eventually(lambda: call.is_framed)
    works = node.backend.read_index
    waits_for_ever(node)
    gets = [asyncio.ensure_future(transport.get(address, n, LINEARIZABLE, 10)) for n in range(5)]
    (served,) = node.server._ledger._calls
    await eventually(lambda: served._requests.taken_count == 6)
    if how == "call":
        served._context.task.cancel()
    else:
        served._lane._connection.abort("broken by the test")
    for get in gets:
        with pytest.raises(UnavailableError, match=address):
            await get
    node.backend.read_index = works
    assert (await transport.get(address, 7, ReadMode.LOCAL_COMMITTED, 10))[1].body == b"7"
    assert not transport._is_plain(address)


async def test_closing_the_client_ends_gets_and_ranges(node):
    transport = GrpcClientTransport(GROUP)
    waits_for_ever(node)
    get = asyncio.ensure_future(transport.get(address_of(node), 1, LINEARIZABLE, 10))
    reading = transport.read(address_of(node), 0, -1, follow=False, mode=LINEARIZABLE)
    chunk = asyncio.ensure_future(reading.next_chunk())
    await eventually(lambda: len(node.server._ledger._calls) == 2)
    await transport.close()
    for call in (get, chunk):
        with pytest.raises(StoppedError):
            await call
    with pytest.raises(StoppedError):
        await transport.get(address_of(node), 1, LINEARIZABLE, 10)


async def test_where_nobody_listens_it_is_said(transport):
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1: UNAVAILABLE"):
        await transport.get("127.0.0.1:1", 1, LINEARIZABLE, 10)
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1: UNAVAILABLE"):
        await whole_range(transport, "127.0.0.1:1")
    assert not transport._is_plain("127.0.0.1:1")


# -- ranges


async def test_a_range_goes_over_to_frames_and_keeps_its_order(transport, node, monkeypatch):
    """A connection is worth its while from the second chunk on; what was sent by gRPC and what by frames is one range."""
    connections = []
    monkeypatch.setattr(FrameConnection, "send_preface", noted(FrameConnection.send_preface, connections))
    monkeypatch.setattr(read_call, "_LONG_WITHIN_S", 60.0)
    for _ in range(6):
        node.backend.put(*[b"x" * 1000] * 1000)
    wanted = [b"%d" % number for number in range(100)] + [b"x" * 1000] * 6000
    found, call = await whole_range(transport, address_of(node))
    assert found == wanted
    assert isinstance(call, RangeCall)
    await eventually(lambda: not transport._streams)
    call = transport.read(address_of(node), 0, -1, follow=True, mode=LINEARIZABLE)
    chunks = []
    while len(chunks) < 3:
        chunks.append(await call.next_chunk())
    await eventually(lambda: call.is_framed)
    assert connections
    for _ in range(4):
        node.backend.put(*[b"y" * 1000] * 1000)
    while chunks[-1].next_index < 10_100:
        chunks.append(await call.next_chunk())
    call.close()
    assert [entry.body for chunk in chunks for entry in iter_entries(chunk.data)] == wanted + [b"y" * 1000] * 4000


async def test_a_short_range_is_not_worth_a_connection(transport, node, monkeypatch):
    connections = []
    monkeypatch.setattr(FrameConnection, "send_preface", noted(FrameConnection.send_preface, connections))
    for _ in range(3):
        assert (await whole_range(transport, address_of(node), 10, 19))[0] == [b"%d" % n for n in range(10, 20)]
    await eventually(lambda: not transport._streams)
    assert connections == []


def noted(method, seen):
    def call(connection, *arguments):
        seen.append(connection)
        method(connection, *arguments)

    return call


async def test_frames_that_overtake_the_call_wait_for_their_turn(transport, node):
    waits_for_ever(node)
    call = transport.read(address_of(node), 0, -1, follow=False, mode=LINEARIZABLE)
    for number in (2, 0, 3, 1):
        call._hear(pb.ReadResponse(number=number, next_index=number, end=number == 3).SerializeToString())
    assert [(await call.next_chunk()).next_index for _ in range(4)] == [0, 1, 2, 3]
    call.close()


async def test_a_reader_that_is_slow_holds_back_the_node(transport, node):
    for _ in range(30):
        node.backend.put(*[b"x" * 1000] * 1000)
    call = transport.read(address_of(node), 0, -1, follow=False, mode=LINEARIZABLE)
    await eventually(lambda: len(call._ready) >= read_call._MAX_READY)
    await eventually(lambda: call._held is not None)
    (served,) = node.server._ledger._calls
    entries = 0
    while True:
        chunk = await call.next_chunk()
        entries += sum(1 for _ in iter_entries(chunk.data))
        assert len(call._ready) < 12, "what waits is bounded"
        if chunk.end:
            break
    call.close()
    assert entries == 30_100
    assert not served._requests._unsent_bytes


# -- where there are no streams


@pytest.mark.parametrize("why", ["full", "old"])
async def test_a_node_that_takes_no_streams_is_read_plainly_for_a_minute(transport, monkeypatch, why):
    if why == "old":
        monkeypatch.setattr("dledger.client.grpc_transport._READ_STREAM", "ReadStreamOfTomorrow")
        node = await listening()
    else:
        node = await listening(replace(FAST, max_client_streams=1))
        taken = transport.open_stream(address_of(node), None)
        await eventually(lambda: node.server.guard.open_count == 1)
    address = address_of(node)
    assert (await transport.get(address, 5, LINEARIZABLE, 10))[1].body == b"5"
    assert transport._is_plain(address)
    if why == "full":
        taken.close()
        await eventually(lambda: node.server.guard.open_count == 0)
    found, call = await whole_range(transport, address)
    assert found == [b"%d" % number for number in range(100)]
    assert not isinstance(call, RangeCall)
    transport._plain_until_s.clear()
    if why == "old":
        with pytest.raises(UnavailableError, match=r"UNIMPLEMENTED|INTERNAL"):
            await whole_range(transport, address)
        assert transport._is_plain(address)
    else:
        assert isinstance((await whole_range(transport, address))[1], RangeCall)
    await node.stop()
