"""The broker's configuration: RocketMQ's keys, defaults and file form."""

from __future__ import annotations

from broker_adapter.config.model import KEYS, BrokerConfig, BrokerRole, FlushDiskType, Key

__all__ = ["KEYS", "BrokerConfig", "BrokerRole", "FlushDiskType", "Key"]
