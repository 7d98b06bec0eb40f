"""Runs of entries of one size, term and session, encoded and verified column by column.

What an entry costs in Python is the calls made for it. Producers mostly send bodies of one size; then header fields
stand at equal distances, and a field of all entries is read, compared or written by one slice or view with a step, a
CRC of all by one ``map``: the loops run in C. The bytes are the same as one by one (`dledger.storage.entry` has the
format, and does what is not uniform), and so is the verdict: every byte is covered by a CRC, every field is compared.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import accumulate, islice
from operator import itemgetter
from struct import Struct
from sys import byteorder
from typing import Final, NamedTuple

import google_crc32c

from dledger.raft.messages import EntryType
from dledger.storage.layout import HEADER, HEADER_BYTES, INDEX_RECORD, INDEX_RECORD_BYTES

__all__ = ["MIN_RUN", "CheckedRun", "EncodedRun", "check_run", "encode_run", "known_run"]

MIN_RUN: Final = 64
"""Fewer entries are cheaper one by one."""

_MAX_RUN: Final = 1024
"""More at once would leave the processor's caches."""

_SHARED: Final = (7, 6, 35, 34, *range(6), *range(16, 24), 32, 33, *range(44, 48))
"""Where a header holds what is the same all along a run: magic, size, term, channel, body size. What mostly differs if
anything does comes first."""

_MAX: Final = 2**63 - 1
_INDEX, _POS, _CHAIN, _BODY_CRC = 8, 24, 36, 40
_first = itemgetter(0)


class EncodedRun(NamedTuple):
    """Entries as bytes: their headers (each to be followed by its body), the index records, the last chain_crc."""

    headers: bytes
    records: bytes
    chain_crc: int

    def each_header(self) -> Iterator[bytes]:
        """Yield the headers one by one."""
        return map(_first, _headers(HEADER_BYTES).iter_unpack(self.headers))


class CheckedRun(NamedTuple):
    """Entries that were verified: what they share, their index records, the last chain_crc."""

    length: int
    """How many."""
    size: int
    """Bytes of each, header included."""
    term: int
    channel: int
    records: bytes
    chain_crc: int


@lru_cache(maxsize=64)
def _bodies(size: int) -> Struct:
    return Struct(f"{HEADER_BYTES}x{size - HEADER_BYTES}s")


@lru_cache(maxsize=64)
def _headers(size: int) -> Struct:
    return Struct(f"{HEADER_BYTES}s{size - HEADER_BYTES}x")


def encode_run(
    channel: int, bodies: Iterable[bytes], count: int, length: int, *, term: int, index: int, pos: int, chain_crc: int
) -> EncodedRun:
    """Encode ``count`` normal entries with bodies of ``length`` bytes, one behind the other from ``pos`` on."""
    size = HEADER_BYTES + length
    headers = bytearray(HEADER.pack(EntryType.NORMAL, size, 0, term, 0, channel, 0, 0, length) * count)
    _fill(headers, _INDEX, array("q", range(index, index + count)))
    _fill(headers, _POS, array("q", range(pos, pos + count * size, size)))
    _fill(headers, _BODY_CRC, array("I", map(google_crc32c.value, bodies)))
    each = map(_first, _headers(HEADER_BYTES).iter_unpack(bytes(headers)))  # with zeros for the chain_crc
    chains = array("I", islice(accumulate(each, google_crc32c.extend, initial=chain_crc), 1, None))
    chain_crc = chains[-1]
    _fill(headers, _CHAIN, chains)
    return EncodedRun(bytes(headers), _records(headers, count), chain_crc)


