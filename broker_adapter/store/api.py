"""The interface between the broker's front and its store: values, configuration, and the `MessageStore` protocol.

Two implementations stand behind it (`open_store` in ``broker_adapter.store.factory`` picks one):

* ``LocalMessageStore``: RocketMQ's own commit log files, with HAService where the role asks for it;
* ``DLedgerMessageStore``: the commit log is a replicated log; one message is one entry.

Everything belongs to one event loop: call it there, callbacks come there. Times are milliseconds since the epoch,
offsets in a queue count messages, physical offsets count bytes.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from broker_adapter.message import Message
    from dledger import NodeStatus, RoleChangeHandler

__all__ = [
    "SCHEDULE_TOPIC",
    "Arrival",
    "ArrivalListener",
    "BrokerRole",
    "FlushDiskType",
    "GetMessageStatus",
    "GetResult",
    "HaSlaveStatus",
    "HaStatus",
    "MessageStore",
    "PutMessageStatus",
    "PutResult",
    "QueryResult",
    "QueueUnit",
    "StateKind",
    "StateListener",
    "StoreConfig",
    "StoreHost",
]

SCHEDULE_TOPIC: Final = "SCHEDULE_TOPIC_XXXX"
"""Delayed messages wait here, one queue per level (queue id = level - 1); a unit's tags code is the due time."""

StoreHost = tuple[str, int]
"""(IPv4 or IPv6 address, port)."""


class BrokerRole(enum.Enum):
    """What the broker is to its replicas; RocketMQ's names."""

    ASYNC_MASTER = "ASYNC_MASTER"
    SYNC_MASTER = "SYNC_MASTER"
    SLAVE = "SLAVE"


class FlushDiskType(enum.Enum):
    SYNC_FLUSH = "SYNC_FLUSH"
    ASYNC_FLUSH = "ASYNC_FLUSH"


class PutMessageStatus(enum.Enum):
    """What became of a put; RocketMQ's names. ``stored`` in `PutResult` says which of them left a message behind."""

    PUT_OK = "PUT_OK"
    FLUSH_DISK_TIMEOUT = "FLUSH_DISK_TIMEOUT"
    """Stored, not synced in time (answer code 10, the client gets a result with this status, no error)."""
    FLUSH_SLAVE_TIMEOUT = "FLUSH_SLAVE_TIMEOUT"
    """Stored on the master, no slave confirmed in time (11/12: likewise)."""
    SLAVE_NOT_AVAILABLE = "SLAVE_NOT_AVAILABLE"
    SERVICE_NOT_AVAILABLE = "SERVICE_NOT_AVAILABLE"
    """Code 14. Definitely not stored: not the master, handing over, disk full, stopping."""
    CREATE_MAPPED_FILE_FAILED = "CREATE_MAPPED_FILE_FAILED"
    MESSAGE_ILLEGAL = "MESSAGE_ILLEGAL"
    """Code 13. Definitely not stored: too long in some part."""
    OS_PAGECACHE_BUSY = "OS_PAGECACHE_BUSY"
    """Code 1, remark ``[PC_SYNCHRONIZED]broker busy…``. Back-pressure, or no quorum in time (then it may be stored)."""
    UNKNOWN_ERROR = "UNKNOWN_ERROR"
    """Code 1. Anything else; in DLedger mode also every outcome that nobody knows."""


@dataclass(slots=True)
class PutResult:
    """Where a message stands, or why not.

    ``message_id`` (the offset id, upper-case hex; several joined by commas for a batch), ``queue_id``,
    ``queue_offset`` and ``physical_offset`` (of the first message of a batch) are valid where the message got its
    place: statuses PUT_OK, FLUSH_DISK_TIMEOUT, FLUSH_SLAVE_TIMEOUT, SLAVE_NOT_AVAILABLE.

    ``maybe_stored``: True wherever the message is, or may be or become, in the log. False: it is not and never will
    be, so another broker may be tried without a duplicate.
    """

    status: PutMessageStatus
    queue_offset: int = -1
    physical_offset: int = -1
    message_id: str = ""
    store_timestamp: int = 0
    maybe_stored: bool = False
    remark: str = ""
    count: int = 1
    """Messages in the batch."""
    byte_count: int = 0
    """Stored size, all messages of the batch."""
    queue_id: int = -1

    @property
    def is_ok(self) -> bool:
        """Whether the client gets a result rather than an error (upstream's ``sendOK``)."""
        return self.status in _SEND_OK


