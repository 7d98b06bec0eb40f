"""Messages of one batch as they stand in the log, found and checked together.

A batch becomes messages of one topic, queue, sender and moment, mostly of one size, each in an entry of its own. Then
every field stands at the same distance from the one before, and one `Struct` with a gap reads it from all of them: the
loops run in C. What is not so is looked at one by one, as ever, with the same result.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import chain, groupby
from struct import Struct
from typing import Final

from broker_adapter.message import V6_FLAGS
from broker_adapter.store.put_groups import ENTRY_HEADER_BYTES

__all__ = ["MIN_RUN", "are_alike", "numbers", "run_length"]

MIN_RUN: Final = 8
"""Fewer messages are cheaper one by one."""

_MAX_RUN: Final = 1024
_WINDOW: Final = ENTRY_HEADER_BYTES + 36
"""In an entry: sysFlag, times, hosts, reconsume times, prepared offset, body length. What tells batches apart."""
_WINDOW_BYTES: Final = 52
_PLACE: Final = ENTRY_HEADER_BYTES + 28


def run_length(data: bytes, at: int, size: int, physical: int) -> int:
    """Return how many entries from ``at`` on hold messages that share all but body, properties and place.

    The first, of ``size`` bytes, is known to hold a message at ``physical``. The others follow at distances of
    ``size``, in ``data`` as in the log, and each says its own place.
    """
    most = min((len(data) - at) // size, _MAX_RUN)
    if most < MIN_RUN:
        return 1
    window_at = at + _WINDOW
    window = data[window_at : window_at + _WINDOW_BYTES]
    if not data.startswith(window, window_at + (MIN_RUN - 1) * size):
        return 1
    topic_at = _WINDOW + _WINDOW_BYTES + int.from_bytes(window[-4:], "big")
    if topic_at >= size or int.from_bytes(window[:4], "big") & V6_FLAGS:
        return 1
    properties_at = topic_at + 1 + data[at + topic_at] + 2
    if properties_at > size:
        return 1
    entries = _shared(size, topic_at, properties_at).iter_unpack(memoryview(data)[at : at + most * size])
    _, alike = next(groupby(entries))
    count = len(list(alike))
    if count < MIN_RUN:
        return 1
    places = range(physical, physical + count * size, size)
    return count if numbers(data, at, size, count, _PLACE) == list(places) else 1


def numbers(data: bytes, at: int, stride: int, count: int, offset: int) -> list[int]:
    """Return the 64-bit numbers at ``offset`` of ``count`` pieces, ``stride`` bytes each, the first at ``at``."""
    pieces = memoryview(data)[at : at + count * stride]
    return list(chain.from_iterable(_number(offset, stride).iter_unpack(pieces)))


def are_alike(data: bytes, at: int, stride: int, count: int, begin: int, end: int) -> bool:
    """Whether ``count`` pieces, ``stride`` bytes each, the first at ``at``, have the same bytes from ``begin`` to
    ``end``."""
    found = list(_bytes(begin, end, stride).iter_unpack(memoryview(data)[at : at + count * stride]))
    return found.count(found[0]) == count


@lru_cache(maxsize=256)
def _shared(size: int, topic_at: int, properties_at: int) -> Struct:
    """What the entries of a run share: type and size, term, the message's size and magic, queue and flag, window,
    topic and the properties' length."""
    body = topic_at - _WINDOW - _WINDOW_BYTES
    return Struct(f"8s8x8s24x8s4x8s16x{_WINDOW_BYTES}s{body}x{properties_at - topic_at}s{size - properties_at}x")


@lru_cache(maxsize=256)
def _number(offset: int, stride: int) -> Struct:
    return Struct(f">{offset}xq{stride - offset - 8}x")


@lru_cache(maxsize=256)
def _bytes(begin: int, end: int, stride: int) -> Struct:
    return Struct(f"{begin}x{end - begin}s{stride - end}x")