def check_run(data: bytes, at: int, index: int, pos: int, chain_crc: int) -> CheckedRun | None:
    """Verify the run that begins at ``at``, with entry ``index`` at position ``pos`` of the log.

    Its bodies are encoded again: every byte of every header must be what comes out. Returns None where there is no run
    of at least `MIN_RUN` normal entries, or something in it is wrong: what, is for a look at each to find out.
    """
    count = _run_length(data, at)
    if count < MIN_RUN:
        return None
    magic, size, _, term, _, channel, _, _, length = HEADER.unpack_from(data, at)
    if size != length + HEADER_BYTES or magic != EntryType.NORMAL or max(index + count, pos + count * size) > _MAX:
        return None
    end = at + count * size
    run = data if at == 0 and end == len(data) else data[at:end]
    bodies = map(_first, _bodies(size).iter_unpack(run))
    expected = encode_run(channel, bodies, count, length, term=term, index=index, pos=pos, chain_crc=chain_crc)
    if b"".join(map(_first, _headers(size).iter_unpack(run))) != expected.headers:
        return None
    return CheckedRun(count, size, term, channel, expected.records, expected.chain_crc)


def known_run(data: bytes, at: int, index: int, pos: int, chain_crc: int) -> CheckedRun | None:
    """As `check_run` for bytes that are known to be good entries of some log: whether they go on from here is to prove.

    By the chain_crc of the first header: it covers all that came before.
    """
    count = _run_length(data, at)
    if count < MIN_RUN:
        return None
    magic, size, first_index, term, first_pos, channel, first_chain, _, length = HEADER.unpack_from(data, at)
    last_at = at + (count - 1) * size
    last = HEADER.unpack_from(data, last_at)
    zeroed = data[at : at + _CHAIN] + bytes(4) + data[at + _BODY_CRC : at + HEADER_BYTES]
    if (
        (magic, first_index, first_pos, length) != (EntryType.NORMAL, index, pos, size - HEADER_BYTES)
        or (last[2], last[4]) != (index + count - 1, pos + count * size - size)
        or google_crc32c.extend(chain_crc, zeroed) != first_chain
    ):
        return None
    headers = bytearray().join(map(_first, _headers(size).iter_unpack(data[at : last_at + size])))
    return CheckedRun(count, size, term, channel, _records(headers, count), last[6])


def _run_length(data: bytes, at: int) -> int:
    """Return how many whole entries from ``at`` on have the same size, magic, term and channel as the first."""
    size = int.from_bytes(data[at + 4 : at + 8], "big")
    if size < HEADER_BYTES:
        return 0
    count = min((len(data) - at) // size, _MAX_RUN)
    looked_at = MIN_RUN  # a few first: mostly there is no run at all, or a long one
    while count >= MIN_RUN:
        for byte in _SHARED:
            lane = data[at + byte : at + looked_at * size : size]
            if lane != lane[:1] * looked_at:
                count = looked_at - len(lane.lstrip(lane[:1]))
                if count < MIN_RUN:
                    return 0
                looked_at = count
        if looked_at == count:
            return count
        looked_at = count
    return 0


def _lane(headers: memoryview, at: int, width: int, stride: int = HEADER_BYTES) -> memoryview:
    """Return the fields of 8 or 4 bytes at ``at`` of all headers: copied or written, the loop runs in C."""
    numbers = headers.cast("q") if width == 8 else headers.cast("I")
    return numbers[at // width :: stride // width]


def _records(headers: bytearray, count: int) -> bytes:
    """Return the index records that go with these headers."""
    magic, size, index, term, pos, *_ = HEADER.unpack_from(headers)
    records = bytearray(INDEX_RECORD.pack(magic, pos, size, index, term) * count)
    source, target = memoryview(headers), memoryview(records)
    for at, record_at in ((_POS, 4), (_INDEX, 16)):
        for half in (0, 4):  # the position stands at no multiple of 8 in a record
            _lane(target, record_at + half, 4, INDEX_RECORD_BYTES)[:] = _lane(source, at + half, 4)
    return bytes(records)


def _fill(headers: bytearray, at: int, numbers: array[int]) -> None:
    """Write a number into each header, in place of the field at ``at``. The array is used up."""
    if byteorder == "little":
        numbers.byteswap()
    _lane(memoryview(headers), at, numbers.itemsize)[:] = memoryview(numbers)
