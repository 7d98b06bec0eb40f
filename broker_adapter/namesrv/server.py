"""The name server process's inside: handlers over the routing tables, and the expiry of silent brokers."""

from __future__ import annotations

import asyncio
import json
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog

from broker_adapter.namesrv.kv import NAMESPACE_ORDER_TOPIC_CONFIG, KvStore
from broker_adapter.namesrv.register_body import decode_register_body
from broker_adapter.namesrv.route import DataVersion, Registration, RouteTable, StaleMasterError
from broker_adapter.remoting.codes import RequestCode, ResponseCode
from broker_adapter.remoting.command import RemotingCommand
from broker_adapter.remoting.connection import RemotingConnection
from broker_adapter.remoting.errors import CommandError
from broker_adapter.remoting.server import RemotingServer

__all__ = ["NameServer", "NameServerOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NameServerOptions:
    """What a name server is told.

    ``broker_timeout_ms``: silence after which a broker is forgotten (upstream: 120 s). ``scan_interval_ms``: how often
    that is looked at. ``port`` 0 picks a free one.
    """

    host: str | None = None
    port: int = 9876
    kv_config_path: Path | None = None
    broker_timeout_ms: int = 120_000
    scan_interval_ms: int = 10_000


def to_json_body(value: object) -> bytes:
    """Write JSON as clients read it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


class NameServer:
    """Serves routes. Its tables live in memory; the brokers' registrations fill them again after a restart."""

    def __init__(self, options: NameServerOptions) -> None:
        self.options = options
        self.routes = RouteTable()
        self.kv = KvStore(options.kv_config_path)
        self.port = options.port
        self._server = RemotingServer(on_close=self._connection_closed)
        self._scan_task: asyncio.Task[None] | None = None
        self._log = structlog.get_logger().bind(component="namesrv")
        for code, handler in {
            RequestCode.REGISTER_BROKER: self._register,
            RequestCode.UNREGISTER_BROKER: self._unregister,
            RequestCode.GET_ROUTEINFO_BY_TOPIC: self._route,
            RequestCode.GET_BROKER_CLUSTER_INFO: self._cluster_info,
            RequestCode.QUERY_DATA_VERSION: self._query_data_version,
            RequestCode.PUT_KV_CONFIG: self._put_kv,
            RequestCode.GET_KV_CONFIG: self._get_kv,
            RequestCode.DELETE_KV_CONFIG: self._delete_kv,
            RequestCode.GET_KVLIST_BY_NAMESPACE: self._list_kv,
            RequestCode.WIPE_WRITE_PERM_OF_BROKER: self._wipe_write_perm,
            RequestCode.ADD_WRITE_PERM_OF_BROKER: self._add_write_perm,
            RequestCode.GET_ALL_TOPIC_LIST_FROM_NAMESERVER: self._all_topics,
            RequestCode.DELETE_TOPIC_IN_NAMESRV: self._delete_topic,
            RequestCode.GET_TOPICS_BY_CLUSTER: self._topics_by_cluster,
            RequestCode.GET_SYSTEM_TOPIC_LIST_FROM_NS: self._system_topics,
            RequestCode.GET_NAMESRV_CONFIG: self._config,
        }.items():
            self._server.register(code, handler)

    async def start(self) -> None:
        """Listen.

        Raises:
            UnexpectedArgumentError: the port cannot be had.
        """
        self.port = await self._server.listen(self.options.host, self.options.port)
        self._scan_task = asyncio.get_running_loop().create_task(self._scan(), name="namesrv-scan")
        self._log.info("namesrv_started", port=self.port)

    async def stop(self) -> None:
        """Close everything. The tables are forgotten with the process."""
        if self._scan_task is not None:
            self._scan_task.cancel()
            await asyncio.gather(self._scan_task, return_exceptions=True)
            self._scan_task = None
        await self._server.stop()

    async def _scan(self) -> None:
        while True:
            await asyncio.sleep(self.options.scan_interval_ms / 1000)
            for address in self.routes.expire(self._now_ms(), self.options.broker_timeout_ms):
                self._log.warning("broker_expired", address=address)

    def _now_ms(self) -> int:
        return int(time.monotonic() * 1000)

    def _connection_closed(self, connection: RemotingConnection) -> None:
        for address in self.routes.channel_closed(connection):
            self._log.warning("broker_connection_closed", address=address)

    # ------------------------------------------------------------------ brokers

    def _register(self, request: RemotingCommand, connection: RemotingConnection) -> RemotingCommand:
        body = bytes(request.body)
        crc = request.integer_or("bodyCrc32", 0)
        if crc and body and crc != zlib.crc32(body) & 0x7FFFFFFF:
            raise CommandError(ResponseCode.SYSTEM_ERROR, "crc32 not match")
        topics, version = decode_register_body(body, request.boolean_or("compressed"))
        registration = Registration(
            cluster=request.text("clusterName"),
            broker_name=request.text("brokerName"),
            address=request.text("brokerAddr"),
            broker_id=request.integer("brokerId"),
            ha_address=request.text_or("haServerAddr"),
            topics=topics,
            data_version=version,
            term=request.integer_or("term", -1),
        )
        known = self.routes.brokers.get(registration.broker_name)
        before = None if known is None else dict(known.addresses)
        try:
            result = self.routes.register(registration, connection, self._now_ms())
        except StaleMasterError as error:
            self._log.warning("stale_master_refused", reason=str(error))
            raise CommandError(ResponseCode.SYSTEM_ERROR, str(error)) from None
        after = self.routes.brokers[registration.broker_name].addresses
        if before != after:
            self._log.info("route_changed", broker_name=registration.broker_name, addresses=dict(after))
        ext = {"masterAddr": result.master_address, "haServerAddr": result.ha_address}
        order = self.kv.namespace(NAMESPACE_ORDER_TOPIC_CONFIG)
        return request.response(
            ext={name: value for name, value in ext.items() if value}, body=to_json_body({"table": order})
        )

    def _unregister(self, request: RemotingCommand, _connection: RemotingConnection) -> RemotingCommand:
        name, address = request.text("brokerName"), request.text("brokerAddr")
        self.routes.unregister(name, address)
        self._log.info("broker_unregistered", broker_name=name, address=address)
        return request.response()

    def _query_data_version(self, request: RemotingCommand, _connection: RemotingConnection) -> RemotingCommand:
        version = DataVersion.from_json(request.json_object())
        address = request.text("brokerAddr")
        changed = self.routes.is_topic_config_changed(address, version)
        if not changed:
            self.routes.touch(address, self._now_ms())
        live = self.routes.live.get(address)
        body = b"" if live is None else to_json_body(live.data_version.to_json())
        return request.response(ext={"changed": changed}, body=body)

    # ------------------------------------------------------------------ clients

    def _route(self, request: RemotingCommand, _connection: RemotingConnection) -> RemotingCommand:
        topic = request.text("topic")
        route = self.routes.route(topic)
        if route is None:
            return request.response(
                ResponseCode.TOPIC_NOT_EXIST,
                f"No topic route info in name server for the topic: {topic}; the topic is not registered by any broker",
            )
        order = self.kv.get(NAMESPACE_ORDER_TOPIC_CONFIG, topic)
        if order is not None:
            route["orderTopicConf"] = order
        return request.response(body=to_json_body(route))

    def _cluster_info(self, request: RemotingCommand, _connection: RemotingConnection) -> RemotingCommand:
        return request.response(body=to_json_body(self.routes.cluster_info()))

    # ------------------------------------------------------------------ key-value

    def _put_kv(self, request: RemotingCommand, _connection: RemotingConnection) -> RemotingCommand:
        self.kv.put(request.text("namespace"), request.text("key"), request.text("value"))
        return request.response()

    def _get_kv(self, request: RemotingCommand, _connection: RemotingConnection) -> RemotingCommand:
        namespace, key = request.text("namespace"), request.text("key")
        value = self.kv.get(namespace, key)
        if value is None:
            return request.response(ResponseCode.QUERY_NOT_FOUND, f"No config item, Namespace: {namespace} Key: {key}")
        return request.response(ext={"value": value})

    def _delete_kv(self, request: RemotingCommand, _connection: RemotingConnection) -> RemotingCommand:
        self.kv.delete(request.text("namespace"), request.text("key"))
        return request.response()

    def _list_kv(self, request: RemotingCommand, _connection: RemotingConnection) -> RemotingCommand:
        table = self.kv.namespace(request.text("namespace"))
        if not table:
            return request.response(
                ResponseCode.QUERY_NOT_FOUND, f"No config item, Namespace: {request.text('namespace')}"
            )
        return request.response(body=to_json_body({"table": table}))

    # ------------------------------------------------------------------ operators

    def _wipe_write_perm(self, request: RemotingCommand, _connection: RemotingConnection) -> RemotingCommand:
        return request.response(
            ext={"wipeTopicCount": self.routes.change_write_perm(request.text("brokerName"), False)}
        )

    def _add_write_perm(self, request: RemotingCommand, _connection: RemotingConnection) -> RemotingCommand:
        return request.response(ext={"addTopicCount": self.routes.change_write_perm(request.text("brokerName"), True)})

    def _topic_list(self, request: RemotingCommand, topics: list[str]) -> RemotingCommand:
        body: Mapping[str, object] = {"topicList": topics}
        return request.response(body=to_json_body(body))

    def _all_topics(self, request: RemotingCommand, _connection: RemotingConnection) -> RemotingCommand:
        return self._topic_list(request, sorted(self.routes.topics))

    def _topics_by_cluster(self, request: RemotingCommand, _connection: RemotingConnection) -> RemotingCommand:
        return self._topic_list(request, self.routes.topics_of_cluster(request.text("cluster")))

    def _system_topics(self, request: RemotingCommand, _connection: RemotingConnection) -> RemotingCommand:
        return self._topic_list(request, self.routes.system_topics())

    def _config(self, request: RemotingCommand, _connection: RemotingConnection) -> RemotingCommand:
        """GET_NAMESRV_CONFIG (319): the settings as a properties file, upstream's names."""
        options = self.options
        lines = (
            f"listenPort={self.port}",
            f"bindAddress={options.host or '0.0.0.0'}",
            f"kvConfigPath={options.kv_config_path or ''}",
            f"scanNotActiveBrokerInterval={options.scan_interval_ms}",
            f"brokerChannelExpiredTime={options.broker_timeout_ms}",
        )
        return request.response(body="".join(f"{line}\n" for line in lines).encode())

    def _delete_topic(self, request: RemotingCommand, _connection: RemotingConnection) -> RemotingCommand:
        cluster = request.text_or("clusterName")
        names = sorted(self.routes.clusters.get(cluster, set())) if cluster else None
        self.routes.delete_topic(request.text("topic"), names)
        return request.response()
