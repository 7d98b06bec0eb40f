"""Delay levels: messages that wait in SCHEDULE_TOPIC_XXXX are put to their own topic when they are due.

Only the master does this. How far each level is, is state of the store: in DLedger mode a record of the log, so a new
master goes on where the old one was (a message delivered in the last moments may come twice, none is left out).
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

import structlog

from broker_adapter.message import DELAY_PROPERTY, Message, MessageFormatError, decode_message, pop_properties
from broker_adapter.store.api import SCHEDULE_TOPIC, MessageStore, PutResult, QueueUnit, StateKind
from dledger.errors import DLedgerError

__all__ = ["DelayService", "parse_delay_levels"]

_UNITS_MS: Final = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_MAX_UNITS: Final = 64
_POLL_S: Final = 1.0
_RETRY_S: Final = 0.1


def parse_delay_levels(text: str) -> list[int]:
    """Return each level's delay in ms, level 1 first."""
    return [int(part[:-1]) * _UNITS_MS[part[-1]] for part in text.split()]


class DelayService:
    """One task for each level that has messages; started and stopped with the role."""

    def __init__(self, store: MessageStore, levels: str, flush_ms: int) -> None:
        self._store = store
        self._levels = len(parse_delay_levels(levels))
        self._flush_s = flush_ms / 1000
        self._offsets: dict[int, int] = {}
        self._stored: dict[int, int] = {}
        self._wanted: dict[int, asyncio.Event] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self.delivered_count = 0
        store.add_arrival_listener(self._arrived)

    def _arrived(self, arrivals: object) -> None:
        if not self._tasks:
            return
        for arrival in arrivals:  # type: ignore[attr-defined]
            if arrival.topic == SCHEDULE_TOPIC:
                wanted = self._wanted.get(arrival.queue_id + 1)
                if wanted is not None:
                    wanted.set()

    @property
    def is_running(self) -> bool:
        return bool(self._tasks)

    def start(self) -> None:
        """Begin where the stored progress says."""
        if self._tasks:
            return
        loop = asyncio.get_running_loop()
        stored = self._store.state(StateKind.DELAY_OFFSETS)
        for level in range(1, self._levels + 1):
            self._offsets[level] = self._stored[level] = int(stored.get(str(level), 0))
            self._wanted[level] = asyncio.Event()
            self._tasks.append(loop.create_task(self._serve(level), name=f"delay-{level}"))
        self._tasks.append(loop.create_task(self._flush_loop(), name="delay-flush"))

    def cancel(self) -> None:
        """Stop at once, without storing progress: this broker may store nothing any more."""
        for task in self._tasks:
            task.cancel()
        self._tasks = []

    async def stop(self) -> None:
        """Stop and store progress as well as it goes."""
        tasks = self._tasks
        if not tasks:
            return
        self.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.flush()

    def table(self) -> dict[str, int]:
        """Return level → next offset."""
        stored = {str(k): int(v) for k, v in self._store.state(StateKind.DELAY_OFFSETS).items() if v is not None}
        return {**stored, **({str(k): v for k, v in self._offsets.items()} if self._tasks else {})}

    async def flush(self) -> None:
        """Store the progress that changed."""
        changed = {level: offset for level, offset in self._offsets.items() if self._stored.get(level) != offset}
        if not changed:
            return
        try:
            await self._store.put_states([(StateKind.DELAY_OFFSETS, str(k), v) for k, v in changed.items()])
        except DLedgerError as error:
            structlog.get_logger().info("delay_progress_not_stored", error=str(error))
            return
        self._stored.update(changed)

    async def _flush_loop(self) -> None:
        while True:
            await asyncio.sleep(self._flush_s)
            await self.flush()

    # ------------------------------------------------------------------ one level

    async def _serve(self, level: int) -> None:
        """Deliver a level's messages as they fall due. Within a level they are due in order."""
        while True:
            try:
                await self._step(level)
            except Exception as error:
                structlog.get_logger().error("delay_level_failed", level=level, exc_info=error)
                await asyncio.sleep(_POLL_S)

    async def _step(self, level: int) -> None:
        """Deliver what is due now, or wait for what comes next."""
        wanted = self._wanted[level]
        wanted.clear()
        self._skip_deleted(level)
        units = await self._store.queue_units(SCHEDULE_TOPIC, level - 1, self._offsets[level], _MAX_UNITS)
        if not units:
            # An arrival wakes this; the poll is for what arrived before this broker was master.
            await self._wait(wanted, _POLL_S)
            return
        now = int(time.time() * 1000)
        due = [unit for unit in units if unit.tags_code <= now]
        if not due:
            await asyncio.sleep(min((units[0].tags_code - now) / 1000, _POLL_S))
        elif not await self._deliver(level, due):
            await asyncio.sleep(_RETRY_S)

    async def _wait(self, wanted: asyncio.Event, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await wanted.wait()
        except TimeoutError:
            pass

    def _skip_deleted(self, level: int) -> None:
        """Old files may be gone."""
        first = self._store.min_offset(SCHEDULE_TOPIC, level - 1)
        self._offsets[level] = max(self._offsets[level], first)

    async def _deliver(self, level: int, due: list[QueueUnit]) -> bool:
        """Put the messages to their topics, in order and together; False where one has to be tried again."""
        puts: list[asyncio.Future[PutResult] | None] = []
        for unit in due:
            message = await self._message(unit)
            puts.append(None if message is None else asyncio.ensure_future(self._store.put_message(message)))
        results = await asyncio.gather(*(put for put in puts if put is not None), return_exceptions=True)
        by_put = iter(results)
        for unit, put in zip(due, puts, strict=True):
            result = None if put is None else next(by_put)
            if isinstance(result, BaseException) or (result is not None and not result.is_ok):
                structlog.get_logger().info(
                    "delay_put_failed", level=level, offset=unit.queue_offset, result=str(result)
                )
                return False
            self.delivered_count += result is not None
            self._offsets[level] = unit.queue_offset + 1
        return True

    async def _message(self, unit: QueueUnit) -> Message | None:
        """Return the message as it was meant, None for one that cannot be read (it is skipped, and said so)."""
        raw = await self._store.look_message_by_offset(unit.physical_offset, unit.size)
        try:
            if raw is None:
                raise MessageFormatError("it is not in the log any more")
            stored = decode_message(raw)
            topic, queue_id = stored.get("REAL_TOPIC"), stored.get("REAL_QID")
            if topic is None or queue_id is None or not queue_id.isdigit():
                raise MessageFormatError("it does not say where it belongs")
        except MessageFormatError as error:
            structlog.get_logger().error(
                "delayed_message_skipped",
                offset=unit.queue_offset,
                physical_offset=unit.physical_offset,
                error=str(error),
            )
            return None
        return Message(
            topic,
            stored.body,
            int(queue_id),
            pop_properties(stored.properties, DELAY_PROPERTY),
            stored.flag,
            stored.sys_flag,
            stored.born_timestamp,
            stored.born_host,
            stored.reconsume_times,
        )
