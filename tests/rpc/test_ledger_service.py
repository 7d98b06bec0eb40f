"""LedgerService over real gRPC: every method, every refusal, and the two streams."""

from __future__ import annotations

import asyncio

import grpc
import pytest
import pytest_asyncio
from grpc import aio
from structlog.testing import capture_logs

from dledger.errors import (
    DiskFullError,
    LeaderNotReadyError,
    LeaderTransferringError,
    NotLeaderError,
    PendingFullError,
    QuorumTimeoutError,
    SequenceForgottenError,
    SequenceGapError,
    SessionExpiredError,
    StorageFailedError,
    TermChangedError,
    UnavailableError,
)
from dledger.raft.messages import EntryType
from dledger.storage.entry import iter_entries, parse_slice
from dledger.types import BatchResult, IndexRun, ReadMode
from dledger.v1 import ledger_pb2 as pb
from dledger.v1 import ledger_pb2_grpc
from tests.rpc.fakes import GROUP, eventually, settled

pytestmark = pytest.mark.asyncio


@pytest.fixture
def backend(node):
    return node.backend


@pytest_asyncio.fixture
async def stub(channel):
    return ledger_pb2_grpc.LedgerServiceStub(channel)


def batch(*bodies, request_id=0, group=GROUP, **more):
    return pb.AppendBatchRequest(group=group, bodies=bodies, request_id=request_id, **more)


async def collect(call):
    return [answer async for answer in call]


# -- headers


async def test_every_answer_carries_the_leader(stub, backend):
    backend.hint = (9, "n1", "127.0.0.1:2")
    for answer in (
        await stub.Append(pb.AppendRequest(group=GROUP, body=b"x")),
        await stub.AppendBatch(batch(b"x")),
        await stub.Get(pb.GetRequest(group=GROUP, index=0)),
        await stub.OpenSession(pb.OpenSessionRequest(group=GROUP, client_id=b"c")),
        await stub.Metadata(pb.MetadataRequest(group=GROUP)),
        await stub.Get(pb.GetRequest(group="other", index=0)),
        *await collect(stub.Read(pb.ReadRequest(group=GROUP, to_index=-1))),
    ):
        header = answer.header
        assert (header.group, header.node_id, header.term) == (GROUP, "n0", 9)
        assert (header.leader_id, header.leader_address) == ("n1", "127.0.0.1:2")


async def test_the_header_follows_the_leader(stub, backend):
    first = await stub.Append(pb.AppendRequest(group=GROUP, body=b"x"))
    backend.hint = (10, None, None)
    second = await stub.Append(pb.AppendRequest(group=GROUP, body=b"x"))
    assert (first.header.term, first.header.leader_id) == (3, "n0")
    assert (second.header.term, second.header.leader_id) == (10, "")


ERRORS = [
    (NotLeaderError("not here", leader_id="n1", leader_address="there:1"), 404),
    (LeaderNotReadyError("soon"), 505),
    (LeaderTransferringError("moving"), 506),
    (PendingFullError("full"), 503),
    (QuorumTimeoutError("no majority"), 502),
    (TermChangedError("deposed"), 501),
    (SessionExpiredError("gone"), 600),
    (SequenceGapError("gap"), 601),
    (SequenceForgottenError("old"), 602),
    (DiskFullError("full disk"), 415),
    (StorageFailedError("dead disk"), 414),
    (UnavailableError("nobody"), 302),
]


@pytest.mark.parametrize(("error", "code"), ERRORS, ids=lambda value: type(value).__name__)
async def test_an_operating_error_is_an_answer_with_its_code(stub, backend, error, code):
    backend.fail_with = error
    (read,) = await collect(stub.Read(pb.ReadRequest(group=GROUP, to_index=-1)))
    stream = stub.AppendStream()
    await stream.write(batch(b"x", request_id=4))
    await stream.done_writing()
    (streamed,) = await collect(stream)
    assert streamed.request_id == 4
    for answer in (
        await stub.Append(pb.AppendRequest(group=GROUP, body=b"x")),
        await stub.AppendBatch(batch(b"x")),
        await stub.Get(pb.GetRequest(group=GROUP, index=0)),
        await stub.OpenSession(pb.OpenSessionRequest(group=GROUP, client_id=b"c")),
        streamed,
        read,
    ):
        assert (answer.header.code, answer.header.message) == (code, error.message)
        if error.leader_id is not None:
            assert (answer.header.leader_id, answer.header.leader_address) == ("n1", "there:1")


