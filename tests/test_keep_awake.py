"""`dledger.keep_awake` and the setting ``keepCpusAwake``, with a file in place of the kernel's device."""

from __future__ import annotations

import asyncio
import struct

import pytest

from dledger import DLedgerConfig, DLedgerServer, Peer
from dledger import keep_awake as module
from dledger.errors import ConfigError, NotLeaderError
from dledger.keep_awake import KeepAwake, keep_awake_while_changing
from dledger.local_group import free_ports

AT_ONCE, WHENEVER = 0, 2_000_000_000


@pytest.fixture
def device(tmp_path):
    path = tmp_path / "cpu_dma_latency"
    path.touch()
    return path


def wishes(device):
    """What was written, a number each."""
    return [number for (number,) in struct.iter_unpack("=i", device.read_bytes())]


def test_a_wish_is_written_when_it_changes_and_ends_with_the_file(device):
    with KeepAwake(device) as wish:
        assert wish.is_on
        wish.set(True)
        wish.set(False)
        assert not wish.is_on
    assert wishes(device) == [AT_ONCE, WHENEVER]
    with pytest.raises(OSError, match="Bad file descriptor"):
        wish.set(True)


def test_who_may_not_ask_is_told(tmp_path):
    with pytest.raises(FileNotFoundError):
        KeepAwake(tmp_path / "none")


@pytest.mark.asyncio
async def test_processors_are_awake_while_progress_goes_on(device, monkeypatch):
    monkeypatch.setattr(module, "_LOOK_EVERY_S", 0)
    seen = iter([7, 7, 8, 9, 9, 9, 10])
    with pytest.raises(RuntimeError, match="StopIteration"):
        await keep_awake_while_changing(KeepAwake(device), lambda: next(seen))
    assert wishes(device) == [AT_ONCE, WHENEVER, AT_ONCE]


def config(tmp_path, **more):
    peers = (Peer("n0", "127.0.0.1", free_ports(1)[0]),)
    return DLedgerConfig(group="g", self_id="n0", peers=peers, store_path_root_dir=str(tmp_path), **more)


@pytest.mark.asyncio
async def test_a_node_keeps_processors_awake_while_entries_come_in_and_no_longer(tmp_path, device, monkeypatch):
    monkeypatch.setattr(module, "_LOOK_EVERY_S", 0.01)
    monkeypatch.setattr("dledger.server.KeepAwake", lambda: KeepAwake(device))
    server = DLedgerServer(config(tmp_path, keep_cpus_awake="busy"))
    await server.start()
    async with asyncio.timeout(20):
        while AT_ONCE not in wishes(device):
            try:
                await server.append(b"x")
            except NotLeaderError:
                await asyncio.sleep(0.01)
        while wishes(device)[-1] != WHENEVER:  # noqa: ASYNC110 - a file
            await asyncio.sleep(0.01)
    await server.stop()


@pytest.mark.asyncio
async def test_by_itself_a_node_wishes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("dledger.server.KeepAwake", lambda: pytest.fail("nobody asked for it"))
    server = DLedgerServer(config(tmp_path))
    await server.start()
    await server.stop()


@pytest.mark.asyncio
async def test_a_node_that_may_not_wish_does_not_start_and_gives_its_folder_back(tmp_path, monkeypatch):
    monkeypatch.setattr("dledger.server.KeepAwake", lambda: KeepAwake(tmp_path / "none"))
    with pytest.raises(ConfigError, match="keepCpusAwake=busy needs to write /dev/cpu_dma_latency: No such file"):
        await DLedgerServer(config(tmp_path, keep_cpus_awake="busy")).start()
    server = DLedgerServer(config(tmp_path))
    await server.start()
    await server.stop()
