"""What chaos runs have found, one test each."""

from __future__ import annotations

import pytest

from dledger.driver.driver import Driver
from dledger.raft.messages import HeartbeatResponse
from tests.driver.harness import Group, append, eventually


@pytest.mark.asyncio
async def test_answers_that_wait_for_a_full_disk_do_not_pile_up() -> None:
    """Found by ``dledger chaos --faults all --seed 42``: a leader whose disk had been full lagged on after it had space.

    It had followed into a new term that it could not write down, so its answers to every heartbeat waited. Let go one
    after another, each older than what the leader knew by then, they made the leader begin again each time: five times
    the bytes that were missing. They would also have grown without bound.
    """
    async with Group(3) as group:
        leader = await group.leader()
        await append(leader, [b"before"])
        stuck: Driver = next(driver for driver in group.drivers.values() if driver is not leader)
        successor = next(d for d in group.drivers.values() if d is not leader and d is not stuck)
        await eventually(lambda: stuck.core.commit_index >= leader.core.commit_index)
        gate = stuck.disk._executor.gate  # type: ignore[attr-defined]
        gate.clear()
        try:
            await leader.transfer_leadership(successor.node_id)
            sent = successor._transport.sent  # type: ignore[attr-defined]
            begun = len(sent)
            # Twenty heartbeats to it, while its disk takes nothing.
            await eventually(lambda: len(sent) - begun > 60)
            waiting = [message for _, _, message in stuck._after_persist if isinstance(message, HeartbeatResponse)]
            assert stuck.core.term == successor.core.term
            assert len(waiting) == 1
        finally:
            gate.set()
        done = await append(successor, [b"after"])
        await eventually(lambda: stuck.core.commit_index >= done.first_index)
