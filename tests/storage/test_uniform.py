"""Runs of equal entries: the same bytes and the same verdict as one entry at a time."""

from __future__ import annotations

import random

import google_crc32c
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dledger.raft.messages import EntryType
from dledger.storage import entry as module
from dledger.storage.entry import CorruptSliceError, EntryGroup, encode_groups, parse_prefix, parse_slice
from dledger.storage.uniform import MIN_RUN, check_run, known_run

SEGMENT = 64 * 1024


@pytest.fixture
def one_by_one(monkeypatch):
    """A function that makes a call without the columns."""

    def call(function, *args, **kwargs):
        with monkeypatch.context() as patch:
            patch.setattr(module, "MIN_RUN", 2**62)
            patch.setattr(module, "check_run", lambda *_: None)
            return function(*args, **kwargs)

    return call


def groups_of(*shapes):
    """Groups of (channel, count, size) each, with random bodies."""
    rng = random.Random(5)
    return [
        EntryGroup(EntryType.NORMAL, channel, [rng.randbytes(size) for _ in range(count)])
        for channel, count, size in shapes
    ]


def encode(groups, *, pos=0, first_index=3, term=7, chain=99):
    return encode_groups(
        groups, term=term, first_index=first_index, pos=pos, prev_chain_crc=chain, segment_bytes=SEGMENT
    )


SHAPES = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from([1, 5, MIN_RUN - 1, MIN_RUN, 3 * MIN_RUN]),
        st.sampled_from([0, 1, 100, 256]),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=60)
@given(shapes=SHAPES, pos=st.integers(0, SEGMENT - 8))
def test_encoding_and_parsing_are_those_of_one_at_a_time(shapes, pos):
    """Across groups, channels, sizes and segments."""
    groups = groups_of(*shapes)
    fast = encode(groups, pos=pos)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MIN_RUN", 2**62)
        patch.setattr(module, "check_run", lambda *_: None)
        slow = encode(groups, pos=pos)
        parsed_slowly = [parse_slice(part.data, part.first_index, part.prev_chain_crc) for part in slow]
    assert fast == slow
    assert [parse_slice(part.data, part.first_index, part.prev_chain_crc) for part in fast] == parsed_slowly
    crcs = [google_crc32c.value(part.data) for part in fast]
    assert [
        parse_slice(part.data, part.first_index, part.prev_chain_crc, crc) for part, crc in zip(fast, crcs, strict=True)
    ] == parsed_slowly


def test_a_run_is_found_and_not_the_entries_behind_it():
    (part,) = encode(groups_of((1, 80, 50), (1, 80, 51)))
    run = check_run(part.data, 0, 3, 0, 99)
    assert (run.length, run.size, run.term, run.channel) == (80, 98, 7, 1)
    assert run.records == part.index_records[: 80 * 32]
    assert run.chain_crc == part.chain_crc_before(83)
    assert check_run(part.data, part.offsets[80], 83, part.offsets[80], run.chain_crc).chain_crc == part.chain_crc


def test_a_long_run_is_taken_in_pieces():
    bodies = [bytes([number % 251]) for number in range(3000)]
    (part,) = encode_groups(
        [EntryGroup(EntryType.NORMAL, 4, bodies)],
        term=1, first_index=0, pos=0, prev_chain_crc=0, segment_bytes=2**20,
    )  # fmt: skip
    assert parse_slice(part.data, 0, 0) == part


@pytest.mark.parametrize(
    "change",
    ["term", "channel", "size", "body_size"],
)
def test_a_run_ends_where_anything_shared_changes(change):
    """Though every CRC is right: each half is a run of its own."""
    first = encode(groups_of((1, 80, 50)))[0]
    second = encode(
        groups_of((2 if change == "channel" else 1, 80, 60 if "size" in change else 50)),
        pos=first.end_pos,
        first_index=83,
        term=8 if change == "term" else 7,
        chain=first.chain_crc,
    )[0]
    data = first.data + second.data
    assert check_run(data, 0, 3, 0, 99).length == 80
    parsed = parse_slice(data, 3, 99)
    assert (parsed.last_index, parsed.chain_crc, len(parsed.terms)) == (162, second.chain_crc, 1 + (change == "term"))
    assert parsed.index_records == first.index_records + second.index_records


