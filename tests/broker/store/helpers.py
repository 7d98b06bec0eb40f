"""Small stores for tests, filled with messages, and the check of their files by the independent reader."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from broker_adapter.message import Message, batch_item, format_properties, iter_messages
from broker_adapter.store.api import GetMessageStatus, MessageStore, PutResult, StoreConfig
from broker_adapter.store.local_store import LocalMessageStore
from tests.broker.format_reader import (
    ReadMessage,
    hash_of,
    read_commit_log,
    read_consume_queues,
    read_index_file,
)

SLOTS, ENTRIES = 64, 300
QUEUE_FILE_BYTES = 50 * 20


def store_config(root: Path, **changes: Any) -> StoreConfig:
    """Files of a few KiB, so that a few hundred messages fill several of each kind."""
    base = StoreConfig(
        store_path_root_dir=str(root),
        mapped_file_size_commit_log=16 * 1024,
        mapped_file_size_consume_queue=QUEUE_FILE_BYTES,
        max_hash_slot_num=SLOTS,
        max_index_num=ENTRIES,
        max_message_size=8 * 1024,
        ha_listen_host="127.0.0.1",
        ha_listen_port=0,
        ha_reconnect_interval_ms=20,
    )
    return dataclasses.replace(base, **changes)


def message(number: int, topic: str = "Topic", queue_id: int | None = None, **changes: Any) -> Message:
    properties = {"UNIQ_KEY": f"7F0000010A2B18B4AAC2{number // 7:08X}{number:04X}", "TAGS": f"T{number % 3}"}
    if number % 2:
        properties["KEYS"] = f"k{number} order-{number % 5}"
    fields: dict[str, Any] = {
        "queue_id": number % 3 if queue_id is None else queue_id,
        "properties": format_properties(properties | changes.pop("more", {})),
        "born_timestamp": 1_700_000_000_000 + number,
        "born_host": ("10.0.0.1", 40_000),
        "flag": number,
    }
    return Message(topic, b"body-%d-" % number + b"x" * (number * 37 % 200), **(fields | changes))


def batch(numbers: Sequence[int], topic: str = "Topic", queue_id: int = 0) -> Message:
    items = [message(number) for number in numbers]
    body = b"".join(batch_item(item.flag, item.body, item.properties) for item in items)
    return Message(topic, body, queue_id, b"SHARED\x01yes\x02", born_timestamp=5, born_host=("10.0.0.2", 1))


async def fill(store: MessageStore, count: int, first: int = 0, topic: str = "Topic") -> list[PutResult]:
    return list(await asyncio.gather(*(store.put_message(message(n, topic)) for n in range(first, first + count))))


async def consume(store: MessageStore, topic: str, queue_id: int, offset: int = 0) -> list[Message]:
    """Everything of a queue, as a consumer reads it."""
    found: list[Message] = []
    while True:
        result = await store.get_message("g", topic, queue_id, offset, 32)
        if result.status is not GetMessageStatus.FOUND:
            return found
        found.extend(iter_messages(b"".join(result.buffers)))
        assert result.next_begin_offset > offset
        offset = result.next_begin_offset


async def opened(config: StoreConfig) -> LocalMessageStore:
    store = LocalMessageStore(config)
    await store.start()
    return store


async def eventually(condition: Callable[[], Any], timeout: float = 30.0) -> None:
    """Poll state that signals nothing; fail when the time is up."""
    deadline = asyncio.get_running_loop().time() + timeout
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "it did not come about"
        await asyncio.sleep(0.005)


def crash_image(config: StoreConfig, target: Path) -> StoreConfig:
    """What kill -9 would leave at this moment: a copy of the folder, to be opened as another store."""
    shutil.copytree(config.store_path_root_dir, target)
    return dataclasses.replace(config, store_path_root_dir=str(target))


def check_files(root: Path, messages: Sequence[ReadMessage] | None = None) -> list[ReadMessage]:
    """Decode all files with the independent reader; every file must say the same about the same messages."""
    if messages is None:
        messages = read_commit_log(root / "commitlog")
    expected: dict[tuple[str, int], dict[int, tuple[int, int, int]]] = {}
    for found in messages:
        units = expected.setdefault((found.topic, found.queue_id), {})
        assert found.queue_offset not in units, "one place, two messages"
        units[found.queue_offset] = (found.physical, found.size, hash_of(found.tag or ""))
    queues = read_consume_queues(root / "consumequeue", QUEUE_FILE_BYTES) if expected else {}
    assert {key: units for key, units in queues.items() if units} == expected
    check_index(root, messages)
    return list(messages)


def check_index(root: Path, messages: Sequence[ReadMessage]) -> None:
    files = [read_index_file(path, SLOTS, ENTRIES) for path in sorted((root / "index").glob("*"))]
    entries = [entry for file in files for entry in file.entries[1:]]
    by_key: dict[str, list[int]] = {}
    count = 0
    for found in messages:
        for key in found.keys:
            by_key.setdefault(f"{found.topic}#{key}", []).append(found.physical)
            count += 1
    assert len(entries) == count
    assert [file.count for file in files[:-1]] == [ENTRIES] * (len(files) - 1)
    for text, places in by_key.items():
        seen = [place for file in reversed(files) for place in file.find(text)]
        assert seen == places[::-1]
    for file in files:
        assert file.used_slots == sum(1 for slot in file.slots if slot)
        assert (file.begin_physical, file.end_physical) == (file.entries[1][1], file.entries[-1][1])
