"""Appends of one client: batching, sequences, resending, deadlines. Knows no gRPC, starts no thread, reads no clock
but the running loop's and draws only from the `random.Random` it is given, so that the simulator runs it unchanged.

**Where an entry is.** overflow (the window is full) → open batch → unsent (full batches) → held (sent once, unresolved)
→ resolved. Sequences are given out when a batch is first sent, so that *held* and only held entries have any.

**Batching without a timer.** An append joins the open batch. That batch leaves in the same turn of the loop if fewer
than ``max_inflight_batches`` are on the wire, else when an answer makes room, or behind other full ones. Alone, an
append waits for nothing; under load the batches grow by themselves.

**Exactly once.** A session's entries are numbered, and the log answers a repeated number with the original index. So
after anything unclear (the stream broke, the leader lost its term, a quorum timed out) all held batches are sent again,
in order, with the same numbers, to whoever leads now. A number once sent with an unknown outcome belongs to its bytes
for ever:

* A batch whose every send was *refused* (not leader, queue full, gap …) stands nowhere. When the wire is quiet the
  refused tail of the held batches gives its numbers back and is unsent again: it may be dropped, refilled, renumbered.
* A batch with an unknown outcome is *tainted*. When its callers' deadlines pass they get UNKNOWN, and the batch stays,
  now an orphan: batches behind it have later numbers, which the log accepts only after it, so it is sent again with
  them, silently.
* Once *all* held batches are orphans, nothing depends on the session any more: instead of sending them again it is
  abandoned. They are forgotten, unsent entries go out under a new session: the window never fills with the dead.
* The log has evicted the session (``UNKNOWN_SESSION``): tainted batches fail UNKNOWN, all others move to a new one.

So an error's outcome is DEFINITE exactly if the entry has no number when it fails, and then it is not in the log and
never will be. Cancelling ``await append()`` is a caller going away: what was not sent is not sent, what was sent may
still commit. Without session (``session=False``) nothing unclear is ever sent again: it fails UNKNOWN at once; refused
entries are sent again, and may be overtaken by later ones.

**A leader that hangs** keeps its connections. While answers are overdue the other nodes are asked who leads, and the
stream moves as soon as one leads a later term.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from dledger.client.batch import Batch, ErrorMaker, Part
from dledger.client.discovery import Directory, LeaderFinder
from dledger.client.options import ACTIONS, Action, PipelineOptions
from dledger.client.queue import EntryQueue
from dledger.client.transport import AppendAnswer, AppendBatch, AppendStream, ClientTransport, Header
from dledger.errors import (
    AccessDeniedError,
    ConfigError,
    DLedgerError,
    Outcome,
    QuorumTimeoutError,
    ResponseCode,
    SessionExpiredError,
    StoppedError,
    UnavailableError,
    UnknownGroupError,
)
from dledger.types import AppendResult, BatchResult

__all__ = ["AppendPipeline"]

RETRY_MIN_S = 0.005
RETRY_MAX_S = 0.1
DRAIN_LIMIT_S = 1.0
DEADLINE_GRAIN_S = 0.01
SESSION_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class _Ended:
    """Why a stream was given up, and where to go next (None: ask around)."""

    error: DLedgerError
    next_address: str | None = None


class _Link:
    """One append stream: what is on its wire, and how it ended."""

    def __init__(self, pipeline: AppendPipeline, address: str, term: int, loop: asyncio.AbstractEventLoop) -> None:
        self._pipeline = pipeline
        self.address = address
        self.term = term
        self.on_wire: dict[int, Batch] = {}
        self.wire_bytes = 0
        self.ended: _Ended | None = None
        # Done when the stream ended or its answers are overdue.
        self.event: asyncio.Future[None] = loop.create_future()
        self.sink: AppendStream | None = None

    def on_answer(self, answer: AppendAnswer) -> None:
        if self.ended is None:
            self._pipeline._answered(self, answer)

    def on_broken(self, reason: str) -> None:
        self._pipeline._finish(self, _Ended(UnavailableError(f"{self.address}: {reason}")))

    def wake(self) -> None:
        if not self.event.done():
            self.event.set_result(None)


class AppendPipeline:
    """All appends of one client to one group. Made on a running loop; `close` ends it.

    Entries go in through `queue` (``submit`` and its kin return futures at once; awaiting one is the append).
    """

    def __init__(
        self,
        transport: ClientTransport,
        directory: Directory,
        options: PipelineOptions,
        rng: random.Random,
    ) -> None:
        options.validate()
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        self._directory = directory
        self._finder = LeaderFinder(transport, directory, rng)
        self._options = options
        self._rng = rng
        self.queue = EntryQueue(self._loop, options, self._schedule_flush, self._arm_deadline)
        # Invariant: with a session, held batches have consecutive sequences up to next_sequence.
        self._held: deque[Batch] = deque()
        self._session_id = 0
        self._client_id = b""
        self._next_sequence = 0
        self.session_count = 0
        """Sessions opened so far."""
        self._link: _Link | None = None
        self._next_request_id = 1
        self._flush_scheduled = False
        self._quiet = False  # draining or pausing: nothing leaves
        self._drain_goal: _Ended | None = None
        self._session_lost: DLedgerError | None = None
        self._pause_timer: asyncio.TimerHandle | None = None
        self._watch_timer: asyncio.TimerHandle | None = None
        self._deadline_timer: asyncio.TimerHandle | None = None
        self._progress_at = 0.0
        self._failures = 0  # since the last success
        self._last_error: DLedgerError | None = None
        self._disk_full: DLedgerError | None = None  # what a leader said last, and nobody has led since
        self._limits_known = False
        self._locating = False
        self._work = asyncio.Event()
        self._closed = False
        self._task: asyncio.Task[None] | None = None

    async def flush(self) -> None:
        """Return when every append queued before this call has ended, well or badly. Raises nothing for these."""
        waiting: dict[asyncio.Future[AppendResult] | asyncio.Future[BatchResult], None] = {}
        for batch in [*self._held, *self.queue.batches()]:
            for waiter in batch.waiters:
                if not waiter.done():
                    waiting[waiter.many.future if isinstance(waiter, Part) else waiter] = None
        if waiting:
            await asyncio.wait(list(waiting))

    async def close(self) -> None:
        """Fail what is pending (DEFINITE where it was never sent or surely refused, else UNKNOWN); end every task."""
        if not self._closed:
            self._shut(lambda outcome: StoppedError("the client was closed", outcome=outcome))
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await self._finder.close()

    def _shut(self, make_error: ErrorMaker) -> None:
        self._closed = self.queue.closed = True
        if self._link is not None:
            self._finish(self._link, _Ended(make_error(Outcome.UNKNOWN)))
        self._fail_everything(make_error)
        for timer in (self._deadline_timer, self._pause_timer, self._watch_timer):
            if timer is not None:
                timer.cancel()

    # ---- the wire

    def _schedule_flush(self) -> None:
        # Next turn, not now: all callers that run in this turn join the same batch.
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Send what the wire has room for."""
        self._flush_scheduled = False
        link = self._link
        if self._closed or self._quiet:
            return
        if link is None:
            self._ensure_task()
            return
        queue = self.queue
        while (batch := queue.next_full()) is not None and self._has_room(link, batch):
            self._send_new(link, queue.take())
        batch = queue.next_open()
        if batch is not None and len(link.on_wire) < self._options.max_inflight_batches and self._has_room(link, batch):
            self._send_new(link, queue.take())

    def _has_room(self, link: _Link, batch: Batch) -> bool:
        return not link.on_wire or (
            len(link.on_wire) < self._options.max_wire_batches
            and link.wire_bytes + batch.size_bytes <= self._options.max_wire_bytes
        )

    def _send_new(self, link: _Link, batch: Batch) -> None:
        if not batch.bodies:
            return
        batch.sequence = self._next_sequence
        self._next_sequence += len(batch.bodies)
        batch.expose(1)
        self._held.append(batch)
        self._transmit(link, batch)

    def _transmit(self, link: _Link, batch: Batch) -> None:
        if link.sink is None:
            return
        request_id = self._next_request_id
        self._next_request_id += 1
        batch.request_id = request_id
        if not link.on_wire:
            self._progress_at = self._loop.time()
        link.on_wire[request_id] = batch
        link.wire_bytes += batch.size_bytes
        link.sink.send(AppendBatch(request_id, self._session_id, batch.sequence, batch.bodies))
        if self._watch_timer is None:
            self._watch_timer = self._loop.call_later(self._options.stall_s, self._watch)

    def _transmit_held(self, link: _Link) -> None:
        for batch in self._held:
            if not batch.finished:
                self._transmit(link, batch)

    def _watch(self) -> None:
        """See whether answers are overdue; if so, have the other nodes asked."""
        self._watch_timer = None
        link = self._link
        if link is None or not link.on_wire:
            return
        left_s = self._progress_at + self._options.stall_s - self._loop.time()
        if left_s <= 0:
            link.wake()
        self._watch_timer = self._loop.call_later(max(left_s, self._options.stall_s / 2), self._watch)

    # ---- answers

    def _answered(self, link: _Link, answer: AppendAnswer) -> None:
        batch = link.on_wire.pop(answer.request_id, None)
        if batch is None:
            return
        link.wire_bytes -= batch.size_bytes
        batch.request_id = -1
        self._progress_at = self._loop.time()
        header = answer.header
        link.term = max(link.term, header.term)
        if not header.ok:
            self._refused(link, batch, header)
        elif sum([run.count for run in answer.runs]) == len(batch.bodies):
            self._failures = 0
            self._last_error = self._disk_full = None
            batch.succeed(answer.runs)
            self._settle(batch)
        else:
            link.on_wire[answer.request_id] = batch  # an unknown outcome, as all that is on this wire
            self._finish(link, _Ended(UnavailableError(f"{link.address}: an answer does not fit its batch")))
        if link.ended is None:
            if self._quiet:
                self._check_drained(link)
            else:
                self._schedule_flush()

    def _settle(self, batch: Batch) -> None:
        """A batch has left the pipeline for good; make room in the window."""
        batch.finished = True
        self.queue.settle(batch)
        batch.release()
        held = self._held
        while held and held[0].finished:
            held.popleft()

    def _refused(self, link: _Link, batch: Batch, header: Header) -> None:
        error = header.error()
        if header.code != ResponseCode.SEQUENCE_GAP or self._last_error is None:
            self._last_error = error  # a gap only follows from the refusal before it
        if header.code == ResponseCode.DISK_FULL:
            self._disk_full = error
        action, sure = ACTIONS.get(header.code, (Action.MOVE, False))
        batch.tainted |= not sure
        if action is Action.MOVE:
            self._refused_here(link, batch, header, error)
        elif action is Action.RETRY:
            self._drain(link)
        elif action is Action.REJECT and not batch.tainted:
            batch.fail(_remake(error), Outcome.DEFINITE)
            self._drain(link)
        else:
            if action is not Action.EXPIRED:
                batch.fail(_remake(error), Outcome.UNKNOWN)
            self._session_lost = error
            self._drain(link, _Ended(error, link.address))

    def _refused_here(self, link: _Link, batch: Batch, header: Header, error: DLedgerError) -> None:
        """This node does not lead, or no longer; or it cannot say what became of the batch."""
        self._directory.forget_leader(link.address)
        leader = self._directory.learn(link.address, header)
        ended = _Ended(error, leader if leader != link.address else None)
        if self._options.session:
            self._finish(link, ended)  # what is still on the wire is sent again: no need to wait for it
            return
        if batch.tainted:
            self._fail_batch(batch, _remake(error))
        self._drain(link, ended)

    def _drain(self, link: _Link, goal: _Ended | None = None) -> None:
        """Send nothing more until every answer of this stream is there; then go on, or leave it for ``goal``."""
        if goal is not None:
            self._drain_goal = goal
        if not self._quiet:
            self._quiet = True
            self._pause_timer = self._loop.call_later(DRAIN_LIMIT_S, self._drain_overdue, link)

    def _drain_overdue(self, link: _Link) -> None:
        error = self._last_error or QuorumTimeoutError(f"{link.address}: no answer")
        self._finish(link, self._drain_goal or _Ended(error))

    def _check_drained(self, link: _Link) -> None:
        if link.on_wire:
            return
        if self._drain_goal is not None:
            self._finish(link, self._drain_goal)
            return
        self._cancel_pause()
        self._failures += 1
        self._recall_refused()
        self._pause_timer = self._loop.call_later(self._backoff_s(), self._resume, link)

    def _resume(self, link: _Link) -> None:
        """The pause after a refusal is over: send again, in order, on the same stream."""
        self._pause_timer = None
        if self._link is not link:
            return
        self._quiet = False
        if self._forget_orphans():
            self._finish(link, _Ended(SessionExpiredError("session abandoned"), link.address))
            return
        self._transmit_held(link)
        self._flush()

    def _finish(self, link: _Link, ended: _Ended) -> None:
        """The stream is over. What it had on the wire has an unknown outcome."""
        if link.ended is not None:
            return
        link.ended = ended
        self._link = None
        if link.sink is not None:
            link.sink.close()
        self._cancel_pause()
        self._quiet = False
        self._drain_goal = None
        self._last_error = ended.error
        for batch in link.on_wire.values():
            batch.tainted = True
            batch.request_id = -1
            if not self._options.session:
                self._fail_batch(batch, _remake(ended.error))
        link.on_wire.clear()
        if self._session_lost is not None:
            lost, self._session_lost = self._session_lost, None
            self._leave_session(_remake(lost))
        self._recall_refused()
        link.wake()

    def _cancel_pause(self) -> None:
        if self._pause_timer is not None:
            self._pause_timer.cancel()
            self._pause_timer = None

    def _backoff_s(self) -> float:
        """Return the pause (seconds) after the n-th failure in a row, with jitter."""
        longest: float = min(RETRY_MAX_S, RETRY_MIN_S * 2.0 ** min(self._failures, 10))
        return longest * self._rng.uniform(0.5, 1.0)

    # ---- numbers, given back and given up

    def _recall_refused(self) -> None:
        """Give back the numbers of the refused tail. The wire is empty, so that untainted means refused every time."""
        held = self._held
        recalled: list[Batch] = []
        while held and not (held[-1].tainted or held[-1].finished):
            recalled.append(held.pop())
        if recalled:
            self._next_sequence = recalled[-1].sequence
            self._unnumber(recalled)

    def _unnumber(self, newest_first: Sequence[Batch]) -> None:
        for batch in newest_first:
            batch.sequence = -1
            batch.expose(-1)
        self.queue.put_back(newest_first)

    def _forget_orphans(self) -> bool:
        """Abandon the session if nobody waits for anything that has a number; return whether it was."""
        if not self._held or not all(batch.finished or batch.orphaned for batch in self._held):
            return False
        self._leave_session(lambda outcome: SessionExpiredError("session abandoned", outcome=outcome))
        return True

    def _leave_session(self, make_error: ErrorMaker) -> None:
        """End the session: tainted batches fail UNKNOWN, the others become unsent entries of the next one."""
        held = list(self._held)
        self._held.clear()
        self._session_id = 0
        self._client_id = b""
        self._unnumber([batch for batch in reversed(held) if not batch.tainted and not batch.finished])
        for batch in held:
            if batch.tainted:
                self._fail_batch(batch, make_error)

    def _fail_batch(self, batch: Batch, make_error: ErrorMaker) -> None:
        if not batch.finished:
            batch.fail(make_error, Outcome.UNKNOWN)
            self._settle(batch)

    def _fail_everything(self, make_error: ErrorMaker) -> None:
        for batch in list(self._held):
            self._fail_batch(batch, make_error)
        self._held.clear()
        self._session_id = 0
        self._client_id = b""
        self.queue.fail_all(make_error)

    # ---- deadlines: one timer for all, at the earliest or before it

    def _arm_deadline(self, at: float) -> None:
        if self._deadline_timer is not None:
            self._deadline_timer.cancel()
        self.queue.deadline_at = at
        self._deadline_timer = self._loop.call_at(at, self._expire)

    def _expire(self) -> None:
        """Fail what is over its deadline, and set the timer to the next one, a grain ahead at least."""
        self._deadline_timer = None
        now = max(self._loop.time(), self.queue.deadline_at)  # a loop may call a hair early
        self.queue.deadline_at = float("inf")
        earliest = float("inf")
        for batch in self._held:
            earliest = min(earliest, batch.fail(self._deadline_error, Outcome.UNKNOWN, until=now))
        earliest = min(earliest, self.queue.expire(now, self._deadline_error))
        if self._link is None:
            self._forget_orphans()
        if earliest < self.queue.deadline_at:
            self._arm_deadline(max(earliest, now + DEADLINE_GRAIN_S))

    def _deadline_error(self, outcome: Outcome) -> DLedgerError:
        """Return the error of an entry that ran out of time: of the kind of the last obstacle."""
        when = "not acknowledged in time"
        if self._locating and self._disk_full is not None:
            return _remake(self._disk_full, f"{when}, and no other node leads: ")(outcome)
        if self._locating or (self._link is None and self._last_error is None):
            return _remake(self._finder.failure(when))(outcome)
        if self._last_error is not None:
            return _remake(self._last_error, f"{when}: ")(outcome)
        return QuorumTimeoutError(f"{when} by {self._link.address if self._link else 'a leader'}", outcome=outcome)

    # ---- the connection: one long-lived task

    def _ensure_task(self) -> None:
        self._work.set()
        if self._task is None:
            self._task = self._loop.create_task(self._run(), name="dledger-client-append")
            self._task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        """A defect must not leave callers waiting: fail them with it, and say so."""
        error = None if task.cancelled() else task.exception()
        if error is not None and not self._closed:
            text = f"the client's append task failed: {error!r}"
            self._shut(lambda outcome: DLedgerError(text, outcome=outcome))
            self._loop.call_exception_handler({"message": text, "exception": error, "task": task})

    def _has_work(self) -> bool:
        return bool(self._held) or bool(self.queue)

    async def _run(self) -> None:
        """Connect while there is something to send; after each failure a pause that grows, except for the first."""
        hint: str | None = None
        while True:
            if not self._has_work():
                hint = None
                self._work.clear()
                await self._work.wait()
            try:
                ended = await self._connect_and_serve(hint)
                hint = ended.next_address
            except (UnknownGroupError, AccessDeniedError) as error:
                self._fail_everything(_remake(error))
                hint = None
            except DLedgerError:
                hint = None
            self._failures += 1
            if self._failures > 1 and self._has_work():
                await asyncio.sleep(self._backoff_s())

    async def _connect_and_serve(self, hint: str | None) -> _Ended:
        address, term = await self._locate(hint)
        self._forget_orphans()
        if self._options.session and not self._session_id:
            moved = await self._open_session(address)
            if moved is not None:
                return moved
        link = self._begin_link(address, term)
        while True:
            await link.event
            if link.ended is not None:
                return link.ended
            link.event = self._loop.create_future()
            newer = await self._finder.newer(link.term, address, self._options.stall_s / 2)
            if newer is not None:
                self._finish(link, _Ended(QuorumTimeoutError(f"{address} hangs; {newer} leads"), newer))

    async def _locate(self, hint: str | None) -> tuple[str, int]:
        """Return address and term of the node to send to: the one that was named (once), else the one that is found."""
        known = hint if hint is not None else self._directory.leader_address
        if known is not None and self._limits_known and self._failures == (0 if hint is None else 1):
            return known, self._directory.leader_term
        self._locating = True
        try:
            address, metadata = await self._finder.find(self._has_work)
        finally:
            self._locating = False
        self._limits_known = True
        self.queue.narrow(metadata.max_entry_bytes, metadata.max_batch_bytes, metadata.max_batch_entries)
        return address, metadata.term

    async def _open_session(self, address: str) -> _Ended | None:
        """Open a session under this client's own random id (again after a failure: harmless). None: it is open."""
        if not self._client_id:
            self._client_id = self._rng.randbytes(16)
        try:
            answer = await self._transport.open_session(address, self._client_id, SESSION_TIMEOUT_S)
        except DLedgerError as error:
            self._last_error = error
            self._directory.forget_leader(address)
            raise
        leader = self._directory.learn(address, answer.header)
        if not answer.header.ok:
            refusal = self._last_error = answer.header.error()
            if answer.header.code == ResponseCode.DISK_FULL:
                self._disk_full = refusal
            moved = answer.header.code == ResponseCode.NOT_LEADER and leader != address
            return _Ended(refusal, leader if moved else None)
        self._session_id = answer.session_id
        self._next_sequence = answer.next_sequence
        self.session_count += 1
        return None

    def _begin_link(self, address: str, term: int) -> _Link:
        self._disk_full = None
        link = self._link = _Link(self, address, term, self._loop)
        link.sink = self._transport.open_stream(address, link)
        self._transmit_held(link)
        self._flush()
        return link


def _remake(error: DLedgerError, prefix: str = "") -> ErrorMaker:
    """Return a maker of errors of the same kind, for one waiter each."""
    # A ConfigError never comes from a node, and is made differently.
    kind = DLedgerError if isinstance(error, ConfigError) else type(error)

    def make(outcome: Outcome) -> DLedgerError:
        made = kind(
            prefix + error.message,
            code=error.code,
            outcome=outcome,
            leader_id=error.leader_id,
            leader_address=error.leader_address,
        )
        made.retriable = error.retriable
        return made

    return make
