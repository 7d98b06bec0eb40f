"""Clients of a group: leader discovery, batching, exactly-once sessions, retries. Asynchronous first, blocking too."""

from __future__ import annotations

from dledger.client.blocking import BlockingLedgerClient, connect_blocking
from dledger.client.client import DownNode, LedgerClient, connect
from dledger.client.options import PipelineOptions
from dledger.client.transport import Metadata

__all__ = [
    "BlockingLedgerClient",
    "DownNode",
    "LedgerClient",
    "Metadata",
    "PipelineOptions",
    "connect",
    "connect_blocking",
]
