"""What a live view shows of brokers: who is master, queues, rates, how far consumers are. And a small producer.

`dledger dev --broker` and `dledger dashboard --namesrv` load this by name, for dledger itself knows nothing of brokers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any, Final

from broker_adapter.admin.client import AdminClient, BrokerAddress, NotFoundError, QueueRow, parse_offset_table
from broker_adapter.remoting.codes import RequestCode
from broker_adapter.remoting.errors import CommandError, RemotingError
from dledger.errors import UnavailableError

__all__ = ["BrokerWatch", "MessageSender"]

_OWN_TOPICS: Final = frozenset(
    {"TBW102", "SELF_TEST_TOPIC", "SCHEDULE_TOPIC_XXXX", "BenchmarkTest", "OFFSET_MOVED_EVENT"}
)
_REPLY_SUFFIX: Final = "_REPLY_TOPIC"
_OWN_PREFIXES: Final = ("%RETRY%", "%DLQ%", "RMQ_SYS_", "rmq_sys_")
_MAX_TOPICS: Final = 40
_MAX_CONSUMERS: Final = 200
_ROUTE_S: Final = 5.0
_QUEUES: Final = 4


def _first_number(text: str | None) -> float:
    try:
        return float((text or "0").split()[0])
    except (ValueError, IndexError):
        return 0.0


class BrokerWatch:
    """Looks at all brokers of some name servers. Belongs to one loop; `close` at the end."""

    def __init__(self, namesrv: Iterable[str]) -> None:
        self._client = AdminClient(tuple(namesrv))
        self._before: dict[tuple[str, str, int], tuple[float, int]] = {}

    async def close(self) -> None:
        await self._client.close()

    async def look(self) -> dict[str, Any]:
        """Return the present as JSON: ``words``, ``brokers``, ``queues``, ``consumers``. What fails is said there."""
        out: dict[str, Any] = {"brokers": [], "queues": [], "consumers": []}
        try:
            brokers = await self._client.brokers()
            out["brokers"] = await asyncio.gather(*(self._broker(broker) for broker in brokers))
            topics = await self._topics(brokers)
            own = [topic for topic in topics if topic not in _OWN_TOPICS and not topic.startswith(_OWN_PREFIXES)]
            out["queues"] = await self._queues(own[:_MAX_TOPICS])
            masters = [broker for broker in brokers if broker.is_master]
            out["consumers"] = await self._consumers(masters, out["queues"])
            out["words"] = _words(brokers, len(own))
        except (RemotingError, CommandError) as error:
            out["words"] = f"the name server or a broker does not answer: {error}"
        return out

    async def _broker(self, broker: BrokerAddress) -> dict[str, Any]:
        row: dict[str, Any] = {
            "name": broker.broker_name,
            "id": broker.broker_id,
            "address": broker.address,
            "up": True,
            "note": "",
        }
        try:
            answer = await self._client.ask(broker.address, RequestCode.GET_BROKER_RUNTIME_INFO, timeout_ms=1000)
            table = answer.json_object().get("table", {})
        except (RemotingError, CommandError) as error:
            return row | {"up": False, "note": str(error), "in_rate": 0.0, "out_rate": 0.0}
        return row | {
            "in_rate": _first_number(table.get("putTps")),
            "out_rate": _first_number(table.get("getTransferedTps")),
            "note": str(table.get("roleNote", "")),
        }

    async def _topics(self, brokers: list[BrokerAddress]) -> list[str]:
        answer = await self._client.ask_namesrv(RequestCode.GET_ALL_TOPIC_LIST_FROM_NAMESERVER)
        # A broker has topics of its own name and of its cluster's, and one for the cluster's replies.
        clusters = {broker.cluster for broker in brokers}
        named = {broker.broker_name for broker in brokers} | clusters | {name + _REPLY_SUFFIX for name in clusters}
        return sorted(topic for topic in answer.json_object().get("topicList") or [] if topic not in named)

    async def _queues(self, topics: list[str]) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for topic in topics:
            try:
                for broker in await self._client.topic_brokers(topic):
                    answer = await self._client.ask(broker.address, RequestCode.GET_TOPIC_STATS_INFO, {"topic": topic})
                    rows += [self._queue(row) for row in parse_offset_table(bytes(answer.body))]
            except NotFoundError:
                continue  # it went since the list was made
        return rows

    def _queue(self, row: QueueRow) -> dict[str, Any]:
        now, end = time.monotonic(), int(row.value["maxOffset"])
        key = (row.broker_name, row.topic, row.queue_id)
        before = self._before.get(key)
        self._before[key] = (now, end)
        rate = max(end - before[1], 0) / (now - before[0]) if before is not None and now > before[0] else None
        return {
            "topic": row.topic,
            "broker": row.broker_name,
            "queue": row.queue_id,
            "min": int(row.value["minOffset"]),
            "max": end,
            "rate": rate,
        }

    async def _consumers(self, masters: list[BrokerAddress], queues: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """What each group has committed, and how far that is from the end of the queue."""
        ends = {(row["broker"], row["topic"], row["queue"]): int(row["max"]) for row in queues}
        rows: list[dict[str, Any]] = []
        for broker in masters:
            answer = await self._client.ask(broker.address, RequestCode.GET_ALL_CONSUMER_OFFSET)
            for name, offsets in answer.json_object().get("offsetTable", {}).items():
                topic, _, group = name.rpartition("@")
                for queue, offset in offsets.items():
                    end = ends.get((broker.broker_name, topic, int(queue)), -1)
                    rows.append(
                        {
                            "group": group,
                            "topic": topic,
                            "broker": broker.broker_name,
                            "queue": int(queue),
                            "offset": int(offset),
                            "lag": max(end - int(offset), 0) if end >= 0 else -1,
                        }
                    )
        return sorted(rows, key=lambda row: (row["group"], row["topic"], row["broker"], row["queue"]))[:_MAX_CONSUMERS]


def _words(brokers: list[BrokerAddress], topics: int) -> str:
    names = sorted({broker.broker_name for broker in brokers})
    masters = [f"{broker.broker_name} at {broker.address}" for broker in brokers if broker.is_master]
    without = [name for name in names if not any(b.is_master and b.broker_name == name for b in brokers)]
    parts = [f"{len(brokers)} brokers registered", f"{topics} topic{'' if topics == 1 else 's'}"]
    parts.append(f"master (BID 0): {', '.join(masters)}" if masters else "no master")
    if without and masters:
        parts.append(f"without a master: {', '.join(without)}")
    return "; ".join(parts)


class MessageSender:
    """Sends single messages to one topic, wherever its master is. Belongs to one loop; `close` at the end."""

    def __init__(self, namesrv: Iterable[str], topic: str) -> None:
        self.topic = topic
        self._client = AdminClient(tuple(namesrv))
        self._master: str | None = None
        self._until = 0.0
        self._routing: asyncio.Task[str] | None = None
        self._count = 0

    async def close(self) -> None:
        await self._client.close()

    async def send(self, body: bytes) -> str:
        """Send one message and return where it stands, in words.

        Raises:
            UnavailableError: there is no master, or it refused; the message may have been stored all the same.
        """
        self._count += 1
        try:
            address = await self._route()
            answer = await self._client.ask(address, RequestCode.SEND_MESSAGE_V2, self._header(), body)
        except (RemotingError, CommandError) as error:
            self._master = None
            raise UnavailableError(f"not sent: {error}") from error
        return f"sent to {self.topic}, queue {answer.text('queueId')}, offset {answer.text('queueOffset')}"

    def _header(self) -> dict[str, object]:
        return {
            "a": "DEV_PRODUCER",
            "b": self.topic,
            "c": "TBW102",
            "d": _QUEUES,
            "e": self._count % _QUEUES,
            "f": 0,
            "g": int(time.time() * 1000),
            "h": 0,
            "i": "",
            "j": 0,
            "k": False,
            "l": 16,
            "m": False,
        }

    async def _route(self) -> str:
        """Return the master's address; asked again after some seconds, and by one caller for all."""
        if self._master is not None and time.monotonic() < self._until:
            return self._master
        if self._routing is None or self._routing.done():
            self._routing = asyncio.ensure_future(self._ask_route())
        return await asyncio.shield(self._routing)

    async def _ask_route(self) -> str:
        masters = [broker for broker in await self._client.brokers() if broker.is_master]
        if not masters:
            raise NotFoundError("no broker is master now")
        self._master, self._until = masters[0].address, time.monotonic() + _ROUTE_S
        return self._master

    async def wait_master(self, timeout: float) -> str:
        """Wait until there is a master; returns its address.

        Raises:
            UnavailableError: none after ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        while True:
            try:
                return await self._route()
            except (RemotingError, CommandError) as error:
                if time.monotonic() > deadline:
                    raise UnavailableError(f"no broker became master within {timeout:g} s: {error}") from error
            await asyncio.sleep(0.05)
