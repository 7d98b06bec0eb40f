"""Configuration: one table of settings, RocketMQ's ``key=value`` files, environment and flags.

`DLedgerConfig` is the table: each field carries its file key, aliases, kind, range and documentation. Parser,
environment names, ``-D key=value``, ``config show`` and ``docs/configuration.md`` are all derived from it.
"""

from __future__ import annotations

from dledger.config.model import SETTINGS, DLedgerConfig
from dledger.config.origin import Origin, OriginKind
from dledger.config.peers import Peer, format_peers, parse_peers
from dledger.config.setting import Kind, Setting

__all__ = [
    "SETTINGS",
    "DLedgerConfig",
    "Kind",
    "Origin",
    "OriginKind",
    "Peer",
    "Setting",
    "format_peers",
    "parse_peers",
]
