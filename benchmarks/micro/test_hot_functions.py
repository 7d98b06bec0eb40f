"""The functions that every append and read passes, for groups of 1, 64 and 4096 entries of 256 bytes."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import pytest

from dledger.bench.histogram import Histogram
from dledger.driver.pending import PendingAppends
from dledger.raft.core import CoreOptions, RaftCore
from dledger.raft.messages import AppendEntries, AppendEntriesResponse, EntryType, HardState, RequestVoteResponse
from dledger.raft.quorum import Configuration
from dledger.rpc.codec import decode_stream, encode_stream
from dledger.storage.entry import EntryGroup, Slice, encode_groups, iter_entries, parse_slice
from dledger.storage.filesystem import RealFileSystem
from dledger.storage.log_store import LogStore, StoreOptions
from dledger.storage.memory_filesystem import MemoryFileSystem
from dledger.types import BatchResult, IndexRun
from dledger.v1 import ledger_pb2

BODY = os.urandom(256)
SIZES = [1, 64, 4096]
MEMBERS = ("n0", "n1", "n2")
SEGMENT_BYTES = 1 << 30

Benchmark = Callable[..., Any]


def groups(count: int) -> tuple[EntryGroup, ...]:
    return (EntryGroup(EntryType.NORMAL, 0, [BODY] * count),)


def encoded(count: int) -> list[Slice]:
    return encode_groups(groups(count), term=1, first_index=0, pos=0, prev_chain_crc=0, segment_bytes=SEGMENT_BYTES)


def of(benchmark: Any, entries: int) -> Any:  # noqa: ANN401 - pytest-benchmark's fixture
    benchmark.extra_info["entries"] = entries
    return benchmark


def message(count: int) -> AppendEntries:
    part = encoded(count)[0]
    return AppendEntries("n0", 1, -1, -1, part.last_index, part.terms, -1, 0, part)


@pytest.mark.parametrize("count", SIZES)
def test_encode(benchmark: Benchmark, count: int) -> None:
    """A leader lays entries out: headers, CRCs, chain."""
    made = of(benchmark, count)(encoded, count)
    assert made[-1].last_index == count - 1


@pytest.mark.parametrize("count", SIZES)
def test_verify(benchmark: Benchmark, count: int) -> None:
    """A follower verifies what came: CRCs, chain, places."""
    data = encoded(count)[0].data
    assert of(benchmark, count)(parse_slice, data, 0, 0).last_index == count - 1


@pytest.mark.parametrize("count", SIZES)
def test_verify_by_the_crc_of_all(benchmark: Benchmark, count: int) -> None:
    """The same for what a follower catches up with: its leader has verified it, and says its CRC."""
    data = encoded(count)[0].data
    crc = google_crc32c.value(data)
    assert of(benchmark, count)(parse_slice, data, 0, 0, crc).last_index == count - 1


@pytest.mark.parametrize("count", SIZES)
def test_message_out(benchmark: Benchmark, count: int) -> None:
    """A leader serialises a slice for a peer."""
    assert of(benchmark, count)(encode_stream, message(count), group="g", target="n1")


@pytest.mark.parametrize("count", SIZES)
def test_message_in(benchmark: Benchmark, count: int) -> None:
    """A follower parses, fences and verifies a message."""
    data = encode_stream(message(count), group="g", target="n1")
    found = of(benchmark, count)(decode_stream, data, group="g", node_id="n1", members=MEMBERS)
    assert found.last_index == count - 1


@pytest.mark.parametrize("count", SIZES)
def test_store(benchmark: Benchmark, count: int) -> None:
    """A store takes a group, writes it (to files in memory) and commits it."""
    store = LogStore.open(MemoryFileSystem(), "/store", group="g", node_id="n0")
    store.save_hard_state(HardState(1))

    def append() -> None:
        store.append(store.encode(1, groups(count)))
        batch = store.take_batch()
        assert batch is not None
        store.write(batch)
        store.complete(batch)
        store.commit(store.last_index)

    # So many rounds and no more: the files are in memory.
    of(benchmark, count).pedantic(append, rounds=20 if count > 1000 else 300, warmup_rounds=3)
    store.close()


@pytest.mark.parametrize("count", SIZES)
def test_read(benchmark: Benchmark, count: int) -> None:
    """A client takes a chunk of a read apart."""
    data = encoded(count)[0].data
    assert of(benchmark, count)(lambda: sum(1 for _ in iter_entries(data))) == count


def _filled(folder: Path, options: StoreOptions) -> LogStore:
    store = LogStore.open(RealFileSystem(), str(folder / "store"), group="g", node_id="n0", options=options)
    store.append(store.encode(1, groups(4096)))
    batch = store.take_batch()
    assert batch is not None
    store.write(batch)
    store.complete(batch)
    return store


@pytest.mark.parametrize("block_bytes", [32 * 1024, SEGMENT_BYTES], ids=["known", "verified"])
def test_read_back(benchmark: Benchmark, tmp_path: Path, block_bytes: int) -> None:
    """A node reads a megabyte of its log for a reader or a peer: by the sums of its blocks, or entry by entry."""
    store = _filled(tmp_path, StoreOptions(sum_block_bytes=block_bytes))
    max_bytes = 1 << 20
    count = store.read(0, 4095, max_bytes).last_index + 1
    assert of(benchmark, count)(store.read, 0, 4095, max_bytes).last_index == count - 1
    store.close()


def test_read_one(benchmark: Benchmark, tmp_path: Path) -> None:
    """A node reads one entry of its log for a get."""
    store = _filled(tmp_path, StoreOptions())
    assert of(benchmark, 1)(store.read, 2000, 2000, 1).last_index == 2000
    store.close()


def leading_core() -> RaftCore:
    core = RaftCore(
        "n0", Configuration(frozenset(MEMBERS)), CoreOptions(), hard_state=HardState(), runs=(), first_index=0,
        last_index=-1, commit_index=-1, random=random.Random(1), now_ms=0,
    )  # fmt: skip
    now = 10_000
    for peer in MEMBERS[1:]:
        core.peer_connected(peer, now)
    core.tick(now)
    core.ready()
    for pre_vote in (True, False):
        core.step(RequestVoteResponse("n1", core.term, core.term + pre_vote, True, pre_vote), now)
        ready = core.ready()
        if ready.hard_state is not None:
            core.hard_state_persisted(ready.hard_state, now)
            core.ready()
    assert core.is_leader
    return core


@pytest.mark.parametrize("count", SIZES)
def test_core_commits(benchmark: Benchmark, count: int) -> None:
    """The pure core: propose a group, hear that it is durable here and at both peers, commit it."""
    core = leading_core()
    clock = itertools.count(10_001)

    def commit() -> None:
        now = next(clock)
        core.propose(count, now)
        core.ready()
        core.persisted(core.last_index, core.term, now)
        for peer in MEMBERS[1:]:
            core.step(AppendEntriesResponse(peer, core.term, True, core.last_index, core.last_index), now)
        core.ready()

    of(benchmark, count)(commit)
    assert core.commit_index == core.last_index > 0


def test_batch_answered(benchmark: Benchmark) -> None:
    """A batch waits for its commit and is answered."""
    pending = PendingAppends()
    answers: list[BatchResult | None] = []
    numbers = itertools.count()

    def once() -> None:
        index = next(numbers)
        pending.add([IndexRun(index, 1, 1)], 256, 10**12, lambda result, _: answers.append(result), repeated=False)
        pending.resolve(index)

    of(benchmark, 1)(once)
    assert len(answers) > 1


@pytest.mark.parametrize("count", SIZES)
def test_client_message(benchmark: Benchmark, count: int) -> None:
    """A client's batch: made, serialised, parsed again, as both ends of an append stream do."""

    def there_and_back() -> int:
        request = ledger_pb2.AppendBatchRequest(group="g", bodies=[BODY] * count, session_id=1, first_sequence=1)
        return len(ledger_pb2.AppendBatchRequest.FromString(request.SerializeToString()).bodies)

    assert of(benchmark, count)(there_and_back) == count


@pytest.mark.parametrize("count", SIZES)
def test_futures(benchmark: Benchmark, count: int) -> None:
    """What asyncio itself asks for: a future for each entry, made, resolved and awaited."""
    loop = asyncio.new_event_loop()

    async def resolve() -> None:
        futures = [loop.create_future() for _ in range(count)]
        for future in futures:
            future.set_result(None)
        for future in futures:
            await future

    of(benchmark, count)(lambda: loop.run_until_complete(resolve()))
    loop.close()


def test_latencies_counted(benchmark: Benchmark) -> None:
    """The benchmark's own cost: a hundred thousand latencies into the histogram."""
    values = [random.Random(1).randrange(10**7) for _ in range(100_000)]
    of(benchmark, len(values))(lambda: Histogram().record_all(list(values)))
