"""What the broker's tests share: name servers and brokers in this process on free ports, and a small client."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from broker_adapter.broker.broker import Broker
from broker_adapter.broker.command import open_message_store
from broker_adapter.config import BrokerConfig
from broker_adapter.message import Message, format_properties, iter_messages, join_batch
from broker_adapter.namesrv.server import NameServer, NameServerOptions
from broker_adapter.remoting.client import RemotingClient
from broker_adapter.remoting.codes import RequestCode
from broker_adapter.remoting.command import RemotingCommand
from dledger.local_group import free_ports

HOST = "127.0.0.1"
SMALL_FILES: dict[str, Any] = {
    "mapped_file_size_commit_log_bytes": 4 * 1024 * 1024,
    "mapped_file_size_consume_queue_bytes": 20 * 1000,
    "max_hash_slot_count": 1000,
    "max_index_count": 4000,
}


async def eventually(check: Callable[[], Any] | Callable[[], Awaitable[Any]], timeout_s: float = 30.0) -> Any:
    """Return the first true value of ``check``; fails loudly when there is none in time."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = check()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, f"nothing true within {timeout_s} s"
        await asyncio.sleep(0.01)


@asynccontextmanager
async def name_server(**options: Any) -> AsyncIterator[NameServer]:
    server = NameServer(NameServerOptions(host=HOST, port=0, **options))
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


def local_config(root: Path, *namesrv: NameServer, **changes: Any) -> BrokerConfig:
    values: dict[str, Any] = {
        "broker_cluster_name": "C",
        "broker_name": "b",
        "listen_port": 0,
        "bind_host": HOST,
        "store_path_root_dir": str(root),
        "namesrv_addr": tuple(f"{HOST}:{server.port}" for server in namesrv),
        "log_level": "warning",
        **SMALL_FILES,
        **changes,
    }
    return BrokerConfig(**values)


@asynccontextmanager
async def running(config: BrokerConfig) -> AsyncIterator[Broker]:
    broker = Broker(config, open_message_store)
    try:
        await broker.start()
        yield broker
    finally:
        await broker.stop()


