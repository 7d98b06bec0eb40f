"""A `LocalGroup` whose network and disks can be hurt: proxies between the nodes, a shim under their writes."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from dledger.chaos.disks import Disk, build_shim
from dledger.chaos.fabric import Fabric
from dledger.config import DLedgerConfig, Peer, format_peers
from dledger.local_group import LocalGroup, LocalNode, free_ports

if TYPE_CHECKING:
    from dledger.client import LedgerClient

__all__ = ["CLIENTS", "ChaosGroup"]

CLIENTS: Final = "clients"
"""The name under which clients stand in the fabric, where they go through it."""

_HOST: Final = "127.0.0.1"


class ChaosGroup(LocalGroup):
    """As `LocalGroup`; ``with_disks`` preloads the shim, ``proxied_clients`` leads clients through links of their own.

    Each node's ``dLegerPeers`` names itself with the port it listens on and every other node with the port of the proxy
    that leads there. So the address that a node knows of another is good for that node only; clients are given the
    nodes by id with the ports they listen on, and keep to those. The port for peers is announced as that very proxy's.
    """

    def __init__(
        self,
        directory: Path,
        *,
        nodes: int = 3,
        group: str = "chaos",
        settings: Mapping[str, str] | None = None,
        with_disks: bool = False,
        proxied_clients: bool = False,
    ) -> None:
        super().__init__(Path(directory).resolve(), nodes=nodes, group=group, settings=settings)
        names = [f"n{number}" for number in range(nodes)]
        self.fabric = Fabric(names, [CLIENTS] if proxied_clients else [])
        self.disks: dict[str, Disk] = {}
        self._with_disks = with_disks
        self._proxied_clients = proxied_clients
        self._library: Path | None = None

    async def __aenter__(self) -> Self:
        if self._with_disks:
            self._library = build_shim(self.directory / "shim")
        await self.fabric.open()
        try:
            return await super().__aenter__()
        except BaseException:
            await self.fabric.close()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await super().__aexit__(kind, error, trace)
        finally:
            await self.fabric.close()
            for disk in self.disks.values():
                disk.close()

    @property
    def node_ids(self) -> list[str]:
        return list(self.nodes)

    def addresses(self) -> dict[str, str]:
        """Node id → where clients reach it: directly, or through the clients' links."""
        if not self._proxied_clients:
            return {node_id: node.address for node_id, node in self.nodes.items()}
        return {node_id: f"{_HOST}:{self.fabric.port(CLIENTS, node_id)}" for node_id in self.nodes}

    def connect_as_client(self, *, timeout: float, session: bool = True) -> LedgerClient:
        """Return a client that goes where clients go (`connect` always goes directly). ``timeout`` in seconds."""
        from dledger.client import connect  # noqa: PLC0415 - a group is described without importing gRPC

        return connect(self.addresses(), group=self.group, timeout=timeout, session=session)

    def _write_configurations(self) -> None:
        """As the base does, then give each node its own view of the others' addresses."""
        super()._write_configurations()
        peers = [node.peer for node in self.nodes.values()]
        for node, peer_port in zip(self.nodes.values(), free_ports(len(peers)), strict=True):
            self.fabric.set_target(node.node_id, _HOST, node.peer.port, peer_port)
            seen = [
                peer if peer == node.peer else Peer(peer.node_id, _HOST, self.fabric.port(node.node_id, peer.node_id))
                for peer in peers
            ]
            text = node.conf_path.read_text(encoding="utf-8")
            text = text.replace(format_peers(peers), format_peers(seen))
            if "peerPort" not in self._settings:
                text += f"peerPort={peer_port}\nannouncedPeerPort=0\n"
            node.conf_path.write_text(text, encoding="utf-8")
            node.config = DLedgerConfig.from_file(node.conf_path, env={})
            if self._library is not None and node.node_id not in self.disks:
                control = self.directory / f"{node.node_id}.disk"
                self.disks[node.node_id] = Disk(self._library, control, node.data_dir)

    def _spawn(self, node: LocalNode) -> None:
        """As the base does, through a script that sets what the shim needs: the environment differs by node."""
        disk = self.disks.get(node.node_id)
        if disk is None:
            super()._spawn(node)
            return
        script = self.directory / f"{node.node_id}.sh"
        exports = "".join(f"export {key}={shlex.quote(value)}\n" for key, value in disk.environment().items())
        script.write_text(f'#!/bin/sh\n{exports}exec {shlex.quote(sys.executable)} "$@"\n', encoding="utf-8")
        script.chmod(0o755)
        python, self._python = self._python, str(script)
        try:
            super()._spawn(node)
        finally:
            self._python = python
