"""The status that is asked without gRPC: the same answer as through gRPC, and None wherever gRPC must be asked instead."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from grpc import aio
from hypothesis import given, settings
from hypothesis import strategies as st

from dledger.client import bare_status as module
from dledger.client.bare_call import CallError, unary_call
from dledger.client.bare_status import bare_status
from dledger.client.bare_wire import STATUS_RESPONSE, Schema, decode_message, encode_text
from dledger.client.status_answer import node_status
from dledger.local_group import free_ports
from dledger.protobuf_wire import WireError
from dledger.types import DownNode, NodeStatus
from dledger.v1 import admin_pb2

HOST = "127.0.0.1"
METHOD = "/dledger.v1.AdminService/Status"

# ---------------------------------------------------------------- the wire format

KINDS = {
    FieldDescriptor.TYPE_INT32: "int",
    FieldDescriptor.TYPE_INT64: "int",
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_STRING: "text",
}


def schema_of(descriptor: Descriptor) -> Schema:
    """What the tables must say, from protobuf's own description."""
    found: Schema = {}
    for field in descriptor.fields:
        inner = field.message_type
        kind = schema_of(inner) if inner is not None else KINDS[field.type]
        entry = inner is not None and inner.GetOptions().map_entry
        found[field.number] = type(STATUS_RESPONSE[1])(
            field.name, kind, "map" if entry else "list" if field.is_repeated else ""
        )
    return found


def test_the_tables_are_the_contract() -> None:
    assert schema_of(admin_pb2.StatusResponse.DESCRIPTOR) == STATUS_RESPONSE
    group = admin_pb2.StatusRequest.DESCRIPTOR.fields_by_name["group"]
    assert (group.number, group.type) == (module._GROUP_FIELD, FieldDescriptor.TYPE_STRING)


int64 = st.integers(-(2**63), 2**63 - 1)
text = st.text(max_size=5)
headers = st.builds(admin_pb2.StatusResponse().header.__class__, code=st.integers(-(2**31), 2**31 - 1), leader_id=text)
peers = st.builds(
    admin_pb2.PeerStatus,
    node_id=text,
    connected=st.booleans(),
    match_index=int64,
    sent=st.dictionaries(text, int64, max_size=3),
)
events = st.builds(admin_pb2.NodeEvent, number=int64, facts=st.dictionaries(text, text, max_size=3))
answers = st.builds(
    admin_pb2.StatusResponse,
    header=headers,
    role=text,
    term=int64,
    peers=st.lists(peers, max_size=3),
    tail=st.lists(st.builds(admin_pb2.LogRun, first_index=int64, term=int64), max_size=3),
    events=st.lists(events, max_size=3),
)


@given(answers)
@settings(max_examples=200, deadline=None)
def test_what_protobuf_writes_is_read_as_protobuf_reads_it(answer: admin_pb2.StatusResponse) -> None:
    found = decode_message(answer.SerializeToString(), STATUS_RESPONSE)
    assert node_status(found, "a:1") == node_status(answer, "a:1")
    assert found.header.code == answer.header.code


@given(text.map(lambda value: value * 40))
def test_the_question_is_what_protobuf_would_write(group: str) -> None:
    assert encode_text(1, group) == admin_pb2.StatusRequest(group=group).SerializeToString()


def test_fields_of_a_newer_node_are_passed_over() -> None:
    known = admin_pb2.StatusResponse(role="leader").SerializeToString()
    unknown = b"\x98\x06\x05" + b"\x9d\x06abcd" + b"\xa1\x06abcdefgh" + b"\xa2\x06\x02hi"  # 99, 99, 100, 100
    assert decode_message(unknown + known, STATUS_RESPONSE).role == "leader"


@given(st.binary(max_size=40))
def test_bytes_of_any_kind_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(WireError):
        decode_message(data, STATUS_RESPONSE)


# ---------------------------------------------------------------- the call


