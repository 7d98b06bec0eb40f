"""Registration with every name server: at once on a change, and periodically.

One task for each name server sends one registration at a time, made from the role at that moment, so an older role
never overtakes a newer one. A role that is not known yet (brokerId -1) is not registered.
"""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from broker_adapter.broker.roles import UNKNOWN_BROKER_ID, RoleState
from broker_adapter.broker.topics import TopicManager
from broker_adapter.config import BrokerConfig
from broker_adapter.namesrv.register_body import encode_register_body
from broker_adapter.namesrv.route import DataVersion
from broker_adapter.remoting.client import RemotingClient
from broker_adapter.remoting.codes import RequestCode, ResponseCode
from broker_adapter.remoting.command import RemotingCommand
from broker_adapter.remoting.errors import RemotingError
from broker_adapter.store.api import MessageStore, StateKind

__all__ = ["MasterAddress", "Registrar"]

_TIMEOUT_MS: Final = 3000
_RETRY_S: Final = 1.0
_MIN_PERIOD_MS: Final = 10_000
_MAX_PERIOD_MS: Final = 60_000
_IDS_PERIOD_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class MasterAddress:
    """What a slave learns from the name server: remoting and HA address of its master, empty where unknown."""

    remoting: str
    ha: str


class Registrar:
    """Keeps the registration right. ``on_master`` hears what slaves are told, ``on_ids`` which ids are registered."""

    def __init__(
        self,
        config: BrokerConfig,
        store: MessageStore,
        roles: RoleState,
        topics: TopicManager,
        client: RemotingClient,
        *,
        address: Callable[[], str],
        ha_address: Callable[[], str],
        on_master: Callable[[MasterAddress], None],
        on_ids: Callable[[frozenset[int]], None],
    ) -> None:
        self._config = config
        self._store = store
        self._roles = roles
        self._topics = topics
        self._client = client
        self._address = address
        self._ha_address = ha_address
        self._on_master = on_master
        self._on_ids = on_ids
        period_ms = min(max(config.register_name_server_period_ms, _MIN_PERIOD_MS), _MAX_PERIOD_MS)
        self._period_s = period_ms / 1000
        self._kicked: dict[str, asyncio.Event] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._log = structlog.get_logger().bind(component="registrar", broker_name=config.broker_name)

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        for server in self._config.namesrv_addr:
            self._kicked[server] = asyncio.Event()
            self._tasks.append(loop.create_task(self._run(server), name=f"register-{server}"))
        if self._config.namesrv_addr and self._config.slave_read_enable:
            self._tasks.append(loop.create_task(self._watch_ids(), name="registered-ids"))

    def kick(self) -> None:
        """Something that is registered changed: register at once."""
        for event in self._kicked.values():
            event.set()

    async def stop(self) -> None:
        """Register no more and take this broker out of every name server, so that nobody has to wait for a time-out."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        if self._roles.broker_id != UNKNOWN_BROKER_ID:
            await asyncio.gather(*(self._unregister(server) for server in self._config.namesrv_addr))

    # ------------------------------------------------------------------ one name server

    async def _run(self, server: str) -> None:
        kicked = self._kicked[server]
        failing = False
        while True:
            kicked.clear()
            ok = True
            if self._roles.broker_id != UNKNOWN_BROKER_ID:
                ok = await self._register(server, quiet=failing)
            failing = not ok
            try:
                async with asyncio.timeout(self._period_s if ok else _RETRY_S):
                    await kicked.wait()
            except TimeoutError:
                continue

    def _request(self) -> RemotingCommand:
        timestamp, counter = self._store.state_version(StateKind.TOPICS)
        body = encode_register_body(self._topics.registered_json(), DataVersion(timestamp, counter))
        return RemotingCommand(
            int(RequestCode.REGISTER_BROKER),
            {
                "brokerName": self._config.broker_name,
                "brokerAddr": self._address(),
                "clusterName": self._config.broker_cluster_name,
                "haServerAddr": self._ha_address(),
                "brokerId": self._roles.broker_id,
                "compressed": False,
                "bodyCrc32": zlib.crc32(body) & 0x7FFFFFFF,
                "term": self._roles.term,
            },
            body,
        )

    async def _register(self, server: str, *, quiet: bool) -> bool:
        request = self._request()
        try:
            answer = await self._client.invoke(server, request, _TIMEOUT_MS)
        except RemotingError as error:
            if not quiet:
                self._log.warning("register_failed", namesrv=server, error=str(error))
            return False
        if answer.code != ResponseCode.SUCCESS:
            self._log.warning("register_refused", namesrv=server, code=answer.code, remark=answer.remark)
            return False
        if request.ext["brokerId"] != 0:
            self._on_master(MasterAddress(answer.text_or("masterAddr"), answer.text_or("haServerAddr")))
        return True

    async def _unregister(self, server: str) -> None:
        request = RemotingCommand(
            int(RequestCode.UNREGISTER_BROKER),
            {
                "brokerName": self._config.broker_name,
                "brokerAddr": self._address(),
                "clusterName": self._config.broker_cluster_name,
                "brokerId": self._roles.broker_id,
            },
        )
        try:
            await self._client.invoke(server, request, _TIMEOUT_MS)
        except RemotingError as error:
            self._log.info("unregister_failed", namesrv=server, error=str(error))

    # ------------------------------------------------------------------ who else is there

    async def _watch_ids(self) -> None:
        """Keep the ids of this broker name current: a slow consumer is only sent to one that is registered."""
        while True:
            for server in self._config.namesrv_addr:
                if await self._ask_ids(server):
                    break
            await asyncio.sleep(_IDS_PERIOD_S)

    async def _ask_ids(self, server: str) -> bool:
        try:
            answer = await self._client.invoke(
                server, RemotingCommand(int(RequestCode.GET_BROKER_CLUSTER_INFO)), _TIMEOUT_MS
            )
            table = json.loads(bytes(answer.body))["brokerAddrTable"]
            addresses = table.get(self._config.broker_name, {}).get("brokerAddrs", {})
            self._on_ids(frozenset(int(broker_id) for broker_id in addresses))
        except (RemotingError, ValueError, KeyError, TypeError, AttributeError):
            return False
        return True
