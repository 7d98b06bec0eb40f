"""A connection whose opening is cancelled at any moment is over then, on every event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import replace

import pytest

from dledger.rpc.frames import CLIENT_PREFACE
from dledger.rpc.peer_connections import GreetedConnection
from tests.rpc.fakes import FAST

OPTIONS = replace(FAST, connect_timeout_ms=20_000)


def new_uvloop():
    return pytest.importorskip("uvloop").new_event_loop()


async def closed_by_the_other_side(loop, listener):
    accepted, _ = await loop.sock_accept(listener)
    with accepted, contextlib.suppress(ConnectionResetError):
        accepted.setblocking(False)
        while await loop.sock_recv(accepted, 100):
            pass


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, new_uvloop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("when", ["before it is made", "as it is made", "while it waits for the welcome"])
def test_a_connection_whose_opening_is_cancelled_has_ended(new_loop, when):
    async def scenario(listener):
        loop = asyncio.get_running_loop()
        connection = GreetedConnection(CLIENT_PREFACE, b"ticket", OPTIONS, lambda _: True)
        made, heard_of = connection.frames.connection_made, asyncio.Event()

        def notice(transport):
            made(transport)
            heard_of.set()
            if when == "as it is made":
                opening.cancel()

        connection.frames.connection_made = notice
        opening = asyncio.ensure_future(connection.open(*listener.getsockname()))
        await asyncio.sleep(0)
        if when == "before it is made":
            opening.cancel()
        elif when == "while it waits for the welcome":
            await heard_of.wait()
            for _ in range(3):
                await asyncio.sleep(0)
            opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        async with asyncio.timeout(20):
            assert await connection.ended() == "not welcomed"
            if heard_of.is_set():
                await closed_by_the_other_side(loop, listener)

    with socket.create_server(("127.0.0.1", 0)) as listener, asyncio.Runner(loop_factory=new_loop) as runner:
        listener.setblocking(False)
        runner.run(scenario(listener))
