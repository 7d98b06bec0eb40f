"""Produce to the broker and consume from it, with nothing but the protocol.

    python examples/produce_and_consume.py NAMESRV TOPIC [COUNT]     (of running brokers, see docs/broker.md)

Any RocketMQ 4 client library does this for you, with rebalancing, retries and long polling; this is what one is made
of. Ask the name server who has the topic, send to a master's queues in turn, pull each queue from where the group left
off, and commit how far it has come. Run it twice: the second time nothing is consumed again.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from broker_adapter.message import Message, iter_messages
from broker_adapter.remoting.client import RemotingClient
from broker_adapter.remoting.codes import RequestCode, ResponseCode
from broker_adapter.remoting.command import RemotingCommand

GROUP = "example_group"
NEW_TOPIC = "TBW102"  # who has this topic makes new ones
MASTER = "0"


class RefusedError(Exception):
    """The broker or the name server said no, and why."""


@dataclass(frozen=True)
class Queue:
    """One queue of a topic, and the master that has it."""

    address: str
    topic: str
    number: int


class Mail:
    """A producer and a consumer in one."""

    def __init__(self, namesrv: str) -> None:
        self._namesrv = namesrv
        self._client = RemotingClient()

    async def close(self) -> None:
        await self._client.close()

    async def _ask(
        self, address: str, code: RequestCode, header: dict[str, object], body: bytes = b"", *, other: int = 0
    ) -> RemotingCommand:
        """Send a request; ``other`` is a code besides success that is an answer, too."""
        answer = await self._client.invoke(address, RemotingCommand(int(code), header, body))
        if answer.code not in {int(ResponseCode.SUCCESS), other}:
            raise RefusedError(f"{address}: code {answer.code}: {answer.remark}")
        return answer

    async def queues(self, topic: str) -> list[Queue]:
        """Return the queues to write to, those of a new topic if there is none of that name."""
        found = await self._ask(
            self._namesrv, RequestCode.GET_ROUTEINFO_BY_TOPIC, {"topic": topic}, other=ResponseCode.TOPIC_NOT_EXIST
        )
        if found.code == ResponseCode.TOPIC_NOT_EXIST:
            found = await self._ask(self._namesrv, RequestCode.GET_ROUTEINFO_BY_TOPIC, {"topic": NEW_TOPIC})
        route = found.json_object()
        masters = {data["brokerName"]: data["brokerAddrs"].get(MASTER) for data in route["brokerDatas"]}
        return [
            Queue(masters[data["brokerName"]], topic, number)
            for data in route["queueDatas"]
            if masters.get(data["brokerName"])  # a group that elects has no master for some milliseconds
            for number in range(min(4, data["writeQueueNums"]))
        ]

    async def send(self, queue: Queue, body: bytes) -> str:
        """Send one message; returns its id once a majority of the broker's group has it on disk."""
        header: dict[str, object] = {
            "a": GROUP, "b": queue.topic, "c": NEW_TOPIC, "d": 4, "e": queue.number, "f": 0,
            "g": int(time.time() * 1000), "h": 0, "i": "", "j": 0, "k": False, "l": 16, "m": False,
        }  # fmt: skip
        return (await self._ask(queue.address, RequestCode.SEND_MESSAGE_V2, header, body)).text("msgId")

    async def consume(self, queue: Queue) -> AsyncIterator[Message]:
        """Yield what the group has not had of a queue; a message counts as done when the next one is asked for."""
        header: dict[str, object] = {"consumerGroup": GROUP, "topic": queue.topic, "queueId": queue.number}
        known = await self._ask(
            queue.address, RequestCode.QUERY_CONSUMER_OFFSET, header, other=ResponseCode.QUERY_NOT_FOUND
        )
        offset = known.integer_or("offset", 0)
        while True:
            pull = {
                **header, "queueOffset": offset, "maxMsgNums": 32, "sysFlag": 4, "commitOffset": 0,
                "suspendTimeoutMillis": 0, "subscription": "*", "subVersion": 0, "expressionType": "TAG",
            }  # fmt: skip
            answer = await self._ask(queue.address, RequestCode.PULL_MESSAGE, pull, other=ResponseCode.PULL_NOT_FOUND)
            if answer.code == ResponseCode.PULL_NOT_FOUND:
                return
            for message in iter_messages(bytes(answer.body)):
                yield message
            offset = answer.integer("nextBeginOffset")
            await self._ask(queue.address, RequestCode.UPDATE_CONSUMER_OFFSET, {**header, "commitOffset": offset})


async def main(namesrv: str, topic: str, count: str = "8") -> None:
    mail = Mail(namesrv)
    try:
        queues = await mail.queues(topic)
        for number in range(int(count)):
            await mail.send(queues[number % len(queues)], f"message {number}".encode())
        print(f"{count} messages sent")
        consumed = 0
        for queue in queues:
            async for message in mail.consume(queue):
                print(f"queue {message.queue_id} offset {message.queue_offset}: {message.body.decode()}")
                consumed += 1
        print(f"{consumed} messages consumed")
    finally:
        await mail.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
