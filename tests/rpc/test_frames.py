"""Frames over TCP: cut anywhere, bounded both ways, closed when silent; who is welcome, and what is left where nobody is."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from dledger.errors import DLedgerError, ResponseCode, UnavailableError
from dledger.raft.messages import Heartbeat
from dledger.rpc import peer_connections
from dledger.rpc.frames import PEER_PREFACE, FrameConnection
from dledger.rpc.peer_connections import DialledConnection
from dledger.v1 import raft_pb2 as pb
from tests.rpc.fakes import FAST, GROUP, Node, eventually, started

LIMIT = 1000
QUICK = replace(FAST, keepalive_time_ms=40, keepalive_timeout_ms=40)


class Pipe:
    """An asyncio transport that takes ``room`` bytes and keeps the rest."""

    def __init__(self, room=10**9):
        self.room = room
        self.sent = b""
        self.aborted = self.closed = False

    def write(self, data):
        self.sent += data

    def writelines(self, parts):
        self.sent += b"".join(parts)

    def get_write_buffer_size(self):
        return max(len(self.sent) - self.room, 0)

    def abort(self):
        self.aborted = True

    def close(self):
        self.closed = True


class Ends:
    """A connection on a pipe, and what came of it."""

    def __init__(self, *, accepted=False, room=10**9, options=FAST, limit=LIMIT):
        self.heard = []
        self.lost = []
        self.pipe = Pipe(room)
        self.connection = FrameConnection(
            options,
            accepted=accepted,
            limit=limit,
            received=lambda _, data: self.heard.append(data),
            lost=lambda _, reason: self.lost.append(reason),
        )
        self.connection.connection_made(self.pipe)

    def hear(self, data):
        """Bytes come in, as many at a time as the connection has room for."""
        while data:
            room = self.connection.get_buffer(-1)
            count = min(len(room), len(data))
            room[:count] = data[:count]
            self.connection.buffer_updated(count)
            data = data[count:]


def framed(*bodies):
    return b"".join(len(body).to_bytes(4, "big") + body for body in bodies)


# -- frames


@pytest.mark.asyncio
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 16, 1000])
async def test_frames_cut_anywhere_come_out_whole(size):
    ends = Ends(accepted=True)
    bodies = [b"a", b"", b"b" * 300, b"cd", b"e" * LIMIT]
    wire = PEER_PREFACE + framed(*bodies)
    for at in range(0, len(wire), size):
        ends.hear(wire[at : at + size])
    assert ends.heard == [body for body in bodies if body]  # an empty one says only that somebody lives


@pytest.mark.asyncio
async def test_what_is_put_is_what_another_hears():
    one, other = Ends(), Ends(limit=10**6)
    bodies = [b"x" * size for size in (1, 100, 16 * 1024 - 1, 16 * 1024, 100_000)]
    assert all(one.connection.put(body) for body in bodies)
    other.hear(one.pipe.sent)
    assert other.heard == bodies


@pytest.mark.asyncio
async def test_the_buffer_grows_for_a_large_frame_and_shrinks_in_silence():
    ends = Ends(options=QUICK, limit=10**7)
    small = len(ends.connection.get_buffer(-1))
    assert small <= 4096, "a thousand silent clients cost little"
    bodies = [b"a" * 10, bytes(5_000_000), b"b" * (small - 4), b"c" * small, b"d"]
    ends.hear(framed(*bodies))
    assert ends.heard == bodies
    assert len(ends.connection.get_buffer(-1)) > 5_000_000
    await eventually(lambda: len(ends.connection.get_buffer(-1)) == small)
    ends.hear(framed(b"e"))
    assert ends.heard[-1] == b"e"
    ends.connection.abort("over")


@pytest.mark.asyncio
async def test_what_comes_while_paused_is_kept_and_heard_later():
    ends = Ends(limit=10**6)
    ends.pipe.is_closing = lambda: False
    ends.pipe.pause_reading = ends.pipe.resume_reading = lambda: None
    bodies = [b"a", b"b" * 200_000, b"c"]
    ends.connection.pause()
    ends.hear(framed(*bodies))  # what was on its way when reading was paused
    assert ends.heard == []
    ends.connection.resume()
    assert ends.heard == bodies
    ends.hear(framed(b"d"))
    assert ends.heard == [*bodies, b"d"]
    ends.connection.abort("over")


@pytest.mark.asyncio
async def test_whoever_pauses_in_the_middle_hears_the_rest_later():
    ends = Ends()
    ends.pipe.is_closing = lambda: False
    ends.pipe.pause_reading = ends.pipe.resume_reading = lambda: None
    ends.connection.hand_over(
        received=lambda connection, data: (ends.heard.append(data), connection.pause()),
        lost=lambda *_: None,
        on_writable=lambda _: None,
    )
    ends.hear(framed(b"a", b"b", b"c") + b"\0\0")
    assert ends.heard == [b"a"]
    ends.connection.resume()
    ends.connection.resume()
    assert ends.heard == [b"a", b"b", b"c"]
    ends.connection.resume()
    ends.hear(b"\0\1d")
    assert ends.heard[-1] == b"d"
    ends.connection.abort("over")


@pytest.mark.asyncio
async def test_a_frame_over_the_limit_ends_the_connection_before_it_is_kept():
    ends = Ends()
    ends.hear(framed(b"fine") + (LIMIT + 1).to_bytes(4, "big") + b"x" * 10 + framed(b"never"))
    assert ends.heard == [b"fine"]
    assert ends.pipe.aborted
    ends.connection.connection_lost(None)
    assert ends.lost == [f"a frame of {LIMIT + 1} bytes; {LIMIT} are taken"]


@pytest.mark.asyncio
@pytest.mark.parametrize("first", [b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\n", bytes(64)])
async def test_who_does_not_begin_as_a_peer_does_is_shown_the_door(first):
    ends = Ends(accepted=True)
    ends.hear(first)
    assert ends.pipe.aborted
    assert ends.heard == []


@pytest.mark.asyncio
async def test_what_waits_is_bounded_and_what_does_not_fit_is_dropped():
    ends = Ends(room=0, options=replace(FAST, max_queue_bytes=1000, max_message_bytes=1000))
    assert [ends.connection.put(b"x" * 300) for _ in range(5)] == [True, True, True, False, False]
    assert ends.connection.dropped_count == 2
    assert ends.connection.queued_bytes == 3 * 304
    ends.pipe.room = 10**9
    assert ends.connection.put(b"x")


@pytest.mark.asyncio
async def test_nothing_is_sent_after_the_end_and_the_reason_is_told_once():
    ends = Ends()
    ends.connection.close("enough")
    ends.connection.abort("another")
    assert not ends.connection.put(b"x")
    ends.connection.connection_lost(ConnectionResetError("later"))
    assert (ends.pipe.closed, ends.pipe.sent, ends.lost) == (True, b"", ["enough"])


@pytest.mark.asyncio
async def test_an_idle_connection_says_that_it_lives_and_a_silent_one_is_given_up():
    ends = Ends(options=QUICK)
    await eventually(lambda: ends.pipe.aborted)
    assert set(ends.pipe.sent) == {0}
    ends.connection.connection_lost(None)
    assert ends.lost[0].startswith("nothing was heard for ")


@pytest.mark.asyncio
async def test_a_connection_that_hears_something_stays():
    one, other = Ends(options=QUICK), Ends(options=QUICK)

    async def carry(seconds):
        async with asyncio.timeout(seconds):
            while True:
                for a, b in ((one, other), (other, one)):
                    data, a.pipe.sent = a.pipe.sent, b""
                    if data:
                        b.hear(data)
                await asyncio.sleep(0.005)

    with pytest.raises(TimeoutError):
        await carry(0.5)
    assert not one.pipe.aborted and not other.pipe.aborted
    for ends in (one, other):
        ends.connection.abort("over")
        ends.connection.connection_lost(None)


@pytest.mark.asyncio
async def test_what_comes_after_the_end_is_not_heard():
    ends = Ends()
    ends.connection.close("enough")
    ends.hear(framed(b"late"))
    assert ends.heard == []


# -- hello and welcome


@pytest_asyncio.fixture
async def listening():
    """One node that listens for peers and runs; it knows ``n1``, which nobody is."""
    node = Node("n0", framed=True)
    await node.listen({"n0": "127.0.0.1:1", "n1": "127.0.0.1:1"})
    await node.start({})
    yield node
    await node.stop()


def port_of(node):
    return node.transport._announced


def dialled(group=GROUP, node_id="n1", peer="n0"):
    return DialledConnection(group, node_id, peer, FAST, lambda _data: True)


@pytest.mark.asyncio
async def test_a_name_with_several_addresses_has_one_port_at_all_of_them():
    """``localhost`` is 127.0.0.1 and ::1, where there is IPv6."""
    node = Node("n0")
    await node.listen({"n0": "127.0.0.1:1", "n1": "127.0.0.1:1"})
    await node.transport.listen("localhost", 0)
    sockets = node.transport._listener._server.sockets
    assert {each.getsockname()[1] for each in sockets} == {port_of(node)}
    await node.stop()


@pytest.mark.asyncio
async def test_a_member_is_welcome_and_heard(listening):
    mine = dialled()
    await mine.open("127.0.0.1", port_of(listening))
    message = Heartbeat("n1", 1, 0, 7, 0)
    mine.frames.put(
        pb.RaftMessage(group=GROUP, sender="n1", term=1, heartbeat=pb.Heartbeat(round=7)).SerializeToString()
    )
    await listening.handler.until(lambda: listening.handler.messages)
    assert listening.handler.messages == [message]
    mine.frames.abort("over")
    await listening.handler.until(lambda: ("down", "n1") in listening.handler.events)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("names", "code", "words"),
    [
        ({"group": "other"}, ResponseCode.UNKNOWN_GROUP, "group 'other'"),
        ({"node_id": "n7"}, ResponseCode.UNKNOWN_MEMBER, "'n7'"),
        ({"node_id": "n0"}, ResponseCode.UNKNOWN_MEMBER, "no other member"),
        ({"peer": "n2"}, ResponseCode.UNKNOWN_MEMBER, "this node is 'n0'"),
    ],
)
async def test_a_stranger_is_refused_with_the_reason(listening, names, code, words):
    mine = dialled(**names)
    with pytest.raises(DLedgerError, match=words) as caught:
        await mine.open("127.0.0.1", port_of(listening))
    assert caught.value.code == code
    assert listening.handler.events == []


@pytest.mark.asyncio
async def test_whoever_listens_must_be_the_peer(listening):
    """A port that another node of the group has now is not the peer's."""
    mine = dialled()
    mine._sender = "n2"
    with pytest.raises(UnavailableError, match="whoever listens there is 'n0'"):
        await mine.open("127.0.0.1", port_of(listening))


