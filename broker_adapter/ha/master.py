"""The master's side of classic replication: one connection per slave, the log pushed as it grows.

Each slave reports the end of its log; the furthest report of any slave decides whether a SYNC_MASTER's put is
replicated (one acknowledgement is enough however many slaves there are, as upstream).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final, Protocol

import structlog

from broker_adapter.ha.wire import OFFSET, OFFSET_BYTES, TRANSFER_HEADER

__all__ = ["HaMaster", "MasterLog", "SlaveConnection"]

_FRAMES_A_WRITE: Final = 16
_RATE_WINDOW_S: Final = 5.0


class MasterLog(Protocol):
    """What the master's side needs of the log."""

    def end(self) -> int:
        """End of what is written."""

    def last_file_start(self) -> int:
        """Where a slave with an empty log begins: the start of the last file (upstream's rule)."""

    async def read(self, pos: int, length: int) -> bytes:
        """Written bytes at ``pos`` within one file; empty where there are none."""


class SlaveConnection:
    """One slave. ``ack_offset`` is -1 until its first report."""

    def __init__(self, master: HaMaster, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._master = master
        self._reader = reader
        self._writer = writer
        peer = writer.get_extra_info("peername") or ("?", 0)
        self.address = f"{peer[0]}:{peer[1]}"
        self.request_offset = -1
        self.ack_offset = -1
        self.sent_offset = -1
        self._grown = asyncio.Event()
        self._requested = asyncio.Event()
        self._sent_bytes = 0
        self._window_started = asyncio.get_running_loop().time()
        self.bytes_per_s = 0

    def wake(self) -> None:
        self._grown.set()

    async def run(self) -> None:
        """Serve the slave until either side breaks off."""
        tasks = {asyncio.create_task(self._receive()), asyncio.create_task(self._transmit())}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _receive(self) -> None:
        timeout = self._master.housekeeping_s
        while True:
            async with asyncio.timeout(timeout):
                data = await self._reader.readexactly(OFFSET_BYTES)
            self._reported(OFFSET.unpack(data)[0])

    def _reported(self, offset: int) -> None:
        if offset < 0 or offset > self._master.log.end():
            # A log that is longer than ours is another log: its reports prove nothing, and its tail would stay.
            raise ConnectionError(f"the slave reports {offset}, this log ends at {self._master.log.end()}")
        self.ack_offset = offset
        if self.request_offset < 0:
            self.request_offset = offset
            self._requested.set()
            return
        self._master.acknowledged(offset)

    async def _transmit(self) -> None:
        await self._requested.wait()
        log = self._master.log
        self.sent_offset = self.request_offset or log.last_file_start()
        while True:
            self._grown.clear()
            frames: list[bytes] = []
            for _ in range(_FRAMES_A_WRITE):
                data = await log.read(self.sent_offset, self._master.batch_bytes)
                if not data:
                    break
                frames += (TRANSFER_HEADER.pack(self.sent_offset, len(data)), data)
                self.sent_offset += len(data)
            if frames:
                await self._send(b"".join(frames))
                continue
            try:
                async with asyncio.timeout(self._master.heartbeat_s):
                    await self._grown.wait()
            except TimeoutError:
                await self._send(TRANSFER_HEADER.pack(self.sent_offset, 0))

    async def _send(self, data: bytes) -> None:
        self._writer.write(data)
        async with asyncio.timeout(self._master.housekeeping_s):
            await self._writer.drain()
        self._count(len(data))

    def _count(self, byte_count: int) -> None:
        self._sent_bytes += byte_count
        now = asyncio.get_running_loop().time()
        if now - self._window_started >= _RATE_WINDOW_S:
            self.bytes_per_s = int(self._sent_bytes / (now - self._window_started))
            self._sent_bytes, self._window_started = 0, now

    def close(self) -> None:
        self._writer.close()


class HaMaster:
    """Accepts slaves. ``acked``: called with the furthest acknowledged offset whenever it grows."""

    def __init__(
        self,
        log: MasterLog,
        *,
        host: str,
        port: int,
        batch_bytes: int,
        heartbeat_ms: int,
        housekeeping_ms: int,
        fallbehind_max_bytes: int,
        acked: Callable[[int], None],
    ) -> None:
        self.log = log
        self._host = host
        self._port = port
        self.batch_bytes = batch_bytes
        self.heartbeat_s = heartbeat_ms / 1000
        self.housekeeping_s = housekeeping_ms / 1000
        self.fallbehind_max_bytes = fallbehind_max_bytes
        self._acked = acked
        self.push_offset = 0
        """The furthest offset that any slave has ever confirmed (upstream: push2SlaveMaxOffset)."""
        self.connections: set[SlaveConnection] = set()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._log = structlog.get_logger()

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: the port is taken.
        """
        self._server = await asyncio.start_server(self._accepted, self._host, self._port)

    @property
    def address(self) -> tuple[str, int] | None:
        """Where it listens; None before `start`."""
        if self._server is None or not self._server.sockets:
            return None
        name = self._server.sockets[0].getsockname()
        return name[0], name[1]

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
        connection = SlaveConnection(self, reader, writer)
        self.connections.add(connection)
        self._log.info("slave_connected", slave=connection.address)
        try:
            await connection.run()
        except (OSError, EOFError, TimeoutError) as error:
            reason = "silent for too long" if isinstance(error, TimeoutError) else str(error) or "closed"
            self._log.info("slave_gone", slave=connection.address, reason=reason, ack_offset=connection.ack_offset)
        except asyncio.CancelledError:
            pass  # `stop` cancels; the streams' own callback must not see it as a failure
        finally:
            self.connections.discard(connection)
            if task is not None:
                self._tasks.discard(task)
            connection.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()

    def log_grew(self) -> None:
        """New bytes are written: push them."""
        for connection in self.connections:
            connection.wake()

    def acknowledged(self, offset: int) -> None:
        if offset > self.push_offset:
            self.push_offset = offset
            self._acked(offset)

    def has_slave_for(self, end: int) -> bool:
        """Whether a put that ends at ``end`` may wait for a slave (upstream: isSlaveOK)."""
        return bool(self.connections) and end - self.push_offset < self.fallbehind_max_bytes

    async def stop(self) -> None:
        if self._server is None:
            return
        self._server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._server.wait_closed()
        self._server = None
