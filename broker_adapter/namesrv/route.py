"""The routing tables, pure: no socket, no clock. Times come in as milliseconds.

Upstream's RouteInfoManager, with two differences that keep a failover clean:

* A registration may carry the Raft term of its sender (ext field ``term``). A master of an older term never takes the
  place of one of a newer term, so a woken old master cannot take back the route (upstream's #1464).
* What a master registers is taken when its data version changed *or* another broker was master before it. Upstream
  looks at the version alone, and that of a former slave may not have changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

__all__ = [
    "MASTER_ID",
    "PERM_READ",
    "PERM_WRITE",
    "BrokerData",
    "DataVersion",
    "LiveBroker",
    "QueueData",
    "RegisterResult",
    "Registration",
    "RouteTable",
    "StaleMasterError",
]

MASTER_ID: Final = 0
PERM_READ: Final = 4
PERM_WRITE: Final = 2


class StaleMasterError(Exception):
    """A master of an older term asked for the place of a newer one."""


@dataclass(frozen=True, slots=True)
class DataVersion:
    """When a broker's topic table last changed. Compared for equality only."""

    timestamp: int = 0
    counter: int = 0

    @classmethod
    def from_json(cls, value: object) -> DataVersion:
        if not isinstance(value, Mapping):
            return cls()
        return cls(_number(value.get("timestamp")), _number(value.get("counter")))

    def to_json(self) -> dict[str, int]:
        return {"timestamp": self.timestamp, "counter": self.counter}


def _number(value: object, default: int = 0) -> int:
    try:
        return int(value)  # type: ignore[call-overload, no-any-return]
    except (TypeError, ValueError, OverflowError):
        return default


@dataclass(frozen=True, slots=True)
class QueueData:
    """A topic's queues at one broker name."""

    broker_name: str
    read_queue_nums: int
    write_queue_nums: int
    perm: int
    topic_sys_flag: int = 0

    @classmethod
    def from_topic_config(cls, broker_name: str, config: Mapping[str, Any]) -> QueueData:
        return cls(
            broker_name,
            _number(config.get("readQueueNums"), 16),
            _number(config.get("writeQueueNums"), 16),
            _number(config.get("perm"), PERM_READ | PERM_WRITE),
            _number(config.get("topicSysFlag")),
        )

    def to_json(self) -> dict[str, object]:
        return {
            "brokerName": self.broker_name,
            "perm": self.perm,
            "readQueueNums": self.read_queue_nums,
            "topicSysFlag": self.topic_sys_flag,
            # The name it had before 4.9.3; old clients read this one.
            "topicSynFlag": self.topic_sys_flag,
            "writeQueueNums": self.write_queue_nums,
        }


@dataclass(slots=True)
class BrokerData:
    """All registered addresses of one broker name."""

    cluster: str
    broker_name: str
    addresses: dict[int, str] = field(default_factory=dict)
    master_term: int = -1
    applied: tuple[str, DataVersion] | None = None
    """(master's address, data version) whose topics stand in the table."""

    def to_json(self) -> dict[str, object]:
        return {
            "brokerAddrs": {str(broker_id): address for broker_id, address in sorted(self.addresses.items())},
            "brokerName": self.broker_name,
            "cluster": self.cluster,
        }


@dataclass(slots=True)
class LiveBroker:
    """The last that was heard from an address. ``channel``: the connection, compared by identity."""

    last_update_ms: int
    data_version: DataVersion
    ha_address: str
    channel: object


@dataclass(frozen=True, slots=True)
class Registration:
    """What a broker says of itself. ``term``: -1 where it has none (classic roles, upstream's brokers)."""

    cluster: str
    broker_name: str
    address: str
    broker_id: int
    ha_address: str
    topics: Mapping[str, Mapping[str, Any]]
    data_version: DataVersion
    term: int = -1


@dataclass(frozen=True, slots=True)
class RegisterResult:
    """What a slave is told: where its master is (empty: unknown, or the asker is the master)."""

    master_address: str = ""
    ha_address: str = ""


