"""Certificates, tokens, and single nodes or groups of them in this loop, with real ports."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from dledger import ClientTls, DLedgerConfig, DLedgerServer, LedgerClient, connect
from dledger.local_group import free_ports

APP, READER, WRITER, OPS = (
    "app-token-0123456789",
    "reader-token-0123456",
    "writer-token-0123456",
    "ops-token-0123456789",
)
TOKENS = f"""# name  rights  token
app     read,write  {APP}
reader  read        {READER}
writer  write       {WRITER}
ops     admin       {OPS}
"""
SECRETS = (APP, READER, WRITER, OPS)


async def eventually(condition: Callable[[], Any], timeout: float = 30.0, what: str = "") -> Any:
    """Poll state that signals nothing until it is true, and return it; fail after ``timeout`` seconds."""
    deadline = asyncio.get_running_loop().time() + timeout
    while not (value := condition()):
        assert asyncio.get_running_loop().time() < deadline, f"not after {timeout} s: {what or condition}"
        await asyncio.sleep(0.01)
    return value


async def until(condition: Callable[[], Awaitable[Any]], timeout: float = 15.0) -> None:
    """As `eventually`, for a condition that must be asked for."""
    deadline = asyncio.get_running_loop().time() + timeout
    while not await condition():
        assert asyncio.get_running_loop().time() < deadline, f"not after {timeout} s"
        await asyncio.sleep(0.05)


@pytest.fixture
def certs(tmp_path: Path) -> Path:
    """A folder of certificates for n0, n1, n2 and a client."""
    dev_certs = pytest.importorskip("dledger.security.dev_certs", reason="needs cryptography (extra tls)")
    dev_certs.write_dev_certificates(tmp_path / "certs", ["n0", "n1", "n2"], ["localhost", "127.0.0.1"])
    return tmp_path / "certs"


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(TOKENS, encoding="ascii")
    path.chmod(0o600)
    return path


def tls_settings(certs: Path, node_id: str) -> dict[str, str]:
    return {
        "tlsCaFile": str(certs / "ca.pem"),
        "tlsCertFile": str(certs / f"{node_id}.pem"),
        "tlsKeyFile": str(certs / f"{node_id}.key"),
    }


def client_tls(certs: Path) -> ClientTls:
    return ClientTls(str(certs / "ca.pem"), str(certs / "client.pem"), str(certs / "client.key"))


class Nodes:
    """Servers of one group. ``settings`` of all; `start` takes more for one node."""

    def __init__(self, directory: Path, count: int) -> None:
        self.node_ids = [f"n{number}" for number in range(count)]
        self.ports = dict(zip(self.node_ids, free_ports(count), strict=True))
        self.running: dict[str, DLedgerServer] = {}
        self._directory = directory

    @property
    def peers(self) -> str:
        return ";".join(f"{node}-127.0.0.1:{port}" for node, port in self.ports.items())

    def address(self, node_id: str) -> str:
        return f"127.0.0.1:{self.ports[node_id]}"

    async def start(self, node_id: str, **settings: str) -> DLedgerServer:
        base = {"group": "g", "selfId": node_id, "peers": self.peers, "storeBaseDir": str(self._directory / "store")}
        server = DLedgerServer(DLedgerConfig.from_mapping(base | settings))
        await server.start()
        self.running[node_id] = server
        return server

    async def wait_leader(self) -> str:
        def leader() -> str | None:
            ready = [node for node, server in self.running.items() if server.driver.core.is_leader_ready]
            return ready[0] if ready else None

        found = await eventually(leader, what="a leader")
        assert isinstance(found, str)
        return found

    def connect(self, **options: Any) -> LedgerClient:
        return connect({node: self.address(node) for node in self.running}, group="g", **{"timeout": 10.0, **options})

    async def stop(self) -> None:
        await asyncio.gather(*(server.stop() for server in self.running.values()))
        self.running.clear()


@pytest_asyncio.fixture
async def group(tmp_path: Path) -> AsyncIterator[Callable[[int], Nodes]]:
    """Make groups; what runs at the end is stopped."""
    made: list[Nodes] = []

    def make(count: int) -> Nodes:
        made.append(Nodes(tmp_path / f"group{len(made)}", count))
        return made[-1]

    yield make
    for nodes in made:
        with contextlib.suppress(Exception):
            await nodes.stop()
