"""The store on the replicated log: three nodes in this process, leaders changing, restarts, and what clients are told."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import shutil
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from broker_adapter.message import Message, decode_message, parse_message_id
from broker_adapter.store.api import (
    SCHEDULE_TOPIC,
    BrokerRole,
    GetMessageStatus,
    PutMessageStatus,
    PutResult,
    StateKind,
)
from broker_adapter.store.dledger_store import DLedgerMessageStore
from broker_adapter.store.factory import open_store
from broker_adapter.store.put_groups import put_status
from dledger import ConfigError, DLedgerError, MemberRole, Outcome
from dledger.errors import (
    CorruptLogError,
    DiskFullError,
    EntryTooLargeError,
    LeaderNotReadyError,
    LeaderTransferringError,
    NotLeaderError,
    PendingFullError,
    QuorumTimeoutError,
    StoppedError,
    StorageFailedError,
    TermChangedError,
)
from dledger.local_group import free_ports
from tests.broker.format_reader import hash_of, read_consume_queues, read_replicated_log
from tests.broker.store.helpers import (
    QUEUE_FILE_BYTES,
    batch,
    check_index,
    consume,
    eventually,
    fill,
    message,
    store_config,
)

pytestmark = pytest.mark.asyncio
SEGMENT_BYTES = 32 * 1024


class Promoter:
    """The smallest role handler: what the broker's does for the store."""

    def __init__(self, store: DLedgerMessageStore) -> None:
        self.store = store

    def startup(self) -> None: ...

    async def handle(self, term: int, role: MemberRole) -> None:
        self.store.set_role(BrokerRole.SLAVE)
        if role is MemberRole.LEADER:
            try:
                await self.store.wait_dispatched()
                self.store.set_role(BrokerRole.SYNC_MASTER)
            except DLedgerError:
                pass  # leadership went meanwhile

    def shutdown(self) -> None: ...


class Group:
    """Some nodes, each a store with its own folder and real ports."""

    def __init__(self, root: Path, count: int) -> None:
        self.root = root
        ports = free_ports(count)
        self.peers = ";".join(f"n{number}-127.0.0.1:{port}" for number, port in enumerate(ports))
        self.stores: dict[str, DLedgerMessageStore] = {}

    async def start(self, node: str, **changes: Any) -> DLedgerMessageStore:
        config = store_config(
            self.root / node,
            enable_dledger_commit_log=True,
            dledger_group="RaftNode00",
            dledger_peers=self.peers,
            dledger_self_id=node,
            mapped_file_size_commit_log=SEGMENT_BYTES,
            dledger_settings={"maxEntryBytes": "16384", "maxAppendBytes": "16384"},
        )
        store = open_store(dataclasses.replace(config, **changes))
        assert isinstance(store, DLedgerMessageStore)
        store.add_role_change_handler(Promoter(store))
        await store.start()
        self.stores[node] = store
        return store

    async def stop(self, node: str) -> None:
        await self.stores.pop(node).stop()

    async def master(self) -> DLedgerMessageStore:
        """The one that takes puts: leads, and says so."""
        found: list[DLedgerMessageStore] = []

        def look() -> bool:
            for store in self.stores.values():
                status = store.dledger_status()
                if store.role is BrokerRole.SYNC_MASTER and status is not None and status.role == "leader":
                    found.append(store)
                    return True
            return False

        await eventually(look, 20)
        return found[0]

    async def settled(self) -> None:
        """All nodes have dispatched the same."""

        def same() -> bool:
            marks = {(s.applied_index, s.max_physical_offset) for s in self.stores.values()}
            commits = {s.server.status().commit_index for s in self.stores.values()}
            return len(marks) == 1 and commits == {next(iter(marks))[0]}

        await eventually(same, 20)


@pytest_asyncio.fixture
async def group(tmp_path: Path) -> AsyncIterator[Group]:
    made = Group(tmp_path, 3)
    for node in ("n0", "n1", "n2"):
        await made.start(node)
    yield made
    for node in list(made.stores):
        await made.stop(node)


@pytest_asyncio.fixture
async def alone(tmp_path: Path) -> AsyncIterator[Group]:
    made = Group(tmp_path, 1)
    await made.start("n0")
    yield made
    for node in list(made.stores):
        await made.stop(node)


