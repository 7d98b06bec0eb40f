"""LedgerService and AdminService over a `Backend`.

Requests are checked, passed on and answered; nothing is decided here. Every failure is an answer with a DLedger code,
so the gRPC status is OK unless the transport itself failed or the node is stopping. Bytes pass through gRPC untouched
and are decoded here, so that garbage gets an answer too.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc
import structlog
from grpc import aio

from dledger.errors import IndexOutOfRangeError, UnexpectedArgumentError, UnknownMemberError
from dledger.protobuf_wire import BYTES, VARINT, kinds, read_message
from dledger.rpc.answers import Answers, check_batch, first_message, parse, read_mode
from dledger.rpc.append_stream import Batches
from dledger.rpc.call_stream import CallStream, Requests
from dledger.rpc.client_door import FRAMES_KEY, ClientDoor
from dledger.rpc.gather import GatheredAppends, GatheredReads
from dledger.rpc.interfaces import Backend
from dledger.rpc.options import NetworkOptions
from dledger.rpc.read_calls import Reads
from dledger.rpc.read_stream import ReadStream, StoppingError
from dledger.security.streams import StreamGuard, WatchedContext
from dledger.types import BatchResult, NodeStatus
from dledger.v1 import admin_pb2, ledger_pb2

__all__ = ["ADMIN_SERVICE", "LEDGER_SERVICE", "AdminService", "LedgerService"]

LEDGER_SERVICE = "dledger.v1.LedgerService"
ADMIN_SERVICE = "dledger.v1.AdminService"

_MAX_CLIENT_ID_BYTES = 64
_APPEND_KINDS = kinds({1: BYTES, 2: BYTES, 3: VARINT, 4: VARINT})

_Context: TypeAlias = "aio.ServicerContext[bytes, bytes]"
_Handlers: TypeAlias = "dict[str, grpc.RpcMethodHandler[Any, Any]]"


class LedgerService:
    """What programs use. Register it with `add_to_server`; `close` ends its streams when the node stops.

    ``door``: where streams may go over to frames; None: they stay with gRPC.
    """

    def __init__(self, backend: Backend, guard: StreamGuard | None = None, door: ClientDoor | None = None) -> None:
        self._backend = backend
        self._door = door or ClientDoor(backend.node_id)
        self._answers = Answers(backend)
        if guard is None:
            limits = NetworkOptions()
            guard = StreamGuard(limits.max_client_streams, limits.slow_reader_timeout_ms / 1000)
        self._guard = guard
        self._group = backend.group.encode()
        self._calls: set[CallStream] = set()
        self._waits: set[asyncio.Future[Any]] = set()
        self._appends = GatheredAppends(backend)
        self._reads = GatheredReads(backend)
        self._closing = False
        self._log = structlog.get_logger().bind(group_id=backend.group, node_id=backend.node_id)

    def add_to_server(self, server: aio.Server) -> None:
        """Register the methods, bytes passed through."""
        unary = grpc.unary_unary_rpc_method_handler
        handlers: _Handlers = {
            "OpenSession": unary(self._open_session),
            "Append": unary(self._append),
            "AppendBatch": unary(self._append_batch),
            "AppendStream": grpc.stream_stream_rpc_method_handler(self._append_stream),
            "Get": unary(self._get),
            "Read": grpc.unary_stream_rpc_method_handler(self._read),
            "ReadStream": grpc.stream_stream_rpc_method_handler(self._read_stream),
            "Metadata": unary(self._metadata),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(LEDGER_SERVICE, handlers),))

    def close(self) -> None:
        """Take no more from the streams and end them once answered; end the reads that wait for the tail."""
        self._closing = True
        self._guard.close()
        self._appends.close()
        self._reads.close()
        for stream in self._calls:
            stream.close()
        for wait in self._waits:
            wait.cancel()

    # -- appends ------------------------------------------------------------------------------------------------------

    async def _append(self, data: bytes, _context: _Context) -> bytes:
        # The hot unary path: no task, no timer; one future, set by the driver.
        try:
            values = read_message(data, 0, _APPEND_KINDS)
            if values is not None and values[1] == self._group and values[2] and not (values[3] or values[4]):
                body = values[2]  # nothing but that: read by hand, `dledger.protobuf_wire` says why
                session_id = sequence = 0
            else:
                request = parse(ledger_pb2.AppendRequest, data)
                self._answers.check_group(request.group)
                body, session_id, sequence = request.body, request.session_id, request.sequence
            check_batch((body,), 1, sequence, self._backend)
            if session_id:
                run = (await self._submitted((body,), session_id, sequence)).runs[0]
                index, term = run.first_index, run.term
            else:
                index, term, _ = await self._appends.append(body)
            return self._answers.appended(index, term, self._backend.position_of(index))
        except Exception as error:
            header = self._answers.failure(error, "Append")
            return ledger_pb2.AppendResponse(header=header, index=-1, term=-1, pos=-1).SerializeToString()

    async def _append_batch(self, data: bytes, _context: _Context) -> bytes:
        request_id = 0
        try:
            request = parse(ledger_pb2.AppendBatchRequest, data)
            request_id = request.request_id
            self._answers.check_group(request.group)
            bodies = tuple(request.bodies)
            check_batch(bodies, len(bodies), request.first_sequence, self._backend)
            result = await self._submitted(bodies, request.session_id, request.first_sequence)
            return self._answers.taken(result, request_id)
        except Exception as error:
            header = self._answers.failure(error, "AppendBatch")
            return ledger_pb2.AppendBatchResponse(header=header, request_id=request_id).SerializeToString()

    def _submitted(
        self, bodies: tuple[bytes, ...], session_id: int, first_sequence: int
    ) -> asyncio.Future[BatchResult]:
        """Submit a batch and return the future of its result. If the client goes away the outcome is dropped."""
        future: asyncio.Future[BatchResult] = asyncio.get_running_loop().create_future()

        def done(result: BatchResult | None, error: Exception | None) -> None:
            if future.done():
                return
            if result is not None:
                future.set_result(result)
            else:
                future.set_exception(error or RuntimeError("neither result nor error"))

        self._backend.submit(bodies, session_id=session_id, first_sequence=first_sequence, done=done)
        return future

    async def _append_stream(self, _requests: object, context: _Context) -> None:
        await self._serve_call(context, Batches(self._backend, self._answers))

    async def _serve_call(self, call: _Context, requests: Requests) -> None:
        await self._guard.run(call, functools.partial(self._serve_watched, call, requests))

    async def _serve_watched(self, call: _Context, requests: Requests, context: WatchedContext) -> None:
        if self._closing:
            await self._abort_stopping(context)
        stream = CallStream(self._backend, requests, context)
        metadata: dict[str, str | bytes] = dict(call.invocation_metadata() or ())
        offer = self._door.offer(str(metadata.get(FRAMES_KEY, "")), stream.adopt)
        self._calls.add(stream)
        try:
            if offer is not None:
                await call.send_initial_metadata(offer.metadata)
            await stream.serve()
        finally:
            self._calls.discard(stream)
            if offer is not None:
                self._door.withdraw(offer)

    async def _open_session(self, data: bytes, _context: _Context) -> bytes:
        try:
            request = parse(ledger_pb2.OpenSessionRequest, data)
            self._answers.check_group(request.group)
            if not 1 <= len(request.client_id) <= _MAX_CLIENT_ID_BYTES:
                raise UnexpectedArgumentError(
                    f"a client id of {len(request.client_id)} bytes; it has 1 to {_MAX_CLIENT_ID_BYTES}"
                )
            session_id, next_sequence = await self._backend.open_session(request.client_id)
            return ledger_pb2.OpenSessionResponse(
                header=self._answers.success(), session_id=session_id, next_sequence=next_sequence
            ).SerializeToString()
        except Exception as error:
            header = self._answers.failure(error, "OpenSession")
            return ledger_pb2.OpenSessionResponse(header=header).SerializeToString()

    # -- reads --------------------------------------------------------------------------------------------------------

    async def _get(self, data: bytes, _context: _Context) -> bytes:
        try:
            request = parse(ledger_pb2.GetRequest, data)
            self._answers.check_group(request.group)
            index = request.index
            if index < 0:
                raise IndexOutOfRangeError(f"index {index}; indexes count from 0")
            commit_index = await self._reads.read_index(read_mode(request.mode))
            if index > commit_index:
                raise IndexOutOfRangeError(f"index {index} is beyond the last committed entry, {commit_index}")
            raw = await self._backend.read_slice(index, index, 1)
            entry = first_message(raw.data)
            return ledger_pb2.GetResponse(header=self._answers.success(), entry=entry).SerializeToString()
        except Exception as error:
            return ledger_pb2.GetResponse(header=self._answers.failure(error, "Get")).SerializeToString()

    async def _read(self, data: bytes, context: _Context) -> None:
        await self._guard.run(context, functools.partial(self._serve_read, data))

    async def _serve_read(self, data: bytes, context: WatchedContext) -> None:
        stream: ReadStream | None = None
        try:
            request = parse(ledger_pb2.ReadRequest, data)
            self._answers.check_group(request.group)
            stream = ReadStream(self._backend, self._answers, request, self._wait_committed)
            await stream.serve(_writer(context))
        except _ClientGoneError:
            return
        except StoppingError:
            await self._abort_stopping(context)
        except Exception as error:
            answer = (
                stream.failure(error)
                if stream is not None
                else ledger_pb2.ReadResponse(header=self._answers.failure(error, "Read")).SerializeToString()
            )
            with contextlib.suppress(_ClientGoneError):
                await _writer(context)(answer)

    async def _read_stream(self, _requests: object, context: _Context) -> None:
        await self._serve_call(context, Reads(self._backend, self._answers, self._reads, self._wait_committed))

    async def _wait_committed(self, index: int) -> int:
        """As the backend's, but ends with `StoppingError` when the service closes."""
        if self._closing:
            raise StoppingError
        wait = asyncio.ensure_future(self._backend.wait_committed(index))
        self._waits.add(wait)
        try:
            return await wait
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closing and not (task is not None and task.cancelling()):
                raise StoppingError from None
            wait.cancel()
            raise
        finally:
            self._waits.discard(wait)

    async def _abort_stopping(self, context: WatchedContext) -> None:
        await context.abort(grpc.StatusCode.UNAVAILABLE, f"{self._backend.node_id} is stopping")

    async def _metadata(self, data: bytes, _context: _Context) -> bytes:
        try:
            request = parse(ledger_pb2.MetadataRequest, data)
            self._answers.check_group(request.group)
            backend = self._backend
            members = [ledger_pb2.Member(node_id=node, address=at) for node, at in backend.members().items()]
            return ledger_pb2.MetadataResponse(
                header=self._answers.success(),
                members=members,
                max_entry_bytes=backend.max_entry_bytes,
                max_batch_bytes=backend.max_batch_bytes,
                max_batch_entries=backend.max_batch_entries,
            ).SerializeToString()
        except Exception as error:
            header = self._answers.failure(error, "Metadata")
            return ledger_pb2.MetadataResponse(header=header).SerializeToString()


