"""What settings owe each other: one small function for each rule, and the table of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from dledger.config.peers import Peer

__all__ = ["RULES", "broken_rules"]

_BROKER_ID: Final = re.compile(r"[A-Za-z][0-9]{1,9}")
_BROKER_SWITCHES: Final = ("enableDLegerCommitLog", "enableDLedgerCommitLog")
_INDEX_RECORD_BYTES: Final = 32
_ENTRY_OVERHEAD_BYTES: Final = 48 + 8
"""An entry's header, and the blank record that must always fit behind it."""


def _not_a_peer(ids: tuple[str, ...], peers: tuple[Peer, ...]) -> str | None:
    known = [peer.node_id for peer in peers]
    strangers = [node_id for node_id in ids if node_id not in known]
    return f'"{";".join(strangers)}" is not in dLegerPeers ({", ".join(known)})' if strangers else None


def _self_id(self_id: str, peers: tuple[Peer, ...]) -> str | None:
    return _not_a_peer((self_id,), peers)


def _ports(peers: tuple[Peer, ...]) -> str | None:
    if len(peers) > 1 and any(peer.port == 0 for peer in peers):
        return "port 0 (any free one) is for a group of one only"
    return None


def _election(election_ms: int, heartbeat_ms: int) -> str | None:
    if election_ms < 3 * heartbeat_ms:
        return f"{election_ms} ms is less than three heartbeats of {heartbeat_ms} ms (heartBeatTimeIntervalMs)"
    return None


def _lost_leader(maximum_ms: int, minimum_ms: int) -> str | None:
    return f"{maximum_ms} ms is less than lostLeaderMinMs, {minimum_ms} ms" if maximum_ms < minimum_ms else None


def _index_segment(size: int) -> str | None:
    if size % _INDEX_RECORD_BYTES:
        return f"{size} is not a multiple of {_INDEX_RECORD_BYTES}, the size of an index record"
    return None


def _entry(entry_bytes: int, segment_bytes: int) -> str | None:
    if entry_bytes + _ENTRY_OVERHEAD_BYTES > segment_bytes:
        return f"{entry_bytes} bytes do not fit a data segment of {segment_bytes} (mappedFileSizeForEntryData)"
    return None


def _batch(batch_bytes: int, entry_bytes: int) -> str | None:
    return f"{batch_bytes} is less than one entry (maxEntryBytes {entry_bytes})" if batch_bytes < entry_bytes else None


def _pending(pending_bytes: int, batch_bytes: int) -> str | None:
    if pending_bytes < batch_bytes:
        return f"{pending_bytes} is less than one batch (maxBatchBytes {batch_bytes})"
    return None


def _tls(cert: str | None, key: str | None, ca: str | None) -> str | None:
    if len({cert is None, key is None, ca is None}) > 1:
        return "tlsCertFile, tlsKeyFile and tlsCaFile go together; set all three or none"
    return None


def _client_port(port: int | None, cert: str | None) -> str | None:
    return "is for TLS; set tlsCertFile, tlsKeyFile and tlsCaFile" if port is not None and cert is None else None


RULES: Final[tuple[tuple[tuple[str, ...], Callable[..., str | None]], ...]] = (
    (("self_id", "peers"), _self_id),
    (("peers",), _ports),
    (("preferred_leader_ids", "peers"), _not_a_peer),
    (("election_timeout_ms", "heartbeat_interval_ms"), _election),
    (("lost_leader_max_ms", "lost_leader_min_ms"), _lost_leader),
    (("mapped_file_size_for_entry_index",), _index_segment),
    (("max_entry_bytes", "mapped_file_size_for_entry_data"), _entry),
    (("max_batch_bytes", "max_entry_bytes"), _batch),
    (("max_pending_bytes", "max_batch_bytes"), _pending),
    (("tls_cert_file", "tls_key_file", "tls_ca_file"), _tls),
    (("tls_client_port", "tls_cert_file"), _client_port),
)
"""(fields, rule): the rule takes their values and says what is wrong; the first field is the one to blame."""


def _broker_id(self_id: str, other: Mapping[str, str]) -> str | None:
    switch = next((key for key in _BROKER_SWITCHES if other.get(key, "").lower() == "true"), None)
    if switch is None or _BROKER_ID.fullmatch(self_id):
        return None
    return f'"{self_id}" must be a letter and a number, like n0, while {switch}=true: the broker id comes from it'


def broken_rules(values: Mapping[str, Any], other: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield (field to blame, what is wrong). A rule is skipped where one of its values could not be read.

    ``other``: the accepted keys that are no settings, as text.
    """
    for names, rule in RULES:
        if all(name in values for name in names):
            message = rule(*(values[name] for name in names))
            if message:
                yield names[0], message
    if "self_id" in values:
        message = _broker_id(values["self_id"], other)
        if message:
            yield "self_id", message
