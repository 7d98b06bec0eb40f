"""Links lose, delay, double and reorder as told; connections break and come back; the codec changes nothing."""

from __future__ import annotations

import asyncio
import random

import pytest

from dledger.raft.messages import AppendEntries, EntryType, Heartbeat, RequestVote, TermRun
from dledger.sim.loop import new_loop
from dledger.sim.network import LinkOptions, Network, SimTransport
from dledger.sim.trace import Trace
from dledger.storage.entry import EntryGroup, RawSlice, Slice, encode_groups

MEMBERS = {"a": "a:1", "b": "b:1", "c": "c:1"}


class Node:
    """A handler that remembers."""

    def __init__(self, network, loop, name):
        self.loop = loop
        self.name = name
        self.process = loop.process(name)
        self.transport = SimTransport(network, name, self.process)
        self.messages = []
        self.hints = []

    def on_message(self, message):
        self.messages.append(message)

    def on_peer_connected(self, peer):
        self.hints.append(("up", peer))

    def on_peer_disconnected(self, peer):
        self.hints.append(("down", peer))


class Net:
    def __init__(self, options):
        self.loop = new_loop(random.Random(1))
        self.network = Network(
            self.loop, random.Random(2), Trace(self.loop), "g", MEMBERS, options, damage_rng=random.Random(3)
        )
        self.nodes = {name: Node(self.network, self.loop, name) for name in MEMBERS}

    def run(self, scenario):
        async def main():
            for node in self.nodes.values():
                await node.transport.start(node)
            await asyncio.sleep(1)
            await scenario(self)

        try:
            self.loop.run_until_complete(main())
            assert not self.loop.unhandled
        finally:
            self.loop.close()


def beats(count, sender="a"):
    return [Heartbeat(sender, 1, commit_index=-1, round=i, sent_index=-1) for i in range(count)]


async def send_all(net, messages, source="a", target="b", pause=1.0):
    for message in messages:
        net.nodes[source].transport.send(target, message)
    await asyncio.sleep(pause)
    return net.nodes[target].messages


@pytest.mark.parametrize("codec", [False, True])
def test_an_ordered_link_keeps_order_and_loses_nothing(codec):
    """What a stream promises."""

    async def scenario(net):
        assert net.nodes["a"].transport.is_connected("b")
        assert await send_all(net, beats(50)) == beats(50)

    Net(LinkOptions(codec=codec)).run(scenario)


def test_loss_duplication_and_reordering_happen():
    """Each at about its rate."""

    async def scenario(net):
        got = [message.round for message in await send_all(net, beats(1000))]
        assert 500 < len(set(got)) < 900
        assert len(got) > len(set(got))
        assert got != sorted(got)

    Net(LinkOptions(loss=0.3, duplicate=0.3, ordered=False)).run(scenario)


def test_cut_links_lose_one_way_only_and_keepalive_breaks_the_connection():
    """a cannot reach b, b still reaches a; seconds later both hear of it, and after healing they meet again."""

    async def scenario(net):
        net.network.cut("a", "b")
        assert await send_all(net, beats(5), pause=0) == []
        assert len(await send_all(net, beats(5, "b"), "b", "a")) == 5
        await asyncio.sleep(6)
        assert ("down", "b") in net.nodes["a"].hints and ("down", "a") in net.nodes["b"].hints
        assert not net.nodes["a"].transport.is_connected("b")
        net.network.heal()
        await asyncio.sleep(1)
        assert len(await send_all(net, beats(5))) == 5

    Net(LinkOptions()).run(scenario)


def test_a_clogged_link_delivers_late_and_all():
    """Nothing for the time, then everything."""

    async def scenario(net):
        net.network.clog("a", "b", 2.0)
        assert await send_all(net, beats(5)) == []
        await asyncio.sleep(1.5)
        assert len(net.nodes["b"].messages) == 5

    Net(LinkOptions()).run(scenario)


def test_a_killed_process_is_noticed_within_milliseconds():
    """kill -9 closes sockets; votes get through to a process that has just started, before any connection."""

    async def scenario(net):
        node = net.nodes["b"]
        net.loop.kill(node.process)
        net.network.detach(node.transport)
        await asyncio.sleep(0.01)
        assert net.nodes["a"].hints[-1] == ("down", "b")
        again = net.nodes["b"] = Node(net.network, net.loop, "b")
        await again.transport.start(again)
        vote = RequestVote("a", 2, -1, -1, pre_vote=True)
        assert vote in await send_all(net, [vote])
        assert net.nodes["a"].transport.is_connected("b")

    Net(LinkOptions()).run(scenario)


def test_false_disconnects_heal_by_themselves():
    """A hint, never a proof."""

    async def scenario(net):
        net.network.break_connection("a", "b")
        await asyncio.sleep(1)
        for name, peer in (("a", "b"), ("b", "a")):
            assert net.nodes[name].hints[-2:] == [("down", peer), ("up", peer)]

    Net(LinkOptions()).run(scenario)


def two_entries():
    """A slice of a log's first two entries."""
    return encode_groups(
        [EntryGroup(EntryType.NORMAL, 0, (b"one", b"two"))],
        term=1,
        first_index=0,
        pos=0,
        prev_chain_crc=0,
        segment_bytes=4096,
    )[0]


def append_of(part):
    """What a leader sends of a slice."""
    raw = RawSlice(part.first_index, part.last_index, part.data, part.prev_chain_crc)
    return AppendEntries("a", 1, -1, -1, 1, (TermRun(0, 1),), -1, 0, raw)


@pytest.mark.parametrize("codec", [False, True])
def test_entries_arrive_parsed(codec):
    """With and without the codec the receiver gets a verified slice."""
    part = two_entries()
    message = AppendEntries("a", 1, -1, -1, 1, (TermRun(0, 1),), -1, 0, part)

    async def scenario(net):
        [got] = await send_all(net, [message])
        assert got == message
        assert isinstance(got.payload, Slice) and got.payload is not part and got.payload == part

    Net(LinkOptions(codec=codec)).run(scenario)


@pytest.mark.parametrize("codec", [False, True])
def test_damaged_entries_are_refused_and_the_connection_begins_anew(codec):
    """Whichever bit it is; what carries no entries is spared."""

    async def scenario(net):
        taken = []
        net.network.on_damage_taken = lambda node, message: taken.append(node)
        for _ in range(50):
            assert await send_all(net, [append_of(two_entries())]) == []
        assert net.network.damaged == 50 and not taken
        for name, peer in (("a", "b"), ("b", "a")):
            assert net.nodes[name].hints[-2:] == [("down", peer), ("up", peer)]
        assert await send_all(net, beats(5)) == beats(5)
        net.network.options.damage = 0.0
        got = (await send_all(net, [append_of(two_entries())]))[-1]
        assert got.payload == two_entries()

    Net(LinkOptions(codec=codec, damage=1.0)).run(scenario)


def test_damage_that_is_taken_is_told(monkeypatch):
    """A receiver that does not look at the bytes is a violation, in every run."""

    async def scenario(net):
        taken = []
        net.network.on_damage_taken = lambda node, message: taken.append((node, message.last_index))
        await send_all(net, [append_of(two_entries())])
        assert taken == [("b", 1)]

    monkeypatch.setattr("dledger.sim.network.parse_slice", lambda *_: two_entries())
    Net(LinkOptions(damage=1.0)).run(scenario)