class Client:
    """Speaks to one address, the way a client library does."""

    def __init__(self, address: str, client_id: str = "client-1") -> None:
        self.address = address
        self.client_id = client_id
        self.remoting = RemotingClient()

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.remoting.close()

    async def ask(
        self, code: int, ext: dict[str, Any] | None = None, body: bytes = b"", **more: Any
    ) -> RemotingCommand:
        command = RemotingCommand(int(code), dict(ext or {}), body, **more)
        return await self.remoting.invoke(self.address, command, 20_000)

    def send_ext(self, topic: str, properties: dict[str, str] | None = None, **changes: Any) -> dict[str, Any]:
        """A V2 header."""
        return {
            "a": "PG",
            "b": topic,
            "c": "TBW102",
            "d": "4",
            "e": "0",
            "f": "0",
            "g": str(int(time.time() * 1000)),
            "h": "0",
            "i": format_properties(properties or {}).decode(),
            "j": "0",
            "k": "false",
            "l": "16",
            "m": "false",
            **changes,
        }

    async def send(
        self, topic: str, body: bytes, properties: dict[str, str] | None = None, **changes: Any
    ) -> RemotingCommand:
        return await self.ask(RequestCode.SEND_MESSAGE_V2, self.send_ext(topic, properties, **changes), body)

    async def send_batch(self, topic: str, bodies: list[bytes], **changes: Any) -> RemotingCommand:
        data = join_batch([(0, body, b"") for body in bodies])
        return await self.ask(RequestCode.SEND_BATCH_MESSAGE, self.send_ext(topic, **{"m": "true", **changes}), data)

    async def pull(self, topic: str, queue_id: int, offset: int, **changes: Any) -> RemotingCommand:
        ext = {
            "consumerGroup": "CG",
            "topic": topic,
            "queueId": queue_id,
            "queueOffset": offset,
            "maxMsgNums": 32,
            "sysFlag": 4,
            "commitOffset": 0,
            "suspendTimeoutMillis": 15_000,
            "subscription": "*",
            "subVersion": 1,
            "expressionType": "TAG",
            **changes,
        }
        return await self.ask(RequestCode.PULL_MESSAGE, ext)

    async def pull_messages(self, topic: str, queue_id: int = 0, offset: int = 0, **changes: Any) -> list[Message]:
        answer = await self.pull(topic, queue_id, offset, **changes)
        return list(iter_messages(bytes(answer.body)))

    async def read_all(self, topic: str, queue_id: int = 0, count: int = 1) -> list[Message]:
        """Read a queue from its start until ``count`` messages are there."""
        found: list[Message] = []

        async def enough() -> bool:
            found[:] = []
            at = 0
            while True:
                batch = await self.pull_messages(topic, queue_id, at)
                if not batch:
                    return len(found) >= count
                found.extend(batch)
                at = batch[-1].queue_offset + 1

        await eventually(enough)
        return found

    async def heartbeat(self, *groups: str, topics: tuple[str, ...] = ("T",), expression: str = "*") -> RemotingCommand:
        subscriptions = [
            {"topic": topic, "subString": expression, "tagsSet": [], "codeSet": [], "subVersion": 1} for topic in topics
        ]
        data = {
            "clientID": self.client_id,
            "producerDataSet": [{"groupName": "PG"}],
            "consumerDataSet": [
                {
                    "groupName": group,
                    "consumeType": "CONSUME_PASSIVELY",
                    "messageModel": "CLUSTERING",
                    "consumeFromWhere": "CONSUME_FROM_FIRST_OFFSET",
                    "subscriptionDataSet": subscriptions,
                    "unitMode": False,
                }
                for group in groups
            ],
        }
        return await self.ask(RequestCode.HEART_BEAT, {}, json.dumps(data).encode())

    async def commit(self, topic: str, queue_id: int, offset: int, group: str = "CG") -> RemotingCommand:
        return await self.ask(
            RequestCode.UPDATE_CONSUMER_OFFSET,
            {"consumerGroup": group, "topic": topic, "queueId": queue_id, "commitOffset": offset},
        )

    async def committed(self, topic: str, queue_id: int, group: str = "CG") -> int:
        answer = await self.ask(
            RequestCode.QUERY_CONSUMER_OFFSET, {"consumerGroup": group, "topic": topic, "queueId": queue_id}
        )
        return -1 if answer.code else answer.integer("offset")

    async def create_topic(self, topic: str, queues: int = 1, perm: int = 6) -> None:
        answer = await self.ask(
            RequestCode.UPDATE_AND_CREATE_TOPIC,
            {"topic": topic, "defaultTopic": "TBW102", "readQueueNums": queues, "writeQueueNums": queues, "perm": perm},
        )
        assert answer.code == 0, answer.remark


def dledger_configs(root: Path, namesrv: NameServer, group: str = "RaftNode00", **changes: Any) -> list[BrokerConfig]:
    """Three brokers of one group."""
    ports = free_ports(3)
    peers = ";".join(f"n{number}-{HOST}:{port}" for number, port in enumerate(ports))
    # Each address must last over restarts, so the remoting ports are fixed too.
    return [
        local_config(
            root / group / f"node{number}",
            namesrv,
            broker_cluster_name="RaftCluster",
            broker_name=group,
            listen_port=port,
            enable_dledger_commit_log=True,
            dledger_group=group,
            dledger_peers=peers,
            dledger_self_id=f"n{number}",
            dledger_settings={"electionTimeoutMs": "300", "heartBeatTimeIntervalMs": "50", "checkPointBytes": "65536"},
            **changes,
        )
        for number, port in enumerate(free_ports(3))
    ]