_SEND_OK: Final = frozenset(
    {
        PutMessageStatus.PUT_OK,
        PutMessageStatus.FLUSH_DISK_TIMEOUT,
        PutMessageStatus.FLUSH_SLAVE_TIMEOUT,
        PutMessageStatus.SLAVE_NOT_AVAILABLE,
    }
)


class GetMessageStatus(enum.Enum):
    """Outcome of `MessageStore.get_message`; RocketMQ's names."""

    FOUND = "FOUND"
    NO_MATCHED_MESSAGE = "NO_MATCHED_MESSAGE"
    MESSAGE_WAS_REMOVING = "MESSAGE_WAS_REMOVING"
    OFFSET_FOUND_NULL = "OFFSET_FOUND_NULL"
    OFFSET_OVERFLOW_BADLY = "OFFSET_OVERFLOW_BADLY"
    OFFSET_OVERFLOW_ONE = "OFFSET_OVERFLOW_ONE"
    OFFSET_TOO_SMALL = "OFFSET_TOO_SMALL"
    NO_MATCHED_LOGIC_QUEUE = "NO_MATCHED_LOGIC_QUEUE"
    NO_MESSAGE_IN_QUEUE = "NO_MESSAGE_IN_QUEUE"


@dataclass(slots=True)
class GetResult:
    """``buffers``: whole stored messages, to be sent back to back. ``byte_count`` is their total size.

    ``backlog_bytes``: how far the last queue unit looked at lies behind the end of the commit log (0 where nothing
    was read); ``suggest_pulling_from_slave`` is its comparison with ``access_message_in_memory_max_ratio``.
    """

    status: GetMessageStatus
    next_begin_offset: int
    min_offset: int
    max_offset: int
    buffers: list[bytes] = field(default_factory=list)
    byte_count: int = 0
    suggest_pulling_from_slave: bool = False
    backlog_bytes: int = 0

    @property
    def message_count(self) -> int:
        return len(self.buffers)


@dataclass(frozen=True, slots=True)
class QueryResult:
    """Answer of `MessageStore.query_message`: whole stored messages, newest index entry first, and how fresh the
    index is (``index_last_update_timestamp`` and ``index_last_update_physical_offset`` of the response header)."""

    buffers: list[bytes]
    index_last_update_timestamp: int
    index_last_update_physical_offset: int


@dataclass(frozen=True, slots=True)
class QueueUnit:
    """One 20-byte ConsumeQueue unit and its place. ``tags_code`` is the due time (ms) in `SCHEDULE_TOPIC`."""

    queue_offset: int
    physical_offset: int
    size: int
    tags_code: int


@dataclass(frozen=True, slots=True)
class Arrival:
    """Messages that have become visible in one queue: offsets ``first_offset`` … + len(tags_codes) - 1."""

    topic: str
    queue_id: int
    first_offset: int
    tags_codes: Sequence[int]
    store_timestamp: int
    """Of the last one."""

    @property
    def max_offset(self) -> int:
        """The queue's end after it: what a held pull compares with."""
        return self.first_offset + len(self.tags_codes)


ArrivalListener = Callable[[Sequence[Arrival]], None]
"""Called once per dispatched batch, on every role; a slave's front ignores it or serves its own held pulls."""


class StateKind:
    """The tables of the replicated small state. Keys and values are up to the front, but for local mode's files the
    values should be these (they are written in upstream's formats):

    * ``TOPICS``: key topic, value the TopicConfig object; None deletes the topic *and its queues* on every node.
    * ``SUBSCRIPTION_GROUPS``: key group, value the SubscriptionGroupConfig object.
    * ``CONSUMER_OFFSETS``: key ``topic@group@queueId``, value the offset (int).
    * ``DELAY_OFFSETS``: key the level as text, value the offset (int) in `SCHEDULE_TOPIC`.
    * ``QUEUE_LOCKS``: key ``group@topic@queueId``, value what the lock manager likes. In local mode
      only in memory, as upstream.
    """

    TOPICS: Final = "topics"
    SUBSCRIPTION_GROUPS: Final = "subscriptionGroup"
    CONSUMER_OFFSETS: Final = "consumerOffset"
    DELAY_OFFSETS: Final = "delayOffset"
    QUEUE_LOCKS: Final = "queueLock"


