"""What the operator's commands ask of name servers and brokers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from broker_adapter.message import Message, decode_message, iter_messages
from broker_adapter.namesrv.route import MASTER_ID
from broker_adapter.remoting.acl import signer_from_environment
from broker_adapter.remoting.client import RemotingClient
from broker_adapter.remoting.codes import PullSysFlag, RequestCode, ResponseCode
from broker_adapter.remoting.command import Body, RemotingCommand
from broker_adapter.remoting.errors import CommandError, RemotingConnectError, RemotingError

__all__ = ["AdminClient", "BrokerAddress", "NotFoundError", "QueueRow", "parse_consume_tps", "parse_offset_table"]

_OFFSET_ROW: Final = re.compile(r"(\{[^{}]*\})\s*:\s*(\{[^{}]*\}|-?\d+)")
_CONSUME_TPS: Final = re.compile(r'"consumeTps"\s*:\s*([0-9.]+)')
_TIMEOUT_MS: Final = 5000


class NotFoundError(RemotingError):
    """A cluster, broker, topic or message that nobody knows."""


@dataclass(frozen=True, slots=True, order=True)
class BrokerAddress:
    """One registered broker."""

    cluster: str
    broker_name: str
    broker_id: int
    address: str

    @property
    def is_master(self) -> bool:
        return self.broker_id == MASTER_ID


@dataclass(frozen=True, slots=True)
class QueueRow:
    """One row of a table whose key is a queue."""

    broker_name: str
    topic: str
    queue_id: int
    value: Any


def parse_offset_table(body: bytes) -> list[QueueRow]:
    """Read a map whose keys are message queues, which fastjson writes as objects where JSON wants strings."""
    text = body.decode("utf-8", "replace")
    start = text.find('"offsetTable"')
    rows = []
    for key_text, value_text in _OFFSET_ROW.findall(text[max(start, 0) :]):
        key = json.loads(key_text)
        rows.append(QueueRow(str(key["brokerName"]), str(key["topic"]), int(key["queueId"]), json.loads(value_text)))
    return sorted(rows, key=lambda row: (row.topic, row.broker_name, row.queue_id))


def parse_consume_tps(body: bytes) -> float:
    """Read the rate of a consume statistics body; 0 where there is none."""
    found = _CONSUME_TPS.search(body.decode("utf-8", "replace"))
    return float(found[1]) if found else 0.0


class AdminClient:
    """Asks name servers in turn until one answers, and brokers by address.

    Raises everywhere: RemotingError where nobody answers, CommandError where the answer is a refusal.
    """

    def __init__(self, namesrv: tuple[str, ...]) -> None:
        self._namesrv = namesrv
        self._client = RemotingClient(signer=signer_from_environment())

    async def close(self) -> None:
        await self._client.close()

    # ------------------------------------------------------------------ asking

    async def ask_namesrv(
        self, code: int, ext: Mapping[str, object] | None = None, body: Body = b""
    ) -> RemotingCommand:
        """Ask the first name server that answers."""
        failure: RemotingError = RemotingConnectError("no name server is given: -n HOST:PORT or NAMESRV_ADDR")
        for server in self._namesrv:
            try:
                return _checked(
                    await self._client.invoke(server, RemotingCommand(int(code), dict(ext or {}), body), _TIMEOUT_MS)
                )
            except CommandError:
                raise
            except RemotingError as error:
                failure = error
        raise failure

    async def ask_all_namesrv(self, code: int, ext: Mapping[str, object]) -> None:
        """Tell every name server."""
        for server in self._namesrv:
            _checked(await self._client.invoke(server, RemotingCommand(int(code), dict(ext)), _TIMEOUT_MS))

    async def ask(
        self,
        address: str,
        code: int,
        ext: Mapping[str, object] | None = None,
        body: Body = b"",
        *,
        accept: frozenset[int] = frozenset(),
        timeout_ms: int = _TIMEOUT_MS,
    ) -> RemotingCommand:
        """Ask a broker. ``accept``: codes besides SUCCESS that are answers, too."""
        answer = await self._client.invoke(address, RemotingCommand(int(code), dict(ext or {}), body), timeout_ms)
        return answer if answer.code in accept else _checked(answer)

    # ------------------------------------------------------------------ who is there

    async def brokers(self, cluster: str | None = None) -> list[BrokerAddress]:
        """Return every registered broker, of one cluster or of all.

        Raises:
            NotFoundError: there is no such cluster.
        """
        info = (await self.ask_namesrv(RequestCode.GET_BROKER_CLUSTER_INFO)).json_object()
        if cluster is not None and cluster not in info.get("clusterAddrTable", {}):
            raise NotFoundError(f'no cluster "{cluster}" is registered')
        found = []
        for name, data in info.get("brokerAddrTable", {}).items():
            if cluster is None or data.get("cluster") == cluster:
                for broker_id, address in data.get("brokerAddrs", {}).items():
                    found.append(BrokerAddress(str(data.get("cluster")), name, int(broker_id), address))
        return sorted(found)

    async def masters(self, cluster: str) -> list[BrokerAddress]:
        """Return a cluster's masters.

        Raises:
            NotFoundError: it has none.
        """
        masters = [broker for broker in await self.brokers(cluster) if broker.is_master]
        if not masters:
            raise NotFoundError(f'cluster "{cluster}" has no master now')
        return masters

    async def route(self, topic: str) -> dict[str, Any]:
        """Return a topic's route.

        Raises:
            NotFoundError: nobody has the topic.
        """
        try:
            return (await self.ask_namesrv(RequestCode.GET_ROUTEINFO_BY_TOPIC, {"topic": topic})).json_object()
        except CommandError as error:
            if error.code == ResponseCode.TOPIC_NOT_EXIST:
                raise NotFoundError(f'no broker has the topic "{topic}"') from None
            raise

    async def topic_brokers(self, topic: str) -> list[BrokerAddress]:
        """Return for each broker name of a topic its master, or the lowest id where there is none."""
        found = []
        for data in (await self.route(topic))["brokerDatas"]:
            addresses = {int(broker_id): address for broker_id, address in data["brokerAddrs"].items()}
            if addresses:
                chosen = min(addresses)
                found.append(BrokerAddress(data.get("cluster", ""), data["brokerName"], chosen, addresses[chosen]))
        return sorted(found)

    # ------------------------------------------------------------------ messages

    async def view_message(self, address: str, physical_offset: int) -> Message:
        """Return the message at a physical offset of a broker."""
        answer = await self.ask(address, RequestCode.VIEW_MESSAGE_BY_ID, {"offset": physical_offset})
        return decode_message(bytes(answer.body))

    async def query_by_key(self, address: str, topic: str, key: str, count: int) -> list[Message]:
        """Return a broker's messages with a key, oldest first; none where there is none."""
        answer = await self.ask(
            address,
            RequestCode.QUERY_MESSAGE,
            {"topic": topic, "key": key, "maxNum": count, "beginTimestamp": 0, "endTimestamp": 2**62},
            accept=frozenset({int(ResponseCode.QUERY_NOT_FOUND)}),
        )
        return sorted(iter_messages(bytes(answer.body)), key=lambda message: message.store_timestamp)

    async def pull(
        self, address: str, group: str, topic: str, queue_id: int, offset: int, count: int
    ) -> tuple[list[Message], int]:
        """Return (messages from ``offset`` on, where to go on); never waits for new ones."""
        answer = await self.ask(
            address,
            RequestCode.PULL_MESSAGE,
            {
                "consumerGroup": group,
                "topic": topic,
                "queueId": queue_id,
                "queueOffset": offset,
                "maxMsgNums": count,
                "sysFlag": int(PullSysFlag.SUBSCRIPTION),
                "commitOffset": 0,
                "suspendTimeoutMillis": 0,
                "subscription": "*",
                "subVersion": 0,
                "expressionType": "TAG",
            },
            accept=frozenset(
                {
                    int(ResponseCode.PULL_NOT_FOUND),
                    int(ResponseCode.PULL_RETRY_IMMEDIATELY),
                    int(ResponseCode.PULL_OFFSET_MOVED),
                }
            ),
        )
        return list(iter_messages(bytes(answer.body))), answer.integer_or("nextBeginOffset", offset)


def _checked(answer: RemotingCommand) -> RemotingCommand:
    if answer.code != ResponseCode.SUCCESS:
        raise CommandError(answer.code, answer.remark or "")
    return answer