class _ClientGoneError(Exception):
    """A write failed: whoever called is not there any more."""


def _writer(context: WatchedContext) -> Callable[[bytes], Awaitable[None]]:
    """Return the context's write with one error of ours for all that gRPC may raise when the client has left."""

    async def write(data: bytes) -> None:
        try:
            await context.write(data)
        except Exception as error:
            raise _ClientGoneError from error

    return write


class AdminService:
    """What operators use. Status answers at any node, in any role, whatever the state of the group."""

    def __init__(self, backend: Backend, clock: Callable[[], float] = time.monotonic) -> None:
        self._backend = backend
        self._answers = Answers(backend)
        self._clock = clock

    def add_to_server(self, server: aio.Server) -> None:
        """Register the methods, bytes passed through."""
        unary = grpc.unary_unary_rpc_method_handler
        handlers: _Handlers = {
            "Status": unary(self._status),
            "TransferLeadership": unary(self._transfer_leadership),
            "StepDown": unary(self._step_down),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(ADMIN_SERVICE, handlers),))

    async def _status(self, data: bytes, _context: _Context) -> bytes:
        try:
            request = parse(admin_pb2.StatusRequest, data)
            self._answers.check_group(request.group, may_be_empty=True)
            answer = _status_message(self._backend.status())
            answer.header.CopyFrom(self._answers.success())
            return answer.SerializeToString()
        except Exception as error:
            return admin_pb2.StatusResponse(header=self._answers.failure(error, "Status")).SerializeToString()

    async def _transfer_leadership(self, data: bytes, _context: _Context) -> bytes:
        started = self._clock()
        try:
            request = parse(admin_pb2.TransferLeadershipRequest, data)
            self._answers.check_group(request.group)
            members = self._backend.members()
            if request.target and request.target not in members:
                raise UnknownMemberError(f"{request.target!r} is no member; {', '.join(sorted(members))} are")
            leader_id = await self._backend.transfer_leadership(request.target or None)
            return admin_pb2.TransferLeadershipResponse(
                header=self._answers.success(),
                new_leader_id=leader_id,
                took_ms=round((self._clock() - started) * 1000),
            ).SerializeToString()
        except Exception as error:
            header = self._answers.failure(error, "TransferLeadership")
            return admin_pb2.TransferLeadershipResponse(header=header).SerializeToString()

    async def _step_down(self, data: bytes, _context: _Context) -> bytes:
        try:
            request = parse(admin_pb2.StepDownRequest, data)
            self._answers.check_group(request.group)
            await self._backend.step_down()
            return admin_pb2.StepDownResponse(header=self._answers.success()).SerializeToString()
        except Exception as error:
            return admin_pb2.StepDownResponse(header=self._answers.failure(error, "StepDown")).SerializeToString()


