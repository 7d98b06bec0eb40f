"""Cuts that are held: the group keeps its leader, and a node that comes back disturbs nobody (thesis §9.6)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from dledger.chaos.fabric import Flow, Rule
from dledger.chaos.group import ChaosGroup
from tests.chaos.conftest import leaders_since, loaded, log_marks


def both(a: str, b: str) -> list[tuple[str, str]]:
    return [(a, b), (b, a)]


async def hold_triangle(group: ChaosGroup, flow: Flow, seconds: float) -> None:
    """The leader and a follower do not see each other, both see the third."""
    async with group, loaded(group) as load:
        leader = await group.wait_leader()
        follower = next(node_id for node_id in group.node_ids if node_id != leader)
        marks = log_marks(group)
        group.fabric.set_rules(both(leader, follower), Rule(flow))
        await asyncio.sleep(seconds)
        # Work went on to the end of the cut, under one leader after one change at most.
        await load.wait_acks(20, 5)
        assert len(leaders_since(group, marks)) <= 1
        group.fabric.heal()
        await group.wait_caught_up(follower, 10)
        await group.wait_caught_up(leader, 10)
        assert len(leaders_since(group, marks)) <= 1
        assert not load.failures


async def isolate_follower(group: ChaosGroup, flow: Flow, seconds: float) -> None:
    async with group, loaded(group) as load:
        leader = await group.wait_leader()
        term = load.term
        alone = next(node_id for node_id in group.node_ids if node_id != leader)
        marks = log_marks(group)
        for other in group.node_ids:
            if other != alone:
                group.fabric.set_rules(both(alone, other), Rule(flow))
        await asyncio.sleep(seconds)
        await load.wait_acks(20, 5)
        group.fabric.heal()
        await group.wait_caught_up(alone, 10)
        await load.wait_acks(50, 10)
        assert leaders_since(group, marks) == []
        assert await group.leader() == leader
        assert load.term == term
        assert not load.failures


@pytest.mark.asyncio
@pytest.mark.parametrize("flow", [Flow.HELD, Flow.REFUSED])
async def test_a_triangle_costs_one_leader_change_at_most(chaos_group: Callable[..., ChaosGroup], flow: Flow) -> None:
    await hold_triangle(chaos_group(), flow, 3)


@pytest.mark.asyncio
@pytest.mark.parametrize("flow", [Flow.LOST, Flow.REFUSED])
async def test_a_node_that_was_cut_off_deposes_nobody(chaos_group: Callable[..., ChaosGroup], flow: Flow) -> None:
    await isolate_follower(chaos_group(), flow, 3)


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.asyncio
@pytest.mark.parametrize("flow", list(Flow)[1:])
async def test_a_triangle_held_for_a_minute(chaos_group: Callable[..., ChaosGroup], flow: Flow) -> None:
    await hold_triangle(chaos_group(), flow, 60)


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.asyncio
@pytest.mark.parametrize("flow", list(Flow)[1:])
async def test_a_node_cut_off_for_a_minute(chaos_group: Callable[..., ChaosGroup], flow: Flow) -> None:
    await isolate_follower(chaos_group(), flow, 60)


@pytest.mark.asyncio
@pytest.mark.parametrize("direction", ["hears nothing", "is heard by nobody"])
async def test_a_leader_cut_in_one_direction_is_replaced_and_comes_back(
    chaos_group: Callable[..., ChaosGroup], direction: str
) -> None:
    group = chaos_group()
    async with group, loaded(group) as load:
        leader = await group.wait_leader()
        term = load.term
        others = [node_id for node_id in group.node_ids if node_id != leader]
        marks = log_marks(group)
        flows = [(a, leader) if direction == "hears nothing" else (leader, a) for a in others]
        group.fabric.set_rules(flows, Rule(Flow.LOST))
        await load.wait(lambda: load.term > term, 15, "an acknowledgement of another leader")
        group.fabric.heal()
        await group.wait_caught_up(leader, 10)
        assert {node_id for node_id, _ in leaders_since(group, marks)} <= set(others)
        assert not load.failures