@contextmanager
def peer(talk: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server for one connection, which ``talk`` holds; yields its address."""
    with socket.create_server((HOST, 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                talk(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"{HOST}:{listener.getsockname()[1]}"
        finally:
            thread.join(10)
            assert not thread.is_alive()


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def answering(*frames: bytes) -> Callable[[socket.socket], None]:
    def talk(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"".join(frames))
        with contextlib.suppress(ConnectionResetError):
            while connection.recv(65536):  # until the client has gone
                pass

    return talk


MESSAGE = b"\0" + struct.pack(">I", 2) + b"ok"
TRAILERS = frame(1, 5, 1, b"")


@pytest.mark.parametrize(
    "frames",
    [
        [frame(0, 0, 1, MESSAGE), TRAILERS],
        [frame(0, 1, 1, MESSAGE)],
        [
            frame(4, 0, 0, b""),
            frame(6, 0, 0, b"12345678"),
            frame(8, 0, 0, b"\0\0\1\0"),
            frame(0, 0, 1, MESSAGE),
            TRAILERS,
        ],
        [frame(0, 0, 1, MESSAGE[:3]), frame(0, 0, 1, b""), frame(0, 0, 1, MESSAGE[3:]), TRAILERS],
        [frame(0, 8, 1, b"\3" + MESSAGE + b"\0\0\0"), TRAILERS],
        [frame(0, 0, 3, b"another stream"), frame(0, 0, 1, MESSAGE), TRAILERS],
    ],
    ids=["trailers", "no-trailers", "settings-ping-window", "in-parts", "padded", "other-stream"],
)
def test_an_answer_is_found_among_the_frames(frames: list[bytes]) -> None:
    with peer(answering(*frames)) as address:
        assert unary_call(address, METHOD, b"", 5.0) == b"ok"


@pytest.mark.parametrize(
    "frames",
    [
        [TRAILERS],
        [frame(3, 0, 1, b"\0\0\0\1")],
        [frame(7, 0, 0, bytes(8))],
        [frame(0, 0, 1, b"\1" + MESSAGE[1:]), TRAILERS],
        [frame(0, 0, 1, MESSAGE[:-1]), TRAILERS],
        [b"HTTP/1.1 400 Bad Request\r\n\r\n"],
    ],
    ids=["error-in-trailers", "reset", "go-away", "compressed", "short", "http1"],
)
def test_anything_else_is_left_to_grpc(frames: list[bytes]) -> None:
    with peer(answering(*frames)) as address, pytest.raises(CallError):
        unary_call(address, METHOD, b"", 5.0)


def test_a_peer_that_hangs_up_or_says_nothing() -> None:
    with peer(lambda connection: None) as address, pytest.raises((CallError, ConnectionResetError)):
        unary_call(address, METHOD, b"", 5.0)
    with peer(answering()) as address, pytest.raises(TimeoutError):
        unary_call(address, METHOD, b"", 0.05)


@pytest.mark.asyncio
@pytest.mark.parametrize("size", [0, 100_000, 3_000_000], ids=["empty", "several-frames", "beyond-the-default-window"])
async def test_grpc_servers_understand_it(size: int) -> None:
    """A real server of gRPC; the metadata and the answer arrive whole, whatever the size."""
    seen: list[tuple[bytes, dict[str, str]]] = []

    async def answer(request: bytes, context: aio.ServicerContext) -> bytes:
        seen.append((request, {key: str(value) for key, value in context.invocation_metadata() or ()}))
        return b"x" * size

    server = aio.server()
    handler = grpc.unary_unary_rpc_method_handler(answer)
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("dledger.v1.AdminService", {"Status": handler})]
    )
    port = server.add_insecure_port(f"{HOST}:0")
    await server.start()
    try:
        token = "t" * 300  # a length that takes two bytes
        found = await asyncio.to_thread(unary_call, f"{HOST}:{port}", METHOD, b"question", 10.0, token)
    finally:
        await server.stop(None)
    assert found == b"x" * size
    [(request, metadata)] = seen
    assert request == b"question"
    assert metadata["authorization"] == f"Bearer {token}"
    assert metadata["user-agent"].startswith("dledger/")


# ---------------------------------------------------------------- the group


def answer_of(node_id: str, *others: str) -> bytes:
    answer = admin_pb2.StatusResponse(node_id=node_id, group="g", role="follower")
    answer.header.code = 200
    answer.peers.extend(admin_pb2.PeerStatus(node_id=other) for other in others)
    return answer.SerializeToString()


def ask(monkeypatch: pytest.MonkeyPatch, given: dict[str, bytes | Exception]) -> list[NodeStatus | DownNode] | None:
    """Status of a group whose nodes (at ``<id>:1``) answer, or fail, as given."""

    def call(address: str, *_: object) -> bytes:
        found = given[address.partition(":")[0]]
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(module, "unary_call", call)
    return bare_status({node_id: f"{node_id}:1" for node_id in given}, "g", None, 5.0)


def test_every_node_has_its_place_and_a_dead_one_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = ConnectionRefusedError(111, "Connection refused")
    unknown = admin_pb2.StatusResponse(node_id="n3")
    unknown.header.code, unknown.header.message = 400, "no such group"
    found = ask(
        monkeypatch,
        {"n0": answer_of("n0", "n1"), "n1": refused, "n2": TimeoutError(), "n3": unknown.SerializeToString()},
    )
    assert found is not None
    assert isinstance(found[0], NodeStatus) and found[0].node_id == "n0"
    assert found[1:] == [
        DownNode("n1", "n1:1", "connection refused"),
        DownNode("n2", "n2:1", "no answer within 5 s"),
        DownNode("n3", "n3:1", "no such group"),
    ]


@pytest.mark.parametrize(
    "odd",
    [CallError("trailers"), ConnectionResetError(), b"\xff", answer_of("n7"), answer_of("n1", "n9")],
    ids=["not-plain", "reset", "garbage", "another-node", "unknown-member"],
)
def test_one_odd_answer_and_grpc_is_asked(monkeypatch: pytest.MonkeyPatch, odd: bytes | Exception) -> None:
    assert ask(monkeypatch, {"n0": answer_of("n0"), "n1": odd}) is None


def test_a_dead_node_without_an_id_is_left_to_those_who_know_its_name() -> None:
    address = f"{HOST}:{free_ports(1)[0]}"
    assert bare_status({address: address}, "g") is None
    assert bare_status({"n0": address}, "g") == [DownNode("n0", address, "connection refused")]
