"""The broker: store, processors, roles and name servers put together, started and stopped in order."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final

import structlog

from broker_adapter.broker.clients import ClientTable, ConsumerGroup
from broker_adapter.broker.consume import ConsumeProcessor, monotonic_ms
from broker_adapter.broker.context import BrokerContext
from broker_adapter.broker.delay import DelayService
from broker_adapter.broker.gate import MasterGate
from broker_adapter.broker.groups import GroupManager
from broker_adapter.broker.locks import LockManager
from broker_adapter.broker.manage import ManageProcessor
from broker_adapter.broker.offsets import OffsetManager
from broker_adapter.broker.pull import PullProcessor
from broker_adapter.broker.query import QueryProcessor
from broker_adapter.broker.registrar import MasterAddress, Registrar
from broker_adapter.broker.relay import RelayProcessor
from broker_adapter.broker.roles import (
    MASTER_STATE,
    UNKNOWN_BROKER_ID,
    DLedgerRoleChangeHandler,
    MasterRecord,
    RoleState,
)
from broker_adapter.broker.send import SendProcessor
from broker_adapter.broker.slave_sync import SlaveSync
from broker_adapter.broker.stats import BrokerStats
from broker_adapter.broker.topics import TopicManager
from broker_adapter.config import BrokerConfig, BrokerRole
from broker_adapter.metrics import BrokerMetrics, RpcWatch
from broker_adapter.remoting.acl import AccessControl, guarded
from broker_adapter.remoting.client import RemotingClient
from broker_adapter.remoting.codes import RequestCode, ResponseCode
from broker_adapter.remoting.command import RemotingCommand
from broker_adapter.remoting.connection import RemotingConnection, format_address
from broker_adapter.remoting.errors import CommandError
from broker_adapter.remoting.server import RemotingServer
from broker_adapter.store.api import MessageStore, StoreConfig
from dledger.errors import DLedgerError, UnexpectedArgumentError
from dledger.metrics.http import HttpServer

__all__ = ["Broker", "store_config"]

_VIP_PORT_OFFSET: Final = 2
_EXPIRE_CHECK_S: Final = 10.0
_SAMPLE_S: Final = 1.0
_HAND_OVER_S: Final = 2.0
_CONNECT_TIMEOUT_MS: Final = 1000

_UNSUPPORTED: Final[dict[int, str]] = {
    int(RequestCode.END_TRANSACTION): "transactions are not supported by this broker",
    int(RequestCode.CHECK_TRANSACTION_STATE): "transactions are not supported by this broker",
    int(RequestCode.UPDATE_BROKER_CONFIG): "settings are changed in the file; restart the broker",
    200050: "pop consumption is not supported by this broker; pull instead",
    200051: "pop consumption is not supported by this broker; pull instead",
    200053: "pop consumption is not supported by this broker; pull instead",
}
"""Codes that clients may well send and that are not there, with what to say."""


def store_config(config: BrokerConfig, store_host: tuple[str, int], dledger_settings: dict[str, str]) -> StoreConfig:
    """Return what the store is told of a broker's configuration."""
    return StoreConfig(
        store_path_root_dir=config.store_path_root_dir,
        store_path_commit_log=config.commit_log_dir,
        store_host=store_host,
        broker_role=BrokerRole.SLAVE if config.enable_dledger_commit_log else config.broker_role,
        flush_disk_type=config.effective_flush_disk_type,
        sync_flush_timeout_ms=config.sync_flush_timeout_ms,
        mapped_file_size_commit_log=config.mapped_file_size_commit_log_bytes,
        mapped_file_size_consume_queue=config.mapped_file_size_consume_queue_bytes,
        max_hash_slot_num=config.max_hash_slot_count,
        max_index_num=config.max_index_count,
        message_index_enable=config.message_index_enable,
        max_message_size=config.max_message_size_bytes,
        message_delay_level=config.message_delay_level,
        access_message_in_memory_max_ratio=config.access_message_in_memory_max_ratio,
        total_physical_memory_bytes=config.physical_memory_bytes,
        max_transfer_bytes_on_message_in_memory=config.max_transfer_bytes_in_memory,
        max_transfer_count_on_message_in_memory=config.max_transfer_count_in_memory,
        max_transfer_bytes_on_message_in_disk=config.max_transfer_bytes_on_disk,
        max_transfer_count_on_message_in_disk=config.max_transfer_count_on_disk,
        offset_check_in_slave=config.offset_check_in_slave,
        default_query_max_num=config.default_query_max_count,
        delete_when=config.delete_when,
        file_reserved_time_hours=config.file_reserved_time_hours,
        disk_max_used_space_ratio=config.disk_max_used_space_ratio,
        ha_listen_host=config.bind_host or "0.0.0.0",
        ha_listen_port=config.ha_port,
        ha_master_address=config.ha_master_address or None,
        ha_send_heartbeat_interval_ms=config.ha_send_heartbeat_interval_ms,
        ha_housekeeping_interval_ms=config.ha_housekeeping_interval_ms,
        ha_transfer_batch_bytes=config.ha_transfer_batch_size_bytes,
        ha_slave_fallbehind_max_bytes=config.ha_slave_fallbehind_max_bytes,
        slave_timeout_ms=config.slave_timeout_ms,
        enable_dledger_commit_log=config.enable_dledger_commit_log,
        dledger_group=config.dledger_group or None,
        dledger_peers=config.dledger_peers or None,
        dledger_self_id=config.dledger_self_id or None,
        dledger_settings=dledger_settings,
    )


