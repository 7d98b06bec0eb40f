"""The parts that the request processors share."""

from __future__ import annotations

import json
from dataclasses import dataclass

from broker_adapter.broker.clients import ClientTable
from broker_adapter.broker.gate import MasterGate, is_forwarded
from broker_adapter.broker.groups import GroupManager
from broker_adapter.broker.locks import LockManager
from broker_adapter.broker.offsets import OffsetManager
from broker_adapter.broker.roles import RoleState
from broker_adapter.broker.stats import BrokerStats
from broker_adapter.broker.topics import TopicManager
from broker_adapter.config import BrokerConfig
from broker_adapter.remoting.codes import ResponseCode
from broker_adapter.remoting.command import RemotingCommand
from broker_adapter.remoting.errors import CommandError
from broker_adapter.store.api import MessageStore
from dledger.errors import DLedgerError, Outcome

__all__ = ["BrokerContext", "command_error", "to_json_body"]


def to_json_body(value: object) -> bytes:
    """Write JSON as clients read it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def command_error(error: DLedgerError) -> CommandError:
    """Turn a failure of the log into an answer: 14 where it certainly did not happen and may later, else 1."""
    definite = error.outcome is Outcome.DEFINITE
    if definite and error.retriable:
        return CommandError(ResponseCode.SERVICE_NOT_AVAILABLE, f"{error.code.name}: {error}")
    return CommandError(ResponseCode.SYSTEM_ERROR, f"{error.code.name}: {error}")


@dataclass(slots=True)
class BrokerContext:
    """Everything a processor may touch."""

    config: BrokerConfig
    store: MessageStore
    topics: TopicManager
    groups: GroupManager
    offsets: OffsetManager
    locks: LockManager
    clients: ClientTable
    roles: RoleState
    gate: MasterGate
    stats: BrokerStats

    def goes_to_master(self, request: RemotingCommand) -> bool:
        """Whether a request that only a master serves must leave this broker (or wait here)."""
        if not self.roles.is_dledger or is_forwarded(request):
            return False
        return not self.roles.is_master or not self.gate.is_idle

    def refuse_if_slave(self) -> None:
        """Refuse what only a master does, with code 14: it certainly was not done."""
        if self.roles.is_dledger and not self.roles.is_master:
            raise CommandError(ResponseCode.SERVICE_NOT_AVAILABLE, "this broker is not the master now")
