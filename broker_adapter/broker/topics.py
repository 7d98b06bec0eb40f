"""Topics: built-in ones, those in the store's replicated state, and their creation by a send."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from broker_adapter.config import BrokerConfig
from broker_adapter.remoting.codes import ResponseCode
from broker_adapter.remoting.errors import CommandError
from broker_adapter.store.api import SCHEDULE_TOPIC, MessageStore, StateKind

__all__ = [
    "DEFAULT_TOPIC",
    "DLQ_PREFIX",
    "FORBIDDEN_SEND_TOPICS",
    "PERM_INHERIT",
    "PERM_READ",
    "PERM_WRITE",
    "RETRY_PREFIX",
    "TopicConfig",
    "TopicManager",
    "check_topic_name",
]

DEFAULT_TOPIC: Final = "TBW102"
RETRY_PREFIX: Final = "%RETRY%"
DLQ_PREFIX: Final = "%DLQ%"
REPLY_SUFFIX: Final = "_REPLY_TOPIC"
"""The topic of a cluster's replies: its name and this."""

PERM_INHERIT: Final = 1
PERM_WRITE: Final = 2
PERM_READ: Final = 4

_MAX_TOPIC_LENGTH: Final = 127
_MAX_QUEUE_COUNT: Final = 65_536
_NAME: Final = re.compile(r"[%|a-zA-Z0-9_-]+")

FORBIDDEN_SEND_TOPICS: Final = frozenset(
    {
        SCHEDULE_TOPIC,
        "RMQ_SYS_TRANS_HALF_TOPIC",
        "RMQ_SYS_TRANS_OP_HALF_TOPIC",
        "TRANS_CHECK_MAX_TIME_TOPIC",
        "SELF_TEST_TOPIC",
        "OFFSET_MOVED_EVENT",
    }
)
"""Topics that belong to the broker: a client's send to one is refused (NO_PERMISSION), as upstream."""


def check_topic_name(topic: str) -> None:
    """Refuse a name against the rules with `CommandError`, code and remark as upstream's."""
    if not topic.strip():
        raise CommandError(ResponseCode.SYSTEM_ERROR, "The specified topic is blank.")
    if not _NAME.fullmatch(topic):
        raise CommandError(
            ResponseCode.SYSTEM_ERROR,
            "The specified topic contains illegal characters, allowing only ^[%|a-zA-Z0-9_-]+$",
        )
    if len(topic) > _MAX_TOPIC_LENGTH:
        raise CommandError(
            ResponseCode.SYSTEM_ERROR, f"The specified topic is longer than topic max length {_MAX_TOPIC_LENGTH}."
        )


@dataclass(frozen=True, slots=True)
class TopicConfig:
    """A topic at this broker. ``perm``: sum of 1 inherit, 2 write, 4 read."""

    name: str
    read_queue_nums: int = 16
    write_queue_nums: int = 16
    perm: int = PERM_READ | PERM_WRITE
    sys_flag: int = 0
    order: bool = False

    @classmethod
    def from_json(cls, name: str, value: Mapping[str, Any]) -> TopicConfig:
        return cls(
            name,
            int(value.get("readQueueNums", 16)),
            int(value.get("writeQueueNums", 16)),
            int(value.get("perm", 6)),
            int(value.get("topicSysFlag", 0)),
            bool(value.get("order", False)),
        )

    def to_json(self) -> dict[str, object]:
        """Return upstream's TopicConfig."""
        return {
            "order": self.order,
            "perm": self.perm,
            "readQueueNums": self.read_queue_nums,
            "topicFilterType": "SINGLE_TAG",
            "topicName": self.name,
            "topicSysFlag": self.sys_flag,
            "writeQueueNums": self.write_queue_nums,
        }

    @property
    def queue_count(self) -> int:
        """Queue ids are below this."""
        return max(self.read_queue_nums, self.write_queue_nums)

    @property
    def is_readable(self) -> bool:
        return bool(self.perm & PERM_READ)

    @property
    def is_writable(self) -> bool:
        return bool(self.perm & PERM_WRITE)


def _built_in(config: BrokerConfig) -> dict[str, TopicConfig]:
    both = PERM_READ | PERM_WRITE
    topics = [
        TopicConfig("SELF_TEST_TOPIC", 1, 1),
        TopicConfig("BenchmarkTest", 1024, 1024),
        TopicConfig(config.broker_cluster_name, perm=PERM_INHERIT | (both if config.cluster_topic_enable else 0)),
        TopicConfig(config.broker_name, 1, 1, PERM_INHERIT | (both if config.broker_topic_enable else 0)),
        TopicConfig("OFFSET_MOVED_EVENT", 1, 1),
        TopicConfig(SCHEDULE_TOPIC, 18, 18),
        TopicConfig(config.broker_cluster_name + REPLY_SUFFIX, 1, 1),
    ]
    if config.trace_topic_enable:
        topics.append(TopicConfig(config.trace_topic_name, 1, 1))
    if config.auto_create_topic_enable:
        count = config.default_topic_queue_count
        topics.append(TopicConfig(DEFAULT_TOPIC, count, count, PERM_INHERIT | both))
    return {topic.name: topic for topic in topics}