def check_node(root: Path, node: str) -> list[Any]:
    """Decode a stopped node's files with the independent reader: log, queues and index say the same."""
    found = read_replicated_log(root / node / f"dledger-{node}" / "data", SEGMENT_BYTES)
    messages = [entry[2] for entry in found]
    assert [entry[0] for entry in found] == sorted({entry[0] for entry in found})
    expected: dict[tuple[str, int], dict[int, Any]] = {}
    for read in messages:
        expected.setdefault((read.topic, read.queue_id), {})[read.queue_offset] = (
            read.physical, read.size, hash_of(read.tag or "")
        )  # fmt: skip
    queues = read_consume_queues(root / node / "consumequeue", QUEUE_FILE_BYTES)
    assert queues == expected
    check_index(root / node, messages)
    return messages


async def test_every_node_has_the_same_queues_and_files(group: Group) -> None:
    """Singles and batches over several segments: offsets are the log's order, all files are right on all nodes."""
    master = await group.master()
    results = await fill(master, 300)
    results.append(await master.put_messages(batch(range(300, 320), queue_id=1)))
    assert {result.status for result in results} == {PutMessageStatus.PUT_OK}
    assert results[-1].queue_offset == 100
    for number, result in enumerate(results[:300]):
        assert result.queue_offset == number // 3
        assert parse_message_id(result.message_id.split(",")[0])[1] == result.physical_offset
        assert result.physical_offset % SEGMENT_BYTES >= 48
    await group.settled()
    reference = [await consume(master, "Topic", queue) for queue in range(3)]
    assert [len(queue) for queue in reference] == [100, 120, 100]
    for store in group.stores.values():
        assert [await consume(store, "Topic", queue) for queue in range(3)] == reference
        found = await store.query_message("Topic", "order-3", 64, 0, 2**60)
        assert len(found.buffers) == 32, "as many as defaultQueryMaxNum lets through"
    for node in list(group.stores):
        await group.stop(node)
        assert len(check_node(group.root, node)) == 320


async def test_reads_beyond_the_cache_come_from_the_files(group: Group) -> None:
    master = await group.master()
    await fill(master, 200)
    await group.settled()
    expected = await consume(master, "Topic", 0)
    for store in group.stores.values():
        store.logic.cache.clear()
        assert await consume(store, "Topic", 0) == expected
        raw = await store.look_message_by_offset(expected[5].physical_offset)
        assert raw is not None
        assert decode_message(raw) == expected[5]
        assert await store.look_message_by_offset(expected[5].physical_offset - 48) is None
        assert await store.look_message_by_offset(1 << 50) is None


async def test_leaders_come_and_go_and_order_holds(group: Group) -> None:
    """Leadership moves four times under producers: what was acknowledged is there once, offsets have no gap."""
    acknowledged: list[tuple[int, PutResult]] = []
    unknown: set[int] = set()
    stopping = asyncio.Event()

    async def produce(lane: int) -> None:
        number = lane
        while not stopping.is_set():
            for store in list(group.stores.values()):
                if store.role is BrokerRole.SYNC_MASTER:
                    result = await store.put_message(message(number))
                    if result.is_ok:
                        acknowledged.append((number, result))
                        number += 6
                        break
                    if result.maybe_stored:
                        unknown.add(number)
                        number += 6  # a retry would be a second message; this test counts exactly
                        break
            await asyncio.sleep(0.001)

    lanes = [asyncio.create_task(produce(lane)) for lane in range(6)]
    for _ in range(4):
        target = len(acknowledged) + 60
        await eventually(lambda target=target: len(acknowledged) >= target, 30)
        master = await group.master()
        await master.transfer_leadership()
    target = len(acknowledged) + 60
    await eventually(lambda: len(acknowledged) >= target, 30)
    stopping.set()
    await asyncio.gather(*lanes)
    await group.settled()
    places: dict[int, tuple[int, int]] = {}
    for store in group.stores.values():
        assert store.logic.misplaced_count == 0
        seen: list[int] = []
        for queue in range(3):
            found = await consume(store, "Topic", queue)
            assert [m.queue_offset for m in found] == list(range(len(found)))
            seen += [m.flag for m in found]
            places |= {m.flag: (queue, m.queue_offset) for m in found}
        assert len(seen) == len(set(seen)), "nothing twice"
        assert {number for number, _ in acknowledged} <= set(seen) <= {n for n, _ in acknowledged} | unknown
    for number, result in acknowledged:
        assert places[number] == (result.queue_id, result.queue_offset)