async def test_a_bug_is_an_internal_error_and_logged(stub, backend):
    backend.fail_with = KeyError("bug")
    with capture_logs() as logs:
        answer = await stub.Append(pb.AppendRequest(group=GROUP, body=b"x"))
    assert (answer.header.code, answer.header.message) == (500, "KeyError: 'bug'")
    assert [(entry["event"], entry["where"]) for entry in logs] == [("internal_error", "Append")]


async def test_another_group_is_refused_everywhere(stub, backend):
    (read,) = await collect(stub.Read(pb.ReadRequest(group="x")))
    stream = stub.AppendStream()
    await stream.write(batch(b"x", group="x"))
    await stream.done_writing()
    (streamed,) = await collect(stream)
    for answer in (
        await stub.Append(pb.AppendRequest(group="x", body=b"x")),
        await stub.Append(pb.AppendRequest(body=b"x")),
        await stub.AppendBatch(batch(b"x", group="x")),
        await stub.Get(pb.GetRequest(group="x")),
        await stub.OpenSession(pb.OpenSessionRequest(group="x", client_id=b"c")),
        await stub.Metadata(pb.MetadataRequest(group="x")),
        streamed,
        read,
    ):
        assert answer.header.code == 400
        assert "n0 serves 'g0'" in answer.header.message
    assert backend.calls == []


# -- append


async def test_append(stub, backend):
    for number in range(3):
        answer = await stub.Append(
            pb.AppendRequest(group=GROUP, body=b"x%d" % number, session_id=5, sequence=number + 10)
        )
        assert answer.header.code == 200
        assert (answer.index, answer.term, answer.pos) == (number, 3, number * 1000)
    assert backend.calls == [("submit", [b"x%d" % n], 5, n + 10) for n in range(3)]


async def test_an_empty_body_is_an_entry(stub):
    answer = await stub.Append(pb.AppendRequest(group=GROUP))
    assert (answer.header.code, answer.index) == (200, 0)


async def test_appends_wait_beside_each_other(stub, backend):
    backend.hold = True
    backend.max_batch_entries = 5
    first = stub.Append(pb.AppendRequest(group=GROUP, body=b"0"))
    await eventually(lambda: backend.held)
    calls = asyncio.gather(first, *[stub.Append(pb.AppendRequest(group=GROUP, body=b"%d" % n)) for n in range(1, 50)])
    await eventually(lambda: len(backend.held) == 2)  # all, or all but one, have come: so many begin a round
    while not calls.done():
        await eventually(lambda: backend.held or calls.done())
        backend.release()
    assert sorted(answer.index for answer in await calls) == list(range(50))
    submitted = [bodies for name, bodies, *_ in backend.calls if name == "submit"]
    assert sorted(body for bodies in submitted for body in bodies) == sorted(b"%d" % n for n in range(50))
    assert len(submitted) <= 12
    assert max(map(len, submitted)) == 5


async def test_an_append_with_a_session_goes_alone(stub, backend):
    answers = [
        stub.Append(pb.AppendRequest(group=GROUP, body=b"x", session_id=2, sequence=number)) for number in range(9)
    ]
    await asyncio.gather(*answers)
    submitted = [(bodies, session, sequence) for name, bodies, session, sequence in backend.calls if name == "submit"]
    assert sorted(submitted) == [([b"x"], 2, number) for number in range(9)]


