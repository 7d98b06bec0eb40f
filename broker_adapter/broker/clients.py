"""Producers and consumers that heartbeat to this broker: who is there, and what each group subscribes to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from broker_adapter.message import tags_code
from broker_adapter.remoting.codes import RequestCode
from broker_adapter.remoting.command import RemotingCommand
from broker_adapter.remoting.connection import RemotingConnection

__all__ = ["ClientInfo", "ClientTable", "ConsumerGroup", "Subscription", "integer_of"]

ALL_TAGS: Final = "*"
_CONSUME_TYPES: Final = ("CONSUME_ACTIVELY", "CONSUME_PASSIVELY")
_MODELS: Final = ("BROADCASTING", "CLUSTERING")
_FROM_WHERE: Final = (
    "CONSUME_FROM_LAST_OFFSET",
    "CONSUME_FROM_LAST_OFFSET_AND_FROM_MIN_WHEN_BOOT_FIRST",
    "CONSUME_FROM_MIN_OFFSET",
    "CONSUME_FROM_MAX_OFFSET",
    "CONSUME_FROM_FIRST_OFFSET",
    "CONSUME_FROM_TIMESTAMP",
)
_MAX_SUBSCRIPTIONS: Final = 10_000


def integer_of(value: object, default: int = 0) -> int:
    """Coerce what a client's JSON holds where a number is meant."""
    try:
        return int(value)  # type: ignore[call-overload, no-any-return]
    except (TypeError, ValueError, OverflowError):
        return default


def _enum_of(value: object, names: tuple[str, ...], default: str) -> str:
    """Coerce an enum: Java writes its name, the C++ client its number."""
    if isinstance(value, str) and not value.isdigit():
        return value
    number = integer_of(value, -1)
    return names[number] if 0 <= number < len(names) else default


@dataclass(frozen=True, slots=True)
class Subscription:
    """A group's wish in one topic. ``codes``: hash codes of the wanted tags, None for all."""

    topic: str
    expression: str
    version: int
    expression_type: str = "TAG"
    codes: frozenset[int] | None = None

    @classmethod
    def parse(cls, topic: str, expression: str, version: int = 0, expression_type: str = "TAG") -> Subscription:
        """Make one of ``A || B``; ``*`` or nothing is everything."""
        tags = [part.strip() for part in expression.split("||")]
        tags = [tag for tag in tags if tag]
        codes = None if not tags or tags == [ALL_TAGS] else frozenset(tags_code(tag) for tag in tags)
        return cls(topic, expression or ALL_TAGS, version, expression_type or "TAG", codes)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Subscription:
        return cls.parse(
            str(value.get("topic", "")),
            str(value.get("subString") or ""),
            integer_of(value.get("subVersion")),
            str(value.get("expressionType") or "TAG"),
        )

    def to_json(self) -> dict[str, object]:
        tags = [] if self.codes is None else [t.strip() for t in self.expression.split("||") if t.strip()]
        return {
            "classFilterMode": False,
            "codeSet": sorted(self.codes or ()),
            "expressionType": self.expression_type,
            "subString": self.expression,
            "subVersion": self.version,
            "tagsSet": tags,
            "topic": self.topic,
        }


@dataclass(slots=True)
class ClientInfo:
    """One client's channel in a group. ``last_update_ms``: of its last heartbeat, by the caller's clock."""

    client_id: str
    connection: RemotingConnection
    language: str
    version: int
    last_update_ms: int

    def to_json(self) -> dict[str, object]:
        return {
            "clientAddr": self.connection.remote_address,
            "clientId": self.client_id,
            "language": self.language,
            "version": self.version,
        }


@dataclass(slots=True)
class ConsumerGroup:
    """The consumers of one group that are there now."""

    name: str
    consume_type: str = "CONSUME_PASSIVELY"
    message_model: str = "CLUSTERING"
    consume_from_where: str = "CONSUME_FROM_LAST_OFFSET"
    clients: dict[RemotingConnection, ClientInfo] = field(default_factory=dict)
    subscriptions: dict[str, Subscription] = field(default_factory=dict)

    def client_ids(self) -> list[str]:
        return sorted({info.client_id for info in self.clients.values()})

    def update_subscriptions(self, wanted: Iterable[Subscription]) -> bool:
        """Take a heartbeat's subscriptions: newer versions win, topics no longer named go. True if any changed."""
        changed = False
        names = set()
        for subscription in wanted:
            names.add(subscription.topic)
            known = self.subscriptions.get(subscription.topic)
            if known is None:
                changed = True
                self.subscriptions[subscription.topic] = subscription
            elif subscription.version > known.version:
                changed = changed or known.expression != subscription.expression
                self.subscriptions[subscription.topic] = subscription
        for topic in [t for t in self.subscriptions if t not in names]:
            del self.subscriptions[topic]
            changed = True
        return changed


