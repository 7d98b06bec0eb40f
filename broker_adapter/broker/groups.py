"""Subscription groups: how each consumer group may consume."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import structlog

from broker_adapter.config import BrokerConfig
from broker_adapter.remoting.codes import ResponseCode
from broker_adapter.remoting.errors import CommandError
from broker_adapter.store.api import BrokerRole, MessageStore, StateKind
from dledger.errors import DLedgerError

__all__ = ["GroupManager", "SubscriptionGroup", "check_group_name"]

_MAX_GROUP_LENGTH: Final = 255
_ALWAYS: Final = (
    "TOOLS_CONSUMER",
    "FILTERSRV_CONSUMER",
    "SELF_TEST_C_GROUP",
    "CID_ONSAPI_OWNER",
    "CID_ONSAPI_PERMISSION",
    "CID_ONSAPI_PULL",
)
_ILLEGAL: Final = frozenset(" \t\r\n\x00@/\\")


def check_group_name(group: str) -> None:
    """Refuse a group name that cannot be one (``@`` separates it from the topic in the offset table)."""
    if not group or len(group) > _MAX_GROUP_LENGTH or not _ILLEGAL.isdisjoint(group):
        raise CommandError(ResponseCode.SYSTEM_ERROR, f"{group[:64]!r} is not a consumer group name")


@dataclass(frozen=True, slots=True)
class SubscriptionGroup:
    """Upstream's SubscriptionGroupConfig. ``broker_id``: where its consumers read when they are not slow."""

    name: str
    consume_enable: bool = True
    consume_from_min_enable: bool = True
    consume_broadcast_enable: bool = True
    retry_queue_nums: int = 1
    retry_max_times: int = 16
    broker_id: int = 0
    which_broker_when_consume_slowly: int = 1
    notify_consumer_ids_changed_enable: bool = True

    @classmethod
    def from_json(cls, name: str, value: Mapping[str, Any]) -> SubscriptionGroup:
        return cls(
            name,
            bool(value.get("consumeEnable", True)),
            bool(value.get("consumeFromMinEnable", True)),
            bool(value.get("consumeBroadcastEnable", True)),
            int(value.get("retryQueueNums", 1)),
            int(value.get("retryMaxTimes", 16)),
            int(value.get("brokerId", 0)),
            int(value.get("whichBrokerWhenConsumeSlowly", 1)),
            bool(value.get("notifyConsumerIdsChangedEnable", True)),
        )

    def to_json(self) -> dict[str, object]:
        return {
            "brokerId": self.broker_id,
            "consumeBroadcastEnable": self.consume_broadcast_enable,
            "consumeEnable": self.consume_enable,
            "consumeFromMinEnable": self.consume_from_min_enable,
            "groupName": self.name,
            "notifyConsumerIdsChangedEnable": self.notify_consumer_ids_changed_enable,
            "retryMaxTimes": self.retry_max_times,
            "retryQueueNums": self.retry_queue_nums,
            "whichBrokerWhenConsumeSlowly": self.which_broker_when_consume_slowly,
        }


class GroupManager:
    """The broker's subscription groups: records of the store's replicated state."""

    def __init__(self, config: BrokerConfig, store: MessageStore) -> None:
        self._config = config
        self._store = store
        self._built_in = {name: SubscriptionGroup(name) for name in _ALWAYS}
        self._groups: dict[str, SubscriptionGroup] = dict(self._built_in)
        self._storing: dict[str, asyncio.Task[None]] = {}
        store.add_state_listener(self._state_changed)

    def load(self) -> None:
        """Take what the store recovered; call once it has started."""
        for name, value in self._store.state(StateKind.SUBSCRIPTION_GROUPS).items():
            self._state_changed(StateKind.SUBSCRIPTION_GROUPS, name, value)

    def _state_changed(self, kind: str, key: str, value: object) -> None:
        if kind != StateKind.SUBSCRIPTION_GROUPS:
            return
        if isinstance(value, Mapping):
            self._groups[key] = SubscriptionGroup.from_json(key, value)
        elif key in self._built_in:
            self._groups[key] = self._built_in[key]
        else:
            self._groups.pop(key, None)

    def get(self, name: str) -> SubscriptionGroup | None:
        return self._groups.get(name)

    def all(self) -> dict[str, SubscriptionGroup]:
        return dict(self._groups)

    def require(self, name: str) -> SubscriptionGroup:
        """Return the group; one nobody made is made where that is allowed, else SUBSCRIPTION_GROUP_NOT_EXIST."""
        group = self._groups.get(name)
        if group is not None:
            return group
        if not self._config.auto_create_subscription_group:
            raise CommandError(ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST, f"subscription group [{name}] does not exist")
        check_group_name(name)
        group = SubscriptionGroup(name)
        self._store_soon(group)
        return group

    def _store_soon(self, group: SubscriptionGroup) -> None:
        """Store an automatically made group in the background; a slave leaves that to its master."""
        if self._store.role is BrokerRole.SLAVE or group.name in self._storing:
            return
        task = asyncio.get_running_loop().create_task(self._store_quietly(group))
        self._storing[group.name] = task
        task.add_done_callback(lambda _: self._storing.pop(group.name, None))

    async def _store_quietly(self, group: SubscriptionGroup) -> None:
        try:
            await self.put(group)
        except DLedgerError as error:
            structlog.get_logger().info("group_not_stored", group=group.name, error=str(error))

    async def put(self, group: SubscriptionGroup) -> None:
        """Make or change a group; returns once it is stored."""
        check_group_name(group.name)
        await self._store.put_state(StateKind.SUBSCRIPTION_GROUPS, group.name, group.to_json())

    async def delete(self, name: str) -> None:
        await self._store.put_state(StateKind.SUBSCRIPTION_GROUPS, name, None)

    async def drain(self) -> None:
        """Wait for what is being stored."""
        await asyncio.gather(*self._storing.values(), return_exceptions=True)
