"""`BrokerConfig`: the table of a broker's settings. Each field's row says its RocketMQ key, range and meaning.

Keys and defaults are those of rocketmq-all-4.9.8. A broker's file may also hold every setting of the log itself
(``electionTimeoutMs`` …): those are checked here with their places and handed to the embedded node.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Final

from broker_adapter.store.api import BrokerRole, FlushDiskType

__all__ = ["KEYS", "BrokerConfig", "BrokerRole", "FlushDiskType", "Key"]

_MIB: Final = 1024 * 1024
_GIB: Final = 1024 * _MIB


@dataclass(frozen=True, slots=True)
class Key:
    """One row: how a setting is spelt, what it may be, what it means. ``unit``: ms, bytes or empty."""

    name: str
    doc: str
    aliases: tuple[str, ...] = ()
    minimum: int = 0
    maximum: int = 2**62
    unit: str = ""
    field: str = ""
    default: Any = None

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.aliases)


def _row(
    name: str,
    doc: str,
    *,
    aliases: tuple[str, ...] = (),
    minimum: int = 0,
    maximum: int = 2**62,
    unit: str = "",
) -> dict[str, Key]:
    return {"key": Key(name, doc, aliases, minimum, maximum, unit)}


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerConfig:
    """Everything one broker is told, checked by `BrokerConfig.from_file`; programs may construct it directly."""

    broker_cluster_name: str = field(
        default="DefaultCluster", metadata=_row("brokerClusterName", "The cluster that the broker belongs to.")
    )
    broker_name: str = field(
        default="",
        metadata=_row(
            "brokerName", "Master and slaves share it. Empty: dLegerGroup in DLedger mode, else the host's name."
        ),
    )
    broker_id: int = field(
        default=0,
        metadata=_row("brokerId", "0 is the master. Ignored in DLedger mode: the id comes from dLegerSelfId."),
    )
    listen_port: int = field(
        default=10911,
        metadata=_row(
            "listenPort",
            "The remoting port; 0 picks a free one. The VIP port is two below.",
            maximum=65535,
        ),
    )
    bind_host: str = field(
        default="",
        metadata=_row(
            "bindAddress", "Address to listen on; empty: every interface. Set aclEnable where others reach it."
        ),
    )
    namesrv_addr: tuple[str, ...] = field(
        default=(), metadata=_row("namesrvAddr", "Name servers, HOST:PORT, ;-separated. Default: NAMESRV_ADDR.")
    )
    broker_ip1: str = field(default="", metadata=_row("brokerIP1", "The address told to clients."))
    broker_ip2: str = field(default="", metadata=_row("brokerIP2", "The address told to slaves."))
    store_path_root_dir: str = field(
        default="~/store", metadata=_row("storePathRootDir", "Everything the broker stores is below it.")
    )
    store_path_commit_log: str = field(
        default="",
        metadata=_row("storePathCommitLog", "Empty: <root>/commitlog. Not used in DLedger mode, as upstream."),
    )
    enable_dledger_commit_log: bool = field(
        default=False,
        metadata=_row(
            "enableDLegerCommitLog",
            "The commit log is the replicated log, roles follow its leader.",
            aliases=("enableDLedgerCommitLog",),
        ),
    )
    dledger_group: str = field(default="", metadata=_row("dLegerGroup", "The Raft group; the broker's name."))
    dledger_peers: str = field(default="", metadata=_row("dLegerPeers", "n0-host:port;n1-host:port;…"))
    dledger_self_id: str = field(default="", metadata=_row("dLegerSelfId", "A letter and a number: n0."))
    broker_role: BrokerRole = field(
        default=BrokerRole.ASYNC_MASTER, metadata=_row("brokerRole", "ASYNC_MASTER, SYNC_MASTER or SLAVE.")
    )
    flush_disk_type: FlushDiskType | None = field(
        default=None,
        metadata=_row("flushDiskType", "Not given: ASYNC_FLUSH, and SYNC_FLUSH in DLedger mode (fsync on a majority)."),
    )
    sync_flush_timeout_ms: int = field(
        default=5000,
        metadata=_row("syncFlushTimeout", "Past it a SYNC_FLUSH put is FLUSH_DISK_TIMEOUT.", minimum=1, unit="ms"),
    )
    slave_timeout_ms: int = field(
        default=3000,
        metadata=_row("slaveTimeout", "Past it a SYNC_MASTER put is FLUSH_SLAVE_TIMEOUT.", minimum=1, unit="ms"),
    )
    ha_listen_port: int = field(
        default=0,
        metadata=_row("haListenPort", "0: listenPort + 1, which upstream always uses.", maximum=65535),
    )
    ha_send_heartbeat_interval_ms: int = field(
        default=5000, metadata=_row("haSendHeartbeatInterval", "Between HA heartbeats.", minimum=1, unit="ms")
    )
    ha_housekeeping_interval_ms: int = field(
        default=20_000,
        metadata=_row("haHousekeepingInterval", "Silence that ends an HA connection.", minimum=1, unit="ms"),
    )
    ha_transfer_batch_size_bytes: int = field(
        default=32_768,
        metadata=_row("haTransferBatchSize", "Log bytes in one HA transfer.", minimum=256, maximum=_GIB, unit="bytes"),
    )
    ha_slave_fallbehind_max_bytes: int = field(
        default=256 * _MIB,
        metadata=_row(
            "haSlaveFallbehindMax",
            "A slave further behind does not count as there (SLAVE_NOT_AVAILABLE).",
            aliases=("haMaxGapNotInSync",),
            minimum=1,
            unit="bytes",
        ),
    )
    ha_master_address: str = field(
        default="", metadata=_row("haMasterAddress", "A slave's fixed master; empty: learnt from the name server.")
    )
    slave_read_enable: bool = field(
        default=False, metadata=_row("slaveReadEnable", "Slaves serve reads, and slow consumers are sent to them.")
    )
    access_message_in_memory_max_ratio: int = field(
        default=40,
        metadata=_row(
            "accessMessageInMemoryMaxRatio",
            "Per cent of physical memory that a consumer may lag before it is slow; ten less at a slave.",
            maximum=100,
        ),
    )
    physical_memory_bytes: int = field(
        default=0,
        metadata=_row(
            "physicalMemoryBytes", "Ours: the memory that the ratio refers to; 0: this machine's.", unit="bytes"
        ),
    )
    max_transfer_bytes_in_memory: int = field(
        default=262_144,
        metadata=_row("maxTransferBytesOnMessageInMemory", "Of one pull.", minimum=1, maximum=_GIB, unit="bytes"),
    )
    max_transfer_count_in_memory: int = field(
        default=32, metadata=_row("maxTransferCountOnMessageInMemory", "Of one pull.", minimum=1, maximum=100_000)
    )
    max_transfer_bytes_on_disk: int = field(
        default=65_536,
        metadata=_row(
            "maxTransferBytesOnMessageInDisk", "Of one pull of old messages.", minimum=1, maximum=_GIB, unit="bytes"
        ),
    )
    max_transfer_count_on_disk: int = field(
        default=8,
        metadata=_row("maxTransferCountOnMessageInDisk", "Of one pull of old messages.", minimum=1, maximum=100_000),
    )
    offset_check_in_slave: bool = field(
        default=False, metadata=_row("offsetCheckInSlave", "A slave corrects offsets out of range itself.")
    )
    delete_when: str = field(default="04", metadata=_row("deleteWhen", "Hours of the day to delete at, ;-separated."))
    file_reserved_time_hours: int = field(
        default=72, metadata=_row("fileReservedTime", "Hours that a log file is kept.", minimum=1, maximum=1_000_000)
    )
    disk_max_used_space_ratio: int = field(
        default=75,
        metadata=_row(
            "diskMaxUsedSpaceRatio", "Per cent; fuller, and files go before their time.", minimum=10, maximum=95
        ),
    )
    mapped_file_size_commit_log_bytes: int = field(
        default=_GIB,
        metadata=_row(
            "mappedFileSizeCommitLog", "Length of a commit-log file.", minimum=4096, maximum=2**31 - 1, unit="bytes"
        ),
    )
    mapped_file_size_consume_queue_bytes: int = field(
        default=300_000 * 20,
        metadata=_row(
            "mappedFileSizeConsumeQueue",
            "Length of a ConsumeQueue file, in units of 20 bytes.",
            minimum=20,
            maximum=2**31 - 1,
            unit="bytes",
        ),
    )
    message_index_enable: bool = field(default=True, metadata=_row("messageIndexEnable", "Index messages by key."))
    max_hash_slot_count: int = field(
        default=5_000_000, metadata=_row("maxHashSlotNum", "Slots of an index file.", minimum=1, maximum=2**28)
    )
    max_index_count: int = field(
        default=20_000_000, metadata=_row("maxIndexNum", "Entries of an index file.", minimum=2, maximum=2**28)
    )
    max_message_size_bytes: int = field(
        default=4 * _MIB,
        metadata=_row("maxMessageSize", "Largest message body.", minimum=1, maximum=_GIB, unit="bytes"),
    )
    message_delay_level: str = field(
        default="1s 5s 10s 30s 1m 2m 3m 4m 5m 6m 7m 8m 9m 10m 20m 30m 1h 2h",
        metadata=_row("messageDelayLevel", "Delay levels from 1: numbers with s, m, h or d."),
    )
    auto_create_topic_enable: bool = field(
        default=True, metadata=_row("autoCreateTopicEnable", "A send to a topic nobody made makes it.")
    )
    auto_create_subscription_group: bool = field(
        default=True, metadata=_row("autoCreateSubscriptionGroup", "A group nobody made is made.")
    )
    default_topic_queue_count: int = field(
        default=8,
        metadata=_row("defaultTopicQueueNums", "Most queues of a topic made by a send.", minimum=1, maximum=65_536),
    )
    broker_topic_enable: bool = field(default=True, metadata=_row("brokerTopicEnable", "A topic of the broker's name."))
    cluster_topic_enable: bool = field(
        default=True, metadata=_row("clusterTopicEnable", "A topic of the cluster's name.")
    )
    broker_permission: int = field(default=6, metadata=_row("brokerPermission", "2 write, 4 read, 6 both.", maximum=7))
    register_name_server_period_ms: int = field(
        default=30_000,
        metadata=_row("registerNameServerPeriod", "Clamped to 10-60 s, as upstream.", minimum=1, unit="ms"),
    )
    long_polling_enable: bool = field(
        default=True, metadata=_row("longPollingEnable", "Hold a pull that finds nothing as long as it allows.")
    )
    short_polling_time_ms: int = field(
        default=1000,
        metadata=_row("shortPollingTimeMills", "How long else.", aliases=("shortPollingTimeMillis",), unit="ms"),
    )
    notify_consumer_ids_changed_enable: bool = field(
        default=True,
        metadata=_row("notifyConsumerIdsChangedEnable", "Tell a group's consumers when one comes or goes."),
    )
    send_queue_capacity: int = field(
        default=10_000,
        metadata=_row("sendThreadPoolQueueCapacity", "Requests being handled at once; past it SYSTEM_BUSY.", minimum=1),
    )
    flush_consumer_offset_interval_ms: int = field(
        default=0,
        metadata=_row(
            "flushConsumerOffsetInterval",
            "How often changed consumer offsets are stored; 0: 5000 ms as upstream, and 500 ms in DLedger mode, where "
            "all of them are one entry of the log.",
            unit="ms",
        ),
    )
    flush_delay_offset_interval_ms: int = field(
        default=0,
        metadata=_row(
            "flushDelayOffsetInterval",
            "How often the delay levels' progress is stored; 0: as for consumer offsets.",
            unit="ms",
        ),
    )
    client_expire_ms: int = field(
        default=120_000,
        metadata=_row(
            "channelExpiredTimeout", "Ours: silence after which a client is forgotten.", minimum=100, unit="ms"
        ),
    )
    channel_max_idle_seconds: int = field(
        default=120,
        metadata=_row("serverChannelMaxIdleTimeSeconds", "Silence that ends a connection.", minimum=1),
    )
    default_query_max_count: int = field(
        default=32, metadata=_row("defaultQueryMaxNum", "Most messages that a query by key answers.", minimum=1)
    )
    queue_lock_expire_ms: int = field(
        default=60_000,
        metadata=_row("rebalanceLockMaxLiveTime", "Life of a queue lock that is not renewed.", minimum=1, unit="ms"),
    )
    region_id: str = field(default="DefaultRegion", metadata=_row("regionId", "Told to producers."))
    trace_on: bool = field(default=True, metadata=_row("traceOn", "Told to producers."))
    trace_topic_enable: bool = field(
        default=False, metadata=_row("traceTopicEnable", "Have msgTraceTopicName from the start; Go's client needs it.")
    )
    trace_topic_name: str = field(
        default="RMQ_SYS_TRACE_TOPIC", metadata=_row("msgTraceTopicName", "Where clients' message traces go.")
    )
    promotion_wait_ms: int = field(
        default=10_000,
        metadata=_row(
            "masterPromotionWait",
            "Ours: how long a new leader may take to dispatch what is committed before its status and log complain. "
            "It becomes master only when it has.",
            minimum=1,
            unit="ms",
        ),
    )
    forward_timeout_ms: int = field(
        default=3000,
        metadata=_row(
            "forwardTimeout", "Ours: time limit of a request that a slave hands to its master.", minimum=1, unit="ms"
        ),
    )
    forward_max_pending: int = field(
        default=10_000,
        metadata=_row("forwardMaxPending", "Ours: such requests on the way at once; past it SYSTEM_BUSY.", minimum=1),
    )
    acl_enable: bool = field(
        default=False, metadata=_row("aclEnable", "Ask for AccessKey and Signature; the accounts stand in aclFile.")
    )
    acl_file: str = field(
        default="",
        metadata=_row("aclFile", "Ours: accounts in upstream's form. Empty: plain_acl.yml in storePathRootDir."),
    )
    max_connections: int = field(
        default=10_000,
        metadata=_row("maxConnections", "Ours: connections at once; further ones are closed.", minimum=8),
    )
    metrics_exporter_type: str = field(
        default="DISABLE", metadata=_row("metricsExporterType", "PROM serves /metrics; DISABLE serves none.")
    )
    metrics_prom_exporter_port: int = field(
        default=5557, metadata=_row("metricsPromExporterPort", "Port of /metrics, /livez, /readyz.", maximum=65535)
    )
    metrics_prom_exporter_host: str = field(
        default="", metadata=_row("metricsPromExporterHost", "Address of the same; empty: 127.0.0.1.")
    )
    log_level: str = field(default="info", metadata=_row("logLevel", "debug, info, warning or error."))
    log_format: str = field(default="auto", metadata=_row("logFormat", "auto, json or console."))

    dledger_settings: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    """The file's settings of the embedded node, as text by key."""

    notes: tuple[str, ...] = field(default=(), compare=False, repr=False)
    """What an operator should know though it is no error, one line each."""

    def __post_init__(self) -> None:
        if not self.broker_name:
            object.__setattr__(self, "broker_name", self.dledger_group or socket.gethostname())
        object.__setattr__(self, "store_path_root_dir", os.path.expanduser(self.store_path_root_dir))

    # ------------------------------------------------------------------ derived

    @property
    def acl_path(self) -> str:
        """Where the accounts are."""
        return os.path.expanduser(self.acl_file) or os.path.join(self.store_path_root_dir, "plain_acl.yml")

    @property
    def commit_log_dir(self) -> str:
        """Where the local commit log is."""
        return os.path.expanduser(self.store_path_commit_log) or os.path.join(self.store_path_root_dir, "commitlog")

    @property
    def effective_flush_disk_type(self) -> FlushDiskType:
        if self.flush_disk_type is not None:
            return self.flush_disk_type
        return FlushDiskType.SYNC_FLUSH if self.enable_dledger_commit_log else FlushDiskType.ASYNC_FLUSH

    @property
    def slave_broker_id(self) -> int:
        """The id of this node as a slave: number + 1 in DLedger mode (n0 → 1), ``brokerId`` else."""
        return int(self.dledger_self_id[1:]) + 1 if self.enable_dledger_commit_log else self.broker_id

    @property
    def host(self) -> str:
        """The address told to clients."""
        return self.broker_ip1 or (self.bind_host if self.bind_host not in {"", "0.0.0.0", "::"} else _local_address())

    @property
    def ha_host(self) -> str:
        return self.broker_ip2 or self.host

    @property
    def ha_port(self) -> int:
        """The HA port; with ``listenPort=0`` the system picks it too."""
        return self.ha_listen_port or (self.listen_port + 1 if self.listen_port else 0)

    @property
    def offset_flush_ms(self) -> int:
        return self.flush_consumer_offset_interval_ms or (500 if self.enable_dledger_commit_log else 5000)

    @property
    def delay_flush_ms(self) -> int:
        return self.flush_delay_offset_interval_ms or (500 if self.enable_dledger_commit_log else 10_000)

    @property
    def memory_bytes(self) -> int:
        """The physical memory that the read/write split refers to."""
        return self.physical_memory_bytes or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    @classmethod
    def from_file(cls, path: str | os.PathLike[str] | None, overrides: Mapping[str, str] | None = None) -> BrokerConfig:
        """Read a ``key=value`` file; ``overrides`` (key → text) beat it. ``path`` None: defaults and overrides.

        Raises:
            ConfigError: every problem at once, ``file:line:column: key: what`` each.
        """
        from broker_adapter.config.loader import load  # noqa: PLC0415 - the loader needs this module's table

        return load(path, overrides or {})


def _local_address() -> str:
    """The address other machines most likely reach this one at, as upstream picks it; loopback as the last resort."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # TEST-NET: nothing is sent, the kernel only picks the source address
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def _collect() -> tuple[Key, ...]:
    keys = []
    for item in fields(BrokerConfig):
        row = item.metadata.get("key")
        if row is not None:
            default = None if item.default is MISSING else item.default
            keys.append(Key(row.name, row.doc, row.aliases, row.minimum, row.maximum, row.unit, item.name, default))
    return tuple(keys)


KEYS: Final = _collect()
"""Every setting, in the order of the documentation."""
