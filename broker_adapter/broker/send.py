"""Sends in every form (10, 310, 320, one-way, batch) and the consumer's send-back (36)."""

from __future__ import annotations

import asyncio
import random
import zlib
from collections.abc import Awaitable
from dataclasses import dataclass
from functools import lru_cache, partial
from operator import itemgetter
from typing import Any, Final

from broker_adapter.broker.context import BrokerContext, command_error
from broker_adapter.broker.gate import FORWARDED_HOST_FIELD, is_forwarded
from broker_adapter.broker.topics import (
    DLQ_PREFIX,
    FORBIDDEN_SEND_TOPICS,
    PERM_WRITE,
    RETRY_PREFIX,
    TopicConfig,
    check_topic_name,
)
from broker_adapter.message import (
    DELAY_PROPERTY,
    MAX_PROPERTIES_BYTES,
    Message,
    decode_message,
    get_property,
    pop_properties,
    set_property,
)
from broker_adapter.remoting.codes import MessageSysFlag, RequestCode, ResponseCode
from broker_adapter.remoting.command import TRUE_TEXTS, RemotingCommand, SerializeType
from broker_adapter.remoting.connection import RemotingConnection
from broker_adapter.remoting.errors import CommandError
from broker_adapter.remoting.template import AnswerTemplate
from broker_adapter.store.api import PutMessageStatus, PutResult
from dledger.errors import DLedgerError

__all__ = ["LONG_NAMES", "SHORT_NAMES", "SendProcessor", "put_answer"]

_STATUS_CODES: Final = {
    PutMessageStatus.PUT_OK: (ResponseCode.SUCCESS, None),
    PutMessageStatus.FLUSH_DISK_TIMEOUT: (ResponseCode.FLUSH_DISK_TIMEOUT, None),
    PutMessageStatus.FLUSH_SLAVE_TIMEOUT: (ResponseCode.FLUSH_SLAVE_TIMEOUT, None),
    PutMessageStatus.SLAVE_NOT_AVAILABLE: (ResponseCode.SLAVE_NOT_AVAILABLE, None),
    PutMessageStatus.SERVICE_NOT_AVAILABLE: (
        ResponseCode.SERVICE_NOT_AVAILABLE,
        "service not available now. It may be caused by one of the following reasons: "
        "the broker's disk is full, it is not the master now, or it is shutting down.",
    ),
    PutMessageStatus.CREATE_MAPPED_FILE_FAILED: (
        ResponseCode.SYSTEM_ERROR,
        "create mapped file failed, server is busy or broken.",
    ),
    PutMessageStatus.MESSAGE_ILLEGAL: (
        ResponseCode.MESSAGE_ILLEGAL,
        "the message is illegal, maybe msg body or properties length not matched. "
        "msg body length limit by maxMessageSize, msg properties length limit 32k.",
    ),
    PutMessageStatus.OS_PAGECACHE_BUSY: (
        ResponseCode.SYSTEM_ERROR,
        "[PC_SYNCHRONIZED]broker busy, start flow control for a while",
    ),
    PutMessageStatus.UNKNOWN_ERROR: (ResponseCode.SYSTEM_ERROR, "UNKNOWN_ERROR DEFAULT"),
}

LONG_NAMES: Final = (
    "producerGroup",
    "topic",
    "defaultTopic",
    "defaultTopicQueueNums",
    "queueId",
    "sysFlag",
    "bornTimestamp",
    "flag",
    "properties",
    "reconsumeTimes",
    "unitMode",
    "maxReconsumeTimes",
    "batch",
)
"""A send's header fields, in the order of their short names."""

