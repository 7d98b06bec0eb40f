"""The one place that picks a store."""

from __future__ import annotations

from broker_adapter.store.api import MessageStore, StoreConfig
from broker_adapter.store.dledger_store import DLedgerMessageStore
from broker_adapter.store.local_store import LocalMessageStore

__all__ = ["open_store"]


def open_store(config: StoreConfig) -> MessageStore:
    """Return the store that the configuration asks for (``enableDLegerCommitLog``), not started.

    Raises:
        ConfigError: DLedger mode with a group, peers or self id that cannot be.
    """
    return DLedgerMessageStore(config) if config.enable_dledger_commit_log else LocalMessageStore(config)
