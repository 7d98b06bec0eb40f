"""Whatever is wrong is said clearly, and changes nothing."""

from __future__ import annotations

import asyncio
import random
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest

from dledger import connect
from dledger.chaos.failover import log_digest
from dledger.cli.exit_codes import ExitCode
from dledger.errors import (
    EntryTooLargeError,
    IndexOutOfRangeError,
    Outcome,
    ResponseCode,
    UnexpectedArgumentError,
    UnknownGroupError,
)
from dledger.local_group import free_ports
from dledger.rpc.links import GROUP_KEY, NODE_KEY, RAFT_SERVICE, TARGET_KEY
from dledger.v1 import ledger_pb2, ledger_pb2_grpc, raft_pb2, raft_pb2_grpc
from tests.integration.conftest import REPOSITORY, Servers

# ---------------------------------------------------------------- processes that must not start


class Starter:
    """Runs ``dledger start`` and expects it to refuse."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        found = subprocess.run(
            [sys.executable, "-m", "dledger", "start", *arguments],
            capture_output=True,
            text=True,
            cwd=REPOSITORY,
            env=self._environment,
            timeout=30,
            check=False,
        )
        assert "Traceback" not in found.stderr
        assert found.stdout == ""
        return found


@pytest.fixture
def start(clean_environment: dict[str, str]) -> Starter:
    return Starter(clean_environment)


def flags(**values: str) -> list[str]:
    return [part for key, value in values.items() for part in ("-D", f"{key}={value}")]


@pytest.mark.parametrize(
    ("peers", "self_id", "words"),
    [
        ("n0-127.0.0.1", "n0", "dLegerPeers"),
        ("n0-127.0.0.1:70000", "n0", "70000"),
        ("n0-127.0.0.1:1;n0-127.0.0.1:2", "n0", "n0"),
        ("n0-127.0.0.1:1;n1-127.0.0.1:2", "n7", "n7"),
    ],
    ids=["no port", "port beyond 65535", "an id twice", "self is no peer"],
)
def test_peers_that_cannot_work(start: Starter, tmp_path: Path, peers: str, self_id: str, words: str) -> None:
    found = start(*flags(group="g", selfId=self_id, peers=peers, storeBaseDir=str(tmp_path / "store")))
    assert found.returncode == ExitCode.CONFIGURATION
    assert words in found.stderr
    assert not (tmp_path / "store").exists(), "a folder was made for a configuration that cannot work"


def test_all_mistakes_of_a_file_are_told_at_once_with_their_places(start: Starter, tmp_path: Path) -> None:
    conf = tmp_path / "node.conf"
    conf.write_text("dLegerGroup=g\ndLegerSelfId=n9\ndLegerPeers=n0-127.0.0.1:1\nflushDiskTyp=SYNC_FLUSH\nbindPort=x\n")
    found = start("-c", str(conf))
    assert found.returncode == ExitCode.CONFIGURATION
    for place, words in [("4:1", "did you mean"), ("5:", "bindPort"), ("2:", "n9")]:
        assert re.search(rf"node\.conf:{place}.*{words}", found.stderr), found.stderr


@pytest.mark.asyncio
async def test_a_folder_in_use_another_nodes_folder_another_groups_and_a_port_in_use(processes, start: Starter) -> None:
    group = await processes(nodes=1)
    node = group.node("n0")
    conf = str(node.conf_path)
    async with group.connect() as client:
        await client.append(b"kept")
        before = (await group.status())["n0"]

        locked = await asyncio.to_thread(start, "-c", conf, "-D", f"bindPort={free_ports(1)[0]}")
        assert locked.returncode == ExitCode.FAILED
        assert str(node.data_dir) in locked.stderr
        assert str(node.pid) in locked.stderr, "whose lock it is"

        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = str(taken.getsockname()[1])
            elsewhere = str(group.directory / "elsewhere")
            in_use = await asyncio.to_thread(start, "-c", conf, *flags(bindPort=port, storeBaseDir=elsewhere))
        assert in_use.returncode == ExitCode.FAILED
        assert f"127.0.0.1:{port}" in in_use.stderr
        assert "in use" in in_use.stderr

        after = (await group.status())["n0"]
        assert before is not None
        assert after is not None
        assert (after.term, after.last_index, after.pid) == (before.term, before.last_index, before.pid)
        assert (await client.append(b"undisturbed")).term == before.term
        index = await client.commit_index()
        end = (await client.get(index)).pos

    await group.stop()
    digest = log_digest(node.data_dir, end)
    other_group = await asyncio.to_thread(start, "-c", conf, "-D", "dLegerGroup=another")
    assert other_group.returncode == ExitCode.FAILED
    assert "another" in other_group.stderr
    assert "it" in other_group.stderr

    foreign = node.data_dir.with_name("dledger-n5")
    node.data_dir.rename(foreign)
    peers = f"n5-127.0.0.1:{free_ports(1)[0]}"
    other_node = await asyncio.to_thread(start, "-c", conf, *flags(dLegerSelfId="n5", dLegerPeers=peers))
    assert other_node.returncode == ExitCode.FAILED
    assert "belongs to node n0" in other_node.stderr
    foreign.rename(node.data_dir)
    assert log_digest(node.data_dir, end) == digest
    await group.restart("n0")
    await group.wait_leader()
    async with group.connect() as client:
        assert [entry.body async for entry in client.read()] == [b"kept", b"undisturbed"]


# ---------------------------------------------------------------- requests that must change nothing


@asynccontextmanager
async def unchanged(group: Servers) -> AsyncIterator[str]:
    """What happens inside must leave term, leader and log of every node as they were, and the group working."""
    leader = await group.wait_leader()
    await group.wait_caught_up()

    def state() -> list[tuple[object, ...]]:
        cores = [node.driver.core for node in group.nodes.values()]
        return [(core.term, core.vote, core.leader_id, core.last_index, core.commit_index) for core in cores]

    before = state()
    yield leader
    assert state() == before
    async with group.connect(session=False) as client:
        assert (await client.append(b"it goes on")).index == before[0][3] + 1


@pytest.mark.asyncio
async def test_requests_with_impossible_contents(servers) -> None:
    """By the library, and raw where the library would not even send it."""
    group: Servers = servers()
    await group.start()
    async with group.connect(session=False, timeout=5) as client:
        last = (await client.append(b"first")).index
        limit = group.config("n0").max_entry_bytes
        async with unchanged(group) as leader:
            with pytest.raises(EntryTooLargeError, match=str(limit)) as too_large:
                await client.append(b"x" * (limit + 1))
            assert too_large.value.outcome is Outcome.DEFINITE
            with pytest.raises(UnexpectedArgumentError) as empty:
                await client.append_many([])
            assert empty.value.outcome is Outcome.DEFINITE
            with pytest.raises(IndexOutOfRangeError, match=str(last)):
                await client.get(last + 1)
            with pytest.raises(IndexOutOfRangeError, match="-1"):
                await client.get(-1)
            with pytest.raises(IndexOutOfRangeError):
                _ = [entry async for entry in client.read(last + 2)]
            async with grpc.aio.insecure_channel(group.address(leader)) as channel:
                stub = ledger_pb2_grpc.LedgerServiceStub(channel)
                answers = [
                    (await stub.Append(ledger_pb2.AppendRequest(group="it", body=b"x" * (limit + 1))), 411),
                    (await stub.AppendBatch(ledger_pb2.AppendBatchRequest(group="it")), 420),
                    (await stub.Append(ledger_pb2.AppendRequest(group="other", body=b"x")), 400),
                    (await stub.Append(ledger_pb2.AppendRequest(body=b"x")), 400),
                    (
                        await stub.AppendBatch(ledger_pb2.AppendBatchRequest(group="it", bodies=[b"x"], session_id=77)),
                        600,
                    ),
                    (await stub.Get(ledger_pb2.GetRequest(group="it", index=last + 1)), 410),
                    (await stub.Get(ledger_pb2.GetRequest(group="it", index=-5)), 410),
                    (await stub.OpenSession(ledger_pb2.OpenSessionRequest(group="it", client_id=b"x" * 65)), 411),
                    (await stub.OpenSession(ledger_pb2.OpenSessionRequest(group="it")), 411),
                ]
            for answer, code in answers:
                assert answer.header.code == code, answer
                assert answer.header.message
                assert answer.header.node_id == leader
    async with unchanged(group), connect(group.peers, group="nobody-has-this", timeout=2) as lost:
        with pytest.raises(UnknownGroupError, match="nobody-has-this") as unknown:
            await lost.append(b"x")
        assert unknown.value.outcome is Outcome.DEFINITE
        assert unknown.value.code is ResponseCode.UNKNOWN_GROUP


@pytest.mark.asyncio
async def test_messages_of_strangers_and_of_liars(servers) -> None:
    """A node that is no member, one of another group, one that was sent to the wrong place: refused by name."""
    group: Servers = servers()
    await group.start()
    async with unchanged(group) as leader, grpc.aio.insecure_channel(group.address(leader)) as channel:
        votes = raft_pb2_grpc.RaftServiceStub(channel)
        for fields, code in [
            ({"group": "it", "sender": "n9", "target": leader}, ResponseCode.UNKNOWN_MEMBER),
            ({"group": "other", "sender": "n1", "target": leader}, ResponseCode.UNKNOWN_GROUP),
            ({"group": "it", "sender": leader, "target": leader}, ResponseCode.UNKNOWN_MEMBER),
        ]:
            request = raft_pb2.RequestVoteRequest(
                term=1000, last_log_index=10**6, last_log_term=999, leadership_transfer=True, **fields
            )
            answer = await votes.RequestVote(request, timeout=5)
            assert answer.code == code, (fields, answer)
            assert not answer.granted
        follower = next(node_id for node_id in group.node_ids if node_id != leader)
        for metadata, status in [
            ({GROUP_KEY: "it", NODE_KEY: "n9", TARGET_KEY: leader}, grpc.StatusCode.PERMISSION_DENIED),
            ({GROUP_KEY: "no", NODE_KEY: "n1", TARGET_KEY: leader}, grpc.StatusCode.FAILED_PRECONDITION),
            ({GROUP_KEY: "it", NODE_KEY: leader, TARGET_KEY: leader}, grpc.StatusCode.PERMISSION_DENIED),
            ({GROUP_KEY: "it", NODE_KEY: follower, TARGET_KEY: follower}, grpc.StatusCode.FAILED_PRECONDITION),
            ({}, grpc.StatusCode.FAILED_PRECONDITION),
        ]:
            call = channel.stream_stream(f"/{RAFT_SERVICE}/Replicate")(metadata=tuple(metadata.items()))
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call.read()
            assert refused.value.code() is status, (metadata, refused.value.details())
            assert refused.value.details()


@pytest.mark.asyncio
async def test_garbage_on_the_port(servers) -> None:
    """Bytes of other protocols, of no protocol, and of no message: connections end, the node does not notice."""
    group: Servers = servers()
    await group.start()
    chance = random.Random(20)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    garbage = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x00" * 5000,
        b"\xff" * 5000,
        b"\n",
        chance.randbytes(65536),
        preface + chance.randbytes(5000),
        preface + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01" + chance.randbytes(5000),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + chance.randbytes(500),
    ]
    async with unchanged(group) as leader:
        for data in garbage:
            reader, writer = await asyncio.open_connection(*group.address(leader).split(":"))
            try:
                writer.write(data)
                writer.write_eof()
                async with asyncio.timeout(15):
                    while await reader.read(65536):
                        pass
            except OSError:
                pass  # reset: as good an end as a closed one
            finally:
                writer.close()
        async with grpc.aio.insecure_channel(group.address(leader)) as channel:
            for method in ("Append", "AppendBatch", "Get", "Metadata", "OpenSession"):
                answer = await channel.unary_unary(f"/dledger.v1.LedgerService/{method}")(
                    chance.randbytes(200), timeout=5
                )
                assert ledger_pb2.AppendBatchResponse.FromString(answer).header.code == 411, method
            with pytest.raises(grpc.aio.AioRpcError) as unknown:
                await channel.unary_unary("/dledger.v1.LedgerService/Nothing")(b"", timeout=5)
            assert unknown.value.code() is grpc.StatusCode.UNIMPLEMENTED
            vote = await channel.unary_unary(f"/{RAFT_SERVICE}/RequestVote")(chance.randbytes(200), timeout=5)
            assert raft_pb2.RequestVoteResponse.FromString(vote).code == 411