SHORT_NAMES: Final = tuple("abcdefghijklm")
_MAX_RECONSUME: Final = "maxReconsumeTimes"
_take_long: Final = itemgetter(*[name for name in LONG_NAMES if name != _MAX_RECONSUME])
_take_short: Final = itemgetter(
    *[short for short, name in zip(SHORT_NAMES, LONG_NAMES, strict=True) if name != _MAX_RECONSUME]
)
_PLAIN_TYPES: Final = frozenset({str, int})
_SEND_LONG: Final = int(RequestCode.SEND_MESSAGE)
_SEND_BATCH: Final = int(RequestCode.SEND_BATCH_MESSAGE)
_TRANSACTION_PROPERTY: Final = b"TRAN_MSG"
_TRANSACTION_BITS: Final = 12
_COMPRESSION_BITS: Final = 0x701
_RETRY_TOPIC_PROPERTY: Final = b"RETRY_TOPIC"
_ORIGIN_ID_PROPERTY: Final = b"ORIGIN_MESSAGE_ID"
_WAIT_PROPERTY: Final = b"WAIT"
_DEFAULT_DELAY_OFFSET: Final = 3
_REPLY_TO_PROPERTY: Final = b"REPLY_TO_CLIENT"
_CLUSTER_PROPERTY: Final = b"CLUSTER"


@dataclass(slots=True)
class _Header:
    """A send's header, whichever spelling it came in."""

    group: str
    topic: str
    default_topic: str
    default_queue_nums: int
    queue_id: int
    sys_flag: int
    born_timestamp: int
    flag: int
    properties: bytes
    reconsume_times: int
    unit_mode: bool
    max_reconsume_times: int
    batch: bool


def _parse_header(request: RemotingCommand) -> _Header:
    is_long = request.code == _SEND_LONG
    ext = request.ext
    try:
        values: tuple[Any, ...] = _take_long(ext) if is_long else _take_short(ext)
        maximum = ext.get("maxReconsumeTimes" if is_long else "l", -1)  # some clients know no such thing
        group, topic, default, nums, queue, sys_flag, born, flag, properties, reconsume, unit, batch = values
        texts = type(group) is type(topic) is type(default) is type(properties) is type(unit) is type(batch) is str
        if not texts or type(maximum) not in _PLAIN_TYPES or not _PLAIN_TYPES.issuperset(map(type, values)):
            return _parse_loose_header(request, LONG_NAMES if is_long else SHORT_NAMES)
        return _Header(
            group, topic, default, int(nums), int(queue), int(sys_flag), int(born), int(flag), properties.encode(),
            int(reconsume), unit in TRUE_TEXTS, int(maximum), batch in TRUE_TEXTS or request.code == _SEND_BATCH,
        )  # fmt: skip
    except (KeyError, ValueError):
        return _parse_loose_header(request, LONG_NAMES if is_long else SHORT_NAMES)


def _parse_loose_header(request: RemotingCommand, names: tuple[str, ...]) -> _Header:
    """Parse a header with fields left out, or in other JSON types."""
    group, topic, default, nums, queue, sys_flag, born, flag, properties, reconsume, unit, maximum, batch = names
    return _Header(
        request.text(group),
        request.text(topic),
        request.text_or(default),
        request.integer_or(nums, 4),
        request.integer(queue),
        request.integer_or(sys_flag, 0),
        request.integer_or(born, 0),
        request.integer_or(flag, 0),
        request.text_or(properties).encode(),
        request.integer_or(reconsume, 0),
        request.boolean_or(unit),
        request.integer_or(maximum, -1),
        request.boolean_or(batch) or request.code == _SEND_BATCH,
    )


@lru_cache(maxsize=4096)
def _host(address: str) -> tuple[str, int]:
    """Host and port of a client's address."""
    host, _, port = address.rpartition(":")
    try:
        return host.strip("[]"), int(port)
    except ValueError:
        return "0.0.0.0", 0


def put_answer(request: RemotingCommand, result: PutResult) -> RemotingCommand:
    """Return the response to a put: code and remark by its status, the place where it has one."""
    code, remark = _STATUS_CODES[result.status]
    if result.remark and remark is not None:
        remark = f"{remark} {result.remark}"
    if not result.is_ok:
        return request.response(code, remark)
    return request.response(
        code,
        remark,
        {
            "msgId": result.message_id,
            "queueId": result.queue_id,
            "queueOffset": result.queue_offset,
        },
    )


