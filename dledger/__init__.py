"""dledger: a Raft-replicated commit log that survives kill -9.

Append bytes, get them back by index, never lose an acknowledged one. Embed a node with `DLedgerServer`, talk to a group
with `connect` (asyncio) or `connect_blocking` (scripts). Names are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dledger.lazy_names import lazy_names
from dledger.version import VERSION as __version__

if TYPE_CHECKING:
    from dledger.client import BlockingLedgerClient, LedgerClient, connect, connect_blocking
    from dledger.config import DLedgerConfig, Peer
    from dledger.driver.roles import MemberRole, RoleChangeHandler
    from dledger.driver.state_machine import StateMachine
    from dledger.errors import AccessDeniedError, ConfigError, DLedgerError, Outcome, ResponseCode
    from dledger.grpc_engine import prefer_polling
    from dledger.process_memory import keep_freed_memory
    from dledger.raft.messages import EntryType, Role
    from dledger.security.access import ClientTls
    from dledger.server import DLedgerServer
    from dledger.types import (
        AppendHook,
        AppendResult,
        BatchResult,
        Entry,
        IndexRun,
        NodeStatus,
        PeerStatus,
        ReadMode,
    )

__all__ = [
    "AccessDeniedError",
    "AppendHook",
    "AppendResult",
    "BatchResult",
    "BlockingLedgerClient",
    "ClientTls",
    "ConfigError",
    "DLedgerConfig",
    "DLedgerError",
    "DLedgerServer",
    "Entry",
    "EntryType",
    "IndexRun",
    "LedgerClient",
    "MemberRole",
    "NodeStatus",
    "Outcome",
    "Peer",
    "PeerStatus",
    "ReadMode",
    "ResponseCode",
    "Role",
    "RoleChangeHandler",
    "StateMachine",
    "__version__",
    "connect",
    "connect_blocking",
    "keep_freed_memory",
    "prefer_polling",
]

_HOME = {
    "dledger.client": ("BlockingLedgerClient", "LedgerClient", "connect", "connect_blocking"),
    "dledger.config": ("DLedgerConfig", "Peer"),
    "dledger.driver.roles": ("MemberRole", "RoleChangeHandler"),
    "dledger.driver.state_machine": ("StateMachine",),
    "dledger.errors": ("AccessDeniedError", "ConfigError", "DLedgerError", "Outcome", "ResponseCode"),
    "dledger.grpc_engine": ("prefer_polling",),
    "dledger.process_memory": ("keep_freed_memory",),
    "dledger.raft.messages": ("EntryType", "Role"),
    "dledger.security.access": ("ClientTls",),
    "dledger.server": ("DLedgerServer",),
    "dledger.types": (
        "AppendHook",
        "AppendResult",
        "BatchResult",
        "Entry",
        "IndexRun",
        "NodeStatus",
        "PeerStatus",
        "ReadMode",
    ),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}


__getattr__ = lazy_names(globals(), _MODULE_OF)


def __dir__() -> list[str]:
    return __all__
