"""The local store from outside: what is put comes back as upstream would give it, and refusals are typed."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path

import pytest

from broker_adapter.message import Message, decode_message, parse_message_id, tags_code
from broker_adapter.store.api import (
    SCHEDULE_TOPIC,
    Arrival,
    BrokerRole,
    FlushDiskType,
    GetMessageStatus,
    PutMessageStatus,
    StateKind,
)
from broker_adapter.store.factory import open_store
from broker_adapter.store.local_store import LocalMessageStore
from dledger.errors import DiskFullError, StorageFailedError
from tests.broker.format_reader import read_checkpoint, read_commit_log, read_index_file
from tests.broker.store.helpers import (
    ENTRIES,
    SLOTS,
    batch,
    check_files,
    consume,
    eventually,
    fill,
    message,
    opened,
    store_config,
)

pytestmark = pytest.mark.asyncio


@pytest.mark.parametrize("flush", list(FlushDiskType))
async def test_all_files_are_rocketmqs(tmp_path: Path, flush: FlushDiskType) -> None:
    """400 messages over many small files of each kind: the independent reader finds the same ones everywhere."""
    store = await opened(store_config(tmp_path, flush_disk_type=flush))
    results = await fill(store, 400)
    results.append(await store.put_messages(batch(range(400, 420))))
    assert {result.status for result in results} == {PutMessageStatus.PUT_OK}
    consumed = [m for queue in range(3) for m in await consume(store, "Topic", queue)]
    await store.stop()
    read = check_files(tmp_path)
    assert len(read) == 420
    assert len(list((tmp_path / "commitlog").iterdir())) > 4
    assert len(list((tmp_path / "index").iterdir())) > 2
    assert sorted(m.body for m in consumed) == sorted(m.body for m in read)
    assert read[400].properties["SHARED"] == "yes"
    assert read_checkpoint(tmp_path / "checkpoint") == (read[-1].store_time,) * 3
    assert not (tmp_path / "abort").exists()


async def test_results_say_where_the_message_is(tmp_path: Path) -> None:
    store = await opened(store_config(tmp_path))
    results = await fill(store, 9)
    assert [result.queue_offset for result in results] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for number, result in enumerate(results):
        host, physical = parse_message_id(result.message_id)
        assert (host, physical) == (store.config.store_host, result.physical_offset)
        raw = await store.look_message_by_offset(physical, result.byte_count)
        assert raw is not None
        found = decode_message(raw)
        assert (found.flag, found.queue_id, found.queue_offset) == (number, result.queue_id, result.queue_offset)
        assert found.store_timestamp == result.store_timestamp
        assert found.message_id == result.message_id
    several = await store.put_messages(batch(range(4), queue_id=1))
    assert (several.queue_offset, several.count, several.queue_id) == (3, 4, 1)
    places = [parse_message_id(text)[1] for text in several.message_id.split(",")]
    assert (places[0], len(places)) == (several.physical_offset, 4)
    await store.stop()


async def test_wild_offsets_are_no_message(tmp_path: Path) -> None:
    """A consumer's send-back or an operator may ask for any number."""
    store = await opened(store_config(tmp_path))
    (result,) = await fill(store, 1)
    for physical in (-1, 1, result.byte_count, 10**15, -(2**62)):
        assert await store.look_message_by_offset(physical) is None
    assert await store.look_message_by_offset(0, result.byte_count + 1) is None
    await store.stop()


async def test_statuses_and_next_offsets_of_a_pull(tmp_path: Path) -> None:
    """Upstream's table, on a master and on a slave (which never corrects: it may only be behind)."""
    store = await opened(store_config(tmp_path))
    await fill(store, 6)

    async def get(topic: str, offset: int) -> tuple[GetMessageStatus, int]:
        result = await store.get_message("g", topic, 0, offset, 32)
        return result.status, result.next_begin_offset

    assert await get("None", 5) == (GetMessageStatus.NO_MATCHED_LOGIC_QUEUE, 0)
    assert await get("Topic", 0) == (GetMessageStatus.FOUND, 2)
    assert await get("Topic", 2) == (GetMessageStatus.OFFSET_OVERFLOW_ONE, 2)
    assert await get("Topic", 3) == (GetMessageStatus.OFFSET_OVERFLOW_BADLY, 0)
    assert await get("Topic", -1) == (GetMessageStatus.OFFSET_TOO_SMALL, 0)
    store.set_role(BrokerRole.SLAVE)
    assert await get("Topic", 3) == (GetMessageStatus.OFFSET_OVERFLOW_BADLY, 3)
    assert await get("Topic", -1) == (GetMessageStatus.OFFSET_TOO_SMALL, -1)
    assert await get("None", 5) == (GetMessageStatus.NO_MATCHED_LOGIC_QUEUE, 5)
    await store.stop()


