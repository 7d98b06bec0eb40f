"""What this broker passes on to a connected client: replies to who asked, an operator's questions to a consumer."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from broker_adapter.broker.context import BrokerContext
from broker_adapter.broker.gate import FORWARDED_HOST_FIELD
from broker_adapter.broker.send import LONG_NAMES, SHORT_NAMES
from broker_adapter.message import MessageFormatError, get_property, parse_message_id, set_property
from broker_adapter.remoting.codes import RequestCode, ResponseCode
from broker_adapter.remoting.command import RemotingCommand
from broker_adapter.remoting.connection import RemotingConnection
from broker_adapter.remoting.errors import CommandError, RemotingError, RemotingTimeoutError

__all__ = ["RelayProcessor"]

_ANSWER_TIMEOUT_MS: Final = 10_000
"""Upstream's limit for what a broker asks of a client."""

_REPLY_TO: Final = b"REPLY_TO_CLIENT"
_PUSH_TIME: Final = b"PUSH_REPLY_TIME"


class RelayProcessor:
    """Answers 307, 309, 324 and 325."""

    def __init__(self, context: BrokerContext) -> None:
        self._ctx = context

    # ------------------------------------------------------------------ request-reply

    async def reply(self, request: RemotingCommand, connection: RemotingConnection) -> RemotingCommand:
        """SEND_REPLY_MESSAGE (324) and its V2 (325): push the reply to the client that asked (326).

        The asker is a producer and heartbeats to masters only, so a slave hands the reply on. A reply is not stored:
        when nobody waits for it any more, nobody can read it either.
        """
        ctx, address = self._ctx, connection.remote_address
        if ctx.goes_to_master(request):
            # Pushed twice, the second finds nobody who waits: it may be tried again.
            serve = partial(self._push_or_refuse, address=address)
            return await ctx.gate.submit(request, address, serve, idempotent=True)
        ctx.refuse_if_slave()
        return await self._push(request, address)

    async def _push_or_refuse(self, request: RemotingCommand, *, address: str) -> RemotingCommand:
        try:
            return await self._push(request, address)
        except CommandError as error:
            return request.response(error.code, error.remark)

    async def _push(self, request: RemotingCommand, address: str) -> RemotingCommand:
        ctx = self._ctx
        ext = _long_names(request)
        properties = str(ext.get("properties") or "").encode()
        asker = (get_property(properties, _REPLY_TO) or b"").decode()
        if not asker:
            raise CommandError(ResponseCode.SYSTEM_ERROR, f"reply message properties[{_REPLY_TO.decode()}] is null")
        found = ctx.clients.producer(asker)
        if found is None:
            raise CommandError(
                ResponseCode.SYSTEM_ERROR, f"push reply message fail, channel of <{asker}> not found; has it stopped?"
            )
        now = int(time.time() * 1000)
        ext["properties"] = set_property(properties, _PUSH_TIME, b"%d" % now).decode()
        ext |= {
            "bornHost": str(request.ext.get(FORWARDED_HOST_FIELD) or address),
            "storeHost": found.local_address,
            "storeTimestamp": now,
        }
        answer = await self._ask(
            found, RemotingCommand(int(RequestCode.PUSH_REPLY_MESSAGE_TO_CLIENT), ext, request.body), asker
        )
        if answer.code != ResponseCode.SUCCESS:
            raise CommandError(ResponseCode.SYSTEM_ERROR, f"push reply message to <{asker}> fail: {answer.remark}")
        # Clients read a send's answer; there is no place in a queue to tell.
        queue_id = RemotingCommand(0, ext).integer_or("queueId", 0)
        return request.response(ext={"msgId": "0", "queueId": max(0, queue_id), "queueOffset": 0})

    # ------------------------------------------------------------------ operators to consumers

    async def running_info(self, request: RemotingCommand, _connection: RemotingConnection) -> RemotingCommand:
        """GET_CONSUMER_RUNNING_INFO (307): what a consumer says of its queues, threads and rates."""
        return await self._ask_consumer(request, b"")

    async def consume_directly(self, request: RemotingCommand, _connection: RemotingConnection) -> RemotingCommand:
        """CONSUME_MESSAGE_DIRECTLY (309): have a consumer consume one message now, whatever its offsets are."""
        text = request.text("msgId")
        try:
            _, offset = parse_message_id(text)
        except MessageFormatError as error:
            raise CommandError(ResponseCode.SYSTEM_ERROR, str(error)) from None
        raw = await self._ctx.store.look_message_by_offset(offset)
        if raw is None:
            raise CommandError(ResponseCode.SYSTEM_ERROR, f"can not find message by the offset, {offset}")
        return await self._ask_consumer(request, raw, brokerName=self._ctx.config.broker_name)

    async def _ask_consumer(self, request: RemotingCommand, body: bytes, **more: str) -> RemotingCommand:
        group, client_id = request.text("consumerGroup"), request.text("clientId")
        found = self._ctx.clients.consumer(group, client_id)
        if found is None:
            raise CommandError(ResponseCode.SYSTEM_ERROR, f"The Consumer <{group}> <{client_id}> not online")
        answer = await self._ask(found, RemotingCommand(request.code, {**request.ext, **more}, body), client_id)
        return request.response(answer.code, answer.remark, answer.ext, answer.body)

    async def _ask(self, client: RemotingConnection, command: RemotingCommand, client_id: str) -> RemotingCommand:
        try:
            return await client.invoke(command, _ANSWER_TIMEOUT_MS)
        except RemotingTimeoutError as error:
            raise CommandError(ResponseCode.CONSUME_MSG_TIMEOUT, f"<{client_id}> Timeout: {error}") from None
        except RemotingError as error:
            raise CommandError(ResponseCode.SYSTEM_ERROR, f"<{client_id}> did not answer: {error}") from None


def _long_names(request: RemotingCommand) -> dict[str, Any]:
    """Return a send's header fields under their long names."""
    ext: Mapping[str, Any] = request.ext
    if request.code == RequestCode.SEND_REPLY_MESSAGE:
        return {name: ext[name] for name in LONG_NAMES if name in ext}
    return {long: ext[short] for long, short in zip(LONG_NAMES, SHORT_NAMES, strict=True) if short in ext}
