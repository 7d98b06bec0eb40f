"""Requests and answers of single appends that are written and read by hand: to the library they are its own."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dledger.client.append_call import AppendCall
from dledger.client.transport import AppendBatch
from dledger.errors import DLedgerError
from dledger.rpc.answers import Answers
from dledger.rpc.append_stream import Batches
from dledger.types import BatchResult, IndexRun
from dledger.v1 import ledger_pb2 as pb

from .fakes import GROUP, FakeBackend

number = st.integers(0, 2**62)
indexes = st.integers(-1, 2**62)
runs = st.lists(st.builds(IndexRun, indexes, number, number), max_size=3)


@settings(max_examples=100, deadline=None)
@given(runs, st.integers(-(2**63), 2**63 - 1))
def test_the_answer_to_a_batch(runs, request_id):
    answers = Answers(FakeBackend())
    answer = pb.AppendBatchResponse.FromString(answers.taken(BatchResult(tuple(runs)), request_id))
    assert answer.header == answers.success()
    assert [IndexRun(run.first_index, run.count, run.term) for run in answer.runs] == runs
    assert answer.request_id == request_id


@settings(max_examples=50, deadline=None)
@given(number, number, indexes)
def test_the_answer_to_an_append(index, term, pos):
    backend = FakeBackend()
    answers = Answers(backend)
    for leader in ("n0", "n1"):
        backend.hint = (term, leader, "127.0.0.1:1")
        answer = pb.AppendResponse.FromString(answers.appended(index, term, pos))
        assert (answer.index, answer.term, answer.pos) == (index, term, pos)
        assert (answer.header.leader_id, answer.header.code) == (leader, 200)


class Call:
    """Enough of a call: what is sent is kept."""

    def __init__(self):
        self.sent = []
        self.heard = []

    def on_answer(self, answer):
        self.heard.append(answer)


def append_call(call):
    made = AppendCall.__new__(AppendCall)
    made._address, made._send = "127.0.0.1:1", call.sent.append
    name = GROUP.encode()
    made._group, made._group_field = GROUP, b"\x0a" + bytes([len(name)]) + name
    made._header, made._handler = None, call
    return made


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=300), min_size=1, max_size=2), st.integers(0, 2**32 - 1), number, number)
def test_a_request_is_read_by_hand_as_by_the_library(bodies, session_id, sequence, request_id):
    call = Call()
    append_call(call).send(AppendBatch(request_id, session_id, sequence, bodies))
    (data,) = call.sent
    request = pb.AppendBatchRequest.FromString(data)
    found = request.group, list(request.bodies), request.session_id, request.first_sequence, request.request_id
    assert found == (GROUP, bodies, session_id, sequence, request_id)
    batches = Batches(FakeBackend(), Answers(FakeBackend()))
    for same in (data, request.SerializeToString()):
        assert batches._single(same) == (found if len(bodies) == 1 else None)


@pytest.mark.parametrize(
    "request_",
    [
        pb.AppendBatchRequest(group="other", bodies=[b"x"]),
        pb.AppendBatchRequest(group=GROUP),
        pb.AppendBatchRequest(group=GROUP, bodies=[b"x", b"y"]),
        pb.AppendBatchRequest(bodies=[b"x"]),
    ],
)
def test_other_requests_are_for_the_library(request_):
    batches = Batches(FakeBackend(), Answers(FakeBackend()))
    assert batches._single(request_.SerializeToString()) is None
    assert batches._single(request_.SerializeToString() + b"\x1a\x00") is None


@settings(max_examples=100, deadline=None)
@given(st.lists(st.builds(IndexRun, indexes, number, number), min_size=1, max_size=2), st.lists(number, min_size=3))
def test_the_client_hears_by_hand_what_it_hears_by_the_library(runs, request_ids):
    """The first answer of a node goes through the library; its header is known from then on."""
    backend, call = FakeBackend(), Call()
    answers, hearing = Answers(backend), append_call(call)
    for number_, request_id in enumerate(request_ids):
        if number_ == 2:
            backend.hint = (9, "n2", "127.0.0.1:9")
        hearing._hear(answers.taken(BatchResult(tuple(runs)), request_id))
    assert [answer.request_id for answer in call.heard] == request_ids
    assert all(answer.runs == tuple(runs) for answer in call.heard)
    assert [answer.header.leader_id for answer in call.heard[:3]] == ["n0", "n0", "n2"]


def test_a_failure_is_heard_though_a_success_came_before():
    call = Call()
    answers, hearing = Answers(FakeBackend()), append_call(call)
    for _ in range(2):
        hearing._hear(answers.taken(BatchResult((IndexRun(4, 1, 2),)), 7))
    header = answers.failure(DLedgerError("no"), "test")
    hearing._hear(pb.AppendBatchResponse(header=header, request_id=8).SerializeToString())
    assert [answer.header.code == 200 for answer in call.heard] == [True, True, False]
    assert call.heard[-1].runs == ()
