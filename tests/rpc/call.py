"""A call of streams and the connection beside it, spoken by hand."""

from __future__ import annotations

import asyncio

from dledger.errors import ResponseCode
from dledger.rpc.client_door import FRAMES_KEY, TICKET_KEY
from dledger.rpc.frames import CLIENT_PREFACE
from dledger.v1 import ledger_pb2 as pb
from dledger.v1 import raft_pb2


def frame(data):
    return len(data).to_bytes(4, "big") + data


async def read_frame(reader):
    """Return the next frame that says something; b"" at the end."""
    try:
        while True:
            size = int.from_bytes(await reader.readexactly(4), "big")
            if size:
                return await reader.readexactly(size)
    except (asyncio.IncompleteReadError, ConnectionResetError):
        return b""


class Call:
    """One call of streams of a client that can do frames; requests go by gRPC until `go_over`."""

    def __init__(self, channel, port, method="AppendStream", answer=pb.AppendBatchResponse):
        self.port = port
        self.answer = answer
        self.written = 0
        self.reader = self.writer = None
        self.call = channel.stream_stream(f"/dledger.v1.LedgerService/{method}")(metadata=((FRAMES_KEY, str(port)),))

    async def offer(self):
        """Return what the node offers: port and ticket, or None."""
        found = dict(await self.call.initial_metadata())
        return (int(found[FRAMES_KEY]), bytes.fromhex(found[TICKET_KEY])) if FRAMES_KEY in found else None

    async def dial(self, preface=CLIENT_PREFACE, ticket=None):
        """Come with the ticket (or with another); return the welcome."""
        port, own = await self.offer()
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", port)
        self.writer.write(preface + frame(own if ticket is None else ticket))
        return raft_pb2.PeerWelcome.FromString(await asyncio.wait_for(read_frame(self.reader), 30))

    async def go_over(self):
        assert (await self.dial()).code == ResponseCode.SUCCESS
        self.writer.write(frame(self.written.to_bytes(8, "big")))
        return self

    async def write(self, data):
        if self.writer is None:
            self.written += 1
            await self.call.write(data)
        else:
            self.writer.write(frame(data))
            await self.writer.drain()

    async def read(self):
        """Return the next answer; None when no more come."""
        data = await (self.call.read() if self.writer is None else read_frame(self.reader))
        return self.answer.FromString(data) if isinstance(data, bytes) and data else None

    async def answers(self, count):
        async with asyncio.timeout(20):
            return [await self.read() for _ in range(count)]

    async def status(self):
        """Return how the call has ended."""
        async with asyncio.timeout(20):
            return await self.call.code(), await self.call.details()

    def hang_up(self):
        """End the connection and go on by gRPC."""
        if self.writer is not None:
            self.writer.transport.abort()
            self.writer = None

    async def end(self):
        self.call.cancel()
        self.hang_up()
