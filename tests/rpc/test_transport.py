"""Transports over real gRPC on loopback: order, reconnection, hints, bounds, and who is let in."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from grpc import aio
from structlog.testing import capture_logs

from dledger.raft.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Heartbeat,
    HeartbeatResponse,
    ReadIndexRequest,
    ReadIndexResponse,
    RequestVote,
    RequestVoteResponse,
    TermRun,
    TimeoutNow,
    VoteResult,
)
from dledger.rpc import codec
from dledger.rpc.links import GROUP_KEY, NODE_KEY, TARGET_KEY
from dledger.rpc.options import NetworkOptions
from dledger.v1 import raft_pb2
from tests.rpc.fakes import FAST, GROUP, FakeBackend, Node, eventually

pytestmark = pytest.mark.asyncio

REPLICATE = "/dledger.v1.RaftService/Replicate"
REQUEST_VOTE = "/dledger.v1.RaftService/RequestVote"
ROOT = Path(__file__).resolve().parent.parent.parent


def append(sender, *bodies):
    part = FakeBackend().put(*bodies)
    return AppendEntries(sender, 3, -1, -1, part.last_index, (TermRun(0, 3),), -1, 0, part)


# -- messages


async def test_requests_and_responses_arrive_in_order(nodes):
    a, b = await nodes("n0", "n1")
    requests = [
        append("n0", b"one", b"two"),
        *(Heartbeat("n0", 3, 1, number, 1) for number in range(200)),
        ReadIndexRequest("n0", 3, 9),
        TimeoutNow("n0", 3),
    ]
    responses = [
        AppendEntriesResponse("n1", 3, True, 1, 1),
        *(HeartbeatResponse("n1", 3, number, 1, 1, 1) for number in range(200)),
        ReadIndexResponse("n1", 3, 9, 1),
    ]
    for message in requests:
        a.transport.send("n1", message)
    for message in responses:
        b.transport.send("n0", message)
    await b.handler.until(lambda: len(b.handler.messages) == len(requests))
    await a.handler.until(lambda: len(a.handler.messages) == len(responses))
    assert b.handler.messages == requests
    assert b.handler.messages[0].payload == requests[0].payload
    assert a.handler.messages == responses


async def test_three_nodes_talk_to_each_other(nodes):
    group = await nodes("n0", "n1", "n2")
    for node in group:
        for peer in group:
            if peer is not node:
                node.transport.send(peer.node_id, Heartbeat(node.node_id, 1, 0, 7, 0))
    for node in group:
        await node.handler.until(lambda n=node: len(n.handler.messages) == 2)
        assert {m.sender for m in node.handler.messages} == {"n0", "n1", "n2"} - {node.node_id}


async def test_an_append_for_two_peers_is_serialised_once(nodes, monkeypatch):
    a, b, c = await nodes("n0", "n1", "n2")
    count = 0
    encode = codec.encode_stream

    def counting(message, **kwargs):
        nonlocal count
        count += 1
        return encode(message, **kwargs)

    monkeypatch.setattr(codec, "encode_stream", counting)
    message = append("n0", b"x")
    a.transport.send("n1", message)
    a.transport.send("n2", replace(message))
    for peer in (b, c):
        await peer.handler.until(lambda p=peer: p.handler.messages)
        assert peer.handler.messages == [message]
    assert count == 1
    a.transport.send("n1", replace(message, commit_index=0))
    assert count == 2


async def test_a_vote_is_asked_and_given(nodes):
    a, b = await nodes("n0", "n1")
    answer = RequestVoteResponse("n1", 7, 7, True, True, True, VoteResult.ACCEPT)
    b.handler.on_receive = lambda _: b.transport.send("n0", answer)
    request = RequestVote("n0", 7, 5, 6, pre_vote=True, leadership_transfer=True)
    a.transport.send("n1", request)
    await a.handler.until(lambda: a.handler.messages)
    assert b.handler.messages == [request]
    assert a.handler.messages == [answer]


async def test_a_vote_may_be_given_later_and_finds_its_request(nodes):
    """Answers are matched by the term and the kind that was asked for, not by their order."""
    a, b = await nodes("n0", "n1")
    for pre_vote in (True, False):
        a.transport.send("n1", RequestVote("n0", 7, 5, 6, pre_vote=pre_vote))
    await b.handler.until(lambda: len(b.handler.messages) == 2)
    b.transport.send("n0", RequestVoteResponse("n1", 7, 6, True, False))
    real = RequestVoteResponse("n1", 7, 7, True, False)
    b.transport.send("n0", real)
    await a.handler.until(lambda: a.handler.messages)
    assert a.handler.messages == [real]
    b.transport.send("n0", RequestVoteResponse("n1", 7, 7, False, True))
    await a.handler.until(lambda: len(a.handler.messages) == 2)


async def test_a_vote_that_is_not_given_in_time_is_dropped(nodes):
    a, b = await nodes("n0", "n1", options=replace(FAST, vote_timeout_ms=50))
    a.transport.send("n1", RequestVote("n0", 7, 5, 6))
    await b.handler.until(lambda: b.handler.messages)
    await eventually(lambda: not b.transport._votes)
    b.transport.send("n0", RequestVoteResponse("n1", 7, 7, True, False))
    assert a.handler.messages == []


async def test_votes_to_a_dead_peer_do_not_pile_up(node):
    for term in range(100):
        node.transport.send("n1", RequestVote("n0", term, 0, 0))
    assert len(node.transport._links["n1"]._votes) <= 8


async def test_sending_to_nobody_is_harmless(node):
    for peer in ("n1", "n9"):
        node.transport.send(peer, Heartbeat("n0", 1, 0, 0, 0))
        node.transport.send(peer, HeartbeatResponse("n0", 1, 0, 0, 0, 0))
        node.transport.send(peer, RequestVoteResponse("n0", 1, 1, True, False))
        assert not node.transport.is_connected(peer)


# -- bounds


@pytest.mark.parametrize("nodes", ["grpc"], indirect=True)  # of frames: test_frames.py
async def test_a_slow_peer_costs_bounded_memory(nodes):
    """The queue drops beyond its limits, and what was taken still arrives in order."""
    a, b = await nodes("n0", "n1", options=replace(FAST, max_queue_count=50))
    with capture_logs() as logs:
        for number in range(500):
            a.transport.send("n1", Heartbeat("n0", 1, 0, number, 0))
    assert a.transport.queued("n1")[0] == 50
    assert [entry["event"] for entry in logs] == ["peer_queue_full"]
    await b.handler.until(lambda: len(b.handler.messages) == 50)
    assert [m.round for m in b.handler.messages] == list(range(50))


@pytest.mark.parametrize("nodes", ["grpc"], indirect=True)  # of frames: test_frames.py
async def test_the_queue_is_bounded_in_bytes(nodes):
    options = replace(FAST, max_queue_bytes=1_000_000, max_message_bytes=1_000_000)
    a, _ = await nodes("n0", "n1", options=options)
    message = append("n0", b"x" * 300_000)
    for _ in range(10):
        a.transport.send("n1", message)
    count, size = a.transport.queued("n1")
    assert count == 3
    assert size <= 1_000_000


async def test_a_message_over_the_limit_is_dropped_and_the_stream_stays(nodes):
    options = replace(FAST, max_message_bytes=10_000)
    a, b = await nodes("n0", "n1", options=options)
    with capture_logs() as logs:
        a.transport.send("n1", append("n0", b"x" * 10_000))
    assert logs[0]["event"] == "message_too_large"
    a.transport.send("n1", Heartbeat("n0", 1, 0, 1, 0))
    await b.handler.until(lambda: b.handler.messages)
    assert ("down", "n1") not in a.handler.events


# -- links that break


async def test_a_stopped_peer_is_noticed_and_its_return_too(nodes):
    a, b = await nodes("n0", "n1")
    port = b.port
    await b.stop()
    await a.handler.until(lambda: ("down", "n1") in a.handler.events, 0.5)
    assert a.handler.events.count(("down", "n1")) == 1
    assert not a.transport.is_connected("n1")
    a.handler.events.clear()

    back = Node("n1")
    members = {"n0": f"127.0.0.1:{a.port}", "n1": f"127.0.0.1:{port}"}
    await back.listen({}, port=port)
    try:
        await back.start(members)
        await a.handler.until(lambda: a.transport.is_connected("n1"), 1.0)
        assert ("up", "n1") in a.handler.events
        a.transport.send("n1", Heartbeat("n0", 1, 0, 4, 0))
        await back.handler.until(lambda: back.handler.messages, 1.0)
    finally:
        await back.stop()


async def test_nothing_is_heard_after_stop(nodes):
    a, b = await nodes("n0", "n1")
    events = list(b.handler.events)
    await b.stop()
    a.transport.send("n1", Heartbeat("n0", 1, 0, 1, 0))
    await a.handler.until(lambda: ("down", "n1") in a.handler.events)
    assert b.handler.events == events
    assert b.handler.messages == []


class PeerProcess:
    """``n1`` in a process of its own."""

    def __init__(self, process, port):
        self.process = process
        self.port = port

    @classmethod
    async def spawn(cls, port, *peers):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.rpc.peer_process", "n1", str(port), *peers,
            cwd=ROOT, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(20):
            while line := (await process.stderr.readline()).decode():
                if line.startswith("port "):
                    return cls(process, int(line.split()[1]))
        raise AssertionError("the peer process did not start")

    async def kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGKILL)
        await self.process.wait()


async def test_kill_9_is_noticed_at_once_and_a_restart_within_a_second():
    a = Node("n0")
    await a.listen({})
    peer = await PeerProcess.spawn(0, f"n0=127.0.0.1:{a.port}")
    address = f"127.0.0.1:{peer.port}"
    try:
        await a.start({"n0": "-", "n1": address})
        await a.handler.until(lambda: a.transport.is_connected("n1"))
        a.transport.send("n1", Heartbeat("n0", 1, 0, 1, 0))
        await a.handler.until(lambda: a.handler.messages)

        killed_at = time.monotonic()
        await peer.kill()
        await a.handler.until(lambda: ("down", "n1") in a.handler.events, 0.5)
        assert time.monotonic() - killed_at < 0.5
        assert not a.transport.is_connected("n1")

        # Long enough dead for gRPC's back-off to grow, were it not bounded.
        peer = await PeerProcess.spawn(peer.port, f"n0=127.0.0.1:{a.port}")
        await a.handler.until(lambda: a.transport.is_connected("n1"), 1.0)
        a.handler.messages.clear()
        a.transport.send("n1", Heartbeat("n0", 1, 0, 2, 0))
        await a.handler.until(lambda: a.handler.messages, 1.0)
    finally:
        await a.stop()
        await peer.kill()


async def test_a_link_that_dies_without_a_word_is_reset_by_keepalive():
    """A stopped process keeps its sockets open and answers nothing."""
    a = Node("n0", options=replace(FAST, keepalive_time_ms=200, keepalive_timeout_ms=200))
    await a.listen({})
    peer = await PeerProcess.spawn(0, f"n0=127.0.0.1:{a.port}")
    try:
        await a.start({"n0": "-", "n1": f"127.0.0.1:{peer.port}"})
        await a.handler.until(lambda: a.transport.is_connected("n1"))
        os.kill(peer.process.pid, signal.SIGSTOP)
        await a.handler.until(lambda: ("down", "n1") in a.handler.events, 5)
        os.kill(peer.process.pid, signal.SIGCONT)
        a.handler.events.clear()
        await a.handler.until(lambda: a.transport.is_connected("n1"), 2)
    finally:
        await a.stop()
        await peer.kill()


# -- who is let in


async def open_stream(channel, group=GROUP, sender="n1", target="n0"):
    metadata = [(GROUP_KEY, group), (NODE_KEY, sender)]
    if target is not None:
        metadata.append((TARGET_KEY, target))
    call = channel.stream_stream(REPLICATE)(metadata=metadata)
    if NODE_KEY not in dict(await call.initial_metadata()):
        await call.read()
    return call


@pytest.mark.parametrize(
    ("opening", "code", "words"),
    [
        ({"group": "other"}, grpc.StatusCode.FAILED_PRECONDITION, "UNKNOWN_GROUP: stream of group 'other'"),
        ({"sender": "n9"}, grpc.StatusCode.PERMISSION_DENIED, "UNKNOWN_MEMBER: stream from 'n9'"),
        ({"sender": "n0"}, grpc.StatusCode.PERMISSION_DENIED, "UNKNOWN_MEMBER: stream from 'n0'"),
        ({"target": "n1"}, grpc.StatusCode.FAILED_PRECONDITION, "stream for 'n1', this node is 'n0'"),
    ],
)
async def test_a_stranger_is_refused_with_the_reason_and_logged_once(node, channel, opening, code, words):
    with capture_logs() as logs:
        for _ in range(3):
            with pytest.raises(aio.AioRpcError) as caught:
                await open_stream(channel, **opening)
            assert caught.value.code() is code
            assert words in caught.value.details()
    assert [entry["event"] for entry in logs] == ["stream_rejected"]
    assert node.handler.events == []


async def test_a_stream_without_identity_is_refused(node, channel):
    call = channel.stream_stream(REPLICATE)()
    with pytest.raises(aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert node.handler.events == []


async def test_a_misconfigured_node_says_why_it_cannot_join():
    """A node of another group is told so, and logs it once, not at every attempt."""
    a, b = Node("n0"), Node("n1", group="other")
    members = {"n0": f"127.0.0.1:{await a.listen({})}", "n1": f"127.0.0.1:{await b.listen({})}"}
    with capture_logs() as logs:
        await a.start(members)
        await b.start(members)

        def told(node_id):
            return [e for e in logs if e["event"] == "peer_refused_stream" and e["node_id"] == node_id]

        await eventually(lambda: told("n0") and told("n1"))
        await a.stop()
        await b.stop()
    assert "UNKNOWN_GROUP" in told("n1")[0]["reason"]
    assert len(told("n1")) == 1
    assert a.handler.events == b.handler.events == []


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xff\xff",
        codec.encode_stream(TimeoutNow("n1", 3), group="other", target="n0"),
        codec.encode_stream(TimeoutNow("n1", 3), group=GROUP, target="n2"),
        codec.encode_stream(TimeoutNow("n2", 3), group=GROUP, target="n0"),
        codec.encode_stream(HeartbeatResponse("n1", 1, 1, 1, 1, 1), group=GROUP, target="n0"),
        raft_pb2.RaftMessage(
            group=GROUP, sender="n1", term=1, append_entries=raft_pb2.AppendEntries(data=b"garbage", last_index=3)
        ).SerializeToString(),
    ],
    ids=["empty", "garbage", "group", "target", "sender", "direction", "corrupt"],
)
async def test_a_bad_message_resets_the_stream_and_reaches_nobody(node, channel, data):
    with capture_logs() as logs:
        for _ in range(2):
            call = await open_stream(channel)
            await call.write(data)
            with pytest.raises(aio.AioRpcError) as caught:
                await call.read()
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert node.handler.messages == []
    assert [entry["event"] for entry in logs] == ["bad_message_stream_reset"]


async def test_good_messages_before_a_bad_one_count(node, channel):
    call = await open_stream(channel)
    good = Heartbeat("n1", 1, 0, 1, 0)
    await call.write(codec.encode_stream(good, group=GROUP, target="n0"))
    await call.write(b"\xff")
    with pytest.raises(aio.AioRpcError):
        await call.read()
    assert node.handler.messages == [good]


async def test_a_newer_stream_of_the_same_peer_replaces_the_older(node, channel):
    old = await open_stream(channel)
    new = await open_stream(channel)
    with pytest.raises(aio.AioRpcError) as caught:
        await old.read()
    assert caught.value.code() is grpc.StatusCode.ABORTED
    node.transport.send("n1", HeartbeatResponse("n0", 1, 8, 0, 0, 0))
    message = raft_pb2.RaftMessage.FromString(await new.read())
    assert message.heartbeat_response.round == 8
    assert node.handler.events == [("up", "n1")]
    new.cancel()
    await node.handler.until(lambda: ("down", "n1") in node.handler.events)


async def test_every_stream_that_ends_is_told(node, channel):
    """Also where gRPC cancels the call a second time, while it is being left."""
    for _ in range(60):
        node.handler.events.clear()
        stream = await open_stream(channel)
        node.transport.send("n1", HeartbeatResponse("n0", 1, 8, 0, 0, 0))
        await stream.read()
        stream.cancel()
        await node.handler.until(lambda: ("down", "n1") in node.handler.events)


async def test_a_bad_response_resets_our_stream():
    """A peer that answers nonsense is not listened to; the stream is opened anew."""
    opened = 0
    received = asyncio.Event()

    async def replicate(_, context):
        nonlocal opened
        opened += 1
        await context.send_initial_metadata(((NODE_KEY, "n1"),))
        if opened == 1:
            await context.write(b"nonsense")
        await context.read()
        received.set()

    server = aio.server()
    handlers = {"Replicate": grpc.stream_stream_rpc_method_handler(replicate)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("dledger.v1.RaftService", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    a = Node("n0")
    await a.listen({})
    try:
        await a.start({"n0": "-", "n1": f"127.0.0.1:{port}"})
        await a.handler.until(lambda: a.handler.events[:3] == [("up", "n1"), ("down", "n1"), ("up", "n1")])
        a.transport.send("n1", Heartbeat("n0", 1, 0, 1, 0))
        await asyncio.wait_for(received.wait(), 30)
    finally:
        await a.stop()
        await server.stop(0)
    assert a.handler.messages == []


async def test_a_handler_that_raises_costs_one_stream_not_the_link(nodes):
    a, b = await nodes("n0", "n1")

    def fail(_):
        b.handler.on_receive = None
        raise RuntimeError("bug")

    b.handler.on_receive = fail
    a.handler.events.clear()
    a.transport.send("n1", Heartbeat("n0", 1, 0, 1, 0))
    await a.handler.until(lambda: a.handler.events == [("down", "n1"), ("up", "n1")])
    a.transport.send("n1", Heartbeat("n0", 1, 0, 2, 0))
    await b.handler.until(lambda: len(b.handler.messages) == 2)


async def test_a_refused_vote_request_is_answered_with_the_reason(node, channel):
    data = codec.encode_vote_request(RequestVote("n1", 1, 0, 0), group="other", target="n0")
    answer = raft_pb2.RequestVoteResponse.FromString(await channel.unary_unary(REQUEST_VOTE)(data))
    assert (answer.code, answer.granted) == (400, False)
    assert "'other'" in answer.reason
    garbage = raft_pb2.RequestVoteResponse.FromString(await channel.unary_unary(REQUEST_VOTE)(b"\xff"))
    assert garbage.code == 411
    assert node.handler.messages == []


async def test_a_transport_that_has_not_started_lets_nobody_in():
    node = Node("n0")
    await node.listen({"n1": "-", "n0": "-"})
    try:
        async with aio.insecure_channel(f"127.0.0.1:{node.port}") as channel:
            with pytest.raises(aio.AioRpcError) as caught:
                await open_stream(channel)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            with pytest.raises(aio.AioRpcError) as caught:
                await channel.unary_unary(REQUEST_VOTE)(b"")
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    finally:
        await node.stop()


async def test_options_are_checked_when_the_transport_is_made():
    from dledger.errors import UnexpectedArgumentError
    from dledger.rpc.transport import GrpcTransport

    with pytest.raises(UnexpectedArgumentError):
        GrpcTransport(GROUP, "n0", {}, NetworkOptions(max_queue_count=0))