class SendProcessor:
    """Answers sends: at once where this broker is master, through the gate where it is not."""

    def __init__(self, context: BrokerContext) -> None:
        self._ctx = context
        self._random = random.Random()
        self._region = {"MSG_REGION": context.config.region_id, "TRACE_ON": context.config.trace_on}
        self._stored = AnswerTemplate(("msgId", "queueId", "queueOffset"), self._region)

    # ------------------------------------------------------------------ sends

    def handle(
        self, request: RemotingCommand, connection: RemotingConnection
    ) -> RemotingCommand | Awaitable[RemotingCommand] | None:
        """Answer 10, 310 and 320."""
        ctx = self._ctx
        if ctx.goes_to_master(request):
            self._check(_parse_header(request), request)
            return ctx.gate.submit(
                request,
                connection.remote_address,
                partial(self._serve, address=connection.remote_address),
                idempotent=False,
            )
        ctx.refuse_if_slave()
        header = _parse_header(request)
        self._check(header, request)
        topic = ctx.topics.get(header.topic)
        if topic is None or header.topic.startswith(RETRY_PREFIX):
            return self._send_later(request, header, connection.remote_address)
        message = self._message(request, header, topic, connection.remote_address)
        ctx.store.put_nowait(message, partial(self._answer, request, connection), is_batch=header.batch)
        return None

    async def _serve(self, request: RemotingCommand, *, address: str) -> RemotingCommand:
        """Serve a send here that was held until this broker became master."""
        try:
            self._ctx.refuse_if_slave()
            return await self._send_later(request, _parse_header(request), address)
        except CommandError as error:
            return request.response(error.code, error.remark)

    async def _send_later(self, request: RemotingCommand, header: _Header, address: str) -> RemotingCommand:
        """Send to a topic that may have to be made first."""
        header.topic, queue_id = await self._retry_or_dead_letter(header)
        topic = await self._topic(header)
        if queue_id is not None:
            header.queue_id = queue_id
        message, store = self._message(request, header, topic, address), self._ctx.store
        put = store.put_messages(message) if header.batch else store.put_message(message)
        return self._response(request, await put)

    def _answer(self, request: RemotingCommand, connection: RemotingConnection, result: PutResult) -> None:
        """Answer a direct put. A definite refusal in DLedger mode means that the lead is going: try the next master."""
        if result.status is PutMessageStatus.PUT_OK and request.serialize_type is SerializeType.JSON:
            self._count(request, result)
            values = (result.message_id, result.queue_id, result.queue_offset)
            connection.reply_encoded(request, ResponseCode.SUCCESS, self._stored.head(request.opaque, values), ())
            return
        if self._may_try_again(request, result):
            answer = asyncio.ensure_future(
                self._ctx.gate.submit(
                    request,
                    connection.remote_address,
                    partial(self._serve, address=connection.remote_address),
                    idempotent=False,
                )
            )
            answer.add_done_callback(
                lambda answered: None if answered.cancelled() else connection.reply(request, answered.result())
            )
            return
        connection.reply(request, self._response(request, result))

    def _may_try_again(self, request: RemotingCommand, result: PutResult) -> bool:
        return (
            result.status is PutMessageStatus.SERVICE_NOT_AVAILABLE
            and not result.maybe_stored
            and self._ctx.roles.is_dledger
            and not is_forwarded(request)
        )

    def _response(self, request: RemotingCommand, result: PutResult) -> RemotingCommand:
        if result.is_ok:
            self._count(request, result)
        else:
            self._ctx.stats.put_failed_count += 1
        response = put_answer(request, result)
        response.ext.update(self._region)
        return response

    def _count(self, request: RemotingCommand, result: PutResult) -> None:
        stats = self._ctx.stats
        stats.put_count += result.count
        stats.put_bytes += result.byte_count
        topic = str(request.ext.get("b") or request.ext.get("topic"))
        stats.put_by_topic[topic] = stats.put_by_topic.get(topic, 0) + result.count

    # ------------------------------------------------------------------ checks

    def _check(self, header: _Header, request: RemotingCommand) -> None:
        """Refuse what no broker would store."""
        config = self._ctx.config
        if not config.broker_permission & PERM_WRITE:
            raise CommandError(ResponseCode.NO_PERMISSION, f"the broker[{config.host}] sending message is forbidden")
        if self._ctx.topics.get(header.topic) is None:
            check_topic_name(header.topic)
        if header.topic in FORBIDDEN_SEND_TOPICS:
            raise CommandError(ResponseCode.NO_PERMISSION, f"Sending message to topic[{header.topic}] is forbidden.")
        if len(request.body) > config.max_message_size_bytes:
            raise CommandError(
                ResponseCode.MESSAGE_ILLEGAL,
                f"the message body has {len(request.body)} bytes, maxMessageSize is {config.max_message_size_bytes}",
            )
        if len(header.properties) > MAX_PROPERTIES_BYTES:
            raise CommandError(
                ResponseCode.MESSAGE_ILLEGAL,
                f"the properties have {len(header.properties)} bytes, the limit is {MAX_PROPERTIES_BYTES}",
            )
        if header.sys_flag & _TRANSACTION_BITS or get_property(header.properties, _TRANSACTION_PROPERTY) == b"true":
            raise CommandError(
                ResponseCode.REQUEST_CODE_NOT_SUPPORTED, "transaction messages are not supported by this broker"
            )

    async def _topic(self, header: _Header) -> TopicConfig:
        """Return the topic, made by this send if it may be."""
        ctx = self._ctx
        topic = ctx.topics.get(header.topic)
        if topic is not None:
            return topic
        if header.topic.startswith(RETRY_PREFIX):
            wanted: TopicConfig | None = TopicConfig(header.topic, 1, 1)
        else:
            wanted = ctx.topics.for_send(header.topic, header.default_topic, header.default_queue_nums, 0)
        if wanted is None:
            ctx.topics.require(header.topic)
            raise CommandError(ResponseCode.TOPIC_NOT_EXIST, f"topic[{header.topic}] not exist, apply first please!")
        try:
            return await ctx.topics.ensure(wanted)
        except DLedgerError as error:
            raise command_error(error) from error

    async def _retry_or_dead_letter(self, header: _Header) -> tuple[str, int | None]:
        """A client that retries by itself sends to %RETRY%group; past the limit that goes to the dead letters."""
        if not header.topic.startswith(RETRY_PREFIX):
            return header.topic, None
        ctx = self._ctx
        name = header.topic[len(RETRY_PREFIX) :]
        group = ctx.groups.require(name)
        maximum = header.max_reconsume_times if header.max_reconsume_times >= 0 else group.retry_max_times
        if header.reconsume_times < maximum:
            return header.topic, None
        try:
            dead = await ctx.topics.ensure_dead_letter(name)
        except DLedgerError as error:
            raise command_error(error) from error
        header.properties = pop_properties(header.properties, DELAY_PROPERTY)
        ctx.stats.dead_letter_count += 1
        return dead.name, 0

    # ------------------------------------------------------------------ the message

    def _message(self, request: RemotingCommand, header: _Header, topic: TopicConfig, address: str) -> Message:
        if not topic.is_writable:
            raise CommandError(ResponseCode.NO_PERMISSION, f"the topic[{topic.name}] sending message is forbidden")
        queue_id = header.queue_id
        if queue_id < 0:
            queue_id = self._random.randrange(max(1, topic.write_queue_nums))
        elif queue_id >= topic.queue_count:
            raise CommandError(
                ResponseCode.SYSTEM_ERROR,
                f"request queueId[{queue_id}] is illegal, topic:[{topic.name}] has {topic.queue_count} queues",
            )
        body = bytes(request.body)
        if header.batch and header.sys_flag & MessageSysFlag.COMPRESSED:
            body = self._inflate(body)
            header.sys_flag &= ~_COMPRESSION_BITS
        properties = header.properties
        if _REPLY_TO_PROPERTY in properties:
            # Whoever answers a request finds the topic for replies by it. Upstream marks every message.
            properties = set_property(properties, _CLUSTER_PROPERTY, self._ctx.config.broker_cluster_name.encode())
        if header.batch and header.topic.startswith((RETRY_PREFIX, DLQ_PREFIX)):
            raise CommandError(ResponseCode.MESSAGE_ILLEGAL, "batch request does not support retry group")
        return Message(
            header.topic,
            body,
            queue_id,
            properties,
            header.flag,
            header.sys_flag,
            header.born_timestamp,
            _host(str(request.ext.get(FORWARDED_HOST_FIELD) or address)),
            header.reconsume_times,
        )

    def _inflate(self, body: bytes) -> bytes:
        """Some clients compress a batch as a whole where its messages are meant: take it apart before it is stored."""
        limit = self._ctx.config.max_message_size_bytes
        inflater = zlib.decompressobj()
        try:
            data = inflater.decompress(body, limit)
        except zlib.error as error:
            raise CommandError(ResponseCode.MESSAGE_ILLEGAL, f"the compressed batch is damaged: {error}") from None
        if inflater.unconsumed_tail or not inflater.eof:
            raise CommandError(ResponseCode.MESSAGE_ILLEGAL, f"the batch has more than {limit} bytes, or is cut off")
        return data

    # ------------------------------------------------------------------ send-back

    async def send_back(self, request: RemotingCommand, connection: RemotingConnection) -> RemotingCommand:
        """Answer CONSUMER_SEND_MSG_BACK (36)."""
        ctx = self._ctx
        if ctx.goes_to_master(request):
            return await ctx.gate.submit(request, connection.remote_address, self._serve_send_back, idempotent=False)
        ctx.refuse_if_slave()
        return await self._send_back(request)

    async def _serve_send_back(self, request: RemotingCommand) -> RemotingCommand:
        try:
            self._ctx.refuse_if_slave()
            return await self._send_back(request)
        except CommandError as error:
            return request.response(error.code, error.remark)

    async def _send_back(self, request: RemotingCommand) -> RemotingCommand:
        ctx = self._ctx
        name = request.text("group")
        group = ctx.groups.get(name)
        if group is None and not ctx.config.auto_create_subscription_group:
            raise CommandError(ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST, f"subscription group not exist, {name}")
        group = ctx.groups.require(name)
        if group.retry_queue_nums <= 0:
            return request.response()
        raw = await ctx.store.look_message_by_offset(request.integer("offset"))
        if raw is None:
            raise CommandError(ResponseCode.SYSTEM_ERROR, f"look message by offset failed, {request.integer('offset')}")
        original = decode_message(raw)
        maximum = request.integer_or("maxReconsumeTimes", -1)
        if maximum < 0:
            maximum = group.retry_max_times
        level = request.integer_or("delayLevel", 0)
        is_dead = original.reconsume_times >= maximum or level < 0
        try:
            if is_dead:
                topic = await ctx.topics.ensure_dead_letter(name)
            else:
                topic = await ctx.topics.ensure_retry(name)
        except DLedgerError as error:
            raise command_error(error) from error
        if not topic.is_writable:
            raise CommandError(ResponseCode.NO_PERMISSION, f"the topic[{topic.name}] sending message is forbidden")
        message = self._retry_message(request, original, topic, is_dead, level)
        result = await ctx.store.put_message(message)
        if result.is_ok:
            ctx.stats.send_back_count += 1
            ctx.stats.dead_letter_count += is_dead
            return request.response()
        return put_answer(request, result)

    def _retry_message(
        self, request: RemotingCommand, original: Message, topic: TopicConfig, is_dead: bool, level: int
    ) -> Message:
        properties = original.properties
        if get_property(properties, _RETRY_TOPIC_PROPERTY) is None:
            properties = set_property(properties, _RETRY_TOPIC_PROPERTY, original.topic.encode())
        if get_property(properties, _ORIGIN_ID_PROPERTY) is None:
            origin = request.text_or("originMsgId") or original.message_id
            properties = set_property(properties, _ORIGIN_ID_PROPERTY, origin.encode())
        properties = set_property(properties, _WAIT_PROPERTY, b"false")
        properties = pop_properties(properties, DELAY_PROPERTY)
        if not is_dead:
            level = level or _DEFAULT_DELAY_OFFSET + original.reconsume_times
            properties = set_property(properties, DELAY_PROPERTY, str(level).encode())
        queue_id = 0 if is_dead else self._random.randrange(max(1, topic.write_queue_nums))
        return Message(
            topic.name,
            original.body,
            queue_id,
            properties,
            original.flag,
            original.sys_flag,
            original.born_timestamp,
            original.born_host,
            original.reconsume_times + 1,
        )
