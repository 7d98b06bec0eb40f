"""A node in a process of its own, for tests that kill it: ``python -m tests.rpc.peer_process NODE PORT PEER=ADDRESS…``.

Prints its port once it listens, and answers every heartbeat.
"""

from __future__ import annotations

import asyncio
import sys

from dledger.raft.messages import Heartbeat, HeartbeatResponse
from tests.rpc.fakes import Node


async def main(node_id, port, *peers):
    members = dict(peer.split("=") for peer in peers)
    node = Node(node_id)
    port = await node.listen({}, port=int(port))
    members[node_id] = f"127.0.0.1:{port}"

    def answer(message):
        if isinstance(message, Heartbeat):
            response = HeartbeatResponse(node_id, message.term, message.round, message.sent_index, -1, -1)
            node.transport.send(message.sender, response)

    node.handler.on_receive = answer
    await node.start(members)
    sys.stderr.flush()
    print(f"port {port}", file=sys.stderr, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
