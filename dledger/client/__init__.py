"""Clients of a group: leader discovery, batching, exactly-once sessions, retries. Asynchronous first, blocking too.

Names are imported when they are first used: parts of this package do without gRPC, which takes long to load.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dledger.lazy_names import lazy_names

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


__getattr__ = lazy_names(globals(), _MODULE_OF)
