"""Configuration: one table of settings, RocketMQ's ``key=value`` files, environment and flags.

`DLedgerConfig` is the table: each field carries its file key, aliases, kind, range and documentation. Parser,
environment names, ``-D key=value``, ``config show`` and ``docs/configuration.md`` are all derived from it.
"""

from __future__ import annotations

from dledger.config.accepted import BROKER_KEYS, DLEDGER_KEYS
from dledger.config.conf_file import parse_conf
from dledger.config.model import SETTINGS, DLedgerConfig
from dledger.config.origin import Origin, OriginKind
from dledger.config.peers import Peer, format_peers, parse_peers, split_address
from dledger.config.setting import Kind, Setting
from dledger.config.values import BadValueError, parse_boolean, parse_bytes, parse_integer, parse_milliseconds

__all__ = [
    "BROKER_KEYS",
    "DLEDGER_KEYS",
    "SETTINGS",
    "BadValueError",
    "DLedgerConfig",
    "Kind",
    "Origin",
    "OriginKind",
    "Peer",
    "Setting",
    "format_peers",
    "parse_boolean",
    "parse_bytes",
    "parse_conf",
    "parse_integer",
    "parse_milliseconds",
    "parse_peers",
    "split_address",
]
