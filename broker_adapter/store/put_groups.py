"""Puts on their way to the log, gathered into groups: one append of the log for all that came while another ran.

A round of the log (disk here, two peers, their answers) costs about the same for one entry as for a hundred. So while a
group is on its way, what arrives waits and leaves together with the next one: alone, a put waits for nobody. Where
there is company, most of those who were answered come again at once: a group waits for three quarters of them, and not
longer than `HOLD_S`; then fewer and larger rounds serve all sooner. As many may follow a group that is still on its
way. A log that hangs does not hold the next group back longer than `GATHER_S`: from then on the log's own limits and
time-outs decide.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from struct import Struct
from typing import Final

import structlog

from broker_adapter.message import TRANSACTION_TYPE_MASK, Message, SysFlag, message_ids
from broker_adapter.store.api import PutMessageStatus, PutResult
from dledger import AppendHook, BatchResult, DLedgerError, ResponseCode

__all__ = ["ENTRY_HEADER_BYTES", "GATHER_S", "HOLD_S", "Put", "PutGroups", "put_status"]

ENTRY_HEADER_BYTES: Final = 48
GATHER_S: Final = 0.05
HOLD_S: Final = 0.008
_COMPANY: Final = 8
"""Fewer producers at once are not waited for."""
_WORTH_A_ROUND: Final = 48
"""So many puts need not wait for more."""
_MAX_INFLIGHT: Final = 2
_GROUP_BYTES: Final = 1024 * 1024
_GROUP_COUNT: Final = 2048
_PLACE: Final = Struct(">qq")
_BUSY: Final = "[PC_SYNCHRONIZED]broker busy, start flow control for a while"

_NOT_AVAILABLE: Final = frozenset(
    {
        ResponseCode.INCONSISTENT_LEADER,
        ResponseCode.NOT_LEADER,
        ResponseCode.LEADER_NOT_READY,
        ResponseCode.LEADER_TRANSFERRING,
        ResponseCode.DISK_FULL,
        ResponseCode.ILLEGAL_MEMBER_STATE,
    }
)

Append = Callable[[Sequence[bytes], Callable[[BatchResult | None, Exception | None], None], AppendHook], None]
"""``append(bodies, done, hook)``: the log's."""


def put_status(error: Exception, *, has_position: bool) -> PutMessageStatus:
    """Map the log's answer to a put status (upstream's table).

    Once the entries have a position, they may commit whatever the answer says: then a refusal that promises the
    opposite (SERVICE_NOT_AVAILABLE) becomes UNKNOWN_ERROR.
    """
    code = error.code if isinstance(error, DLedgerError) else ResponseCode.UNKNOWN
    if code in {ResponseCode.WAIT_QUORUM_ACK_TIMEOUT, ResponseCode.LEADER_PENDING_FULL}:
        return PutMessageStatus.OS_PAGECACHE_BUSY
    if has_position:
        return PutMessageStatus.UNKNOWN_ERROR
    if code in _NOT_AVAILABLE:
        return PutMessageStatus.SERVICE_NOT_AVAILABLE
    if code is ResponseCode.UNEXPECTED_ARGUMENT:
        return PutMessageStatus.MESSAGE_ILLEGAL
    return PutMessageStatus.UNKNOWN_ERROR


class Put:
    """One put: a message or a batch, encoded but for its place, and who waits for the answer."""

    __slots__ = ("_done", "_queue_id", "_time", "bodies", "bumps", "byte_count", "key", "physical", "queue_offset")

    def __init__(
        self, done: Callable[[PutResult], None], message: Message, bodies: Sequence[bytes], byte_count: int
    ) -> None:
        self._done = done
        self.bodies = bodies
        self.byte_count = byte_count
        self.key = (message.topic.encode(), message.queue_id)
        # Prepared and rolled back halves are in no queue: offset 0, none taken.
        self.bumps = message.sys_flag & TRANSACTION_TYPE_MASK in {0, SysFlag.COMMIT}
        self.queue_offset = -1
        self.physical: Sequence[int] = ()
        self._time = message.store_timestamp
        self._queue_id = message.queue_id

    def answer(self, status: PutMessageStatus, remark: str, host: bytes) -> None:
        """Tell who waits. ``host``: the store host, the beginning of a message id."""
        physical = self.physical
        result = PutResult(
            status, self.queue_offset, physical[0] if physical else -1,
            message_ids(host, physical), self._time, bool(physical), remark,
            len(self.bodies), self.byte_count, self._queue_id,
        )  # fmt: skip
        try:
            self._done(result)
        except Exception as error:  # the others of the group must have their answers, too
            structlog.get_logger().error("put_answer_failed", error=repr(error), exc_info=error)


