"""The small state beside the messages: topics, subscription groups, consumer offsets, delay progress, locks.

In DLedger mode a change is an entry in the replicated log, applied in order on every node:

    at  size field
     0   4   total size
     4   4   magic       0xD57A7E01: neither a message nor a blank
     8   8   timestamp   ms, for the tables' versions
    16   n   JSON        [[kind, key, value], …], value null = deleted

In local mode the tables are RocketMQ's ``config/*.json`` files, written in the background.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from struct import Struct
from struct import error as StructError
from typing import Any, Final

import structlog

from broker_adapter.message import MessageFormatError
from broker_adapter.store.api import StateKind, StateListener
from broker_adapter.store.checkpoint import write_atomically

__all__ = ["STATE_MAGIC", "StateTables", "TableFiles", "decode_state", "encode_state", "load_files"]

STATE_MAGIC: Final = 0xD57A7E01
_HEAD: Final = Struct(">iIq")

Record = tuple[str, str, Any]


def encode_state(records: Sequence[tuple[str, str, object]], timestamp: int) -> bytes:
    """Return the entry body of some changes.

    Raises:
        TypeError, ValueError: a value that JSON cannot hold.
    """
    text = json.dumps(records, separators=(",", ":"), ensure_ascii=False).encode()
    return _HEAD.pack(_HEAD.size + len(text), STATE_MAGIC, timestamp) + text


def decode_state(body: bytes) -> tuple[list[Record], int]:
    """Return the changes of an entry body and their timestamp.

    Raises:
        MessageFormatError: not a state record.
    """
    try:
        total, magic, timestamp = _HEAD.unpack_from(body)
        if magic != STATE_MAGIC or total != len(body):
            raise ValueError(f"magic {magic:#010x}, size {total} of {len(body)}")
        records = [(kind, key, value) for kind, key, value in json.loads(body[_HEAD.size :])]
        if not all(isinstance(kind, str) and isinstance(key, str) for kind, key, _ in records):
            raise ValueError("kind and key are texts")
        return records, timestamp
    except (ValueError, TypeError, StructError) as error:
        raise MessageFormatError(f"not a state record: {error}") from None


class StateTables:
    """The tables, and who is told of changes. Event loop only."""

    def __init__(self) -> None:
        self._tables: dict[str, dict[str, Any]] = {}
        self._versions: dict[str, tuple[int, int]] = {}
        self._listeners: list[StateListener] = []

    def add_listener(self, listener: StateListener) -> None:
        self._listeners.append(listener)

    def table(self, kind: str) -> Mapping[str, Any]:
        return self._tables.setdefault(kind, {})

    def version(self, kind: str) -> tuple[int, int]:
        return self._versions.get(kind, (0, 0))

    def apply(self, records: Sequence[Record], timestamp: int) -> None:
        """Make the changes in order and tell the listeners."""
        for kind, key, value in records:
            table = self._tables.setdefault(kind, {})
            if value is None:
                table.pop(key, None)
            else:
                table[key] = value
            self._versions[kind] = (timestamp, self._versions.get(kind, (0, 0))[1] + 1)
        for listener in self._listeners:
            for kind, key, value in records:
                listener(kind, key, value)

    def export(self) -> dict[str, Any]:
        """Return everything as one JSON-able value, for the checkpoint."""
        return {kind: {"version": list(self.version(kind)), "table": table} for kind, table in self._tables.items()}

    def restore(self, exported: Mapping[str, Any]) -> None:
        """Set everything from `export`; listeners are not told (they start after)."""
        for kind, content in exported.items():
            self._tables[kind] = dict(content["table"])
            timestamp, counter = content["version"]
            self._versions[kind] = (timestamp, counter)


# ---------------------------------------------------------------------- local mode's files

_FILES: Final = {
    StateKind.TOPICS: ("topics.json", "topicConfigTable"),
    StateKind.SUBSCRIPTION_GROUPS: ("subscriptionGroup.json", "subscriptionGroupTable"),
    StateKind.CONSUMER_OFFSETS: ("consumerOffset.json", "offsetTable"),
    StateKind.DELAY_OFFSETS: ("delayOffset.json", "offsetTable"),
}


def _nest_offsets(table: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """``topic@group@queue`` → offset becomes upstream's ``topic@group`` → queue → offset."""
    nested: dict[str, dict[str, Any]] = {}
    for key, value in table.items():
        owner, _, queue_id = key.rpartition("@")
        nested.setdefault(owner, {})[queue_id] = value
    return nested


def _flatten_offsets(nested: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{owner}@{queue}": value for owner, queues in nested.items() for queue, value in queues.items()}


def _encode_file(kind: str, tables: StateTables) -> bytes:
    table = tables.table(kind)
    name = _FILES[kind][1]
    content: dict[str, Any] = {name: _nest_offsets(table) if kind == StateKind.CONSUMER_OFFSETS else table}
    timestamp, counter = tables.version(kind)
    content["dataVersion"] = {"timestamp": timestamp, "counter": counter}
    return json.dumps(content, indent=1, ensure_ascii=False).encode()


def load_files(folder: str, tables: StateTables) -> None:
    """Read the files there are; a damaged one falls back to its ``.bak``, as upstream's do."""
    exported: dict[str, Any] = {}
    for kind, (name, field) in _FILES.items():
        for path in (os.path.join(folder, name), os.path.join(folder, name + ".bak")):
            content = _read_json(path)
            if isinstance(content, dict) and isinstance(content.get(field), dict):
                version = content.get("dataVersion") or {}
                table = content[field]
                exported[kind] = {
                    "table": _flatten_offsets(table) if kind == StateKind.CONSUMER_OFFSETS else table,
                    "version": [int(version.get("timestamp", 0)), int(version.get("counter", 0))],
                }
                break
    tables.restore(exported)


def _read_json(path: str) -> object:
    try:
        with open(path, "rb") as file:
            return json.load(file)
    except FileNotFoundError:
        return None
    except ValueError as error:
        structlog.get_logger().warning("config_file_unusable", path=path, reason=str(error))
        return None


class TableFiles:
    """Writes changed tables to ``config/*.json``, at most once per interval."""

    def __init__(self, folder: str, tables: StateTables, interval_s: float) -> None:
        self._folder = folder
        self._tables = tables
        self._interval_s = interval_s
        self._dirty: set[str] = set()
        self._wanted = asyncio.Event()
        self._log = structlog.get_logger()

    def changed(self, kind: str) -> None:
        if kind in _FILES:
            self._dirty.add(kind)
            self._wanted.set()

    async def run(self) -> None:
        """Write in the background until cancelled."""
        while True:
            await self._wanted.wait()
            await asyncio.sleep(self._interval_s)
            await self.flush()

    async def flush(self) -> None:
        """Write what has changed. A full disk is tried again with the next change; the old file stays."""
        kinds, self._dirty = self._dirty, set()
        self._wanted.clear()
        work: list[Callable[[], None]] = []
        for kind in sorted(kinds):
            path = os.path.join(self._folder, _FILES[kind][0])
            work.append(_writer(path, _encode_file(kind, self._tables)))
        for write in work:
            await asyncio.get_running_loop().run_in_executor(None, write)


def _writer(path: str, data: bytes) -> Callable[[], None]:
    def write() -> None:
        with contextlib.suppress(FileNotFoundError), open(path, "rb") as old:
            previous = old.read()
            write_atomically(path + ".bak", previous)
        write_atomically(path, data)

    return write
