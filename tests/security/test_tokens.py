"""Tokens: the file, who may do what (every method of every service), and that comparison gives nothing away."""

from __future__ import annotations

import asyncio
import hashlib
import hmac

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2
from structlog.testing import capture_logs

from dledger.errors import ConfigError
from dledger.security.tokens import NEEDED_RIGHTS, Right, TokenInterceptor, TokenStore, parse_tokens
from dledger.v1 import admin_pb2, ledger_pb2, raft_pb2
from tests.security.conftest import APP, OPS, READER, SECRETS, WRITER, until

SERVICES = [
    service for file in (ledger_pb2, admin_pb2, raft_pb2) for service in file.DESCRIPTOR.services_by_name.values()
]
METHODS = [f"/{service.full_name}/{method.name}" for service in SERVICES for method in service.methods]
GUARDED = [method for method in METHODS if "RaftService" not in method]


# ---- the file


def test_tokens_are_kept_as_digests_only():
    digest = hashlib.sha256(b"0123456789abcdef").hexdigest()
    text = f"# comment\n\na read 0123456789abcdef\nb write,admin sha256:{digest.upper()}\n"
    first, second = parse_tokens(text, "t")
    assert first.digest == second.digest == bytes.fromhex(digest)
    assert (first.name, first.rights) == ("a", {Right.READ})
    assert second.rights == {Right.WRITE, Right.ADMIN}
    assert "0123456789abcdef" not in repr((first, second))


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("a read", "2 words"),
        ("a read s3cret-s3cret-s3cret more", "4 words"),
        ("a fly s3cret-s3cret-s3cret", '"fly": rights are read, write, admin'),
        ("a , s3cret-s3cret-s3cret", "rights are"),
        ("a read s3cret", "not 16 to 256"),
        ("a read sha256:s3cret", "not 16 to 256"),
        ("a/b read s3cret-s3cret-s3cret", "the name has other characters"),
        ("ok read s3cret-s3cret-s3cret", '"ok" stands twice'),
    ],
)
def test_a_bad_line_is_named_and_its_token_not_shown(line, what):
    with pytest.raises(ConfigError, match=r"^t:2:1: ") as caught:
        parse_tokens(f"ok read 0123456789abcdef\n{line}\n", "t")
    assert what in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_file_without_tokens_or_that_everybody_may_write_is_refused(tmp_path):
    path = tmp_path / "tokens"
    path.write_text("# nobody\n")
    with pytest.raises(ConfigError, match="no token in it"):
        TokenStore(str(path))
    path.write_text("a read 0123456789abcdef\n")
    path.chmod(0o666)
    with pytest.raises(ConfigError, match="chmod o-w"):
        TokenStore(str(path))
    with pytest.raises(ConfigError, match="cannot be read"):
        TokenStore(str(tmp_path / "none"))


def test_every_token_is_compared_whatever_is_presented(tokens, monkeypatch):
    """The time says neither how much of a token is right nor where in the file it stands."""
    store = TokenStore(str(tokens))
    compared = []

    def recording(one: bytes, two: bytes) -> bool:
        compared.append((len(one), len(two)))
        return one == two

    monkeypatch.setattr(hmac, "compare_digest", recording)
    for presented, name in ((APP, "app"), (OPS, "ops"), (APP[:-1] + "!", None), ("", None), ("x" * 5000, None)):
        compared.clear()
        found = store.find(presented)
        assert (found.name if found else None) == name
        assert compared == [(32, 32)] * 4


# ---- rights


def test_every_method_has_a_right_or_is_between_nodes():
    assert set(GUARDED) == set(NEEDED_RIGHTS)


class Details:
    def __init__(self, method: str, token: str | None, scheme: str = "Bearer") -> None:
        self.method = method
        self.invocation_metadata = () if token is None else (("authorization", f"{scheme} {token}"),)


async def passes(interceptor: TokenInterceptor, details: Details) -> bool:
    reached = object()

    async def continuation(_):
        return reached

    return await interceptor.intercept_service(continuation, details) is reached


