"""`DLedgerConfig`: the table of settings and its values, checked together."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, cast

from dledger.config.loader import load_values, sort_problems
from dledger.config.origin import Origin, OriginKind
from dledger.config.peers import Peer
from dledger.config.rules import broken_rules
from dledger.config.setting import REQUIRED, Kind, Setting
from dledger.errors import ConfigError

__all__ = ["MAX_MESSAGE_BYTES", "SETTINGS", "DLedgerConfig"]

MAX_MESSAGE_BYTES: Final = 8 * 1024 * 1024
"""gRPC's limit for one message between nodes and from clients; no batch may come near it."""

_MESSAGE_OVERHEAD_BYTES: Final = 1024 * 1024
_KIB: Final = 1024
_MIB: Final = 1024 * 1024
_GIB: Final = 1024 * 1024 * 1024


def _row(
    key: str,
    kind: Kind,
    section: str,
    doc: str,
    *,
    aliases: tuple[str, ...] = (),
    minimum: int = 0,
    maximum: int = 2**62,
    choices: tuple[str, ...] = (),
) -> dict[str, Setting]:
    return {"setting": Setting(key, kind, section, doc, aliases, minimum, maximum, choices)}


@dataclass(frozen=True, slots=True, kw_only=True)
class DLedgerConfig:
    """Everything one node is told. Immutable and valid: a bad one raises `ConfigError` with all problems.

    Each field's row says its key in files (and so its environment variable and flag), range and meaning; the
    same rows make ``docs/configuration.md``.
    """

    group: str = field(
        metadata=_row(
            "dLegerGroup",
            Kind.GROUP,
            "Identity",
            "The Raft group. Every node and client of a log names the same one.",
            aliases=("group",),
        )
    )
    self_id: str = field(
        metadata=_row(
            "dLegerSelfId",
            Kind.NODE_ID,
            "Identity",
            "This node's id, one of the peers' ids. A data folder belongs to one id for good.",
            aliases=("selfId",),
        )
    )
    peers: tuple[Peer, ...] = field(
        metadata=_row(
            "dLegerPeers",
            Kind.PEERS,
            "Identity",
            "All members with the addresses at which they reach each other and clients reach them, "
            "the same text on all nodes. An IPv6 host stands in brackets.",
            aliases=("peers",),
        )
    )
    bind_host: str | None = field(
        default=None,
        metadata=_row(
            "bindAddress",
            Kind.HOST,
            "Identity",
            "Address to listen on where it differs from the advertised one of dLegerPeers "
            "(containers, NAT); 0.0.0.0 or :: is every interface. An address that others can reach needs TLS, or "
            "allowPlaintext.",
        ),
    )
    bind_port: int | None = field(
        default=None,
        metadata=_row(
            "bindPort",
            Kind.INTEGER,
            "Identity",
            "Port to listen on where it differs from the advertised one.",
            minimum=0,
            maximum=65535,
        ),
    )
    peer_port: int = field(
        default=0,
        metadata=_row(
            "peerPort",
            Kind.INTEGER,
            "Identity",
            "Port where the other nodes replicate to this one without gRPC, at less cost, and clients append; 0 is any "
            "free one, -1 none. They learn it from the node itself, and stay with gRPC where they cannot reach it. "
            "Name one where a firewall stands between the nodes, or before the clients. Not used with TLS, nor in a "
            "group of one.",
            minimum=-1,
            maximum=65535,
        ),
    )
    announced_peer_port: int | None = field(
        default=None,
        metadata=_row(
            "announcedPeerPort",
            Kind.INTEGER,
            "Identity",
            "Port that the other nodes and clients are told where it differs from peerPort (containers, NAT); 0 is the "
            "one that they reached the node at, for a proxy that tells the two apart by a connection's first bytes. "
            "Without it, clients that came by another port than the node's own are told none.",
            minimum=0,
            maximum=65535,
        ),
    )
    preferred_leader_ids: tuple[str, ...] = field(
        default=(),
        metadata=_row(
            "preferredLeaderIds",
            Kind.NODE_IDS,
            "Identity",
            "Nodes that leadership is handed to whenever they are up and caught up; of several, the "
            "one that lags least.",
            aliases=("preferredLeaderId",),
        ),
    )

    store_path_root_dir: str = field(
        default="~/dledgerstore",
        metadata=_row(
            "storePathRootDir",
            Kind.PATH,
            "Storage",
            "The node's data goes to the folder dledger-<dLegerSelfId> in it. One disk that keeps "
            "what it was told to sync.",
            aliases=("storeBaseDir",),
        ),
    )
    store_type: Literal["FILE", "MEMORY"] = field(
        default="FILE",
        metadata=_row(
            "storeType",
            Kind.CHOICE,
            "Storage",
            "MEMORY forgets everything when the process ends: for tests.",
            choices=("FILE", "MEMORY"),
        ),
    )
    flush_disk_type: Literal["SYNC_FLUSH", "ASYNC_FLUSH"] = field(
        default="SYNC_FLUSH",
        metadata=_row(
            "flushDiskType",
            Kind.CHOICE,
            "Storage",
            "SYNC_FLUSH: acknowledged after fdatasync on a majority. ASYNC_FLUSH: after a majority "
            "has it in the page cache, synced in the background; a power failure of a majority "
            "loses acknowledged entries. (RocketMQ's default is ASYNC_FLUSH.)",
            choices=("SYNC_FLUSH", "ASYNC_FLUSH"),
        ),
    )
    flush_file_interval_ms: int = field(
        default=10,
        metadata=_row(
            "flushFileInterval",
            Kind.MILLISECONDS,
            "Storage",
            "ASYNC_FLUSH only: time between background syncs, which is how much a power failure can take.",
            minimum=1,
            maximum=60_000,
        ),
    )
    mapped_file_size_for_entry_data: int = field(
        default=_GIB,
        metadata=_row(
            "mappedFileSizeForEntryData",
            Kind.BYTES,
            "Storage",
            "Length of a data segment. Part of the byte format: the same on all nodes, and never "
            "changed for a folder in use.",
            minimum=256,
            maximum=2**31 - 1,
        ),
    )
    mapped_file_size_for_entry_index: int = field(
        default=160 * _MIB,
        metadata=_row(
            "mappedFileSizeForEntryIndex",
            Kind.BYTES,
            "Storage",
            "Length of an index segment, a multiple of 32. Never changed for a folder in use.",
            minimum=32,
            maximum=2**31 - 32,
        ),
    )
    check_point_bytes: int = field(
        default=16 * _MIB,
        metadata=_row(
            "checkPointBytes",
            Kind.BYTES,
            "Storage",
            "A checkpoint is written whenever this much committed log has passed. Opening a log "
            "verifies about this much, whatever the log's size.",
            minimum=_KIB,
            maximum=16 * _GIB,
        ),
    )
    tail_cache_bytes: int = field(
        default=16 * _MIB,
        metadata=_row(
            "tailCacheBytes",
            Kind.BYTES,
            "Storage",
            "Recent entries kept in memory for followers and readers near the tail.",
            minimum=0,
            maximum=16 * _GIB,
        ),
    )

    heartbeat_interval_ms: int = field(
        default=120,
        metadata=_row(
            "heartBeatTimeIntervalMs",
            Kind.MILLISECONDS,
            "Timing",
            "Time between a leader's heartbeats (DLedger: 2000).",
            minimum=5,
            maximum=60_000,
        ),
    )
    election_timeout_ms: int = field(
        default=600,
        metadata=_row(
            "electionTimeoutMs",
            Kind.MILLISECONDS,
            "Timing",
            "Silence before a follower starts a pre-vote, drawn from [n, 2n) (Raft §5.2). At least "
            "three heartbeats. Too low: elections on every slow fsync. Too high: a hung leader is "
            "replaced after up to 2n. A crashed leader is noticed at once, by its closed "
            "connections.",
            minimum=15,
            maximum=600_000,
        ),
    )
    lost_leader_min_ms: int = field(
        default=10,
        metadata=_row(
            "lostLeaderMinMs",
            Kind.MILLISECONDS,
            "Timing",
            "Shortest delay between a broken stream from the leader and the pre-vote that it starts.",
            minimum=0,
            maximum=60_000,
        ),
    )
    lost_leader_max_ms: int = field(
        default=60,
        metadata=_row(
            "lostLeaderMaxMs",
            Kind.MILLISECONDS,
            "Timing",
            "Longest such delay; the spread keeps two followers from campaigning against each other.",
            minimum=0,
            maximum=60_000,
        ),
    )
    max_wait_ack_time_ms: int = field(
        default=2500,
        metadata=_row(
            "maxWaitAckTimeMs",
            Kind.MILLISECONDS,
            "Timing",
            "An append without a majority after this long is answered WAIT_QUORUM_ACK_TIMEOUT; it may still commit.",
            minimum=10,
            maximum=3_600_000,
        ),
    )
    leadership_transfer_wait_timeout_ms: int = field(
        default=1000,
        metadata=_row(
            "leadershipTransferWaitTimeout",
            Kind.MILLISECONDS,
            "Timing",
            "How long a leadership transfer may take before it is given up and appends go on here.",
            minimum=10,
            maximum=600_000,
        ),
    )

    max_pending_requests_num: int = field(
        default=100_000,
        metadata=_row(
            "maxPendingRequestsNum",
            Kind.INTEGER,
            "Limits",
            "Entries a leader holds unacknowledged before it answers LEADER_PENDING_FULL (DLedger: 10000).",
            minimum=1,
            maximum=10_000_000,
        ),
    )
    max_pending_bytes: int = field(
        default=64 * _MIB,
        metadata=_row(
            "maxPendingBytes",
            Kind.BYTES,
            "Limits",
            "Bytes of the same. Memory in flight is bounded by a small multiple of this.",
            minimum=_KIB,
            maximum=16 * _GIB,
        ),
    )
    max_leadership_transfer_wait_index: int = field(
        default=1000,
        metadata=_row(
            "maxLeadershipTransferWaitIndex",
            Kind.INTEGER,
            "Limits",
            "A node that lags by this many entries or more is not given leadership.",
            minimum=1,
        ),
    )
    max_entry_bytes: int = field(
        default=4 * _MIB - 48,
        metadata=_row(
            "maxEntryBytes",
            Kind.BYTES,
            "Limits",
            "Largest body of one entry.",
            minimum=1,
            maximum=MAX_MESSAGE_BYTES - _MESSAGE_OVERHEAD_BYTES,
        ),
    )
    max_batch_bytes: int = field(
        default=4 * _MIB,
        metadata=_row(
            "maxBatchBytes",
            Kind.BYTES,
            "Limits",
            "Largest batch of a client, bodies only.",
            minimum=1,
            maximum=MAX_MESSAGE_BYTES - _MESSAGE_OVERHEAD_BYTES,
        ),
    )
    max_batch_entries: int = field(
        default=65_536,
        metadata=_row(
            "maxBatchEntries",
            Kind.INTEGER,
            "Limits",
            "Most entries in one batch of a client.",
            minimum=1,
            maximum=1_000_000,
        ),
    )
    max_inflight_count: int = field(
        default=64,
        metadata=_row(
            "maxInflightCount",
            Kind.INTEGER,
            "Limits",
            "Replication messages on the way to one follower and unanswered.",
            minimum=1,
            maximum=65_536,
        ),
    )
    max_inflight_bytes: int = field(
        default=8 * _MIB,
        metadata=_row("maxInflightBytes", Kind.BYTES, "Limits", "Bytes of the same.", minimum=_KIB, maximum=_GIB),
    )
    max_append_bytes: int = field(
        default=_MIB,
        metadata=_row(
            "maxAppendBytes",
            Kind.BYTES,
            "Limits",
            "Entries in one replication message; at least one entry goes, whatever its size.",
            minimum=1,
            maximum=MAX_MESSAGE_BYTES - _MESSAGE_OVERHEAD_BYTES,
        ),
    )
    max_catch_up_bytes: int = field(
        default=155 * _MIB,
        metadata=_row(
            "maxCatchUpBytes",
            Kind.BYTES,
            "Limits",
            "History that a leader sends in a second while clients append, to all that lag together; 0: no limit.",
            minimum=0,
            maximum=1024 * _GIB,
        ),
    )

    keep_cpus_awake: Literal["never", "busy"] = field(
        default="never",
        metadata=_row(
            "keepCpusAwake",
            Kind.CHOICE,
            "Latency",
            "busy: while entries come in, the kernel lets no processor of the machine sleep (/dev/cpu_dma_latency, "
            "which the node must be allowed to write). An append alone takes a quarter less time on a virtual machine; "
            "costs power, and what a host charges for a busy processor.",
            choices=("never", "busy"),
        ),
    )

    max_connections: int = field(
        default=1000,
        metadata=_row(
            "maxConnections",
            Kind.INTEGER,
            "Limits",
            "Connections at one listener; further ones are closed at once. Peers share the main port with clients: "
            "with tlsClientPort they do not.",
            minimum=8,
            maximum=1_000_000,
        ),
    )
    max_streams: int = field(
        default=1000,
        metadata=_row(
            "maxStreams",
            Kind.INTEGER,
            "Limits",
            "Append and read streams of clients at a time; further ones get RESOURCE_EXHAUSTED.",
            minimum=1,
            maximum=1_000_000,
        ),
    )
    slow_reader_timeout_ms: int = field(
        default=30_000,
        metadata=_row(
            "slowReaderTimeout",
            Kind.MILLISECONDS,
            "Limits",
            "A stream whose client takes nothing for so long is ended; what it holds in memory is freed.",
            minimum=100,
            maximum=3_600_000,
        ),
    )

    tls_cert_file: str | None = field(
        default=None,
        metadata=_row(
            "tlsCertFile",
            Kind.PATH,
            "Security",
            "The node's certificate (PEM, its chain behind it); names dLegerSelfId and the host among its DNS names. "
            "With tlsKeyFile and tlsCaFile the port speaks TLS only, and whoever calls must show a certificate of the "
            "CA. The three files are read again when they change.",
        ),
    )
    tls_key_file: str | None = field(
        default=None,
        metadata=_row("tlsKeyFile", Kind.PATH, "Security", "The certificate's key (PEM, not encrypted)."),
    )
    tls_ca_file: str | None = field(
        default=None,
        metadata=_row(
            "tlsCaFile",
            Kind.PATH,
            "Security",
            "Certificates (PEM) of the CA that signs for this group's nodes and clients, and for nobody else.",
        ),
    )
    tls_client_port: int | None = field(
        default=None,
        metadata=_row(
            "tlsClientPort",
            Kind.INTEGER,
            "Security",
            "A second port, TLS too, where clients need no certificate (tokensFile says what they may do); no Raft "
            "there. 0 is any free one.",
            minimum=0,
            maximum=65535,
        ),
    )
    tokens_file: str | None = field(
        default=None,
        metadata=_row(
            "tokensFile",
            Kind.PATH,
            "Security",
            "Lines NAME RIGHT[,RIGHT] TOKEN, rights read, write and admin; see security.md. Set: calls without a token "
            "of the right kind are refused. Read again when it changes.",
        ),
    )
    allow_plaintext: Literal["none", "metrics", "all"] = field(
        default="none",
        metadata=_row(
            "allowPlaintext",
            Kind.CHOICE,
            "Security",
            "What may be served without TLS on an address that is not loopback: nothing (such a node does not start), "
            "metrics and probes, or everything. `dledger start --insecure` is all.",
            choices=("none", "metrics", "all"),
        ),
    )

    metrics_port: int | None = field(
        default=None,
        metadata=_row(
            "metricsPort",
            Kind.INTEGER,
            "Metrics",
            "Port of /metrics (Prometheus), /livez and /readyz over HTTP; 0 is any free one, none serves none.",
            minimum=0,
            maximum=65535,
        ),
    )
    metrics_host: str | None = field(
        default="127.0.0.1",
        metadata=_row(
            "metricsAddress",
            Kind.HOST,
            "Metrics",
            "Address to serve them at; another than loopback needs allowPlaintext=metrics.",
        ),
    )

    log_level: Literal["debug", "info", "warning", "error"] = field(
        default="info",
        metadata=_row(
            "logLevel",
            Kind.CHOICE,
            "Logging",
            "Least severity of events that are logged, to standard error.",
            choices=("debug", "info", "warning", "error"),
        ),
    )
    log_format: Literal["auto", "json", "console"] = field(
        default="auto",
        metadata=_row(
            "logFormat",
            Kind.CHOICE,
            "Logging",
            "auto: coloured text on a terminal, else one JSON object a line.",
            choices=("auto", "json", "console"),
        ),
    )

    broker_settings: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    """Accepted keys that the log itself does not use (a broker's, and DLedger's without a counterpart), as text."""

    origins: Mapping[str, Origin] = field(default_factory=dict, compare=False, repr=False)
    """Field → where its value came from; empty for a configuration made by a program."""

    notes: tuple[str, ...] = field(default=(), compare=False, repr=False)
    """What an operator should know though it is no error, one line each."""

    def __post_init__(self) -> None:
        values = {setting.field: getattr(self, setting.field) for setting in SETTINGS}
        problems = _check_each(values)
        if not problems:
            problems = _check_together(values, self.broker_settings, lambda name: f"DLedgerConfig.{name}")
        if problems:
            raise ConfigError(problems)
        object.__setattr__(self, "store_path_root_dir", os.path.expanduser(self.store_path_root_dir))
        object.__setattr__(self, "broker_settings", MappingProxyType(dict(self.broker_settings)))
        object.__setattr__(self, "origins", MappingProxyType(dict(self.origins)))

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike[str] | None,
        overrides: Mapping[str, str] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> DLedgerConfig:
        """Read a ``key=value`` file; ``overrides`` beat ``env`` (None: the process's) beat the file beat defaults.

        ``path`` None: no file, everything from elsewhere.

        Raises:
            ConfigError: every problem at once, ``file:line:column: key: what; what next`` each.
        """
        loaded = load_values(SETTINGS, None if path is None else os.fspath(path), overrides, env)

        def where(name: str) -> str:
            origin = loaded.origins.get(name) or loaded.other_origins.get(name)
            if origin is None or origin.kind is OriginKind.DEFAULT:
                return f"{os.fspath(path)}:1:1" if path is not None else "default"
            return origin.where()

        problems = loaded.problems + _check_together(loaded.values, loaded.other, where)
        if problems:
            raise ConfigError(sort_problems(problems))
        return cls(
            **cast("dict[str, Any]", loaded.values),
            broker_settings=loaded.other,
            origins=loaded.origins,
            notes=tuple(loaded.notes),
        )

    @classmethod
    def from_mapping(cls, values: Mapping[str, str]) -> DLedgerConfig:
        """Make one from keys and texts as a file has them; neither file nor environment is read.

        Raises:
            ConfigError: as `from_file`.
        """
        return cls.from_file(None, values, {})

    @property
    def peer(self) -> Peer:
        """This node among the peers."""
        return next(peer for peer in self.peers if peer.node_id == self.self_id)

    @property
    def bind_address(self) -> str:
        """``host:port`` to listen on."""
        host = self.peer.host if self.bind_host is None else self.bind_host
        port = self.peer.port if self.bind_port is None else self.bind_port
        return Peer(self.self_id, host, port).address

    @property
    def node_dir(self) -> Path:
        """The node's data folder, laid out as DLedger does."""
        return Path(self.store_path_root_dir) / f"dledger-{self.self_id}"

    @property
    def sync_flush(self) -> bool:
        """Whether an acknowledgement waits for fdatasync."""
        return self.flush_disk_type == "SYNC_FLUSH"

    def lines(self) -> list[tuple[Setting, str, Origin]]:
        """Return every setting with its value as text and its origin, in the table's order."""
        code = Origin(OriginKind.CODE)
        return [(s, s.format(getattr(self, s.field)), self.origins.get(s.field, code)) for s in SETTINGS]


