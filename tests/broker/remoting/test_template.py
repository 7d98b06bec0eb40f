"""Answers from a template say what the general encoder would; those of one loop turn leave in one write, in order."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_adapter.remoting.codes import ResponseCode
from broker_adapter.remoting.command import FLAG_ONEWAY, RemotingCommand, decode_command, encode_head
from broker_adapter.remoting.connection import RemotingConnection
from broker_adapter.remoting.frame import FrameDecoder
from broker_adapter.remoting.server import RemotingServer
from broker_adapter.remoting.template import AnswerTemplate

FIELDS = ("msgId", "queueId", "queueOffset")


@given(
    opaque=st.integers(-(2**31), 2**31 - 1),
    ids=st.lists(st.text("0123456789ABCDEF", min_size=32, max_size=32), min_size=1, max_size=3),
    queue_id=st.integers(0, 2**31 - 1),
    offset=st.integers(0, 2**63 - 1),
    region=st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    trace=st.booleans(),
    body=st.integers(0, 2**20),
)
def test_it_is_the_general_encoders_answer(
    opaque: int, ids: list[str], queue_id: int, offset: int, region: str, trace: bool, body: int
) -> None:
    constant = {"MSG_REGION": region, "TRACE_ON": trace}
    message_id = ",".join(ids)
    request = RemotingCommand(310, opaque=opaque)
    ext: dict[str, object] = {"msgId": message_id, "queueId": queue_id, "queueOffset": offset, **constant}
    expected = encode_head(request.response(ResponseCode.SUCCESS, None, ext), body)
    assert AnswerTemplate(FIELDS, constant).head(opaque, (message_id, queue_id, offset), body) == expected


def header(**changes: object) -> bytes:
    fields: dict[str, object] = {"code": 10, "opaque": 3, "flag": 0, "version": 63, "language": "CPP", **changes}
    return json.dumps({name: value for name, value in fields.items() if value is not None}).encode()


def decoded(text: bytes) -> RemotingCommand:
    return decode_command(len(text).to_bytes(4, "big") + text + b"body")


@pytest.mark.parametrize("around", [(b"", b"\n"), (b" ", b""), (b"\t", b" \r\n"), (b"", b"")])
def test_blanks_around_a_header_mean_nothing(around: tuple[bytes, bytes]) -> None:
    """Apache's C++ client ends each header with a line break."""
    plain = decoded(header())
    assert decoded(around[0] + header() + around[1]) == plain
    assert (plain.code, plain.opaque, plain.version, plain.language, plain.body) == (10, 3, 63, "CPP", b"body")


@pytest.mark.parametrize(
    ("changes", "attribute", "value"),
    [
        ({"opaque": "7"}, "opaque", 7),
        ({"flag": 2.0}, "flag", 2),
        ({"version": None}, "version", 0),
        ({"language": 1}, "language", "CPP"),
        ({"remark": 5}, "remark", "5"),
        ({"code": True}, "code", 1),
    ],
)
def test_other_types_are_taken_the_slow_way(changes: dict[str, object], attribute: str, value: object) -> None:
    assert getattr(decoded(header(**changes)), attribute) == value


@given(frames=st.lists(st.binary(min_size=4, max_size=40), max_size=8), cuts=st.lists(st.integers(0, 400), max_size=8))
def test_frames_come_out_however_they_are_cut(frames: list[bytes], cuts: list[int]) -> None:
    """One whole frame a read is the quick way, everything else the general one; both in one stream."""
    stream = b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames)
    decoder = FrameDecoder(64)
    found: list[bytes] = []
    places = sorted({min(cut, len(stream)) for cut in cuts} | {0, len(stream)})
    for begin, end in pairwise(places):
        found += decoder.feed(stream[begin:end])
    assert found == frames


class Wire(asyncio.Transport):
    """Notes what is written, call by call."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))

    def writelines(self, list_of_data: Sequence[bytes | bytearray | memoryview]) -> None:  # type: ignore[override]
        self.writes.append(b"".join(map(bytes, list_of_data)))

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        del high, low

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        self.writes.append(b"closed")


def connected() -> tuple[RemotingConnection, Wire]:
    connection, wire = RemotingConnection(RemotingServer()), Wire()
    connection.connection_made(wire)
    return connection, wire


@pytest.mark.asyncio
async def test_answers_of_one_turn_leave_in_one_write() -> None:
    connection, wire = connected()
    request = RemotingCommand(310)
    connection.reply_encoded(request, 0, b"one", ())
    connection.reply_encoded(RemotingCommand(310, flag=FLAG_ONEWAY), 0, b"nobody waits for this", ())
    connection.reply_encoded(request, 0, b"two", (b"with", b"body"))
    assert wire.writes == []
    await asyncio.sleep(0)
    assert wire.writes == [b"onetwowithbody"]
    connection.reply_encoded(request, 0, b"three", ())
    await asyncio.sleep(0)
    assert wire.writes[1:] == [b"three"]
    connection.reply_encoded(request, 0, b"large", (bytes(70_000),))
    await asyncio.sleep(0)
    assert wire.writes[2:] == [b"large" + bytes(70_000)]


@pytest.mark.asyncio
async def test_what_is_written_later_stands_behind_them() -> None:
    connection, wire = connected()
    request = RemotingCommand(310)
    connection.reply_encoded(request, 0, b"one", ())
    connection.reply(request, request.response())
    assert [wire.writes[0], len(wire.writes)] == [b"one", 2]
    connection.reply_encoded(request, 0, b"two", ())
    connection.close()
    assert wire.writes[2:] == [b"two", b"closed"]
    connection.connection_lost(None)
    connection.reply_encoded(request, 0, b"nobody is there", ())
    await asyncio.sleep(0)
    assert wire.writes[2:] == [b"two", b"closed"]
