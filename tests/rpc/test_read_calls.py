"""Many reads over one call, over its two carriers: gets share rounds, ranges keep their order, nothing piles up."""

from __future__ import annotations

import asyncio

import grpc
import pytest
import pytest_asyncio

from dledger.errors import NotLeaderError
from dledger.rpc.read_calls import MAX_RANGES, MAX_UNSENT_BYTES
from dledger.storage.entry import iter_entries
from dledger.v1 import ledger_pb2 as pb
from tests.rpc.call import Call, frame
from tests.rpc.fakes import GROUP, Node, eventually, settled

pytestmark = pytest.mark.asyncio


def request(first, last, *, request_id=0, raw=True, group=GROUP, **more):
    message = pb.ReadRequest(group=group, from_index=first, to_index=last, raw=raw, request_id=request_id, **more)
    return message.SerializeToString()


def get(index, request_id=0, **more):
    return request(index, index, request_id=request_id, **more)


def bodies(*answers):
    return [entry.body for answer in answers for entry in iter_entries(answer.data)]


@pytest_asyncio.fixture
async def node():
    one = Node("n0", framed=True)
    await one.listen({"n0": "127.0.0.1:1", "n1": "127.0.0.1:1"})
    await one.start({})
    one.backend.put(*[b"%d" % number for number in range(30)])
    yield one
    await one.stop()


@pytest.fixture
def backend(node):
    return node.backend


@pytest_asyncio.fixture(params=["grpc", "frames"])
async def stream(request, node, channel):
    call = Call(channel, node.port, "ReadStream", pb.ReadResponse)
    await call.offer()
    yield await call.go_over() if request.param == "frames" else call
    await call.end()
    await eventually(lambda: not node.server._ledger._calls)


def served(node):
    (call,) = node.server._ledger._calls
    return call._requests


async def test_gets_are_answered_by_request_id(stream):
    for index in range(30):
        await stream.write(get(index, request_id=100 + index))
    answers = sorted(await stream.answers(30), key=lambda answer: answer.request_id)
    assert [answer.request_id for answer in answers] == list(range(100, 130))
    assert bodies(*answers) == [b"%d" % number for number in range(30)]
    assert {(answer.header.code, answer.end, answer.number, answer.commit_index) for answer in answers} == {
        (200, True, 0, 29)
    }
    assert [answer.next_index for answer in answers] == list(range(1, 31))


async def test_a_get_gives_an_entry_to_who_does_not_want_bytes(stream):
    await stream.write(get(7, raw=False))
    answer = await stream.read()
    assert (answer.data, [(entry.index, entry.term, entry.body) for entry in answer.entries]) == (b"", [(7, 3, b"7")])


async def test_gets_that_come_meanwhile_share_one_round(stream, node, backend):
    asked, gate = [], asyncio.Event()

    async def read_index(mode):
        asked.append(mode)
        await gate.wait()
        return backend.commit_index

    backend.read_index = read_index
    await stream.write(get(0))
    await eventually(lambda: asked)
    for index in range(1, 30):
        await stream.write(get(index, request_id=index))
    await eventually(lambda: served(node).taken_count >= 30)
    gate.set()
    assert sorted(answer.request_id for answer in await stream.answers(30)) == list(range(30))
    assert len(asked) == 2


async def test_a_local_get_asks_nobody(stream, backend):
    await stream.write(get(3, mode=pb.READ_MODE_LOCAL_COMMITTED))
    assert bodies(await stream.read()) == [b"3"]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\xff\xff\xff", 411),
        (get(0, group="other"), 400),
        (get(0, mode=9), 411),
        (get(30), 410),
        (get(-1), 410),
        (request(0, 40), 410),
        (request(5, 3), 411),
        (request(0, 5, max_bytes=-1), 411),
    ],
    ids=["malformed", "group", "mode", "beyond", "below", "range beyond", "backwards", "max_bytes"],
)
async def test_what_cannot_be_read_is_answered_with_a_code_and_the_call_goes_on(stream, data, code):
    await stream.write(data)
    answer = await stream.read()
    assert (answer.header.code, answer.end, answer.data) == (code, False, b"")
    assert answer.header.message
    await stream.write(get(1, request_id=9))
    answer = await stream.read()
    assert (answer.request_id, bodies(answer)) == (9, [b"1"])


