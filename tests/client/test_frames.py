"""The client's append stream and the connection beside it, against a real server: taken where it is offered, missed nowhere."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace

import pytest
import pytest_asyncio

from dledger.client import grpc_transport, stream_call
from dledger.client.grpc_transport import CLIENT_NETWORK, GrpcClientTransport
from dledger.client.transport import AppendBatch
from dledger.local_group import LocalGroup
from dledger.rpc.options import NetworkOptions
from dledger.rpc.peer_connections import GreetedConnection
from dledger.security.access import ClientTls
from tests.rpc.fakes import FAST, GROUP, Node, eventually, settled

pytestmark = pytest.mark.asyncio


class Handler:
    """Remembers answers and the end of a stream."""

    def __init__(self):
        self.answers = []
        self.broken = []

    def on_answer(self, answer):
        self.answers.append(answer)

    def on_broken(self, reason):
        self.broken.append(reason)

    @property
    def ids(self):
        return [answer.request_id for answer in self.answers]


async def listening(**options):
    node = Node("n0", **{"framed": True} | options)
    await node.listen({"n0": "127.0.0.1:1", "n1": "127.0.0.1:1"})
    await node.start({})
    return node


@pytest_asyncio.fixture
async def node():
    one = await listening()
    yield one
    await one.stop()


@pytest_asyncio.fixture
async def transport():
    """A client's network; at its end no task and no socket of it is left."""
    made = GrpcClientTransport(GROUP, replace(CLIENT_NETWORK, connect_timeout_ms=2000))
    yield made
    await made.close()
    assert not made._streams
    assert [task for task in asyncio.all_tasks() if "/dledger/client/" in repr(task)] == []


def opened(transport, node):
    handler = Handler()
    return transport.open_stream(f"127.0.0.1:{node.port}", handler), handler


async def framed(transport, node):
    stream, handler = opened(transport, node)
    await eventually(lambda: stream.is_framed)
    return stream, handler


def batch(number, body=b"x"):
    return AppendBatch(number, 0, number, [body])


async def answered(handler, count):
    await eventually(lambda: len(handler.answers) == count, timeout=20)


def taken(node):
    """The bodies that the node was given, in order."""
    return [call[1][0] for call in node.backend.calls if call[0] == "submit"]


# -- where it works


async def test_batches_go_over_to_the_connection_and_keep_their_order(transport, node):
    """Sent while the connection is being made: some by gRPC, the rest by frames, none twice and none overtaken."""
    for _ in range(10):
        node.backend.calls.clear()
        stream, handler = opened(transport, node)
        sent = 0
        while not stream.is_framed or sent < 50:
            stream.send(batch(sent, b"%d" % sent))
            sent += 1
            await asyncio.sleep(0)
        stream.send(batch(sent, b"%d" % sent))
        await answered(handler, sent + 1)
        assert sorted(handler.ids) == list(range(sent + 1))
        assert taken(node) == [b"%d" % number for number in range(sent + 1)]
        assert stream._written_count < sent
        stream.close()
        await stream.wait_closed()
    await eventually(lambda: not node.server._ledger._calls)


async def test_a_large_window_is_sent_as_the_connection_takes_it(transport, node):
    """More than the socket and the limits of the node hold at once."""
    stream, handler = await framed(transport, node)
    node.backend.max_entry_bytes = node.backend.max_batch_bytes = 10**6
    node.backend.hold = True
    for number in range(400):
        stream.send(batch(number, bytes(200_000)))
    assert stream._queue
    await settled(lambda: len(node.backend.held))
    assert len(node.backend.held) < 256
    node.backend.hold = False
    node.backend.release()
    await answered(handler, 400)
    assert sorted(handler.ids) == list(range(400))
    assert handler.broken == []


async def test_what_is_outstanding_is_answered_before_a_node_stops(transport, node):
    stream, handler = await framed(transport, node)
    node.backend.hold = True
    stream.send(batch(1))
    await eventually(lambda: node.backend.held)
    node.server._ledger.close()
    node.backend.release()
    await eventually(lambda: handler.broken)
    assert handler.ids == [1]
    assert len(handler.broken) == 1


async def test_a_stream_that_is_closed_hears_nothing_more_and_leaves_nothing(transport, node):
    stream, handler = await framed(transport, node)
    node.backend.hold = True
    stream.send(batch(1))
    await eventually(lambda: node.backend.held)
    stream.close()
    stream.close()
    stream.send(batch(2))
    node.backend.release()
    await stream.wait_closed()
    await eventually(lambda: not node.server._ledger._calls)
    assert (handler.answers, handler.broken) == ([], [])
    assert len(node.backend.calls) == 1


async def test_a_stream_may_be_closed_at_any_moment(transport, node):
    for turns in range(60):
        stream, handler = opened(transport, node)
        stream.send(batch(turns))
        for _ in range(turns):
            await asyncio.sleep(0)
        stream.close()
        await stream.wait_closed()
        assert handler.broken == []
    await eventually(lambda: not node.server._ledger._calls)


# -- where it ends


async def test_the_end_of_the_connection_breaks_the_stream_once(transport, node):
    stream, handler = await framed(transport, node)
    node.backend.hold = True
    stream.send(batch(1))
    await eventually(lambda: node.backend.held)
    (served,) = node.server._ledger._calls
    served._lane._connection.abort("broken by the test")
    await eventually(lambda: handler.broken)
    await eventually(lambda: not node.server._ledger._calls)
    await stream.wait_closed()
    assert len(handler.broken) == 1


async def test_the_end_of_the_call_breaks_the_stream_once(transport, node, monkeypatch):
    monkeypatch.setattr(stream_call, "_LAST_ANSWERS_S", 0.1)
    stream, handler = await framed(transport, node)
    (served,) = node.server._ledger._calls
    served._context.task.cancel()
    await eventually(lambda: handler.broken)
    await stream.wait_closed()
    assert len(handler.broken) == 1


