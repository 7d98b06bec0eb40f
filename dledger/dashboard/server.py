"""The page's HTTP server: three files, one stream of server-sent events, and for dev groups a guarded POST.

Starlette on uvicorn (the extra ``ui``), in the loop of whoever calls. The stream and the files are for everybody who
can reach the port; whatever changes anything needs the token and a ``Host`` that is this server's, so that neither
another user of the machine nor a page of another site can press a button.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import json
import socket
from collections.abc import AsyncIterator, Iterator
from importlib import resources
from typing import Any, Final

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dledger.dashboard.actions import Actions
from dledger.dashboard.watcher import Watcher
from dledger.errors import DLedgerError

__all__ = ["PageServer"]

_FILES: Final = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_HEADERS: Final = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
_REPORT_POLICY: Final = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The report of a chaos run is one file with its script inside; it may reach nothing."""

_MAX_STREAMS: Final = 32
_MAX_BODY_BYTES: Final = 64 * 1024
_STOP_S: Final = 2.0


class _Guard:
    """Puts the headers on every answer, and refuses a ``Host`` that is another's (a site that rebinds its name)."""

    def __init__(self, app: ASGIApp, hosts: frozenset[str]) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *((k.encode(), v.encode()) for k, v in _HEADERS.items() if k.encode() not in present),
                ]
            await send(message)

        host = Headers(scope=scope).get("host", "").rpartition(":")[0] or Headers(scope=scope).get("host", "")
        if not _is_own(host.strip("[]"), self._hosts):
            answer = PlainTextResponse(f"{host} is not a name of this server", 421)
            await answer(scope, receive, with_headers)
            return
        await self._app(scope, receive, with_headers)


def _is_own(host: str, hosts: frozenset[str]) -> bool:
    """A name that we were told, or any literal address: only names can be rebound."""
    if host in hosts:
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class _Page:
    """The handlers."""

    def __init__(self, watcher: Watcher, actions: Actions | None) -> None:
        self._watcher = watcher
        self._actions = actions
        self.closed = False
        """Whether the open streams are to end, at the watcher's next tick."""
        self._streams = 0
        folder = resources.files("dledger.dashboard") / "page"
        self._files = {path: ((folder / name).read_bytes(), kind) for path, (name, kind) in _FILES.items()}

    def routes(self) -> list[Route]:
        routes = [Route(path, self._file) for path in _FILES]
        routes.append(Route("/events", self._events))
        if self._actions is not None:
            routes.append(Route("/act", self._act, methods=["POST"]))
            routes.append(Route("/report", self._report))
        return routes

    async def _file(self, request: Request) -> Response:
        data, kind = self._files[request.url.path]
        return Response(data, media_type=kind)

    async def _events(self, _request: Request) -> Response:
        if self._streams >= _MAX_STREAMS:
            return PlainTextResponse(f"{_MAX_STREAMS} pages are open already", 503)
        return StreamingResponse(self._stream(), media_type="text/event-stream")

    async def _stream(self) -> AsyncIterator[bytes]:
        self._streams += 1
        try:
            yield b"retry: 1000\n" + _event("full", {**self._watcher.full(), "dev": self._actions is not None})
            async with contextlib.aclosing(self._watcher.updates()) as updates:
                async for update in updates:
                    if self.closed:
                        return
                    yield _event("now", update)
        finally:
            self._streams -= 1

    def _may(self, request: Request) -> bool:
        given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        return self._actions is not None and hmac.compare_digest(given.encode(), self._actions.token.encode())

    async def _act(self, request: Request) -> Response:
        if self._actions is None or not self._may(request):
            return JSONResponse({"error": "the token is wrong: open the page with the address that dev printed"}, 403)
        try:
            row = json.loads(await _body(request))
            action, node, text = (str(row.get(key, "")) for key in ("action", "node", "text"))
        except (ValueError, AttributeError) as error:
            return JSONResponse({"error": f"not a request: {error}"}, 400)
        try:
            return JSONResponse({"done": await self._actions.act(action, node, text)})
        except (DLedgerError, TimeoutError) as error:
            return JSONResponse({"error": str(error) or "timed out"}, 409)

    async def _report(self, _request: Request) -> Response:
        data = self._actions.report() if self._actions is not None else None
        if data is None:
            return PlainTextResponse("there has been no chaos run yet", 404)
        headers = {"content-security-policy": _REPORT_POLICY}
        return Response(data, media_type="text/html; charset=utf-8", headers=headers)


async def _body(request: Request) -> bytes:
    """Return a small body.

    Raises:
        ValueError: it is too large, or the sender went away.
    """
    data = b""
    try:
        async for chunk in request.stream():
            data += chunk
            if len(data) > _MAX_BODY_BYTES:
                raise ValueError(f"more than {_MAX_BODY_BYTES} bytes")
    except ClientDisconnect as error:
        raise ValueError("the sender went away") from error
    return data


def _event(name: str, data: dict[str, Any]) -> bytes:
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"event: {name}\ndata: {text}\n\n".encode()


class _Server(uvicorn.Server):
    """Signals stay with whoever called."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class PageServer:
    """Serves the page on a socket that listens already. ``start``, then ``stop``; both on the caller's loop."""

    def __init__(self, watcher: Watcher, sock: socket.socket, actions: Actions | None = None) -> None:
        host, port = sock.getsockname()[:2]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
        self._sock = sock
        self._page = _Page(watcher, actions)
        guard = Middleware(_Guard, hosts=frozenset({"localhost", host}))
        config = uvicorn.Config(
            Starlette(routes=self._page.routes(), middleware=[guard]),
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            timeout_graceful_shutdown=1,
        )
        self._server = _Server(config)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to answer."""
        self._task = asyncio.ensure_future(self._server.serve(sockets=[self._sock]))

    async def stop(self) -> None:
        """End, the open streams first. What has not ended after a second is cut."""
        self._page.closed = True
        self._server.should_exit = True
        if self._task is not None:
            _, pending = await asyncio.wait({self._task}, timeout=_STOP_S)
            for task in pending:
                task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._sock.close()
