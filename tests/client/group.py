"""A group as a client sees it, in memory: one log, sessions, a leader, and a script of things that go wrong.

`FakeGroup` is the model. Two edges serve it: `MemoryTransport` (a `ClientTransport` without network) and `GrpcNode`
(a real gRPC server on a port). Each asks the group's ``script`` what to do with a batch.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from dataclasses import dataclass, field

import google_crc32c
import grpc
from grpc import aio

from dledger.client.transport import AppendAnswer, AppendBatch, Header, Metadata, SessionAnswer
from dledger.errors import ResponseCode, UnavailableError
from dledger.raft.messages import EntryType
from dledger.rpc.client_door import FRAMES_KEY
from dledger.rpc.options import NetworkOptions
from dledger.rpc.peer_connections import PeerListener
from dledger.storage.layout import HEADER
from dledger.types import IndexRun
from dledger.v1 import admin_pb2, ledger_pb2

OK = "ok"
DROP_ANSWER = "append, never answer"
DROP_REQUEST = "lose it, never answer"
APPEND_AND_BREAK = "append, break the stream"
BREAK = "break the stream"
HOLD = "append, answer when released"


def refuse(code):
    return ("refuse", int(code))


def append_then(code):
    """Append, and answer with a failure."""
    return ("append_then", int(code))


@dataclass
class FakeGroup:
    """``script(node_id, batch)`` returns a verdict; `OK` by default."""

    node_ids: tuple = ("n0", "n1", "n2")
    name: str = "g"
    term: int = 1
    leader: str | None = "n0"
    max_entry_bytes: int = 4 * 1024 * 1024 - 48
    max_batch_bytes: int = 4 * 1024 * 1024
    max_batch_entries: int = 65536
    log: list = field(default_factory=list)  # (type, term, session, body)
    sessions: dict = field(default_factory=dict)  # id → list of indexes
    clients: dict = field(default_factory=dict)  # client id → session id
    addresses: dict = field(default_factory=dict)
    batches: list = field(default_factory=list)  # (node id, batch) as received
    script: object = None
    committed: asyncio.Event = field(default_factory=asyncio.Event)
    metadata_count: int = 0

    def header(self, node_id, code=ResponseCode.SUCCESS, message=""):
        leader = self.leader or ""
        return Header(int(code), message, node_id, self.term, leader, self.addresses.get(leader, ""))

    def elect(self, leader):
        if leader is not None:
            self.term += 1
        self.leader = leader

    def open_session(self, node_id, client_id):
        if node_id != self.leader:
            return SessionAnswer(self.header(node_id, ResponseCode.NOT_LEADER, "not leader"))
        session_id = self.clients.get(client_id)
        if session_id is None or session_id not in self.sessions:
            session_id = len(self.clients) + 1
            self.clients[client_id] = session_id
            self.sessions[session_id] = []
            self._add(EntryType.SESSION, session_id, client_id)
        return SessionAnswer(self.header(node_id), session_id, len(self.sessions[session_id]))

    def evict(self):
        self.sessions.clear()

    def metadata(self, node_id):
        self.metadata_count += 1
        return Metadata(
            self.header(node_id),
            self.name,
            {node: self.addresses.get(node, node) for node in self.node_ids},
            self.max_entry_bytes,
            self.max_batch_bytes,
            self.max_batch_entries,
        )

    def _add(self, kind, session_id, body):
        self.log.append((kind, self.term, session_id, bytes(body)))
        self.committed.set()
        self.committed.clear()
        return len(self.log) - 1

    def bodies(self):
        return [body for kind, _, _, body in self.log if kind is EntryType.NORMAL]

    def append(self, node_id, batch):
        """Append as the real leader does: next sequence only, repeated ones answered with their place."""

        def answer(code, runs=()):
            return AppendAnswer(batch.request_id, self.header(node_id, code, ResponseCode(code).name), tuple(runs))

        if node_id != self.leader:
            return answer(ResponseCode.NOT_LEADER)
        if not batch.bodies:
            return answer(ResponseCode.REQUEST_WITH_EMPTY_BODYS)
        if max(map(len, batch.bodies)) > self.max_entry_bytes or len(batch.bodies) > self.max_batch_entries:
            return answer(ResponseCode.UNEXPECTED_ARGUMENT)
        if not batch.session_id:
            indexes = [self._add(EntryType.NORMAL, 0, body) for body in batch.bodies]
            return answer(ResponseCode.SUCCESS, self._runs(indexes))
        known = self.sessions.get(batch.session_id)
        if known is None:
            return answer(ResponseCode.UNKNOWN_SESSION)
        if batch.first_sequence > len(known):
            return answer(ResponseCode.SEQUENCE_GAP)
        for body in batch.bodies[len(known) - batch.first_sequence :]:
            known.append(self._add(EntryType.NORMAL, batch.session_id, body))
        indexes = known[batch.first_sequence : batch.first_sequence + len(batch.bodies)]
        return answer(ResponseCode.SUCCESS, self._runs(indexes))

    def _runs(self, indexes):
        runs = []
        for index in indexes:
            term = self.log[index][1]
            if runs and runs[-1].first_index + runs[-1].count == index and runs[-1].term == term:
                runs[-1] = IndexRun(runs[-1].first_index, runs[-1].count + 1, term)
            else:
                runs.append(IndexRun(index, 1, term))
        return runs

    def judge(self, node_id, batch):
        """Return (verdict, answer): what the edge does, and what it sends (None: nothing)."""
        self.batches.append((node_id, batch))
        verdict = self.script(node_id, batch) if self.script else OK
        if verdict in {OK, HOLD}:
            return verdict, self.append(node_id, batch)
        if verdict in {DROP_ANSWER, APPEND_AND_BREAK}:
            self.append(node_id, batch)
            return verdict, None
        if verdict in {DROP_REQUEST, BREAK}:
            return verdict, None
        kind, code = verdict
        if kind == "append_then":
            self.append(node_id, batch)
        return kind, AppendAnswer(batch.request_id, self.header(node_id, code, ResponseCode(code).name))

    def encode(self, first, last):
        """Return entries as a slice of the log (positions and chain are of no interest to a client)."""
        parts = []
        for index in range(first, last + 1):
            kind, term, session_id, body = self.log[index]
            crc = google_crc32c.value(body)
            parts.append(
                HEADER.pack(int(kind), 48 + len(body), index, term, index * 1000, session_id, 0, crc, len(body)) + body
            )
        return b"".join(parts)


class MemoryTransport:
    """`ClientTransport` straight to the model; addresses are node ids."""

    def __init__(self, group, *, delay_s=0.0):
        self.group = group
        self.down = set()
        self.hung = set()
        self.streams = []
        self.delay_s = delay_s
        self.calls = 0

    def _reach(self, address):
        if address in self.down:
            raise UnavailableError(f"{address}: connection refused")

    async def _pass(self, address, timeout):
        self.calls += 1
        self._reach(address)
        if address in self.hung:
            await asyncio.sleep(timeout)
            raise UnavailableError(f"{address}: no answer")
        await asyncio.sleep(self.delay_s)
        self._reach(address)

    async def open_session(self, address, client_id, timeout):
        await self._pass(address, timeout)
        return self.group.open_session(address, client_id)

    async def metadata(self, address, timeout):
        await self._pass(address, timeout)
        return self.group.metadata(address)

    def open_stream(self, address, handler):
        stream = MemoryStream(self, address, handler)
        self.streams.append(stream)
        return stream

    def kill(self, address):
        """The node dies: its streams break, it cannot be reached."""
        self.down.add(address)
        for stream in self.streams:
            if stream.address == address:
                stream.break_soon("connection reset")

    def restart(self, address):
        self.down.discard(address)

    def release(self, number=None):
        """Deliver the answers that were held, all or the first ones."""
        for stream in self.streams:
            stream.release(number)

    @property
    def open_count(self):
        return sum(1 for stream in self.streams if not stream.closed)


class MemoryStream:
    def __init__(self, transport, address, handler):
        self.transport = transport
        self.address = address
        self.handler = handler
        self.closed = False
        self.held = []
        self.loop = asyncio.get_running_loop()
        if address in transport.down:
            self.break_soon("connection refused")

    def send(self, batch):
        copy = AppendBatch(batch.request_id, batch.session_id, batch.first_sequence, tuple(batch.bodies))
        self.loop.call_later(self.transport.delay_s, self._arrive, copy)

    def _arrive(self, batch):
        if self.closed or self.address in self.transport.hung:
            return
        verdict, answer = self.transport.group.judge(self.address, batch)
        if verdict in {BREAK, APPEND_AND_BREAK}:
            self._break("scripted")
        elif verdict is HOLD:
            self.held.append(answer)
        elif answer is not None:
            self.loop.call_later(self.transport.delay_s, self._answer, answer)

    def release(self, number=None):
        ready, self.held = self.held[:number], self.held[len(self.held[:number]) :]
        for answer in ready:
            self.loop.call_soon(self._answer, answer)

    def _answer(self, answer):
        if not self.closed:
            self.handler.on_answer(answer)

    def break_soon(self, reason):
        self.loop.call_soon(self._break, reason)

    def _break(self, reason):
        if not self.closed:
            self.closed = True
            self.handler.on_broken(reason)

    def close(self):
        self.closed = True


class Lane:
    """The connection beside one append stream of a `GrpcNode`."""

    def __init__(self, node):
        self.node = node
        self.task = asyncio.current_task()
        self.taken = 0
        self.start = None
        self.waiting = []

    def adopt(self, connection):
        self.node.connections.add(connection)
        connection.hand_over(received=self._received, lost=self._lost, on_writable=lambda _: None)

    def took(self):
        """One more batch came by gRPC."""
        self.taken += 1
        self._serve()

    def _received(self, connection, data):
        if self.start is None:
            self.start = int.from_bytes(data, "big")
        else:
            self.waiting.append((connection, data))
            self._serve()

    def _serve(self):
        if self.start is None or self.taken < self.start or self.node.hang:
            return
        waiting, self.waiting = self.waiting, []
        for connection, data in waiting:
            self.node.framed_count += 1
            verdict, answer = self.node.judge(ledger_pb2.AppendBatchRequest.FromString(data))
            if verdict in {BREAK, APPEND_AND_BREAK}:
                connection.abort("scripted")
                return
            if answer is not None:
                connection.put(answer.SerializeToString())

    def _lost(self, connection, reason):
        self.node.connections.discard(connection)
        self.task.cancel()


class GrpcNode:
    """One node of the group behind a real port. `kill` and `start` again keep the port. ``framed``: has one for frames."""

    def __init__(self, group, node_id, framed=False):
        self.framed = framed
        self.framed_count = 0  # batches that came as frames
        self.listener = None
        self.connections = set()
        self.group = group
        self.node_id = node_id
        self.port = 0
        self.server = None
        self.read_break_after = None  # entries of a Read before its stream breaks
        self.reads = []
        self.transfers = []
        self.calls = set()
        self.hang = False

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    async def start(self):
        self.server = aio.server(options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 16 << 20)])
        unary = grpc.unary_unary_rpc_method_handler
        ledger = {
            "OpenSession": unary(self._open_session, ledger_pb2.OpenSessionRequest.FromString, _out),
            "AppendStream": grpc.stream_stream_rpc_method_handler(
                self._append_stream, ledger_pb2.AppendBatchRequest.FromString, _out
            ),
            "Get": unary(self._get, ledger_pb2.GetRequest.FromString, _out),
            "Read": grpc.unary_stream_rpc_method_handler(self._read, ledger_pb2.ReadRequest.FromString, _out),
            "Metadata": unary(self._metadata, ledger_pb2.MetadataRequest.FromString, _out),
        }
        admin = {
            "Status": unary(self._status, admin_pb2.StatusRequest.FromString, _out),
            "TransferLeadership": unary(self._transfer, admin_pb2.TransferLeadershipRequest.FromString, _out),
            "StepDown": unary(self._step_down, admin_pb2.StepDownRequest.FromString, _out),
        }
        self.server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler("dledger.v1.LedgerService", ledger),
                grpc.method_handlers_generic_handler("dledger.v1.AdminService", admin),
            )
        )
        self.port = self.server.add_insecure_port(f"127.0.0.1:{self.port}")
        self.group.addresses[self.node_id] = self.address
        await self.server.start()
        if self.framed:
            self.listener = PeerListener(self.node_id, NetworkOptions(), None)
            self.listener.clients.listens(await self.listener.listen("127.0.0.1", 0), None)
            self.listener.clients.is_reached_at({self.port})
        return self

    async def kill(self):
        server, self.server = self.server, None
        if self.listener is not None:
            self.listener.close()
        for connection in self.connections:
            connection.abort("killed")
        if server is not None:
            await server.stop(None)

    def _header(self, code=ResponseCode.SUCCESS, message="", header=None):
        header = header or self.group.header(self.node_id, code, message)
        return ledger_pb2.ResponseHeader(
            code=header.code,
            message=header.message,
            group=self.group.name,
            node_id=header.node_id,
            term=header.term,
            leader_id=header.leader_id,
            leader_address=header.leader_address,
        )

    def _wrong_group(self, request):
        if request.group not in {self.group.name, ""}:
            return self._header(ResponseCode.UNKNOWN_GROUP, f"no group {request.group}")
        return None

    async def _hang(self):
        if self.hang:
            await asyncio.Event().wait()

    async def _open_session(self, request, context):
        answer = self.group.open_session(self.node_id, request.client_id)
        return ledger_pb2.OpenSessionResponse(
            header=self._header(header=answer.header),
            session_id=answer.session_id,
            next_sequence=answer.next_sequence,
        )

    def judge(self, request):
        """Return what the script says of a batch, and the answer to it (None: there is none)."""
        batch = AppendBatch(request.request_id, request.session_id, request.first_sequence, tuple(request.bodies))
        verdict, answer = self.group.judge(self.node_id, batch)
        if answer is None:
            return verdict, None
        return verdict, ledger_pb2.AppendBatchResponse(
            header=self._header(header=answer.header),
            runs=[ledger_pb2.IndexRun(first_index=r.first_index, count=r.count, term=r.term) for r in answer.runs],
            request_id=answer.request_id,
        )

    async def _append_stream(self, requests, context):
        lane = Lane(self)
        if self.listener is not None:
            asked = dict(context.invocation_metadata() or ()).get(FRAMES_KEY)
            offer = self.listener.clients.offer(asked, lane.adopt)
            if offer is not None:
                await context.send_initial_metadata(offer.metadata)
        async for request in requests:
            await self._hang()
            verdict, answer = self.judge(request)
            lane.took()
            if verdict in {BREAK, APPEND_AND_BREAK}:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "scripted")
            if answer is not None:
                yield answer

    async def _metadata(self, request, context):
        await self._hang()
        if wrong := self._wrong_group(request):
            return ledger_pb2.MetadataResponse(header=wrong)
        answer = self.group.metadata(self.node_id)
        return ledger_pb2.MetadataResponse(
            header=self._header(header=answer.header),
            members=[ledger_pb2.Member(node_id=k, address=v) for k, v in answer.members.items()],
            max_entry_bytes=answer.max_entry_bytes,
            max_batch_bytes=answer.max_batch_bytes,
            max_batch_entries=answer.max_batch_entries,
        )

    def _readable(self, request):
        if request.mode != ledger_pb2.READ_MODE_LOCAL_COMMITTED and self.group.leader is None:
            return self._header(ResponseCode.NOT_LEADER, "no leader")
        return None

    async def _get(self, request, context):
        await self._hang()
        self.reads.append(request.index)
        if refusal := self._wrong_group(request) or self._readable(request):
            return ledger_pb2.GetResponse(header=refusal)
        if not 0 <= request.index < len(self.group.log):
            return ledger_pb2.GetResponse(header=self._header(ResponseCode.INDEX_OUT_OF_RANGE, "out of range"))
        kind, term, session_id, body = self.group.log[request.index]
        entry = ledger_pb2.Entry(
            index=request.index, term=term, pos=request.index * 1000, type=int(kind), session_id=session_id, body=body
        )
        return ledger_pb2.GetResponse(header=self._header(), entry=entry)

    async def _read(self, request, context):
        await self._hang()
        self.reads.append((request.from_index, request.to_index, request.follow))
        if refusal := self._wrong_group(request) or self._readable(request):
            yield ledger_pb2.ReadResponse(header=refusal)
            return
        commit = len(self.group.log) - 1
        last = request.to_index if request.to_index >= 0 or request.follow else commit
        if not request.follow and (request.from_index > commit + 1 or last > commit):
            header = self._header(ResponseCode.INDEX_OUT_OF_RANGE, "beyond the end")
            yield ledger_pb2.ReadResponse(header=header, commit_index=commit, next_index=request.from_index)
            return
        at, sent = request.from_index, 0
        while last < 0 or at <= last:
            commit = len(self.group.log) - 1
            if at > commit and not request.follow:
                break
            if at > commit:
                await self.group.committed.wait()
                continue
            upto = min(commit, at + 9, last if last >= 0 else commit)
            end = last >= 0 and upto == last
            yield ledger_pb2.ReadResponse(
                header=self._header(),
                data=self.group.encode(at, upto),
                commit_index=commit,
                next_index=upto + 1,
                end=end,
            )
            sent += upto + 1 - at
            at = upto + 1
            if end:
                return
            if self.read_break_after is not None and sent >= self.read_break_after:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "scripted")
        yield ledger_pb2.ReadResponse(header=self._header(), commit_index=commit, next_index=at, end=True)

    async def _status(self, request, context):
        await self._hang()
        if wrong := self._wrong_group(request):
            return admin_pb2.StatusResponse(header=wrong)
        peers = [
            admin_pb2.PeerStatus(node_id=node, address=address, connected=True)
            for node, address in self.group.addresses.items()
            if node != self.node_id
        ]
        role = "leader" if self.group.leader == self.node_id else "follower"
        return admin_pb2.StatusResponse(
            header=self._header(),
            role=role,
            term=self.group.term,
            node_id=self.node_id,
            group=self.group.name,
            address=self.address,
            commit_index=len(self.group.log) - 1,
            peers=peers,
        )

    async def _transfer(self, request, context):
        self.transfers.append(request.target)
        if self.group.leader != self.node_id:
            return admin_pb2.TransferLeadershipResponse(header=self._header(ResponseCode.NOT_LEADER, "not leader"))
        others = [node for node in self.group.node_ids if node != self.node_id]
        self.group.elect(request.target or others[0])
        return admin_pb2.TransferLeadershipResponse(header=self._header(), new_leader_id=self.group.leader)

    async def _step_down(self, request, context):
        if self.group.leader != self.node_id:
            return admin_pb2.StepDownResponse(header=self._header(ResponseCode.NOT_LEADER, "not leader"))
        self.group.elect(None)
        return admin_pb2.StepDownResponse(header=self._header())


def _out(message):
    return message.SerializeToString()


class ChaosScript:
    """A random verdict for every batch, from a seed; counts what it forced."""

    def __init__(self, seed, share):
        self._rng = random.Random(seed)
        self._share = share
        self.forced = 0

    def __call__(self, node_id, batch):
        if self._rng.random() >= self._share:
            return OK
        self.forced += 1
        return self._rng.choice(
            [
                APPEND_AND_BREAK,
                BREAK,
                refuse(ResponseCode.LEADER_PENDING_FULL),
                refuse(ResponseCode.NOT_LEADER),
                refuse(ResponseCode.LEADER_NOT_READY),
                append_then(ResponseCode.WAIT_QUORUM_ACK_TIMEOUT),
                append_then(ResponseCode.TERM_CHANGED),
                append_then(ResponseCode.INTERNAL_ERROR),
            ]
        )


class Sequence:
    """A script from a list of verdicts; `OK` after its end."""

    def __init__(self, *verdicts):
        self._verdicts = deque(verdicts)

    def __call__(self, node_id, batch):
        return self._verdicts.popleft() if self._verdicts else OK