@pytest.mark.asyncio
async def test_strangers_are_few_and_do_not_stay(listening, monkeypatch):
    monkeypatch.setattr(peer_connections, "_HELLO_TIMEOUT_S", 0.2)
    most = 40  # so many come within the time
    monkeypatch.setattr(peer_connections, "_MAX_STRANGERS", most)
    streams = [await asyncio.open_connection("127.0.0.1", port_of(listening)) for _ in range(most + 20)]
    await eventually(lambda: len(listening.transport._listener._strangers) == most)
    ended = [asyncio.ensure_future(reader.read()) for reader, _ in streams]
    await asyncio.wait(ended, timeout=10)
    assert all(task.done() for task in ended)
    assert not listening.transport._listener._strangers
    for _, writer in streams:
        writer.close()
    mine = dialled()
    await mine.open("127.0.0.1", port_of(listening))
    mine.frames.abort("over")


@pytest.mark.asyncio
async def test_garbage_reaches_nobody_and_members_are_still_welcome(listening):
    """Random bytes, and true beginnings with random ends; 300 connections."""
    rng = random.Random(5)
    hello = framed(pb.PeerHello(group=GROUP, sender="n1", target="n0").SerializeToString())
    for number in range(300):
        start = [b"", PEER_PREFACE, PEER_PREFACE + hello][number % 3]
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(listening))
        writer.write(start + rng.randbytes(rng.randrange(200)))
        writer.write_eof()
        await asyncio.wait_for(reader.read(), 30)
        writer.close()
    assert listening.handler.messages == []
    mine = dialled()
    await mine.open("127.0.0.1", port_of(listening))
    mine.frames.abort("over")


