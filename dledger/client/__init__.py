"""Clients of a group: leader discovery, batching, exactly-once sessions, retries. Asynchronous first, blocking too.

Names are imported when they are first used: parts of this package do without gRPC, which takes long to load.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dledger.client.blocking import BlockingLedgerClient, connect_blocking
    from dledger.client.client import LedgerClient, connect
    from dledger.client.options import PipelineOptions
    from dledger.client.transport import Metadata
    from dledger.types import DownNode

__all__ = [
    "BlockingLedgerClient",
    "DownNode",
    "LedgerClient",
    "Metadata",
    "PipelineOptions",
    "connect",
    "connect_blocking",
]

_MODULE_OF = {
    "BlockingLedgerClient": "dledger.client.blocking",
    "DownNode": "dledger.types",
    "LedgerClient": "dledger.client.client",
    "Metadata": "dledger.client.transport",
    "PipelineOptions": "dledger.client.options",
    "connect": "dledger.client.client",
    "connect_blocking": "dledger.client.blocking",
}


def __getattr__(name: str) -> object:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value
