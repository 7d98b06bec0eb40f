"""The ledger service without a ledger: what grpc.aio alone can do with the same messages.

`Append` answers at once, `Get` with a body of the size asked for, `Read` streams messages of the size that a node
sends, made once and passed through as bytes: nothing is looked up, replicated or stored. Same server library, same
loop, same client as the group that it stands beside.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
from grpc import aio

from dledger.bench.plain import BEYOND_ANY_INDEX
from dledger.errors import ResponseCode, UnavailableError
from dledger.v1 import ledger_pb2 as pb

__all__ = ["EchoService", "serve_echo"]

_HEADER_BYTES: Final = 48
_CHUNK_BYTES: Final = 1024 * 1024
_OPTIONS: Final = (("grpc.so_reuseport", 0), ("grpc.max_send_message_length", 16 * 1024 * 1024))


class EchoService:
    """Answers for a log of ``entries`` entries of ``size_bytes`` that does not exist."""

    def __init__(self, entries: int, size_bytes: int) -> None:
        self._last = entries - 1
        self._header = pb.ResponseHeader(
            code=int(ResponseCode.SUCCESS), group="echo", node_id="n0", term=1, leader_id="n0"
        )
        self._body = os.urandom(size_bytes)
        self._entries_a_chunk = max(_CHUNK_BYTES // (_HEADER_BYTES + size_bytes), 1)
        self._data = os.urandom(self._entries_a_chunk * (_HEADER_BYTES + size_bytes))
        self.address = ""

    def handler(self) -> grpc.GenericRpcHandler:
        """Return the methods, for a server."""
        unary = grpc.unary_unary_rpc_method_handler
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Append": unary(self._append, pb.AppendRequest.FromString, pb.AppendResponse.SerializeToString),
            "Get": unary(self._get, pb.GetRequest.FromString, pb.GetResponse.SerializeToString),
            "Metadata": unary(self._metadata, pb.MetadataRequest.FromString, pb.MetadataResponse.SerializeToString),
            "Read": grpc.unary_stream_rpc_method_handler(self._read, pb.ReadRequest.FromString),
        }
        return grpc.method_handlers_generic_handler("dledger.v1.LedgerService", handlers)

    async def _append(self, _request: pb.AppendRequest, _context: object) -> pb.AppendResponse:
        return pb.AppendResponse(header=self._header, index=self._last, term=1, pos=0)

    async def _get(self, request: pb.GetRequest, _context: object) -> pb.GetResponse:
        entry = pb.Entry(index=request.index, term=1, pos=0, type=pb.ENTRY_TYPE_NORMAL, body=self._body)
        return pb.GetResponse(header=self._header, entry=entry)

    async def _metadata(self, _request: pb.MetadataRequest, _context: object) -> pb.MetadataResponse:
        header = pb.ResponseHeader()
        header.CopyFrom(self._header)
        header.leader_address = self.address
        return pb.MetadataResponse(header=header)

    async def _read(self, request: pb.ReadRequest, _context: object) -> AsyncIterator[bytes]:
        if request.from_index >= BEYOND_ANY_INDEX:
            refused = pb.ResponseHeader(code=int(ResponseCode.INDEX_OUT_OF_RANGE))
            yield pb.ReadResponse(header=refused, commit_index=self._last).SerializeToString()
            return
        # The data of each message is the same object; only the few bytes after it differ.
        data = pb.ReadResponse(header=self._header, data=self._data).SerializeToString()
        for at in range(self._entries_a_chunk, self._last + 1, self._entries_a_chunk):
            yield data + pb.ReadResponse(commit_index=self._last, next_index=at).SerializeToString()
        end = pb.ReadResponse(header=self._header, commit_index=self._last, next_index=self._last + 1, end=True)
        yield end.SerializeToString()


async def serve_echo(entries: int, size_bytes: int) -> None:
    """Serve on a free port until cancelled; prints ``READY host:port`` first.

    Raises:
        UnavailableError: no port.
    """
    service = EchoService(entries, size_bytes)
    server = aio.server(options=_OPTIONS)
    server.add_generic_rpc_handlers((service.handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    if not port:
        raise UnavailableError("no free port on 127.0.0.1")
    service.address = f"127.0.0.1:{port}"
    await server.start()
    print(f"READY {service.address}", flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        await server.stop(None)
