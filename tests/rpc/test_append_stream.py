"""The append stream over its two carriers, the gRPC call and the connection beside it; and how one gets that connection."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import grpc
import pytest
import pytest_asyncio
from grpc import aio

from dledger.errors import NotLeaderError, ResponseCode
from dledger.rpc import append_stream, client_door
from dledger.rpc.call_stream import MAX_OUTSTANDING
from dledger.rpc.client_door import FRAMES_KEY
from dledger.rpc.frames import PEER_PREFACE
from dledger.v1 import ledger_pb2 as pb
from tests.rpc.call import Call, frame, read_frame
from tests.rpc.fakes import FAST, GROUP, Node, eventually, settled

pytestmark = pytest.mark.asyncio

METHOD = "/dledger.v1.LedgerService/AppendStream"


def batch(*bodies, request_id=0, group=GROUP, **more):
    message = pb.AppendBatchRequest(group=group, bodies=bodies, request_id=request_id, **more)
    return message.SerializeToString()


@pytest_asyncio.fixture
async def node():
    """One node with a port for frames."""
    one = Node("n0", framed=True)
    await one.listen({"n0": "127.0.0.1:1", "n1": "127.0.0.1:1"})
    await one.start({})
    yield one
    await one.stop()


@pytest.fixture
def backend(node):
    return node.backend


@pytest_asyncio.fixture
async def calls(node, channel):
    """Make calls that are ended afterwards."""
    made = []

    def make(port=None):
        made.append(Call(channel, node.port if port is None else port))
        return made[-1]

    yield make
    for call in made:
        await call.end()


@pytest_asyncio.fixture(params=["grpc", "frames"])
async def stream(request, calls):
    """One append stream: as a gRPC call, and over a connection."""
    call = calls()
    return await call.go_over() if request.param == "frames" else call


@pytest.fixture
def served(node):
    """``served()``: the streams that the node serves."""
    return lambda: list(node.server._ledger._calls)


# -- both carriers


async def test_batches_are_taken_in_order_and_answered_by_request_id(stream, backend):
    for number in range(200):
        await stream.write(batch(b"%d" % number, b"more", request_id=number, first_sequence=number * 2))
    answers = await stream.answers(200)
    assert [answer.request_id for answer in answers] == list(range(200))
    assert [answer.runs[0].first_index for answer in answers] == [n * 2 for n in range(200)]
    assert [call[3] for call in backend.calls] == [n * 2 for n in range(200)]


async def test_answers_come_in_the_order_of_completion(stream, backend):
    """A refusal does not wait for the batches before it."""
    backend.hold = True
    await stream.write(batch(b"slow", request_id=1))
    await stream.write(batch(request_id=2))
    assert (await stream.read()).request_id == 2
    backend.release()
    assert (await stream.read()).request_id == 1


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\xff\xff\xff", 411),
        (batch(b"x", group="other"), 400),
        (batch(b"x" * 1001), 411),
        (batch(), 420),
    ],
    ids=["malformed", "group", "too large", "empty"],
)
async def test_what_cannot_be_taken_is_answered_with_a_code_and_the_stream_goes_on(stream, backend, data, code):
    await stream.write(data)
    answer = await stream.read()
    assert answer.header.code == code
    assert answer.header.message
    assert backend.calls == []
    await stream.write(batch(b"x", request_id=9))
    assert (await stream.read()).request_id == 9


async def test_a_failure_is_an_answer(stream, backend):
    backend.fail_with = NotLeaderError("not here", leader_id="n1", leader_address="there:1")
    await stream.write(batch(b"x", request_id=4))
    answer = await stream.read()
    assert (answer.request_id, answer.header.code, answer.header.leader_id) == (4, 404, "n1")


async def test_a_client_that_is_ahead_is_held_back(stream, backend):
    """No more than the limit is ever outstanding, and everything is answered once the group catches up."""
    backend.hold = True
    total = MAX_OUTSTANDING + 200

    async def write():
        for number in range(total):
            await stream.write(batch(b"x", request_id=number))

    writer = asyncio.create_task(write())
    await eventually(lambda: len(backend.held) == MAX_OUTSTANDING, timeout=20)
    await settled(lambda: len(backend.held))
    assert len(backend.held) == MAX_OUTSTANDING
    backend.hold = False
    backend.release()
    answers = await stream.answers(total)
    await writer
    assert [answer.request_id for answer in answers] == list(range(total))


async def test_the_stream_is_bounded_in_bytes(calls, backend, monkeypatch):
    monkeypatch.setattr(append_stream.Batches.__init__, "__kwdefaults__", {"max_outstanding": 256, "max_bytes": 2500})
    for stream in (calls(), await calls().go_over()):
        backend.hold = True
        for number in range(6):
            await stream.write(batch(b"x" * 1000, request_id=number))
        await eventually(lambda: len(backend.held) == 3)
        await settled(lambda: len(backend.held))
        assert len(backend.held) == 3
        backend.hold = False
        backend.release()
        assert [answer.request_id for answer in await stream.answers(6)] == list(range(6))


async def test_a_client_that_leaves_leaves_nothing_behind(stream, backend, served, node):
    backend.hold = True
    await stream.write(batch(b"x", request_id=1))
    await eventually(lambda: backend.held)
    (one,) = served()
    await stream.end()
    await eventually(lambda: not served())
    backend.release()
    assert not one._requests.answers
    assert one._reader.done()
    await eventually(lambda: not node.server.guard.open_count)
    assert not node.transport.clients._open


async def test_stopping_answers_what_is_outstanding_and_ends_the_stream(stream, backend, node, calls):
    backend.hold = True
    await stream.write(batch(b"x", request_id=1))
    await eventually(lambda: backend.held)
    node.server._ledger.close()
    await stream.write(batch(b"too late", request_id=2))
    late = await stream.read()
    assert (late.request_id, late.header.code, late.header.message) == (2, 404, "the node is stopping")
    backend.release()
    assert (await stream.read()).request_id == 1
    assert await stream.status() == (grpc.StatusCode.UNAVAILABLE, "n0 is stopping")
    if stream.writer is not None:
        assert await stream.read() is None
    assert [call[1] for call in backend.calls] == [[b"x"]]
    assert (await calls().status())[0] is grpc.StatusCode.UNAVAILABLE


async def test_what_is_not_read_is_bounded_and_its_client_ended(backend):
    """Each answer names the group, so it is as long as its request; the client takes none of them."""
    one = Node("n0", framed=True, options=replace(FAST, slow_reader_timeout_ms=300))
    await one.listen({"n0": "127.0.0.1:1", "n1": "127.0.0.1:1"})
    await one.start({})
    async with aio.insecure_channel(f"127.0.0.1:{one.port}") as channel:
        stream = await Call(channel, one.port).go_over()
        request = frame(batch(b"x", group="nobody" * 20_000))
        stream.reader._transport.pause_reading()
        (served,) = one.server._ledger._calls
        stream.writer.transport.set_write_buffer_limits(high=0)
        flooding = asyncio.ensure_future(flood(stream.writer, request))
        await eventually(lambda: one.server.guard.slow_count == 1, timeout=20)
        assert served._requests.outstanding_count <= MAX_OUTSTANDING
        assert served._lane._connection.queued_bytes < 10**6
        assert (await stream.status())[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
        await flooding
        await eventually(lambda: one.server.guard.open_count == 0)
        await stream.end()
    await one.stop()


async def flood(writer, request):
    """Send until the connection is gone."""
    try:
        while True:
            writer.write(request)
            await writer.drain()
    except ConnectionError:
        return


# -- from the call to the connection


async def test_what_was_sent_by_grpc_comes_first_and_everything_is_answered(calls, backend):
    """Batches sent by gRPC, then by frames, without waiting in between; 20 times. Answers come by either."""
    for _ in range(20):
        backend.calls.clear()
        call = calls()
        answered = []
        for number in range(30):
            await call.write(batch(b"%d" % number, request_id=number))
        hearing = [asyncio.ensure_future(hear(call.call.read, answered))]
        await call.go_over()
        hearing.append(asyncio.ensure_future(hear(lambda reader=call.reader: read_frame(reader), answered)))
        for number in range(30, 60):
            await call.write(batch(b"%d" % number, request_id=number))
        await eventually(lambda got=answered: len(got) == 60)
        await call.end()
        await asyncio.gather(*hearing)
        assert sorted(answered) == list(range(60))
        assert [entry[1] for entry in backend.calls] == [[b"%d" % n] for n in range(60)]


async def hear(read, answered):
    """Note the request ids of what comes until nothing comes any more."""
    try:
        while isinstance(data := await read(), bytes) and data:
            answered.append(pb.AppendBatchResponse.FromString(data).request_id)
    except (aio.AioRpcError, asyncio.CancelledError):
        pass


async def test_frames_wait_for_what_is_still_on_its_way_by_grpc(calls, backend):
    """The network may overtake: a client that says "two by gRPC" is not heard before the second has come."""
    call = calls()
    await call.write(batch(b"0", request_id=0))
    assert (await call.read()).request_id == 0
    await call.dial()
    call.writer.write(frame((2).to_bytes(8, "big")) + frame(batch(b"2", request_id=2)))
    await settled(lambda: len(backend.calls))
    assert len(backend.calls) == 1
    await call.call.write(batch(b"1", request_id=1))
    assert sorted(answer.request_id for answer in await call.answers(2)) == [1, 2]
    assert [entry[1] for entry in backend.calls] == [[b"0"], [b"1"], [b"2"]]


async def test_a_client_that_comes_and_changes_its_mind_goes_on_by_grpc(calls, served):
    call = calls()
    await call.dial()
    call.hang_up()
    await eventually(lambda: served()[0]._lane.lost_reason)
    await call.write(batch(b"x", request_id=3))
    assert (await call.read()).request_id == 3


@pytest.mark.parametrize("how", ["abort", "eof", "garbage start", "oversized"])
async def test_the_end_of_the_connection_is_the_end_of_the_call(calls, how):
    call = await calls().go_over() if how != "garbage start" else calls()
    if how == "garbage start":
        await call.dial()
        call.writer.write(frame(b"\0" * 7))
        assert await call.read() is None
        await call.end()
        return
    await call.write(batch(b"x", request_id=1))
    assert (await call.read()).request_id == 1
    if how == "abort":
        call.writer.transport.abort()
    elif how == "eof":
        call.writer.write_eof()
    else:
        call.writer.write((FAST.max_message_bytes + 1).to_bytes(4, "big") + b"x")
    code, details = await call.status()
    assert code is grpc.StatusCode.UNAVAILABLE
    assert details.startswith("the connection for frames has ended: ")
    assert how != "oversized" or f"a frame of {FAST.max_message_bytes + 1} bytes" in details


async def test_the_end_of_the_call_is_the_end_of_the_connection(calls, served):
    call = await calls().go_over()
    await call.write(batch(b"x", request_id=1))
    assert (await call.read()).request_id == 1
    call.call.cancel()
    assert await asyncio.wait_for(call.read(), 30) is None
    await eventually(lambda: not served())


async def test_garbage_in_frames_is_answered_or_ends_the_connection_and_others_are_served(calls, backend):
    rng = random.Random(11)
    for number in range(40):
        call = await calls().go_over()
        call.writer.write(rng.randbytes(rng.randrange(1, 300)) if number % 2 else frame(rng.randbytes(50)))
        call.writer.write_eof()
        while (answer := await asyncio.wait_for(call.read(), 30)) is not None:
            assert answer.header.code != ResponseCode.SUCCESS
        await call.end()
    assert backend.calls == []
    call = await calls().go_over()
    await call.write(batch(b"x", request_id=5))
    assert (await call.read()).request_id == 5


# -- tickets


async def test_a_ticket_is_good_once(calls):
    first, second = calls(), calls()
    assert (await first.dial()).code == ResponseCode.SUCCESS
    _, used = await first.offer()
    refusal = await second.dial(ticket=used)
    assert refusal.code == ResponseCode.ACCESS_DENIED
    assert "good once" in refusal.reason
    assert await read_frame(second.reader) == b""


@pytest.mark.parametrize("wrong", ["last bit", "short", "long", "empty number", "nothing right"])
async def test_a_wrong_ticket_is_refused_and_the_call_goes_on(calls, wrong):
    call = calls()
    _, right = await call.offer()
    ticket = {
        "last bit": right[:-1] + bytes([right[-1] ^ 1]),
        "short": right[:-1],
        "long": right + b"\0",
        "empty number": bytes(8) + right[8:],
        "nothing right": b"\xff" * 200,
    }[wrong]
    assert (await call.dial(ticket=ticket)).code == ResponseCode.ACCESS_DENIED
    call.hang_up()
    await call.write(batch(b"x", request_id=1))
    assert (await call.read()).request_id == 1


async def test_a_ticket_with_the_number_of_another_call_is_refused(calls):
    one, other = calls(), calls()
    (_, mine), (_, theirs) = await one.offer(), await other.offer()
    assert (await one.dial(ticket=theirs[:8] + mine[8:])).code == ResponseCode.ACCESS_DENIED
    one.hang_up()
    assert (await other.dial()).code == ResponseCode.SUCCESS


async def test_whoever_comes_with_a_ticket_speaks_for_its_call_and_for_no_other(calls, served):
    one, other = calls(), calls()
    _, theirs = await other.offer()
    assert (await one.dial(ticket=theirs)).code == ResponseCode.SUCCESS
    await eventually(lambda: len(served()) == 2)
    other.call.cancel()
    assert await read_frame(one.reader) == b""
    await eventually(lambda: len(served()) == 1)
    one.hang_up()
    await one.write(batch(b"x", request_id=1))
    assert (await one.read()).request_id == 1


async def test_a_ticket_expires(calls, monkeypatch):
    monkeypatch.setattr(client_door, "_TICKET_S", -1.0)
    assert (await calls().dial()).code == ResponseCode.ACCESS_DENIED


async def test_a_ticket_ends_with_its_call(calls, served):
    gone, call = calls(), calls()
    _, ticket = await gone.offer()
    await call.offer()
    assert len(served()) == 2
    gone.call.cancel()
    await eventually(lambda: len(served()) == 1)
    assert (await call.dial(ticket=ticket)).code == ResponseCode.ACCESS_DENIED


async def test_a_ticket_is_no_hello_of_a_peer(calls, node):
    call = calls()
    assert (await call.dial(preface=PEER_PREFACE)).code != ResponseCode.SUCCESS
    assert node.handler.events == []


async def test_who_does_not_ask_is_offered_nothing(node, channel):
    call = channel.stream_stream(METHOD)()
    await call.write(batch(b"x", request_id=1))
    assert pb.AppendBatchResponse.FromString(await call.read()).request_id == 1
    assert FRAMES_KEY not in dict(await call.initial_metadata())
    assert not node.transport.clients._open
    call.cancel()


@pytest.mark.parametrize("dialled", ["1", "own"])
async def test_the_offer_is_for_who_came_to_a_port_of_the_node(calls, node, dialled):
    """Its own, or the one it is known by. Who came by another port (a proxy, NAT) is not led around it."""
    offer = await calls(node.port if dialled == "own" else int(dialled)).offer()
    assert offer[0] == node.transport._announced
    stranger = calls(2)
    await stranger.write(batch(b"x", request_id=1))
    await stranger.read()
    assert await stranger.offer() is None


@pytest.mark.parametrize("announced", [0, 4711])
async def test_an_announced_port_is_told_to_everybody(channel, announced):
    one = Node("n0")
    await one.listen({"n0": "127.0.0.1:1", "n1": "127.0.0.1:1"})
    await one.transport.listen("127.0.0.1", 0, announced)
    async with aio.insecure_channel(f"127.0.0.1:{one.port}") as own:
        call = Call(own, 2)
        assert (await call.offer())[0] == announced
        await call.end()
    await one.stop()


async def test_a_node_without_the_port_offers_nothing():
    """As with TLS, and with peerPort=-1."""
    one = Node("n0")
    await one.listen({"n0": "127.0.0.1:1", "n1": "127.0.0.1:1"})
    async with aio.insecure_channel(f"127.0.0.1:{one.port}") as channel:
        call = Call(channel, one.port)
        await call.write(batch(b"x", request_id=1))
        assert (await call.read()).request_id == 1
        assert await call.offer() is None
        await call.end()
    await one.stop()
