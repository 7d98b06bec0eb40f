"""A replicated key-value store in a hundred lines: every node has all of it, and no answer is ever stale.

    python examples/replicated_kv.py FOLDER

Three nodes in one process, to keep it short; give each its own program and nothing else changes. A write goes into the
log as a command, every node applies the log in order, and a read waits until its node has applied all that was
acknowledged before (ReadIndex), so any node may answer it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence

from dledger import DLedgerConfig, DLedgerServer, Entry, EntryType, connect


class Dictionary:
    """The state machine: what the log means. Commands are JSON: ``["put", key, value]`` or ``["delete", key]``."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def apply(self, entries: Sequence[Entry]) -> None:
        """Called by the log with committed entries, in order, each once; from the first again after a restart."""
        for entry in entries:
            if entry.type is EntryType.NORMAL:
                match json.loads(entry.body):
                    case ["put", key, value]:
                        self.values[key] = value
                    case ["delete", key]:
                        self.values.pop(key, None)


class KeyValueNode:
    """One node: the log, and the dictionary that it makes."""

    def __init__(self, node_id: str, peers: str, folder: str) -> None:
        self._dictionary = Dictionary()
        config = DLedgerConfig.from_mapping(
            {"group": "kv", "selfId": node_id, "peers": peers, "storePathRootDir": folder}
        )
        self._log = DLedgerServer(config, state_machine=self._dictionary)
        self._client = connect(peers, group="kv")  # finds the leader, and appends exactly once

    async def start(self) -> None:
        await self._log.start()

    async def stop(self) -> None:
        await self._client.close()
        await self._log.stop()

    async def put(self, key: str, value: str) -> None:
        """Returns once a majority has it: whoever reads after that, anywhere, sees it."""
        await self._client.append(json.dumps(["put", key, value]).encode())

    async def delete(self, key: str) -> None:
        await self._client.append(json.dumps(["delete", key]).encode())

    async def get(self, key: str) -> str | None:
        """Linearizable: sees every write that was acknowledged, by whichever node, before the call."""
        await self._log.read_barrier()
        return self._dictionary.values.get(key)


async def main(folder: str, *addresses: str) -> None:
    addresses = addresses or ("127.0.0.1:20921", "127.0.0.1:20922", "127.0.0.1:20923")
    peers = ";".join(f"n{number}-{address}" for number, address in enumerate(addresses))
    nodes = [KeyValueNode(f"n{number}", peers, folder) for number in range(len(addresses))]
    await asyncio.gather(*(node.start() for node in nodes))
    first, second, third = nodes
    try:
        await first.put("colour", "blue")
        print("n1 reads:", await second.get("colour"))
        await second.put("colour", "green")
        print("n2 reads:", await third.get("colour"))
        await third.delete("colour")
        print("n0 reads:", await first.get("colour"))
    finally:
        await asyncio.gather(*(node.stop() for node in nodes))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
