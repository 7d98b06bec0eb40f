"""The codec: every message survives the way out and in; everything else is a typed error."""

from __future__ import annotations

from dataclasses import replace

import google_crc32c
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dledger.errors import DLedgerError, ResponseCode, UnexpectedArgumentError, UnknownGroupError, UnknownMemberError
from dledger.raft import messages
from dledger.raft.messages import (
    AppendEntries,
    AppendEntriesResponse,
    EntryType,
    Heartbeat,
    HeartbeatResponse,
    Message,
    ReadIndexRequest,
    ReadIndexResponse,
    RequestVote,
    RequestVoteResponse,
    TimeoutNow,
    VoteResult,
)
from dledger.rpc import codec
from dledger.storage.entry import CorruptSliceError, EntryGroup, RawSlice, Slice, encode_groups
from dledger.v1 import raft_pb2 as pb

MEMBERS = frozenset({"n0", "n1", "n2"})
SENDER = "n1"

index = st.integers(-1, 2**62)
terms = st.integers(0, 2**62)
any_int = st.integers(-(2**63), 2**63 - 1)

STREAM_MESSAGES = {
    AppendEntriesResponse: st.builds(
        AppendEntriesResponse, st.just(SENDER), terms, st.booleans(), index, index, index, index, index
    ),
    Heartbeat: st.builds(Heartbeat, st.just(SENDER), terms, index, any_int, index),
    HeartbeatResponse: st.builds(HeartbeatResponse, st.just(SENDER), terms, any_int, index, index, index),
    ReadIndexRequest: st.builds(ReadIndexRequest, st.just(SENDER), terms, any_int),
    ReadIndexResponse: st.builds(ReadIndexResponse, st.just(SENDER), terms, any_int, st.integers(-2, 2**62)),
    TimeoutNow: st.builds(TimeoutNow, st.just(SENDER), terms),
}
VOTE_REQUESTS = st.builds(RequestVote, st.just(SENDER), terms, index, index, st.booleans(), st.booleans())
VOTE_RESPONSES = st.builds(
    RequestVoteResponse, st.just(SENDER), terms, terms, st.booleans(), st.booleans(), st.booleans(),
    st.sampled_from(VoteResult),
)  # fmt: skip


def decode(data, *, group="g", node_id="n0"):
    return codec.decode_stream(data, group=group, node_id=node_id, members=MEMBERS)


def encode(message, *, group="g", target="n0"):
    return codec.encode_stream(message, group=group, target=target)


def append(bodies=(b"a", b"bc"), *, prev=6, entry_term=4, term=5):
    """An append of ``bodies`` after index ``prev``, as a leader sends it."""
    (part,) = encode_groups(
        [EntryGroup(EntryType.NORMAL, 0, list(bodies))],
        term=entry_term,
        first_index=prev + 1,
        pos=1000,
        prev_chain_crc=77,
        segment_bytes=2**30,
    )
    return AppendEntries(SENDER, term, prev, entry_term, part.last_index, part.terms, prev, 77, part)


def damaged(message, **changes):
    """The bytes of ``message`` with fields of its append changed on the wire."""
    whole = pb.RaftMessage.FromString(encode(message))
    for name, value in changes.items():
        if name == "terms":
            del whole.append_entries.terms[:]
            whole.append_entries.terms.extend(pb.TermRun(first_index=i, term=t) for i, t in value)
        else:
            setattr(whole.append_entries, name, value)
    return whole.SerializeToString()


# -- the way out and in


def test_every_message_has_a_strategy_here():
    """A message added to the core without a codec test fails here."""
    public = [getattr(messages, name) for name in messages.__all__]
    kinds = {kind for kind in public if isinstance(kind, type) and issubclass(kind, Message)}
    assert kinds == {*STREAM_MESSAGES, Message, AppendEntries, RequestVote, RequestVoteResponse}
    assert {*codec.STREAM_REQUESTS, *codec.STREAM_RESPONSES} == {*STREAM_MESSAGES, AppendEntries}


