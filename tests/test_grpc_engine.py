"""`dledger.grpc_engine`: in processes of their own, because gRPC reads the choice once."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dledger.grpc_engine import prefer_polling

CALLS = 200
SCRIPT = f"""
import asyncio, sys
from pathlib import Path
from dledger.grpc_engine import prefer_polling
if "prefer" in sys.argv:
    print("chosen" if prefer_polling() else "not chosen")
import grpc
from grpc import aio

def pool_switches():
    total = 0
    for task in Path("/proc/self/task").iterdir():
        if (task / "comm").read_text().strip() == "event_engine":
            total += int((task / "status").read_text().split("voluntary_ctxt_switches:")[1].split()[0])
    return total

async def echo(data, _context):
    return data

async def main():
    server = aio.server()
    handlers = {{"Echo": grpc.unary_unary_rpc_method_handler(echo)}}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with aio.insecure_channel(f"127.0.0.1:{{port}}") as channel:
        call = channel.unary_unary("/t.T/Echo")
        await call(b"")
        before = pool_switches()
        for _ in range({CALLS}):
            await call(b"")
        print("busy pool" if pool_switches() - before > {CALLS} // 2 else "idle pool")
    await server.stop(0)

asyncio.run(main())
"""


def outcome(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        check=True,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="skipped: looks into /proc")
def test_grpc_then_leaves_its_pool_of_threads_alone_and_says_nothing():
    done = outcome("prefer")
    assert done.stdout.split("\n")[:2] == ["chosen", "idle pool"]
    assert done.stderr == ""


def test_without_the_choice_each_call_goes_through_the_pool():
    """Else the choice is pointless, and this module can go."""
    assert outcome().stdout.strip() == "busy pool"


def test_the_users_own_choice_stands():
    done = outcome("prefer", GRPC_EXPERIMENTS="event_engine_client")
    assert done.stdout.split("\n")[:2] == ["not chosen", "busy pool"]


@pytest.mark.parametrize("release", [(1, 75), (1, 99), (2, 0), ()])
def test_a_version_that_was_not_tried_is_left_alone(monkeypatch, release):
    monkeypatch.delenv("GRPC_EXPERIMENTS", raising=False)
    monkeypatch.delitem(sys.modules, "grpc", raising=False)
    monkeypatch.setattr("dledger.grpc_engine._release", lambda: release)
    assert not prefer_polling()


def test_where_grpc_is_imported_it_is_too_late(monkeypatch):
    monkeypatch.delenv("GRPC_EXPERIMENTS", raising=False)
    monkeypatch.setitem(sys.modules, "grpc", sys)
    assert not prefer_polling()