async def test_tag_filter_uses_the_codes(tmp_path: Path) -> None:
    store = await opened(store_config(tmp_path))
    await asyncio.gather(*(store.put_message(message(n, queue_id=0)) for n in range(30)))
    wanted = frozenset({tags_code("T1")})
    result = await store.get_message("g", "Topic", 0, 0, 32, wanted)
    assert result.status is GetMessageStatus.FOUND
    assert result.next_begin_offset == 30
    assert [decode_message(raw).flag % 3 for raw in result.buffers] == [1] * 10
    nothing = await store.get_message("g", "Topic", 0, 0, 32, frozenset({12345}))
    assert (nothing.status, nothing.next_begin_offset) == (GetMessageStatus.NO_MATCHED_MESSAGE, 30)
    await store.stop()


@pytest.mark.parametrize("cached", [True, False])
async def test_transfer_limits_and_the_forty_percent_rule(tmp_path: Path, cached: bool) -> None:
    """Near the end of the log: 32 messages or the memory bytes. Further than 40 % of memory back: 8, and the slave."""
    config = store_config(
        tmp_path,
        total_physical_memory_bytes=40_000,
        max_transfer_bytes_on_message_in_memory=3000,
        message_cache_bytes=1 << 20 if cached else 0,
    )
    store = await opened(config)
    await asyncio.gather(*(store.put_message(Message("T", b"x" * 400)) for _ in range(100)))
    far = await store.get_message("g", "T", 0, 0, 32)
    assert (far.message_count, far.suggest_pulling_from_slave) == (8, True)
    assert far.backlog_bytes > 16_000
    near = await store.get_message("g", "T", 0, 95, 32)
    assert (near.message_count, near.suggest_pulling_from_slave, near.next_begin_offset) == (5, False, 100)
    middle = await store.get_message("g", "T", 0, 80, 32)
    assert 5 < middle.message_count < 8, "3000 bytes of messages of about 490"
    assert middle.byte_count <= 3000
    own = await store.get_message("g", "T", 0, 0, 20, max_bytes=1 << 20)
    assert own.message_count == 20
    assert (await store.get_message("g", "T", 0, 0, 20, max_bytes=1)).message_count == 1, "never less than one"
    assert store.is_in_memory("T", 0, 99)
    assert not store.is_in_memory("T", 0, 0)
    store.set_role(BrokerRole.SLAVE)
    assert store._memory_limit() == 12_000, "30 % on a slave"
    await store.stop()


async def test_what_does_not_fit_is_illegal_and_takes_no_place(tmp_path: Path) -> None:
    store = await opened(store_config(tmp_path))
    for wrong in (
        Message("t" * 128, b""),
        Message("T", b"x" * 9000),
        Message("T", b"", properties=b"p" * 32_768),
        Message("T", b"", queue_id=2**40),
        Message("T", b"", born_host=("nowhere", 1)),
    ):
        result = await store.put_message(wrong)
        assert (result.status, result.maybe_stored) == (PutMessageStatus.MESSAGE_ILLEGAL, False)
        assert result.remark
    for body in (b"", b"\0" * 10, batch(range(3)).body[:-1]):
        assert (await store.put_messages(Message("T", body))).status is PutMessageStatus.MESSAGE_ILLEGAL
    assert (await store.put_messages(batch(range(200)))).status is PutMessageStatus.MESSAGE_ILLEGAL
    (result,) = await fill(store, 1)
    assert (result.queue_offset, result.physical_offset) == (0, 0)
    await store.stop()