def test_every_changed_byte_is_found_and_named_as_one_at_a_time(one_by_one):
    (part,) = encode(groups_of((1, MIN_RUN + 8, 9)), pos=48)
    for at in range(len(part.data)):
        data = bytearray(part.data)
        data[at] ^= 1 << at % 8
        found = parse_prefix(bytes(data), 3, 99, pos=48)
        assert found.problem, f"byte {at}"
        assert found == one_by_one(parse_prefix, bytes(data), 3, 99, pos=48)


@pytest.mark.parametrize(("index", "pos", "chain"), [(4, 0, 99), (3, 1, 99), (3, 0, 98)])
def test_a_run_from_elsewhere_is_none(index, pos, chain):
    (part,) = encode(groups_of((1, 80, 50)))
    assert check_run(part.data, 0, 3, 0, 99) is not None
    assert check_run(part.data, 0, index, pos, chain) is None


@given(st.binary(max_size=200), st.integers(0, 40))
def test_bytes_that_are_no_entries_are_no_run(noise, repeat):
    """Whatever stands there, and however often: no exception, no run."""
    assert check_run(noise * repeat, 0, 0, 0, 0) is None


@pytest.mark.parametrize("number", [2**63 - 1, 2**63 - 5000])
def test_positions_and_indexes_at_the_end_of_numbers(number, one_by_one):
    (part,) = encode(groups_of((0, 80, 100)))
    for place in ({"first_index": number}, {"pos": number}):
        arguments = {"first_index": 3, "pos": 0} | place
        found = parse_prefix(part.data, arguments["first_index"], 99, pos=arguments["pos"])
        assert found == one_by_one(parse_prefix, part.data, arguments["first_index"], 99, pos=arguments["pos"])
        assert found.slice is None


# -- bytes that another node has verified


def known_part():
    """A slice of 80 entries from index 3 on, at position 1000, behind a chain_crc of 99."""
    (part,) = encode(groups_of((1, 80, 50)), pos=1000)
    return part


def test_known_bytes_are_taken_by_their_crc_without_a_look_at_each(monkeypatch):
    part = known_part()
    monkeypatch.setattr(module, "check_run", None)  # would be called for each run
    assert parse_slice(part.data, 3, 99, google_crc32c.value(part.data)) == part


def test_a_known_slice_with_a_flipped_bit_is_refused():
    """In transit: its CRC is that of the sender's bytes."""
    part = known_part()
    crc = google_crc32c.value(part.data)
    for place in range(len(part.data)):
        damaged = bytearray(part.data)
        damaged[place] ^= 1 << place % 8
        with pytest.raises(CorruptSliceError, match="is not the one announced"):
            parse_slice(bytes(damaged), 3, 99, crc)


@pytest.mark.parametrize(
    ("first_index", "chain", "problem"), [(4, 99, "bad header"), (2, 99, "bad header"), (3, 98, "chain CRC mismatch")]
)
def test_known_bytes_of_another_place_are_refused(first_index, chain, problem):
    """Good bytes, but they do not go on where this log ends."""
    part = known_part()
    crc = google_crc32c.value(part.data)
    with pytest.raises(CorruptSliceError, match=problem):
        parse_slice(part.data, first_index, chain, crc)


@pytest.mark.parametrize(
    ("at", "value"), [(3, 1), (15, 9), (31, 9), (36, 9), (47, 9), (79 * 98 + 15, 9), (79 * 98 + 31, 9)]
)
def test_a_known_run_begins_and_ends_where_it_should(at, value):
    """Whatever is wrong with the first header, or with the last one's place, is no run."""
    part = known_part()
    assert known_run(part.data, 0, 3, 1000, 99).chain_crc == part.chain_crc
    other = bytearray(part.data)
    other[at] ^= value
    assert known_run(bytes(other), 0, 3, 1000, 99) is None


def test_a_short_run_is_none():
    (part,) = encode(groups_of((1, MIN_RUN - 1, 50)))
    assert known_run(part.data, 0, 3, 0, 99) is None
