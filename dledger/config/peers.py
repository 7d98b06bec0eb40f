"""RocketMQ's list of peers: ``n0-host:port;n1-host:port``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from dledger.config.values import BadValueError, split_list

__all__ = ["NODE_ID", "Peer", "format_peers", "parse_peers", "split_address"]

NODE_ID: Final = re.compile(r"[A-Za-z0-9_.]{1,64}")
"""No hyphen: it ends the id in ``id-host:port`` (the host may have hyphens, as in DLedger since 0.2.1)."""

_HOST: Final = re.compile(r"[A-Za-z0-9_.-]{1,253}")
_IPV6: Final = re.compile(r"[0-9A-Fa-f:.%A-Za-z_]{2,64}")


@dataclass(frozen=True, slots=True, order=True)
class Peer:
    """A member: its id and the address it advertises. An IPv6 host stands here without brackets."""

    node_id: str
    host: str
    port: int

    @property
    def address(self) -> str:
        """``host:port``, an IPv6 host in brackets: what gRPC and people take."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.node_id}-{self.address}"


def format_peers(peers: Iterable[Peer]) -> str:
    """Return the peers as they stand in a file; `parse_peers` reads it back."""
    return ";".join(str(peer) for peer in peers)


def split_address(text: str) -> tuple[str, int]:
    """Split ``host:port`` or ``[v6]:port``; raises ``ValueError`` with what is wrong."""
    host, colon, port_text = text.rpartition(":")
    if not colon or not host:
        raise ValueError(f'"{text}" is not HOST:PORT')
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if not _IPV6.fullmatch(host) or ":" not in host:
            raise ValueError(f'"{host}" is not an IPv6 address')
    elif ":" in host:
        raise ValueError(f'"{text}": write an IPv6 address in brackets, [{host}]:{port_text}')
    elif not _HOST.fullmatch(host):
        raise ValueError(f'"{host}" is not a host name or address')
    if not (port_text.isascii() and port_text.isdigit() and int(port_text) <= 65535):
        raise ValueError(f'"{port_text}" is not a port (0-65535)')
    return host, int(port_text)


def _parse_peer(item: str) -> Peer:
    node_id, hyphen, address = item.partition("-")
    if not hyphen or ":" not in address:
        raise ValueError(f'"{item}" is not ID-HOST:PORT')
    if not NODE_ID.fullmatch(node_id):
        raise ValueError(f'"{node_id}" is not a node id (1-64 letters, digits, "_" or ".")')
    host, port = split_address(address)
    return Peer(node_id, host, port)


def parse_peers(text: str) -> tuple[Peer, ...]:
    """Parse ``id-host:port;id-host:port``.

    Spaces, empty items and the full-width ``；`` and ``：`` of a Chinese keyboard are accepted. Ids and
    addresses must be distinct.

    Raises:
        BadValueError: every problem, each with its offset in ``text``.
    """
    problems: list[tuple[int, str]] = []
    peers: list[Peer] = []
    seen: dict[str, str] = {}
    for offset, item in split_list(text.replace("：", ":")):
        try:
            peer = _parse_peer(item)
        except ValueError as error:
            problems.append((offset, str(error)))
            continue
        for what in (f'node id "{peer.node_id}"', f"address {peer.address}"):
            if what in seen and peer.port:
                problems.append((offset, f"{what} is given twice"))
            seen[what] = item
        peers.append(peer)
    if not peers and not problems:
        problems.append((0, "no peers; write ID-HOST:PORT;ID-HOST:PORT"))
    if problems:
        raise BadValueError(problems)
    return tuple(peers)
