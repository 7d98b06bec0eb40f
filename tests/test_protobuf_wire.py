"""A long field of bytes goes into a message and out of it as protobuf has it."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from dledger.protobuf_wire import (
    BYTES,
    FIXED32,
    VARINT,
    join_last_bytes,
    kinds,
    put_varint,
    read_message,
    split_last_bytes,
)
from dledger.v1 import raft_pb2 as pb

APPEND = pb.RaftMessage.APPEND_ENTRIES_FIELD_NUMBER
DATA = pb.AppendEntries.DATA_FIELD_NUMBER

outers = st.builds(pb.RaftMessage, group=st.text(max_size=9), sender=st.text(max_size=9), term=st.integers(0, 2**62))
inners = st.builds(
    pb.AppendEntries,
    prev_log_index=st.integers(-(2**63), 2**63 - 1),
    prev_chain_crc=st.integers(0, 2**32 - 1),
    terms=st.lists(st.builds(pb.TermRun, first_index=st.integers(-1, 2**40), term=st.integers(0, 99)), max_size=3),
    epoch=st.integers(0, 3),
    data_crc=st.none() | st.integers(0, 2**32 - 1),
)
datas = st.sampled_from([0, 1, 127, 128, 300, 2**14, 2**21 + 5]).map(lambda size: bytes(range(251)) * (size // 251 + 1))


@settings(max_examples=100, deadline=None)
@given(outers, inners, datas)
def test_what_is_joined_is_the_message_and_comes_apart_again(outer, inner, data):
    parts = outer.SerializeToString(), inner.SerializeToString(), data
    joined = join_last_bytes(parts[0], APPEND, parts[1], DATA, data)
    outer.append_entries.CopyFrom(inner)
    outer.append_entries.data = data
    assert pb.RaftMessage.FromString(joined) == outer
    assert split_last_bytes(joined, APPEND, DATA) == parts


@settings(max_examples=300, deadline=None)
@given(outers, inners, st.integers(0, 10_000), st.binary(min_size=1, max_size=3))
def test_damage_is_not_split_or_split_as_protobuf_reads_it(outer, inner, at, noise):
    joined = join_last_bytes(outer.SerializeToString(), APPEND, inner.SerializeToString(), DATA, b"entries" * 9)
    at %= len(joined)
    damaged = joined[:at] + noise + joined[at + len(noise) :]
    split = split_last_bytes(damaged, APPEND, DATA)
    if split is None:
        return
    try:
        head, body = pb.RaftMessage.FromString(split[0]), pb.AppendEntries.FromString(split[1])
    except DecodeError:
        return
    if head.WhichOneof("body") is not None or body.data:
        return  # refused by the codec: protobuf would merge them
    body.data = split[2]
    head.append_entries.CopyFrom(body)
    assert pb.RaftMessage.FromString(damaged) == head


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\x52",
        b"\x52\x05ab",
        b"\xff" * 12,
        b"\x53\x00",
        pb.RaftMessage(term=1, heartbeat=pb.Heartbeat(round=1)).SerializeToString(),
        pb.RaftMessage(term=1, append_entries=pb.AppendEntries(data=b"x", epoch=3)).SerializeToString(),
    ],
    ids=repr,
)
def test_what_does_not_end_with_the_field_is_left_to_protobuf(message):
    assert split_last_bytes(message, APPEND, DATA) is None


KINDS = kinds({1: VARINT, 2: BYTES, 3: FIXED32})


@pytest.mark.parametrize("number", [-1, 0, 1, 127, 128, 2**14 - 1, 2**14, 2**32, 2**62, 2**63 - 1])
def test_numbers_come_back(number):
    assert read_message(b"\x08" + put_varint(number), 0, KINDS) == [None, number, None, None]


@pytest.mark.parametrize("number", [-1, -2, -(2**31), -(2**63)])
def test_negative_numbers_are_as_the_library_has_them(number):
    assert pb.TermRun.FromString(b"\x08" + put_varint(number)).first_index == number


@pytest.mark.parametrize(
    "data",
    [
        b"\x08",  # cut off
        b"\x08\xff",
        b"\x12\x05abc",
        b"\x1d\x00\x00",
        b"\x08\x01\x08\x02",  # twice
        b"\x20\x01",  # unknown
        b"\x0a\x01x",  # of another type
        b"\x00\x01",  # no field at all
        b"\x80\x01\x01",
        b"\x08" + b"\xff" * 8 + b"\x7f\x01"[:1] + b"\x08",
        b"\x08\xfe" + b"\xff" * 8 + b"\x01",  # -2
        b"\x12" + b"\xff" * 9 + b"\x01",  # bytes of length -1
    ],
)
def test_what_is_not_plain_is_for_the_library(data):
    assert read_message(data, 0, KINDS) is None


@pytest.mark.parametrize("byte", [b"\x80", b"\xfe", b"\xff"])
def test_a_number_without_an_end_is_given_up_at_once(byte):
    """Else eight megabytes of it would take minutes."""
    assert read_message(b"\x08" + byte * (8 << 20), 0, KINDS) is None
