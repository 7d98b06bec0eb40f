"""`DLedgerServer` as a program embeds it: what a failed start leaves behind."""

from __future__ import annotations

import asyncio

import pytest

from dledger import DLedgerConfig, DLedgerServer, Peer
from dledger.driver.driver import Driver
from dledger.errors import NotLeaderError, Outcome, StorageError, TermChangedError
from dledger.local_group import free_ports


def config(tmp_path, port, group="g"):
    peers = (Peer("n0", "127.0.0.1", port),)
    return DLedgerConfig(group=group, self_id="n0", peers=peers, store_path_root_dir=str(tmp_path))


async def first_append(server):
    async with asyncio.timeout(20):
        while True:
            try:
                return await server.append(b"x")
            except NotLeaderError:
                await asyncio.sleep(0.01)


@pytest.mark.asyncio
async def test_a_start_that_fails_in_the_end_gives_port_and_folder_back(tmp_path, monkeypatch):
    port = free_ports(1)[0]

    async def start(self):
        self.failure = asyncio.get_running_loop().create_future()
        raise RuntimeError("no")

    with monkeypatch.context() as patch:
        patch.setattr(Driver, "start", start)
        with pytest.raises(RuntimeError, match="no"):
            await DLedgerServer(config(tmp_path, port)).start()
    server = DLedgerServer(config(tmp_path, port))
    await server.start()
    assert (await first_append(server)).index >= 1
    await server.stop()


@pytest.mark.asyncio
async def test_a_folder_of_another_group_is_refused_and_nothing_is_left_running(tmp_path):
    port = free_ports(1)[0]
    server = DLedgerServer(config(tmp_path, port))
    await server.start()
    await server.stop()
    with pytest.raises(StorageError, match="belongs to node n0 of group g"):
        await DLedgerServer(config(tmp_path, port, group="other")).start()
    again = DLedgerServer(config(tmp_path, port))
    await again.start()
    await again.stop()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("hook", "kind"), [(lambda _, bodies: bodies[1:], ValueError), (lambda _, bodies: 1 / 0, ZeroDivisionError)]
)
async def test_a_hook_that_fails_stops_the_node_and_leaves_nobody_waiting(tmp_path, hook, kind):
    server = DLedgerServer(config(tmp_path, free_ports(1)[0]))
    await server.start()
    before = await first_append(server)
    with pytest.raises(TermChangedError) as caught:
        await asyncio.wait_for(server.append_batch([b"a", b"b"], hook=hook), 20)
    assert caught.value.outcome is Outcome.UNKNOWN
    with pytest.raises(kind):
        await asyncio.wait_for(server.wait_stopped(), 20)
    await server.stop()
    again = DLedgerServer(config(tmp_path, server.config.peer.port))
    await again.start()
    assert (await first_append(again)).index > before.index
    await again.stop()