async def test_delayed_messages_wait_in_the_schedule_topic(tmp_path: Path) -> None:
    """Level 3 → queue 2, the real topic in properties, the due time as tags code; levels beyond the last are capped."""
    store = await opened(store_config(tmp_path, message_delay_level="1s 5s 2m"))
    result = await store.put_message(message(1, more={"DELAY": "3"}))
    capped = await store.put_message(message(2, more={"DELAY": "99"}))
    await store.put_message(message(3, more={"DELAY": "0"}))
    assert (result.queue_id, capped.queue_id, capped.queue_offset) == (2, 2, 1)
    units = await store.queue_units(SCHEDULE_TOPIC, 2, 0, 10)
    assert [unit.tags_code for unit in units] == [r.store_timestamp + 120_000 for r in (result, capped)]
    raw = await store.look_message_by_offset(units[0].physical_offset, units[0].size)
    assert raw is not None
    found = decode_message(raw)
    assert (found.topic, found.get("REAL_TOPIC"), found.get("REAL_QID")) == (SCHEDULE_TOPIC, "Topic", "1")
    assert decode_message((await store.look_message_by_offset(units[1].physical_offset)) or b"").get("DELAY") == "3"
    assert store.max_offset("Topic", 0) == 1
    await store.stop()


async def test_transaction_halves_are_in_no_queue(tmp_path: Path) -> None:
    """Prepared (4) and rolled back (12) take offset 0 and no place in the queue; committed (8) does."""
    store = await opened(store_config(tmp_path))
    offsets = [(await store.put_message(Message("T", b"x", sys_flag=flag))).queue_offset for flag in (0, 4, 12, 8, 0)]
    assert offsets == [0, 0, 0, 1, 2]
    assert [m.sys_flag for m in await consume(store, "T", 0)] == [0, 8, 0]
    await store.stop()


async def test_query_by_key_finds_exact_matches_newest_first(tmp_path: Path) -> None:
    store = await opened(store_config(tmp_path))
    results = await fill(store, 100)
    now = int(time.time() * 1000)
    found = await store.query_message("Topic", "order-3", 64, now - 60_000, now + 1000)
    expected = [n for n in range(99, -1, -1) if n % 2 and n % 5 == 3]
    assert [decode_message(raw).flag for raw in found.buffers] == expected
    assert found.index_last_update_physical_offset == results[-1].physical_offset
    by_id = await store.query_message("Topic", f"7F0000010A2B18B4AAC2{50 // 7:08X}{50:04X}", 5, 0, 2**60)
    assert [decode_message(raw).flag for raw in by_id.buffers] == [50]
    assert (await store.query_message("Topic", "order-3", 2, 0, 2**60)).buffers == found.buffers[:2]
    assert (await store.query_message("Topic", "order-3", 64, 0, now - 60_000)).buffers == []
    assert (await store.query_message("Other", "order-3", 64, 0, 2**60)).buffers == []
    await store.stop()