async def test_a_failure_is_everybodys_answer(stream, backend):
    backend.fail_with = NotLeaderError("not here", leader_id="n1", leader_address="there:1")
    for number in range(3):
        await stream.write(get(number, request_id=number))
    answers = await stream.answers(3)
    assert {answer.header.code for answer in answers} == {404}
    assert {answer.header.leader_address for answer in answers} == {"there:1"}


async def test_ranges_come_in_numbered_answers_beside_gets(stream):
    await stream.write(request(0, -1, request_id=1, max_bytes=300))
    await stream.write(request(10, 19, request_id=2, max_bytes=300))
    await stream.write(get(5, request_id=3))
    parts = {1: [], 2: [], 3: []}
    async with asyncio.timeout(20):
        while not all(part and part[-1].end for part in parts.values()):
            answer = await stream.read()
            parts[answer.request_id].append(answer)
    for part in parts.values():
        assert [answer.number for answer in part] == list(range(len(part)))
    assert bodies(*parts[1]) == [b"%d" % number for number in range(30)]
    assert bodies(*parts[2]) == [b"%d" % number for number in range(10, 20)]
    assert bodies(*parts[3]) == [b"5"]
    assert len(parts[1]) > 2


async def test_a_range_that_follows_goes_on_and_ends_with_the_node(stream, node, backend):
    await stream.write(request(29, -1, request_id=4, follow=True))
    assert bodies(await stream.read()) == [b"29"]
    await eventually(lambda: backend.read_waits)
    backend.put(b"new")
    assert bodies(await stream.read()) == [b"new"]
    await eventually(lambda: backend.read_waits)
    node.server._ledger.close()
    assert await stream.status() == (grpc.StatusCode.UNAVAILABLE, "n0 is stopping")
    await eventually(lambda: not backend.read_waits)


async def test_so_many_ranges_and_no_more(stream, backend):
    for number in range(MAX_RANGES):
        await stream.write(request(30, -1, request_id=number, follow=True))
    await eventually(lambda: backend.read_waits == MAX_RANGES)
    await stream.write(request(0, -1, request_id=77))
    answer = await stream.read()
    assert (answer.request_id, answer.header.code) == (77, 411)
    assert f"{MAX_RANGES} ranges" in answer.header.message
    backend.put(b"new")
    assert bodies(*await stream.answers(MAX_RANGES)) == [b"new"] * MAX_RANGES
    await eventually(lambda: backend.read_waits == MAX_RANGES)


async def test_who_leaves_leaves_nothing_behind(stream, node, backend):
    await stream.write(request(30, -1, follow=True))
    await eventually(lambda: backend.read_waits)
    requests = served(node)
    await stream.end()
    await eventually(lambda: not node.server._ledger._calls)
    await eventually(lambda: not requests._tasks)
    assert not backend.read_waits
    assert not node.transport.clients._open


async def test_what_is_not_read_is_not_read_from_the_log_either(node, channel, backend):
    """A range of 20 MB and gets behind it; the client takes nothing for a while, then everything."""
    for _ in range(20):
        backend.put(*[b"x" * 1000] * 1000)
    call = await Call(channel, node.port, "ReadStream", pb.ReadResponse).go_over()
    call.reader._transport.pause_reading()
    await call.write(request(0, -1, request_id=1))
    call.writer.write(b"".join(frame(get(number, request_id=2)) for number in range(30)))
    requests = served(node)
    await eventually(lambda: requests.outstanding_count == 31)
    await settled(lambda: len(backend.calls))
    assert requests._unsent_bytes < 2 * MAX_UNSENT_BYTES
    call.reader._transport.resume_reading()
    ended = {1: 0, 2: 0}
    entries = 0
    async with asyncio.timeout(60):
        while ended != {1: 1, 2: 30}:
            answer = await call.read()
            ended[answer.request_id] += answer.end
            entries += len(bodies(answer)) if answer.request_id == 1 else 0
    assert entries == 20_030
    assert (requests._unsent_bytes, requests.outstanding_count) == (0, 0)
    await call.end()
