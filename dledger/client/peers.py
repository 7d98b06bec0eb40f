"""The forms in which a program may name the nodes of a group."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence

from dledger.errors import ConfigError

__all__ = ["parse_peers"]

_ADDRESS = re.compile(r"(?P<host>\[[^\]]+\]|[^\s:;,\[\]]+):(?P<port>[0-9]{1,5})")
_WITH_ID = re.compile(r"(?P<id>[A-Za-z0-9_]+)-(?P<rest>.+)")
_NUMBERED = re.compile(r"n[0-9]+")
_FORMS = "write n0-host:port;n1-host:port, or host:port,host:port, an IPv6 host in brackets"


def parse_peers(peers: str | Mapping[str, str] | Sequence[str]) -> dict[str, str]:
    """Return node id → ``host:port``, in the order given.

    Taken: RocketMQ's ``dLegerPeers`` (``n0-host:port;n1-host:port``), ``host:port`` separated by commas or as a
    sequence, or a mapping from id to address. A node given without id is called by its address until it says who it is.
    Where semicolons separate, all before the first dash is the id, as in RocketMQ; elsewhere only ``n0``, ``n1`` … or
    what stands before an IP address, so that a host may have a dash in its name.

    Raises:
        ConfigError: one line for each element that is wrong.
    """
    problems: list[str] = []
    if isinstance(peers, str):
        separator = ";" if ";" in peers else ","
        found = _split([part for part in peers.split(separator) if part.strip()], separator == ";", problems)
    elif isinstance(peers, Mapping):
        found = [(str(node_id), _address(str(address), problems)) for node_id, address in peers.items()]
        problems += ["peers: a node id is empty; give each node its id" for node_id, _ in found if not node_id]
    elif isinstance(peers, Sequence) and not isinstance(peers, bytes | bytearray | memoryview):
        found = _split(peers, False, problems)
    else:
        raise ConfigError([f"peers: {type(peers).__name__} is not a list of nodes; {_FORMS}"])
    if not found and not problems:
        problems.append(f"peers: no node given; {_FORMS}")
    nodes = dict(found)
    if len(nodes) != len(found) or len(set(nodes.values())) != len(nodes):
        problems.append("peers: a node is given twice; ids and addresses must differ")
    if problems:
        raise ConfigError(problems)
    return nodes


def _split(parts: Iterable[str], ids_expected: bool, problems: list[str]) -> list[tuple[str, str]]:
    found = []
    for raw in parts:
        if not isinstance(raw, str):
            problems.append(f"peers: {raw!r} is not text; {_FORMS}")
            continue
        part = raw.strip()
        match = _WITH_ID.fullmatch(part)
        if match and (ids_expected or _NUMBERED.fullmatch(match["id"]) or _is_ip(match["rest"])):
            found.append((match["id"], _address(match["rest"], problems)))
        else:
            address = _address(part, problems)
            found.append((address, address))
    return found


def _is_ip(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _address(text: str, problems: list[str]) -> str:
    """Return the address, or note what is wrong with it and return it as it is."""
    match = _ADDRESS.fullmatch(text.strip())
    if match is None:
        problems.append(f"peers: {text!r} is not host:port; {_FORMS}")
        return text
    if not 0 < int(match["port"]) <= 65535:
        problems.append(f"peers: {text!r}: port {match['port']} is not in 1..65535")
    host = match["host"]
    if host.startswith("["):
        try:
            ipaddress.IPv6Address(host[1:-1].partition("%")[0])
        except ValueError:
            problems.append(f"peers: {text!r}: {host} is not an IPv6 address")
    return f"{host}:{int(match['port'])}"
