"""The slave's side of classic replication: connect, say how far the log is, append what comes, acknowledge."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final, Protocol

import structlog

from broker_adapter.ha.wire import MAX_FRAME_BYTES, OFFSET, TRANSFER_HEADER, TRANSFER_HEADER_BYTES

__all__ = ["HaSlave", "SlaveLog"]

_READ_BYTES: Final = 512 * 1024


class SlaveLog(Protocol):
    """What the slave's side needs of the log."""

    def end(self) -> int:
        """End of what is written."""

    def append(self, pos: int, data: bytes) -> None:
        """Append replicated bytes at the end (an empty log begins anywhere)."""

    def appended(self) -> None:
        """A group of appends is through: dispatch it."""


class HaSlave:
    """Follows one master at a time, reconnecting until stopped."""

    def __init__(
        self,
        log: SlaveLog,
        address: str | None,
        *,
        heartbeat_ms: int,
        housekeeping_ms: int,
        reconnect_ms: int,
    ) -> None:
        self._replica = log
        self.address = address
        self._heartbeat_s = heartbeat_ms / 1000
        self._housekeeping_s = housekeeping_ms / 1000
        self._reconnect_s = reconnect_ms / 1000
        self.connected = False
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reported = -1
        self._log = structlog.get_logger()

    def start(self) -> None:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="ha-slave")

    async def stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    @property
    def task(self) -> asyncio.Task[None] | None:
        """The running task; it ends by itself only when the log cannot be written."""
        return self._task

    def set_address(self, address: str | None) -> None:
        """Follow another master (``host:port``); None: wait until one is known."""
        if address != self.address:
            self.address = address
            self._changed.set()
            if self._writer is not None:
                self._writer.close()

    async def _run(self) -> None:
        while True:
            self._changed.clear()
            address = self.address
            if address:
                try:
                    await self._follow(address)
                except (OSError, EOFError, TimeoutError) as error:
                    self._log.info("master_connection_lost", master=address, reason=str(error) or type(error).__name__)
                finally:
                    self.connected = False
            try:
                async with asyncio.timeout(self._reconnect_s if address else None):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _follow(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        async with asyncio.timeout(self._housekeeping_s):
            reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        self._writer = writer
        try:
            self.connected = True
            self._log.info("master_connected", master=address, end=self._replica.end())
            self._reported = -1
            self._report()
            await self._receive(reader)
        finally:
            self._writer = None
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _receive(self, reader: asyncio.StreamReader) -> None:
        buffer = bytearray()
        loop = asyncio.get_running_loop()
        heard = loop.time()
        while True:
            try:
                async with asyncio.timeout(self._heartbeat_s):
                    data = await reader.read(_READ_BYTES)
            except TimeoutError:
                if loop.time() - heard > self._housekeeping_s:
                    raise
                self._report()
                continue
            if not data:
                raise EOFError("closed by the master")
            heard = loop.time()
            buffer += data
            if self._take(buffer):
                self._replica.appended()
            if self._replica.end() > self._reported:
                self._report()

    def _take(self, buffer: bytearray) -> bool:
        """Append all whole frames of the buffer, neighbours in one write."""
        parts: list[bytes] = []
        at, start, pos = 0, -1, -1
        while len(buffer) - at >= TRANSFER_HEADER_BYTES:
            offset, size = TRANSFER_HEADER.unpack_from(buffer, at)
            if not 0 <= size <= MAX_FRAME_BYTES or offset < 0:
                raise ConnectionError(f"a frame of {size} bytes for {offset}: not an HA stream")
            if len(buffer) - at < TRANSFER_HEADER_BYTES + size:
                break
            if size:
                if start < 0:
                    self._check(offset)
                    start = pos = offset
                if offset != pos:
                    raise ConnectionError(f"bytes for {offset} came after those for {pos}")
                body_at = at + TRANSFER_HEADER_BYTES
                parts.append(bytes(buffer[body_at : body_at + size]))
                pos += size
            at += TRANSFER_HEADER_BYTES + size
        del buffer[:at]
        if parts:
            self._replica.append(start, b"".join(parts))
        return bool(parts)

    def _check(self, offset: int) -> None:
        end = self._replica.end()
        if end not in {0, offset}:
            raise ConnectionError(f"the master pushed bytes for {offset}, this log ends at {end}")

    def _report(self) -> None:
        if self._writer is not None:
            self._reported = self._replica.end()
            self._writer.write(OFFSET.pack(self._reported))
