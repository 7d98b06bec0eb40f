"""The page's server by hand-written HTTP: headers, guard, token, stream, limits."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from importlib import resources
from typing import Any

import pytest

from dledger.dashboard.watcher import Watcher
from dledger.dev.ports import claim
from dledger.errors import UnavailableError
from tests.dashboard.stage import HOST, Stage, watching

pytest.importorskip("starlette", reason="skipped: no starlette; pip install 'dledger[ui]'")
pytest.importorskip("uvicorn", reason="skipped: no uvicorn; pip install 'dledger[ui]'")

from dledger.dashboard.server import PageServer

pytestmark = pytest.mark.asyncio


class Actor:
    """Notes what it is asked to do."""

    token = "right-token"

    def __init__(self) -> None:
        self.done: list[tuple[str, str, str]] = []
        self.page: bytes | None = None

    async def act(self, action: str, node: str, text: str) -> str:
        if action == "kill" and node == "n9":
            raise UnavailableError("n9 does not run")
        self.done.append((action, node, text))
        return f"{action} done"

    def report(self) -> bytes | None:
        return self.page


@contextlib.asynccontextmanager
async def serving(stage: Stage, actor: Actor | None = None, port: int = 0) -> AsyncIterator[PageServer]:
    async with watching(stage) as watcher, serving_watcher(watcher, actor, port) as server:
        yield server


@contextlib.asynccontextmanager
async def serving_watcher(watcher: Watcher, actor: Actor | None = None, port: int = 0) -> AsyncIterator[PageServer]:
    server = PageServer(watcher, claim(HOST, port), actor)
    server.start()
    try:
        yield server
    finally:
        await server.stop()


async def ask(
    server: PageServer, path: str, method: str = "GET", body: bytes = b"", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """One request; returns (status, headers, body)."""
    port = int(server.url.rstrip("/").rpartition(":")[2])
    reader, writer = await asyncio.open_connection(HOST, port)
    lines = {"host": f"{HOST}:{port}", "connection": "close", "content-length": str(len(body)), **headers}
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{k.replace('_', '-')}: {v}\r\n" for k, v in lines.items())
    writer.write(head.encode() + b"\r\n" + body)
    async with asyncio.timeout(30):
        raw = await reader.read()
    writer.close()
    top, _, rest = raw.partition(b"\r\n\r\n")
    first, *others = top.decode().split("\r\n")
    found = {line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in others}
    return int(first.split()[1]), found, rest


async def first_events(server: PageServer, count: int) -> list[tuple[str, dict[str, Any]]]:
    """The first events of the stream."""
    port = int(server.url.rstrip("/").rpartition(":")[2])
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(f"GET /events HTTP/1.0\r\nhost: {HOST}:{port}\r\n\r\n".encode())
    found = []
    async with asyncio.timeout(30):
        while len(found) < count:
            line = (await reader.readline()).decode().rstrip()
            if line.startswith("event: "):
                data = (await reader.readline()).decode()
                found.append((line.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    writer.close()
    return found


async def test_the_files_are_small_and_reach_nobody_else() -> None:
    async with serving(Stage()) as server:
        total = 0
        for path in ("/", "/page.css", "/page.js", "/icon.svg"):
            code, headers, body = await ask(server, path)
            assert code == 200
            total += len(body)
            policy = headers["content-security-policy"]
            assert "default-src 'none'" in policy and "unsafe" not in policy
            assert headers["x-content-type-options"] == "nosniff"
            text = body.decode().replace("http://www.w3.org/2000/svg", "")
            assert not re.search(r"https?://|//[a-z]+\.[a-z]|@import|url\(", text), path
            if path == "/":
                assert not re.search(r"\son\w+=|\sstyle=|<script(?![^>]*src=)", text), "nothing inline"
        assert total < 60_000, f"{total} bytes"
        listed = {item.name for item in (resources.files("dledger.dashboard") / "page").iterdir()}
        assert listed == {"index.html", "page.css", "page.js", "icon.svg"}
        assert (await ask(server, "/page.py"))[0] == 404


async def test_the_stream_begins_with_everything_and_goes_on_with_the_present() -> None:
    async with serving(Stage(), Actor()) as server:
        (first, full), (second, now) = await first_events(server, 2)
        assert (first, second) == ("full", "now")
        assert full["dev"] is True
        assert full["leader"] == "n0"
        assert {"points", "events", "faults", "nodes", "words"} <= full.keys()
        assert now["t"] > full["t"]
        assert "dev" not in now


async def test_a_name_that_is_not_ours_is_refused() -> None:
    async with serving(Stage(), Actor()) as server:
        assert (await ask(server, "/", host="evil.example:80"))[0] == 421
        assert (await ask(server, "/events", host="evil.example"))[0] == 421
        for host in ("localhost:1", "127.0.0.1", "[::1]:80"):
            assert (await ask(server, "/", host=host))[0] == 200


async def test_nothing_is_done_without_the_token() -> None:
    actor = Actor()
    body = json.dumps({"action": "append", "text": "hi"}).encode()
    async with serving(Stage(), actor) as server:
        for header in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Bearer "}):
            code, _, answer = await ask(server, "/act", "POST", body, **header)
            assert code == 403 and b"token" in answer
        assert actor.done == []
        good = {"authorization": f"Bearer {actor.token}"}
        code, _, answer = await ask(server, "/act", "POST", body, **good)
        assert (code, json.loads(answer)) == (200, {"done": "append done"})
        assert actor.done == [("append", "", "hi")]
        assert (await ask(server, "/act", "GET", **good))[0] == 405
        code, _, answer = await ask(server, "/act", "POST", b'{"action":"kill","node":"n9"}', **good)
        assert (code, json.loads(answer)) == (409, {"error": "n9 does not run"})
        assert (await ask(server, "/act", "POST", b"[]", **good))[0] == 400
        assert (await ask(server, "/act", "POST", b"x" * 70_000, **good))[0] == 400


async def test_a_dashboard_has_no_buttons() -> None:
    async with serving(Stage()) as server:
        assert (await ask(server, "/act", "POST", b"{}"))[0] == 404
        assert (await ask(server, "/report"))[0] == 404
        ((_, full),) = await first_events(server, 1)
        assert full["dev"] is False


async def test_the_report_is_shown_once_there_is_one() -> None:
    actor = Actor()
    async with serving(Stage(), actor) as server:
        assert (await ask(server, "/report"))[0] == 404
        actor.page = b"<!DOCTYPE html>report"
        code, headers, body = await ask(server, "/report")
        assert (code, body) == (200, actor.page)
        assert "connect-src" not in headers["content-security-policy"]


async def test_no_more_than_so_many_pages_at_once() -> None:
    async with serving(Stage()) as server:
        port = int(server.url.rstrip("/").rpartition(":")[2])
        writers = []
        for _ in range(32):
            reader, writer = await asyncio.open_connection(HOST, port)
            writer.write(f"GET /events HTTP/1.1\r\nhost: {HOST}:{port}\r\n\r\n".encode())
            assert b"200" in await reader.readline()
            while b"event: full" not in await reader.readline():
                pass
            writers.append(writer)
        assert (await ask(server, "/events"))[0] == 503
        for writer in writers:
            writer.close()
        async with asyncio.timeout(30):
            while not await first_page(server):  # noqa: ASYNC110 - the server says nothing when a page has gone
                await asyncio.sleep(0.02)


async def first_page(server: PageServer) -> bool:
    """Whether the stream is open to one more."""
    port = int(server.url.rstrip("/").rpartition(":")[2])
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(f"GET /events HTTP/1.0\r\nhost: {HOST}:{port}\r\n\r\n".encode())
    line = await reader.readline()
    writer.close()
    return b"200" in line
