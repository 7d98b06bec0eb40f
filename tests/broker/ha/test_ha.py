"""Classic replication over loopback: the wire, the put statuses, and every way a slave or a master can come and go."""

from __future__ import annotations

import asyncio
import shutil
import struct
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from broker_adapter.store.api import BrokerRole, PutMessageStatus
from broker_adapter.store.local_store import LocalMessageStore
from tests.broker.format_reader import read_commit_log
from tests.broker.store.helpers import check_files, consume, eventually, fill, message, opened, store_config

pytestmark = pytest.mark.asyncio
REPOSITORY = Path(__file__).resolve().parents[3]


class Pair:
    """Makes masters and slaves, and stops them in the end."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.stores: list[LocalMessageStore] = []

    async def master(self, name: str = "master", **changes: Any) -> LocalMessageStore:
        settings = {"broker_role": BrokerRole.SYNC_MASTER, "slave_timeout_ms": 5000} | changes
        store = await opened(store_config(self.root / name, **settings))
        self.stores.append(store)
        return store

    async def slave(self, port: int | None, name: str = "slave", **changes: Any) -> LocalMessageStore:
        address = None if port is None else f"127.0.0.1:{port}"
        settings = {"broker_role": BrokerRole.SLAVE, "ha_master_address": address} | changes
        store = await opened(store_config(self.root / name, **settings))
        self.stores.append(store)
        return store


@pytest_asyncio.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    made = Pair(tmp_path)
    yield made
    for store in made.stores[::-1]:
        await store.stop()


def port_of(store: LocalMessageStore) -> int:
    address = store.ha_status().listen_address
    assert address is not None
    return address[1]


async def joined(master: LocalMessageStore, count: int = 1) -> None:
    """Wait until so many slaves have said how far they are."""
    await eventually(lambda: sum(link.ack_offset >= 0 for link in master.ha_master.connections) == count)


async def test_slave_has_the_same_bytes_queues_and_index(pair: Pair) -> None:
    """Over many files: the logs are byte-identical, the slave's queues and index complete, consumers read on there."""
    master = await pair.master()
    slave = await pair.slave(port_of(master))
    await joined(master)
    results = await fill(master, 300)
    assert {result.status for result in results} == {PutMessageStatus.PUT_OK}
    assert slave.max_physical_offset == master.max_physical_offset, "acknowledged means: the slave has it"
    for queue in range(3):
        expected = await consume(master, "Topic", queue)
        assert await consume(slave, "Topic", queue) == expected
    await master.stop()
    assert len(await consume(slave, "Topic", 0)) == 100, "the master is dead, the slave serves"
    await slave.stop()
    ours, theirs = (sorted((pair.root / name / "commitlog").iterdir()) for name in ("master", "slave"))
    assert [path.name for path in ours] == [path.name for path in theirs]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(ours, theirs, strict=True))
    assert len(check_files(pair.root / "slave")) == 300


async def test_wire_as_upstreams_slave_sees_it(pair: Pair) -> None:
    """A slave written from the wire's description: 8 bytes up, 12 and the log's bytes down, heartbeats of size 0."""
    master = await pair.master(broker_role=BrokerRole.ASYNC_MASTER, ha_send_heartbeat_interval_ms=50)
    await fill(master, 30)
    end = master.max_physical_offset
    start = read_commit_log(pair.root / "master" / "commitlog")[4].physical
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(master))
    writer.write(struct.pack(">q", start))
    log, pos = b"", start
    while pos < end:
        offset, size = struct.unpack(">qi", await reader.readexactly(12))
        assert offset == pos
        assert 0 < size <= master.config.ha_transfer_batch_bytes
        log += await reader.readexactly(size)
        pos += size
    assert log == master.commit_log.read(start, end - start, now=False)
    writer.write(struct.pack(">q", end))
    assert struct.unpack(">qi", await reader.readexactly(12)) == (end, 0)
    await eventually(lambda: master.ha_master.push_offset == end)
    (status,) = master.ha_status().slaves
    assert (status.ack_offset, status.diff_bytes, status.in_sync) == (end, 0, True)
    writer.close()
    await writer.wait_closed()
    await eventually(lambda: not master.ha_master.connections)


async def test_an_empty_slave_begins_with_the_last_file(pair: Pair) -> None:
    """Upstream's rule for a slave that reports 0: not the whole history, only the newest file; queues begin there."""
    master = await pair.master(broker_role=BrokerRole.ASYNC_MASTER)
    await fill(master, 300)
    start = master.commit_log.files.starts[-1]
    assert start > 0
    slave = await pair.slave(port_of(master))
    await eventually(lambda: slave.max_physical_offset == master.max_physical_offset)
    assert slave.min_physical_offset == start
    low, high = slave.min_offset("Topic", 1), slave.max_offset("Topic", 1)
    assert high == master.max_offset("Topic", 1) == 100
    assert 0 < low < 100
    assert await consume(slave, "Topic", 1, low) == await consume(master, "Topic", 1, low)
    await slave.stop()
    again = await pair.slave(port_of(master))
    assert (again.min_offset("Topic", 1), again.max_offset("Topic", 1)) == (low, high)
    check_files(pair.root / "slave")