class RouteTable:
    """Topics, broker names, clusters and live addresses. Invariant: every address in a `BrokerData` is live."""

    def __init__(self) -> None:
        self.topics: dict[str, dict[str, QueueData]] = {}
        self.brokers: dict[str, BrokerData] = {}
        self.clusters: dict[str, set[str]] = {}
        self.live: dict[str, LiveBroker] = {}

    # ------------------------------------------------------------------ brokers

    def register(self, registration: Registration, channel: object, now_ms: int) -> RegisterResult:
        """Take a registration.

        Raises:
            StaleMasterError: a master of an older term than the registered one's. Nothing is changed.
        """
        name, broker_id, address = registration.broker_name, registration.broker_id, registration.address
        data = self.brokers.get(name)
        if data is not None and broker_id == MASTER_ID:
            self._check_term(data, registration)
        if data is None:
            data = self.brokers[name] = BrokerData(registration.cluster, name)
        data.cluster = registration.cluster
        self.clusters.setdefault(registration.cluster, set()).add(name)
        # One address has one id: a switch of roles must not leave it under the old one.
        for old_id in [i for i, a in data.addresses.items() if a == address and i != broker_id]:
            del data.addresses[old_id]
        data.addresses[broker_id] = address
        self.live[address] = LiveBroker(now_ms, registration.data_version, registration.ha_address, channel)
        if broker_id == MASTER_ID:
            data.master_term = registration.term
            self._take_topics(data, registration)
            return RegisterResult()
        master = data.addresses.get(MASTER_ID)
        live = self.live.get(master) if master is not None else None
        return RegisterResult(master or "", live.ha_address) if live is not None else RegisterResult()

    def _check_term(self, data: BrokerData, registration: Registration) -> None:
        master = data.addresses.get(MASTER_ID)
        if master is None or master == registration.address or registration.term < 0:
            return
        if registration.term < data.master_term:
            raise StaleMasterError(
                f"{registration.address} is master of term {registration.term}, but {master} is of term "
                f"{data.master_term}"
            )

    def _take_topics(self, data: BrokerData, registration: Registration) -> None:
        version = (registration.address, registration.data_version)
        if data.applied == version or not registration.topics:
            return
        data.applied = version
        for topic, config in registration.topics.items():
            self.topics.setdefault(topic, {})[data.broker_name] = QueueData.from_topic_config(data.broker_name, config)

    def unregister(self, broker_name: str, address: str) -> None:
        """Forget an address; where it was the last of its name, the name and its queues too."""
        self.live.pop(address, None)
        data = self.brokers.get(broker_name)
        if data is None:
            return
        for broker_id in [i for i, a in data.addresses.items() if a == address]:
            del data.addresses[broker_id]
        if data.addresses:
            return
        del self.brokers[broker_name]
        names = self.clusters.get(data.cluster)
        if names is not None:
            names.discard(broker_name)
            if not names:
                del self.clusters[data.cluster]
        for topic in [t for t, queues in self.topics.items() if broker_name in queues]:
            self._drop_queues(topic, broker_name)

    def _drop_queues(self, topic: str, broker_name: str) -> None:
        queues = self.topics[topic]
        queues.pop(broker_name, None)
        if not queues:
            del self.topics[topic]

    def unregister_address(self, address: str) -> None:
        """Forget an address, whatever names it stands under."""
        names = [name for name, data in self.brokers.items() if address in data.addresses.values()]
        self.live.pop(address, None)
        for name in names:
            self.unregister(name, address)

    def channel_closed(self, channel: object) -> list[str]:
        """Forget every address whose last word came over ``channel``; returns them."""
        gone = [address for address, live in self.live.items() if live.channel is channel]
        for address in gone:
            self.unregister_address(address)
        return gone

    def expire(self, now_ms: int, timeout_ms: int) -> list[str]:
        """Forget every address that was silent for ``timeout_ms``; returns them."""
        gone = [address for address, live in self.live.items() if live.last_update_ms + timeout_ms < now_ms]
        for address in gone:
            self.unregister_address(address)
        return gone

    def is_topic_config_changed(self, address: str, version: DataVersion) -> bool:
        """Whether a broker must send its topics again."""
        live = self.live.get(address)
        return live is None or live.data_version != version

    def touch(self, address: str, now_ms: int) -> None:
        """A live address was heard from."""
        live = self.live.get(address)
        if live is not None:
            live.last_update_ms = now_ms

    # ------------------------------------------------------------------ answers

    def route(self, topic: str) -> dict[str, object] | None:
        """Return the body of GET_ROUTEINFO_BY_TOPIC, None where nobody has the topic."""
        queues = self.topics.get(topic)
        if not queues:
            return None
        names = [name for name in sorted(queues) if name in self.brokers]
        if not names:
            return None
        return {
            "brokerDatas": [self.brokers[name].to_json() for name in names],
            "filterServerTable": {},
            "queueDatas": [queues[name].to_json() for name in names],
        }

    def cluster_info(self) -> dict[str, object]:
        return {
            "brokerAddrTable": {name: data.to_json() for name, data in sorted(self.brokers.items())},
            "clusterAddrTable": {cluster: sorted(names) for cluster, names in sorted(self.clusters.items())},
        }

    def topics_of_cluster(self, cluster: str) -> list[str]:
        names = self.clusters.get(cluster, set())
        return sorted(topic for topic, queues in self.topics.items() if not names.isdisjoint(queues))

    def system_topics(self) -> list[str]:
        """Return cluster names and broker names: each is a topic too."""
        return sorted({*self.clusters, *self.brokers})

    # ------------------------------------------------------------------ operators

    def delete_topic(self, topic: str, broker_names: Iterable[str] | None = None) -> None:
        """Forget a topic, at these brokers or at all."""
        if topic not in self.topics:
            return
        for name in list(self.topics[topic]) if broker_names is None else broker_names:
            if topic in self.topics:
                self._drop_queues(topic, name)

    def change_write_perm(self, broker_name: str, allow: bool) -> int:
        """Give or take the write permission of all of a broker's queues; returns how many topics."""
        count = 0
        for queues in self.topics.values():
            old = queues.get(broker_name)
            if old is None:
                continue
            perm = (old.perm | PERM_WRITE) if allow else (old.perm & ~PERM_WRITE)
            queues[broker_name] = QueueData(
                broker_name, old.read_queue_nums, old.write_queue_nums, perm, old.topic_sys_flag
            )
            count += 1
        return count