async def test_a_node_that_was_down_catches_up_and_can_lead(group: Group) -> None:
    master = await group.master()
    down = next(node for node, store in group.stores.items() if store is not master)
    await group.stop(down)
    await fill(master, 120)
    back = await group.start(down)
    await group.settled()
    assert back.max_offset("Topic", 0) == 40
    await master.transfer_leadership(down)
    await eventually(lambda: back.role is BrokerRole.SYNC_MASTER)
    assert (await back.put_message(message(120))).queue_offset == 40


async def test_state_travels_in_the_log(group: Group) -> None:
    """Topics, offsets and locks are on every node when the call returns on the master and the others have applied."""
    master = await group.master()
    told: dict[str, list[tuple[str, str, Any]]] = {node: [] for node in group.stores}
    for node, store in group.stores.items():
        store.add_state_listener(lambda *record, node=node: told[node].append(record))
    await master.put_state(StateKind.TOPICS, "T", {"perm": 6})
    records: list[tuple[str, str, object]] = [(StateKind.CONSUMER_OFFSETS, f"T@g@{n}", n) for n in range(4)]
    await master.put_states(records)
    await master.put_state(StateKind.CONSUMER_OFFSETS, "T@g@3", None)
    assert master.state(StateKind.CONSUMER_OFFSETS) == {f"T@g@{n}": n for n in range(3)}
    await group.settled()
    for node, store in group.stores.items():
        assert store.state(StateKind.TOPICS) == {"T": {"perm": 6}}
        assert store.state(StateKind.CONSUMER_OFFSETS) == master.state(StateKind.CONSUMER_OFFSETS)
        assert store.state_version(StateKind.TOPICS) == master.state_version(StateKind.TOPICS)
        assert told[node] == [
            (StateKind.TOPICS, "T", {"perm": 6}),
            *records,
            (StateKind.CONSUMER_OFFSETS, "T@g@3", None),
        ]
    slave = next(store for store in group.stores.values() if store is not master)
    with pytest.raises(NotLeaderError) as refused:
        await slave.put_state(StateKind.TOPICS, "X", {})
    assert refused.value.outcome is Outcome.DEFINITE
    for node in list(group.stores):
        await group.stop(node)
    for node in told:
        await group.start(node)
    again = await group.master()
    assert again.state(StateKind.CONSUMER_OFFSETS) == {f"T@g@{n}": n for n in range(3)}


async def test_a_deleted_topic_is_deleted_everywhere_and_in_order(group: Group) -> None:
    """Puts on their way around the deletion: those before it vanish, those behind it start at 0, on every node."""
    master = await group.master()
    await fill(master, 30)
    before = [asyncio.ensure_future(master.put_message(message(n, queue_id=0))) for n in range(30, 33)]
    deletion = asyncio.ensure_future(master.put_state(StateKind.TOPICS, "Topic", None))
    await asyncio.sleep(0)
    after = [asyncio.ensure_future(master.put_message(message(n, queue_id=0))) for n in range(33, 36)]
    assert [(await put).queue_offset for put in before] == [10, 11, 12]
    assert [(await put).queue_offset for put in after] == [0, 1, 2]
    await deletion
    await group.settled()
    for store in group.stores.values():
        assert store.queue_ids("Topic") == [0]
        assert [m.flag for m in await consume(store, "Topic", 0)] == [33, 34, 35]
        assert store.logic.misplaced_count == 0


