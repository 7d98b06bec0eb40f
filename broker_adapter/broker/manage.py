"""What operators ask: topics, groups, configuration, statistics, status. Changes are made by the master."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import fields
from enum import Enum
from typing import Any, Final

from broker_adapter.broker.consume import monotonic_ms
from broker_adapter.broker.context import BrokerContext, command_error, to_json_body
from broker_adapter.broker.delay import DelayService
from broker_adapter.broker.groups import SubscriptionGroup
from broker_adapter.broker.topics import DEFAULT_TOPIC, TopicConfig
from broker_adapter.config import KEYS
from broker_adapter.remoting.codes import VERSION_TEXT, RequestCode, ResponseCode
from broker_adapter.remoting.command import RemotingCommand
from broker_adapter.remoting.connection import RemotingConnection
from broker_adapter.remoting.errors import CommandError
from dledger.errors import DLedgerError

__all__ = ["ManageProcessor", "effective_properties"]

Served = Callable[[RemotingCommand], Awaitable[RemotingCommand]]
_CPP: Final = "CPP"


def _queue_json(broker_name: str, topic: str, queue_id: int) -> str:
    """Write a MessageQueue as fastjson writes a map key: the object itself, which no JSON library of ours will."""
    return f'{{"brokerName":"{broker_name}","queueId":{queue_id},"topic":"{topic}"}}'


class ManageProcessor:
    """Answers the codes of mqadmin and of the dashboard."""

    def __init__(self, context: BrokerContext, delay: DelayService) -> None:
        self._ctx = context
        self._delay = delay

    # ------------------------------------------------------------------ changes, at the master

    def at_master(self, serve: Served) -> Callable[[RemotingCommand, RemotingConnection], Awaitable[RemotingCommand]]:
        """Return the handler that has the master serve ``serve``, wherever the request came in."""

        async def guarded(request: RemotingCommand) -> RemotingCommand:
            try:
                return await serve(request)
            except CommandError as error:
                return request.response(error.code, error.remark)
            except DLedgerError as error:
                refused = command_error(error)
                return request.response(refused.code, refused.remark)

        def handle(request: RemotingCommand, connection: RemotingConnection) -> Awaitable[RemotingCommand]:
            if self._ctx.goes_to_master(request):
                return self._ctx.gate.submit(request, connection.remote_address, guarded, idempotent=True)
            self._ctx.refuse_if_slave()
            return guarded(request)

        return handle

    async def update_topic(self, request: RemotingCommand) -> RemotingCommand:
        """UPDATE_AND_CREATE_TOPIC (17)."""
        name = request.text("topic")
        if name in {self._ctx.config.broker_cluster_name, DEFAULT_TOPIC} or self._ctx.topics.is_built_in(name):
            raise CommandError(ResponseCode.SYSTEM_ERROR, f"The topic[{name}] is conflict with system topic.")
        await self._ctx.topics.put(
            TopicConfig(
                name,
                request.integer("readQueueNums"),
                request.integer("writeQueueNums"),
                request.integer_or("perm", 6),
                request.integer_or("topicSysFlag", 0),
                request.boolean_or("order"),
            )
        )
        return request.response()

    async def delete_topic(self, request: RemotingCommand) -> RemotingCommand:
        """DELETE_TOPIC_IN_BROKER (215)."""
        topic = request.text("topic")
        await self._ctx.topics.delete(topic)
        self._ctx.offsets.forget(topic=topic)
        return request.response()

    async def update_group(self, request: RemotingCommand) -> RemotingCommand:
        """UPDATE_AND_CREATE_SUBSCRIPTIONGROUP (200)."""
        data = request.json_object()
        name = str(data.get("groupName") or "")
        try:
            group = SubscriptionGroup.from_json(name, data)
        except (TypeError, ValueError) as error:
            raise CommandError(ResponseCode.SYSTEM_ERROR, f"not a subscription group: {error}") from None
        await self._ctx.groups.put(group)
        return request.response()

    async def delete_group(self, request: RemotingCommand) -> RemotingCommand:
        """DELETE_SUBSCRIPTIONGROUP (207)."""
        name = request.text("groupName")
        await self._ctx.groups.delete(name)
        if request.boolean_or("cleanOffset") or request.boolean_or("removeOffset"):
            self._ctx.offsets.forget(group=name)
        return request.response()

    async def reset_offset(self, request: RemotingCommand) -> RemotingCommand:
        """INVOKE_BROKER_TO_RESET_OFFSET (222): set a group's offsets to a time, and tell its consumers.

        ``timestamp`` -1 is the end. Without ``isForce`` an offset only moves back.
        """
        ctx = self._ctx
        topic, group = request.text("topic"), request.text("group")
        timestamp, force = request.integer("timestamp"), request.boolean_or("isForce")
        config = ctx.topics.require(topic)
        wanted: dict[int, int] = {}
        for queue_id in range(config.write_queue_nums):
            known = ctx.offsets.query(topic, group, queue_id)
            end = ctx.store.max_offset(topic, queue_id)
            at = end if timestamp == -1 else await ctx.store.offset_by_time(topic, queue_id, timestamp)
            wanted[queue_id] = at if force or known < 0 or at < known else known
        for queue_id, offset in wanted.items():
            ctx.offsets.commit(topic, group, queue_id, offset)
        await ctx.offsets.flush()
        self._tell_consumers(topic, group, timestamp, force, wanted)
        return request.response(body=self._offset_table(topic, wanted))

    def _offset_table(self, topic: str, offsets: dict[int, int]) -> bytes:
        name = self._ctx.config.broker_name
        rows = ",".join(f"{_queue_json(name, topic, queue_id)}:{offset}" for queue_id, offset in offsets.items())
        return f'{{"offsetTable":{{{rows}}}}}'.encode()

    def _tell_consumers(self, topic: str, group: str, timestamp: int, force: bool, offsets: dict[int, int]) -> None:
        """RESET_CONSUMER_CLIENT_OFFSET (220); C++ clients read a list where Java reads a map, as upstream sends it."""
        entry = self._ctx.clients.consumers.get(group)
        if entry is None:
            return
        name = self._ctx.config.broker_name
        listed = to_json_body(
            {
                "offsetTable": [
                    {"brokerName": name, "offset": offset, "queueId": queue_id, "topic": topic}
                    for queue_id, offset in offsets.items()
                ]
            }
        )
        mapped = self._offset_table(topic, offsets)
        for connection, client in entry.clients.items():
            connection.send_oneway(
                RemotingCommand(
                    int(RequestCode.RESET_CONSUMER_CLIENT_OFFSET),
                    {"topic": topic, "group": group, "timestamp": timestamp, "isForce": force},
                    listed if client.language == _CPP else mapped,
                )
            )

    # ------------------------------------------------------------------ tables

    def all_topics(self, request: RemotingCommand, _connection: RemotingConnection) -> RemotingCommand:
        """GET_ALL_TOPIC_CONFIG (21)."""
        timestamp, counter = self._ctx.store.state_version("topics")
        table = {name: topic.to_json() for name, topic in self._ctx.topics.all().items()}
        version = {"timestamp": timestamp, "counter": counter}
        return request.response(body=to_json_body({"dataVersion": version, "topicConfigTable": table}))

    def all_offsets(self, request: RemotingCommand, _connection: RemotingConnection) -> RemotingCommand:
        """GET_ALL_CONSUMER_OFFSET (43): ``topic@group`` → queue id → offset."""
        table: dict[str, dict[str, int]] = {}
        for key, offset in self._ctx.offsets.table().items():
            name, _, queue_id = key.rpartition("@")
            table.setdefault(name, {})[queue_id] = offset
        return request.response(body=to_json_body({"offsetTable": table}))

    def all_delay_offsets(self, request: RemotingCommand, _connection: RemotingConnection) -> RemotingCommand:
        """GET_ALL_DELAY_OFFSET (45)."""
        return request.response(body=to_json_body({"offsetTable": self._delay.table()}))

    def all_groups(self, request: RemotingCommand, _connection: RemotingConnection) -> RemotingCommand:
        """GET_ALL_SUBSCRIPTIONGROUP_CONFIG (201)."""
        timestamp, counter = self._ctx.store.state_version("subscriptionGroup")
        table = {name: group.to_json() for name, group in self._ctx.groups.all().items()}
        version = {"timestamp": timestamp, "counter": counter}
        return request.response(body=to_json_body({"dataVersion": version, "subscriptionGroupTable": table}))

    def topic_config(self, request: RemotingCommand, _connection: RemotingConnection) -> RemotingCommand:
        """GET_TOPIC_CONFIG (351), which 5.x's tools ask before they ask for anything else of a topic."""
        return request.response(body=to_json_body(self._ctx.topics.require(request.text("topic")).to_json()))

    def group_config(self, request: RemotingCommand, _connection: RemotingConnection) -> RemotingCommand:
        """GET_SUBSCRIPTIONGROUP_CONFIG (352): one group's."""
        name = request.text("group")
        group = self._ctx.groups.get(name)
        if group is None:
            raise CommandError(ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST, f"subscription group [{name}] does not exist")
        return request.response(body=to_json_body(group.to_json()))

    def system_topics(self, request: RemotingCommand, _connection: RemotingConnection) -> RemotingCommand:
        """GET_SYSTEM_TOPIC_LIST_FROM_BROKER (305)."""
        topics = sorted(name for name in self._ctx.topics.all() if self._ctx.topics.is_built_in(name))
        return request.response(body=to_json_body({"topicList": topics}))

    # ------------------------------------------------------------------ statistics

    async def topic_stats(self, request: RemotingCommand, _connection: RemotingConnection) -> RemotingCommand:
        """GET_TOPIC_STATS_INFO (202): per queue min, max, last store time."""
        ctx = self._ctx
        topic = ctx.topics.require(request.text("topic"))
        rows = []
        for queue_id in range(topic.queue_count):
            first, end = ctx.store.min_offset(topic.name, queue_id), ctx.store.max_offset(topic.name, queue_id)
            last = await ctx.store.message_store_time(topic.name, queue_id, end - 1) if end > first else 0
            value = f'{{"lastUpdateTimestamp":{max(last, 0)},"maxOffset":{end},"minOffset":{first}}}'
            rows.append(f"{_queue_json(ctx.config.broker_name, topic.name, queue_id)}:{value}")
        return request.response(body=f'{{"offsetTable":{{{",".join(rows)}}}}}'.encode())

    async def consume_stats(self, request: RemotingCommand, _connection: RemotingConnection) -> RemotingCommand:
        """GET_CONSUME_STATS (208): per queue of a group the broker's and the consumer's offset."""
        ctx = self._ctx
        group, wanted = request.text("consumerGroup"), request.text_or("topic")
        topics = {topic for topic, _ in ctx.offsets.of_group(group)}
        entry = ctx.clients.consumers.get(group)
        if entry is not None:
            topics |= set(entry.subscriptions)
        if wanted:
            topics &= {wanted}
        return request.response(body=(await self._consume_rows(group, topics))[0].encode())

    async def _consume_rows(self, group: str, topics: set[str]) -> tuple[str, int]:
        """Return upstream's ConsumeStats of a group in some topics as JSON, and how far it is behind in all."""
        ctx = self._ctx
        rows, behind = [], 0
        for name in sorted(topics):
            topic = ctx.topics.get(name)
            if topic is None:
                continue
            for queue_id in range(topic.read_queue_nums):
                end = ctx.store.max_offset(name, queue_id)
                at = max(ctx.offsets.query(name, group, queue_id), 0)
                last = await ctx.store.message_store_time(name, queue_id, at - 1) if at > 0 else 0
                value = f'{{"brokerOffset":{end},"consumerOffset":{at},"lastTimestamp":{max(last, 0)}}}'
                rows.append(f"{_queue_json(ctx.config.broker_name, name, queue_id)}:{value}")
                behind += max(end - at, 0)
        tps = ctx.stats.consume_tps(group, topics)
        return f'{{"consumeTps":{tps:.2f},"offsetTable":{{{",".join(rows)}}}}}', behind

    async def all_consume_stats(self, request: RemotingCommand, connection: RemotingConnection) -> RemotingCommand:
        """GET_BROKER_CONSUME_STATS (317): consume_stats of every group that has offsets, a list a group."""
        ctx = self._ctx
        ordered_only = request.boolean_or("isOrder")
        groups, total = [], 0
        for group in sorted(ctx.groups.all()):
            parts = []
            for name in sorted({topic for topic, _ in ctx.offsets.of_group(group)}):
                topic = ctx.topics.get(name)
                if topic is not None and (topic.order or not ordered_only):
                    part, behind = await self._consume_rows(group, {name})
                    parts.append(part)
                    total += behind
            if parts:
                groups.append(f"{{{json.dumps(group)}:[{','.join(parts)}]}}")
        address = json.dumps(connection.local_address)
        return request.response(
            body=f'{{"brokerAddr":{address},"consumeStatsList":[{",".join(groups)}],"totalDiff":{total}}}'.encode()
        )

    def topic_consumers(self, request: RemotingCommand, _connection: RemotingConnection) -> RemotingCommand:
        """QUERY_TOPIC_CONSUME_BY_WHO (300)."""
        topic = request.text("topic")
        groups = {*self._ctx.clients.groups_of_topic(topic), *self._ctx.offsets.groups_of_topic(topic)}
        return request.response(body=to_json_body({"groupList": sorted(groups)}))

    def topics_of_group(self, request: RemotingCommand, _connection: RemotingConnection) -> RemotingCommand:
        """QUERY_TOPICS_BY_CONSUMER (343): the topics in which a group has offsets."""
        topics = {topic for topic, _ in self._ctx.offsets.of_group(request.text("group"))}
        return request.response(body=to_json_body({"topicList": sorted(topics)}))

    def all_producers(self, request: RemotingCommand, _connection: RemotingConnection) -> RemotingCommand:
        """GET_ALL_PRODUCER_INFO (328): the producers of every group that are connected here."""
        now = int(time.time() * 1000) - monotonic_ms()
        table = {
            group: [
                {
                    "clientId": client.client_id,
                    "remoteIP": client.connection.remote_address,
                    "language": client.language,
                    "version": client.version,
                    "lastUpdateTimestamp": now + client.last_update_ms,
                }
                for client in clients.values()
            ]
            for group, clients in self._ctx.clients.producers.items()
        }
        return request.response(body=to_json_body({"data": table}))

    def consumer_connections(self, request: RemotingCommand, _connection: RemotingConnection) -> RemotingCommand:
        """GET_CONSUMER_CONNECTION_LIST (203)."""
        name = request.text("consumerGroup")
        group = self._ctx.clients.consumers.get(name)
        if group is None:
            raise CommandError(ResponseCode.CONSUMER_NOT_ONLINE, f"the consumer group[{name}] not online")
        return request.response(
            body=to_json_body(
                {
                    "connectionSet": [client.to_json() for client in group.clients.values()],
                    "consumeFromWhere": group.consume_from_where,
                    "consumeType": group.consume_type,
                    "messageModel": group.message_model,
                    "subscriptionTable": {t: s.to_json() for t, s in group.subscriptions.items()},
                }
            )
        )

    def producer_connections(self, request: RemotingCommand, _connection: RemotingConnection) -> RemotingCommand:
        """GET_PRODUCER_CONNECTION_LIST (204)."""
        name = request.text("producerGroup")
        clients = self._ctx.clients.producers.get(name)
        if not clients:
            raise CommandError(ResponseCode.SYSTEM_ERROR, f"the producer group[{name}] not exist")
        return request.response(body=to_json_body({"connectionSet": [client.to_json() for client in clients.values()]}))

    # ------------------------------------------------------------------ the broker itself

    async def runtime_info(self, request: RemotingCommand, _connection: RemotingConnection) -> RemotingCommand:
        """GET_BROKER_RUNTIME_INFO (28)."""
        ctx = self._ctx
        now = int(time.time() * 1000)
        up_s = (now - ctx.stats.boot_timestamp_ms) // 1000
        table = {
            **ctx.stats.to_runtime(),
            **ctx.store.runtime_info(),
            **ctx.gate.statistics(),
            "brokerVersionDesc": VERSION_TEXT,
            "brokerVersion": "409",
            "brokerRole": ctx.store.role.value,
            "brokerId": str(ctx.roles.broker_id),
            "roleNote": ctx.roles.note,
            "roleSinceTimestamp": str(ctx.roles.since_ms),
            "earliestMessageTimeStamp": str(await ctx.store.earliest_store_time()),
            "dispatchBehindBytes": str(ctx.store.dispatch_behind_bytes()),
            "delayDeliveredTotal": str(self._delay.delivered_count),
            "producerGroupCount": str(len(ctx.clients.producers)),
            "consumerGroupCount": str(len(ctx.clients.consumers)),
            "runtime": _duration_text(up_s),
        }
        for level, offset in self._delay.table().items():
            table[f"scheduleMessageOffset_{level}"] = str(offset)
        for name in ("send", "pull", "query", "endTransaction"):
            table.setdefault(f"{name}ThreadPoolQueueSize", "0")
            table.setdefault(f"{name}ThreadPoolQueueHeadWaitTimeMills", "0")
            table.setdefault(f"{name}ThreadPoolQueueCapacity", str(ctx.config.send_queue_capacity))
        table.setdefault("pageCacheLockTimeMills", "0")
        return request.response(body=to_json_body({"table": dict(sorted(table.items()))}))

    def broker_config(self, request: RemotingCommand, _connection: RemotingConnection) -> RemotingCommand:
        """GET_BROKER_CONFIG (26): the effective settings as a properties file."""
        return request.response(body=(effective_properties(self._ctx.config) + _FIXED_PROPERTIES).encode())

    def ha_status(self, request: RemotingCommand, _connection: RemotingConnection) -> RemotingCommand:
        """GET_BROKER_HA_STATUS (907), 5.x's body."""
        status = self._ctx.store.ha_status()
        body: dict[str, Any] = {
            "master": self._ctx.roles.is_master,
            "masterCommitLogMaxOffset": status.max_offset,
            "inSyncSlaveNums": sum(slave.in_sync for slave in status.slaves),
            "haConnectionInfo": [
                {
                    "addr": slave.address,
                    "slaveAckOffset": slave.ack_offset,
                    "diff": slave.diff_bytes,
                    "inSync": slave.in_sync,
                    "transferredByteInSecond": slave.transferred_bytes_per_s,
                }
                for slave in status.slaves
            ],
            "haClientRuntimeInfo": {
                "masterAddr": status.master_address or "",
                "connected": status.connected,
                "maxOffset": status.max_offset,
            },
            "brokerRole": status.role.value,
            "dledger": self._ctx.store.is_dledger,
        }
        return request.response(body=to_json_body(body))

    def dledger_status(self, request: RemotingCommand, _connection: RemotingConnection) -> RemotingCommand:
        """GET_DLEDGER_STATUS (9001, ours): this node of the log and what it knows of the others."""
        status = self._ctx.store.dledger_status()
        if status is None:
            raise CommandError(ResponseCode.REQUEST_CODE_NOT_SUPPORTED, "this broker has no replicated log")
        body = {name: getattr(status, name) for name in _STATUS_FIELDS}
        body["peers"] = [{f.name: getattr(peer, f.name) for f in fields(peer)} for peer in status.peers]
        body["brokerId"] = self._ctx.roles.broker_id
        body["isMaster"] = self._ctx.roles.is_master
        body["roleNote"] = self._ctx.roles.note
        return request.response(body=to_json_body(body))


_FIXED_PROPERTIES: Final = """filterServerNums=0
useTLS=false
"""
"""What cannot be set here, and upstream's exportConfigs fails without."""

_STATUS_FIELDS: Final = (
    "group",
    "node_id",
    "address",
    "role",
    "term",
    "leader_id",
    "leader_address",
    "first_index",
    "last_index",
    "commit_index",
    "applied_index",
    "flush_disk_type",
    "pending_count",
    "note",
)


def _duration_text(seconds: int) -> str:
    days, hours, minutes = seconds // 86_400, seconds // 3600 % 24, seconds // 60 % 60
    return f"[ {days} days, {hours} hours, {minutes} minutes, {seconds % 60} seconds ]"


def _property_text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, tuple):
        return ";".join(value)
    return "" if value is None else str(value)


def effective_properties(config: object) -> str:
    """Write a configuration as ``key=value`` lines."""
    return "".join(f"{key.name}={_property_text(getattr(config, key.field))}\n" for key in KEYS)
