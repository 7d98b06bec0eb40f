"""Messages that are dispatched as a run leave what they leave one by one: the same units, index, tags and cache."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from broker_adapter.message import Message, batch_item, decode_batch, format_properties
from broker_adapter.store import dledger_store
from broker_adapter.store.api import SCHEDULE_TOPIC, Arrival, StoreConfig
from broker_adapter.store.dledger_store import DLedgerMessageStore
from broker_adapter.store.encode import batch_messages
from broker_adapter.store.put_groups import ENTRY_HEADER_BYTES, Put, PutGroups
from broker_adapter.store.runs import MIN_RUN, are_alike, numbers, run_length
from dledger.raft.messages import EntryType
from dledger.storage.entry import EntryGroup, encode_groups

HOST = b"\x7f\0\0\1\0\0\x2a\x9f"


class Batch:
    """What a producer sends at once, and what may make its messages differ."""

    def __init__(
        self,
        count: int,
        *,
        topic: str = "Topic",
        queue_id: int = 0,
        size: int = 40,
        sizes: Sequence[int] = (),
        tags: Sequence[str] = (),
        keys: Sequence[str] = (),
        delays: Sequence[str] = (),
        more: Sequence[bytes] = (),
        ids: bool = False,
        sys_flag: int = 0,
        born: int = 1,
        flag: int = 0,
        body: bytes = b"x",
    ) -> None:
        self.topic, self.queue_id, self.sys_flag, self.born, self.flag = topic, queue_id, sys_flag, born, flag
        self.items: list[bytes] = []
        for number in range(count):
            length = sizes[number % len(sizes)] if sizes else size
            properties = {}
            if ids:
                properties["UNIQ_KEY"] = f"7F0000010A2B18B4AAC2{born:08X}{number:04X}"
            if tags:
                properties["TAGS"] = tags[number % len(tags)]
            if keys:
                properties["KEYS"] = keys[number % len(keys)]
            if delays:
                properties["DELAY"] = delays[number % len(delays)]
            own = (more[number % len(more)] if more else b"") + format_properties(properties)
            self.items.append(batch_item(flag, (body * length)[:length], own))

    def put(self, done: Any) -> Put:
        message = Message(
            self.topic, b"".join(self.items), self.queue_id, sys_flag=self.sys_flag, born_timestamp=self.born,
            store_timestamp=9, born_host=("127.0.0.1", 4000),
        )  # fmt: skip
        bodies = batch_messages(message, decode_batch(message.body), HOST)
        return Put(done, message, bodies, sum(map(len, bodies)))


def log_of(
    batches: Sequence[Batch | bytes], *, segment_bytes: int = 1 << 30, terms: Sequence[int] = (1,)
) -> list[bytes]:
    """Return the slices of a log with these batches; bytes are an entry that is no message."""
    slices: list[Any] = []
    offsets: dict[tuple[bytes, int], int] = {}

    def append(bodies: Sequence[bytes], _done: Any, hook: Any) -> None:
        last = slices[-1] if slices else None
        term = terms[min(len(slices), len(terms) - 1)]
        slices.extend(
            encode_groups(
                [EntryGroup(EntryType.NORMAL, 0, bodies, hook)],
                term=term,
                first_index=last.last_index + 1 if last else 0,
                pos=last.end_pos if last else 0,
                prev_chain_crc=last.chain_crc if last else 0,
                segment_bytes=segment_bytes,
            )
        )

    async def put() -> None:
        groups = PutGroups(append, refuse=lambda: None, offsets=lambda: offsets, host=HOST, max_waiting_bytes=1 << 30)
        for batch in batches:
            if isinstance(batch, bytes):
                append([batch], None, None)
            else:
                groups.add(batch.put(lambda _: None))
                groups.hurry()

    asyncio.run(put())
    return [part.data for part in slices]


def dispatched(root: Path, slices: Sequence[bytes], segment_bytes: int, *, runs: bool) -> tuple[Any, ...]:
    """Return all that dispatching leaves behind."""
    arrivals: list[Arrival] = []
    with pytest.MonkeyPatch.context() as patch:
        if not runs:
            patch.setattr(dledger_store, "run_length", lambda *_: 1)

        async def run() -> tuple[Any, ...]:
            config = StoreConfig(
                store_path_root_dir=str(root), dledger_group="g", dledger_self_id="n0",
                dledger_peers="n0-127.0.0.1:1", max_hash_slot_num=16, max_index_num=200,
                mapped_file_size_consume_queue=50 * 20,
            )  # fmt: skip
            store = DLedgerMessageStore(config)
            store._segment_bytes = segment_bytes
            store.logic.load(None)
            store.logic.add_listener(arrivals.extend)
            for data in slices:
                await store.apply(data)
            logic = store.logic
            queues = {
                key: [queue.read(offset, 1, now=False) for offset in range(queue.next_offset)]
                for key, queue in logic.queues.items()
            }
            index_files = [Path(file.path) for file in logic.index.files]
            told: dict[tuple[str, int], list[int]] = {}
            for arrival in arrivals:
                told.setdefault((arrival.topic, arrival.queue_id), []).extend(arrival.tags_codes)
            cached = [
                logic.cache.message(int.from_bytes(unit[:8], "big")) for units in queues.values() for unit in units
            ]
            left = (
                queues, index_files, told, cached, logic.misplaced_count, logic.last_store_timestamp, store.applied_index,
                logic.dispatched_physical, store._applied_term,
            )  # fmt: skip
            logic.close()
            logic._pool.close()
            return left

        queues, index_files, *others = asyncio.run(run())
        index = [path.read_bytes() for path in index_files]
    shutil.rmtree(root, ignore_errors=True)  # a log without messages leaves nothing
    return queues, index, *others


def lengths_of(slices: Sequence[bytes]) -> list[int]:
    """The runs that are found from the first entry of each slice on."""
    found = []
    for data in slices:
        at = 0
        while at < len(data):
            size = int.from_bytes(data[at + 4 : at + 8], "big")
            place = int.from_bytes(data[at + 24 : at + 32], "big") + ENTRY_HEADER_BYTES
            found.append(run_length(data, at, size, place))
            at += size * found[-1]
    return found


names = st.lists(st.sampled_from(["A", "B", "AB", "longer"]), max_size=3)
batches = st.builds(
    Batch,
    st.integers(1, 40),
    topic=st.sampled_from(["Topic", "Other", SCHEDULE_TOPIC]),
    queue_id=st.integers(0, 1),
    size=st.integers(1, 60),
    sizes=st.lists(st.integers(1, 60), max_size=2),
    tags=names,
    keys=names,
    delays=st.lists(st.sampled_from(["1", "3"]), max_size=2),
    ids=st.booleans(),
    sys_flag=st.sampled_from([0, 0, 0, 4, 8, 12]),
    born=st.integers(1, 2),
    flag=st.integers(0, 1),
    body=st.sampled_from([b"x", b"TAGS\x01A\x02", b"UNIQ_KEY\x01", b"KEYS\x01k"]),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(batches | st.binary(max_size=120), min_size=1, max_size=8),
    st.sampled_from([4096, 1 << 30]),
    st.sampled_from([(1,), (1, 2), (1, 1, 5)]),
)
@example([Batch(32, ids=True), Batch(32, ids=True, tags=["A"]), Batch(32, tags=["A", "B"])], 1 << 30, (1,))
@example([Batch(9, tags=["B"], more=[*[b"USER\x01A\x02"] * 4, b"TAGS\x01A\x02"])], 1 << 30, (1,))
@example([Batch(20, topic=SCHEDULE_TOPIC, queue_id=2, delays=["3"])], 1 << 30, (1,))
@example([Batch(20, queue_id=0), Batch(20, queue_id=1), Batch(20, queue_id=0, topic="Other")], 1 << 30, (1,))
def test_runs_leave_what_single_messages_leave(
    tmp_path_factory: pytest.TempPathFactory, sent: list[Batch | bytes], segment_bytes: int, terms: Sequence[int]
) -> None:
    slices = log_of(sent, segment_bytes=segment_bytes, terms=terms)
    root = tmp_path_factory.mktemp("runs")
    one_by_one = dispatched(root / "a", slices, segment_bytes, runs=False)
    assert dispatched(root / "b", slices, segment_bytes, runs=True) == one_by_one


def test_a_batch_is_one_run_and_the_next_one_another() -> None:
    together = b"".join(log_of([Batch(32), Batch(20, born=2), Batch(MIN_RUN, queue_id=1), Batch(5, born=4)]))
    assert lengths_of([together]) == [32, 20, MIN_RUN, *[1] * 5]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Batch(20), Batch(20, queue_id=1)),
        (Batch(20), Batch(20, topic="Other")),
        (Batch(20), Batch(20, flag=1)),
        (Batch(20), Batch(20, size=41)),
        (Batch(20), Batch(20, sys_flag=4)),
    ],
    ids=["queue", "topic", "flag", "size", "transaction"],
)
def test_what_differs_ends_a_run(first: Batch, second: Batch) -> None:
    assert lengths_of([b"".join(log_of([first, second]))]) == [20, 20]


def test_a_new_term_ends_a_run_and_foreign_bytes_never_join_one() -> None:
    old, new = log_of([Batch(20), Batch(20)], terms=(1, 2))
    assert lengths_of([old + new]) == [20, 20]
    (data,) = log_of([Batch(20)])
    size = len(data) // 20
    wrong_place = bytearray(data)
    wrong_place[10 * size + 48 + 35] ^= 1
    assert run_length(bytes(wrong_place), 0, size, 48) == 1
    other_magic = bytearray(data)
    other_magic[10 * size + 48 + 7] ^= 1
    assert run_length(bytes(other_magic), 0, size, 48) == 10


@given(st.binary(min_size=200, max_size=400), st.integers(10, 20), st.integers(0, 9), st.integers(0, 9))
def test_alike_is_what_a_plain_look_says(data: bytes, stride: int, begin: int, width: int) -> None:
    data, end = bytes(byte & 1 for byte in data), min(begin + width, stride)
    for count in range(1, len(data) // stride):
        pieces = {data[at + begin : at + end] for at in range(0, count * stride, stride)}
        assert are_alike(data, 0, stride, count, begin, end) == (len(pieces) == 1)


def test_numbers_are_read_from_each_piece() -> None:
    expected = [2**40 + 7 * n for n in range(30)]
    data = b"".join(b"ab" + number.to_bytes(8, "big") for number in expected)
    assert numbers(data, 0, 10, 30, 2) == expected
    assert numbers(data, 50, 10, 3, 2) == expected[5:8]
