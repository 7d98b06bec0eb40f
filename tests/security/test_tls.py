"""TLS between real nodes and clients: who gets in, who does not, and that certificates change without a restart."""

from __future__ import annotations

import asyncio
import socket
import ssl

import grpc
import pytest
from grpc import aio

from dledger import AccessDeniedError, ClientTls, ConfigError, DLedgerError
from dledger.rpc.links import GROUP_KEY, NODE_KEY, TARGET_KEY
from dledger.v1 import ledger_pb2, raft_pb2
from tests.security.conftest import APP, OPS, Nodes, client_tls, eventually, tls_settings, until

pytestmark = pytest.mark.asyncio

METADATA = "/dledger.v1.LedgerService/Metadata"
ASK = ledger_pb2.MetadataRequest(group="g").SerializeToString()


async def start_all(nodes: Nodes, certs, **settings):
    for node_id in nodes.node_ids:
        await nodes.start(node_id, **tls_settings(certs, node_id), **settings)
    return await nodes.wait_leader()


def serial_at(port: int, certs) -> int:
    """The serial number of the certificate that a port shows."""
    context = ssl.create_default_context(cafile=str(certs / "ca.pem"))
    context.load_cert_chain(certs / "client.pem", certs / "client.key")
    context.set_alpn_protocols(["h2"])
    with socket.create_connection(("127.0.0.1", port), 5) as raw, context.wrap_socket(raw, server_hostname="n0") as tls:
        found = tls.getpeercert()
    assert found is not None
    return int(str(found["serialNumber"]), 16)


async def refusal(call) -> grpc.StatusCode:
    try:
        await call
    except aio.AioRpcError as error:
        return error.code()
    raise AssertionError("it was let in")


async def test_a_group_under_mutual_tls_replicates_and_fails_over(group, certs):
    nodes = group(3)
    leader = await start_all(nodes, certs)
    async with nodes.connect(tls=client_tls(certs)) as client:
        first = await client.append(b"one")
        await nodes.running.pop(leader).stop()
        second = await client.append(b"two", timeout=15)
        assert second.index > first.index
        assert [entry.body async for entry in client.read()] == [b"one", b"two"]


async def test_callers_without_a_certificate_of_the_ca_are_not_let_in(group, certs, tmp_path):
    from dledger.security.dev_certs import write_dev_certificates

    nodes = group(1)
    await start_all(nodes, certs)
    write_dev_certificates(tmp_path / "other", ["n0"], ["127.0.0.1"])
    ca = (certs / "ca.pem").read_bytes()
    foreign = [(tmp_path / "other" / name).read_bytes() for name in ("client.key", "client.pem")]
    makers = [
        lambda: aio.insecure_channel(nodes.address("n0")),
        lambda: aio.secure_channel(nodes.address("n0"), grpc.ssl_channel_credentials(ca)),
        lambda: aio.secure_channel(nodes.address("n0"), grpc.ssl_channel_credentials(ca, *foreign)),
    ]
    for make in makers:
        async with make() as channel:
            assert await refusal(channel.unary_unary(METADATA)(ASK, timeout=3)) is grpc.StatusCode.UNAVAILABLE
    async with nodes.connect(tls=client_tls(certs)) as client:
        await client.append(b"x")


async def test_a_client_does_not_talk_to_a_node_of_another_ca(group, certs, tmp_path):
    from dledger.security.dev_certs import write_dev_certificates

    nodes = group(1)
    await start_all(nodes, certs)
    write_dev_certificates(tmp_path / "other", ["n0"], ["127.0.0.1"])
    tls = ClientTls(str(tmp_path / "other" / "ca.pem"), str(certs / "client.pem"), str(certs / "client.key"))
    async with nodes.connect(tls=tls, timeout=1) as client:
        with pytest.raises(DLedgerError):
            await client.append(b"x")
    assert nodes.running["n0"].driver.core.last_index == 0  # the no-op of the term