def _collect_settings() -> tuple[Setting, ...]:
    """Read the rows off the fields: the name and the default stand there once."""
    rows = []
    for item in fields(DLedgerConfig):
        row = item.metadata.get("setting")
        if row is not None:
            default = REQUIRED if item.default is MISSING else item.default
            rows.append(replace(row, field=item.name, default=default))
    return tuple(rows)


_OPTIONAL: Final = frozenset(
    {
        "bind_port",
        "announced_peer_port",
        "metrics_port",
        "tls_ca_file",
        "tls_cert_file",
        "tls_client_port",
        "tls_key_file",
        "tokens_file",
    }
)
"""Fields that may be None, which is to be without the thing."""


def _check_each(values: Mapping[str, object]) -> list[str]:
    """Check each value alone: kind, range, choice."""
    problems = []
    for setting in SETTINGS:
        value = values[setting.field]
        if value is None and setting.field in _OPTIONAL:
            continue
        problem = setting.check(value)
        if problem:
            problems.append(f"DLedgerConfig.{setting.field}: {problem}")
    return problems


def _check_together(values: Mapping[str, Any], other: Mapping[str, str], where: Callable[[str], str]) -> list[str]:
    """Check what values owe each other; each problem with its place."""
    return [f"{where(name)}: {_KEYS[name]}: {message}" for name, message in broken_rules(values, other)]


SETTINGS: Final = _collect_settings()
"""Every setting, in the order of the documentation."""

_KEYS: Final = {setting.field: setting.key for setting in SETTINGS}
