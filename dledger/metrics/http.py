"""The small HTTP server for probes and scrapes: GET and HEAD, one answer a connection, nothing else.

It runs on the node's own loop, so that an answer proves that the loop turns. Whoever connects is bounded: so many
connections, so much request, so much time.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import structlog

from dledger.errors import UnavailableError

__all__ = ["HttpAnswer", "HttpServer"]

_MAX_CONNECTIONS: Final = 64
_MAX_REQUEST_BYTES: Final = 8192
_REQUEST_S: Final = 5.0
"""Whoever has not asked by then is sent away."""
_ANSWER_S: Final = 10.0
"""Whoever has not read the answer by then is cut off."""

_REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """Status code, content type and body."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


class HttpServer:
    """Answers ``routes`` (path → function) at ``host`` and ``port`` (0 takes a free one)."""

    def __init__(self, host: str, port: int, routes: Mapping[str, Callable[[], HttpAnswer]]) -> None:
        self._host = host
        self._port = port
        self._routes = dict(routes)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> int:
        """Listen; return the port.

        Raises:
            UnavailableError: the address cannot be listened on; says why.
        """
        try:
            self._server = await asyncio.start_server(
                self._accept, self._host, self._port, limit=_MAX_REQUEST_BYTES, family=socket.AF_UNSPEC
            )
        except OSError as error:
            raise UnavailableError(
                f"metrics: cannot listen on {self._host}:{self._port}: {error.strerror or error}; see metricsPort"
            ) from error
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Listen no more and drop whoever is connected. Twice is fine."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._tasks) >= _MAX_CONNECTIONS:
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer), name="http")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_REQUEST_S):
                head = await reader.readuntil(b"\r\n\r\n")
            writer.write(self._answer(head))
            async with asyncio.timeout(_ANSWER_S):
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # gone, silent or talking nonsense: nobody to tell
        finally:
            writer.transport.abort()

    def _answer(self, head: bytes) -> bytes:
        words = head.split(b"\r\n", 1)[0].split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return _encode(HttpAnswer(400, b"not an HTTP/1 request\n"), with_body=True)
        method, target = words[0], words[1].split(b"?", 1)[0].decode("latin-1")
        if method not in {b"GET", b"HEAD"}:
            return _encode(HttpAnswer(405, b"GET or HEAD only\n"), with_body=True)
        route = self._routes.get(target)
        if route is None:
            known = "".join(f"{path}\n" for path in sorted(self._routes))
            return _encode(HttpAnswer(404, f"not here; these are:\n{known}".encode()), with_body=method == b"GET")
        try:
            answer = route()
        except Exception as error:
            structlog.get_logger().exception("http_answer_failed", path=target)
            answer = HttpAnswer(500, f"{type(error).__name__}\n".encode())
        return _encode(answer, with_body=method == b"GET")


def _encode(answer: HttpAnswer, *, with_body: bool) -> bytes:
    head = (
        f"HTTP/1.1 {answer.status} {_REASONS[answer.status]}\r\nContent-Type: {answer.content_type}\r\n"
        f"Content-Length: {len(answer.body)}\r\nCache-Control: no-store\r\nConnection: close\r\n"
        "X-Content-Type-Options: nosniff\r\n\r\n"
    )
    return head.encode("ascii") + (answer.body if with_body else b"")
