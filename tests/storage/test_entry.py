"""The byte format: golden bytes made by hand, and that nothing but what was written is ever taken for an entry."""

from __future__ import annotations

import struct

import google_crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dledger.errors import EntryTooLargeError
from dledger.raft.messages import EntryType, TermRun
from dledger.storage.entry import (
    CorruptSliceError,
    EntryGroup,
    SessionRun,
    encode_groups,
    iter_entries,
    parse_prefix,
    parse_slice,
)

SEGMENT = 1024


def by_hand(magic, index, term, pos, channel, chain, body):
    """One entry, made with struct alone from the table in the format's description."""
    size = 48 + len(body)
    body_crc = google_crc32c.value(body)

    def header(chain_crc):
        return struct.pack(">iiqqqiIIi", magic, size, index, term, pos, channel, chain_crc, body_crc, len(body))

    chain = google_crc32c.extend(chain, header(0))
    return header(chain) + body, chain


def encode(groups, *, term=7, first_index=0, pos=0, chain=0, segment=SEGMENT):
    return encode_groups(
        groups, term=term, first_index=first_index, pos=pos, prev_chain_crc=chain, segment_bytes=segment
    )


def test_an_entry_is_the_bytes_of_the_table():
    """The format is DLedger's to the byte, with both CRCs filled in."""
    (part,) = encode([EntryGroup(EntryType.NORMAL, 3, [b"hello", b""]), EntryGroup(EntryType.NOOP, 0, [b""])])
    first, chain = by_hand(1, 0, 7, 0, 3, 0, b"hello")
    second, chain = by_hand(1, 1, 7, 53, 3, chain, b"")
    third, chain = by_hand(2, 2, 7, 101, 0, chain, b"")
    assert part.data == first + second + third
    assert part.chain_crc == chain
    assert part.offsets == [0, 53, 101]
    assert part.end_pos == 149


def test_golden_bytes():
    """Literal bytes: a change of the format cannot hide behind a change of the code that tests it."""
    (part,) = encode([EntryGroup(EntryType.NORMAL, 9, [b"dledger"])], term=2, first_index=5, pos=96, chain=0x01020304)
    golden = (
        "00000001" "00000037" "0000000000000005" "0000000000000002" "0000000000000060"
        "00000009" + part.data[36:40].hex() + f"{google_crc32c.value(b'dledger'):08x}" "00000007" + b"dledger".hex()
    )  # fmt: skip
    assert part.data.hex() == golden
    zeroed = part.data[:36] + bytes(4) + part.data[40:48]
    assert int.from_bytes(part.data[36:40], "big") == google_crc32c.extend(0x01020304, zeroed)


def test_crc_is_crc32c():
    """The check value of CRC-32C (Castagnoli), as published."""
    assert google_crc32c.value(b"123456789") == 0xE3069283


def test_an_index_record_is_the_bytes_of_the_table():
    (part,) = encode([EntryGroup(EntryType.NORMAL, 0, [b"hello"])], first_index=4, pos=100)
    assert part.index_records == struct.pack(">iqiqq", 1, 100, 53, 4, 7)


def test_entries_never_span_segments():
    """One stands only where size + 8 fits; else the next segment begins with it."""
    size = SEGMENT - 8 - 48
    (exact,) = encode([EntryGroup(EntryType.NORMAL, 0, [bytes(size)])])
    assert exact.end_pos == SEGMENT - 8
    first, second = encode([EntryGroup(EntryType.NORMAL, 0, [b"a", bytes(size)])])
    assert (first.first_pos, first.last_index) == (0, 0)
    assert (second.first_pos, second.first_index, second.prev_chain_crc) == (SEGMENT, 1, first.chain_crc)


def test_an_entry_larger_than_a_segment_is_refused():
    with pytest.raises(EntryTooLargeError, match="does not fit"):
        encode([EntryGroup(EntryType.NORMAL, 0, [bytes(SEGMENT - 48 - 7)])])