class _Group:
    """Puts of one append: gives each body its place, and each put its answer."""

    __slots__ = ("_offsets", "puts")

    def __init__(self, puts: list[Put], offsets: dict[tuple[bytes, int], int]) -> None:
        self.puts = puts
        self._offsets = offsets

    def hook(self, positions: Sequence[int], bodies: Sequence[bytes]) -> list[bytes]:
        """Write queue and physical offsets into the bodies: an `AppendHook`."""
        physical = [pos + ENTRY_HEADER_BYTES for pos in positions]
        offsets = self._offsets
        queue_offsets: list[int] = []
        begin = 0
        for put in self.puts:
            count = len(put.bodies)
            put.physical = physical[begin : begin + count]
            begin += count
            put.queue_offset = 0
            if put.bumps:
                put.queue_offset = first = offsets.get(put.key, 0)
                offsets[put.key] = first + count
                queue_offsets += range(first, first + count)
            else:
                queue_offsets += [0] * count
        return [
            b"".join((body[:20], place, body[36:]))
            for body, place in zip(bodies, map(_PLACE.pack, queue_offsets, physical), strict=True)
        ]


class PutGroups:
    """Takes puts in order and appends them in order. Event loop only.

    ``refuse`` says whether a put may be given a place at this moment (the store's role may have changed since it was
    taken), ``offsets`` returns the table of next queue offsets.
    """

    def __init__(
        self,
        append: Append,
        *,
        refuse: Callable[[], PutResult | None],
        offsets: Callable[[], dict[tuple[bytes, int], int]],
        host: bytes,
        max_waiting_bytes: int,
    ) -> None:
        self._append = append
        self._refuse = refuse
        self._offsets = offsets
        self._host = host
        self._max_waiting_bytes = max_waiting_bytes
        self._loop = asyncio.get_running_loop()
        self._waiting: list[Put] = []
        self._waiting_bytes = 0
        self._inflight_count = 0
        self._inflight_puts = 0
        self._wanted_count = 1
        """Puts that wait for no more company."""
        self._scheduled: asyncio.Handle | None = None
        self._late: asyncio.TimerHandle | None = None

    @property
    def waiting_count(self) -> int:
        return len(self._waiting)

    def add(self, put: Put) -> None:
        """Take a put; its place in order is that of the call."""
        if self._waiting and self._waiting_bytes + put.byte_count > self._max_waiting_bytes:
            put.answer(
                PutMessageStatus.OS_PAGECACHE_BUSY, f"{_BUSY}: {self._waiting_bytes} bytes wait already", self._host
            )
            return
        self._waiting.append(put)
        self._waiting_bytes += put.byte_count
        self._look()

    def hurry(self) -> None:
        """Append what waits now."""
        if self._waiting:
            self._send()

    def _look(self) -> None:
        """Send what waits if that is worth a round now; else see to it that it leaves in time."""
        if self._scheduled is not None:
            return
        inflight = self._inflight_count
        limit = 1 if self._wanted_count == 1 else _MAX_INFLIGHT
        if inflight < limit and len(self._waiting) >= self._wanted_count:
            self._scheduled = self._loop.call_soon(self._send)
        elif self._late is None:
            self._late = self._loop.call_later(GATHER_S if inflight else HOLD_S, self._send)

    def _send(self) -> None:
        """Append what waits, in as many groups as it takes."""
        self._cancel_timers()
        waiting, self._waiting = self._waiting, []
        self._waiting_bytes = 0
        first = 0
        while first < len(waiting):
            end = first
            count = byte_count = 0
            while end < len(waiting) and (
                end == first or (byte_count + waiting[end].byte_count <= _GROUP_BYTES and count < _GROUP_COUNT)
            ):
                byte_count += waiting[end].byte_count
                count += len(waiting[end].bodies)
                end += 1
            self._append_group(waiting[first:end])
            first = end

    def _append_group(self, puts: list[Put]) -> None:
        refused = self._refuse()
        if refused is not None:
            for put in puts:
                put.answer(refused.status, refused.remark, self._host)
            return
        bodies = puts[0].bodies if len(puts) == 1 else [body for put in puts for body in put.bodies]
        group = _Group(puts, self._offsets())
        self._inflight_count += 1
        self._inflight_puts += len(puts)

        def done(result: BatchResult | None, error: Exception | None) -> None:
            self._done(group, result, error)

        self._append(bodies, done, group.hook)

    def _done(self, group: _Group, result: BatchResult | None, error: Exception | None) -> None:
        self._inflight_count -= 1
        producers = self._inflight_puts + len(self._waiting)  # those who are answered now may come again
        self._inflight_puts -= len(group.puts)
        self._wanted_count = 1 if producers < _COMPANY else min(producers * 3 // 4, _WORTH_A_ROUND)
        host = self._host
        if error is None and result is not None:
            for put in group.puts:
                put.answer(PutMessageStatus.PUT_OK, "", host)
        else:
            failure = error or RuntimeError("no answer")
            for put in group.puts:
                status = put_status(failure, has_position=bool(put.physical))
                remark = f"{_BUSY}: {failure}" if status is PutMessageStatus.OS_PAGECACHE_BUSY else str(failure)
                put.answer(status, remark, host)
        if self._waiting:
            if self._late is not None and not self._inflight_count:
                self._late.cancel()
                self._late = None
            self._look()

    def _cancel_timers(self) -> None:
        for handle in (self._scheduled, self._late):
            if handle is not None:
                handle.cancel()
        self._scheduled = self._late = None

    def close(self) -> None:
        """Answer what waits with what `refuse` says now (the store is stopping)."""
        self._cancel_timers()
        self.hurry()