async def test_no_slave_or_one_too_far_behind_is_said_at_once(pair: Pair) -> None:
    """SLAVE_NOT_AVAILABLE (11): the message is stored, counts as sent, and says what it lacks."""
    master = await pair.master(ha_slave_fallbehind_max_bytes=2000)
    alone = await master.put_message(message(0))
    assert (alone.status, alone.is_ok, alone.queue_offset) == (PutMessageStatus.SLAVE_NOT_AVAILABLE, True, 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(master))
    writer.write(struct.pack(">q", 0))
    await joined(master)
    writer.write(struct.pack(">q", master.max_physical_offset))
    await eventually(lambda: master.ha_master.push_offset > 0)
    hasty = await asyncio.gather(*(master.put_message(message(n, more={"WAIT": "false"})) for n in range(1, 20)))
    assert {result.status for result in hasty} == {PutMessageStatus.PUT_OK}, "WAIT=false asks for no slave"
    late = await master.put_message(message(20))
    assert late.status is PutMessageStatus.SLAVE_NOT_AVAILABLE, "more than 2000 bytes behind"
    assert master.ha_status().slaves[0].in_sync is False
    del reader
    writer.close()
    await writer.wait_closed()
    assert master.max_offset("Topic", 0) == 7


async def test_a_silent_slave_times_the_put_out(pair: Pair) -> None:
    """FLUSH_SLAVE_TIMEOUT (12): a slave is there and does not acknowledge. ASYNC_MASTER does not ask."""
    master = await pair.master(slave_timeout_ms=80)
    _, writer = await asyncio.open_connection("127.0.0.1", port_of(master))
    writer.write(struct.pack(">q", 0))
    await joined(master)
    result = await master.put_message(message(0))
    assert (result.status, result.is_ok) == (PutMessageStatus.FLUSH_SLAVE_TIMEOUT, True)
    assert master.max_offset("Topic", 0) == 1
    master.set_role(BrokerRole.ASYNC_MASTER)
    assert (await master.put_message(message(1))).status is PutMessageStatus.PUT_OK
    writer.close()
    await writer.wait_closed()


async def test_one_acknowledgement_of_several_slaves_is_enough(pair: Pair) -> None:
    master = await pair.master()
    slave = await pair.slave(port_of(master))
    _, writer = await asyncio.open_connection("127.0.0.1", port_of(master))
    writer.write(struct.pack(">q", 0))  # and never again
    await joined(master, 2)
    assert {result.status for result in await fill(master, 20)} == {PutMessageStatus.PUT_OK}
    assert slave.max_physical_offset == master.max_physical_offset
    assert len(master.ha_status().slaves) == 2
    writer.close()
    await writer.wait_closed()


async def test_slave_joins_late_leaves_and_comes_back(pair: Pair) -> None:
    """Each time it goes on from its own end; nothing is missing, nothing twice."""
    master = await pair.master(broker_role=BrokerRole.ASYNC_MASTER)
    written = 0
    slave = None
    for _ in range(4):
        await fill(master, 25, written)
        written += 25
        slave = await pair.slave(port_of(master))
        await fill(master, 25, written)
        written += 25
        await eventually(lambda store=slave: store.max_physical_offset == master.max_physical_offset)
        await slave.stop()
    assert slave is not None
    assert [m.flag for m in check_files(pair.root / "slave")] == list(range(written))


async def test_slave_killed_in_the_middle_recovers_and_goes_on(pair: Pair) -> None:
    """The folder as kill -9 leaves it, half a message at the end: cut, reported, filled up again."""
    master = await pair.master(broker_role=BrokerRole.ASYNC_MASTER)
    slave = await pair.slave(port_of(master), name="first")
    await joined(master)
    await fill(master, 40)
    await eventually(lambda: slave.max_physical_offset == master.max_physical_offset)
    shutil.copytree(pair.root / "first", pair.root / "second")
    await slave.stop()
    last = sorted((pair.root / "second" / "commitlog").iterdir())[-1]
    data = bytearray(last.read_bytes())
    end = master.max_physical_offset - int(last.name)
    data[end - 20 :] = bytes(len(data) - end + 20)
    last.write_bytes(data)
    again = await pair.slave(port_of(master), name="second")
    await fill(master, 40, 40)
    await eventually(lambda: again.max_physical_offset == master.max_physical_offset)
    await again.stop()
    assert [m.flag for m in check_files(pair.root / "second")] == list(range(80))


async def test_master_restarts_on_another_port_and_the_slave_follows(pair: Pair) -> None:
    """The name server's answer changes: `update_ha_master_address`."""
    master = await pair.master()
    slave = await pair.slave(None)
    assert not slave.ha_status().connected
    slave.update_ha_master_address(f"127.0.0.1:{port_of(master)}")
    await joined(master)
    await fill(master, 10)
    await master.stop()
    await eventually(lambda: not slave.ha_status().connected)
    restarted = await pair.master()
    slave.update_ha_master_address(f"127.0.0.1:{port_of(restarted)}")
    await joined(restarted)
    assert {result.status for result in await fill(restarted, 10, 10)} == {PutMessageStatus.PUT_OK}
    assert slave.max_physical_offset == restarted.max_physical_offset
    assert slave.ha_status().connected


