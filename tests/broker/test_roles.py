"""Leadership to roles: in order, at once downwards, never upwards before dispatch is through."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from broker_adapter.broker.roles import MASTER_STATE, DLedgerRoleChangeHandler, MasterRecord, RoleState
from broker_adapter.config import BrokerRole
from dledger import MemberRole
from dledger.errors import NotLeaderError
from tests.broker.harness import eventually


class FakeStore:
    """Just what the handler uses."""

    def __init__(self) -> None:
        self.role = BrokerRole.SLAVE
        self.dispatched = asyncio.Event()
        self.states: list[tuple[str, str, Any]] = []
        self.refuse_state = False
        self.refusals = 0
        self.term = 3
        self.calls: list[str] = []

    async def wait_dispatched(self) -> None:
        self.calls.append("wait")
        await self.dispatched.wait()

    def set_role(self, role: BrokerRole) -> None:
        self.calls.append(role.value)
        self.role = role

    async def put_state(self, kind: str, key: str, value: object) -> None:
        if self.refuse_state:
            self.refusals += 1
            raise NotLeaderError("no leader any more")
        self.states.append((kind, key, value))

    def dledger_status(self) -> SimpleNamespace:
        return SimpleNamespace(role="leader", term=self.term)

    def dispatch_behind_bytes(self) -> int:
        return 4096


class Rig:
    def __init__(self, slow_after_ms: int = 10_000) -> None:
        self.store = FakeStore()
        self.state = RoleState(is_dledger=True, is_master=False, broker_id=-1)
        self.seen: list[tuple[bool, int, int]] = []
        self.events: list[str] = []
        self.state.add_listener(lambda: self.seen.append((self.state.is_master, self.state.broker_id, self.state.term)))
        self.handler = DLedgerRoleChangeHandler(
            self.store,  # type: ignore[arg-type]
            self.state,
            self,
            node_id="n1",
            slave_broker_id=2,
            address=lambda: "here:1",
            slow_after_ms=slow_after_ms,
        )

    def master_begins(self) -> None:
        self.events.append("begins")

    def master_ends(self) -> None:
        self.events.append("ends")


@pytest.mark.asyncio
async def test_a_leader_is_master_only_after_dispatch() -> None:
    rig = Rig()
    await rig.handler.handle(3, MemberRole.LEADER)
    await eventually(lambda: rig.store.calls == ["wait"])
    assert rig.seen == []
    assert rig.store.role is BrokerRole.SLAVE
    rig.store.dispatched.set()
    await eventually(lambda: rig.state.is_master)
    assert rig.seen == [(True, 0, 3)]
    assert rig.store.calls == ["wait", "SYNC_MASTER"]
    assert rig.store.states == [(MASTER_STATE, "master", {"address": "here:1", "nodeId": "n1", "term": 3})]
    assert rig.events == ["begins"]


@pytest.mark.asyncio
@pytest.mark.parametrize("role", [MemberRole.FOLLOWER, MemberRole.CANDIDATE])
async def test_a_demotion_refuses_writes_at_once(role: MemberRole) -> None:
    rig = Rig()
    rig.store.dispatched.set()
    await rig.handler.handle(3, MemberRole.LEADER)
    await eventually(lambda: rig.state.is_master)
    await rig.handler.handle(4, role)
    assert rig.store.role is BrokerRole.SLAVE
    assert (rig.state.is_master, rig.state.broker_id, rig.state.term) == (False, 2, 4)
    assert rig.events == ["begins", "ends"]


@pytest.mark.asyncio
async def test_a_demotion_cuts_a_promotion_short() -> None:
    """Upstream's single thread lets the demotion wait for a promotion that may never end."""
    rig = Rig()
    await rig.handler.handle(3, MemberRole.LEADER)
    await eventually(lambda: rig.store.calls)
    await rig.handler.handle(4, MemberRole.FOLLOWER)
    assert rig.seen == [(False, 2, 4)]
    rig.store.dispatched.set()
    await rig.handler.shutdown()
    assert rig.state.is_master is False
    assert rig.events == []


@pytest.mark.asyncio
async def test_leadership_lost_while_promoting() -> None:
    rig = Rig()
    rig.store.refuse_state = True
    rig.store.term = 4
    rig.store.dispatched.set()
    with capture_logs() as logs:
        await rig.handler.handle(3, MemberRole.LEADER)
        await eventually(lambda: any(log["event"] == "promotion_given_up" for log in logs))
    assert rig.store.role is BrokerRole.SLAVE
    assert rig.seen == []
    assert rig.events == []


@pytest.mark.asyncio
async def test_a_leader_that_is_held_up_tries_again() -> None:
    """Upstream's #1830: a leader whose promotion fails once is a leader without a master for ever."""
    rig = Rig()
    rig.store.refuse_state = True
    rig.store.dispatched.set()
    await rig.handler.handle(3, MemberRole.LEADER)
    await eventually(lambda: rig.store.refusals >= 2)
    rig.store.refuse_state = False
    await eventually(lambda: rig.state.is_master)
    assert rig.events == ["begins"]


@pytest.mark.asyncio
async def test_a_slow_promotion_says_why_and_goes_on() -> None:
    rig = Rig(slow_after_ms=10)
    with capture_logs() as logs:
        await rig.handler.handle(3, MemberRole.LEADER)
        await eventually(lambda: sum(log["event"] == "promotion_slow" for log in logs) >= 2)
        assert "4096 committed bytes" in rig.state.note
        rig.store.dispatched.set()
        await eventually(lambda: rig.state.is_master)
    assert rig.state.note == ""
    assert logs[0]["behind_bytes"] == 4096


@pytest.mark.asyncio
async def test_a_candidate_that_is_slave_already_changes_nothing() -> None:
    rig = Rig()
    await rig.handler.handle(1, MemberRole.FOLLOWER)
    await rig.handler.handle(2, MemberRole.CANDIDATE)
    assert rig.seen == [(False, 2, 1)]


def test_an_older_masters_record_does_not_replace_a_newer_one() -> None:
    state = RoleState(is_dledger=True, is_master=False, broker_id=1)
    state.master_known(MasterRecord("new:1", "n1", 5))
    state.master_known(MasterRecord("old:1", "n0", 4))
    assert state.master is not None
    assert state.master.address == "new:1"
