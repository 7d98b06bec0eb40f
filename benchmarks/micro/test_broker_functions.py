"""What every message passes in the broker: the put, up to the bytes of the log, and dispatching what is committed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from broker_adapter.message import Message, batch_item, decode_batch, encode_message
from broker_adapter.store.api import PutResult, StoreConfig
from broker_adapter.store.dledger_store import DLedgerMessageStore
from broker_adapter.store.encode import batch_messages
from broker_adapter.store.put_groups import Put, PutGroups
from dledger.raft.messages import EntryType
from dledger.storage.entry import EntryGroup, Slice, encode_groups
from dledger.types import AppendHook, BatchResult, IndexRun

PRODUCERS = 16
BODY = bytes(128)
HOST = b"\x7f\0\0\1\0\0\x2a\x9f"
ROUNDS = 40
BATCHES = [1, 32]
"""Messages a request."""


Benchmark = Callable[..., Any]
Done = Callable[[BatchResult | None, Exception | None], None]


def of(benchmark: Any, entries: int) -> Any:  # noqa: ANN401 - pytest-benchmark's fixture
    benchmark.extra_info["entries"] = entries
    return benchmark


class Log:
    """Encodes what it is given, as the leader of a log does, and answers at once."""

    def __init__(self) -> None:
        self.slices: list[Slice] = []
        self.offsets: dict[tuple[bytes, int], int] = {}
        self.answers: list[PutResult] = []

    def append(self, bodies: Sequence[bytes], done: Done, hook: AppendHook) -> None:
        last = self.slices[-1] if self.slices else None
        self.slices += encode_groups(
            [EntryGroup(EntryType.NORMAL, 0, bodies, hook)],
            term=1,
            first_index=last.last_index + 1 if last else 0,
            pos=last.end_pos if last else 0,
            prev_chain_crc=last.chain_crc if last else 0,
            segment_bytes=1 << 30,
        )
        part = self.slices[-1]
        done(BatchResult((IndexRun(part.first_index, len(bodies), 1),)), None)

    def put(self, batch: int) -> None:
        """Append a message or a batch of each producer."""
        groups = PutGroups(
            self.append, refuse=lambda: None, offsets=lambda: self.offsets, host=HOST,
            max_waiting_bytes=1 << 30,
        )  # fmt: skip
        for number in range(PRODUCERS):
            message = Message(
                "Topic", BODY, number % 4, b"UNIQ_KEY\x017F0000010A2B18B4AAC20000000%d0000\x02" % (number % 10),
                born_timestamp=number, store_timestamp=9, born_host=("127.0.0.1", 4000 + number),
            )  # fmt: skip
            if batch == 1:
                bodies = [encode_message(message)]
            else:
                message.body, message.properties = batch_item(0, BODY, b"") * batch, b""
                bodies = batch_messages(message, decode_batch(message.body), HOST)
            groups.add(Put(self.answers.append, message, bodies, sum(map(len, bodies))))
        groups.hurry()


@pytest.mark.parametrize("batch", BATCHES)
def test_put(benchmark: Benchmark, batch: int) -> None:
    """A master makes stored messages of what producers sent, gives them their places, and answers."""

    async def run() -> None:
        log = Log()
        of(benchmark, batch * PRODUCERS).pedantic(log.put, args=(batch,), rounds=ROUNDS, warmup_rounds=3)
        assert log.answers[-1].count == batch

    asyncio.run(run())


@pytest.mark.parametrize("batch", BATCHES)
def test_dispatch(benchmark: Benchmark, tmp_path: Path, batch: int) -> None:
    """Every node puts committed messages into their queues and the index."""

    async def run() -> None:
        log = Log()
        for _ in range(ROUNDS + 3):
            log.put(batch)
        store = DLedgerMessageStore(StoreConfig(store_path_root_dir=str(tmp_path), dledger_group="g",
                                                dledger_self_id="n0", dledger_peers="n0-127.0.0.1:1"))  # fmt: skip
        store.logic.load(None)
        slices = iter(log.slices)

        def apply() -> None:
            applying = store.apply(next(slices).data)
            with pytest.raises(StopIteration):
                while True:
                    applying.send(None)

        of(benchmark, batch * PRODUCERS).pedantic(apply, rounds=ROUNDS, warmup_rounds=3)
        assert store.applied_index == log.slices[-1].last_index
        assert store.logic.misplaced_count == 0
        store.logic.close()

    asyncio.run(run())