@pytest.mark.parametrize("checkpointed", [True, False])
async def test_restart_replays_behind_the_checkpoint_and_equals_the_original(alone: Group, checkpointed: bool) -> None:
    """A copy of the folder as kill -9 leaves it, with and without a checkpoint: queues, index, state are the same."""
    store = alone.stores["n0"]
    await alone.master()
    await fill(store, 80)
    await store.put_state(StateKind.TOPICS, "T", {"perm": 6})
    if checkpointed:
        await store._save_checkpoint(entry_index=store.applied_index, entry_term=store._applied_term)
    await fill(store, 80, 80)
    await store.put_state(StateKind.DELAY_OFFSETS, "1", 5)
    await eventually(lambda: store.server.status().stable_index == store.applied_index)
    shutil.copytree(alone.root / "n0", alone.root / "image")
    expected = [await consume(store, "Topic", queue) for queue in range(3)]
    await alone.stop("n0")
    original = derived(alone.root / "n0")
    shutil.rmtree(alone.root / "n0")
    shutil.move(alone.root / "image", alone.root / "n0")
    again = await alone.start("n0")
    await alone.master()
    assert [await consume(again, "Topic", queue) for queue in range(3)] == expected
    assert again.state(StateKind.TOPICS) == {"T": {"perm": 6}}
    assert again.state(StateKind.DELAY_OFFSETS) == {"1": 5}
    await alone.stop("n0")
    assert derived(alone.root / "n0") == original


def derived(root: Path) -> dict[str, bytes]:
    paths = [*(root / "consumequeue").rglob("*"), *(root / "index").rglob("*")]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths if path.is_file()}


@pytest.mark.parametrize("lost", ["consumequeue", "index", "logicCheckpoint"])
async def test_lost_derived_files_come_again_from_the_log(alone: Group, lost: str) -> None:
    store = alone.stores["n0"]
    await alone.master()
    await fill(store, 150)
    await store.put_state(StateKind.DELAY_OFFSETS, "1", 5)
    await alone.stop("n0")
    original = derived(alone.root / "n0")
    path = alone.root / "n0" / lost
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    again = await alone.start("n0")
    await alone.master()
    assert again.max_offset("Topic", 2) == 50
    assert again.state(StateKind.DELAY_OFFSETS) == {"1": 5}
    await alone.stop("n0")
    assert derived(alone.root / "n0") == original


async def test_queues_of_another_log_are_noticed(alone: Group) -> None:
    """The log's folder was replaced: the node stops and says what to delete, rather than mix two histories."""
    store = alone.stores["n0"]
    await alone.master()
    await fill(store, 50)
    await alone.stop("n0")
    path = alone.root / "n0" / "logicCheckpoint"
    head, _, text = path.read_bytes().partition(b"\n")
    del head
    fields = json.loads(text)
    fields["entry_index"] -= 3
    from zlib import crc32

    text = json.dumps(fields, separators=(",", ":")).encode()
    path.write_bytes(b"%08x\n%b" % (crc32(text), text))
    again = await alone.start("n0")
    failure = await asyncio.wait_for(again.wait_failed(), 30)
    assert isinstance(failure, CorruptLogError)
    assert "logicCheckpoint" in str(failure)


async def test_slaves_refuse_and_a_stale_master_too(group: Group) -> None:
    """A put is taken only in the term for which this node was made master, whatever its role still says."""
    master = await group.master()
    slave = next(store for store in group.stores.values() if store is not master)
    for store in (slave,):
        result = await store.put_message(message(0))
        assert (result.status, result.maybe_stored) == (PutMessageStatus.SERVICE_NOT_AVAILABLE, False)
    with pytest.raises(NotLeaderError):
        slave.set_role(BrokerRole.SYNC_MASTER)
    master._master_term -= 1
    assert (await master.put_message(message(0))).status is PutMessageStatus.SERVICE_NOT_AVAILABLE
    master.set_role(BrokerRole.SYNC_MASTER)
    assert (await master.put_message(message(0))).is_ok
    master._applied_term -= 1
    master._role = BrokerRole.SLAVE
    with pytest.raises(LeaderNotReadyError):
        master.set_role(BrokerRole.SYNC_MASTER)


async def test_what_does_not_fit_is_illegal(alone: Group) -> None:
    store = await alone.master()
    for wrong in (Message("t" * 128, b""), Message("T", b"x" * 9000), Message("T", b"", properties=b"p" * 32_768)):
        assert (await store.put_message(wrong)).status is PutMessageStatus.MESSAGE_ILLEGAL
    assert (await store.put_messages(Message("T", b"garbage"))).status is PutMessageStatus.MESSAGE_ILLEGAL
    assert (await store.put_message(message(0))).queue_offset == 0