async def test_a_client_that_leaves_an_append_leaves_nothing_behind(stub, backend):
    backend.hold = True
    call = stub.Append(pb.AppendRequest(group=GROUP, body=b"x"))
    await eventually(lambda: backend.held)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    backend.release()
    backend.hold = False
    assert (await stub.Append(pb.AppendRequest(group=GROUP, body=b"y"))).index == 1


async def test_append_batch(stub, backend):
    answer = await stub.AppendBatch(batch(b"a", b"b", b"c", session_id=2, first_sequence=7, request_id=99))
    assert answer.header.code == 200
    assert [(run.first_index, run.count, run.term) for run in answer.runs] == [(0, 3, 3)]
    assert answer.request_id == 99
    assert backend.calls == [("submit", [b"a", b"b", b"c"], 2, 7)]


async def test_a_batch_completed_by_a_retry_has_two_runs(stub, backend):
    result = BatchResult((IndexRun(4, 1, 2), IndexRun(9, 2, 3)))
    backend._complete = lambda bodies, done: done(result, None)
    answer = await stub.AppendBatch(batch(b"a", b"b", b"c"))
    assert [(run.first_index, run.count, run.term) for run in answer.runs] == [(4, 1, 2), (9, 2, 3)]


@pytest.mark.parametrize(
    ("bodies", "more", "code", "words"),
    [
        ([], {}, 420, "no bodies"),
        ([b"x" * 1001], {}, 411, "1001 bytes; the limit is 1000"),
        ([b"x" * 900] * 4, {}, 411, "3600 bytes; the limit is 3000"),
        ([b"x"] * 9, {}, 411, "9 entries in a batch; the limit is 8"),
        ([b"x"], {"first_sequence": -1}, 411, "sequence -1"),
    ],
    ids=["empty", "entry", "bytes", "count", "sequence"],
)
async def test_a_batch_that_cannot_be_is_refused(stub, backend, bodies, more, code, words):
    stream = stub.AppendStream()
    await stream.write(batch(*bodies, request_id=3, **more))
    await stream.done_writing()
    (streamed,) = await collect(stream)
    for answer in (streamed, await stub.AppendBatch(batch(*bodies, request_id=3, **more))):
        assert (answer.header.code, answer.request_id) == (code, 3)
        assert words in answer.header.message
    assert backend.calls == []


async def test_an_entry_over_the_limit_is_refused(stub, backend):
    answer = await stub.Append(pb.AppendRequest(group=GROUP, body=b"x" * 1001))
    assert (answer.header.code, answer.index) == (411, -1)
    assert "the limit is 1000" in answer.header.message
    assert backend.calls == []


# -- sessions, metadata


async def test_open_session(stub, backend):
    for _ in range(2):
        answer = await stub.OpenSession(pb.OpenSessionRequest(group=GROUP, client_id=b"me"))
        assert (answer.header.code, answer.session_id, answer.next_sequence) == (200, 1, 7)
    assert backend.calls[0] == ("open_session", b"me")


@pytest.mark.parametrize("client_id", [b"", b"x" * 65])
async def test_a_client_id_has_a_size(stub, backend, client_id):
    answer = await stub.OpenSession(pb.OpenSessionRequest(group=GROUP, client_id=client_id))
    assert answer.header.code == 411
    assert "1 to 64" in answer.header.message
    assert backend.calls == []


async def test_metadata(stub):
    answer = await stub.Metadata(pb.MetadataRequest(group=GROUP))
    assert {member.node_id: member.address for member in answer.members} == {"n0": "127.0.0.1:1", "n1": "127.0.0.1:2"}
    assert (answer.max_entry_bytes, answer.max_batch_bytes, answer.max_batch_entries) == (1000, 3000, 8)


# -- get


@pytest.mark.parametrize(
    ("mode", "expected"), [(0, ReadMode.LINEARIZABLE), (1, ReadMode.LINEARIZABLE), (2, ReadMode.LOCAL_COMMITTED)]
)
async def test_get(stub, backend, mode, expected):
    backend.put(b"zero", b"one", b"two")
    answer = await stub.Get(pb.GetRequest(group=GROUP, index=1, mode=mode))
    entry = answer.entry
    assert answer.header.code == 200
    assert (entry.index, entry.term, entry.pos, entry.type, entry.body) == (1, 3, 52, pb.ENTRY_TYPE_NORMAL, b"one")
    assert backend.calls[0] == ("read_index", expected)