async def test_a_line_that_dies_without_a_word_is_noticed(node):
    """The node is stopped in the middle of a sentence: its sockets stay open and say nothing."""
    quick = NetworkOptions(keepalive_time_ms=100, keepalive_timeout_ms=100, connect_timeout_ms=2000)
    transport = GrpcClientTransport(GROUP, quick)
    stream, handler = await framed(transport, node)
    (served,) = node.server._ledger._calls
    timer = served._lane._connection._timer
    timer.cancel()  # says nothing more
    await eventually(lambda: handler.broken)
    assert handler.broken[0].startswith("nothing was heard for ")
    await stream.wait_closed()
    await transport.close()


async def test_an_answer_that_is_none_breaks_the_stream(transport, node):
    _, handler = await framed(transport, node)
    (served,) = node.server._ledger._calls
    served._lane._connection.put(b"\xff\xff\xff")
    await eventually(lambda: handler.broken)
    assert handler.broken[0].startswith("reset: ")


async def test_a_batch_beyond_the_limit_breaks_the_stream_and_nothing_follows_it(transport, node):
    stream, handler = await framed(transport, node)
    for number, size in enumerate((10, CLIENT_NETWORK.max_message_bytes + 1, 10)):
        stream.send(batch(number, bytes(size)))
    assert handler.broken == []  # never from within send
    await eventually(lambda: handler.broken)
    assert f"the limit is {CLIENT_NETWORK.max_message_bytes}" in handler.broken[0]
    await stream.wait_closed()
    assert len(node.backend.calls) <= 1


async def test_kill_minus_nine_breaks_the_stream_and_the_appends_go_on(tmp_path):
    """Three real processes; the leader is killed in the middle of 300 appends, none is lost and none doubled."""
    async with LocalGroup(tmp_path, nodes=3, group="g") as group, group.connect(timeout=60) as client:
        await client.append(b"first")
        await eventually(lambda: [stream.is_framed for stream in client._transport._streams] == [True])
        (stream,) = client._transport._streams
        appends = [asyncio.ensure_future(client.append(b"%d" % number)) for number in range(300)]
        await appends[0]
        (leader,) = [status.pid for status in await client.status() if getattr(status, "role", "") == "leader"]
        os.kill(leader, signal.SIGKILL)
        appends += [asyncio.ensure_future(client.append(b"%d" % number)) for number in range(300, 600)]
        await asyncio.gather(*appends)
        assert stream not in client._transport._streams
        bodies = [entry.body async for entry in client.read()]
    assert bodies[0] == b"first"
    assert sorted(map(int, bodies[1:])) == list(range(600))


# -- where there is none


async def not_framed(stream, handler):
    """Appends work by gRPC, and that is how it stays."""
    for number in range(3):
        stream.send(batch(number))
        await answered(handler, number + 1)
    await settled(lambda: [task.done() for task in stream._tasks])
    assert not stream.is_framed
    assert handler.broken == []


@pytest.mark.parametrize("why", ["no port", "nobody listens", "another port", "swallowed"])
async def test_where_the_port_cannot_be_used_appends_go_by_grpc(transport, monkeypatch, why):
    """And the address is left alone for a minute."""
    node = await listening(framed=why != "no port")
    if why == "nobody listens":
        node.transport._listener._server.close()
    elif why == "another port":
        node.transport.clients.listens(1, 0)  # the gRPC port itself, which does not sort what comes
    elif why == "swallowed":

        async def swallow(self, host, port):
            raise TimeoutError

        monkeypatch.setattr(GreetedConnection, "open", swallow)
    stream, handler = opened(transport, node)
    await not_framed(stream, handler)
    again, handler = opened(transport, node)
    await not_framed(again, handler)
    asked = [task.get_name() for task in again._tasks].count("dledger-client-frames")
    assert asked == (1 if why == "no port" else 0)
    await node.stop()


async def test_after_a_minute_it_is_tried_again(transport, node, monkeypatch):
    monkeypatch.setattr(stream_call, "_UNREACHABLE_PAUSE_S", 0.0)
    address = f"127.0.0.1:{node.port}"
    transport._dialler._again_s[address] = asyncio.get_running_loop().time() - 0.001
    await framed(transport, node)
    assert transport._dialler._again_s == {}


async def test_whoever_speaks_tls_does_not_ask(monkeypatch):
    monkeypatch.setattr(grpc_transport.ChannelMaker, "of_client", lambda tls: grpc_transport.ChannelMaker(None))
    node = await listening()
    transport = GrpcClientTransport(GROUP, tls=ClientTls("ca.pem"))
    stream, handler = opened(transport, node)
    await not_framed(stream, handler)
    assert not node.transport.clients._open
    await transport.close()
    await node.stop()


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        (),
        (("dledger-frames", "4711"),),
        (("dledger-ticket", "00"),),
        (("dledger-frames", "x"), ("dledger-ticket", "00")),
        (("dledger-frames", "65536"), ("dledger-ticket", "00")),
        (("dledger-frames", "4711"), ("dledger-ticket", "xyz")),
    ],
)
async def test_an_offer_that_cannot_be_understood_is_none(metadata):
    assert stream_call._offered(metadata) is None
    assert stream_call._offered((("dledger-frames", "4711"), ("dledger-ticket", "00ff"))) == (4711, b"\0\xff")


async def test_an_address_without_a_port_is_not_asked():
    dialler = stream_call.FrameDialler(FAST)
    assert dialler.metadata("somewhere") == ()
    assert dialler.metadata("[::1]:40911") == (("dledger-frames", "40911"),)
