"""The newest messages in memory, and the quick hash of unique ids: they say what the plain ways say."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from broker_adapter.message import Message, encode_message, get_property
from broker_adapter.store.files import FdPool
from broker_adapter.store.index_file import UniqueIds, key_hash
from broker_adapter.store.logic import LogicStore
from broker_adapter.store.tail_cache import TailCache
from tests.broker.store.helpers import store_config


def message(physical: int, body: bytes = b"x") -> bytes:
    return encode_message(Message("T", body, physical_offset=physical))


def stretch(first: int, count: int, gap: int = 48) -> tuple[bytes, list[int], int]:
    """(buffer, physical offsets, end) of messages with something between them, as entries of the log have."""
    parts: list[bytes] = []
    places: list[int] = []
    at = first
    for number in range(count):
        at += gap
        places.append(at)
        one = message(at, b"body %d" % number)
        parts += [bytes(gap), one]
        at += len(one)
    return b"".join(parts), places, at


def test_messages_are_found_by_their_place_only() -> None:
    cache = TailCache(1 << 20)
    buffer, places, end = stretch(1000, 5)
    cache.add(buffer, 1000, places[0], end)
    assert cache.message(places[2]) == encode_message(Message("T", b"body 2", physical_offset=places[2]))
    assert cache.message(places[2] + 1) is None
    assert cache.message(places[0] - 48) is None
    assert cache.message(end) is None
    assert cache.find(end - 1) == (places[0], end, buffer, 1000)
    cache.clear()
    assert (cache.message(places[2]), cache.byte_count) == (None, 0)


def test_the_oldest_go_and_one_buffer_counts_once() -> None:
    first, second = message(0, bytes(400)), message(1000, bytes(400))
    cache = TailCache(len(first))
    cache.add(first, 0, 0, 100)
    cache.add(first, 0, 100, len(first))  # dispatched in two parts
    assert cache.byte_count == len(first)
    assert cache.message(0) == first
    cache.add(second, 1000, 1000, 1000 + len(second))
    assert (cache.message(0), cache.message(1000), cache.byte_count) == (None, second, len(second))


def test_a_log_that_was_cut_back_leaves_nothing_of_what_stood_there() -> None:
    cache = TailCache(1 << 20)
    old, new = message(500), message(500, b"another")
    cache.add(message(100), 100, 100, 100 + len(message(100)))
    cache.add(old, 500, 500, 500 + len(old))
    cache.add(new, 500, 500, 500 + len(new))
    assert cache.message(500) == new


@pytest.mark.parametrize("shared", [True, False])
def test_what_was_dispatched_can_be_had_from_memory(tmp_path: Path, shared: bool) -> None:
    logic = LogicStore(store_config(tmp_path), FdPool())
    buffer, places, end = stretch(0, 20)
    ends = [place - 48 for place in places[1:]] + [end]
    messages = [(buffer, place, place, 1, 0) for place in places]
    if not shared:
        messages = [(buffer[place:stop], 0, place, 1, 0) for place, stop in zip(places, ends, strict=True)]
    logic.dispatch(messages[:7])
    logic.dispatch(messages[7:])
    for place, stop in zip(places, ends, strict=True):
        assert logic.cache.message(place) == buffer[place:stop]
    logic.close()
    logic._pool.close()


ids = st.text("0123456789ABCDEFaé#\x02", min_size=30, max_size=33) | st.text("0F", min_size=32, max_size=32)


@given(st.lists(st.tuples(st.sampled_from([b"T", b"%RETRY%g", "thé".encode()]), ids, st.booleans()), max_size=12))
@example(
    [(b"T", "0" * 32, True), (b"T", "0" * 31 + "1", True), (b"U", "0" * 32, False), (b"T", "0" * 28 + "abcd", False)]
)
def test_the_quick_hash_is_the_plain_one_or_none(keys: list[tuple[bytes, str, bool]]) -> None:
    hasher = UniqueIds()
    for topic, text, ended in keys:
        raw = b"A\x01b\x02UNIQ_KEY\x01" + text.encode() + (b"\x02WAIT\x01true\x02" if ended else b"")
        at = raw.index(b"UNIQ_KEY\x01") + 9
        found = hasher.hash(topic, raw, at, len(raw))
        value = get_property(raw, b"UNIQ_KEY")
        assert value is not None
        assert found in {-1, key_hash(topic, value)}
        if len(value) == 32 and value.isascii():
            assert found >= 0
