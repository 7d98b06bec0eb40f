"""PULL_MESSAGE (11): reading, long polling, and the choice of the broker to read from next."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from broker_adapter.broker.clients import Subscription
from broker_adapter.broker.context import BrokerContext
from broker_adapter.broker.gate import is_forwarded
from broker_adapter.broker.groups import SubscriptionGroup
from broker_adapter.broker.hold import HeldPull, PullHold
from broker_adapter.remoting.codes import PullSysFlag, RequestCode, ResponseCode
from broker_adapter.remoting.command import RemotingCommand, SerializeType
from broker_adapter.remoting.connection import RemotingConnection
from broker_adapter.remoting.errors import CommandError
from broker_adapter.remoting.template import AnswerTemplate
from broker_adapter.store.api import Arrival, BrokerRole, GetMessageStatus, GetResult

__all__ = ["PullProcessor"]

_CODES: Final = {
    GetMessageStatus.FOUND: ResponseCode.SUCCESS,
    GetMessageStatus.NO_MATCHED_MESSAGE: ResponseCode.PULL_RETRY_IMMEDIATELY,
    GetMessageStatus.MESSAGE_WAS_REMOVING: ResponseCode.PULL_RETRY_IMMEDIATELY,
    GetMessageStatus.OFFSET_FOUND_NULL: ResponseCode.PULL_NOT_FOUND,
    GetMessageStatus.OFFSET_OVERFLOW_BADLY: ResponseCode.PULL_OFFSET_MOVED,
    GetMessageStatus.OFFSET_OVERFLOW_ONE: ResponseCode.PULL_NOT_FOUND,
    GetMessageStatus.OFFSET_TOO_SMALL: ResponseCode.PULL_OFFSET_MOVED,
}
_EMPTY: Final = frozenset({GetMessageStatus.NO_MATCHED_LOGIC_QUEUE, GetMessageStatus.NO_MESSAGE_IN_QUEUE})
_MAX_SUSPEND_MS: Final = 60_000
_MAX_HELD: Final = 100_000
"""Pulls held at once; past it a pull that finds nothing is told so at once."""

_ANSWER_FIELDS: Final = ("suggestWhichBrokerId", "nextBeginOffset", "minOffset", "maxOffset")


@lru_cache(maxsize=1024)
def _subscription(topic: str, expression: str, version: int, expression_type: str) -> Subscription:
    return Subscription.parse(topic, expression, version, expression_type)


@dataclass(slots=True)
class _Asked:
    """A pull's header, checked."""

    group: SubscriptionGroup
    topic: str
    queue_id: int
    offset: int
    max_count: int
    sys_flag: int
    subscription: Subscription