async def raft_calls(address: str, certs, shown: str, claimed: str) -> list[str]:
    """Open a Raft stream and ask for a vote as ``claimed`` with the certificate of ``shown``; how each is refused."""
    pem = [(certs / name).read_bytes() for name in ("ca.pem", f"{shown}.key", f"{shown}.pem")]
    metadata = ((GROUP_KEY, "g"), (NODE_KEY, claimed), (TARGET_KEY, "n0"))
    vote = raft_pb2.RequestVoteRequest(
        group="g", sender=claimed, term=99, target="n0", last_log_index=-1, last_log_term=-1
    )
    ends = []
    async with aio.secure_channel(address, grpc.ssl_channel_credentials(*pem)) as channel:
        stream = channel.stream_stream("/dledger.v1.RaftService/Replicate")(metadata=metadata)
        try:
            received = await asyncio.wait_for(stream.initial_metadata(), 30)
            if NODE_KEY in {str(key) for key, _ in received}:
                ends.append("admitted")
                stream.cancel()
            else:
                ends.append(f"{(await stream.code()).name}: {await stream.details()}")
        except aio.AioRpcError as error:
            ends.append(f"{error.code().name}: {error.details()}")
        call = channel.unary_unary("/dledger.v1.RaftService/RequestVote")(vote.SerializeToString(), timeout=5)
        try:
            await call
            ends.append("admitted")
        except aio.AioRpcError as error:
            ends.append(f"{error.code().name}: {error.details()}")
    return ends


@pytest.mark.parametrize("shown", ["n2", "client"])
async def test_a_peer_must_be_named_by_its_certificate(group, certs, shown):
    """A certificate of the CA is not enough: n2's and the client's are no good for claiming to be n1."""
    nodes = group(3)
    server = await nodes.start("n0", **tls_settings(certs, "n0"))
    for end in await raft_calls(nodes.address("n0"), certs, shown, "n1"):
        assert end.startswith("PERMISSION_DENIED: NOT_AUTHENTICATED: 'n1' is not named by the certificate it shows"), (
            end
        )
        assert shown in end
    assert server.driver.core.term < 99


async def test_the_peer_itself_is_let_in(group, certs):
    nodes = group(3)
    await nodes.start("n0", **tls_settings(certs, "n0"))
    assert await raft_calls(nodes.address("n0"), certs, "n1", "n1") == ["admitted", "admitted"]


async def test_a_node_connects_to_nobody_who_is_not_the_peer(group, certs):
    """n1's address is taken by a holder of n2's certificate: n0 never opens a stream to it."""
    nodes = group(3)
    impostor = aio.server()
    pem = [(certs / name).read_bytes() for name in ("n2.key", "n2.pem", "ca.pem")]
    calls = []

    async def taken(_, context):
        calls.append(context.invocation_metadata())

    handlers = {"Replicate": grpc.stream_stream_rpc_method_handler(taken)}
    impostor.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("dledger.v1.RaftService", handlers),))
    credentials = grpc.ssl_server_credentials([(pem[0], pem[1])], pem[2], require_client_auth=True)
    impostor.add_secure_port(nodes.address("n1"), credentials)
    await impostor.start()
    try:
        server = await nodes.start("n0", **tls_settings(certs, "n0"))
        await nodes.start("n2", **tls_settings(certs, "n2"))
        await nodes.wait_leader()  # n0 and n2 are a majority, so there has been time for links
        assert not calls
        assert not next(peer for peer in server.status().peers if peer.node_id == "n1").connected
    finally:
        await impostor.stop(0)