@pytest.mark.asyncio
@pytest.mark.parametrize("method", GUARDED)
async def test_who_may_do_what(tokens, method):
    interceptor = TokenInterceptor(TokenStore(str(tokens)))
    name = method.rpartition("/")[2]
    writes = name in {"OpenSession", "Append", "AppendBatch", "AppendStream"}
    reads = name in {"Get", "Read", "ReadStream"}
    everybody = name in {"Metadata", "Status"}
    allowed = {
        APP: writes or reads or everybody,
        READER: reads or everybody,
        WRITER: writes or everybody,
        OPS: everybody or not (writes or reads),
        "unknown-token-0123456": False,
        None: False,
    }
    for token, may in allowed.items():
        assert await passes(interceptor, Details(method, token)) is may, (method, token)
    assert not await passes(interceptor, Details(method, APP, scheme="Basic"))


@pytest.mark.asyncio
async def test_methods_nobody_has_thought_of_need_admin(tokens):
    interceptor = TokenInterceptor(TokenStore(str(tokens)))
    for method in ("/dledger.v1.LedgerService/Erase", "/other.Service/Any", ""):
        assert not await passes(interceptor, Details(method, APP))
        assert await passes(interceptor, Details(method, OPS))
    assert await passes(interceptor, Details("/grpc.health.v1.Health/Check", None))
    assert await passes(interceptor, Details("/grpc.reflection.v1alpha.ServerReflection/Info", READER))
    assert not await passes(interceptor, Details("/grpc.reflection.v1alpha.ServerReflection/Info", None))


# ---- over the wire


@pytest.mark.asyncio
async def test_calls_of_every_kind_are_refused_with_the_reason_and_health_is_open(group, tokens):
    nodes = group(1)
    server = await nodes.start("n0", tokensFile=str(tokens))
    await nodes.wait_leader()
    bearer = (("authorization", f"Bearer {READER}"),)
    with capture_logs() as logs:
        async with aio.insecure_channel(nodes.address("n0")) as channel:
            for metadata, code in ((None, "UNAUTHENTICATED"), (bearer, "PERMISSION_DENIED")):
                unary = channel.unary_unary("/dledger.v1.LedgerService/Append")(b"", timeout=5, metadata=metadata)
                assert (await unary.code()).name == code
                stream = channel.stream_stream("/dledger.v1.LedgerService/AppendStream")(metadata=metadata, timeout=5)
                with pytest.raises(aio.AioRpcError) as caught:
                    await stream.write(b"x")
                    await stream.read()
                assert caught.value.code().name == code
            read = channel.unary_stream("/dledger.v1.LedgerService/Read")(b"", timeout=5)
            assert await read.code() is grpc.StatusCode.UNAUTHENTICATED
            for _ in range(200):
                assert await channel.unary_unary("/dledger.v1.LedgerService/Append")(b"", timeout=5).code()
            check = channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=5)
            assert health_pb2.HealthCheckResponse.FromString(await check).status
    denied = server._observer._tokens.denied
    assert denied == {"unauthenticated": 203, "permission_denied": 2}
    told = [event for event in logs if event["event"] == "access_denied"]
    assert len(told) == 2  # a flood is logged once for each reason
    assert not any(secret in str(logs) for secret in SECRETS)


@pytest.mark.asyncio
async def test_a_token_that_is_taken_away_stops_working(group, tokens):
    nodes = group(1)
    await nodes.start("n0", tokensFile=str(tokens))
    await nodes.wait_leader()
    ask = ledger_pb2.MetadataRequest(group="g").SerializeToString()
    async with aio.insecure_channel(nodes.address("n0")) as channel:

        async def code():
            call = channel.unary_unary("/dledger.v1.LedgerService/Metadata")
            return await call(ask, timeout=5, metadata=(("authorization", f"Bearer {APP}"),)).code()

        assert await code() is grpc.StatusCode.OK
        tokens.write_text(f"app read {APP}-new\n")

        async def refused():
            return await code() is not grpc.StatusCode.OK

        await until(refused)
        assert await code() is grpc.StatusCode.UNAUTHENTICATED
        tokens.write_text("nonsense\n")  # not taken: what was known last goes on
        assert await code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.asyncio
async def test_the_status_without_grpc_shows_its_token(group, tokens):
    """Without one, or with a wrong one, gRPC is left to say so."""
    from dledger.client.bare_status import bare_status

    nodes = group(1)
    await nodes.start("n0", tokensFile=str(tokens))
    await nodes.wait_leader()
    at = {"n0": nodes.address("n0")}
    for token in (None, "wrong-token-01234567"):
        assert await asyncio.to_thread(bare_status, at, "g", token) is None
    for token in (READER, OPS):
        found = await asyncio.to_thread(bare_status, at, "g", token)
        assert found is not None and found[0].node_id == "n0"
