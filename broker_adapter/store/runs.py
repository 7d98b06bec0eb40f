"""Messages of one batch as they stand in the log, found and checked together.

A batch becomes messages of one topic, queue, sender and moment, mostly of one size, each in an entry of its own. Then
every field stands at the same distance from the one before, and one slice with a step reads it from all of them: the
loops run in C. What is not so is looked at one by one, as ever, with the same result.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from itertools import chain
from sys import byteorder
from typing import Final

from broker_adapter.store.put_groups import ENTRY_HEADER_BYTES

__all__ = ["MIN_RUN", "are_ascending", "count_alike", "run_length"]

MIN_RUN: Final = 8
"""Fewer messages are cheaper one by one."""

_V6_FLAGS: Final = 48
_WINDOW: Final = ENTRY_HEADER_BYTES + 36
"""In an entry: sysFlag, times, hosts, reconsume times, prepared offset, body length. What tells batches apart."""
_WINDOW_BYTES: Final = 52
_TERM, _TERM_END = 16, 24
_PLACE: Final = ENTRY_HEADER_BYTES + 28
_SHARED: Final = (
    *range(8),  # the entry's type and size
    *range(ENTRY_HEADER_BYTES, ENTRY_HEADER_BYTES + 8),  # the message's size and magic
    *range(ENTRY_HEADER_BYTES + 12, ENTRY_HEADER_BYTES + 20),  # its queue and flag
)


def run_length(data: bytes, at: int, size: int, physical: int) -> int:
    """Return how many entries from ``at`` on hold messages that share all but body, properties and place.

    The first, of ``size`` bytes, is known to hold a message at ``physical``. The others follow at distances of
    ``size``, in ``data`` as in the log, and each says its own place.
    """
    window = data[at + _WINDOW : at + _WINDOW + _WINDOW_BYTES]
    count, most = 1, (len(data) - at) // size
    look_at = at + _WINDOW + size
    while count < most and data.startswith(window, look_at):
        count += 1
        look_at += size
    if count < MIN_RUN or int.from_bytes(window[:4], "big") & _V6_FLAGS:
        return 1
    topic_at = _WINDOW + _WINDOW_BYTES + int.from_bytes(window[-4:], "big")
    properties_at = topic_at + 1 + data[at + topic_at] + 2 if topic_at < size else size + 1
    if properties_at > size:
        return 1
    count = count_alike(data, at, size, count, chain(_SHARED, range(topic_at, properties_at)))
    last = at + (count - 1) * size
    if data[last + _TERM : last + _TERM_END] != data[at + _TERM : at + _TERM_END]:  # terms never fall
        return 1
    if count < MIN_RUN or not are_ascending(data, at + _PLACE, size, count, physical, size):
        return 1
    return count


def count_alike(data: bytes, at: int, stride: int, count: int, offsets: Iterable[int]) -> int:
    """Return how many of ``count`` pieces, ``stride`` apart, begin alike: in the bytes at ``offsets`` of each."""
    for offset in offsets:
        lane = data[at + offset : at + offset + (count - 1) * stride + 1 : stride]
        if lane.count(lane[0]) != count:
            count -= len(lane.lstrip(lane[:1]))
    return count


def are_ascending(data: bytes, at: int, stride: int, count: int, first: int, step: int) -> bool:
    """Whether the 64-bit numbers at ``at``, ``stride`` apart, are ``first``, ``first + step`` and so on."""
    numbers = array("q", range(first, first + count * step, step))
    if byteorder == "little":
        numbers.byteswap()
    expected = numbers.tobytes()
    last = (count - 1) * stride + 1
    return all(data[at + byte : at + byte + last : stride] == expected[byte::8] for byte in range(8))
