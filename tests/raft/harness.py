"""A group of real cores on a perfect little world: virtual time, a disk and links that a test controls.

Not the simulator: this one is for scripted conversations. Every event can be written down (`transcript`), so that a golden
transcript shows a whole exchange as a reader of the paper would expect it.

Each entry carries a token that is unique in the world, so that a test sees *which* entry stands somewhere, not only its
term. A disk applies what was staged in order; a crash keeps any prefix of it, never a middle.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

from dledger.raft.core import CoreOptions, RaftCore, RandomSource
from dledger.raft.messages import (
    NO_INDEX,
    UNKNOWN_FLOOR,
    AppendEntries,
    AppendEntriesResponse,
    HardState,
    Heartbeat,
    HeartbeatResponse,
    LogId,
    Message,
    ReadIndexRequest,
    ReadIndexResponse,
    RequestVote,
    RequestVoteResponse,
    Role,
    TermRun,
    TimeoutNow,
)
from dledger.raft.quorum import Configuration
from dledger.raft.ready import AppendNoop, AppendReceived, Ready, RoleChange, SendEntries, Truncate

M = TypeVar("M", bound=Message)

OPTIONS = CoreOptions(election_timeout_ms=600, heartbeat_interval_ms=100)

RECORD_BYTES = 100
"""What one entry weighs, for limits in bytes."""


class Record(NamedTuple):
    """An entry as the tests see it. Two entries are the same only if their tokens are."""

    term: int
    token: int


class Envelope(NamedTuple):
    """A message on the wire."""

    sender: str
    peer: str
    message: Message


@dataclass(frozen=True)
class Appended:
    """Staged: these records follow what is there."""

    records: tuple[Record, ...]


Staged = HardState | Truncate | Appended


class Dice:
    """A random source that always answers the lowest value plus a fixed share, so that timers are known."""

    def __init__(self, share: float = 0.0) -> None:
        self.share = share

    def randint(self, a: int, b: int, /) -> int:
        return a + int((b - a) * self.share)


def runs_of(terms: Sequence[int]) -> tuple[TermRun, ...]:
    """The runs of terms of a log that starts at index 0."""
    runs: list[TermRun] = []
    for index, term in enumerate(terms):
        if not runs or runs[-1].term != term:
            runs.append(TermRun(index, term))
    return tuple(runs)


def records_of(terms: Sequence[int]) -> list[Record]:
    """Entries that a test puts into logs by hand: the same term at the same index is the same entry."""
    return [Record(term, -1 - (term * 100_000 + index)) for index, term in enumerate(terms)]


class Node:
    """A core with its disk: what is staged becomes durable when the test says so."""

    def __init__(self, world: World, node_id: str, dice: RandomSource, options: CoreOptions) -> None:
        self.world, self.node_id, self.dice, self.options = world, node_id, dice, options
        self.disk_hard_state = HardState()
        self.disk_log: list[Record] = []
        self.log: list[Record] = []  # durable or not
        self.staged: list[Staged] = []
        self.writing: list[Staged] | None = None
        self.held: list[tuple[int, str, Message]] = []  # leaves when this many operations are durable
        self.staged_count = 0
        self.durable_count = 0
        self.durable_commit = NO_INDEX  # what a checkpoint may remember: committed, and on this disk as committed
        self.fetches: list[SendEntries] = []
        self.auto_persist = True
        self.auto_fetch = True
        self.reads: dict[int, int | None] = {}
        self.role_changes: list[RoleChange] = []
        self.leader_ready = False
        self.alive = True
        self.core = self._make(NO_INDEX)

    def _make(self, commit_index: int) -> RaftCore:
        return RaftCore(
            self.node_id,
            self.world.configuration,
            self.options,
            hard_state=self.disk_hard_state,
            runs=runs_of(self.terms_on_disk),
            first_index=0,
            last_index=len(self.disk_log) - 1,
            commit_index=commit_index,
            random=self.dice,
            now_ms=self.world.now,
        )

    @property
    def terms(self) -> list[int]:
        return [record.term for record in self.log]

    @property
    def terms_on_disk(self) -> list[int]:
        return [record.term for record in self.disk_log]

    # ------------------------------------------------------------------ life

    def crash(self, keep: int = 0) -> None:
        """Die; the first ``keep`` operations that were under way reach the disk, the rest is lost."""
        for operation in [*(self.writing or []), *self.staged][:keep]:
            self._apply(operation)
        self.alive = False
        self.staged.clear()
        self.writing = None
        self.held.clear()
        self.fetches.clear()
        self.durable_count = self.staged_count

    def restart(self, commit_index: int = NO_INDEX) -> None:
        """Start from the disk; ``commit_index`` is what a checkpoint remembers."""
        self.log = list(self.disk_log)
        self.core = self._make(commit_index)
        self.alive = True
        self.leader_ready = False
        self.reads.clear()

    def wipe(self) -> None:
        """Delete the folder of a dead node: a store that opens an empty folder knows no floor."""
        self.disk_log = []
        self.disk_hard_state = HardState(vote_floor=UNKNOWN_FLOOR)
        self.durable_commit = NO_INDEX

    # ------------------------------------------------------------------ inputs

    def step(self, message: Message) -> None:
        self.core.step(message, self.world.now)
        self.pump()

    def tick(self) -> None:
        self.core.tick(self.world.now)
        self.pump()

    def propose(self, count: int = 1) -> int:
        first = self.core.propose(count, self.world.now)
        self._extend(tuple(self.world.new_record(self.core.term) for _ in range(count)))
        self.pump()
        return first

    def read(self, request_id: int) -> None:
        self.core.read(request_id, self.world.now)
        self.pump()

    def transfer(self, target: str | None) -> str:
        chosen = self.core.transfer(target, self.world.now)
        self.pump()
        return chosen

    def peer_unreachable(self, peer: str) -> None:
        self.core.peer_unreachable(peer, self.world.now)
        self.pump()

    def peer_connected(self, peer: str) -> None:
        self.core.peer_connected(peer, self.world.now)
        self.pump()

    # ------------------------------------------------------------------ effects

    def pump(self) -> None:
        """Take the core's effects until there are none."""
        for _ in range(200):
            ready = self.core.ready()
            self._perform(ready)
            if self.auto_persist and (self.staged or self.held):
                self.persist()
                continue
            if not ready.replicate or not self.auto_fetch:
                break
        else:
            raise AssertionError(f"{self.node_id} never comes to rest")
        self.durable_commit = max(self.durable_commit, min(self.core.commit_index, self.core.stable_index))
        self.world.pumped(self)

    def _perform(self, ready: Ready) -> None:
        for event in ready.events:
            facts = " ".join(f"{key}={value}" for key, value in event.facts)
            self.world.say(f"{self.node_id} * {event.name} {facts}".rstrip())
        if ready.hard_state is not None:
            self._stage(ready.hard_state)
        for operation in ready.log_operations:
            self._take(operation)
        for peer, message in ready.messages:
            self.world.send(self.node_id, peer, message)
        for request in ready.replicate:
            self.fetches.append(request)
            if self.auto_fetch:
                self.answer_fetch()
        self.held.extend((self.staged_count, peer, message) for peer, message in ready.messages_after_persist)
        for read in ready.reads:
            self.reads[read.request_id] = read.read_index
            self.world.read_finished(self, read.request_id, read.read_index)
        if ready.role_change is not None:
            self.role_changes.append(ready.role_change)
        self.leader_ready = self.leader_ready or ready.leader_ready

    def _take(self, operation: Truncate | AppendReceived | AppendNoop) -> None:
        if isinstance(operation, Truncate):
            del self.log[operation.from_index :]
            self._stage(operation)
        elif isinstance(operation, AppendNoop):
            assert operation.index == len(self.log)
            self._extend((self.world.new_record(operation.term),))
        else:
            assert operation.first_index == len(self.log)
            message = operation.message
            assert isinstance(message.payload, tuple)
            self._extend(message.payload[operation.first_index - message.prev_log_index - 1 :])
            assert len(self.log) - 1 == message.last_index

    def _extend(self, records: tuple[Record, ...]) -> None:
        self.log.extend(records)
        self._stage(Appended(records))

    def _stage(self, operation: Staged) -> None:
        self.staged.append(operation)
        self.staged_count += 1

    def answer_fetch(self) -> None:
        """The store hands out the entries of the oldest request, as many as its limit in bytes allows."""
        request = self.fetches.pop(0)
        most = max(request.max_bytes // RECORD_BYTES, 1)
        last = min(request.last_index, request.first_index - 1 + most)
        records = tuple(self.log[request.first_index : last + 1])
        message = self.core.entries_fetched(request, last, len(records) * RECORD_BYTES, self.world.now)
        if message is not None:
            self.world.send(self.node_id, request.peer, replace(message, payload=records))

    # ------------------------------------------------------------------ the disk

    def start_write(self) -> None:
        """The disk takes everything staged as one group; it is not durable yet."""
        assert self.writing is None
        self.writing, self.staged = self.staged, []

    def finish_write(self) -> None:
        """The group is durable: the messages that waited for it leave, then the core learns of it."""
        assert self.writing is not None
        group, self.writing = self.writing, None
        for operation in group:
            self._apply(operation)
        self.durable_count += len(group)
        due = [entry for entry in self.held if entry[0] <= self.durable_count]
        self.held = [entry for entry in self.held if entry[0] > self.durable_count]
        for _, peer, message in due:
            self.world.send(self.node_id, peer, message)
        states = [operation for operation in group if isinstance(operation, HardState)]
        if states:
            self.core.hard_state_persisted(states[-1], self.world.now)
        if any(isinstance(operation, Appended) for operation in group) and self.disk_log:
            self.core.persisted(len(self.disk_log) - 1, self.disk_log[-1].term, self.world.now)

    def persist(self) -> None:
        """Everything staged is durable now."""
        if self.writing is not None:
            self.finish_write()
        self.start_write()
        self.finish_write()

    def settle(self) -> None:
        """Persist and let what follows from it happen."""
        self.persist()
        self.pump()

    def _apply(self, operation: Staged) -> None:
        if isinstance(operation, HardState):
            self.disk_hard_state = operation
        elif isinstance(operation, Truncate):
            del self.disk_log[operation.from_index :]
        else:
            self.disk_log.extend(operation.records)


class World:
    """Nodes, links and the clock. Messages wait in `wire` until delivered."""

    def __init__(
        self,
        size: int = 3,
        options: CoreOptions = OPTIONS,
        shares: tuple[float, ...] | None = None,
        *,
        logs: Mapping[str, Sequence[int]] | None = None,
        hard_states: Mapping[str, HardState] | None = None,
        dice: Callable[[int], RandomSource] | None = None,
        learners: Sequence[str] = (),
    ) -> None:
        self.now = 0
        self.wire: deque[Envelope] = deque()
        self.cut: set[tuple[str, str]] = set()
        self.lines: list[str] = []
        self.watchers: list[Watcher] = []
        self._tokens = 0
        ids = [f"n{number}" for number in range(size)]
        self.configuration = Configuration(frozenset(ids), learners=frozenset(learners))
        given = shares or tuple(number / size for number in range(size))
        everybody = [*ids, *learners]
        self.nodes = {
            node: Node(self, node, dice(at) if dice else Dice(given[at % size]), options)
            for at, node in enumerate(everybody)
        }
        for node_id, terms in (logs or {}).items():
            self.nodes[node_id].disk_log = records_of(terms)
            highest = max(terms, default=0)
            self.nodes[node_id].disk_hard_state = HardState(highest)
        for node_id, state in (hard_states or {}).items():
            self.nodes[node_id].disk_hard_state = state
        for node in self.nodes.values():
            node.restart()

    def __getitem__(self, node_id: str) -> Node:
        return self.nodes[node_id]

    def new_record(self, term: int) -> Record:
        self._tokens += 1
        return Record(term, self._tokens)

    # ------------------------------------------------------------------ what is told

    def say(self, line: str) -> None:
        self.lines.append(f"{self.now:>6} {line}")

    def note(self, line: str) -> None:
        """A heading in the transcript."""
        self.lines.append(f"\n# {line}" if self.lines else f"# {line}")

    def transcript(self) -> str:
        return "\n".join(self.lines) + "\n"

    def pumped(self, node: Node) -> None:
        for watcher in self.watchers:
            watcher.pumped(node)

    def read_finished(self, node: Node, request_id: int, read_index: int | None) -> None:
        for watcher in self.watchers:
            watcher.read_finished(node, request_id, read_index)

    # ------------------------------------------------------------------ links

    def send(self, sender: str, peer: str, message: Message) -> None:
        for watcher in self.watchers:
            watcher.sending(self.nodes[sender], peer, message)
        self.wire.append(Envelope(sender, peer, message))

    def isolate(self, node_id: str) -> None:
        for other in self.nodes:
            if other != node_id:
                self.cut_link(node_id, other)

    def cut_link(self, one: str, other: str) -> None:
        self.cut |= {(one, other), (other, one)}

    def heal(self) -> None:
        self.cut.clear()

    def can_pass(self, envelope: Envelope) -> bool:
        alive = self.nodes[envelope.sender].alive and self.nodes[envelope.peer].alive
        return alive and (envelope.sender, envelope.peer) not in self.cut

    def deliver_one(self, envelope: Envelope) -> None:
        """Hand over one message, or lose it where the link is cut or an end is dead."""
        if not self.can_pass(envelope):
            self.say(f"{envelope.sender}→{envelope.peer} (lost) {describe(envelope.message)}")
            return
        self.say(f"{envelope.sender}→{envelope.peer} {describe(envelope.message)}")
        self.nodes[envelope.peer].step(envelope.message)

    def deliver(self, limit: int = 10_000) -> None:
        """Deliver everything on the wire, and what comes of it."""
        for _ in range(limit):
            if not self.wire:
                return
            self.deliver_one(self.wire.popleft())
        raise AssertionError("the conversation does not end")

    def take(
        self, kind: type[Message] = Message, *, sender: str | None = None, peer: str | None = None
    ) -> list[Envelope]:
        """Remove from the wire, and return, the messages that fit."""
        fits = [
            envelope
            for envelope in self.wire
            if isinstance(envelope.message, kind)
            and sender in {None, envelope.sender}
            and peer in {None, envelope.peer}
        ]
        self.wire = deque(envelope for envelope in self.wire if envelope not in fits)
        return fits

    def step(self, node_id: str, message: Message) -> list[Message]:
        """Hand one message to one node; returns what it sends, without delivering it."""
        return self.sent_by(node_id, lambda: self.nodes[node_id].step(message))

    def sent_by(self, node_id: str, action: Callable[[], object]) -> list[Message]:
        """Do something; returns what the node sends meanwhile, without delivering it."""
        self.wire.clear()
        action()
        sent = [envelope.message for envelope in self.wire if envelope.sender == node_id]
        self.wire.clear()
        return sent

    # ------------------------------------------------------------------ time

    def advance(self, ms: int) -> None:
        """Let time pass; timers fire when due, messages take none."""
        end = self.now + ms
        while True:
            alive = [node for node in self.nodes.values() if node.alive]
            due = min((node.core.deadline_ms for node in alive), default=end + 1)
            if due > end:
                break
            self.now = max(due, self.now)
            for node in alive:
                if node.core.deadline_ms <= self.now:
                    node.tick()
                    self.deliver()
        self.now = max(end, self.now)

    def tick_at_deadline(self, node_id: str) -> None:
        """Let the clock reach one node's next timer, and fire only that."""
        node = self.nodes[node_id]
        self.now = max(self.now, node.core.deadline_ms)
        node.tick()

    def elect(self, node_id: str) -> Node:
        """Make a node leader the ordinary way: its timer fires first."""
        for _ in range(5):  # a first timer may fire while an old leader is still heard of
            self.tick_at_deadline(node_id)
            self.deliver()
            if self.nodes[node_id].core.is_leader:
                return self.nodes[node_id]
        raise AssertionError(self.transcript())

    @property
    def leader(self) -> Node | None:
        leaders = [node for node in self.nodes.values() if node.alive and node.core.is_leader]
        return max(leaders, key=lambda node: node.core.term, default=None)


class Watcher:
    """Looks on; tests derive checkers from it."""

    def pumped(self, node: Node) -> None:
        """A node has acted on an input."""

    def sending(self, node: Node, peer: str, message: Message) -> None:
        """A message leaves."""

    def read_finished(self, node: Node, request_id: int, read_index: int | None) -> None:
        """A read was answered."""


# ---------------------------------------------------------------------- messages of peers that a test plays


def append(sender: str, term: int, prev: tuple[int, int], terms: Sequence[int] = (), commit: int = -1) -> AppendEntries:
    """An AppendEntries; ``prev`` is (index, term), ``terms`` those of the entries that follow it."""
    previous = prev[0]
    runs = tuple(TermRun(run.first_index + previous + 1, run.term) for run in runs_of(terms))
    whole = records_of([0] * (previous + 1) + list(terms))
    return AppendEntries(
        sender,
        term,
        prev_log_index=previous,
        prev_log_term=prev[1],
        last_index=previous + len(terms),
        terms=runs,
        commit_index=commit,
        payload=tuple(whole[previous + 1 :]),
    )


def accepted(sender: str, term: int, match_index: int, last_index: int | None = None) -> AppendEntriesResponse:
    """A follower's acknowledgement."""
    return AppendEntriesResponse(sender, term, True, match_index, match_index if last_index is None else last_index)


def heartbeat(sender: str, term: int, commit: int = -1, round_: int = 0, sent: int = -1) -> Heartbeat:
    return Heartbeat(sender, term, commit_index=commit, round=round_, sent_index=sent)


def beat_answer(
    sender: str, term: int, *, round_: int = 0, sent: int = -1, match: int = -1, last: int | None = None
) -> HeartbeatResponse:
    return HeartbeatResponse(sender, term, round_, sent, match, match if last is None else last)


def vote_request(
    sender: str, term: int, last: tuple[int, int] = (-1, -1), *, pre_vote: bool = False, transfer: bool = False
) -> RequestVote:
    """``last`` is (index, term) of the candidate's last entry."""
    return RequestVote(sender, term, last[0], last[1], pre_vote=pre_vote, leadership_transfer=transfer)


def vote(
    sender: str, term: int, *, granted: bool = True, pre_vote: bool = False, asked: int | None = None
) -> RequestVoteResponse:
    return RequestVoteResponse(
        sender, term, request_term=term if asked is None else asked, granted=granted, pre_vote=pre_vote
    )


def pick(sent: Sequence[Message], kind: type[M]) -> list[M]:
    """The messages of one kind."""
    return [message for message in sent if isinstance(message, kind)]


def role_of(node: Node) -> Role:
    """The role, read afresh (a type checker would otherwise remember the last comparison)."""
    return node.core.role


# ---------------------------------------------------------------------- words


def describe(message: Message) -> str:
    """One line that a reader of the paper understands. Positions are written index@term."""
    head = f"{type(message).__name__} t{message.term}"
    if isinstance(message, AppendEntries):
        entries = "no entries"
        if message.last_index > message.prev_log_index:
            terms = " ".join(f"{run.first_index}@{run.term}" for run in message.terms)
            entries = f"entries [{message.prev_log_index + 1}..{message.last_index}] runs ({terms})"
        return f"{head} prev {message.prev_log_index}@{message.prev_log_term} {entries} commit {message.commit_index}"
    if isinstance(message, AppendEntriesResponse):
        if message.success:
            return f"{head} match {message.match_index} last {message.last_index}"
        conflict = f"{message.conflict_index}@{message.conflict_term}"
        return f"{head} REFUSED at {message.rejected_index}, conflict {conflict}, match {message.match_index} last {message.last_index}"
    if isinstance(message, Heartbeat):
        return f"{head} commit {message.commit_index} round {message.round} sent {message.sent_index}"
    if isinstance(message, HeartbeatResponse):
        return f"{head} round {message.round} match {message.match_index} last {message.last_index}"
    if isinstance(message, RequestVote):
        kind = "pre-vote" if message.pre_vote else "vote" + (" (transfer)" if message.leadership_transfer else "")
        return f"{head} {kind}, log ends {message.last_log_index}@{message.last_log_term}"
    if isinstance(message, RequestVoteResponse):
        kind = "pre-vote" if message.pre_vote else "vote"
        answer = (
            ("granted" + (" provisionally" if message.provisional else "")) if message.granted else message.result.name
        )
        return f"{head} {kind} for t{message.request_term} {answer}"
    if isinstance(message, ReadIndexRequest):
        return f"{head} read #{message.request_id}"
    if isinstance(message, ReadIndexResponse):
        return f"{head} read #{message.request_id} at {message.read_index}"
    assert isinstance(message, TimeoutNow)
    return head


def last_id(node: Node) -> LogId:
    """Where a node's log ends."""
    return node.core.log.last_id


# ---------------------------------------------------------------------- one node, the others played by the test


def make_pre_candidate(world: World, node_id: str = "n0") -> Node:
    """Let a node's timer fire; its polls are thrown away."""
    world.tick_at_deadline(node_id)
    world.wire.clear()
    node = world[node_id]
    assert node.core.role is Role.PRE_CANDIDATE, node.core.role
    return node


def make_candidate(world: World, node_id: str = "n0") -> Node:
    """Give a node's poll to it, by all others; its requests are thrown away."""
    node = make_pre_candidate(world, node_id)
    for voter in sorted(world.configuration.all_voters - {node_id}):
        if role_of(node) is Role.PRE_CANDIDATE:
            node.step(vote(voter, node.core.term + 1, pre_vote=True))
    world.wire.clear()
    assert node.core.role is Role.CANDIDATE, node.core.role
    return node


def make_leader(world: World, node_id: str = "n0") -> Node:
    """Let a node win an election that the test's own voters decide. Nobody has seen its first entry yet."""
    node = make_candidate(world, node_id)
    for voter in sorted(world.configuration.all_voters - {node_id}):
        if role_of(node) is Role.CANDIDATE:
            node.step(vote(voter, node.core.term))
    world.wire.clear()
    assert node.core.is_leader
    return node


def make_follower(world: World, term: int, leader: str = "n1", node_id: str = "n0") -> Node:
    """Let a node hear a leader."""
    node = world[node_id]
    node.step(heartbeat(leader, term))
    world.wire.clear()
    assert node.core.leader_id == leader
    return node
