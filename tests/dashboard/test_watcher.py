"""The watcher against nodes that say what they are told to."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from dledger.dashboard.watcher import Condition
from tests.dashboard.stage import HOST, Stage, event, looked, status, watching

pytestmark = pytest.mark.asyncio


def texts(now: dict) -> list[str]:
    return [found["text"] for found in now["events"]]


async def test_it_sees_a_node_go_and_come_back() -> None:
    stage = Stage()
    async with watching(stage) as watcher:
        await looked(watcher, lambda now: now.get("health") == "ok" and now["leader"] == "n0")
        stage.nodes["n2"] = "connection refused"
        now = await looked(watcher, lambda now: now["health"] == "degraded" and now["faults"])
        assert [(f["kind"], f["node"], f["ended"]) for f in now["faults"]] == [("down", "n2", None)]
        assert now["nodes"][2]["note"] == "connection refused"
        stage.nodes["n2"] = status("n2", pid=555)
        now = await looked(watcher, lambda now: now["health"] == "ok" and now["faults"][0]["ended"])
        said = [found.text for found in watcher.history.events]
        assert said == ["n2 does not answer", "n2 answers again (pid 555)"]
    assert stage.closed


async def test_a_time_without_a_leader_is_marked_from_the_leaders_end_on() -> None:
    stage = Stage()
    async with watching(stage) as watcher:
        await looked(watcher, lambda now: now.get("leader") == "n0")
        stage.nodes["n0"] = "connection refused"
        now = await looked(watcher, lambda now: now["health"] == "leaderless" and len(now["faults"]) == 2)
        assert {fault["kind"] for fault in now["faults"]} == {"down", "leaderless"}
        stage.change("n1", role="leader", term=4, role_since_ms=0)
        now = await looked(watcher, lambda now: now["leader"] == "n1")
        ended = [fault for fault in now["faults"] if fault["kind"] == "leaderless"]
        assert ended[0]["ended"] is not None
        assert now["since"] == pytest.approx(now["t"], abs=5)


async def test_what_the_keeper_knows_beats_what_is_seen() -> None:
    stage = Stage()
    async with watching(stage) as watcher:
        stage.nodes["n1"] = "DEADLINE_EXCEEDED: Deadline Exceeded"
        stage.conditions = {"n1": Condition("paused"), "n2": Condition(cut=True)}
        now = await looked(watcher, lambda now: not now["nodes"][1]["up"] and now["faults"])
        assert now["nodes"][1]["state"] == "paused"
        assert now["nodes"][1]["note"] == "no answer within 500 ms"
        assert {(fault["kind"], fault["node"]) for fault in now["faults"]} == {("paused", "n1"), ("cut", "n2")}


async def test_events_of_nodes_become_sentences_at_their_time() -> None:
    stage = Stage()
    async with watching(stage) as watcher:
        stage.change("n1", events=(event(1, "voted", 3000, candidate="n0", term="3"), event(2, "term_raised")))
        now = await looked(watcher, lambda now: bool(watcher.history.events))
        first = watcher.history.events[0]
        assert (first.text, first.kind) == ("n1 voted for n0 in term 3", "election")
        assert now["t"] - first.t == pytest.approx(3, abs=1.5)
        assert watcher.history.events[1].kind == "minor"
        number = len(watcher.history.events)
        await looked(watcher, lambda now: bool(now["points"]))
        assert len(watcher.history.events) == number, "told once"


async def test_a_node_given_by_address_gets_its_name_and_its_peers_are_watched() -> None:
    stage = Stage()
    async with watching(stage, named=False) as watcher:
        now = await looked(watcher, lambda now: len(now["nodes"]) == 3 and all(n["up"] for n in now["nodes"]))
        assert [(node["id"], node["address"]) for node in now["nodes"]] == [
            (f"n{i}", f"{HOST}:{7000 + i}") for i in range(3)
        ]


async def test_a_point_a_second_with_rates_latency_lag_and_sync() -> None:
    stage = Stage()
    async with watching(stage) as watcher:
        await looked(watcher, lambda now: bool(watcher.history.points))
        for node_id in stage.nodes:
            stage.change(node_id, commit_index=299, last_index=299)
        await looked(watcher, lambda now: len(watcher.history.points) > 1 and watcher.history.points[-1].rate)
        point = watcher.history.points[-1]
        assert point.rate == pytest.approx(200, rel=0.4)
        assert (point.p50, point.p99) == (2.0, 9.0)
        assert point.lag == {"n0": 0, "n1": 0, "n2": 0}
        assert point.fsync == {"n0": 2.5, "n1": 2.5, "n2": 2.5}
        full = watcher.full()
        assert len(full["points"]) == len(watcher.history.points)


async def test_a_watcher_that_breaks_says_so() -> None:
    stage = Stage()
    async with watching(stage) as watcher:
        assert not watcher.failed.done()
        stage.nodes["n1"] = object()  # type: ignore[assignment]
        async with asyncio.timeout(30):
            assert isinstance(await watcher.failed, AttributeError)


async def test_nodes_are_asked_less_often_while_nobody_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here: not at all after the first look, until somebody follows, and as before when he has gone."""
    monkeypatch.setattr("dledger.dashboard.watcher._IDLE_POLL_S", 1000.0)
    stage = Stage()
    watcher = stage.watcher()
    await watcher.start()
    try:
        async with asyncio.timeout(30):
            await watcher._ticked.wait()
            while stage.asks < 3:  # noqa: ASYNC110 - a turn of the loop, in which every node is asked
                await asyncio.sleep(0)
            assert stage.asks == 3
            await watcher.refresh()
            assert stage.asks == 6, "whoever acts on what is known can have it new"
            stage.nodes["n1"] = "connection refused"
            async with contextlib.aclosing(watcher.updates()) as updates:
                async for now in updates:
                    if now["health"] == "degraded":
                        break
            assert stage.asks > 6
            assert watcher._followers == 0
    finally:
        await watcher.stop()