@pytest.mark.parametrize(("index", "words"), [(-1, "count from 0"), (3, "last committed entry, 2")])
async def test_an_index_out_of_range_is_refused(stub, backend, index, words):
    backend.put(b"zero", b"one", b"two")
    answer = await stub.Get(pb.GetRequest(group=GROUP, index=index))
    assert answer.header.code == 410
    assert words in answer.header.message
    assert not answer.HasField("entry")


async def test_a_compacted_index_is_refused(stub, backend):
    backend.put(b"zero", b"one")
    backend.first_index = 1
    assert (await stub.Get(pb.GetRequest(group=GROUP, index=0))).header.code == 419
    (answer,) = await collect(stub.Read(pb.ReadRequest(group=GROUP, to_index=-1)))
    assert answer.header.code == 419


async def test_an_unknown_read_mode_is_refused(stub, backend):
    answer = await stub.Get(pb.GetRequest(group=GROUP, index=0, mode=7))
    assert answer.header.code == 411
    (read,) = await collect(stub.Read(pb.ReadRequest(group=GROUP, to_index=-1, mode=7)))
    assert read.header.code == 411
    assert backend.calls == []


# -- read


async def test_read_all_in_chunks(stub, backend):
    bodies = [b"%03d" % number for number in range(40)]
    backend.put(*bodies)
    answers = await collect(stub.Read(pb.ReadRequest(group=GROUP, to_index=-1, max_bytes=500)))
    assert [entry.body for answer in answers for entry in answer.entries] == bodies
    assert len(answers) == 5
    assert [answer.end for answer in answers] == [False] * 4 + [True]
    assert [answer.next_index for answer in answers] == [9, 18, 27, 36, 40]
    assert {answer.commit_index for answer in answers} == {39}
    assert [call for call in backend.calls if call[0] == "read_index"] == [("read_index", ReadMode.LINEARIZABLE)]


async def test_read_a_range(stub, backend):
    backend.put(*[b"%d" % n for n in range(10)])
    (answer,) = await collect(stub.Read(pb.ReadRequest(group=GROUP, from_index=3, to_index=5)))
    assert [entry.index for entry in answer.entries] == [3, 4, 5]
    assert (answer.end, answer.next_index) == (True, 6)


async def test_only_normal_entries_unless_asked(stub, backend):
    backend.put(b"", type=EntryType.NOOP)
    backend.put(b"body")
    backend.put(b"client", type=EntryType.SESSION)
    (answer,) = await collect(stub.Read(pb.ReadRequest(group=GROUP, to_index=-1)))
    assert [entry.index for entry in answer.entries] == [1]
    assert (answer.next_index, answer.end) == (3, True)
    (answer,) = await collect(stub.Read(pb.ReadRequest(group=GROUP, to_index=-1, all_types=True)))
    assert [entry.type for entry in answer.entries] == [2, 1, 4]


async def test_raw_is_the_files_own_bytes(stub, backend):
    part = backend.put(*[b"%d" % n for n in range(20)])
    answers = await collect(stub.Read(pb.ReadRequest(group=GROUP, to_index=-1, raw=True, max_bytes=300)))
    data = b"".join(answer.data for answer in answers)
    assert len(answers) > 1
    assert data == part.data
    assert parse_slice(data, 0, 0).last_index == 19
    assert [entry.body for entry in iter_entries(data)] == [b"%d" % n for n in range(20)]


async def test_an_empty_log_and_the_end_of_the_log_are_empty_ranges(stub, backend):
    (answer,) = await collect(stub.Read(pb.ReadRequest(group=GROUP, to_index=-1)))
    assert (answer.header.code, answer.end, len(answer.entries), answer.next_index) == (200, True, 0, 0)
    backend.put(b"x")
    (answer,) = await collect(stub.Read(pb.ReadRequest(group=GROUP, from_index=1, to_index=-1)))
    assert (answer.header.code, answer.end, len(answer.entries), answer.next_index) == (200, True, 0, 1)