@pytest.mark.parametrize("kind", list(STREAM_MESSAGES), ids=lambda kind: kind.__name__)
def test_a_stream_message_survives(kind):
    @settings(max_examples=60, deadline=None)
    @given(STREAM_MESSAGES[kind])
    def survives(message):
        assert decode(encode(message)) == message
        assert decode(encode(message, target="")) == message

    survives()


@settings(max_examples=60, deadline=None)
@given(
    bodies=st.lists(st.binary(max_size=40), min_size=1, max_size=8),
    prev=st.integers(-1, 2**40),
    entry_term=st.integers(0, 9),
    lead=st.integers(0, 3),
)
def test_an_append_survives_with_its_entries_verified(bodies, prev, entry_term, lead):
    message = append(bodies, prev=prev, entry_term=entry_term, term=entry_term + lead)
    back = decode(encode(message))
    assert back == message
    assert back.payload == message.payload


plain_appends = st.builds(
    lambda bodies, prev, lead, commit, epoch: replace(
        append(bodies, prev=prev, term=4 + lead), commit_index=commit, epoch=epoch
    ),
    st.lists(st.binary(max_size=300), min_size=1, max_size=70), st.integers(-1, 2**40), st.integers(0, 300), index,
    st.integers(0, 300),
)  # fmt: skip
plain_answers = st.builds(
    lambda term, match, last, forgetful, epoch: AppendEntriesResponse(
        SENDER, term, True, match, last, forgetful=forgetful, epoch=epoch
    ),
    st.integers(1, 2**62), index, index, st.booleans(), st.integers(0, 300),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(plain_appends | plain_answers)
def test_by_hand_and_by_the_library_the_same_is_written_and_read(message):
    by_hand = encode(message)
    by_library = pb.RaftMessage.FromString(by_hand).SerializeToString()
    for data in (by_hand, by_library):
        assert codec._decode_by_hand(data, "g", "n0", MEMBERS) == decode(data) == message
        assert decode(data).terms == message.terms if isinstance(message, AppendEntries) else True


@settings(max_examples=600, deadline=None)
@given(plain_appends | plain_answers, st.integers(0, 2**30), st.binary(max_size=3), st.integers(0, 3))
def test_damage_is_to_the_hand_what_it_is_to_the_library(message, at, noise, dropped):
    data = encode(message)
    at %= min(len(data), 80) if at % 3 else len(data)
    data = data[:at] + noise + data[at + dropped :]

    def outcome():
        try:
            found = decode(data)
        except DLedgerError as error:
            return type(error)
        return found, getattr(found, "payload", None)

    by_hand = outcome()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "_decode_by_hand", lambda *_: None)
        assert outcome() == by_hand


@pytest.mark.parametrize("name", ["g" * 127, "g" * 128, "g" * 300])
def test_long_names_are_for_the_library(name):
    message = AppendEntriesResponse(SENDER, 3, True, 1, 1)
    assert decode(encode(message, group=name), group=name) == message


def test_a_raw_slice_is_sent_as_it_is():
    """Entries read back from the disk go out without being decoded."""
    message = append()
    raw = RawSlice(7, 8, message.payload.data, 77)
    back = decode(encode(replace(message, payload=raw)))
    assert isinstance(back.payload, Slice)
    assert back.payload == message.payload


LARGE = [b"%06d" % number + bytes(250) for number in range(200)]


@pytest.mark.parametrize("with_crc", [False, True])
def test_a_large_append_is_protobuf_and_survives(with_crc):
    """From 32 KiB on it goes around the library's copies, both ways; the bytes are the same message."""
    message = append(LARGE)
    data = message.payload.data
    crc = google_crc32c.value(data) if with_crc else None
    wire = encode(replace(message, payload=RawSlice(7, 206, data, 77, crc)))
    whole = pb.RaftMessage.FromString(wire)
    assert (whole.group, whole.sender, whole.target, whole.term) == ("g", SENDER, "n0", 5)
    assert whole.append_entries.data == data
    assert whole.append_entries.HasField("data_crc") == with_crc
    for back in (decode(wire), decode(whole.SerializeToString())):  # fields in any order
        assert back == message
        assert back.payload == message.payload