@pytest.mark.asyncio
async def test_where_the_port_cannot_be_reached_the_stream_stays_and_says_so_once():
    """A firewall lets the gRPC port through and nothing else: the group works, and the log says what it costs."""
    one, other = Node("n0"), Node("n1", framed=True)
    members = {node.node_id: f"127.0.0.1:{await node.listen({})}" for node in (one, other)}
    other.transport._listener.close()
    with capture_logs() as logs:
        for node in (one, other):
            await node.start(members)
        await one.handler.until(lambda: one.transport.is_connected("n1"))
        one.transport.send("n1", Heartbeat("n0", 1, 0, 7, 0))
        await other.handler.until(lambda: other.handler.messages)
    assert not one.transport._links["n1"].is_framed
    assert [entry["event"] for entry in logs].count("peer_port_unreachable_using_grpc") == 1
    for node in (one, other):
        await node.stop()


@pytest.mark.asyncio
async def test_a_port_that_swallows_attempts_is_not_waited_for_each_time(monkeypatch):
    """A firewall that drops: one attempt runs into its time-out, the streams after that come up at once."""
    one, other = Node("n0"), Node("n1", framed=True)
    members = {node.node_id: f"127.0.0.1:{await node.listen({})}" for node in (one, other)}
    attempts = []

    async def swallow(self, host, port):
        attempts.append(port)
        raise TimeoutError

    monkeypatch.setattr(DialledConnection, "open", swallow)
    for node in (one, other):
        await node.start(members)
    for _ in range(3):
        await one.handler.until(lambda: one.transport.is_connected("n1"))
        one.handler.events.clear()
        other.transport._incoming["n0"].outbox.close()
        await one.handler.until(lambda: ("down", "n1") in one.handler.events)
    assert attempts == [port_of(other)]
    for node in (one, other):
        await node.stop()


@pytest.mark.asyncio
async def test_a_connection_that_breaks_is_news_and_made_anew():
    nodes = await started("n0", "n1", framed=True)
    one, other = nodes
    one.transport._links["n1"].outbox.abort("broken by the test")
    await one.handler.until(lambda: ("down", "n1") in one.handler.events)
    await one.handler.until(lambda: one.handler.events[-1] == ("up", "n1"))
    await one.handler.until(lambda: one.transport.is_connected("n1"))
    one.transport.send("n1", Heartbeat("n0", 1, 0, 7, 0))
    await other.handler.until(lambda: other.handler.messages)
    for node in nodes:
        await node.stop()
