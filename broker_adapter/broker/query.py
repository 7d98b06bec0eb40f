"""Looking things up: offsets of a queue, messages by place, id, key or time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from broker_adapter.broker.context import BrokerContext
from broker_adapter.remoting.codes import ResponseCode
from broker_adapter.remoting.command import RemotingCommand
from broker_adapter.remoting.connection import RemotingConnection
from broker_adapter.remoting.errors import CommandError

__all__ = ["QueryProcessor"]

_UNIQUE_KEY_FLAG: Final = "_UNIQUE_KEY_QUERY"
_MAX_TIME: Final = 2**62
Served = Callable[[RemotingCommand], Awaitable[RemotingCommand]]


class QueryProcessor:
    """Answers 30, 31, 29, 32, 33, 12."""

    def __init__(self, context: BrokerContext) -> None:
        self._ctx = context

    async def _fresh(self, request: RemotingCommand, connection: RemotingConnection, serve: Served) -> RemotingCommand:
        """Have the log's master answer where a slave may be behind; the slave itself where there is no master."""
        ctx = self._ctx
        if ctx.roles.is_master or not ctx.goes_to_master(request):
            return await serve(request)
        answer = await ctx.gate.submit(request, connection.remote_address, serve, idempotent=True)
        return answer if answer.code == ResponseCode.SUCCESS else await serve(request)

    def max_offset(self, request: RemotingCommand, connection: RemotingConnection) -> Awaitable[RemotingCommand]:
        """GET_MAX_OFFSET (30)."""
        return self._fresh(request, connection, self._max_offset)

    async def _max_offset(self, request: RemotingCommand) -> RemotingCommand:
        offset = self._ctx.store.max_offset(request.text("topic"), request.integer("queueId"))
        return request.response(ext={"offset": offset})

    def min_offset(self, request: RemotingCommand, _connection: RemotingConnection) -> RemotingCommand:
        """GET_MIN_OFFSET (31)."""
        offset = self._ctx.store.min_offset(request.text("topic"), request.integer("queueId"))
        return request.response(ext={"offset": offset})

    def search_offset(self, request: RemotingCommand, connection: RemotingConnection) -> Awaitable[RemotingCommand]:
        """SEARCH_OFFSET_BY_TIMESTAMP (29)."""
        return self._fresh(request, connection, self._search_offset)

    async def _search_offset(self, request: RemotingCommand) -> RemotingCommand:
        offset = await self._ctx.store.offset_by_time(
            request.text("topic"), request.integer("queueId"), request.integer("timestamp")
        )
        return request.response(ext={"offset": offset})

    async def earliest_store_time(self, request: RemotingCommand, _connection: RemotingConnection) -> RemotingCommand:
        """GET_EARLIEST_MSG_STORETIME (32)."""
        at = await self._ctx.store.earliest_store_time(request.text("topic"), request.integer("queueId"))
        return request.response(ext={"timestamp": at})

    async def view_message(self, request: RemotingCommand, _connection: RemotingConnection) -> RemotingCommand:
        """VIEW_MESSAGE_BY_ID (33): by physical offset, which is what an offset id holds."""
        offset = request.integer("offset")
        raw = await self._ctx.store.look_message_by_offset(offset)
        if raw is None:
            raise CommandError(ResponseCode.SYSTEM_ERROR, f"can not find message by the offset, {offset}")
        return request.response(body=raw)

    async def query_message(self, request: RemotingCommand, _connection: RemotingConnection) -> RemotingCommand:
        """QUERY_MESSAGE (12): by key within a time range."""
        ctx = self._ctx
        wanted = max(1, request.integer_or("maxNum", ctx.config.default_query_max_count))
        limit = ctx.config.default_query_max_count
        # Upstream answers a query by unique key with its own limit, whatever was asked.
        count = limit if request.boolean_or(_UNIQUE_KEY_FLAG) else min(wanted, limit)
        result = await ctx.store.query_message(
            request.text("topic"),
            request.text("key"),
            count,
            request.integer_or("beginTimestamp", 0),
            request.integer_or("endTimestamp", _MAX_TIME),
        )
        ext = {
            "indexLastUpdateTimestamp": result.index_last_update_timestamp,
            "indexLastUpdatePhyoffset": result.index_last_update_physical_offset,
        }
        if not result.buffers:
            return request.response(
                ResponseCode.QUERY_NOT_FOUND, "can not find message, maybe time range not correct", ext
            )
        return request.response(ext=ext, body=b"".join(result.buffers))