async def test_delay_and_transactions_as_in_the_local_store(alone: Group) -> None:
    store = await alone.master()
    result = await store.put_message(message(1, more={"DELAY": "2"}))
    (unit,) = await store.queue_units(SCHEDULE_TOPIC, 1, 0, 5)
    assert unit.tags_code == result.store_timestamp + 5000
    offsets = [(await store.put_message(Message("T", b"x", sys_flag=flag))).queue_offset for flag in (0, 4, 12, 8, 0)]
    assert offsets == [0, 0, 0, 1, 2]
    assert store.max_offset("T", 0) == 3


async def test_foreign_entries_are_skipped(alone: Group) -> None:
    """Somebody appends to the group's log by hand: bytes that are no message, or that lie about themselves."""
    store = await alone.master()
    await store.put_message(message(0, queue_id=0))
    lying = struct.pack(">iI20xq", 40, 0xDAA320A7, 0) + bytes(4)
    for body in (b"", b"hello", lying, b"\0\0\0\x10" + bytes.fromhex("D57A7E01") + b"12345678", bytes(500)):
        await store.server.append(body)
    result = await store.put_message(message(1, queue_id=0))
    await store.wait_dispatched()
    assert result.queue_offset == 1
    assert [m.flag for m in await consume(store, "Topic", 0)] == [0, 1]