def test_the_hook_sees_the_position_and_changes_the_body():
    seen = []

    def hook(positions, bodies):
        seen.extend(positions)
        return [struct.pack(">q", pos) + body[8:] for pos, body in zip(positions, bodies, strict=True)]

    (part,) = encode([EntryGroup(EntryType.NORMAL, 0, [bytes(8), bytes(8)], hook)], pos=64)
    assert seen == [64, 120]
    assert [entry.body for entry in iter_entries(part.data)] == [struct.pack(">q", pos) for pos in seen]
    assert parse_slice(part.data, 0, 0).chain_crc == part.chain_crc


def test_the_hook_sees_where_bodies_stand_in_the_next_segments():
    """One call for all, whatever segments they fall into; the positions are those that are written."""
    seen = []

    def hook(positions, bodies):
        seen.append(list(positions))
        return [b"%08d" % pos + body[8:] for pos, body in zip(positions, bodies, strict=True)]

    parts = encode([EntryGroup(EntryType.NORMAL, 3, [bytes(SEGMENT // 3)] * 100, hook)], pos=SEGMENT - 100)
    entries = [entry for part in parts for entry in iter_entries(part.data)]
    assert len(parts) == 50
    assert seen == [[entry.pos for entry in entries]]
    assert [int(entry.body[:8]) for entry in entries] == seen[0]


@pytest.mark.parametrize("made", [[bytes(8)], [bytes(8), bytes(7)], [bytes(8)] * 3])
def test_a_hook_that_changes_lengths_is_refused(made):
    with pytest.raises(ValueError, match="other lengths than the 2"):
        encode([EntryGroup(EntryType.NORMAL, 0, [bytes(8), bytes(8)], lambda *_: made)])


GROUPS = st.lists(
    st.builds(
        EntryGroup,
        st.just(EntryType.NORMAL),
        st.integers(0, 2),
        st.lists(st.binary(max_size=120), min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=8,
)


@given(GROUPS, st.integers(0, SEGMENT - 8), st.integers(0, 2**32 - 1))
def test_parsing_gives_back_what_was_encoded(groups, pos, chain):
    """Slice after slice, with every number that the store and the core take from it."""
    bodies = [(group.channel, body) for group in groups for body in group.bodies]
    found = []
    for part in encode(groups, first_index=11, pos=pos, chain=chain):
        parsed = parse_slice(part.data, part.first_index, part.prev_chain_crc)
        for name in ("first_index", "last_index", "first_pos", "end_pos", "offsets", "chain_crc", "index_records"):
            assert getattr(parsed, name) == getattr(part, name), name
        assert parsed.terms == part.terms == (TermRun(part.first_index, 7),)
        assert part.first_pos // SEGMENT == part.end_pos // SEGMENT
        assert sum(run.count for run in parsed.sessions) == sum(run.count for run in part.sessions)
        found += [(entry.session_id, entry.body) for entry in iter_entries(part.data)]
    assert found == bodies


def test_parsing_finds_runs_of_terms_and_sessions():
    parts = []
    index, pos, chain = 0, 0, 0
    for term, group in [
        (1, EntryGroup(EntryType.SESSION, 1, [b"client-a"])),
        (1, EntryGroup(EntryType.NORMAL, 1, [b"a0", b"a1"])),
        (1, EntryGroup(EntryType.NORMAL, 0, [b"none"])),
        (3, EntryGroup(EntryType.NOOP, 0, [b""])),
        (3, EntryGroup(EntryType.NORMAL, 1, [b"a2"])),
        (3, EntryGroup(EntryType.SESSION, 2, [b"client-b"])),
        (3, EntryGroup(EntryType.NORMAL, 2, [b"b0"])),
    ]:
        (part,) = encode([group], term=term, first_index=index, pos=pos, chain=chain)
        parts.append(part.data)
        index, pos, chain = part.last_index + 1, part.end_pos, part.chain_crc
    parsed = parse_slice(b"".join(parts), 0, 0)
    assert parsed.terms == (TermRun(0, 1), TermRun(4, 3))
    assert parsed.sessions == (
        SessionRun(1, 0, 1, b"client-a"),
        SessionRun(1, 1, 2),
        SessionRun(1, 5, 1),
        SessionRun(2, 6, 1, b"client-b"),
        SessionRun(2, 7, 1),
    )


def test_parts_of_a_slice_are_what_encoding_them_alone_gives():
    (whole,) = encode([EntryGroup(EntryType.NORMAL, 1, [b"a", b"bb", b"ccc", b"dddd"])])
    for at in range(1, 4):
        head, tail = whole.up_to(at - 1), whole.from_index(at)
        assert head.data + tail.data == whole.data
        assert (head.chain_crc, tail.chain_crc) == (tail.prev_chain_crc, whole.chain_crc)
        assert (head.last_index, tail.first_index, tail.first_pos) == (at - 1, at, head.end_pos)
        assert head.index_records + tail.index_records == whole.index_records


def test_every_single_bit_counts():
    """Flip every bit of a slice: it is never taken for good. (Position 0 is told apart only by a known place.)"""
    (part,) = encode([EntryGroup(EntryType.NORMAL, 5, [b"first", b"second body"])], first_index=3, pos=64)
    for bit in range(len(part.data) * 8):
        damaged = bytearray(part.data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptSliceError):
            parse_slice(bytes(damaged), 3, 0)


@pytest.mark.parametrize(
    ("kind", "channel"), [(EntryType.NORMAL, 0), (EntryType.NORMAL, 9), (EntryType.NOOP, 0), (EntryType.SESSION, 9)]
)
@pytest.mark.parametrize("body", [b"", b"a body"])
def test_an_entry_alone_is_parsed_as_with_others_and_every_bit_of_it_counts(kind, channel, body):
    (part,) = encode([EntryGroup(kind, channel, [body])], first_index=3, pos=64, chain=77)
    assert parse_slice(part.data, 3, 77) == parse_prefix(part.data, 3, 77).slice == part
    for index, chain in ((2, 77), (3, 78)):
        with pytest.raises(CorruptSliceError):
            parse_slice(part.data, index, chain)
    for data in (part.data[:-1], part.data + b"x"):
        with pytest.raises(CorruptSliceError):
            parse_slice(data, 3, 77)
    for bit in range(len(part.data) * 8):
        damaged = bytearray(part.data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptSliceError):
            parse_slice(bytes(damaged), 3, 77)


def test_every_cut_of_a_slice_gives_the_whole_entries_before_it():
    (part,) = encode([EntryGroup(EntryType.NORMAL, 5, [b"first", b"", b"third"])])
    ends = [*part.offsets[1:], len(part.data)]
    for length in range(len(part.data)):
        parsed = parse_prefix(part.data[:length], 0, 0, pos=0)
        whole = sum(end <= length for end in ends)
        assert (0 if parsed.slice is None else len(parsed.slice)) == whole
        assert parsed.short == (length not in (0, *ends))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda part: (part.data, 1, 0), "bad header"),
        (lambda part: (part.data, 0, 1), "chain CRC"),
        (lambda part: (part.data[53:], 0, 0), "bad header"),
        (lambda part: (b"", 0, 0), "empty"),
        (lambda part: (b"\xff" * 100, 0, 0), "bad header"),
    ],
)
def test_bytes_from_elsewhere_are_refused(change, problem):
    (part,) = encode([EntryGroup(EntryType.NORMAL, 0, [b"hello", b"world"])])
    with pytest.raises(CorruptSliceError, match=problem):
        parse_slice(*change(part))


def test_terms_never_fall():
    (first,) = encode([EntryGroup(EntryType.NORMAL, 0, [b"a"])], term=5)
    (second,) = encode(
        [EntryGroup(EntryType.NORMAL, 0, [b"b"])], term=4, first_index=1, pos=first.end_pos, chain=first.chain_crc
    )
    with pytest.raises(CorruptSliceError, match="entry 1: bad header"):
        parse_slice(first.data + second.data, 0, 0)