@pytest.mark.parametrize("bodies", [(b"a", b"bc"), LARGE])
@pytest.mark.parametrize("bit", [0, 5, 299, 8 * 60])
def test_entries_that_are_not_those_of_their_crc_are_refused(bodies, bit):
    message = append(bodies)
    data = bytearray(message.payload.data)
    crc = google_crc32c.value(bytes(data))
    data[bit // 8] ^= 1 << bit % 8
    wire = encode(replace(message, payload=RawSlice(7, message.last_index, bytes(data), 77, crc)))
    with pytest.raises(CorruptSliceError, match="is not the one announced"):
        decode(wire)


def test_a_large_message_with_two_bodies_is_refused():
    wire = encode(append(LARGE))
    other = pb.RaftMessage(heartbeat=pb.Heartbeat(round=1)).SerializeToString()
    with pytest.raises(UnexpectedArgumentError, match="more than one body"):
        decode(other + wire)


def test_a_probe_has_no_payload():
    probe = AppendEntries(SENDER, 5, 6, 4, 6, (), 6, 77, None)
    back = decode(encode(probe))
    assert back == probe
    assert back.payload is None


@settings(max_examples=60, deadline=None)
@given(VOTE_REQUESTS)
def test_a_vote_request_survives(message):
    data = codec.encode_vote_request(message, group="g", target="n0")
    assert codec.decode_vote_request(data, group="g", node_id="n0", members=MEMBERS) == message


@settings(max_examples=60, deadline=None)
@given(VOTE_RESPONSES)
def test_a_vote_response_survives(message):
    data = codec.encode_vote_response(message, group="g")
    assert codec.decode_vote_response(data, group="g", peer=SENDER) == message


def test_votes_do_not_travel_on_a_stream():
    with pytest.raises(UnexpectedArgumentError, match="RequestVote does not travel on a stream"):
        encode(RequestVote(SENDER, 1, 0, 0))


def test_an_append_without_a_slice_is_the_callers_mistake():
    with pytest.raises(UnexpectedArgumentError, match="payload of an append is a bytes"):
        encode(replace(append(), payload=b"raw"))


# -- the fence


@pytest.mark.parametrize(
    ("message", "group", "target", "error", "words"),
    [
        (TimeoutNow("n1", 1), "other", "n0", UnknownGroupError, "'other'"),
        (TimeoutNow("n1", 1), "", "n0", UnknownGroupError, "''"),
        (TimeoutNow("n9", 1), "g", "n0", UnknownMemberError, "'n9'"),
        (TimeoutNow("n0", 1), "g", "n0", UnknownMemberError, "'n0'"),
        (TimeoutNow("n1", 1), "g", "n2", UnknownMemberError, "for 'n2'"),
    ],
)
def test_what_is_not_ours_is_refused(message, group, target, error, words):
    with pytest.raises(error, match=words):
        decode(encode(message, group=group, target=target))


@pytest.mark.parametrize(
    ("group", "sender", "target", "error"),
    [
        ("x", "n1", "n0", UnknownGroupError),
        ("g", "n7", "n0", UnknownMemberError),
        ("g", "n1", "n2", UnknownMemberError),
    ],
)
def test_a_vote_request_that_is_not_ours_is_refused(group, sender, target, error):
    data = codec.encode_vote_request(RequestVote(sender, 1, 0, 0), group=group, target=target)
    with pytest.raises(error):
        codec.decode_vote_request(data, group="g", node_id="n0", members=MEMBERS)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"group": "x"}, UnknownGroupError),
        ({"sender": "n2"}, UnknownMemberError),
        ({"reason": "WHATEVER"}, UnexpectedArgumentError),
        ({"term": -1}, UnexpectedArgumentError),
        ({"request_term": -5}, UnexpectedArgumentError),
        ({"code": 400}, UnknownGroupError),
        ({"code": 12345}, DLedgerError),
    ],
)
def test_a_vote_response_that_is_not_the_peers_is_refused(changes, error):
    good = RequestVoteResponse("n1", 3, 3, True, False)
    response = pb.RequestVoteResponse.FromString(codec.encode_vote_response(good, group="g"))
    for name, value in changes.items():
        setattr(response, name, value)
    with pytest.raises(error):
        codec.decode_vote_response(response.SerializeToString(), group="g", peer="n1")


