"""A SYNC_MASTER in a process of its own, to be killed: prints its HA port, then a line for each put that is answered."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from broker_adapter.store.api import BrokerRole, PutMessageStatus
from tests.broker.store.helpers import eventually, message, opened, store_config


async def main(root: Path, role: BrokerRole) -> None:
    store = await opened(store_config(root, broker_role=role, mapped_file_size_commit_log=1 << 20))
    address = store.ha_status().listen_address
    assert address is not None
    print(f"port {address[1]}", flush=True)
    await eventually(lambda: store.ha_status().slaves, timeout=60)

    async def produce(lane: int) -> None:
        for number in range(lane, 1 << 30, 8):
            result = await store.put_message(message(number))
            if result.status is PutMessageStatus.PUT_OK:
                print(f"ok {number}", flush=True)
            else:
                print(f"{result.status.value} {number}", flush=True)

    await asyncio.gather(*(produce(lane) for lane in range(8)))


asyncio.run(main(Path(sys.argv[1]), BrokerRole(sys.argv[2])))