def _status_message(status: NodeStatus) -> admin_pb2.StatusResponse:
    """Return a status as a message: the same fields under the same names, but for the header's leader."""
    peers = [
        admin_pb2.PeerStatus(
            node_id=peer.node_id,
            address=peer.address,
            connected=peer.connected,
            match_index=peer.match_index,
            next_index=peer.next_index,
            lag_entries=peer.lag_entries,
            inflight_count=peer.inflight_count,
            state=peer.state,
            last_contact_ms=peer.last_contact_ms,
            sent=peer.sent,
        )
        for peer in status.peers
    ]
    return admin_pb2.StatusResponse(
        role=status.role,
        term=status.term,
        vote=status.vote,
        first_index=status.first_index,
        last_index=status.last_index,
        stable_index=status.stable_index,
        commit_index=status.commit_index,
        applied_index=status.applied_index,
        peers=peers,
        store_path=status.store_path,
        store_type=status.store_type,
        flush_disk_type=status.flush_disk_type,
        store_bytes=status.store_bytes,
        disk_free_bytes=status.disk_free_bytes,
        disk_total_bytes=status.disk_total_bytes,
        uptime_ms=status.uptime_ms,
        version=status.version,
        node_id=status.node_id,
        group=status.group,
        address=status.address,
        pid=status.pid,
        pending_count=status.pending_count,
        pending_bytes=status.pending_bytes,
        session_count=status.session_count,
        role_since_ms=status.role_since_ms,
        fsync_p99_us=status.fsync_p99_us,
        note=status.note,
        append_p50_us=status.append_p50_us,
        append_p99_us=status.append_p99_us,
        election_left_ms=status.election_left_ms,
        election_timeout_ms=status.election_timeout_ms,
        tail=[admin_pb2.LogRun(first_index=run.first_index, term=run.term) for run in status.tail],
        truncated_count=status.truncated_count,
        events=[
            admin_pb2.NodeEvent(number=event.number, age_ms=event.age_ms, name=event.name, facts=event.facts)
            for event in status.events
        ],
    )
