"""Commands survive both header encodings; what clients send loosely is coerced; garbage is a FrameError."""

from __future__ import annotations

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_adapter.remoting.codes import ResponseCode
from broker_adapter.remoting.command import (
    FLAG_RESPONSE,
    RemotingCommand,
    SerializeType,
    decode_command,
    encode_command,
)
from broker_adapter.remoting.errors import CommandError, FrameError

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@pytest.mark.parametrize("kind", list(SerializeType))
@given(
    code=st.integers(0, 32767),
    ext=st.dictionaries(texts, texts, max_size=8),
    remark=st.none() | texts.filter(bool),
    opaque=st.integers(-(2**31), 2**31 - 1),
    body=st.binary(max_size=300),
)
def test_round_trip(
    kind: SerializeType, code: int, ext: dict[str, str], remark: str | None, opaque: int, body: bytes
) -> None:
    command = RemotingCommand(code, ext, body, remark, opaque, 2, "JAVA", 409, kind)
    frame = encode_command(command)
    assert struct.unpack(">i", frame[:4])[0] == len(frame) - 4
    decoded = decode_command(frame[4:])
    assert decoded == command


def test_the_json_header_is_upstreams() -> None:
    frame = encode_command(RemotingCommand(105, {"topic": "T", "n": 4, "b": True}, opaque=7, language="JAVA"))
    mark = struct.unpack(">I", frame[4:8])[0]
    assert mark >> 24 == 0
    header = json.loads(frame[8 : 8 + (mark & 0xFFFFFF)])
    assert header["code"] == 105
    assert header["language"] == "JAVA"
    assert header["version"] == 409
    assert header["opaque"] == 7
    assert header["flag"] == 0
    assert header["serializeTypeCurrentRPC"] == "JSON"
    # Upstream's fields are strings; a strict client reads nothing else.
    assert header["extFields"] == {"topic": "T", "n": "4", "b": "true"}


def test_the_binary_header_byte_for_byte() -> None:
    command = RemotingCommand(310, {"a": "x"}, b"B", None, 5, 1, "CPP", 63, serialize_type=SerializeType.ROCKETMQ)
    header = struct.pack(">hBhiii", 310, 1, 63, 5, 1, 0) + struct.pack(">i", 8)
    header += struct.pack(">h", 1) + b"a" + struct.pack(">i", 1) + b"x"
    expected = struct.pack(">iI", 4 + len(header) + 1, (1 << 24) | len(header)) + header + b"B"
    assert encode_command(command) == expected


def test_an_answer_has_the_requests_type_and_opaque() -> None:
    request = RemotingCommand(10, {}, opaque=99, serialize_type=SerializeType.ROCKETMQ)
    answer = request.response(ResponseCode.SYSTEM_BUSY, "busy")
    assert (answer.opaque, answer.flag, answer.serialize_type) == (99, FLAG_RESPONSE, SerializeType.ROCKETMQ)
    assert answer.is_response


@pytest.mark.parametrize(("value", "number"), [("12", 12), (12, 12), (12.0, 12), (True, 1), ("-3", -3), (" 4 ", 4)])
def test_numbers_are_coerced(value: object, number: int) -> None:
    assert RemotingCommand(1, {"n": value}).integer("n") == number


@pytest.mark.parametrize("value", ["x", "1.5", 1.5, [], {}, "9" * 30, float("inf"), float("nan")])
def test_what_is_no_number_is_refused(value: object) -> None:
    with pytest.raises(CommandError) as caught:
        RemotingCommand(1, {"n": value}).integer("n")
    assert caught.value.code == ResponseCode.SYSTEM_ERROR


@pytest.mark.parametrize(
    ("value", "truth"),
    [("true", True), ("1", True), (1, True), (True, True), ("0", False), ("false", False), (0, False)],
)
def test_booleans_are_coerced(value: object, truth: bool) -> None:
    assert RemotingCommand(1, {"b": value}).boolean_or("b") is truth


def test_missing_fields() -> None:
    command = RemotingCommand(1, {"empty": "", "null": None})
    assert command.integer_or("empty", 7) == 7
    assert command.integer_or("nothing", 8) == 8
    assert command.text_or("null", "d") == "d"
    for read in (command.text, command.integer):
        with pytest.raises(CommandError, match="nothing"):
            read("nothing")


def test_json_bodies() -> None:
    assert RemotingCommand(1, body=b'{"a": [1]}').json_object() == {"a": [1]}
    for body in (b"", b"{", b"[1]", b"\xff", b"[" * 100_000):
        with pytest.raises(CommandError):
            RemotingCommand(1, body=body).json_object()


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\0\0\0",
        struct.pack(">I", 100) + b"{}",
        struct.pack(">I", 1) + b"{",
        struct.pack(">I", 2) + b"[]",
        struct.pack(">I", (7 << 24) | 2) + b"{}",
        struct.pack(">I", 12) + b'{"code":"x"}',
        struct.pack(">I", 23) + b'{"code":99999999999999}',
        struct.pack(">I", 16) + b'{"extFields":[]}',
        struct.pack(">I", (1 << 24) | 3) + b"abc",
        struct.pack(">I", (1 << 24) | 21) + struct.pack(">hBhiii", 1, 0, 0, 0, 0, -5) + b"\0\0\0\0",
        struct.pack(">I", (1 << 24) | 21) + struct.pack(">hBhiii", 1, 0, 0, 0, 0, 0) + b"\x7f\xff\xff\xff",
    ],
)
def test_garbage_is_a_frame_error(frame: bytes) -> None:
    with pytest.raises(FrameError):
        decode_command(frame)


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    try:
        decode_command(data)
    except FrameError:
        return


@given(st.binary(max_size=120), st.sampled_from([0, 1]))
def test_no_header_raises_anything_else(header: bytes, kind: int) -> None:
    try:
        decode_command(struct.pack(">I", (kind << 24) | len(header)) + header)
    except FrameError:
        return