class PullProcessor:
    """Answers pulls."""

    def __init__(self, context: BrokerContext) -> None:
        self._ctx = context
        self.hold = PullHold(self._woken)
        self._template = AnswerTemplate(_ANSWER_FIELDS, {})
        self.registered_ids: frozenset[int] = frozenset({0})
        """Ids of this broker name that are registered; the registrar keeps it current."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._awake: list[HeldPull] = []
        # Invariant: while it holds something, `_answer_awake` is scheduled.
        context.store.add_arrival_listener(self._arrived)
        context.roles.add_listener(self.hold.wake_all)

    def _arrived(self, arrivals: Sequence[Arrival]) -> None:
        self.hold.arrived(arrivals)

    def _woken(self, held: HeldPull) -> None:
        if not self._awake:
            # Not at once: what wakes it is still being dispatched.
            asyncio.get_running_loop().call_soon(self._answer_awake)
        self._awake.append(held)

    def _answer_awake(self) -> None:
        awake, self._awake = self._awake, []
        for held in awake:
            if held.connection.is_closed or self._answered_now(held):
                continue
            task = asyncio.get_running_loop().create_task(self._answer_held(held))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _answered_now(self, held: HeldPull) -> bool:
        """Answer a held pull if what it waits for is there, in memory."""
        try:
            asked = self._asked(held.request)
        except CommandError as error:
            held.connection.reply(held.request, held.request.response(error.code, error.remark))
            return True
        result = self._read_now(asked)
        if result is None or result.status is not GetMessageStatus.FOUND:
            return False
        self._found(held.request, held.connection, asked, result)
        return True

    async def _answer_held(self, held: HeldPull) -> None:
        try:
            response = await self.pull(held.request, held.connection, deadline=held.deadline)
        except CommandError as error:
            response = held.request.response(error.code, error.remark)
        if response is not None:
            held.connection.reply(held.request, response)

    async def stop(self) -> None:
        await self.hold.stop()
        self._answer_awake()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ------------------------------------------------------------------ checks

    def _subscription(self, request: RemotingCommand, group: str, topic: str, sys_flag: int) -> Subscription:
        if sys_flag & PullSysFlag.SUBSCRIPTION:
            subscription = _subscription(
                topic,
                request.text_or("subscription"),
                request.integer_or("subVersion", 0),
                request.text_or("expressionType", "TAG"),
            )
        else:
            known = self._ctx.clients.subscription(group, topic)
            if known is None:
                raise CommandError(
                    ResponseCode.SUBSCRIPTION_NOT_EXIST, "the consumer's subscription not exist; heartbeat first"
                )
            if known.version < request.integer_or("subVersion", 0):
                raise CommandError(ResponseCode.SUBSCRIPTION_NOT_LATEST, "the consumer's subscription not latest")
            subscription = known
        if subscription.expression_type != "TAG":
            raise CommandError(
                ResponseCode.REQUEST_CODE_NOT_SUPPORTED,
                f"The broker does not support consumer to filter message by {subscription.expression_type}",
            )
        return subscription

    def _check(self, group_name: str, topic_name: str, queue_id: int) -> SubscriptionGroup:
        ctx = self._ctx
        if not ctx.config.broker_permission & 4:
            raise CommandError(
                ResponseCode.NO_PERMISSION, f"the broker[{ctx.config.host}] pulling message is forbidden"
            )
        group = ctx.groups.require(group_name)
        if not group.consume_enable:
            raise CommandError(ResponseCode.NO_PERMISSION, f"subscription group no permission, {group_name}")
        topic = ctx.topics.require(topic_name)
        if not topic.is_readable:
            raise CommandError(ResponseCode.NO_PERMISSION, f"the topic[{topic_name}] pulling message is forbidden")
        if not 0 <= queue_id < topic.read_queue_nums:
            raise CommandError(
                ResponseCode.SYSTEM_ERROR,
                f"queueId[{queue_id}] is illegal, topic:[{topic_name}] readQueueNums: [{topic.read_queue_nums}]",
            )
        return group

    # ------------------------------------------------------------------ pulling

    def handle(
        self, request: RemotingCommand, connection: RemotingConnection
    ) -> RemotingCommand | Awaitable[RemotingCommand | None] | None:
        """Answer a pull, or hold it (None). What is found in memory is answered at once."""
        asked = self._asked(request)
        result = self._read_now(asked)
        if result is None:
            return self.pull(request, connection)
        if result.status is not GetMessageStatus.FOUND:
            return self._conclude(request, connection, asked, result, None)
        self._commit(request, asked)
        self._found(request, connection, asked, result)
        return None

    def _read_now(self, asked: _Asked) -> GetResult | None:
        return self._ctx.store.get_message_now(
            asked.topic, asked.queue_id, asked.offset, asked.max_count, asked.subscription.codes
        )

    def _asked(self, request: RemotingCommand) -> _Asked:
        group_name, topic = request.text("consumerGroup"), request.text("topic")
        queue_id, offset = request.integer("queueId"), request.integer("queueOffset")
        sys_flag = request.integer_or("sysFlag", 0)
        group = self._check(group_name, topic, queue_id)
        subscription = self._subscription(request, group_name, topic, sys_flag)
        max_count = max(1, request.integer("maxMsgNums"))
        return _Asked(group, topic, queue_id, offset, max_count, sys_flag, subscription)

    async def pull(
        self, request: RemotingCommand, connection: RemotingConnection, deadline: float | None = None
    ) -> RemotingCommand | None:
        """Read once. ``deadline``: of a pull that was held; None for a fresh one."""
        asked = self._asked(request)
        result = await self._ctx.store.get_message(
            asked.group.name, asked.topic, asked.queue_id, asked.offset, asked.max_count, asked.subscription.codes
        )
        return await self._conclude(request, connection, asked, result, deadline)

    async def _conclude(
        self,
        request: RemotingCommand,
        connection: RemotingConnection,
        asked: _Asked,
        result: GetResult,
        deadline: float | None,
    ) -> RemotingCommand | None:
        """Answer with what was read, or hold the pull (None; also where it is answered already)."""
        ctx = self._ctx
        topic, queue_id, offset, subscription = asked.topic, asked.queue_id, asked.offset, asked.subscription
        if deadline is None:
            self._commit(request, asked)
        code = self._code(result, offset)
        if code == ResponseCode.PULL_NOT_FOUND and ctx.store.max_offset(topic, queue_id) > max(
            result.max_offset, offset
        ):
            # Something arrived between the look and now; holding would miss its arrival.
            return await self.pull(request, connection, deadline)
        if code == ResponseCode.PULL_NOT_FOUND and self._may_hold(request, connection, subscription, deadline):
            return None
        if code == ResponseCode.PULL_OFFSET_MOVED and ctx.store.role is BrokerRole.SLAVE:
            moved = await self._moved_at_slave(request, connection)
            if moved is not None:
                return moved
            if not ctx.config.offset_check_in_slave:
                code = ResponseCode.PULL_RETRY_IMMEDIATELY
        if code == ResponseCode.SUCCESS:
            self._found(request, connection, asked, result)
            return None
        ctx.stats.get_miss_count += 1
        return request.response(
            code, result.status.value, dict(zip(_ANSWER_FIELDS, self._answer_values(asked, result), strict=True))
        )

    def _answer_values(self, asked: _Asked, result: GetResult) -> tuple[int, int, int, int]:
        return self._suggest(asked.group, result), result.next_begin_offset, result.min_offset, result.max_offset

    def _found(
        self, request: RemotingCommand, connection: RemotingConnection, asked: _Asked, result: GetResult
    ) -> None:
        """Send the messages that were read."""
        stats = self._ctx.stats
        stats.get_found_count += 1
        stats.get_count += len(result.buffers)
        stats.get_bytes += result.byte_count
        key = (asked.group.name, asked.topic)
        stats.consumed[key] = stats.consumed.get(key, 0) + len(result.buffers)
        values = self._answer_values(asked, result)
        if request.serialize_type is SerializeType.JSON:
            head = self._template.head(request.opaque, values, result.byte_count)
            connection.reply_encoded(request, ResponseCode.SUCCESS, head, result.buffers)
            return
        response = request.response(ResponseCode.SUCCESS, None, dict(zip(_ANSWER_FIELDS, values, strict=True)))
        connection.reply_with_buffers(request, response, result.buffers)

    def _code(self, result: GetResult, offset: int) -> ResponseCode:
        if result.status in _EMPTY:
            return ResponseCode.PULL_NOT_FOUND if offset == 0 else ResponseCode.PULL_OFFSET_MOVED
        return _CODES[result.status]

    def _suggest(self, group: SubscriptionGroup, result: GetResult) -> int:
        """Return the broker id to pull from next: always one that is registered."""
        config, ids = self._ctx.config, self.registered_ids
        if not config.slave_read_enable:
            return 0
        if not result.suggest_pulling_from_slave:
            wanted = group.broker_id
            return wanted if wanted in ids else 0
        wanted = group.which_broker_when_consume_slowly
        if wanted in ids:
            return wanted
        slaves = [broker_id for broker_id in ids if broker_id > 0]
        return min(slaves, default=0)

    def _commit(self, request: RemotingCommand, asked: _Asked) -> None:
        """Take the offset that a pull carries. A slave of a log leaves that to its master, a classic one drops it."""
        offset = request.integer_or("commitOffset", -1)
        if not asked.sys_flag & PullSysFlag.COMMIT_OFFSET or offset < 0:
            return
        ctx, group, topic, queue_id = self._ctx, asked.group.name, asked.topic, asked.queue_id
        if not ctx.roles.is_dledger:
            if ctx.store.role is not BrokerRole.SLAVE:
                ctx.offsets.commit(topic, group, queue_id, offset)
            return
        if ctx.roles.is_master:
            ctx.offsets.commit(topic, group, queue_id, offset)
        elif not is_forwarded(request) and ctx.offsets.query(topic, group, queue_id) < offset:
            self._forward_commit(request, group, topic, queue_id, offset)

    def _forward_commit(self, request: RemotingCommand, group: str, topic: str, queue_id: int, offset: int) -> None:
        ctx = self._ctx
        update = RemotingCommand(
            int(RequestCode.UPDATE_CONSUMER_OFFSET),
            {"consumerGroup": group, "topic": topic, "queueId": queue_id, "commitOffset": offset},
            language=request.language,
            version=request.version,
        )

        async def here(command: RemotingCommand) -> RemotingCommand:
            ctx.offsets.commit(topic, group, queue_id, offset)
            return command.response()

        answer = ctx.gate.submit(update, "", here, idempotent=True)
        task = asyncio.ensure_future(answer)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())

    def _may_hold(
        self,
        request: RemotingCommand,
        connection: RemotingConnection,
        subscription: Subscription,
        deadline: float | None,
    ) -> bool:
        """Hold a pull that found nothing, if it asked for that and has time left."""
        loop = asyncio.get_running_loop()
        if deadline is None:
            if not request.integer_or("sysFlag", 0) & PullSysFlag.SUSPEND:
                return False
            suspend_ms = min(request.integer_or("suspendTimeoutMillis", 0), _MAX_SUSPEND_MS)
            if not self._ctx.config.long_polling_enable:
                suspend_ms = self._ctx.config.short_polling_time_ms
            deadline = loop.time() + suspend_ms / 1000
        if deadline <= loop.time() or connection.is_closed or self.hold.count >= _MAX_HELD:
            return False
        held = HeldPull(
            request,
            connection,
            subscription.topic,
            request.integer("queueId"),
            request.integer("queueOffset"),
            subscription.codes,
            deadline,
        )
        self.hold.add(held)
        self._ctx.stats.held_pull_count += 1
        return True

    async def _moved_at_slave(self, request: RemotingCommand, connection: RemotingConnection) -> RemotingCommand | None:
        """A slave may merely be behind: let the master of the log say whether the offset is out of range."""
        ctx = self._ctx
        if not ctx.goes_to_master(request):
            return None
        asked = RemotingCommand(
            request.code,
            {**request.ext, "sysFlag": request.integer_or("sysFlag", 0) & ~PullSysFlag.SUSPEND & ~1},
            request.body,
            opaque=request.opaque,
            flag=request.flag,
            language=request.language,
            version=request.version,
            serialize_type=request.serialize_type,
        )

        async def here(_command: RemotingCommand) -> RemotingCommand:
            return request.response(ResponseCode.PULL_RETRY_IMMEDIATELY, "this broker has become the master")

        return await ctx.gate.submit(asked, connection.remote_address, here, idempotent=True)