@pytest.mark.parametrize(
    ("first", "last", "more", "code"),
    [
        (-1, -1, {}, 410),
        (4, -1, {}, 410),
        (0, 3, {}, 410),
        (2, 1, {}, 411),
        (0, -2, {}, 411),
        (0, -1, {"max_bytes": -1}, 411),
        (-5, -1, {"follow": True}, 410),
    ],
)
async def test_a_range_that_cannot_be_is_refused(stub, backend, first, last, more, code):
    backend.put(b"0", b"1", b"2")
    (answer,) = await collect(stub.Read(pb.ReadRequest(group=GROUP, from_index=first, to_index=last, **more)))
    assert answer.header.code == code
    assert not answer.end
    assert answer.header.message


async def test_follow_gets_new_entries_as_they_commit(stub, backend):
    backend.put(b"old")
    call = stub.Read(pb.ReadRequest(group=GROUP, to_index=-1, follow=True))
    assert [entry.body for entry in (await call.read()).entries] == [b"old"]
    for number in range(3):
        backend.put(b"", type=EntryType.NOOP)
        backend.put(b"new %d" % number)
        bodies = [entry.body for entry in (await asyncio.wait_for(call.read(), 30)).entries]
        assert bodies == [b"new %d" % number]
    call.cancel()
    await eventually(lambda: not backend.read_waits)


async def test_follow_up_to_an_index_ends_there(stub, backend):
    call = stub.Read(pb.ReadRequest(group=GROUP, from_index=1, to_index=2, follow=True))
    answers = asyncio.create_task(collect(call))
    for number in range(4):
        backend.put(b"%d" % number)
    bodies = [entry.body for answer in await asyncio.wait_for(answers, 30) for entry in answer.entries]
    assert bodies == [b"1", b"2"]
    assert answers.result()[-1].end


async def test_a_failure_on_the_way_says_where_to_resume(stub, backend):
    backend.put(*[b"%d" % n for n in range(10)])
    read_slice = backend.read_slice

    async def failing(first_index, last_index, max_bytes):
        if first_index >= 5:
            raise StorageFailedError("bad sector")
        return await read_slice(first_index, last_index, max_bytes)

    backend.read_slice = failing
    answers = await collect(stub.Read(pb.ReadRequest(group=GROUP, to_index=-1, max_bytes=5 * 49)))
    assert [answer.header.code for answer in answers] == [200, 414]
    assert answers[-1].next_index == 5
    assert not answers[-1].end


async def test_a_slow_reader_does_not_make_the_node_read_ahead(stub, backend):
    """gRPC's window is a few messages; the rest of the range stays in the store until it is wanted."""
    backend.max_entry_bytes = 2**20
    backend.put(*[b"x" * 100_000 for _ in range(200)])
    call = stub.Read(pb.ReadRequest(group=GROUP, to_index=-1, max_bytes=100_000))

    def chunk_count():
        return sum(1 for name, *_ in backend.calls if name == "read_slice")

    assert (await call.read()).next_index == 1
    await settled(chunk_count)
    assert chunk_count() < 190
    rest = await collect_entries(call)
    assert rest[-1] == 199


async def collect_entries(call):
    out = []
    while (answer := await call.read()) is not aio.EOF:
        out += [entry.index for entry in answer.entries]
    return out


async def test_stopping_ends_a_read_that_waits(stub, backend, node):
    call = stub.Read(pb.ReadRequest(group=GROUP, to_index=-1, follow=True))
    reading = asyncio.create_task(call.read())
    await eventually(lambda: backend.read_waits)
    node.server._ledger.close()
    with pytest.raises(aio.AioRpcError) as caught:
        await asyncio.wait_for(reading, 30)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert not backend.read_waits
