"""A classic slave takes over topics, groups, offsets and delay progress from its master, every ten seconds.

In DLedger mode there is nothing to take over: they travel in the log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import structlog

from broker_adapter.broker.offsets import offset_key
from broker_adapter.remoting.client import RemotingClient
from broker_adapter.remoting.codes import RequestCode, ResponseCode
from broker_adapter.remoting.command import RemotingCommand
from broker_adapter.remoting.errors import CommandError, RemotingError
from broker_adapter.store.api import MessageStore, StateKind
from dledger.errors import DLedgerError

__all__ = ["SlaveSync"]

_FIRST_S: Final = 1.0
_PERIOD_S: Final = 10.0
_TIMEOUT_MS: Final = 3000

Records = list[tuple[str, str, object]]


class SlaveSync:
    """Copies the small state of the master at `master_address` (empty: not known yet)."""

    def __init__(self, store: MessageStore, client: RemotingClient) -> None:
        self._store = store
        self._client = client
        self._task: asyncio.Task[None] | None = None
        self._wanted = asyncio.Event()
        self._master_address = ""

    @property
    def master_address(self) -> str:
        return self._master_address

    def set_master(self, address: str) -> None:
        """The name server told where the master is."""
        if address and address != self._master_address:
            self._wanted.set()
        self._master_address = address

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(), name="slave-sync")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _run(self) -> None:
        delay = _FIRST_S
        while True:
            try:
                async with asyncio.timeout(delay):
                    await self._wanted.wait()
            except TimeoutError:
                pass
            self._wanted.clear()
            delay = _PERIOD_S
            if self._master_address:
                await self.sync()

    async def sync(self) -> bool:
        """Take everything over once; False where the master could not be asked."""
        try:
            records = [
                *self._diff(StateKind.TOPICS, await self._ask(RequestCode.GET_ALL_TOPIC_CONFIG, "topicConfigTable")),
                *self._diff(
                    StateKind.SUBSCRIPTION_GROUPS,
                    await self._ask(RequestCode.GET_ALL_SUBSCRIPTIONGROUP_CONFIG, "subscriptionGroupTable"),
                ),
                *self._offsets(await self._ask(RequestCode.GET_ALL_CONSUMER_OFFSET, "offsetTable")),
                *self._delay(await self._ask(RequestCode.GET_ALL_DELAY_OFFSET, "offsetTable")),
            ]
            if records:
                await self._store.put_states(records)
        except (RemotingError, CommandError, DLedgerError) as error:
            structlog.get_logger().warning("slave_sync_failed", master=self._master_address, error=str(error))
            return False
        return True

    async def _ask(self, code: RequestCode, field: str) -> Mapping[str, Any]:
        answer = await self._client.invoke(self._master_address, RemotingCommand(int(code)), _TIMEOUT_MS)
        if answer.code != ResponseCode.SUCCESS:
            raise CommandError(answer.code, answer.remark or "")
        table = answer.json_object().get(field)
        return table if isinstance(table, Mapping) else {}

    def _diff(self, kind: str, wanted: Mapping[str, Any]) -> Records:
        """Return what makes our table the master's."""
        known = self._store.state(kind)
        records: Records = [(kind, name, value) for name, value in wanted.items() if known.get(name) != value]
        records += [(kind, name, None) for name in known if name not in wanted]
        return records

    def _offsets(self, table: Mapping[str, Any]) -> Records:
        known = self._store.state(StateKind.CONSUMER_OFFSETS)
        records: Records = []
        for name, queues in table.items():
            topic, _, group = name.partition("@")
            for queue_id, offset in queues.items() if isinstance(queues, Mapping) else ():
                key = offset_key(topic, group, int(queue_id))
                if known.get(key) != offset:
                    records.append((StateKind.CONSUMER_OFFSETS, key, int(offset)))
        return records

    def _delay(self, table: Mapping[str, Any]) -> Records:
        known = self._store.state(StateKind.DELAY_OFFSETS)
        return [(StateKind.DELAY_OFFSETS, level, int(v)) for level, v in table.items() if known.get(level) != v]