class Broker:
    """One broker. ``open_store`` makes the message store from its configuration.

    The port is bound before the store opens (its address is written into every message), but nothing is served until
    everything stands.
    """

    def __init__(
        self, config: BrokerConfig, open_store: Callable[[BrokerConfig, tuple[str, int]], MessageStore]
    ) -> None:
        self.config = config
        self.port = config.listen_port
        self._host = config.host
        self.address = format_address(self._host, self.port)
        """The remoting address that is told to clients."""
        self._open_store = open_store
        self._server = RemotingServer(
            max_idle_ms=config.channel_max_idle_seconds * 1000,
            max_inflight_count=config.send_queue_capacity,
            max_connections=config.max_connections,
            on_close=self._connection_closed,
        )
        self._client = RemotingClient(connect_timeout_ms=_CONNECT_TIMEOUT_MS)
        self._tasks: list[asyncio.Task[None]] = []
        self.acl: AccessControl | None = None
        self.metrics_address: str | None = None
        """``host:port`` of /metrics once started; None: not served."""
        self._http: HttpServer | None = None
        self._started = False
        self._store_opened = False
        self._stopping = False
        self._log = structlog.get_logger().bind(component="broker", broker_name=config.broker_name)
        self.failure: asyncio.Future[BaseException] | None = None

    @property
    def ha_address(self) -> str:
        """The HA address that is told to slaves."""
        status = self.store.ha_status()
        port = status.listen_address[1] if status.listen_address is not None else self.config.ha_port
        return format_address(self.config.ha_host, port)

    # ------------------------------------------------------------------ life

    async def start(self) -> None:
        """Open the store, serve, register.

        Raises:
            DLedgerError: a port or a folder cannot be had, or the store cannot be opened.
        """
        self.failure = asyncio.get_running_loop().create_future()
        if self.config.acl_enable:
            self.acl = AccessControl(self.config.acl_path)
            self._client.signer = self.acl.own_signer()
        self.port = await self._server.bind(self.config.bind_host or None, self.config.listen_port)
        self.address = format_address(self._host, self.port)
        self.store = self._open_store(self.config, (_numeric(self._host), self.port))
        self._store_opened = True
        self._assemble()
        await self.store.start()
        self._started = True
        self.topics.load()
        self.groups.load()
        record = MasterRecord.from_state(self.store.state(MASTER_STATE).get("master"))
        if record is not None:
            self.roles.master_known(record)
        self._register_handlers()
        if self.acl is not None:
            self._server.handlers = {
                code: guarded(handler, self.acl) for code, handler in self._server.handlers.items()
            }
        await self._serve_metrics()
        await self._server.serve()
        await self._listen_vip()
        self.offsets.start()
        self.pulls.hold.start()
        self.registrar.start()
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self._expire_clients(), name="expire-clients"),
            loop.create_task(self._sample(), name="sample"),
            loop.create_task(self._watch_store(), name="watch-store"),
        ]
        if not self.config.enable_dledger_commit_log:
            self._start_classic()
        self._log.info("broker_started", address=self.address, role=self.store.role.value, port=self.port)

    def _assemble(self) -> None:
        config, store = self.config, self.store
        is_dledger = config.enable_dledger_commit_log
        self.roles = RoleState(
            is_dledger=is_dledger,
            is_master=not is_dledger and config.broker_role is not BrokerRole.SLAVE,
            broker_id=UNKNOWN_BROKER_ID if is_dledger else config.broker_id,
        )
        self.topics = TopicManager(config, store, self._topics_changed)
        self.groups = GroupManager(config, store)
        self.offsets = OffsetManager(store, config.offset_flush_ms)
        self.clients = ClientTable(self._may_notify)
        self.gate = MasterGate(
            self.roles,
            self._client,
            own_address=lambda: self.address,
            timeout_ms=config.forward_timeout_ms,
            max_pending=config.forward_max_pending,
        )
        self.context = BrokerContext(
            config,
            store,
            self.topics,
            self.groups,
            self.offsets,
            LockManager(store, config.queue_lock_expire_ms),
            self.clients,
            self.roles,
            self.gate,
            BrokerStats(),
        )
        self.delay = DelayService(store, config.message_delay_level, config.delay_flush_ms)
        self.pulls = PullProcessor(self.context)
        self.sends = SendProcessor(self.context)
        self.consumes = ConsumeProcessor(self.context)
        self.relays = RelayProcessor(self.context)
        self.queries = QueryProcessor(self.context)
        self.manages = ManageProcessor(self.context, self.delay)
        self.slave_sync = SlaveSync(store, self._client)
        self.registrar = Registrar(
            config,
            store,
            self.roles,
            self.topics,
            self._client,
            address=lambda: self.address,
            ha_address=lambda: self.ha_address,
            on_master=self._master_address_known,
            on_ids=self._ids_known,
        )
        self.roles.add_listener(self.registrar.kick)
        store.add_state_listener(self._state_changed)
        if is_dledger:
            store.add_role_change_handler(
                DLedgerRoleChangeHandler(
                    store,
                    self.roles,
                    self,
                    node_id=config.dledger_self_id,
                    slave_broker_id=config.slave_broker_id,
                    address=lambda: self.address,
                    slow_after_ms=config.promotion_wait_ms,
                )
            )

    def _start_classic(self) -> None:
        """Roles that the file fixes: a master delivers delays, a slave takes over from its master."""
        if self.roles.is_master:
            self.delay.start()
        else:
            self.slave_sync.start()
        self.registrar.kick()

    @property
    def remoting_server(self) -> RemotingServer:
        """The server that clients are connected to."""
        return self._server

    async def _serve_metrics(self) -> None:
        """Serve Prometheus and probes, if the file asks for it."""
        config = self.config
        if config.metrics_exporter_type.upper() != "PROM":
            return
        watch = self._server.watch = RpcWatch()
        metrics = BrokerMetrics(self, watch)
        routes = {
            "/metrics": metrics.answer,
            "/livez": metrics.livez,
            "/readyz": metrics.readyz,
            "/healthz": metrics.readyz,
        }
        host = config.metrics_prom_exporter_host or "127.0.0.1"
        self._http = HttpServer(host, config.metrics_prom_exporter_port, routes)
        port = await self._http.start()
        self.metrics_address = format_address(host, port)
        self._log.info("metrics_served", address=self.metrics_address)

    async def _listen_vip(self) -> None:
        """Old clients send to the port two below by default."""
        port = self.config.listen_port - _VIP_PORT_OFFSET
        if port <= 0:
            return
        try:
            await self._server.listen(self.config.bind_host or None, port)
        except UnexpectedArgumentError as error:
            self._log.warning("vip_port_not_bound", error=str(error))

    async def stop(self) -> None:
        """Hand over, unregister, close. Clients see a closed connection, no failed request, where a master is left."""
        if self._stopping:
            return
        self._stopping = True
        if self._http is not None:
            await self._http.stop()
        if not self._started:
            await self._server.stop(0)
            await self._client.close()
            if self._store_opened:
                await self.store.stop()
            return
        await self.delay.stop()
        if not self.roles.is_dledger or self.roles.is_master:
            await self.offsets.flush()
        await self.offsets.stop()
        await self._hand_over()
        await self.slave_sync.stop()
        await self.registrar.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.gate.wait_idle(_HAND_OVER_S)
        await self.pulls.stop()
        await self.groups.drain()
        await self._server.stop()
        await self.gate.stop()
        await self._client.close()
        await self.store.stop()
        self._log.info("broker_stopped")

    async def _hand_over(self) -> None:
        """A master of the log gives leadership away first and waits until the new master says where it is."""
        if not (self.roles.is_dledger and self.roles.is_master):
            return
        term = self.roles.term
        try:
            await self.store.transfer_leadership()
        except DLedgerError as error:
            self._log.info("hand_over_failed", error=str(error))
            return
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _HAND_OVER_S
        while loop.time() < deadline:
            record = self.roles.master
            if record is not None and record.term > term:
                return
            await self.roles.wait_change(deadline - loop.time())

    # ------------------------------------------------------------------ changes

    def _topics_changed(self) -> None:
        self.registrar.kick()

    def _state_changed(self, kind: str, _key: str, value: Any) -> None:  # noqa: ANN401 - JSON is any value
        if kind == MASTER_STATE:
            record = MasterRecord.from_state(value)
            if record is not None:
                self.roles.master_known(record)

    def _master_address_known(self, master: MasterAddress) -> None:
        if self.roles.is_dledger:
            return
        self.slave_sync.set_master(master.remoting)
        if not self.config.ha_master_address:
            self.store.update_ha_master_address(master.ha or None)

    def _ids_known(self, ids: frozenset[int]) -> None:
        self.pulls.registered_ids = ids

    def _may_notify(self, group: ConsumerGroup) -> bool:
        return self.consumes.may_notify(group)

    def master_begins(self) -> None:
        """See `RoleTarget`."""
        if not self._stopping:
            self.delay.start()

    def master_ends(self) -> None:
        """See `RoleTarget`."""
        self.delay.cancel()
        self.offsets.drop_unstored()
        self.context.locks.reset()

    def _connection_closed(self, connection: RemotingConnection) -> None:
        if self._started:
            self.clients.connection_closed(connection)

    async def _expire_clients(self) -> None:
        while True:
            await asyncio.sleep(min(_EXPIRE_CHECK_S, self.config.client_expire_ms / 2000))
            for connection in self.clients.expire(monotonic_ms(), self.config.client_expire_ms):
                self._log.info("client_expired", remote=connection.remote_address)
                connection.close()

    async def _sample(self) -> None:
        while True:
            await asyncio.sleep(_SAMPLE_S)
            self.context.stats.sample()

    async def _watch_store(self) -> None:
        """A store that has failed for good (a disk, a broken invariant) ends the broker: it serves nothing any more."""
        error = await self.store.wait_failed()
        self._log.critical("store_failed", error=str(error))
        if self.failure is not None and not self.failure.done():
            self.failure.set_result(error)

    # ------------------------------------------------------------------ the table of codes

    def _register_handlers(self) -> None:
        sends, pulls, consumes = self.sends, self.pulls, self.consumes
        queries, manages, register = self.queries, self.manages, self._server.register
        for code in (RequestCode.SEND_MESSAGE, RequestCode.SEND_MESSAGE_V2, RequestCode.SEND_BATCH_MESSAGE):
            register(code, sends.handle)
        register(RequestCode.CONSUMER_SEND_MSG_BACK, sends.send_back)
        for code in (RequestCode.PULL_MESSAGE, RequestCode.LITE_PULL_MESSAGE):
            register(code, pulls.handle)
        for code in (RequestCode.SEND_REPLY_MESSAGE, RequestCode.SEND_REPLY_MESSAGE_V2):
            register(code, self.relays.reply)
        register(RequestCode.GET_CONSUMER_RUNNING_INFO, self.relays.running_info)
        register(RequestCode.CONSUME_MESSAGE_DIRECTLY, self.relays.consume_directly)
        register(RequestCode.HEART_BEAT, consumes.heartbeat)
        register(RequestCode.UNREGISTER_CLIENT, consumes.unregister)
        register(RequestCode.GET_CONSUMER_LIST_BY_GROUP, consumes.consumer_list)
        register(RequestCode.CHECK_CLIENT_CONFIG, consumes.check_client_config)
        register(RequestCode.QUERY_CONSUMER_OFFSET, consumes.query_offset)
        register(RequestCode.UPDATE_CONSUMER_OFFSET, consumes.update_offset)
        register(RequestCode.LOCK_BATCH_MQ, consumes.lock)
        register(RequestCode.UNLOCK_BATCH_MQ, consumes.unlock)
        register(RequestCode.GET_MAX_OFFSET, queries.max_offset)
        register(RequestCode.GET_MIN_OFFSET, queries.min_offset)
        register(RequestCode.SEARCH_OFFSET_BY_TIMESTAMP, queries.search_offset)
        register(RequestCode.GET_EARLIEST_MSG_STORETIME, queries.earliest_store_time)
        register(RequestCode.VIEW_MESSAGE_BY_ID, queries.view_message)
        register(RequestCode.QUERY_MESSAGE, queries.query_message)
        register(RequestCode.UPDATE_AND_CREATE_TOPIC, manages.at_master(manages.update_topic))
        register(RequestCode.DELETE_TOPIC_IN_BROKER, manages.at_master(manages.delete_topic))
        register(RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, manages.at_master(manages.update_group))
        register(RequestCode.DELETE_SUBSCRIPTIONGROUP, manages.at_master(manages.delete_group))
        register(RequestCode.INVOKE_BROKER_TO_RESET_OFFSET, manages.at_master(manages.reset_offset))
        register(RequestCode.GET_ALL_TOPIC_CONFIG, manages.all_topics)
        register(RequestCode.GET_ALL_CONSUMER_OFFSET, manages.all_offsets)
        register(RequestCode.GET_ALL_DELAY_OFFSET, manages.all_delay_offsets)
        register(RequestCode.GET_ALL_SUBSCRIPTIONGROUP_CONFIG, manages.all_groups)
        register(RequestCode.GET_SYSTEM_TOPIC_LIST_FROM_BROKER, manages.system_topics)
        register(RequestCode.GET_TOPIC_CONFIG, manages.topic_config)
        register(RequestCode.GET_SUBSCRIPTIONGROUP_CONFIG, manages.group_config)
        register(RequestCode.QUERY_TOPICS_BY_CONSUMER, manages.topics_of_group)
        register(RequestCode.GET_BROKER_CONSUME_STATS, manages.all_consume_stats)
        register(RequestCode.GET_ALL_PRODUCER_INFO, manages.all_producers)
        register(RequestCode.GET_TOPIC_STATS_INFO, manages.topic_stats)
        register(RequestCode.GET_CONSUME_STATS, manages.consume_stats)
        register(RequestCode.QUERY_TOPIC_CONSUME_BY_WHO, manages.topic_consumers)
        register(RequestCode.GET_CONSUMER_CONNECTION_LIST, manages.consumer_connections)
        register(RequestCode.GET_PRODUCER_CONNECTION_LIST, manages.producer_connections)
        register(RequestCode.GET_BROKER_RUNTIME_INFO, manages.runtime_info)
        register(RequestCode.GET_BROKER_CONFIG, manages.broker_config)
        register(RequestCode.GET_BROKER_HA_STATUS, manages.ha_status)
        register(RequestCode.GET_DLEDGER_STATUS, manages.dledger_status)
        for number, remark in _UNSUPPORTED.items():
            self._server.handlers[number] = _refuser(remark)


def _numeric(host: str) -> str:
    """Return a host's address as it can be written into a message."""
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise UnexpectedArgumentError(f"brokerIP1: {host} does not resolve: {error}") from None


def _refuser(
    remark: str,
) -> Callable[[RemotingCommand, RemotingConnection], RemotingCommand | Awaitable[RemotingCommand]]:
    def refuse(_request: RemotingCommand, _connection: RemotingConnection) -> RemotingCommand:
        raise CommandError(ResponseCode.REQUEST_CODE_NOT_SUPPORTED, remark)

    return refuse