async def test_a_slave_with_a_longer_log_is_not_believed(pair: Pair) -> None:
    """A master that lost its tail must not count such a slave's reports, nor write over the difference."""
    master = await pair.master()
    _, writer = await asyncio.open_connection("127.0.0.1", port_of(master))
    writer.write(struct.pack(">q", 10_000))
    await eventually(lambda: not master.ha_master.connections)
    assert master.ha_master.push_offset == 0
    assert (await master.put_message(message(0))).status is PutMessageStatus.SLAVE_NOT_AVAILABLE
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(
    "reply",
    [
        struct.pack(">qi", 0, -1),
        struct.pack(">qi", 0, 1 << 30),
        struct.pack(">qi", 77, 4) + b"abcd",
        struct.pack(">qi", -5, 4) + b"abcd",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
    ],
)
async def test_a_slave_takes_nothing_from_a_stream_that_is_none(pair: Pair, reply: bytes) -> None:
    """Wild sizes, a gap after its own end, another protocol: the connection is dropped, the log unchanged."""
    dropped = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(reply)
        while await reader.read(100):
            pass
        dropped.set()
        writer.close()
        await writer.wait_closed()

    master = await pair.master(broker_role=BrokerRole.ASYNC_MASTER)
    slave = await pair.slave(port_of(master), ha_reconnect_interval_ms=60_000)
    await fill(master, 3)
    await eventually(lambda: slave.max_physical_offset == master.max_physical_offset)
    end = slave.max_physical_offset
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    slave.update_ha_master_address(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    await asyncio.wait_for(dropped.wait(), 30)
    assert slave.max_physical_offset == end
    server.close()
    await server.wait_closed()


async def test_silence_ends_a_connection(pair: Pair) -> None:
    """After haHousekeepingInterval without a word either side breaks off."""
    master = await pair.master(ha_housekeeping_interval_ms=60)
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(master))
    writer.write(struct.pack(">q", 0))
    assert await asyncio.wait_for(reader.read(), 30) == b""
    writer.close()
    await writer.wait_closed()


async def test_heartbeats_keep_an_idle_pair_together(pair: Pair) -> None:
    """Many times the housekeeping interval without a message: still connected, then a put goes through."""
    times = {"ha_housekeeping_interval_ms": 300, "ha_send_heartbeat_interval_ms": 30}
    master = await pair.master(**times)
    slave = await pair.slave(port_of(master), **times)
    await joined(master)
    connection = next(iter(master.ha_master.connections))
    loop = asyncio.get_running_loop()
    until = loop.time() + 1.0
    await eventually(lambda: loop.time() > until)
    assert next(iter(master.ha_master.connections)) is connection
    assert (await master.put_message(message(0))).status is PutMessageStatus.PUT_OK
    assert slave.max_offset("Topic", 0) == 1


@pytest.mark.parametrize("role", [BrokerRole.SYNC_MASTER, BrokerRole.ASYNC_MASTER])
async def test_kill_the_master(pair: Pair, role: BrokerRole) -> None:
    """kill -9 of a master under eight producers. SYNC_MASTER: everything answered PUT_OK is on the slave.

    ASYNC_MASTER: what the slave has is a prefix of what was put, in order; the rest is lost, and nobody said otherwise.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.broker.ha.master_process", str(pair.root / "killed"), role.value,
        cwd=REPOSITORY, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None
    answered: list[int] = []
    try:
        port = 0
        while not port:
            line = await asyncio.wait_for(process.stdout.readline(), 30)
            assert line, "the master ended by itself"
            if line.startswith(b"port "):
                port = int(line.split()[1])
        slave = await pair.slave(port, mapped_file_size_commit_log=1 << 20)
        while len(answered) < 400:
            line = await asyncio.wait_for(process.stdout.readline(), 30)
            if line.startswith(b"ok "):
                answered.append(int(line.split()[1]))
    finally:
        process.kill()
    rest = await process.stdout.read()
    await process.wait()
    answered += [int(line.split()[1]) for line in rest.splitlines() if line.startswith(b"ok ") and rest.endswith(b"\n")]
    await eventually(lambda: not slave.ha_status().connected)
    slave.set_role(BrokerRole.ASYNC_MASTER)
    stored: list[int] = []
    for queue in range(3):
        found = await consume(slave, "Topic", queue)
        assert [m.queue_offset for m in found] == list(range(len(found)))
        stored += [m.flag for m in found]
    assert len(stored) == len(set(stored))
    if role is BrokerRole.SYNC_MASTER:
        assert set(answered) <= set(stored)
    log = pair.root / "killed" / "commitlog"
    length = slave.max_physical_offset
    master_bytes = b"".join(path.read_bytes() for path in sorted(log.iterdir()))[:length]
    assert slave.commit_log.read(0, min(length, 1 << 20), now=False) == master_bytes[: 1 << 20]
    assert (await slave.put_message(message(9_999_999, more={"UNIQ_KEY": "own"}))).is_ok
