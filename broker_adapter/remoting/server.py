"""A remoting server: listens, keeps its connections, closes the silent ones."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from typing import Final

import structlog

from broker_adapter.remoting.command import RemotingCommand
from broker_adapter.remoting.connection import Handler, RemotingConnection, Watch, format_address
from broker_adapter.remoting.frame import DEFAULT_MAX_FRAME_BYTES
from dledger.errors import UnexpectedArgumentError

__all__ = ["RemotingServer"]

_IDLE_CHECK_S: Final = 5.0


class RemotingServer:
    """Serves the handlers of its table on one or more ports.

    ``max_idle_ms``: silence after which a connection is closed (upstream's serverChannelMaxIdleTimeSeconds).
    ``max_inflight_count``: requests being handled at once; past it SYSTEM_BUSY. ``max_connections``: further ones are
    closed at once.
    """

    def __init__(
        self,
        *,
        max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES,
        max_idle_ms: int = 120_000,
        max_inflight_count: int = 10_000,
        max_connections: int = 10_000,
        on_close: Callable[[RemotingConnection], None] | None = None,
    ) -> None:
        self.handlers: dict[int, Handler] = {}
        self.watch: Watch | None = None
        self.signer: Callable[[RemotingCommand], None] | None = None
        self.refused_count = 0
        """Connections closed at once because there were too many."""
        self._max_connections = max_connections
        self.max_frame_bytes = max_frame_bytes
        self.max_inflight_count = max_inflight_count
        self.inflight_count = 0
        self.connections: set[RemotingConnection] = set()
        self._max_idle_s = max_idle_ms / 1000
        self._on_close = on_close
        self._servers: list[asyncio.Server] = []
        self._idle_task: asyncio.Task[None] | None = None

    def register(self, code: int, handler: Handler) -> None:
        """Let ``handler`` answer requests of ``code``."""
        self.handlers[int(code)] = handler

    async def listen(self, host: str | None, port: int) -> int:
        """Listen (``host`` None: every interface) and serve; returns the port, which 0 has picked.

        Raises:
            UnexpectedArgumentError: the port is in use or the address is not this machine's.
        """
        bound = await self.bind(host, port)
        await self.serve()
        return bound

    async def bind(self, host: str | None, port: int) -> int:
        """Take a port without listening on it: connections are refused until `serve`. Returns the port.

        Raises:
            UnexpectedArgumentError: as `listen`.
        """
        loop = asyncio.get_running_loop()
        try:
            server = await loop.create_server(
                lambda: RemotingConnection(self), host, port, backlog=1024, start_serving=False
            )
        except OSError as error:
            raise self._cannot_listen(error, f"{host or '*'}:{port}") from None
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def serve(self) -> None:
        """Listen on every port that was bound.

        Raises:
            UnexpectedArgumentError: another process listens on one of them.
        """
        for server in self._servers:
            if server.is_serving():
                continue
            where = format_address(*server.sockets[0].getsockname()[:2])
            try:
                await server.start_serving()
            except OSError as error:
                raise self._cannot_listen(error, where) from None
        if self._idle_task is None:
            self._idle_task = asyncio.get_running_loop().create_task(self._close_idle(), name="remoting-idle")

    @staticmethod
    def _cannot_listen(error: OSError, where: str) -> UnexpectedArgumentError:
        what = "the port is in use" if error.errno == errno.EADDRINUSE else (error.strerror or str(error))
        return UnexpectedArgumentError(f"cannot listen on {where}: {what}")

    async def _close_idle(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(_IDLE_CHECK_S, self._max_idle_s / 4))
            limit = loop.time() - self._max_idle_s
            for connection in [c for c in self.connections if c.last_active_s < limit]:
                structlog.get_logger().info("connection_idle", remote=connection.remote_address)
                connection.close()

    def connection_opened(self, connection: RemotingConnection) -> None:
        if len(self.connections) >= self._max_connections:
            self.refused_count += 1
            connection.abort()
            return
        self.connections.add(connection)

    def connection_closed(self, connection: RemotingConnection) -> None:
        self.connections.discard(connection)
        if self._on_close is not None:
            self._on_close(connection)

    async def stop(self, grace_ms: int = 1000) -> None:
        """Listen no more, let requests being handled finish for ``grace_ms``, close every connection."""
        for server in self._servers:
            server.close()
        if self._idle_task is not None:
            self._idle_task.cancel()
            await asyncio.gather(self._idle_task, return_exceptions=True)
            self._idle_task = None
        connections = list(self.connections)
        if connections and grace_ms:
            waiting = [asyncio.ensure_future(c.finish_requests()) for c in connections]
            await asyncio.wait(waiting, timeout=grace_ms / 1000)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        for connection in connections:
            connection.cancel_requests()
            connection.close()
        for server in self._servers:
            await server.wait_closed()
        self._servers.clear()
