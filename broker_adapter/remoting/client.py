"""A remoting client: one connection for each address, made when it is needed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from broker_adapter.remoting.command import RemotingCommand
from broker_adapter.remoting.connection import Handler, RemotingConnection, Watch
from broker_adapter.remoting.errors import RemotingConnectError, RemotingTimeoutError
from broker_adapter.remoting.frame import DEFAULT_MAX_FRAME_BYTES
from dledger.config import split_address

__all__ = ["RemotingClient"]

_CONNECT_TIMEOUT_MS: Final = 3000


class RemotingClient:
    """Sends requests to addresses (``host:port``) and answers what the other side asks.

    ``connect_timeout_ms`` bounds the making of a connection; each call has a time limit of its own. ``signer`` signs
    each request where the other side has access control.
    """

    def __init__(
        self,
        *,
        connect_timeout_ms: int = _CONNECT_TIMEOUT_MS,
        max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES,
        signer: Callable[[RemotingCommand], None] | None = None,
    ) -> None:
        self.handlers: dict[int, Handler] = {}
        self.watch: Watch | None = None
        self.signer = signer
        self.max_frame_bytes = max_frame_bytes
        self.max_inflight_count = 10_000
        self.inflight_count = 0
        self._connect_timeout_ms = connect_timeout_ms
        self._connections: dict[str, RemotingConnection] = {}
        self._connecting: dict[str, asyncio.Task[RemotingConnection]] = {}

    def connection_opened(self, connection: RemotingConnection) -> None:
        pass

    def connection_closed(self, connection: RemotingConnection) -> None:
        for address in [a for a, c in self._connections.items() if c is connection]:
            del self._connections[address]

    def connected(self, address: str) -> RemotingConnection | None:
        """Return the open connection to ``address``, if there is one."""
        connection = self._connections.get(address)
        return None if connection is None or connection.is_closed else connection

    async def connect(self, address: str) -> RemotingConnection:
        """Return the connection to ``address``, made now if need be. Callers at the same time share one.

        Raises:
            RemotingConnectError: nobody there, or not within the connect time limit.
        """
        connection = self.connected(address)
        if connection is not None:
            return connection
        task = self._connecting.get(address)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._connect(address))
            self._connecting[address] = task
            task.add_done_callback(lambda done: self._connected(address, done))
        return await asyncio.shield(task)

    def _connected(self, address: str, task: asyncio.Task[RemotingConnection]) -> None:
        self._connecting.pop(address, None)
        if not task.cancelled():
            task.exception()  # whoever waited has it; nobody may have waited to the end

    async def _connect(self, address: str) -> RemotingConnection:
        try:
            host, port = split_address(address)
        except ValueError as error:
            raise RemotingConnectError(f"{address}: {error}") from None
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout_ms / 1000):
                _, connection = await loop.create_connection(lambda: RemotingConnection(self), host, port)
        except TimeoutError:
            raise RemotingConnectError(f"connect to {address} timed out ({self._connect_timeout_ms} ms)") from None
        except OSError as error:
            raise RemotingConnectError(f"connect to {address} failed: {error.strerror or error}") from None
        self._connections[address] = connection
        return connection

    async def invoke(self, address: str, command: RemotingCommand, timeout_ms: int = 3000) -> RemotingCommand:
        """Send a request and return its answer.

        Raises:
            RemotingConnectError: no connection; the request was not sent.
            RemotingTimeoutError, RemotingClosedError: the outcome is unknown.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_ms / 1000
        connection = await self.connect(address)
        left_ms = int((deadline - loop.time()) * 1000)
        if left_ms <= 0:
            raise RemotingTimeoutError(f"connecting to {address} took all of {timeout_ms} ms")
        return await connection.invoke(command, left_ms)

    async def send_oneway(self, address: str, command: RemotingCommand) -> None:
        """Send a request that has no answer.

        Raises:
            RemotingConnectError: no connection.
        """
        (await self.connect(address)).send_oneway(command)

    async def close(self) -> None:
        """Close every connection; calls that wait get `RemotingClosedError`."""
        connecting = list(self._connecting.values())
        for task in connecting:
            task.cancel()
        await asyncio.gather(*connecting, return_exceptions=True)
        for connection in list(self._connections.values()):
            connection.close()
        # The transports report their end in the loop's next turn.
        await asyncio.sleep(0)
        self._connections.clear()
