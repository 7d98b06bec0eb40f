"""`dledger dev --broker`: the nodes are brokers, the tab shows them, and a kill -9 of the master is survived."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dledger.dev.session import DevOptions, DevSession
from tests.broker.harness import Client

pytestmark = pytest.mark.asyncio


async def shown(session: DevSession, enough: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Wait until the broker tab shows it; returns what it shows."""
    async with asyncio.timeout(60):
        async for now in session.watcher.updates():
            if "broker" in now and enough(now["broker"]):
                return dict(now["broker"])
    raise AssertionError("the watcher ended")


def masters(tab: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in tab["brokers"] if row["id"] == 0 and row["up"]]


async def test_brokers_on_a_dev_group(tmp_path: Path) -> None:
    options = DevOptions(directory=tmp_path, broker=True, load=20, page_port=0)
    async with DevSession(options, lambda text: None) as session:
        tab = await shown(session, lambda tab: len(tab["brokers"]) == 3 and sum(q["max"] for q in tab["queues"]) > 10)
        assert len(masters(tab)) == 1
        assert {row["topic"] for row in tab["queues"]} == {"DevTopic"}
        assert len(tab["queues"]) == 4
        assert "sent to DevTopic, queue " in await session.keeper.act("append", "", "a message")
        old = masters(tab)[0]["address"]
        async with Client(old) as client:
            await client.commit("DevTopic", 1, 2, "Readers")
        tab = await shown(session, lambda tab: bool(tab["consumers"]))
        (consumer,) = tab["consumers"]
        assert (consumer["group"], consumer["topic"], consumer["queue"], consumer["offset"]) == (
            "Readers",
            "DevTopic",
            1,
            2,
        )
        assert consumer["lag"] == next(queue["max"] for queue in tab["queues"] if queue["queue"] == 1) - 2
        await session.keeper.act("kill", "leader", "")
        tab = await shown(session, lambda tab: bool(masters(tab)) and masters(tab)[0]["address"] != old)
        before = sum(queue["max"] for queue in tab["queues"])
        await shown(session, lambda tab: sum(queue["max"] for queue in tab["queues"]) > before + 10)
        assert session.load is not None and session.load.acknowledged > 20
        await session.keeper.act("heal", "", "")
    assert list(tmp_path.glob("*.pid")) == []  # noqa: ASYNC240
