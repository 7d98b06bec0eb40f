"""The blocking client: threads, generators, interruption, closing. The fake group runs on the client's own loop."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from dledger.client import BlockingLedgerClient, DownNode, connect_blocking
from dledger.client.blocking import _LoopThread
from dledger.errors import ConfigError, IndexOutOfRangeError, StoppedError, UnavailableError
from dledger.types import NodeStatus, ReadMode
from tests.client.group import DROP_ANSWER, FakeGroup, GrpcNode


@pytest.fixture
def group():
    thread = _LoopThread.acquire()
    made = FakeGroup()
    made.nodes = {node_id: thread.run(GrpcNode(made, node_id).start()) for node_id in made.node_ids}
    made.thread = thread
    yield made
    for node in made.nodes.values():
        thread.run(node.kill())
    thread.release()
    assert _LoopThread._current is None
    assert not [one for one in threading.enumerate() if one.name == "dledger-blocking-client"]


def test_everything_blocks_and_returns(group):
    with connect_blocking(dict(group.addresses), group="g") as client:
        assert client.append(b"a").index == 1
        assert client.append_many([b"b", b"c"]).indexes() == [2, 3]
        assert client.get(2).body == b"b"
        assert [entry.body for entry in client.read()] == [b"a", b"b", b"c"]
        assert [entry.index for entry in client.read(1, 3, mode=ReadMode.LOCAL_COMMITTED)] == [1, 2]
        assert client.commit_index() == 3
        assert client.metadata().leader_id == "n0"
        assert [type(node) for node in client.status(timeout=20.0)] == [NodeStatus] * 3
        assert client.transfer_leadership("n1") == "n1"
        assert client.append(b"d").term == 2
        client.step_down()
        with pytest.raises(UnavailableError):
            client.append(b"e", timeout=0.1)
        with pytest.raises(IndexOutOfRangeError):
            client.get(99, mode=ReadMode.LOCAL_COMMITTED)


def test_many_threads_share_one_client(group):
    with connect_blocking(dict(group.addresses), group="g") as client, ThreadPoolExecutor(8) as pool:
        bodies = [b"%d" % number for number in range(200)]
        results = list(pool.map(client.append, bodies))
    assert sorted(result.index for result in results) == list(range(1, 201))
    assert [group.log[result.index][3] for result in results] == bodies


def test_a_long_read_crosses_the_threads_in_pieces_and_may_be_left_early(group):
    with connect_blocking(dict(group.addresses), group="g") as client:
        client.append_many([b"%d" % number for number in range(2000)])
        assert [entry.body for entry in client.read()] == [b"%d" % number for number in range(2000)]
        for entry in client.read(follow=True):
            if entry.index == 700:
                break
        follower = client.read(1999, follow=True)
        assert next(follower).body == b"1998"
        client.append(b"more")
        assert [next(follower).body, next(follower).body] == [b"1999", b"more"]
        follower.close()


def test_closing_ends_the_calls_of_other_threads(group):
    group.script = lambda node, batch: DROP_ANSWER
    client = connect_blocking(dict(group.addresses), group="g")
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(client.append, b"a")
        while not group.batches:
            group.thread.run(asyncio.sleep(0.001))
        client.close()
        client.close()
        with pytest.raises(StoppedError):
            pending.result()
    for call in (lambda: client.append(b"b"), client.status, lambda: next(client.read()), client.__enter__):
        with pytest.raises(StoppedError):
            call()


def test_a_dead_node_is_in_the_status(group):
    group.thread.run(group.nodes["n2"].kill())
    with connect_blocking(dict(group.addresses), group="g") as client:
        assert isinstance(client.status(timeout=20.0)[2], DownNode)


def test_a_wrong_configuration_is_told_at_once():
    with pytest.raises(ConfigError):
        connect_blocking("nowhere")


def test_an_unused_client_starts_no_thread():
    client = connect_blocking("127.0.0.1:1")
    assert isinstance(client, BlockingLedgerClient)
    assert _LoopThread._current is None
    client.close()


def test_a_call_from_the_loop_itself_is_refused_instead_of_waiting_for_ever(group):
    client = connect_blocking(dict(group.addresses), group="g")

    async def inside():
        with pytest.raises(StoppedError):
            client.append(b"a")

    with client:
        group.thread.run(inside())