async def test_offset_by_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first message stored at or after a time; the end where there is none."""
    store = await opened(store_config(tmp_path))
    for stamp in (1000, 1000, 2000, 3000, 3000):
        monkeypatch.setattr("broker_adapter.store.base.now_ms", lambda stamp=stamp: stamp)
        await store.put_message(Message("T", b"x"))
    asked = [0, 1000, 1001, 2000, 2500, 3000, 3001]
    assert [await store.offset_by_time("T", 0, stamp) for stamp in asked] == [0, 0, 2, 2, 3, 3, 5]
    assert await store.offset_by_time("None", 0, 5) == 0
    assert await store.earliest_store_time() == 1000
    assert await store.earliest_store_time("T", 0) == 1000
    assert await store.earliest_store_time("None", 0) == -1
    assert await store.message_store_time("T", 0, 2) == 2000
    assert await store.message_store_time("T", 0, 5) == -1
    await store.stop()


async def test_arrivals_are_told_once_per_queue_and_batch(tmp_path: Path) -> None:
    store = await opened(store_config(tmp_path))
    told: list[Arrival] = []
    store.add_arrival_listener(told.extend)
    await fill(store, 9)
    assert [(a.queue_id, a.first_offset, a.max_offset) for a in sorted(told, key=lambda a: a.queue_id)] == [
        (0, 0, 3),
        (1, 0, 3),
        (2, 0, 3),
    ]
    assert {tuple(a.tags_codes) for a in told} == {(tags_code(f"T{n}"),) * 3 for n in range(3)}
    await store.stop()


async def test_slaves_and_stopped_stores_refuse(tmp_path: Path) -> None:
    store = await opened(store_config(tmp_path, broker_role=BrokerRole.SLAVE))
    result = await store.put_message(message(0))
    assert (result.status, result.maybe_stored) == (PutMessageStatus.SERVICE_NOT_AVAILABLE, False)
    store.set_role(BrokerRole.ASYNC_MASTER)
    assert (await store.put_message(message(0))).is_ok
    await store.stop()
    await store.stop()
    assert (await store.put_message(message(0))).status is PutMessageStatus.SERVICE_NOT_AVAILABLE


async def test_what_is_put_before_stop_is_answered_and_kept(tmp_path: Path) -> None:
    store = await opened(store_config(tmp_path, flush_disk_type=FlushDiskType.SYNC_FLUSH))
    waiting = [asyncio.ensure_future(store.put_message(message(n))) for n in range(5)]
    await store.stop()
    assert {(await put).status for put in waiting} == {PutMessageStatus.PUT_OK}
    assert len(check_files(tmp_path)) == 5


async def test_a_full_disk_is_a_definite_refusal_and_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the turn is stored, offsets are given back, and the next put goes through."""
    store = await opened(store_config(tmp_path))
    await fill(store, 4)
    write = store.commit_log.files.write

    def full(pos: int, data: bytes) -> None:
        write(pos, data[: len(data) // 2])
        raise DiskFullError("no space left on device")

    monkeypatch.setattr(store.commit_log.files, "write", full)
    refused = await fill(store, 5, 4)
    assert {(r.status, r.maybe_stored) for r in refused} == {(PutMessageStatus.SERVICE_NOT_AVAILABLE, False)}
    monkeypatch.undo()
    results = await fill(store, 5, 4)
    assert all(result.is_ok for result in results)
    assert results[0].queue_offset == 1
    await store.stop()
    assert [m.flag for m in check_files(tmp_path)] == list(range(9))


async def test_full_disk_below_the_queues_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log took the message, the queue could not: puts are refused until it could, then it is there."""
    store = await opened(store_config(tmp_path))
    await fill(store, 3)
    queue = store.logic.find("Topic", 0)
    assert queue is not None

    def full(pos: int, data: bytes) -> None:
        raise DiskFullError("no space left on device")

    monkeypatch.setattr(queue.files, "write", full)
    assert (await store.put_message(message(3))).is_ok, "it is in the log"
    assert store.max_offset("Topic", 0) == 1
    assert (await store.put_message(message(4))).status is PutMessageStatus.SERVICE_NOT_AVAILABLE
    monkeypatch.undo()
    await store.wait_dispatched()
    assert store.max_offset("Topic", 0) == 2
    assert (await store.put_message(message(4))).is_ok
    await store.stop()
    assert len(check_files(tmp_path)) == 5


async def test_a_failed_fsync_is_final(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting puts get an unknown outcome, later ones a refusal, and the broker is told to end."""
    store = await opened(store_config(tmp_path, flush_disk_type=FlushDiskType.SYNC_FLUSH))

    def broken(paths: object) -> None:
        raise StorageFailedError("input/output error")

    monkeypatch.setattr("broker_adapter.store.local_store.sync_paths", broken)
    result = await store.put_message(message(0))
    assert (result.status, result.maybe_stored) == (PutMessageStatus.UNKNOWN_ERROR, True)
    assert isinstance(await store.wait_failed(), StorageFailedError)
    late = await store.put_message(message(1))
    assert (late.status, late.maybe_stored) == (PutMessageStatus.SERVICE_NOT_AVAILABLE, False)
    await store.stop()
    assert (tmp_path / "abort").exists(), "this was no stop in good order"


async def test_slow_flush_is_said_and_not_called_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SYNC_FLUSH over its time: FLUSH_DISK_TIMEOUT, which a client counts as sent; WAIT=false does not wait."""
    import threading

    release = threading.Event()
    store = await opened(store_config(tmp_path, flush_disk_type=FlushDiskType.SYNC_FLUSH, sync_flush_timeout_ms=60))
    monkeypatch.setattr("broker_adapter.store.local_store.sync_paths", lambda paths: release.wait(10))
    result = await store.put_message(message(0))
    assert (result.status, result.is_ok) == (PutMessageStatus.FLUSH_DISK_TIMEOUT, True)
    hasty = await store.put_message(message(1, more={"WAIT": "false"}))
    assert hasty.status is PutMessageStatus.PUT_OK
    release.set()
    await store.stop()


async def test_back_pressure(tmp_path: Path) -> None:
    store = await opened(store_config(tmp_path, put_message_pending_bytes=1000))
    results = await asyncio.gather(*(store.put_message(Message("T", b"x" * 400)) for _ in range(6)))
    statuses = [result.status for result in results]
    assert statuses[0] is PutMessageStatus.PUT_OK
    assert statuses[-1] is PutMessageStatus.OS_PAGECACHE_BUSY
    assert not results[-1].maybe_stored
    assert (await store.put_message(Message("T", b"x"))).is_ok
    await store.stop()


async def test_expired_files_go_and_queues_follow(tmp_path: Path) -> None:
    """Old files at the front are deleted (never the last); min offsets, index and reads follow."""
    config = store_config(tmp_path, file_reserved_time_hours=1)
    store = await opened(config)
    await fill(store, 400)
    now = int(time.time() * 1000)
    assert await store.clean_expired(now_ms=now, force=True) == 0, "nothing is old"
    files = sorted((tmp_path / "commitlog").iterdir())
    for path in files[:3]:
        os.utime(path, (now / 1000 - 7200, now / 1000 - 7200))
    assert await store.clean_expired(now_ms=now, force=True) == 3
    assert store.min_physical_offset == 3 * config.mapped_file_size_commit_log
    low = store.min_offset("Topic", 0)
    assert 0 < low < store.max_offset("Topic", 0)
    result = await store.get_message("g", "Topic", 0, 0, 32)
    assert (result.status, result.next_begin_offset) == (GetMessageStatus.OFFSET_TOO_SMALL, low)
    first = (await consume(store, "Topic", 0, low))[0]
    assert first.physical_offset >= store.min_physical_offset
    assert await store.look_message_by_offset(0) is None
    units = await store.queue_units("Topic", 0, low - 1, 1)
    assert units == [] or units[0].physical_offset < store.min_physical_offset
    await store.stop()
    again = await opened(config)
    assert again.min_offset("Topic", 0) == low
    assert (await consume(again, "Topic", 0, low))[0].physical_offset == first.physical_offset
    await again.stop()
    assert read_commit_log(tmp_path / "commitlog")[0].physical == 3 * config.mapped_file_size_commit_log


async def test_delete_when_is_the_hour(tmp_path: Path) -> None:
    config = store_config(tmp_path, file_reserved_time_hours=1, delete_when="03;05", disk_max_used_space_ratio=100,
                          clean_file_forcibly_enable=False)  # fmt: skip
    store = await opened(config)
    await fill(store, 200)
    day = time.mktime((2099, 1, 1, 0, 0, 0, 0, 0, -1)) * 1000
    assert await store.clean_expired(now_ms=int(day + 4.5 * 3_600_000)) == 0
    assert await store.clean_expired(now_ms=int(day + 5.5 * 3_600_000)) > 0
    await store.stop()


async def test_state_is_kept_in_upstreams_files(tmp_path: Path) -> None:
    config = store_config(tmp_path)
    store = await opened(config)
    told: list[tuple[str, str, object]] = []
    store.add_state_listener(lambda kind, key, value: told.append((kind, key, value)))
    await store.put_state(StateKind.TOPICS, "T", {"topicName": "T", "perm": 6})
    await store.put_states(
        [
            (StateKind.CONSUMER_OFFSETS, "T@g@0", 7),
            (StateKind.CONSUMER_OFFSETS, "T@g@1", 8),
            (StateKind.QUEUE_LOCKS, "x", 1),
        ]
    )
    await store.put_state(StateKind.DELAY_OFFSETS, "3", 11)
    await store.put_state(StateKind.SUBSCRIPTION_GROUPS, "gone", {"groupName": "gone"})
    await store.put_state(StateKind.SUBSCRIPTION_GROUPS, "gone", None)
    assert len(told) == 7
    assert told[-1] == (StateKind.SUBSCRIPTION_GROUPS, "gone", None)
    assert store.state_version(StateKind.CONSUMER_OFFSETS)[1] == 2
    await store.stop()
    read = {path.name: json.loads(path.read_text()) for path in (tmp_path / "config").glob("*.json")}
    assert read["topics.json"]["topicConfigTable"] == {"T": {"topicName": "T", "perm": 6}}
    assert read["consumerOffset.json"]["offsetTable"] == {"T@g": {"0": 7, "1": 8}}
    assert read["delayOffset.json"]["offsetTable"] == {"3": 11}
    assert read["subscriptionGroup.json"]["subscriptionGroupTable"] == {}
    again = await opened(config)
    assert again.state(StateKind.CONSUMER_OFFSETS) == {"T@g@0": 7, "T@g@1": 8}
    assert again.state_version(StateKind.TOPICS)[1] == 1
    assert again.state(StateKind.QUEUE_LOCKS) == {}
    await again.stop()


async def test_a_broken_config_file_falls_back_to_its_backup(tmp_path: Path) -> None:
    config = store_config(tmp_path)
    for value in (1, 2):
        store = await opened(config)
        await store.put_state(StateKind.DELAY_OFFSETS, "1", value)
        await store.stop()
    (tmp_path / "config" / "delayOffset.json").write_text("{broken")
    store = await opened(config)
    assert store.state(StateKind.DELAY_OFFSETS) == {"1": 1}
    await store.stop()


async def test_a_deleted_topic_stays_deleted_and_starts_again_at_zero(tmp_path: Path) -> None:
    config = store_config(tmp_path)
    store = await opened(config)
    await fill(store, 9)
    await fill(store, 3, topic="Other")
    await store.put_state(StateKind.TOPICS, "Topic", None)
    assert store.queue_ids("Topic") == []
    assert (await store.get_message("g", "Topic", 0, 0, 1)).status is GetMessageStatus.NO_MATCHED_LOGIC_QUEUE
    assert (await store.put_message(message(50))).queue_offset == 0
    assert store.queue_ids("Other") == [0, 1, 2]
    await store.stop()
    (tmp_path / "abort").touch()  # as after a crash
    again = await opened(config)
    assert [m.flag for m in await consume(again, "Topic", 50 % 3)] == [50]
    await again.stop()


async def test_index_files_roll_and_keep_their_chains(tmp_path: Path) -> None:
    store = await opened(store_config(tmp_path))
    await fill(store, 500)
    await store.stop()
    files = [read_index_file(path, SLOTS, ENTRIES) for path in sorted((tmp_path / "index").iterdir())]
    assert sum(file.count - 1 for file in files) == 500 + 2 * 250
    check_files(tmp_path)


async def test_index_can_be_switched_off(tmp_path: Path) -> None:
    config = store_config(tmp_path, message_index_enable=False)
    for first in (0, 20):
        store = await opened(config)
        await fill(store, 20, first)
        assert (await store.query_message("Topic", "k1", 5, 0, 2**60)).buffers == []
        await store.stop()
    assert not (tmp_path / "index").exists()


async def test_factory_picks_the_local_store(tmp_path: Path) -> None:
    assert isinstance(open_store(store_config(tmp_path)), LocalMessageStore)


async def test_runtime_figures(tmp_path: Path) -> None:
    store = await opened(store_config(tmp_path))
    await fill(store, 3)
    info = store.runtime_info()
    assert info["commitLogMinOffset"] == "0"
    assert int(info["commitLogMaxOffset"]) == store.max_physical_offset > 0
    assert info["dispatchBehindBytes"] == "0"
    assert store.dledger_status() is None
    await eventually(lambda: store.commit_log.flushed == store.commit_log.written)
    await store.stop()
