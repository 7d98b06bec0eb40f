"""Appends at a leader: taken or refused, put in sequence, given indexes, answered once committed."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from dledger.config import DLedgerConfig
from dledger.driver.pending import Done, PendingAppends, WaitingBatch
from dledger.driver.recent import AppendTimes
from dledger.errors import (
    DiskFullError,
    DLedgerError,
    EntryTooLargeError,
    LeaderTransferringError,
    NotLeaderError,
    PendingFullError,
    QuorumTimeoutError,
    ResponseCode,
    StoppedError,
    TermChangedError,
    TransferFailedError,
    UnexpectedArgumentError,
)
from dledger.metrics.instruments import DriverMetrics
from dledger.raft.core import RaftCore
from dledger.raft.messages import EntryType, NodeId, Role, invariant
from dledger.raft.ready import ProposalRefusedError, RefusalReason
from dledger.storage.entry import EntryGroup
from dledger.storage.layout import HEADER_BYTES
from dledger.storage.log_store import LogStore
from dledger.types import AppendHook, BatchResult, IndexRun

__all__ = ["Appends"]

MAX_CLIENT_ID_BYTES = 64

_WORTH_A_ROUND_COUNT = 16
_MAX_OPEN_PROPOSALS = 2
_FULL_COUNT = 512
_FULL_BYTES = 128 * 1024
_MAX_HOLD_MS = 5
_EXPIRY_STEP_MS = 100
_NEVER = 2**62


class Appends:
    """The append side of one node. `submit` queues; the driver's pump calls `propose`, `resolve` and `expire`.

    Invariant: every batch's ``done`` is called exactly once, and never from within `submit`.
    """

    def __init__(
        self,
        config: DLedgerConfig,
        core: RaftCore,
        store: LogStore,
        loop: asyncio.AbstractEventLoop,
        addresses: dict[NodeId, str],
    ) -> None:
        self._config = config
        self._core = core
        self._store = store
        self._loop = loop
        self._addresses = addresses
        self._waiting: list[WaitingBatch] = []
        self._waiting_bytes = 0
        self._waiting_count = 0
        self._waiting_since_ms = _NEVER
        self._open: deque[int] = deque()
        """Last index of each proposal that is not committed yet."""
        self._pending = PendingAppends()
        self._expiry_due_ms = _NEVER
        self._closed: DLedgerError | None = None
        self.times = AppendTimes()
        self.metrics = DriverMetrics()
        self.clock: Callable[[], float] = loop.time
        """For measurements only."""

    # ------------------------------------------------------------------ taking

    @property
    def is_waiting(self) -> bool:
        """Whether anything waits to be proposed."""
        return bool(self._waiting)

    def is_due(self, now_ms: int) -> bool:
        """Whether what waits is to be proposed now.

        What a group of nodes costs is the round, not the entry: three processes wake up for each. So while a proposal
        is on its way, the few entries of many clients wait until it is committed and go together, for a few
        milliseconds at most; a second one leaves beside it if it is worth a round, more only if they are full.
        """
        if not self._waiting:
            return False
        opened, commit_index = self._open, self._core.commit_index
        while opened and opened[0] <= commit_index:
            opened.popleft()
        return (
            not opened
            or (len(opened) < _MAX_OPEN_PROPOSALS and self._waiting_count >= _WORTH_A_ROUND_COUNT)
            or self._waiting_count >= _FULL_COUNT
            or self._waiting_bytes >= _FULL_BYTES
            or now_ms >= self._waiting_since_ms + _MAX_HOLD_MS
        )

    @property
    def pending_count(self) -> int:
        """Entries taken and not committed."""
        return self._core.last_index - self._core.commit_index + self._waiting_count

    @property
    def pending_bytes(self) -> int:
        return self._pending.byte_count + self._waiting_bytes

    @property
    def deadline_ms(self) -> int:
        """When `expire` next has something to do, or what waits becomes due."""
        return min(self._expiry_due_ms, self._waiting_since_ms + _MAX_HOLD_MS)

    def submit(self, batch: WaitingBatch) -> bool:
        """Queue a batch for the next proposal; False where it was refused (``done`` hears of it a moment later)."""
        error = self.refuse(len(batch.bodies), batch.byte_count)
        if error is None and (longest := max(map(len, batch.bodies))) > self._config.max_entry_bytes:
            error = EntryTooLargeError(
                f"an entry of {longest} bytes exceeds the limit of {self._config.max_entry_bytes} (maxEntryBytes)"
            )
        if error is not None:
            self.metrics.failed[error.code.name.lower()] += 1
            self._loop.call_soon(batch.done, None, error)
            return False
        if not self._waiting:
            self._waiting_since_ms = batch.deadline_ms - self._config.max_wait_ack_time_ms
        self._waiting.append(batch)
        self._waiting_bytes += batch.byte_count
        self._waiting_count += len(batch.bodies)
        return True

    def batch(
        self,
        bodies: Sequence[bytes],
        session_id: int,
        first_sequence: int,
        done: Done,
        hook: AppendHook | None,
        now_ms: int,
    ) -> WaitingBatch:
        byte_count = sum(map(len, bodies)) + HEADER_BYTES * len(bodies)
        deadline_ms = now_ms + self._config.max_wait_ack_time_ms
        return WaitingBatch(bodies, byte_count, session_id, first_sequence, done, deadline_ms, hook)

    def session_batch(self, client_id: bytes, done: Done, now_ms: int) -> WaitingBatch:
        if not 0 < len(client_id) <= MAX_CLIENT_ID_BYTES:
            raise UnexpectedArgumentError(f"a client id has 1 to {MAX_CLIENT_ID_BYTES} bytes, not {len(client_id)}")
        batch = self.batch((client_id,), 0, 0, done, None, now_ms)
        batch.client_id = client_id
        return batch

    def refuse(self, count: int, byte_count: int) -> DLedgerError | None:
        """Why an append cannot be taken now; None if it can."""
        if self._closed is not None:
            return StoppedError("the node is stopping")
        if count == 0:
            return UnexpectedArgumentError(
                "an empty batch: send at least one entry", code=ResponseCode.REQUEST_WITH_EMPTY_BODYS
            )
        core, config = self._core, self._config
        if core.role is not Role.LEADER:
            return self.not_leader()
        if core.disk_full:  # first: why leadership is to go elsewhere says more than that it is
            return DiskFullError(f"the disk of the leader, {core.node_id}, is full")
        if core.transferee is not None:
            return LeaderTransferringError(f"leadership is going to {core.transferee}; ask again in a moment")
        pending, pending_bytes = self.pending_count, self.pending_bytes
        if pending and pending + count > config.max_pending_requests_num:
            return PendingFullError(f"{pending} entries are pending (maxPendingRequestsNum); back off")
        if pending_bytes and pending_bytes + byte_count > config.max_pending_bytes:
            return PendingFullError(f"{pending_bytes} bytes are pending (maxPendingBytes); back off")
        return None

    # ------------------------------------------------------------------ proposing

    def propose(self, now_ms: int) -> bool:
        """Give everything that waits its indexes: one proposal, one encoding. Returns whether anything was staged."""
        waiting = self._take_waiting()
        fresh: list[tuple[WaitingBatch, list[tuple[int, int]], Sequence[bytes]]] = []
        nexts: dict[int, int] = {}
        opened: dict[bytes, int] = {}
        for batch in waiting:
            try:
                repeated = self._put_in_sequence(batch, nexts, opened)
            except DLedgerError as error:
                batch.done(None, error)
                continue
            known = sum([count for _, count in repeated]) if repeated else 0
            if known == len(batch.bodies):
                self._await_repeated(batch, repeated)
            else:
                fresh.append((batch, repeated, batch.bodies[known:] if known else batch.bodies))
        if not fresh:
            return False
        try:
            index = self._core.propose(sum([len(bodies) for _, _, bodies in fresh]), now_ms)
        except ProposalRefusedError as refusal:
            for batch, _, _ in fresh:
                batch.done(None, self.refusal_error(refusal))
            return False
        self._stage(fresh, index)
        return True

    def _take_waiting(self) -> list[WaitingBatch]:
        waiting, self._waiting = self._waiting, []
        self._waiting_bytes = self._waiting_count = 0
        self._waiting_since_ms = _NEVER
        return waiting

    def _stage(self, fresh: list[tuple[WaitingBatch, list[tuple[int, int]], Sequence[bytes]]], index: int) -> None:
        term, first_index = self._core.term, index
        for batch, repeated, bodies in fresh:  # first: whatever goes wrong from here on, they are known and answered
            runs = self._index_runs(repeated) if repeated else []
            runs.append(IndexRun(index, len(bodies), term))
            self._add_pending(runs, batch, batch.byte_count, repeated=False)
            index += len(bodies)
        slices = self._store.encode(
            term,
            [
                EntryGroup(
                    EntryType.NORMAL if batch.client_id is None else EntryType.SESSION,
                    batch.session_id,
                    bodies,
                    batch.hook,
                )
                for batch, _, bodies in fresh
            ],
        )
        invariant(slices[0].first_index == first_index, "store and core disagree on the next index")
        self._store.append(slices)
        self.metrics.proposed(index - first_index, sum([len(part.data) for part in slices]))
        self._open.append(index - 1)
        self.times.proposed(index - 1, self.clock())

    def _put_in_sequence(
        self, batch: WaitingBatch, nexts: dict[int, int], opened: dict[bytes, int]
    ) -> list[tuple[int, int]]:
        """Return where the repeated beginning of a batch stands in the log: (first index, count) each.

        ``nexts`` and ``opened``: sequences and sessions that this very proposal takes, not in the table yet.
        """
        sessions = self._store.sessions
        if batch.client_id is not None:
            known = sessions.find(batch.client_id)
            if known is not None:
                batch.session_id = known.session_id
                return [(known.opened_index, 1)]
            if batch.client_id in opened:
                raise PendingFullError("this session is being opened right now; ask again")
            batch.session_id = opened[batch.client_id] = sessions.next_session_id() + len(opened)
            return []
        if not batch.session_id:
            return []
        count = len(batch.bodies)
        expected = nexts.get(batch.session_id)
        if expected is None:
            repeated = sessions.locate(batch.session_id, batch.first_sequence, count)
        elif batch.first_sequence == expected:
            repeated = []
        else:
            raise PendingFullError("this sequence is being appended right now; ask again")
        if not repeated or sum([known for _, known in repeated]) < count:
            # Only fresh entries run ahead of the table; retries that stand in it prove nothing about the next batch.
            nexts[batch.session_id] = batch.first_sequence + count
        return repeated

    def _await_repeated(self, batch: WaitingBatch, repeated: list[tuple[int, int]]) -> None:
        """A retry of what the log holds already: answered with the original indexes once they are committed."""
        runs = self._index_runs(repeated)
        if all(run.first_index + run.count - 1 <= self._core.commit_index for run in runs):
            batch.done(BatchResult(tuple(runs)), None)
        else:
            self._add_pending(runs, batch, 0, repeated=True)

    def _add_pending(self, runs: list[IndexRun], batch: WaitingBatch, byte_count: int, *, repeated: bool) -> None:
        self._pending.add(runs, byte_count, batch.deadline_ms, batch.done, repeated=repeated)
        if self._expiry_due_ms == _NEVER:
            self._expiry_due_ms = batch.deadline_ms

    def _index_runs(self, located: Sequence[tuple[int, int]]) -> list[IndexRun]:
        """Put terms to index ranges; a range that spans terms is split."""
        runs: list[IndexRun] = []
        for first, count in located:
            spans = self._core.log.runs_between(first, first + count - 1)
            for number, span in enumerate(spans):
                end = spans[number + 1].first_index if number + 1 < len(spans) else first + count
                runs.append(IndexRun(span.first_index, end - span.first_index, span.term))
        return runs

    # ------------------------------------------------------------------ answering

    def resolve(self, commit_index: int) -> None:
        """Acknowledge everything at or below ``commit_index``."""
        pending = self._pending
        if pending.has_any(commit_index):
            self.times.committed(commit_index, self.clock())
            pending.resolve(commit_index)
            if not len(pending):
                self._expiry_due_ms = _NEVER

    def expire(self, now_ms: int) -> None:
        """Answer those that waited longer than maxWaitAckTimeMs; their entries stay in the log."""
        if now_ms >= self._expiry_due_ms:
            self._expiry_due_ms = now_ms + _EXPIRY_STEP_MS
            self._pending.expire(now_ms, self._ack_timeout)

    def leadership_lost(self) -> None:
        """Answer everything: what has no index yet definitely did not happen, of the rest nobody knows."""
        self._fail(self.not_leader, self._leadership_lost)
        self.times.leadership_lost()

    def close(self, error: DLedgerError) -> None:
        """The node stops."""
        self._closed = error
        self._fail(lambda: StoppedError("the node is stopping"), lambda: TermChangedError(error.message))

    def _fail(self, waiting_error: Callable[[], DLedgerError], pending_error: Callable[[], DLedgerError]) -> None:
        waiting = self._take_waiting()
        self._open.clear()
        self._expiry_due_ms = _NEVER
        for batch in waiting:
            batch.done(None, waiting_error())
        self._pending.fail_all(pending_error)

    # ------------------------------------------------------------------ errors

    def not_leader(self) -> NotLeaderError:
        leader = self._core.leader_id
        return NotLeaderError(
            f"{self._core.node_id} is not the leader" + (f"; {leader} is" if leader else "; no leader is known here"),
            leader_id=leader,
            leader_address=self._addresses.get(leader) if leader else None,
        )

    def _leadership_lost(self) -> DLedgerError:
        self.metrics.failed["term_changed"] += 1
        leader = self._core.leader_id
        return TermChangedError(
            "leadership was lost before the entries were committed: they may be in the log or not",
            leader_id=leader,
            leader_address=self._addresses.get(leader) if leader else None,
        )

    def _ack_timeout(self) -> DLedgerError:
        self.metrics.failed["wait_quorum_ack_timeout"] += 1
        return QuorumTimeoutError(
            f"no majority acknowledged within {self._config.max_wait_ack_time_ms} ms; the entries may yet be committed"
        )

    def refusal_error(self, refusal: ProposalRefusedError) -> DLedgerError:
        """The typed error for a refusal of the core."""
        match refusal.reason:
            case RefusalReason.TRANSFERRING:
                return LeaderTransferringError(str(refusal))
            case RefusalReason.DISK_FULL:
                return DiskFullError(str(refusal))
            case RefusalReason.NOT_LEADER:
                return self.not_leader()
            case RefusalReason.NOT_MEMBER:
                return TransferFailedError(str(refusal), code=ResponseCode.UNKNOWN_MEMBER)
            case RefusalReason.FALLEN_BEHIND:
                return TransferFailedError(str(refusal), code=ResponseCode.FALL_BEHIND_TOO_MUCH)
            case _:
                return TransferFailedError(str(refusal))
