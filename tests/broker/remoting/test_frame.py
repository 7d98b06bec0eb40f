"""The decoder gives the same frames however the stream is cut, and never trusts a length."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_adapter.remoting.errors import FrameError
from broker_adapter.remoting.frame import DEFAULT_MAX_FRAME_BYTES, FrameDecoder


def framed(payload: bytes) -> bytes:
    return struct.pack(">i", len(payload)) + payload


@given(st.lists(st.binary(min_size=4, max_size=60), max_size=12), st.lists(st.integers(1, 50), min_size=1, max_size=40))
def test_any_cut_gives_the_same_frames(payloads: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(framed(payload) for payload in payloads)
    decoder = FrameDecoder()
    found: list[bytes] = []
    at, number = 0, 0
    while at < len(stream):
        step = cuts[number % len(cuts)]
        found += decoder.feed(stream[at : at + step])
        at, number = at + step, number + 1
    assert found == payloads
    assert decoder.buffered_bytes == 0


@pytest.mark.parametrize("length", [-1, -(2**31), 0, 1, 3, DEFAULT_MAX_FRAME_BYTES - 3, 2**31 - 1])
def test_a_wild_length_ends_it(length: int) -> None:
    decoder = FrameDecoder()
    with pytest.raises(FrameError):
        list(decoder.feed(struct.pack(">i", length) + b"xxxx"))


def test_the_largest_frame_passes() -> None:
    decoder = FrameDecoder(max_frame_bytes=104)
    assert [len(f) for f in decoder.feed(framed(b"x" * 100))] == [100]
    with pytest.raises(FrameError):
        list(decoder.feed(framed(b"x" * 101)))


def test_good_frames_before_a_bad_one_come_first() -> None:
    decoder = FrameDecoder()
    frames = decoder.feed(framed(b"good") + struct.pack(">i", -1))
    assert next(frames) == b"good"
    with pytest.raises(FrameError):
        next(frames)


def test_a_promised_large_frame_takes_no_memory_ahead() -> None:
    decoder = FrameDecoder()
    assert list(decoder.feed(struct.pack(">i", DEFAULT_MAX_FRAME_BYTES - 4) + b"abc")) == []
    assert decoder.buffered_bytes == 7


@given(st.lists(st.binary(max_size=40), max_size=10))
def test_random_bytes_only_ever_raise_frame_errors(pieces: list[bytes]) -> None:
    decoder = FrameDecoder(max_frame_bytes=256)
    try:
        for piece in pieces:
            for frame in decoder.feed(piece):
                assert 4 <= len(frame) <= 252
    except FrameError:
        return
    assert decoder.buffered_bytes <= 256