StateListener = Callable[[str, str, Any], None]
"""``listener(kind, key, value)`` after a record was applied (value None: deleted); on every node, in log order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfig:
    """Everything the store is told. Names and defaults follow RocketMQ's keys (units last)."""

    store_path_root_dir: str
    store_path_commit_log: str | None = None
    """Default ``<root>/commitlog``. Unused in DLedger mode."""
    store_host: StoreHost = ("127.0.0.1", 10911)
    """brokerIP1 and listenPort: written into each message and its id."""
    broker_role: BrokerRole = BrokerRole.ASYNC_MASTER
    """Initial role; DLedger mode ignores it and starts as SLAVE until `MessageStore.set_role`."""
    flush_disk_type: FlushDiskType = FlushDiskType.ASYNC_FLUSH
    sync_flush_timeout_ms: int = 5000
    flush_interval_commit_log_ms: int = 500
    flush_interval_consume_queue_ms: int = 1000
    mapped_file_size_commit_log: int = 1024 * 1024 * 1024
    mapped_file_size_consume_queue: int = 300_000 * 20
    max_hash_slot_num: int = 5_000_000
    max_index_num: int = 20_000_000
    message_index_enable: bool = True
    max_message_size: int = 4 * 1024 * 1024
    message_delay_level: str = "1s 5s 10s 30s 1m 2m 3m 4m 5m 6m 7m 8m 9m 10m 20m 30m 1h 2h"
    message_cache_bytes: int = 32 * 1024 * 1024
    """Newest messages kept in memory for consumers at the tail."""
    put_message_pending_bytes: int = 64 * 1024 * 1024
    """Local mode: bytes accepted and not yet flushed/replicated before OS_PAGECACHE_BUSY."""

    access_message_in_memory_max_ratio: int = 40
    total_physical_memory_bytes: int = 0
    """0: ask the system. A setting, so that a test can reach the 40 % rule."""
    max_transfer_bytes_on_message_in_memory: int = 262_144
    max_transfer_count_on_message_in_memory: int = 32
    max_transfer_bytes_on_message_in_disk: int = 65_536
    max_transfer_count_on_message_in_disk: int = 8
    offset_check_in_slave: bool = False
    default_query_max_num: int = 32

    delete_when: str = "04"
    """Hours of the day at which expired files go, ``;``-separated."""
    file_reserved_time_hours: int = 72
    disk_max_used_space_ratio: int = 75
    clean_file_forcibly_enable: bool = True
    clean_resource_interval_ms: int = 10_000

    ha_listen_host: str = "0.0.0.0"
    ha_listen_port: int = 10912
    """0: any free port; see `MessageStore.ha_status`."""
    ha_master_address: str | None = None
    """``host:port``; slaves learn it later by `MessageStore.update_ha_master_address`."""
    ha_send_heartbeat_interval_ms: int = 5000
    ha_housekeeping_interval_ms: int = 20_000
    ha_transfer_batch_bytes: int = 32_768
    ha_slave_fallbehind_max_bytes: int = 256 * 1024 * 1024
    slave_timeout_ms: int = 3000
    ha_reconnect_interval_ms: int = 5000
    """A slave without a connection tries again after this long (upstream: 5 s)."""

    enable_dledger_commit_log: bool = False
    dledger_group: str | None = None
    dledger_peers: str | None = None
    dledger_self_id: str | None = None
    preferred_leader_id: str | None = None
    dledger_settings: Mapping[str, str] = field(default_factory=dict)
    """Further keys for ``DLedgerConfig`` as its files spell them (``electionTimeoutMs``, ``bindPort``, …)."""


@dataclass(frozen=True, slots=True)
class HaSlaveStatus:
    """One slave as the master sees it (haStatus's columns)."""

    address: str
    ack_offset: int
    diff_bytes: int
    in_sync: bool
    transferred_bytes_per_s: int


