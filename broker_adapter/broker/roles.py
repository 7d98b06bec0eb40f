"""What this broker is at the moment, who is master, and how leadership of the log turns into roles.

Upstream's DLedgerRoleChangeHandler, with four things done better: promotion waits without giving up and says why when
it takes long; a demotion cuts it short; the new master's address travels in the log, so that the others can forward
to it at once; and nothing is registered before the first role is known (upstream's #1464).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import structlog

from broker_adapter.config import BrokerRole
from broker_adapter.store.api import MessageStore
from dledger import DLedgerError, MemberRole

__all__ = ["MASTER_STATE", "UNKNOWN_BROKER_ID", "DLedgerRoleChangeHandler", "MasterRecord", "RoleState", "RoleTarget"]

MASTER_STATE: Final = "brokerMaster"
"""Kind of the state record in which a master tells the others where it is."""

UNKNOWN_BROKER_ID: Final = -1
_MASTER_KEY: Final = "master"
_LEADER: Final = "leader"
_RETRY_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class MasterRecord:
    """Where the master of a term listens (remoting ``host:port``)."""

    address: str
    node_id: str
    term: int

    @classmethod
    def from_state(cls, value: object) -> MasterRecord | None:
        if not isinstance(value, dict):
            return None
        return cls(str(value.get("address", "")), str(value.get("nodeId", "")), int(value.get("term", -1)))

    def to_state(self) -> dict[str, Any]:
        return {"address": self.address, "nodeId": self.node_id, "term": self.term}


class RoleState:
    """The broker's present role; everything else asks here.

    Invariant: ``is_master`` only between a LEADER event whose promotion is through and the next event.
    """

    def __init__(self, *, is_dledger: bool, is_master: bool, broker_id: int) -> None:
        self.is_dledger = is_dledger
        self.is_master = is_master
        self.broker_id = broker_id
        self.term = -1
        self.note = ""
        self.master: MasterRecord | None = None
        self.since_ms = int(time.time() * 1000)
        self._listeners: list[Callable[[], None]] = []
        self._waiters: list[asyncio.Future[None]] = []

    def add_listener(self, listener: Callable[[], None]) -> None:
        """Have ``listener`` called after every change."""
        self._listeners.append(listener)

    def change(self, *, is_master: bool, broker_id: int, term: int, note: str = "") -> None:
        """Take a role."""
        self.is_master = is_master
        self.broker_id = broker_id
        self.term = max(self.term, term)
        self.note = note
        self.since_ms = int(time.time() * 1000)
        self._changed()

    def master_known(self, record: MasterRecord) -> None:
        """A master's record was applied."""
        if self.master is None or record.term >= self.master.term:
            self.master = record
            self._changed()

    def _changed(self) -> None:
        for listener in self._listeners:
            listener()
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait_change(self, timeout_s: float) -> None:
        """Return after the next change, or when the time is up."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await asyncio.wait({waiter}, timeout=max(0.0, timeout_s))


class RoleTarget(Protocol):
    """What changes with the role: the broker."""

    def master_begins(self) -> None:
        """Start what only a master does."""

    def master_ends(self) -> None:
        """Stop what only a master does."""


class DLedgerRoleChangeHandler:
    """Turns role changes of the log into roles of the broker, in order, one at a time.

    LEADER: when everything committed is dispatched, become master, tell the others through the log, register.
    FOLLOWER, CANDIDATE: refuse writes at once, become slave, register.
    """

    def __init__(
        self,
        store: MessageStore,
        state: RoleState,
        target: RoleTarget,
        *,
        node_id: str,
        slave_broker_id: int,
        address: Callable[[], str],
        slow_after_ms: int,
    ) -> None:
        self._store = store
        self._state = state
        self._target = target
        self._node_id = node_id
        self._slave_broker_id = slave_broker_id
        self._address = address
        self._slow_after_s = slow_after_ms / 1000
        self._promotion: asyncio.Task[None] | None = None
        self._log = structlog.get_logger().bind(component="roles", node_id=node_id)

    def startup(self) -> None:
        """Nothing is known yet: the broker registers with its first role."""

    async def handle(self, term: int, role: MemberRole) -> None:
        """Take one event."""
        await self._cancel_promotion()
        if role is MemberRole.LEADER:
            self._promotion = asyncio.get_running_loop().create_task(self._promote(term), name="promotion")
            return
        if role is MemberRole.CANDIDATE and self._state.broker_id == self._slave_broker_id:
            return
        self._demote(term, role)

    async def shutdown(self) -> None:
        await self._cancel_promotion()

    async def _cancel_promotion(self) -> None:
        task, self._promotion = self._promotion, None
        if task is not None and not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _demote(self, term: int, role: MemberRole) -> None:
        was_master = self._state.is_master
        self._store.set_role(BrokerRole.SLAVE)
        if was_master:
            self._target.master_ends()
        self._state.change(is_master=False, broker_id=self._slave_broker_id, term=term)
        if was_master:
            self._log.info("became_slave", term=term, cause=role.value, broker_id=self._slave_broker_id)

    async def _promote(self, term: int) -> None:
        started = time.monotonic()
        watch = asyncio.get_running_loop().create_task(self._watch(term, started))
        try:
            while not await self._try_promotion(term):
                await asyncio.sleep(_RETRY_S)
                if not self._still_leads(term):
                    self._log.info("promotion_given_up", term=term)
                    return
        finally:
            watch.cancel()
        self._state.change(is_master=True, broker_id=0, term=term)
        self._target.master_begins()
        self._log.info("became_master", term=term, took_ms=int((time.monotonic() - started) * 1000))

    async def _try_promotion(self, term: int) -> bool:
        """Catch up, take the store, tell the others; False where the log would not take it now."""
        try:
            await self._store.wait_dispatched()
            self._store.set_role(BrokerRole.SYNC_MASTER)
            record = MasterRecord(self._address(), self._node_id, term)
            await self._store.put_state(MASTER_STATE, _MASTER_KEY, record.to_state())
        except DLedgerError as error:
            self._store.set_role(BrokerRole.SLAVE)
            self._log.info("promotion_held_up", term=term, error=str(error))
            return False
        except asyncio.CancelledError:
            self._store.set_role(BrokerRole.SLAVE)
            raise
        return True

    def _still_leads(self, term: int) -> bool:
        """Whether this node leads in ``term``: a slow majority is waited for, a lost lead is not (upstream's #1830)."""
        status = self._store.dledger_status()
        return status is not None and status.role == _LEADER and status.term == term

    async def _watch(self, term: int, started: float) -> None:
        """Say why a promotion takes long, again and again until it is through."""
        while True:
            await asyncio.sleep(self._slow_after_s)
            behind = self._store.dispatch_behind_bytes()
            note = f"leader of term {term}, not yet master: {behind} committed bytes are not dispatched"
            self._state.note = note
            self._log.warning(
                "promotion_slow", term=term, behind_bytes=behind, waited_ms=int((time.monotonic() - started) * 1000)
            )
