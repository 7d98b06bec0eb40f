"""The server: the port, health, reflection, and what it makes of garbage."""

from __future__ import annotations

import asyncio
import random
import socket

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from dledger.errors import UnavailableError, UnexpectedArgumentError
from dledger.rpc.server import AddressInUseError, GrpcServer
from dledger.rpc.transport import GrpcTransport
from dledger.v1 import admin_pb2, ledger_pb2, raft_pb2
from tests.rpc.fakes import GROUP, FakeBackend, eventually

pytestmark = pytest.mark.asyncio

SERVICES = {
    service.full_name: service
    for module in (raft_pb2, ledger_pb2, admin_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
}
METHODS = [(name, method) for name, service in SERVICES.items() for method in service.methods]


def server_at(address):
    return GrpcServer(FakeBackend(), GrpcTransport(GROUP, "n0", {}), address)


# -- the port


async def test_a_port_in_use_is_named(node):
    address = f"127.0.0.1:{node.port}"
    with pytest.raises(AddressInUseError, match=f"cannot listen on {address}: Address already in use") as caught:
        await server_at(address).start()
    assert isinstance(caught.value, UnavailableError)


async def test_an_address_of_another_machine_is_named():
    with pytest.raises(AddressInUseError, match=r"cannot listen on 192\.0\.2\.1:0: Cannot assign requested address"):
        await server_at("192.0.2.1:0").start()


@pytest.mark.parametrize("address", ["", "host", ":80", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536", "127.0.0.1:-1"])
async def test_an_address_has_a_form(address):
    with pytest.raises(UnexpectedArgumentError, match="is not host:port"):
        await server_at(address).start()


async def test_a_port_is_free_again_after_stop():
    server = server_at("127.0.0.1:0")
    port = await server.start()
    await server.stop(0)
    await server.stop(0)
    again = server_at(f"127.0.0.1:{port}")
    assert await again.start() == port
    await again.stop(0)


@pytest.mark.parametrize("address", ["localhost:0", "0.0.0.0:0"])
async def test_a_name_and_all_addresses_can_be_listened_on(address):
    server = server_at(address)
    port = await server.start()
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await channel.unary_unary("/dledger.v1.LedgerService/Metadata")(b"", wait_for_ready=True, timeout=5)
    await server.stop(0)


async def test_stop_does_not_wait_for_streams_that_never_end(node, channel):
    """An idle append stream and a read at the tail are ended, not waited for until the grace is over."""
    append = channel.stream_stream("/dledger.v1.LedgerService/AppendStream")()
    await append.write(ledger_pb2.AppendBatchRequest(group=GROUP, bodies=[b"x"]).SerializeToString())
    await append.read()
    request = ledger_pb2.ReadRequest(group=GROUP, to_index=-1, follow=True).SerializeToString()
    read = channel.unary_stream("/dledger.v1.LedgerService/Read")(request)
    await read.read()
    await eventually(lambda: node.backend.read_waits)
    await asyncio.wait_for(node.server.stop(60), 30)
    for call in (append, read):
        assert await call.code() is grpc.StatusCode.UNAVAILABLE


# -- health, reflection


async def test_health_follows_set_serving(node, channel):
    stub = health_pb2_grpc.HealthStub(channel)

    async def check(service):
        return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status

    response = health_pb2.HealthCheckResponse
    for service in ("", "dledger.v1.LedgerService"):
        assert await check(service) == response.NOT_SERVING
    watch = stub.Watch(health_pb2.HealthCheckRequest(service="dledger.v1.LedgerService"))
    assert (await watch.read()).status == response.NOT_SERVING
    node.server.set_serving(True)
    assert (await asyncio.wait_for(watch.read(), 30)).status == response.SERVING
    assert await check("") == response.SERVING
    node.server.set_serving(False)
    assert (await asyncio.wait_for(watch.read(), 30)).status == response.NOT_SERVING
    watch.cancel()
    with pytest.raises(aio.AioRpcError) as caught:
        await check("nobody")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_reflection_lists_and_describes_the_services(channel):
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest
    call = stub.ServerReflectionInfo(
        iter([request(list_services=""), request(file_containing_symbol="dledger.v1.AppendRequest")])
    )
    listed, described = [answer async for answer in call]
    names = {service.name for service in listed.list_services_response.service}
    assert names >= {*SERVICES, "grpc.health.v1.Health"}
    assert described.file_descriptor_response.file_descriptor_proto


# -- garbage


def noise(seed):
    """Bytes that are no message, bytes that are one by chance, and many of them; the same for the same seed."""
    rng = random.Random(seed)
    return [b"", b"\x00", b"\xff" * 40, *(rng.randbytes(rng.randrange(200)) for _ in range(30)), rng.randbytes(100_000)]


@pytest.mark.parametrize(
    ("service", "method"),
    [(name, method) for name, method in METHODS if not method.client_streaming],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
async def test_garbage_to_a_method_is_answered_with_a_code_and_calls_nothing(node, channel, service, method):
    path = f"/{service}/{method.name}"
    kind = {m.full_name: getattr(module, m.name)
            for module in (raft_pb2, ledger_pb2, admin_pb2)
            for m in module.DESCRIPTOR.message_types_by_name.values()}  # fmt: skip
    answer_type = kind[method.output_type.full_name]
    for data in noise(service + method.name):
        if method.server_streaming:
            call = channel.unary_stream(path)(data)
            answers = [answer async for answer in call]
        else:
            answers = [await channel.unary_unary(path)(data)]
        (answer,) = (answer_type.FromString(each) for each in answers)
        code = answer.code if service.endswith("RaftService") else answer.header.code
        if data == b"" and method.name == "Status":
            assert code == 200  # An empty request is a status request for whatever group is here.
            node.backend.calls.clear()
        else:
            assert code in {400, 411}
    assert node.backend.calls == []
    assert node.handler.messages == []


async def test_garbage_on_the_append_stream_is_answered_with_a_code_and_calls_nothing(node, channel):
    call = channel.stream_stream("/dledger.v1.LedgerService/AppendStream")()
    sent = noise("stream")
    for data in sent:
        await call.write(data)
    await call.done_writing()
    codes = [ledger_pb2.AppendBatchResponse.FromString(answer).header.code async for answer in call]
    assert len(codes) == len(sent)
    assert set(codes) <= {400, 411}
    assert node.backend.calls == []


async def test_a_message_over_grpcs_limit_is_refused_by_grpc(node, channel):
    with pytest.raises(aio.AioRpcError) as caught:
        await channel.unary_unary("/dledger.v1.LedgerService/Append")(b"x" * (9 * 1024 * 1024))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert node.backend.calls == []


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 500,
        random.Random(1).randbytes(5000),
        b"",
    ],
    ids=["http1", "tls", "http2-bad-frames", "random", "nothing"],
)
async def test_garbage_on_the_port_disturbs_nobody(node, channel, data):
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    try:
        writer.write(data)
        await writer.drain()
        if data:
            async with asyncio.timeout(30):
                while await reader.read(4096):
                    pass  # Until the server closes the connection.
        answer = await channel.unary_unary("/dledger.v1.LedgerService/Metadata")(
            ledger_pb2.MetadataRequest(group=GROUP).SerializeToString()
        )
        assert ledger_pb2.MetadataResponse.FromString(answer).header.code == 200
    except ConnectionResetError:
        pass  # The server closed it with bytes of ours unread.
    finally:
        writer.close()
    assert node.backend.calls == []
    assert node.handler.events == []


async def test_the_port_is_not_shared(node):
    """SO_REUSEPORT would let a second server take half of the connections."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        with pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", node.port))