async def test_disk_full_under_the_queues_delays_and_loses_nothing(
    alone: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await alone.master()
    await store.put_message(message(0, queue_id=0))
    await store.wait_dispatched()
    queue = store.logic.find("Topic", 0)
    assert queue is not None
    failing = True
    write = queue.files.write

    def full(pos: int, data: bytes) -> None:
        if failing:
            raise DiskFullError("no space left on device")
        write(pos, data)

    monkeypatch.setattr(queue.files, "write", full)
    assert (await store.put_message(message(1, queue_id=0))).is_ok
    assert store.dispatch_behind_bytes() > 0
    failing = False
    await store.wait_dispatched()
    assert store.max_offset("Topic", 0) == 2
    assert store.dispatch_behind_bytes() == 0


async def test_a_node_stopped_while_a_full_disk_holds_its_dispatch_starts_from_the_checkpoint_before(
    alone: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of two queues was written, the other not: a checkpoint of that would put a message twice into the first."""
    store = await alone.master()
    for queue_id in (0, 1):
        await store.put_message(message(queue_id, queue_id=queue_id))
    await store.wait_dispatched()
    queue = store.logic.find("Topic", 0)
    assert queue is not None

    def full(pos: int, data: bytes) -> None:
        raise DiskFullError("no space left on device")

    monkeypatch.setattr(queue.files, "write", full)
    puts = [store.put_message(message(2 + queue_id, queue_id=queue_id)) for queue_id in (0, 1)]
    assert all([(await put).is_ok for put in puts])
    await eventually(lambda: store.max_offset("Topic", 1) == 2)
    assert (store.max_offset("Topic", 0), store.logic.is_settled) == (1, False)
    await alone.stop("n0")
    store = await alone.start("n0")
    assert await alone.master() is store
    assert [len(await consume(store, "Topic", queue_id)) for queue_id in (0, 1)] == [2, 2]
    assert (store.logic.misplaced_count, store.logic.is_settled) == (0, True)


async def test_a_dispatch_that_cannot_go_on_ends_the_store(alone: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await alone.master()
    await store.put_message(message(0, queue_id=0))
    await store.wait_dispatched()
    queue = store.logic.find("Topic", 0)
    assert queue is not None

    def broken(pos: int, data: bytes) -> None:
        raise StorageFailedError("input/output error")

    monkeypatch.setattr(queue.files, "write", broken)
    assert (await store.put_message(message(1, queue_id=0))).is_ok, "it is in the log"
    waiting = asyncio.ensure_future(store.wait_dispatched())
    async with asyncio.timeout(30):
        assert isinstance(await store.wait_failed(), StorageFailedError)
        with pytest.raises(StoppedError):
            await waiting
    refused = await store.put_message(message(2, queue_id=0))
    assert (refused.status, refused.maybe_stored) == (PutMessageStatus.SERVICE_NOT_AVAILABLE, False)


async def test_without_a_quorum_the_outcome_is_unknown_and_said_so(group: Group) -> None:
    """Two of three gone: the put times out as OS_PAGECACHE_BUSY (clients retry), and may be stored."""
    for node in list(group.stores):
        await group.stop(node)
    settings = {
        "maxWaitAckTimeMs": "300",
        "electionTimeoutMs": "5000",
        "maxEntryBytes": "16384",
        "maxAppendBytes": "16384",
    }
    for node in ("n0", "n1", "n2"):
        await group.start(node, dledger_settings=settings)
    master = await group.master()
    for node in [node for node, store in group.stores.items() if store is not master]:
        store = group.stores.pop(node)
        store.server.driver.core  # noqa: B018 - both stop without handing anything over: they follow
        await store.stop()
    result = await master.put_message(message(0))
    assert (result.status, result.maybe_stored) == (PutMessageStatus.OS_PAGECACHE_BUSY, True)
    assert "[PC_SYNCHRONIZED]broker busy" in result.remark


@pytest.mark.parametrize(
    ("error", "before", "after"),
    [
        (NotLeaderError("x"), PutMessageStatus.SERVICE_NOT_AVAILABLE, PutMessageStatus.UNKNOWN_ERROR),
        (LeaderNotReadyError("x"), PutMessageStatus.SERVICE_NOT_AVAILABLE, PutMessageStatus.UNKNOWN_ERROR),
        (LeaderTransferringError("x"), PutMessageStatus.SERVICE_NOT_AVAILABLE, PutMessageStatus.UNKNOWN_ERROR),
        (DiskFullError("x"), PutMessageStatus.SERVICE_NOT_AVAILABLE, PutMessageStatus.UNKNOWN_ERROR),
        (StoppedError("x"), PutMessageStatus.SERVICE_NOT_AVAILABLE, PutMessageStatus.UNKNOWN_ERROR),
        (QuorumTimeoutError("x"), PutMessageStatus.OS_PAGECACHE_BUSY, PutMessageStatus.OS_PAGECACHE_BUSY),
        (PendingFullError("x"), PutMessageStatus.OS_PAGECACHE_BUSY, PutMessageStatus.OS_PAGECACHE_BUSY),
        (TermChangedError("x"), PutMessageStatus.UNKNOWN_ERROR, PutMessageStatus.UNKNOWN_ERROR),
        (EntryTooLargeError("x"), PutMessageStatus.MESSAGE_ILLEGAL, PutMessageStatus.UNKNOWN_ERROR),
        (ValueError("x"), PutMessageStatus.UNKNOWN_ERROR, PutMessageStatus.UNKNOWN_ERROR),
    ],
)
async def test_answers_of_the_log_as_put_statuses(
    error: Exception, before: PutMessageStatus, after: PutMessageStatus
) -> None:
    """Upstream's table; and once a message has its place, no answer promises that it is not stored."""
    assert put_status(error, has_position=False) is before
    assert put_status(error, has_position=True) is after


async def test_bad_configurations_are_refused_with_all_problems(tmp_path: Path) -> None:
    config = store_config(tmp_path, enable_dledger_commit_log=True, dledger_group="g", dledger_self_id="n9",
                          dledger_peers="n0-127.0.0.1:1;n1")  # fmt: skip
    with pytest.raises(ConfigError):
        open_store(config)


async def test_pull_statuses_on_a_follower(group: Group) -> None:
    """A slave keeps the offset that it was asked for: it may only be behind."""
    master = await group.master()
    await fill(master, 9)
    await group.settled()
    slave = next(store for store in group.stores.values() if store is not master)
    beyond = await slave.get_message("g", "Topic", 0, 50, 32)
    assert (beyond.status, beyond.next_begin_offset) == (GetMessageStatus.OFFSET_OVERFLOW_BADLY, 50)
    assert (await master.get_message("g", "Topic", 0, 50, 32)).next_begin_offset == 0


async def test_who_waits_for_the_dispatch_of_a_stopping_node_is_told(alone: Group) -> None:
    """An error with an unknown outcome, not a cancellation of somebody else's task."""
    store = await alone.master()
    waiting = asyncio.ensure_future(store._wait_applied(store.applied_index + 1000))
    await asyncio.sleep(0)
    await alone.stop("n0")
    with pytest.raises(StoppedError) as told:
        await waiting
    assert told.value.outcome is Outcome.UNKNOWN
    assert (await store.put_message(message(0))).status is PutMessageStatus.SERVICE_NOT_AVAILABLE