@dataclass(frozen=True, slots=True)
class HaStatus:
    """``listen_address`` None: no HAService here. ``master_address``: whom this slave pulls from."""

    role: BrokerRole
    max_offset: int
    listen_address: tuple[str, int] | None
    slaves: tuple[HaSlaveStatus, ...] = ()
    master_address: str | None = None
    connected: bool = False
    """A slave's: whether the connection to the master stands."""


class MessageStore(Protocol):
    """One broker's messages, queues, index and small state.

    Errors: puts answer with a status and never raise; reads of what is not there answer so in their result. State
    puts raise ``dledger.DLedgerError``s (``outcome`` says whether the record may still be applied).
    """

    config: StoreConfig

    # ---------------------------------------------------------------- life and role

    async def start(self) -> None:
        """Recover and open for reads; local masters take puts from here on, a DLedger node after `set_role`.

        Raises:
            ConfigError: settings that contradict each other. StorageError: files that cannot be used.
        """

    async def stop(self) -> None:
        """Flush, write the checkpoints, close. In DLedger mode leadership is handed over first. Twice is fine."""

    async def wait_failed(self) -> BaseException:
        """Return once the store has failed for good (disk, broken invariant): the broker must end. Never otherwise."""

    @property
    def role(self) -> BrokerRole: ...

    def set_role(self, role: BrokerRole) -> None:
        """Become master or slave, at once. A slave refuses puts (SERVICE_NOT_AVAILABLE).

        DLedger mode: to become master call `wait_dispatched`, then this; the next-offset table is rebuilt here.
        """

    def add_role_change_handler(self, handler: RoleChangeHandler) -> None:
        """DLedger mode, before `start`: told of elections (``handle(term, MemberRole)``). No effect in local mode."""

    async def wait_dispatched(self) -> None:
        """Return once everything committed (local: written) at the time of the call is dispatched."""

    def recover_topic_queue_table(self) -> None:
        """Rebuild the next offset per queue from the queues' ends (upstream's name). `set_role` does it too."""

    @property
    def is_dledger(self) -> bool: ...

    def dledger_status(self) -> NodeStatus | None:
        """The log node's status in DLedger mode (role, term, leader, peers with their lag), else None."""

    async def transfer_leadership(self, target: str | None = None) -> str:
        """DLedger mode: hand leadership to ``target`` (None: the best follower); returns the new leader's id."""

    # ---------------------------------------------------------------- puts

    def put_message(self, message: Message) -> Awaitable[PutResult]:
        """Store one message. Its place in order is that of the *call*; the result is awaited apart.

        Sets ``store_timestamp``, ``store_host`` and the queue offset. A message with property ``DELAY`` > 0 (and not
        of a transaction) goes to `SCHEDULE_TOPIC` with ``REAL_TOPIC``/``REAL_QID``, as upstream's commit log does.
        """

    def put_messages(self, batch: Message) -> Awaitable[PutResult]:
        """Store a batch: ``batch.body`` is the client's encoding, ``(total 4, magic 4, crc 4, flag 4, body length 4,
        body, properties length 2, properties)*``; topic, queue, hosts and properties of ``batch`` go for each.

        Contiguous in the queue. In DLedger mode a prefix may be stored where the outcome is unknown.
        """

    def put_nowait(self, message: Message, done: Callable[[PutResult], None], *, is_batch: bool) -> None:
        """As `put_message` (or, ``is_batch``, `put_messages`), answered by ``done``: once, on the event loop.

        It may be called before this returns. What it raises is logged, nobody else hears of it.
        """

    # ---------------------------------------------------------------- reads

    async def get_message(
        self,
        group: str,
        topic: str,
        queue_id: int,
        offset: int,
        max_count: int,
        tags_codes: frozenset[int] | None = None,
        *,
        max_bytes: int | None = None,
    ) -> GetResult:
        """Read from a queue at ``offset``, upstream's rules for statuses, limits and next offsets.

        ``tags_codes``: Java hash codes of the wanted tags (see ``message.tags_code``), None: everything.
        ``max_bytes`` beats the configured transfer limits (byte limits *and* counts); at least one message is returned.
        """

    def get_message_now(
        self, topic: str, queue_id: int, offset: int, max_count: int, tags_codes: frozenset[int] | None = None
    ) -> GetResult | None:
        """As `get_message`, from memory; None where that would have to wait for the disk."""

    def max_offset(self, topic: str, queue_id: int) -> int:
        """One past the last message of the queue; 0 where there is no such queue."""

    def min_offset(self, topic: str, queue_id: int) -> int:
        """The first offset whose message is still there; 0 where there is no such queue."""

    def queue_ids(self, topic: str) -> list[int]:
        """Queues of the topic that hold or held messages, ascending."""

    async def queue_units(self, topic: str, queue_id: int, offset: int, max_count: int) -> list[QueueUnit]:
        """ConsumeQueue units from ``offset`` on (the delay service reads due times here); empty past the end."""

    async def offset_by_time(self, topic: str, queue_id: int, timestamp: int) -> int:
        """The first offset stored at or after ``timestamp``; the queue's end where there is none."""

    async def earliest_store_time(self, topic: str | None = None, queue_id: int = 0) -> int:
        """Store time of the first message of a queue (None: of the whole log); -1 where there is none."""

    async def message_store_time(self, topic: str, queue_id: int, offset: int) -> int:
        """Store time of the message at ``offset``; -1 where there is none."""

    async def look_message_by_offset(self, physical_offset: int, size: int | None = None) -> bytes | None:
        """The stored message that starts at ``physical_offset`` (decode with ``message.decode_message``), else None.

        Only visible ones: never beyond the committed (local: written) end; a wild offset is None too.
        """

    async def query_message(self, topic: str, key: str, max_count: int, begin: int, end: int) -> QueryResult:
        """Messages of ``topic`` with ``key`` (KEYS or UNIQ_KEY) stored in [begin, end] ms, at most ``max_count`` and
        ``default_query_max_num``. Matches are exact (hash collisions are filtered out)."""

    def is_in_memory(self, topic: str, queue_id: int, offset: int) -> bool:
        """Whether the 40 % rule counts the message at ``offset`` as in memory (QUERY_CONSUMER_OFFSET asks)."""

    # ---------------------------------------------------------------- listeners

    def add_arrival_listener(self, listener: ArrivalListener) -> None: ...

    def add_state_listener(self, listener: StateListener) -> None:
        """Be told of changes from now on. What was restored at the start is in `state`, nobody is told of it; in
        DLedger mode the records behind the checkpoint are replayed, and told, after the start."""

    # ---------------------------------------------------------------- replicated small state

    async def put_state(self, kind: str, key: str, value: object) -> None:
        """Set (None: delete) one value; returns once it is committed and applied here.

        ``value`` is JSON-able. DLedger mode: an entry in the log (only the master can; others raise NotLeaderError);
        local mode: at once in memory, written to ``config/*.json`` in the background, any role may.
        """

    async def put_states(self, records: Sequence[tuple[str, str, object]]) -> None:
        """Several at once, in order, atomic (one entry): ``(kind, key, value)``. Cheaper than one by one."""

    def state(self, kind: str) -> Mapping[str, Any]:
        """The live table of a kind (read-only; do not modify the values either)."""

    def state_version(self, kind: str) -> tuple[int, int]:
        """(timestamp ms, counter) of the table's last change: a DataVersion."""

    # ---------------------------------------------------------------- keeping house

    def dispatch_behind_bytes(self) -> int:
        """Bytes committed (local: written) and not yet in the queues."""

    @property
    def max_physical_offset(self) -> int:
        """End of what is visible in the commit log (DLedger mode: dispatched end of the committed log)."""

    @property
    def min_physical_offset(self) -> int: ...

    async def clean_expired(self, *, now_ms: int | None = None, force: bool = False) -> int:
        """Delete commit log files past ``file_reserved_time_hours`` (only at ``delete_when``, when the disk is full,
        or by ``force``), then queue and index files that only they needed. Returns the commit log files deleted.
        The store calls it by itself too. DLedger mode: 0, the log deletes for itself."""

    def runtime_info(self) -> dict[str, str]:
        """The store's part of brokerStatus (upstream's keys): commitLogMinOffset, commitLogMaxOffset,
        dispatchBehindBytes, commitLogDirCapacity, commitLogDiskRatio, consumeQueueDiskRatio, …"""

    # ---------------------------------------------------------------- classic HA

    def update_ha_master_address(self, address: str | None) -> None:
        """A slave's master HA address as the name server told it (None: unknown). Local mode only."""

    def ha_status(self) -> HaStatus: ...