class ClientTable:
    """Producer groups and consumer groups by name, pure but for the notification that is sent on a change."""

    def __init__(self, notify: Callable[[ConsumerGroup], bool] = lambda _: True) -> None:
        self.producers: dict[str, dict[RemotingConnection, ClientInfo]] = {}
        self.consumers: dict[str, ConsumerGroup] = {}
        self._may_notify = notify

    # ------------------------------------------------------------------ heartbeats

    def register_producer(self, group: str, client: ClientInfo) -> None:
        self.producers.setdefault(group, {})[client.connection] = client

    def register_consumer(self, group: str, client: ClientInfo, data: Mapping[str, Any]) -> bool:
        """Take one entry of a heartbeat's ``consumerDataSet``; True (and the group told) if it changed anything."""
        entry = self.consumers.get(group)
        if entry is None:
            entry = self.consumers[group] = ConsumerGroup(group)
        entry.consume_type = _enum_of(data.get("consumeType"), _CONSUME_TYPES, "CONSUME_PASSIVELY")
        entry.message_model = _enum_of(data.get("messageModel"), _MODELS, "CLUSTERING")
        entry.consume_from_where = _enum_of(data.get("consumeFromWhere"), _FROM_WHERE, "CONSUME_FROM_LAST_OFFSET")
        is_new = client.connection not in entry.clients
        entry.clients[client.connection] = client
        raw = data.get("subscriptionDataSet") or []
        items = (
            [item for item in raw[:_MAX_SUBSCRIPTIONS] if isinstance(item, Mapping)] if isinstance(raw, list) else []
        )
        changed = entry.update_subscriptions([Subscription.from_json(item) for item in items])
        if is_new or changed:
            self._notify(entry)
        return is_new or changed

    # ------------------------------------------------------------------ ends

    def unregister_producer(self, group: str, connection: RemotingConnection) -> None:
        clients = self.producers.get(group)
        if clients is not None:
            clients.pop(connection, None)
            if not clients:
                del self.producers[group]

    def unregister_consumer(self, group: str, connection: RemotingConnection) -> None:
        entry = self.consumers.get(group)
        if entry is None or entry.clients.pop(connection, None) is None:
            return
        if not entry.clients:
            del self.consumers[group]
        else:
            self._notify(entry)

    def connection_closed(self, connection: RemotingConnection) -> None:
        """Forget a closed connection everywhere; its groups are told."""
        for group in [g for g, clients in self.producers.items() if connection in clients]:
            self.unregister_producer(group, connection)
        for group in [g for g, entry in self.consumers.items() if connection in entry.clients]:
            self.unregister_consumer(group, connection)

    def expire(self, now_ms: int, timeout_ms: int) -> list[RemotingConnection]:
        """Forget clients whose last heartbeat is older than ``timeout_ms``; returns their connections."""
        gone: dict[RemotingConnection, None] = {}
        groups = [*self.producers.values(), *(entry.clients for entry in self.consumers.values())]
        for clients in groups:
            for connection, info in clients.items():
                if info.last_update_ms + timeout_ms < now_ms:
                    gone[connection] = None
        for connection in gone:
            self.connection_closed(connection)
        return list(gone)

    def _notify(self, group: ConsumerGroup) -> None:
        """Tell every consumer of the group to rebalance."""
        if not self._may_notify(group):
            return
        for connection in list(group.clients):
            connection.send_oneway(
                RemotingCommand(int(RequestCode.NOTIFY_CONSUMER_IDS_CHANGED), {"consumerGroup": group.name})
            )

    # ------------------------------------------------------------------ answers

    def subscription(self, group: str, topic: str) -> Subscription | None:
        entry = self.consumers.get(group)
        return None if entry is None else entry.subscriptions.get(topic)

    def producer(self, client_id: str) -> RemotingConnection | None:
        """Return the connection of a producer by its client id, None where it is not here."""
        groups = self.producers.values()
        return next((c for clients in groups for c, info in clients.items() if info.client_id == client_id), None)

    def consumer(self, group: str, client_id: str) -> RemotingConnection | None:
        """Return the connection of a group's consumer by its client id, None where it is not here."""
        entry = self.consumers.get(group)
        clients = {} if entry is None else entry.clients
        return next((c for c, info in clients.items() if info.client_id == client_id), None)

    def groups_of_topic(self, topic: str) -> list[str]:
        """Return the groups that subscribe to a topic now."""
        return sorted(name for name, entry in self.consumers.items() if topic in entry.subscriptions)
