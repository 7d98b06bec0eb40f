"""What consumers and producers ask besides sending and pulling: heartbeats, offsets, locks, who else is there."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import structlog

from broker_adapter.broker.clients import ClientInfo, ConsumerGroup, integer_of
from broker_adapter.broker.context import BrokerContext, command_error, to_json_body
from broker_adapter.broker.groups import check_group_name
from broker_adapter.remoting.codes import ResponseCode
from broker_adapter.remoting.command import RemotingCommand
from broker_adapter.remoting.connection import RemotingConnection
from broker_adapter.remoting.errors import CommandError
from broker_adapter.store.api import BrokerRole
from dledger.errors import DLedgerError

__all__ = ["ConsumeProcessor", "monotonic_ms"]

_MAX_GROUPS: Final = 10_000
Served = Callable[[RemotingCommand], Awaitable[RemotingCommand]]


def monotonic_ms() -> int:
    """The clock of the client table."""
    return int(time.monotonic() * 1000)


def _objects(value: object) -> list[Mapping[str, Any]]:
    items = value if isinstance(value, list) else []
    return [item for item in items[:_MAX_GROUPS] if isinstance(item, Mapping)]


class ConsumeProcessor:
    """Answers 34, 35, 38, 14, 15, 41, 42, 46."""

    def __init__(self, context: BrokerContext) -> None:
        self._ctx = context

    # ------------------------------------------------------------------ clients

    async def heartbeat(self, request: RemotingCommand, connection: RemotingConnection) -> RemotingCommand:
        """HEART_BEAT (34)."""
        data = request.json_object()
        client = ClientInfo(
            str(data.get("clientID") or ""), connection, request.language, request.version, monotonic_ms()
        )
        if not client.client_id:
            raise CommandError(ResponseCode.SYSTEM_ERROR, "the heartbeat has no clientID")
        clients = self._ctx.clients
        for item in _objects(data.get("producerDataSet")):
            clients.register_producer(str(item.get("groupName") or ""), client)
        for item in _objects(data.get("consumerDataSet")):
            name = str(item.get("groupName") or "")
            check_group_name(name)
            await self._prepare_group(name)
            if clients.register_consumer(name, client, item):
                structlog.get_logger().debug("consumer_changed", group=name, client_id=client.client_id)
        return request.response()

    async def _prepare_group(self, name: str) -> None:
        """A consumer group is known and has its retry topic from its first heartbeat on. The master sees to that."""
        ctx = self._ctx
        group = ctx.groups.require(name)
        if ctx.store.role is BrokerRole.SLAVE or group.retry_queue_nums <= 0:
            return
        try:
            await ctx.topics.ensure_retry(name)
        except DLedgerError as error:
            # The next heartbeat tries again; this one must not fail for it.
            structlog.get_logger().info("retry_topic_not_made", group=name, error=str(error))

    def unregister(self, request: RemotingCommand, connection: RemotingConnection) -> RemotingCommand:
        """UNREGISTER_CLIENT (35)."""
        producer, consumer = request.text_or("producerGroup"), request.text_or("consumerGroup")
        if producer:
            self._ctx.clients.unregister_producer(producer, connection)
        if consumer:
            self._ctx.clients.unregister_consumer(consumer, connection)
        return request.response()

    def may_notify(self, group: ConsumerGroup) -> bool:
        """Whether a group's consumers are told of changes."""
        config = self._ctx.groups.get(group.name)
        allowed = config is None or config.notify_consumer_ids_changed_enable
        return allowed and self._ctx.config.notify_consumer_ids_changed_enable

    async def consumer_list(self, request: RemotingCommand, connection: RemotingConnection) -> RemotingCommand:
        """GET_CONSUMER_LIST_BY_GROUP (38).

        Consumers heartbeat to every broker of a name, every 30 s. A node of the log that has just come back knows none
        of them yet, but its master does; without its list they would stop consuming until their next heartbeat.
        """
        ctx = self._ctx
        if request.text("consumerGroup") not in ctx.clients.consumers and ctx.goes_to_master(request):
            return await ctx.gate.submit(request, connection.remote_address, self._consumer_list, idempotent=True)
        return await self._consumer_list(request)

    async def _consumer_list(self, request: RemotingCommand) -> RemotingCommand:
        name = request.text("consumerGroup")
        group = self._ctx.clients.consumers.get(name)
        ids = [] if group is None else group.client_ids()
        if not ids:
            return request.response(ResponseCode.SYSTEM_ERROR, f"no consumer for this group, {name}")
        return request.response(body=to_json_body({"consumerIdList": ids}))

    def check_client_config(self, request: RemotingCommand, _connection: RemotingConnection) -> RemotingCommand:
        """CHECK_CLIENT_CONFIG (46): tag expressions are fine, others are not there."""
        data = request.json_object().get("subscriptionData")
        kind = str(data.get("expressionType") or "TAG") if isinstance(data, Mapping) else "TAG"
        if kind != "TAG":
            raise CommandError(
                ResponseCode.REQUEST_CODE_NOT_SUPPORTED,
                f"The broker does not support consumer to filter message by {kind}",
            )
        return request.response()

    # ------------------------------------------------------------------ offsets

    def query_offset(
        self, request: RemotingCommand, connection: RemotingConnection
    ) -> RemotingCommand | Awaitable[RemotingCommand]:
        """QUERY_CONSUMER_OFFSET (14)."""
        ctx = self._ctx
        if ctx.goes_to_master(request):
            return self._query_at_master(request, connection)
        return self._query_offset(request)

    async def _query_at_master(self, request: RemotingCommand, connection: RemotingConnection) -> RemotingCommand:
        async def here(command: RemotingCommand) -> RemotingCommand:
            return self._query_offset(command)

        answer = await self._ctx.gate.submit(request, connection.remote_address, here, idempotent=True)
        if answer.code in {ResponseCode.SUCCESS, ResponseCode.QUERY_NOT_FOUND}:
            return answer
        # No master to ask: what is committed here is behind by the last moments at most.
        return self._query_offset(request)

    def _query_offset(self, request: RemotingCommand) -> RemotingCommand:
        ctx = self._ctx
        group, topic = request.text("consumerGroup"), request.text("topic")
        queue_id = request.integer("queueId")
        offset = ctx.offsets.query(topic, group, queue_id)
        if offset >= 0:
            return request.response(ext={"offset": offset})
        first = ctx.store.min_offset(topic, queue_id)
        is_empty = ctx.store.max_offset(topic, queue_id) <= 0
        if first <= 0 and (is_empty or ctx.store.is_in_memory(topic, queue_id, 0)):
            # A young queue: a new group starts at its beginning, whatever it asked for (upstream's rule).
            return request.response(ext={"offset": 0})
        return request.response(
            ResponseCode.QUERY_NOT_FOUND, "Not found, V3_0_6_SNAPSHOT maybe this group consumer boot first"
        )

    def update_offset(
        self, request: RemotingCommand, connection: RemotingConnection
    ) -> RemotingCommand | Awaitable[RemotingCommand]:
        """UPDATE_CONSUMER_OFFSET (15)."""
        if self._ctx.goes_to_master(request):
            return self._ctx.gate.submit(request, connection.remote_address, self._serve_update, idempotent=True)
        self._ctx.refuse_if_slave()
        return self._update_offset(request)

    async def _serve_update(self, request: RemotingCommand) -> RemotingCommand:
        return self._update_offset(request)

    def _update_offset(self, request: RemotingCommand) -> RemotingCommand:
        group, topic = request.text("consumerGroup"), request.text("topic")
        queue_id, offset = request.integer("queueId"), request.integer("commitOffset")
        if "@" in topic or "@" in group or queue_id < 0:
            raise CommandError(ResponseCode.SYSTEM_ERROR, f"no such queue: {topic[:64]} {queue_id}")
        if not 0 <= offset < 2**63:
            raise CommandError(ResponseCode.SYSTEM_ERROR, f"commitOffset {offset} is no offset")
        self._ctx.offsets.commit(topic, group, queue_id, offset)
        return request.response()

    # ------------------------------------------------------------------ locks

    def lock(self, request: RemotingCommand, connection: RemotingConnection) -> Awaitable[RemotingCommand]:
        """LOCK_BATCH_MQ (41)."""
        return self._at_master(request, connection, self._lock)

    def unlock(self, request: RemotingCommand, connection: RemotingConnection) -> Awaitable[RemotingCommand]:
        """UNLOCK_BATCH_MQ (42)."""
        return self._at_master(request, connection, self._unlock)

    def _at_master(
        self, request: RemotingCommand, connection: RemotingConnection, serve: Served
    ) -> Awaitable[RemotingCommand]:
        if self._ctx.goes_to_master(request):
            return self._ctx.gate.submit(request, connection.remote_address, serve, idempotent=True)
        self._ctx.refuse_if_slave()
        return serve(request)

    def _queues(self, data: Mapping[str, Any]) -> list[tuple[str, int]]:
        return [(str(q.get("topic") or ""), integer_of(q.get("queueId"))) for q in _objects(data.get("mqSet"))]

    async def _lock(self, request: RemotingCommand) -> RemotingCommand:
        data = request.json_object()
        queues = self._queues(data)
        try:
            got = await self._ctx.locks.lock(
                str(data.get("consumerGroup") or ""), str(data.get("clientId") or ""), queues
            )
        except DLedgerError as error:
            refused = command_error(error)
            return request.response(refused.code, refused.remark)
        name = self._ctx.config.broker_name
        body = {"lockOKMQSet": [{"brokerName": name, "queueId": q, "topic": topic} for topic, q in got]}
        return request.response(body=to_json_body(body))

    async def _unlock(self, request: RemotingCommand) -> RemotingCommand:
        data = request.json_object()
        try:
            await self._ctx.locks.unlock(
                str(data.get("consumerGroup") or ""), str(data.get("clientId") or ""), self._queues(data)
            )
        except DLedgerError as error:
            refused = command_error(error)
            return request.response(refused.code, refused.remark)
        return request.response()