class TopicManager:
    """The broker's topics. Those that people and sends make are records of the store's replicated state.

    ``on_change`` is called after the table changed, however it came: by this broker, or by the log at a slave.
    """

    def __init__(self, config: BrokerConfig, store: MessageStore, on_change: Callable[[], None]) -> None:
        self._config = config
        self._store = store
        self._on_change = on_change
        self._built_in = _built_in(config)
        self._topics: dict[str, TopicConfig] = dict(self._built_in)
        self._creating: dict[str, asyncio.Task[TopicConfig]] = {}
        store.add_state_listener(self._state_changed)

    def load(self) -> None:
        """Take what the store recovered; call once it has started."""
        for name, value in self._store.state(StateKind.TOPICS).items():
            self._take(name, value)
        self._on_change()

    def _take(self, name: str, value: object) -> None:
        if isinstance(value, Mapping):
            self._topics[name] = TopicConfig.from_json(name, value)
        elif name in self._built_in:
            self._topics[name] = self._built_in[name]
        else:
            self._topics.pop(name, None)

    def _state_changed(self, kind: str, key: str, value: object) -> None:
        if kind == StateKind.TOPICS:
            self._take(key, value)
            self._on_change()

    # ------------------------------------------------------------------ reading

    def get(self, topic: str) -> TopicConfig | None:
        return self._topics.get(topic)

    def require(self, topic: str) -> TopicConfig:
        """Return the topic or refuse with TOPIC_NOT_EXIST."""
        config = self._topics.get(topic)
        if config is None:
            raise CommandError(ResponseCode.TOPIC_NOT_EXIST, f"topic[{topic}] not exist, apply first please!")
        return config

    def all(self) -> dict[str, TopicConfig]:
        return dict(self._topics)

    def is_built_in(self, topic: str) -> bool:
        return topic in self._built_in

    def registered_json(self) -> dict[str, dict[str, object]]:
        """Return the table as it is registered: the broker's own permission narrows each topic's."""
        allowed = self._config.broker_permission | PERM_INHERIT
        return {
            name: (topic if topic.perm & ~allowed == 0 else replace(topic, perm=topic.perm & allowed)).to_json()
            for name, topic in self._topics.items()
        }

    # ------------------------------------------------------------------ changing

    async def put(self, topic: TopicConfig) -> None:
        """Make or change a topic; returns once it is stored (in DLedger mode: by a majority).

        Raises:
            CommandError: a name or queue counts against the rules.
            DLedgerError: this broker cannot store it now.
        """
        check_topic_name(topic.name)
        for count in (topic.read_queue_nums, topic.write_queue_nums):
            if not 0 <= count <= _MAX_QUEUE_COUNT:
                raise CommandError(ResponseCode.SYSTEM_ERROR, f"{count} queues; 0 to {_MAX_QUEUE_COUNT} are possible")
        await self._store.put_state(StateKind.TOPICS, topic.name, topic.to_json())

    async def delete(self, topic: str) -> None:
        """Remove a topic with its queues; one that is not there is fine."""
        if self.is_built_in(topic):
            raise CommandError(ResponseCode.SYSTEM_ERROR, f"The topic[{topic}] is conflict with system topic.")
        await self._store.put_state(StateKind.TOPICS, topic, None)

    def for_send(self, topic: str, default_topic: str, client_queue_nums: int, sys_flag: int) -> TopicConfig | None:
        """Return what a send to a topic nobody made would make, None where it may not."""
        template = self._topics.get(default_topic)
        if template is None or not template.perm & PERM_INHERIT:
            return None
        if default_topic == DEFAULT_TOPIC and not self._config.auto_create_topic_enable:
            return None
        queues = (
            min(client_queue_nums, template.write_queue_nums) if client_queue_nums > 0 else template.write_queue_nums
        )
        return TopicConfig(topic, queues, queues, template.perm & ~PERM_INHERIT, sys_flag)

    async def ensure(self, topic: TopicConfig) -> TopicConfig:
        """Return the topic of this name, made as ``topic`` if there is none. Concurrent calls make it once."""
        known = self._topics.get(topic.name)
        if known is not None:
            return known
        task = self._creating.get(topic.name)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._create(topic))
            self._creating[topic.name] = task
            task.add_done_callback(lambda _: self._creating.pop(topic.name, None))
        return await asyncio.shield(task)

    async def _create(self, topic: TopicConfig) -> TopicConfig:
        await self.put(topic)
        return self._topics.get(topic.name, topic)

    async def ensure_retry(self, group: str) -> TopicConfig:
        """Return the group's retry topic: one queue, read and write."""
        return await self.ensure(TopicConfig(RETRY_PREFIX + group, 1, 1))

    async def ensure_dead_letter(self, group: str) -> TopicConfig:
        """Return the group's dead-letter topic: one queue, write only until an operator allows reading."""
        return await self.ensure(TopicConfig(DLQ_PREFIX + group, 1, 1, PERM_WRITE))
