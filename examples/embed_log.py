"""A node of a replicated log inside a program of your own.

    python examples/embed_log.py FOLDER

Starts one node (a group of one; name more peers for more), appends, reads, and hears of its role.
"""

from __future__ import annotations

import asyncio
import sys

from dledger import DLedgerConfig, DLedgerServer, MemberRole


class Announcer:
    """Told of every change of this node's role, in order. LEADER comes only when the log behind it is complete."""

    def __init__(self) -> None:
        self.leads = asyncio.Event()

    def startup(self) -> None:
        pass

    def handle(self, term: int, role: MemberRole) -> None:
        print(f"{role.name} in term {term}")
        if role is MemberRole.LEADER:
            self.leads.set()

    def shutdown(self) -> None:
        print("stopped")


async def main(folder: str, address: str = "127.0.0.1:20911") -> None:
    config = DLedgerConfig.from_mapping(
        {"group": "example", "selfId": "n0", "peers": f"n0-{address}", "storePathRootDir": folder}
    )
    server = DLedgerServer(config)
    announcer = Announcer()
    server.add_role_change_handler(announcer)
    await server.start()
    try:
        await announcer.leads.wait()
        result = await server.append(b"hello")  # returns when it is on a majority's disk
        print(f"appended at index {result.index}, byte {result.pos}")
        async for entry in server.read():
            print(f"{entry.index}: {entry.body.decode()}")
        status = server.status()
        print(f"{status.node_id} is {status.role}, committed up to {status.commit_index}")
    finally:
        await server.stop()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