async def test_the_client_port_asks_for_a_token_instead_of_a_certificate_and_has_no_raft(group, certs, tokens):
    nodes = group(1)
    server = await nodes.start(
        "n0", **tls_settings(certs, "n0"), tokensFile=str(tokens), tlsClientPort="0", electionTimeoutMs="600"
    )
    await nodes.wait_leader()
    assert server._grpc is not None
    port = server._grpc.client_port
    ca = (certs / "ca.pem").read_bytes()
    async with aio.secure_channel(f"127.0.0.1:{port}", grpc.ssl_channel_credentials(ca)) as channel:
        assert await refusal(channel.unary_unary(METADATA)(ASK, timeout=3)) is grpc.StatusCode.UNAUTHENTICATED
        bearer = (("authorization", f"Bearer {APP}"),)
        assert await channel.unary_unary(METADATA)(ASK, timeout=3, metadata=bearer)
        vote = raft_pb2.RequestVoteRequest(group="g", sender="n0", term=9, target="n0").SerializeToString()
        call = channel.unary_unary("/dledger.v1.RaftService/RequestVote")(vote, timeout=3, metadata=bearer)
        try:
            answer = raft_pb2.RequestVoteResponse.FromString(await call)
            assert not answer.granted  # n0 is no other member
        except aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    from dledger import connect

    async with connect(
        {"n0": f"127.0.0.1:{port}"}, group="g", tls=ClientTls(str(certs / "ca.pem")), token=APP
    ) as client:
        await client.append(b"x")


async def test_certificates_change_without_a_restart(group, certs, tmp_path):
    """Everything is signed anew by another CA: the nodes show it, connect with it, and no stream breaks for it."""
    from dledger.security.dev_certs import write_dev_certificates

    nodes = group(3)
    leader = await start_all(nodes, certs)
    before = serial_at(nodes.ports["n0"], certs)
    term = nodes.running[leader].driver.core.term
    await eventually(lambda: all(server.driver.core.term == term for server in nodes.running.values()))
    terms = {node: server.driver.core.term for node, server in nodes.running.items()}
    async with nodes.connect(tls=client_tls(certs)) as client:
        await client.append(b"old")
        write_dev_certificates(certs, nodes.node_ids, ["localhost", "127.0.0.1"])

        def shown() -> bool:
            try:
                return serial_at(nodes.ports["n0"], certs) != before
            except (ssl.SSLError, OSError):
                return False

        await until(lambda: asyncio.to_thread(shown))
        await client.append(b"still here")
    assert {node: server.driver.core.term for node, server in nodes.running.items()} == terms
    async with nodes.connect(tls=client_tls(certs)) as client:
        await client.append(b"new")
    # A node that was away comes back with new files, to peers that were never restarted.
    away = next(node for node in nodes.node_ids if node != leader)
    await nodes.running.pop(away).stop()
    back = await nodes.start(away, **tls_settings(certs, away))
    goal = nodes.running[leader].driver.core.commit_index
    await eventually(lambda: back.driver.core.commit_index >= goal, what="the node that came back has caught up")


async def test_a_node_does_not_start_with_certificates_that_its_peers_would_refuse(group, certs):
    nodes = group(1)
    with pytest.raises(ConfigError, match='must name "n0" among its DNS names'):
        await nodes.start("n0", **tls_settings(certs, "n1"))
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        await nodes.start("n0", **tls_settings(certs, "nobody"))


async def test_a_wrong_token_is_a_definite_answer_at_once(group, certs, tokens):
    nodes = group(3)
    await start_all(nodes, certs, tokensFile=str(tokens))
    loop = asyncio.get_running_loop()
    for token in (None, "wrong-token-0123456789", OPS):
        begun = loop.time()
        async with nodes.connect(tls=client_tls(certs), token=token, timeout=30) as client:
            with pytest.raises(AccessDeniedError) as caught:
                await client.append(b"x")
            assert not caught.value.retriable
            with pytest.raises(AccessDeniedError):
                await client.get(0)
        assert loop.time() - begun < 10


async def test_the_status_without_grpc_leaves_nodes_with_tls_to_grpc(group, certs):
    from dledger.client.bare_status import bare_status

    nodes = group(1)
    await start_all(nodes, certs)
    assert await asyncio.to_thread(bare_status, {"n0": nodes.address("n0")}, "g") is None
