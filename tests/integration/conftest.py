"""Groups for the integration tests: real processes by `processes`, whole servers in this loop by `servers`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from dledger import DLedgerConfig, DLedgerServer, Entry, LedgerClient, ReadMode, StateMachine, connect
from dledger.client.grpc_transport import GrpcClientTransport
from dledger.client.transport import ReadChunk
from dledger.errors import ResponseCode, UnavailableError
from dledger.local_group import LocalGroup, free_ports
from dledger.storage.entry import iter_entries
from tests.processes import runs

REPOSITORY = Path(__file__).resolve().parents[2]


async def eventually(condition: Callable[[], Any], timeout: float = 30.0, what: str = "") -> Any:
    """Poll state that signals nothing until it is true, and return it; fail after ``timeout`` seconds."""
    deadline = asyncio.get_running_loop().time() + timeout
    while not (value := condition()):
        assert asyncio.get_running_loop().time() < deadline, f"not after {timeout} s: {what or condition}"
        await asyncio.sleep(0.005)
    return value


@pytest_asyncio.fixture
async def processes(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """Start groups of real processes; at the end each process is ended by its pid, and that is checked."""
    made: list[LocalGroup] = []

    async def start(nodes: int = 3, settings: Mapping[str, str] | None = None) -> LocalGroup:
        group = LocalGroup(tmp_path / f"group{len(made)}", nodes=nodes, group="it", settings=settings)
        made.append(group)
        await group.start()
        return group

    yield start
    pids = [node.pid for group in made for node in group.nodes.values()]
    for group in made:
        await group.stop()
    assert not any(runs(pid) for pid in pids if pid is not None)


class Servers:
    """A group of `DLedgerServer`s in this loop, with real ports, disks and streams."""

    def __init__(self, directory: Path, count: int, settings: Mapping[str, str]) -> None:
        self.peers = ";".join(f"n{number}-127.0.0.1:{port}" for number, port in enumerate(free_ports(count)))
        self.node_ids = [f"n{number}" for number in range(count)]
        self.nodes: dict[str, DLedgerServer] = {}
        self._directory = directory
        self._settings = settings

    def config(self, node_id: str, **changes: str) -> DLedgerConfig:
        return DLedgerConfig.from_mapping(
            {
                "group": "it",
                "selfId": node_id,
                "peers": self.peers,
                "storeBaseDir": str(self._directory),
                **self._settings,
                **changes,
            }
        )

    async def start(self, *node_ids: str, machine: StateMachine | None = None, **changes: str) -> None:
        for node_id in node_ids or self.node_ids:
            server = DLedgerServer(self.config(node_id, **changes), state_machine=machine)
            self.nodes[node_id] = server
            await server.start()

    async def stop(self, *node_ids: str) -> None:
        await asyncio.gather(*(self.nodes.pop(node_id).stop() for node_id in node_ids or list(self.nodes)))

    def leader(self) -> str | None:
        """The node that leads the highest term and has committed in it."""
        leading = [node for node in self.nodes.values() if node.driver.running and node.driver.core.is_leader_ready]
        return max(leading, key=lambda node: node.driver.core.term).config.self_id if leading else None

    async def wait_leader(self, timeout: float = 30.0) -> str:
        found = await eventually(self.leader, timeout, "a leader")
        assert isinstance(found, str)
        return found

    async def wait_caught_up(self, timeout: float = 20.0) -> None:
        """Wait until every node has committed what the leader has now, and any two of them can go on alone.

        The latter takes a new node a round longer: until it has asked a leader what it may have forgotten.
        """
        goal = self.nodes[await self.wait_leader()].driver.core.commit_index

        def all_there() -> bool:
            drivers = [node.driver for node in self.nodes.values()]
            return all(d.core.commit_index >= goal and d.store.hard_state.vote_floor is None for d in drivers)

        await eventually(all_there, timeout, "all caught up")

    def address(self, node_id: str) -> str:
        return dict(peer.split("-", 1) for peer in self.peers.split(";"))[node_id]

    def one_node(self, node_id: str) -> OneNode:
        return OneNode("it", self.address(node_id))

    def connect(self, *node_ids: str, timeout: float = 20.0, session: bool = True) -> LedgerClient:
        return connect(
            {node_id: self.address(node_id) for node_id in node_ids or self.node_ids},
            group="it",
            timeout=timeout,
            session=session,
        )


@pytest_asyncio.fixture
async def servers(tmp_path: Path) -> AsyncIterator[Callable[..., Servers]]:
    """Make groups of servers in this loop; stopped at the end."""
    made: list[Servers] = []

    def make(count: int = 3, settings: Mapping[str, str] | None = None) -> Servers:
        made.append(Servers(tmp_path / f"servers{len(made)}", count, settings or {}))
        return made[-1]

    yield make
    for group in made:
        await group.stop()


class OneNode:
    """Calls to one node and no other: a `LedgerClient` would go where the answers are."""

    def __init__(self, group: str, address: str) -> None:
        self._transport = GrpcClientTransport(group)
        self._address = address

    async def __aenter__(self) -> OneNode:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._transport.close()

    async def commit_index(self, mode: ReadMode = ReadMode.LINEARIZABLE, timeout: float = 2.0) -> int:
        """The index up to which this node lets such a read look: a range beyond every log is refused with it."""
        chunk = await self._first_chunk(2**62, -1, mode, timeout)
        if chunk.header.code != ResponseCode.INDEX_OUT_OF_RANGE:
            raise chunk.header.error()
        return chunk.commit_index

    async def get(self, index: int, mode: ReadMode = ReadMode.LINEARIZABLE, timeout: float = 2.0) -> Entry:
        header, entry = await self._transport.get(self._address, index, mode, timeout)
        if entry is None:
            raise header.error()
        return entry

    async def entries(self, first: int, last: int, mode: ReadMode, timeout: float = 2.0) -> list[Entry]:
        """A range that fits one answer, all types."""
        chunk = await self._first_chunk(first, last, mode, timeout)
        if not chunk.header.ok:
            raise chunk.header.error()
        return list(iter_entries(chunk.data))

    async def _first_chunk(self, first: int, last: int, mode: ReadMode, timeout: float) -> ReadChunk:
        call = self._transport.read(self._address, first, last, follow=False, mode=mode)
        try:
            async with asyncio.timeout(timeout):
                return await call.next_chunk()
        except TimeoutError:
            raise UnavailableError(f"{self._address}: no answer") from None
        finally:
            call.close()


@pytest.fixture
def clean_environment() -> dict[str, str]:
    """The process's environment without what a user may have exported for clients."""
    return {key: value for key, value in os.environ.items() if not key.startswith("DLEDGER_")}