def test_a_refused_vote_request_says_why():
    data = codec.encode_vote_refusal(UnknownGroupError("no such group"), group="g", node_id="n1")
    with pytest.raises(UnknownGroupError, match="n1 refused the vote request: no such group"):
        codec.decode_vote_response(data, group="g", peer="n1")


# -- numbers and entries that no core sends


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("heartbeat", "commit_index", -2),
        ("heartbeat", "sent_index", 2**63 - 1),
        ("heartbeat_response", "match_index", -2),
        ("append_entries_response", "conflict_term", -2),
        ("append_entries_response", "rejected_index", 2**62 + 1),
        ("read_index_response", "read_index", -3),
        ("append_entries", "prev_log_index", -2),
        ("append_entries", "commit_index", -9),
    ],
)
def test_a_number_out_of_range_is_refused(kind, field, value):
    whole = pb.RaftMessage(group="g", sender="n1", target="n0", term=1)
    setattr(getattr(whole, kind), field, value)
    with pytest.raises(UnexpectedArgumentError, match=f"{field} is {value}"):
        decode(whole.SerializeToString())


@pytest.mark.parametrize("term", [-1, -(2**63), 2**62 + 1])
def test_a_term_out_of_range_is_refused(term):
    whole = pb.RaftMessage(group="g", sender="n1", term=term, timeout_now=pb.TimeoutNow())
    with pytest.raises(UnexpectedArgumentError, match="term is"):
        decode(whole.SerializeToString())


@pytest.mark.parametrize(
    "changes",
    [
        {"data": b"not entries"},
        {"data": b""},
        {"last_index": 9},
        {"last_index": 6},
        {"prev_log_index": 7},
        {"prev_chain_crc": 78},
        {"terms": [(7, 3)]},
        {"terms": []},
        {"terms": [(7, 4), (8, 4)]},
        {"prev_log_term": 5},
    ],
    ids=str,
)
def test_entries_that_differ_from_the_announcement_are_corrupt(changes):
    with pytest.raises(CorruptSliceError):
        decode(damaged(append(), **changes))


def test_entries_of_a_later_term_than_the_message_are_corrupt():
    with pytest.raises(CorruptSliceError, match="in term 5"):
        decode(encode(append(entry_term=6, term=5)))


def test_every_flipped_bit_of_the_entries_is_found():
    message = append((b"body",))
    data = message.payload.data
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << (bit % 8)
        with pytest.raises(CorruptSliceError):
            decode(damaged(message, data=bytes(flipped)))


def test_a_message_without_a_body_is_refused():
    with pytest.raises(UnexpectedArgumentError, match="no body"):
        decode(pb.RaftMessage(group="g", sender="n1", term=1).SerializeToString())


# -- garbage


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_garbage_is_a_typed_error(data):
    for attempt in (
        lambda: decode(data),
        lambda: codec.decode_vote_request(data, group="g", node_id="n0", members=MEMBERS),
        lambda: codec.decode_vote_response(data, group="g", peer="n1"),
    ):
        with pytest.raises(DLedgerError) as caught:
            attempt()
        assert caught.value.code in ResponseCode


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=3), st.sampled_from(["append", "heartbeat", "vote"]))
def test_a_damaged_message_is_a_message_or_a_typed_error(at, noise, kind):
    """Bytes overwritten anywhere: whatever is still a message is well-formed, all else is typed."""
    good = {
        "append": lambda: encode(append()),
        "heartbeat": lambda: encode(Heartbeat("n1", 3, 4, 5, 6)),
        "vote": lambda: codec.encode_vote_request(RequestVote("n1", 3, 4, 2), group="g", target="n0"),
    }[kind]()
    at %= len(good)
    data = good[:at] + noise + good[at + len(noise) :]
    try:
        if kind == "vote":
            message = codec.decode_vote_request(data, group="g", node_id="n0", members=MEMBERS)
        else:
            message = decode(data)
    except DLedgerError:
        return
    assert message.sender in {"n1", "n2"}
    assert 0 <= message.term <= 2**62
    if isinstance(message, AppendEntries) and message.payload is not None:
        assert message.payload.data == append().payload.data
