"""The Raft core: a single-threaded state machine without IO, clock, thread or randomness of its own.

Inputs: `RaftCore.step` (a message), `tick` (time), `propose`, `persisted`, `hard_state_persisted`, `read`, `transfer`,
`step_down`, `peer_connected`, `peer_unreachable`, `entries_fetched`. Output: `ready`, one bundle of effects. The same
inputs give the same outputs, to the byte.

The core never holds entries. Its log is *runs of terms* (`LogView`), the last index and the stable (durable) index.
It says "send peer B entries 120..183"; the driver takes these bytes from the store as one slice.

Three rules carry the safety argument:

* Term and vote are one value; messages that rest on it are listed apart and leave after it is durable (Raft §5.1).
* A leader counts itself, and a follower acknowledges, only what is durable (`persisted`); sending does not wait for it.
* The commit index rises only over an entry of the own term (§5.4.2), and nothing at or below it is ever truncated.

References: "§" is the extended Raft paper, "T§" Ongaro's thesis. Departures: ``docs/divergence.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from dledger.raft.log_view import LogView
from dledger.raft.messages import (
    NO_INDEX,
    NO_TERM,
    UNKNOWN_FLOOR,
    AppendEntries,
    AppendEntriesResponse,
    HardState,
    Heartbeat,
    HeartbeatResponse,
    InvariantError,
    LogId,
    Message,
    NodeId,
    ReadIndexRequest,
    ReadIndexResponse,
    RequestVote,
    RequestVoteResponse,
    Role,
    TermRun,
    TimeoutNow,
    VoteResult,
    invariant,
)
from dledger.raft.progress import PeerProgress, ReplicationState
from dledger.raft.quorum import Configuration, VoteOutcome, committed_index, has_quorum, vote_outcome
from dledger.raft.ready import (
    AppendNoop,
    AppendReceived,
    CoreEvent,
    ProposalRefusedError,
    ReadState,
    Ready,
    RefusalReason,
    RoleChange,
    SendEntries,
    Truncate,
)

__all__ = ["CoreOptions", "RaftCore", "RandomSource"]

REFUSED_READ: Final = -2
"""``ReadIndexResponse.read_index`` where the leader cannot confirm itself."""

_FOREVER: Final = 2**62
_MAX_REQUEST_ID: Final = 2**61


class RandomSource(Protocol):
    """Where the core's randomness comes from; handed in, so that a run can be repeated."""

    def randint(self, a: int, b: int, /) -> int:
        """An integer N with a <= N <= b."""


@dataclass(frozen=True, slots=True)
class CoreOptions:
    """Times in milliseconds, sizes in bytes."""

    election_timeout_ms: int = 600
    """Silence before a follower starts a pre-vote; drawn from [n, 2n) (§5.2).

    Must exceed ``heartbeat_interval_ms`` several times. Too low: elections on every slow fsync. Too high: a hung
    leader is replaced after up to ``2 n`` milliseconds.
    """
    heartbeat_interval_ms: int = 120
    lost_leader_min_ms: int = 10
    """After the leader's connection broke, a pre-vote starts within [min, max] instead of the election timeout."""
    lost_leader_max_ms: int = 60
    commit_notice_ms: int = 20
    """A commit that no append has carried to an idle link within this time goes by itself."""
    max_inflight_count: int = 64
    max_inflight_bytes: int = 8 * 1024 * 1024
    max_append_bytes: int = 1024 * 1024
    preferred_leader_ids: tuple[NodeId, ...] = ()
    preferred_check_ms: int = 1000
    max_transfer_lag: int = 1000
    """A transferee may be at most this many entries behind (DLedger: maxLeadershipTransferWaitIndex)."""


@dataclass(slots=True)
class _PendingRead:
    request_id: int
    origin: NodeId | None  # None: this node
    read_index: int
    round: int


class RaftCore:
    """One node's Raft state. See the module's text for the rules, `Ready` for the effects.

    Invariant: applied by others, commit_index <= last_index and commit_index never falls.
    Invariant: stable_index <= last_index.
    """

    def __init__(
        self,
        node_id: NodeId,
        configuration: Configuration,
        options: CoreOptions,
        *,
        hard_state: HardState,
        runs: Iterable[TermRun],
        first_index: int,
        last_index: int,
        commit_index: int,
        random: RandomSource,
        now_ms: int,
    ) -> None:
        self.node_id = node_id
        self.configuration = configuration
        self.options = options
        self.hard_state = hard_state
        self.log = LogView(runs, first_index=first_index, last_index=last_index)
        self.stable_index = last_index
        self.commit_index = commit_index
        self.role = Role.FOLLOWER if node_id in configuration.all_voters else Role.LEARNER
        self.leader_id: NodeId | None = None
        self.progress: dict[NodeId, PeerProgress] = {}
        self.transferee: NodeId | None = None
        self.disk_full = False
        self.own_term_first_index = _FOREVER
        self.elections_started = 0

        self._random = random
        self._now_ms = now_ms
        self._ready = Ready(commit_index=commit_index)
        self._hard_state_durable = True
        self._verified_index = NO_INDEX  # follower: equal to the leader's log up to here, in this term
        self._leader_commit_index = NO_INDEX  # follower: the highest commit index told by the leader of this term
        self._caught_up_index = NO_INDEX  # follower: what it has to hold for the vote floor to go
        self._epoch = 0  # follower: the highest that its leader has named in this term
        self._recollection_id = 0  # follower: the read-index request by which it asks for that
        self._recollection_due_ms = 0
        self._begins_the_log = False
        """Leader: elected when there was no entry at all, and no majority that remembers has acknowledged one yet. Only
        then answers of forgetful nodes count as any other's: nobody can have forgotten an entry of a log that begins.
        Any other leader must not rest on nodes that have forgotten what they promised, perhaps to its successor; where
        *every* voter stands behind it there is no successor. As with votes (`vote_outcome`)."""
        self._leader_lost = False
        self._unreachable: set[NodeId] = set()  # peers whose connection broke and that were not heard of since
        self._leader_contact_ms = -_FOREVER
        self._no_campaign_until_ms = -_FOREVER
        self._failed_elections = 0
        self._votes: dict[NodeId, bool | None] = {}  # True full, None provisional, False refused
        self._transfer_campaign = False
        self._transfer_deadline_ms = _FOREVER
        self._heartbeat_due_ms = _FOREVER
        self._commit_notice_due_ms = _FOREVER
        self._quorum_check_due_ms = _FOREVER
        self._preferred_check_due_ms = _FOREVER
        self._round = 0
        self._round_open = False
        self._reads: list[_PendingRead] = []
        self._waiting_reads: list[_PendingRead] = []
        self._forwarded_reads: set[int] = set()
        self._leader_ready_told = False
        self._told_term = -1
        # The first time is shorter: a group that starts has no leader, and where there is one PreVote is harmless.
        timeout = options.election_timeout_ms
        self._election_due_ms = now_ms + random.randint(timeout // 4, timeout)
        invariant(commit_index <= last_index, "commit index beyond the log at start")

    # ------------------------------------------------------------------ state in words

    @property
    def term(self) -> int:
        return self.hard_state.term

    @property
    def vote(self) -> NodeId | None:
        return self.hard_state.vote

    @property
    def last_index(self) -> int:
        return self.log.last_index

    @property
    def is_leader(self) -> bool:
        return self.role is Role.LEADER

    @property
    def is_leader_ready(self) -> bool:
        """Whether this node leads and the first entry of its term is committed."""
        return self.role is Role.LEADER and self.commit_index >= self.own_term_first_index

    @property
    def deadline_ms(self) -> int:
        """When `tick` next has something to do."""
        if self.role is not Role.LEADER:
            return self._election_due_ms
        return min(
            self._heartbeat_due_ms,
            self._quorum_check_due_ms,
            self._transfer_deadline_ms,
            self._preferred_check_due_ms,
            self._commit_notice_due_ms,
        )

    @property
    def commits_behind(self) -> int:
        """Entries that this term's leader has called committed and this node has not followed yet; 0 at a leader."""
        return 0 if self.role is Role.LEADER else max(self._leader_commit_index - self.commit_index, 0)

    @property
    def votes_provisionally(self) -> bool:
        """Whether this node may have lost entries that it acknowledged (see `HardState.vote_floor`)."""
        floor = self.hard_state.vote_floor
        return floor is not None and self.log.last_id < floor

    @property
    def forgetful_peers(self) -> list[NodeId]:
        """At a leader: who holds entries of this term without counting in full, see `AppendEntriesResponse`."""
        return sorted(peer for peer, progress in self.progress.items() if progress.match_index > progress.sworn_index)

    @property
    def changes_log(self) -> bool:
        """Whether `ready` holds changes of the log: the driver takes them before it proposes anything."""
        return bool(self._ready.log_operations)

    @property
    def has_more_to_send(self) -> bool:
        """Whether the log goes on behind what some follower was sent, so that a leader's `ready` may ask for more."""
        last_index = self.log.last_index
        for progress in self.progress.values():
            if progress.fetching is None and progress.next_index <= last_index:
                return True
        return False

    def ready(self) -> Ready:
        """Take the effects gathered since the last call."""
        if self.role is Role.LEADER:
            last_index = self.log.last_index
            for peer, progress in self.progress.items():
                if progress.next_index <= last_index or progress.state is ReplicationState.PROBE:
                    self._replicate_to(peer)
        bundle = self._ready
        bundle.commit_index = self.commit_index
        self._ready = Ready(commit_index=self.commit_index)
        return bundle

    # ------------------------------------------------------------------ inputs

    def step(self, message: Message, now_ms: int) -> None:
        """Take one message. Messages of strangers and stale ones change nothing."""
        self._now_ms = now_ms
        sender = message.sender
        if sender not in self.configuration.members or sender == self.node_id:
            return
        self._unreachable.discard(sender)
        if message.term != self.hard_state.term:
            if message.term > self.term and not self._raise_term(message):
                return
            if message.term < self.term:
                self._answer_stale(message)
                return
        handler = _HANDLERS.get((self.role, type(message))) or _HANDLERS.get((None, type(message)))
        if handler is not None:
            handler(self, message)

    def tick(self, now_ms: int) -> None:
        """Tell the time; due timers fire."""
        self._now_ms = now_ms
        if self.role is Role.LEADER:
            self._tick_leader()
        elif now_ms >= self._election_due_ms:
            self._election_timeout()

    def propose(self, count: int, now_ms: int) -> int:
        """Give ``count`` new entries their indexes; returns the first. The term is `term`.

        The driver stages the entries to the store before it takes `ready`.

        Raises:
            ProposalRefusedError: not leader, a transfer is running, or the disk is full.
        """
        self._now_ms = now_ms
        if self.role is not Role.LEADER:
            raise ProposalRefusedError(RefusalReason.NOT_LEADER)
        if self.transferee is not None:
            raise ProposalRefusedError(RefusalReason.TRANSFERRING, self.transferee)
        if self.disk_full:
            raise ProposalRefusedError(RefusalReason.DISK_FULL)
        if count <= 0:
            raise InvariantError("a proposal has entries")
        first = self.log.last_index + 1
        self.log.append(first + count - 1, self.term)
        return first

    def persisted(self, last_index: int, last_term: int, now_ms: int) -> None:
        """The log is durable up to the entry (``last_index``, ``last_term``).

        A completion that an entry of another term has overtaken is ignored: index and term together name an entry
        (§5.3), so a late completion can never vouch for what replaced it.
        """
        self._now_ms = now_ms
        if last_index <= self.stable_index or self.log.term_at(last_index) != last_term:
            return
        self.stable_index = last_index
        if self.hard_state.vote_floor is not None:
            self._lower_vote_floor()
        if self.role is Role.LEADER:
            self._advance_commit()
        elif self.leader_id is not None and self._verified_index != NO_INDEX:
            self._acknowledge_append()

    def hard_state_persisted(self, state: HardState, now_ms: int) -> None:
        """Term, vote and floor are durable as given."""
        self._now_ms = now_ms
        if state != self.hard_state:
            return
        self._hard_state_durable = True
        if self.role is Role.CANDIDATE and self.vote == self.node_id and self.node_id not in self._votes:
            self._count_vote(self.node_id, None if self._own_vote_is_provisional() else True)

    def read(self, request_id: int, now_ms: int) -> None:
        """Ask for an index at which a linearizable read may be served (T§6.4). Answered in `Ready.reads`.

        At a follower the request goes to the leader; without a leader it fails at once. Request ids must not repeat,
        not even over restarts.
        """
        self._now_ms = now_ms
        if self.role is Role.LEADER:
            self._leader_read(request_id, None)
        elif self.leader_id is not None and not self._leader_lost:
            self._forwarded_reads.add(request_id)
            self._send(self.leader_id, ReadIndexRequest(self.node_id, self.term, request_id))
        else:
            self._ready.reads.append(ReadState(request_id, None))

    def forget_read(self, request_id: int) -> None:
        """The caller no longer waits for this read."""
        self._forwarded_reads.discard(request_id)
        self._reads = [read for read in self._reads if read.origin or read.request_id != request_id]
        self._waiting_reads = [read for read in self._waiting_reads if read.origin or read.request_id != request_id]

    def transfer(self, target: NodeId | None, now_ms: int) -> NodeId:
        """Start to hand leadership over (T§3.10); returns the transferee. Given up after one election timeout.

        ``target`` None: the voter that is furthest ahead and was heard of lately, a preferred one first.

        Raises:
            ProposalRefusedError: not leader, a transfer runs already, no such member, or it is too far behind.
        """
        self._now_ms = now_ms
        if self.role is not Role.LEADER:
            raise ProposalRefusedError(RefusalReason.NOT_LEADER)
        if self.transferee is not None and self.transferee != target:
            raise ProposalRefusedError(RefusalReason.TRANSFERRING, self.transferee)
        if target is None:
            target = self._best_transferee()
        if target == self.node_id:
            return target
        if target not in self.configuration.all_voters:
            raise ProposalRefusedError(RefusalReason.NOT_MEMBER, target)
        progress = self.progress[target]
        if progress.broken or now_ms - progress.last_contact_ms >= self.options.election_timeout_ms:
            raise ProposalRefusedError(RefusalReason.UNREACHABLE, target)
        lag = self.log.last_index - progress.match_index
        if lag > self.options.max_transfer_lag:
            raise ProposalRefusedError(RefusalReason.FALLEN_BEHIND, f"{target} by {lag} entries")
        self.transferee = target
        self._transfer_deadline_ms = now_ms + self.options.election_timeout_ms
        self._event("transfer_started", target=target)
        self._send_timeout_now_if_ready(target)
        return target

    def step_down(self, now_ms: int) -> None:
        """Give up leadership or candidacy and do not campaign for two election timeouts."""
        self._now_ms = now_ms
        self._no_campaign_until_ms = now_ms + 2 * self.options.election_timeout_ms
        if self.role in {Role.LEADER, Role.CANDIDATE, Role.PRE_CANDIDATE}:
            self._event("stepped_down", reason="asked to")
            self._become_follower(self.term, None)
        self._reset_election_timer()

    def set_disk_full(self, full: bool, now_ms: int) -> None:
        """The store cannot grow: no campaign, no new entries; a leader looks for a successor, else steps down."""
        self._now_ms = now_ms
        self.disk_full = full
        if full and self.role is Role.LEADER:
            if self.transferee is not None:
                return  # told again while a successor takes over; if it does not, `tick` steps down
            try:
                self.transfer(None, now_ms)
            except ProposalRefusedError:
                self.step_down(now_ms)
        elif full and self.role in {Role.CANDIDATE, Role.PRE_CANDIDATE}:
            self._become_follower(self.term, None)

    def peer_connected(self, peer: NodeId, now_ms: int) -> None:
        """A link came back: whatever was on the way may be lost, so find out where the peer's log stands."""
        self._now_ms = now_ms
        self._unreachable.discard(peer)
        progress = self.progress.get(peer)
        if progress is not None and progress.fetching is None:
            progress.become_probe()
        if self.role is Role.PRE_CANDIDATE and peer in self.configuration.all_voters and peer not in self._votes:
            self._send(peer, self._vote_request(self.term + 1, pre_vote=True, transfer=False))

    def peer_unreachable(self, peer: NodeId, now_ms: int) -> None:
        """A stream from ``peer`` broke, as after kill -9. Only a hint: it hastens a pre-vote, and PreVote is harmless.

        A follower that loses its leader so starts a pre-vote after some tens of milliseconds instead of waiting out the
        election timeout, and grants one at once.
        """
        self._now_ms = now_ms
        progress = self.progress.get(peer)
        if progress is not None:
            progress.become_probe()
            progress.pause()  # until it answers a heartbeat or reconnects
            progress.broken = True
        if peer == self.transferee:
            self._give_up_transfer()
        self._unreachable.add(peer)
        if self.role in {Role.PRE_CANDIDATE, Role.CANDIDATE} and self._everybody_has_answered():
            self._election_lost()
        if peer == self.leader_id and self.role is Role.FOLLOWER and not self._leader_lost:
            self._leader_lost = True
            delay = self._random.randint(self.options.lost_leader_min_ms, self.options.lost_leader_max_ms)
            self._election_due_ms = min(self._election_due_ms, self._now_ms + delay)
            self._fail_reads()
            self._event("leader_connection_lost", leader=peer)

    def entries_fetched(
        self,
        request: SendEntries,
        last_index: int,
        byte_count: int,
        now_ms: int,
        prev_chain_crc: int = 0,
        payload: object = None,
    ) -> AppendEntries | None:
        """The driver has fetched entries; returns the message to send with them, or None if they are stale.

        ``last_index`` may be below ``request.last_index``; ``request.first_index - 1`` means an empty probe. The
        entries (``payload``) and the chain_crc before them are passed on as they are.
        """
        self._now_ms = now_ms
        progress = self.progress.get(request.peer)
        if (
            self.role is not Role.LEADER
            or progress is None
            or (progress.fetching is not request and progress.fetching != request)
        ):
            return None  # nobody waits for it any more; what is asked for instead has yet to come
        if progress.next_index != request.first_index:
            progress.fetching = None
            return None
        previous = request.first_index - 1
        previous_term = self.log.term_at(previous)
        if previous_term is None:
            raise InvariantError("a leader has every entry that it sends")
        progress.sent(last_index, byte_count, now_ms)
        progress.sent_commit = self.commit_index
        return AppendEntries(
            self.node_id,
            self.term,
            prev_log_index=previous,
            prev_log_term=previous_term,
            last_index=last_index,
            terms=self.log.runs_between(request.first_index, last_index),
            commit_index=self.commit_index,
            prev_chain_crc=prev_chain_crc,
            payload=payload,
            epoch=progress.epoch,
        )

    def fetch_failed(self, request: SendEntries) -> None:
        """The entries could not be read now; the next heartbeat's answer tries again."""
        progress = self.progress.get(request.peer)
        if progress is not None and progress.fetching == request:
            progress.become_probe()
            progress.pause()

    # ------------------------------------------------------------------ terms and roles

    def _raise_term(self, message: Message) -> bool:
        """Follow a higher term (§5.1). Returns False where the message must not do that, and was answered."""
        if isinstance(message, RequestVote):
            if message.pre_vote:
                self._answer_pre_vote(message)
                return False
            if self._leader_is_alive() and not message.leadership_transfer:
                # Leader stickiness (§6, end): a server that still hears its leader ignores campaigns.
                self._refuse_vote(message, VoteResult.REJECT_ALREADY_HAS_LEADER)
                return False
        elif isinstance(message, RequestVoteResponse) and message.pre_vote and message.granted:
            # A granted pre-vote names the term asked for; nobody is in it yet (T§9.6).
            if self.role is Role.PRE_CANDIDATE and message.request_term == self.term + 1:
                self._count_vote(message.sender, None if message.provisional else True)
            return False
        leads = isinstance(message, (AppendEntries, Heartbeat))
        self._event("term_raised", term=message.term, by=message.sender)
        self._become_follower(message.term, message.sender if leads else None)
        return True

    def _answer_stale(self, message: Message) -> None:
        """A sender in an older term learns of ours, so that old leaders step down and candidates catch up."""
        if isinstance(message, RequestVote):
            self._refuse_vote(message, VoteResult.REJECT_EXPIRED_VOTE_TERM)
        elif isinstance(message, (AppendEntries, Heartbeat)):
            self._send(
                message.sender,
                AppendEntriesResponse(self.node_id, self.term, False, NO_INDEX, self.log.last_index),
            )

    def _become_follower(self, term: int, leader_id: NodeId | None) -> None:
        was_leader = self.role is Role.LEADER
        if term > self.term:
            self._save_hard_state(HardState(term, None, self.hard_state.vote_floor))
            self._failed_elections = 0
        self._set_role(self._follower_role(), leader_id)
        self._compare_anew()
        self._votes.clear()
        self._leader_lost = False
        if was_leader:
            self.progress = {}
            self.transferee = None
            self._transfer_deadline_ms = _FOREVER
            self._commit_notice_due_ms = _FOREVER
            self.own_term_first_index = _FOREVER
            self._begins_the_log = False
        self._fail_reads()
        self._reset_election_timer()

    def _compare_anew(self) -> None:
        """Nothing of this log has been compared with the log of a leader of this term."""
        self._verified_index = self._leader_commit_index = self._caught_up_index = NO_INDEX
        self._recollection_id = self._recollection_due_ms = self._epoch = 0

    def _follower_role(self) -> Role:
        return Role.FOLLOWER if self.node_id in self.configuration.all_voters else Role.LEARNER

    def _set_role(self, role: Role, leader_id: NodeId | None) -> None:
        if role is self.role and leader_id == self.leader_id and self._told_term == self.term:
            return
        self.role = role
        self.leader_id = leader_id
        self._told_term = self.term
        self._leader_ready_told = False
        self._ready.role_change = RoleChange(role, self.term, leader_id)
        self._ready.leader_ready = False

    def _save_hard_state(self, state: HardState) -> None:
        invariant(
            state.term > self.term or (state.term == self.term and (self.vote is None or state.vote == self.vote)),
            "term and vote never weaken",
        )
        self.hard_state = state
        self._hard_state_durable = False
        self._ready.hard_state = state

    def _lower_vote_floor(self) -> None:
        """Forget the floor once the log durably holds what the leader answered to `_recollect`.

        A leader that everybody has voted for, itself included, needs no answer: it has all that survived.
        """
        if self.hard_state.vote_floor is None:
            return
        if self.role is Role.LEADER:
            caught_up = self.log.term_at(self.stable_index) == self.term
        else:
            caught_up = NO_INDEX < self._caught_up_index <= self._durable_match()
        if caught_up:
            self._event("vote_floor_cleared")
            # The leader's term is one of those that may have been forgotten: no vote for another in it.
            vote = self.leader_id if self.vote is None else self.vote
            self._save_hard_state(HardState(self.term, vote, None))

    @property
    def _is_forgetful(self) -> bool:
        """Whether this node may have promised things, votes too, of which it knows nothing: its folder was emptied."""
        floor = self.hard_state.vote_floor
        return floor is not None and floor == UNKNOWN_FLOOR

    def _recollect(self) -> None:
        """Ask the leader, as a reader does, for an index that a majority of those that remember stand for *now*.

        Whatever this node has acknowledged or voted for in later terms, one of them knows of, and would not stand for a
        leader that is behind it. What this leader or earlier ones have committed with entries that this node held is at
        or below that index, because what it acknowledged before it asked counts no more (`PeerProgress.distrust`). So
        once this log holds that index, nothing is missing that anybody counts on.
        """
        if self.hard_state.vote_floor is None or self.leader_id is None or self._now_ms < self._recollection_due_ms:
            return
        self._recollection_due_ms = self._now_ms + self.options.election_timeout_ms
        if not self._recollection_id:
            self._recollection_id = self._random.randint(1, _MAX_REQUEST_ID)
        self._send(self.leader_id, ReadIndexRequest(self.node_id, self.term, self._recollection_id, recollects=True))

    def _recollected(self, read_index: int) -> None:
        self._caught_up_index = read_index
        self._lower_vote_floor()
        if self.hard_state.vote_floor is None:
            self._acknowledge_append()  # what was acknowledged before counts from now on

    # ------------------------------------------------------------------ elections (§5.2, T§9.6)

    def _reset_election_timer(self) -> None:
        timeout = self.options.election_timeout_ms
        self._election_due_ms = self._now_ms + self._random.randint(timeout, 2 * timeout - 1)

    def _leader_is_alive(self) -> bool:
        """Whether this node leads, or has heard its leader within the minimum election timeout on an unbroken link."""
        if self.role is Role.LEADER:
            return True
        return (
            self.leader_id is not None
            and not self._leader_lost
            and self._now_ms - self._leader_contact_ms < self.options.election_timeout_ms
        )

    def _election_timeout(self) -> None:
        self._reset_election_timer()
        if self.role is Role.LEARNER:
            return
        if self.disk_full or self._now_ms < self._no_campaign_until_ms:
            if self.role is not Role.FOLLOWER or self.leader_id is not None:
                self._become_follower(self.term, None)
            return
        self._pre_campaign()

    def _pre_campaign(self) -> None:
        """Ask whether a campaign could be won, without raising the term (T§9.6)."""
        self._set_role(Role.PRE_CANDIDATE, None)
        self._fail_reads()
        self._votes = {}
        self._compare_anew()
        self._event("pre_vote_started", term=self.term + 1)
        self._ask_for_votes(self.term + 1, pre_vote=True, transfer=False)
        self._count_vote(self.node_id, None if self._own_vote_is_provisional() else True)

    def _campaign(self, *, transfer: bool) -> None:
        """Become a candidate: raise the term, vote for oneself, ask the others once that is durable (§5.2)."""
        self.elections_started += 1
        self._save_hard_state(HardState(self.term + 1, self.node_id, self.hard_state.vote_floor))
        self._set_role(Role.CANDIDATE, None)
        self._fail_reads()
        self._compare_anew()
        self._votes = {}
        self._transfer_campaign = transfer
        self._reset_election_timer()
        self._event("campaign_started", term=self.term, transfer=transfer)
        self._ask_for_votes(self.term, pre_vote=False, transfer=transfer)

    def _ask_for_votes(self, term: int, *, pre_vote: bool, transfer: bool) -> None:
        request = self._vote_request(term, pre_vote=pre_vote, transfer=transfer)
        for voter in sorted(self.configuration.all_voters):
            if voter != self.node_id:
                self._send(voter, request)

    def _vote_request(self, term: int, *, pre_vote: bool, transfer: bool) -> RequestVote:
        last = self.log.last_id
        return RequestVote(self.node_id, term, last.index, last.term, pre_vote=pre_vote, leadership_transfer=transfer)

    def _own_vote_is_provisional(self) -> bool:
        return self._is_provisional(self.log.last_index, self.log.last_term)

    def _is_provisional(self, last_index: int, last_term: int) -> bool:
        """Whether a vote for a log ending so may overlook an entry that this node acknowledged and lost."""
        floor = self.hard_state.vote_floor
        if floor is None or LogId(last_term, last_index) >= floor:
            return False
        # A group that never had an entry: nothing can have been acknowledged. (The one hole: docs/divergence.md.)
        return not (floor == UNKNOWN_FLOOR and last_index == NO_INDEX and self.log.last_index == NO_INDEX)

    def _log_refusal(self, message: RequestVote) -> VoteResult | None:
        """Compare logs as §5.4.1 does: last term first, then length."""
        if message.last_log_term < self.log.last_term:
            return VoteResult.REJECT_EXPIRED_LEDGER_TERM
        if message.last_log_term == self.log.last_term and message.last_log_index < self.log.last_index:
            return VoteResult.REJECT_SMALL_LEDGER_END_INDEX
        return None

    def _answer_pre_vote(self, message: RequestVote) -> None:
        """Poll of a possible candidate: changes nothing but this node's own patience."""
        if self._leader_is_alive():
            self._refuse_vote(message, VoteResult.REJECT_ALREADY_HAS_LEADER)
            return
        refusal = self._log_refusal(message)
        if refusal is not None:
            self._refuse_vote(message, refusal)
            return
        # Let the one who asks go first: two candidates at once split the vote. Of two who poll each other, one yields.
        mine = (self.log.last_term, self.log.last_index, self.node_id)
        if self.role is Role.PRE_CANDIDATE and (message.last_log_term, message.last_log_index, message.sender) > mine:
            self._set_role(Role.FOLLOWER, None)
            self._votes = {}
        patience = self._now_ms + 2 * self.options.lost_leader_max_ms
        self._election_due_ms = max(self._election_due_ms, patience)
        self._grant_vote(message)

    def _on_request_vote(self, message: RequestVote) -> None:
        """A vote request in this node's own term (§5.2): at most one vote a term, durable before the answer."""
        if message.pre_vote:
            # Somebody polls for the term we are in already: it has not heard of it.
            self._refuse_vote(message, VoteResult.REJECT_EXPIRED_VOTE_TERM)
        elif self.vote is not None and self.vote != message.sender:
            known = self.leader_id is not None
            self._refuse_vote(
                message, VoteResult.REJECT_ALREADY_HAS_LEADER if known else VoteResult.REJECT_ALREADY_VOTED
            )
        elif self.leader_id is not None and self.leader_id != message.sender:
            self._refuse_vote(message, VoteResult.REJECT_ALREADY_HAS_LEADER)
        elif (refusal := self._log_refusal(message)) is not None:
            self._refuse_vote(message, refusal)
        else:
            if self.vote is None:
                self._save_hard_state(HardState(self.term, message.sender, self.hard_state.vote_floor))
            self._reset_election_timer()
            self._event("voted", candidate=message.sender, term=self.term)
            self._grant_vote(message)

    def _grant_vote(self, message: RequestVote) -> None:
        self._send(
            message.sender,
            RequestVoteResponse(
                self.node_id,
                message.term if message.pre_vote else self.term,
                request_term=message.term,
                granted=True,
                pre_vote=message.pre_vote,
                provisional=self._is_provisional(message.last_log_index, message.last_log_term),
            ),
        )

    def _refuse_vote(self, message: RequestVote, result: VoteResult) -> None:
        self._send(
            message.sender,
            RequestVoteResponse(
                self.node_id,
                self.term,
                request_term=message.term,
                granted=False,
                pre_vote=message.pre_vote,
                result=result,
            ),
        )

    def _on_vote_response(self, message: RequestVoteResponse) -> None:
        expected = self.term + 1 if self.role is Role.PRE_CANDIDATE else self.term
        if message.pre_vote != (self.role is Role.PRE_CANDIDATE) or message.request_term != expected:
            return
        vote: bool | None = False
        if message.granted:
            vote = None if message.provisional else True
        self._count_vote(message.sender, vote)

    def _count_vote(self, voter: NodeId, vote: bool | None) -> None:
        """Count a vote, each voter once (True full, None provisional, False refused)."""
        self._votes.setdefault(voter, vote)
        outcome = vote_outcome(
            self.configuration,
            {node for node, value in self._votes.items() if value is True},
            {node for node, value in self._votes.items() if value is None},
            {node for node, value in self._votes.items() if value is False},
        )
        if outcome is VoteOutcome.WON and self.node_id in self._votes:
            if self.role is Role.PRE_CANDIDATE:
                self._campaign(transfer=False)
            else:
                self._become_leader()
        elif outcome is VoteOutcome.LOST or self._everybody_has_answered():
            self._election_lost()

    def _everybody_has_answered(self) -> bool:
        """Whether no vote is to be hoped for any more, though the dead could still decide: a split after a kill -9.

        Only where those that can be reached are a quorum; else there is nothing to hurry for.
        """
        reachable = self.configuration.all_voters - self._unreachable
        return reachable <= self._votes.keys() and has_quorum(self.configuration, reachable)

    def _election_lost(self) -> None:
        """Try again soon, and ever later: most losses are split votes between two quick candidates."""
        self._event("election_lost", role=self.role.value, term=self.term)
        self._failed_elections += 1
        self._set_role(self._follower_role(), None)
        self._votes = {}
        shift = min(self._failed_elections, 6)
        longest = min(self.options.lost_leader_max_ms << shift, self.options.election_timeout_ms)
        delay = self._random.randint(self.options.lost_leader_min_ms, max(longest, self.options.lost_leader_min_ms))
        self._election_due_ms = self._now_ms + delay + self.options.lost_leader_max_ms

    def _become_leader(self) -> None:
        invariant(self.role is Role.CANDIDATE, "only a candidate becomes leader")
        invariant(self._hard_state_durable, "a leader's vote for itself is durable")
        self._failed_elections = 0
        self._set_role(Role.LEADER, self.node_id)
        now = self._now_ms
        self.progress = {
            peer: PeerProgress(self.log.last_index + 1, now)
            for peer in sorted(self.configuration.members)
            if peer != self.node_id
        }
        self._round = 0
        self._round_open = False
        self._heartbeat_due_ms = now  # at once: the others must know before their timers fire
        self._quorum_check_due_ms = now + self.options.election_timeout_ms
        self._preferred_check_due_ms = (
            now + self.options.preferred_check_ms if self.options.preferred_leader_ids else _FOREVER
        )
        self._event("elected", term=self.term)
        # An entry of the own term at once: nothing older can be committed without it (§5.4.2, §8).
        index = self.log.last_index + 1
        self.own_term_first_index = index
        self._begins_the_log = index == 0
        self.log.append(index, self.term)
        self._ready.log_operations.append(AppendNoop(index, self.term))
        self._tick_leader()

    # ------------------------------------------------------------------ the follower's log (§5.3)

    def _heard_from_leader(self, sender: NodeId, epoch: int) -> None:
        if self.role is not Role.FOLLOWER or self.leader_id is None:
            if self.role is not Role.LEARNER:
                self._set_role(Role.FOLLOWER, sender)
            else:
                self._set_role(Role.LEARNER, sender)
            self._votes = {}
            self._event("follows", leader=sender, term=self.term)
        if self.leader_id != sender:
            raise InvariantError("two leaders in one term")
        self._failed_elections = 0
        self._leader_lost = False
        self._leader_contact_ms = self._now_ms
        self._reset_election_timer()
        self._epoch = max(self._epoch, epoch)
        if self.hard_state.vote_floor is not None:
            self._recollect()

    def _on_append_entries(self, message: AppendEntries) -> None:
        self._heard_from_leader(message.sender, message.epoch)
        self._leader_commit_index = max(self._leader_commit_index, message.commit_index)
        previous = message.prev_log_index
        if previous < self.commit_index and message.last_index <= self.commit_index:
            self._acknowledge_append()  # all of it is committed here already
            return
        known_term = self.log.term_at(previous)
        if previous >= self.commit_index and known_term != message.prev_log_term:
            self._refuse_append(message, known_term)
            return
        if previous < self.commit_index:
            known_term = self.log.term_at(previous)
            invariant(known_term in {None, message.prev_log_term}, "a leader contradicts a committed entry")
        if message.last_index > previous:
            self._take_entries(message)
        self._verified_index = max(self._verified_index, message.last_index)
        self._follow_commit(min(message.commit_index, message.last_index))
        if self.hard_state.vote_floor is not None:
            self._lower_vote_floor()
        if min(self._verified_index, self.log.last_index) <= self.stable_index:
            self._acknowledge_append()

    def _take_entries(self, message: AppendEntries) -> None:
        """Keep what agrees, truncate only at a real conflict, append the rest (§5.3)."""
        first = self.log.last_index + 1
        if message.prev_log_index + 1 == first:  # as a rule: all of it is new
            self.log.append_runs(message.terms, first, message.last_index)
            self._ready.log_operations.append(AppendReceived(first, message))
            return
        conflict = self.log.first_conflict(message.terms, message.last_index)
        if conflict is not None:
            invariant(conflict > self.commit_index, "a committed entry is never truncated")
            self._event("truncated", from_index=conflict, entries=self.log.last_index - conflict + 1)
            self.log.truncate(conflict)
            self.stable_index = min(self.stable_index, conflict - 1)
            self._ready.log_operations.append(Truncate(conflict))
        if message.last_index > self.log.last_index:
            first = self.log.last_index + 1
            runs = tuple(
                TermRun(max(run.first_index, first), run.term)
                for number, run in enumerate(message.terms)
                if number + 1 == len(message.terms) or message.terms[number + 1].first_index > first
            )
            self.log.append_runs(runs, first, message.last_index)
            self._ready.log_operations.append(AppendReceived(first, message))

    def _follow_commit(self, commit_index: int) -> None:
        if commit_index > self.commit_index:
            if commit_index > self.log.last_index:
                raise InvariantError("commit index beyond the log")
            self.commit_index = commit_index

    def _durable_match(self) -> int:
        return min(max(self._verified_index, self.commit_index), self.stable_index)

    def _acknowledge_append(self) -> None:
        if self.leader_id is not None:
            self._send(
                self.leader_id,
                AppendEntriesResponse(
                    self.node_id,
                    self.term,
                    True,
                    self._durable_match(),
                    self.log.last_index,
                    forgetful=self._is_forgetful,
                    epoch=self._epoch,
                ),
            )

    def _refuse_append(self, message: AppendEntries, known_term: int | None) -> None:
        """Say where to go on: the start of the conflicting term, or the end of this log (§5.3, end)."""
        if known_term is None:
            conflict_term, conflict_index = NO_TERM, self.log.last_index + 1
        else:
            conflict_term = known_term
            conflict_index = max(self.log.first_index_of_run(message.prev_log_index), self.commit_index + 1)
        self._send(
            message.sender,
            AppendEntriesResponse(
                self.node_id,
                self.term,
                False,
                self._durable_match(),
                self.log.last_index,
                rejected_index=message.prev_log_index,
                conflict_term=conflict_term,
                conflict_index=conflict_index,
                forgetful=self._is_forgetful,
                epoch=self._epoch,
            ),
        )

    def _on_heartbeat(self, message: Heartbeat) -> None:
        self._heard_from_leader(message.sender, message.epoch)
        self._leader_commit_index = max(self._leader_commit_index, message.commit_index)
        self._follow_commit(min(message.commit_index, max(self._verified_index, self.commit_index)))
        if self.hard_state.vote_floor is not None:
            self._lower_vote_floor()
        self._send(
            message.sender,
            HeartbeatResponse(
                self.node_id,
                self.term,
                round=message.round,
                sent_index=message.sent_index,
                match_index=self._durable_match(),
                # Not the log's end: an old tail that this leader has not replaced yet would hide what was lost.
                last_index=max(self._verified_index, self.commit_index),
                forgetful=self._is_forgetful,
                epoch=self._epoch,
            ),
        )

    def _on_timeout_now(self, message: TimeoutNow) -> None:
        """The leader hands over: campaign at once, without a pre-vote (T§3.10)."""
        if self.role is Role.FOLLOWER and not self.disk_full and not self._own_vote_is_provisional():
            self._event("transfer_received", leader=message.sender)
            self._campaign(transfer=True)

    # ------------------------------------------------------------------ the leader's replication (§5.3)

    def _replicate_to(self, peer: NodeId) -> None:
        """Ask the driver for the next entries, if the window has room."""
        progress = self.progress[peer]
        if progress.fetching is not None:
            return
        options = self.options
        if progress.state is ReplicationState.PROBE:
            if progress.probe_sent:
                return
            last = self.log.last_index if progress.optimistic else progress.next_index - 1
        else:
            last = self.log.last_index
            if last < progress.next_index:
                return
            if (
                len(progress.inflight) >= options.max_inflight_count
                or progress.inflight_bytes >= options.max_inflight_bytes
            ):
                return
        progress.fetching = SendEntries(peer, progress.next_index, last, options.max_append_bytes, self.term)
        self._ready.replicate.append(progress.fetching)

    def _on_append_response(self, message: AppendEntriesResponse) -> None:
        progress = self.progress[message.sender]
        progress.heard(self._now_ms)
        if message.match_index > self.log.last_index:
            raise InvariantError("a follower matches entries that the leader lacks")
        if message.epoch != progress.epoch:
            return  # said before it lost something
        if message.success:
            rose = progress.acknowledge(message.match_index, forgetful=message.forgetful)
            if rose and (message.match_index > self.commit_index or self._begins_the_log):
                self._advance_commit()
            if progress.state is ReplicationState.PROBE and message.match_index >= progress.next_index - 1:
                progress.become_replicate()
            if self.transferee is not None:
                self._send_timeout_now_if_ready(message.sender)
            return
        if message.rejected_index == NO_INDEX:
            return
        if message.rejected_index <= progress.match_index:
            if not self._has_lost_entries(message, progress):
                return  # stale: it refused what it has accepted since
            self._event("peer_lost_entries", peer=message.sender, had=progress.match_index, has=message.last_index)
            progress.forget(message.match_index)
        if progress.state is ReplicationState.PROBE and message.rejected_index != progress.next_index - 1:
            return  # an answer to an older probe
        progress.acknowledge(message.match_index, forgetful=message.forgetful)
        progress.back_up(self._back_up_index(message))

    @staticmethod
    def _has_lost_entries(message: AppendEntriesResponse, progress: PeerProgress) -> bool:
        """Whether a peer no longer has what it acknowledged in this term: its folder was deleted, its tail was damaged.

        It refuses the very probe that starts where its log is known to match, and its log ends before that, or holds
        there what another leader told a node that had forgotten everything. A late answer may look the same; then the
        next one raises the match index again. To lower it is always safe.
        """
        return (
            progress.state is ReplicationState.PROBE
            and message.rejected_index == progress.next_index - 1
            and (message.last_index < progress.match_index or message.forgetful)
        )

    def _back_up_index(self, message: AppendEntriesResponse) -> int:
        """Skip a whole term for each refusal (§5.3, end): the last entry that both logs could share."""
        if message.conflict_term == NO_TERM:
            return min(message.conflict_index, message.rejected_index)
        shared = self.log.last_index_at_or_below_term(message.conflict_term, message.rejected_index - 1)
        if self.log.term_at(shared) == message.conflict_term:
            return shared + 1
        return min(message.conflict_index, message.rejected_index)

    def _on_heartbeat_response(self, message: HeartbeatResponse) -> None:
        progress = self.progress[message.sender]
        progress.heard(self._now_ms)
        invariant(message.match_index <= self.log.last_index, "a follower matches entries that the leader lacks")
        if message.epoch != progress.epoch:
            return  # said before it lost something
        if progress.acknowledge(message.match_index, forgetful=message.forgetful):
            self._advance_commit()
            self._send_timeout_now_if_ready(message.sender)
        if progress.acknowledge_round(message.round, forgetful=message.forgetful):
            self._confirm_reads()
        if progress.fetching is not None:
            return
        if progress.state is ReplicationState.PROBE:
            if progress.probe_precedes_heartbeat:
                progress.probe_sent = False  # the probe or its answer was lost, or it is late: ask again
        elif message.last_index < message.sent_index or message.match_index < progress.match_index:
            progress.become_probe()  # something sent before this heartbeat never arrived

    def _advance_commit(self) -> None:
        """Raise the commit index over entries of the own term that a majority holds durably (§5.3, §5.4.2)."""
        matches = {peer: progress.match_index for peer, progress in self.progress.items()}
        matches[self.node_id] = self.stable_index
        sworn = {peer: progress.sworn_index for peer, progress in self.progress.items()}
        sworn[self.node_id] = NO_INDEX if self._is_forgetful else self.stable_index
        index = committed_index(self.configuration, sworn)
        if index >= self.own_term_first_index:
            self._begins_the_log = False
        if sworn != matches:
            everybody = min(matches[voter] for voter in self.configuration.all_voters)
            index = max(index, committed_index(self.configuration, matches) if self._begins_the_log else everybody)
        if index <= self.commit_index or self.log.term_at(index) != self.term:
            return
        self.commit_index = index
        if self._commit_notice_due_ms == _FOREVER and self.progress:
            self._commit_notice_due_ms = self._now_ms + self.options.commit_notice_ms
        if not self._leader_ready_told:
            self._leader_ready_told = True
            self._ready.leader_ready = True
            self._event("leader_ready", term=self.term, commit_index=index)
            waiting, self._waiting_reads = self._waiting_reads, []
            for read in waiting:
                self._leader_read(read.request_id, read.origin)

    # ------------------------------------------------------------------ the leader's timers

    def _tick_leader(self) -> None:
        now = self._now_ms
        if now >= self._quorum_check_due_ms and not self._check_quorum():
            return
        if now >= self._transfer_deadline_ms:
            self._give_up_transfer()
            if not self.is_leader:
                return
        if now >= self._heartbeat_due_ms:
            self._broadcast_heartbeat()
        if now >= self._commit_notice_due_ms:
            self._notify_commit()
        if now >= self._preferred_check_due_ms:
            self._preferred_check_due_ms = now + self.options.preferred_check_ms
            self._prefer_another_leader()

    def _give_up_transfer(self) -> None:
        """The transferee did not take over in time, or its connection broke: take appends again (T§3.10)."""
        self._event("transfer_given_up", target=self.transferee)
        self.transferee = None
        self._transfer_deadline_ms = _FOREVER
        if self.disk_full:
            self.step_down(self._now_ms)
        elif self.options.preferred_leader_ids:
            self._preferred_check_due_ms = self._now_ms + 10 * self.options.preferred_check_ms

    def _check_quorum(self) -> bool:
        """Step down when no majority was heard of within an election timeout (T§6.2)."""
        timeout = self.options.election_timeout_ms
        heard = {peer for peer, progress in self.progress.items() if self._now_ms - progress.last_contact_ms < timeout}
        heard.add(self.node_id)
        self._quorum_check_due_ms = self._now_ms + max(timeout // 4, 1)
        if has_quorum(self.configuration, heard):
            return True
        self._event("stepped_down", reason="no quorum heard of within the election timeout")
        self._become_follower(self.term, None)
        return False

    def _broadcast_heartbeat(self) -> None:
        self._heartbeat_due_ms = self._now_ms + self.options.heartbeat_interval_ms
        for peer, progress in self.progress.items():
            self._send_heartbeat(peer, progress)
        if self.transferee is not None:
            self._send_timeout_now_if_ready(self.transferee)

    def _send_heartbeat(self, peer: NodeId, progress: PeerProgress) -> None:
        progress.sent_commit = min(progress.match_index, self.commit_index)
        progress.last_sent_ms = self._now_ms
        progress.probe_precedes_heartbeat = progress.probe_sent
        self._send(
            peer,
            Heartbeat(
                self.node_id,
                self.term,
                commit_index=self.commit_index,
                round=self._round,
                sent_index=progress.next_index - 1 if progress.state is ReplicationState.REPLICATE else NO_INDEX,
                epoch=progress.epoch,
            ),
        )

    def _notify_commit(self) -> None:
        """Idle links learn of a commit within milliseconds, busy ones by the appends that flow anyway."""
        self._commit_notice_due_ms = _FOREVER
        for peer, progress in self.progress.items():
            told = min(progress.match_index, self.commit_index)
            if progress.sent_commit < told:
                if self._now_ms - progress.last_sent_ms >= self.options.commit_notice_ms:
                    self._send_heartbeat(peer, progress)
                else:
                    self._commit_notice_due_ms = self._now_ms + self.options.commit_notice_ms

    # ------------------------------------------------------------------ transfer and preference (T§3.10)

    def _best_transferee(self) -> NodeId:
        timeout = self.options.election_timeout_ms
        alive = [
            peer
            for peer, progress in self.progress.items()
            if peer in self.configuration.all_voters
            and not progress.broken
            and self._now_ms - progress.last_contact_ms < timeout
        ]
        if not alive:
            raise ProposalRefusedError(RefusalReason.UNREACHABLE, "no follower")
        preferred = self.options.preferred_leader_ids
        near = self.log.last_index - self.options.max_transfer_lag
        matches = {peer: self.progress[peer].match_index for peer in alive}
        return max(alive, key=lambda peer: (matches[peer] >= near, peer in preferred, matches[peer], peer))

    def _send_timeout_now_if_ready(self, peer: NodeId) -> None:
        """The transferee has everything: let it campaign. Repeated on each heartbeat while the transfer runs."""
        if peer == self.transferee and self.progress[peer].match_index == self.log.last_index:
            self._send(peer, TimeoutNow(self.node_id, self.term))

    def _prefer_another_leader(self) -> None:
        """Hand over to a preferred node that is up and close enough (DLedger: preferredLeaderId)."""
        preferred = self.options.preferred_leader_ids
        if self.node_id in preferred or self.transferee is not None or not self.is_leader_ready:
            return
        recently = 3 * self.options.heartbeat_interval_ms
        ready = [
            peer
            for peer in preferred
            if peer in self.progress
            and peer in self.configuration.all_voters
            and not self.progress[peer].broken
            and self._now_ms - self.progress[peer].last_contact_ms < recently
            and self.log.last_index - self.progress[peer].match_index <= self.options.max_transfer_lag
        ]
        if ready:
            best = max(ready, key=lambda peer: self.progress[peer].match_index)
            self._event("prefers_another_leader", target=best)
            self.transfer(best, self._now_ms)

    # ------------------------------------------------------------------ linearizable reads (T§6.4)

    def _leader_read(self, request_id: int, origin: NodeId | None) -> None:
        """Note the commit index now; it may be read at once a majority still calls this node leader *after* now."""
        if not self.is_leader_ready:
            # Until the own term's first entry is committed the commit index may be behind (T§6.4, step 1).
            self._waiting_reads.append(_PendingRead(request_id, origin, NO_INDEX, 0))
            return
        # A round that is already under way began before this request and proves nothing for it: wait for the next.
        read = _PendingRead(request_id, origin, self.commit_index, self._round + 1)
        self._reads.append(read)
        if not self._round_open:
            self._start_round()

    def _start_round(self) -> None:
        self._round += 1
        self._round_open = True
        if not self.progress:
            self._confirm_reads()
        else:
            self._broadcast_heartbeat()

    def _confirm_reads(self) -> None:
        if not self._round_open:
            return
        if not self._round_is_confirmed():
            return
        self._round_open = False
        done = [read for read in self._reads if read.round <= self._round]
        self._reads = [read for read in self._reads if read.round > self._round]
        for read in done:
            self._finish_read(read, read.read_index)
        if self._reads:
            self._start_round()

    def _round_is_confirmed(self) -> bool:
        acked = {peer for peer, progress in self.progress.items() if progress.acked_round >= self._round}
        acked.add(self.node_id)
        if self._begins_the_log or self.configuration.all_voters <= acked:
            return has_quorum(self.configuration, acked)
        sworn = {peer for peer, progress in self.progress.items() if progress.sworn_round >= self._round}
        if not self._is_forgetful:
            sworn.add(self.node_id)
        return has_quorum(self.configuration, sworn)

    def _finish_read(self, read: _PendingRead, read_index: int | None) -> None:
        if read.origin is None:
            self._ready.reads.append(ReadState(read.request_id, read_index))
        else:
            index = REFUSED_READ if read_index is None else read_index
            self._send(read.origin, ReadIndexResponse(self.node_id, self.term, read.request_id, index))

    def _fail_reads(self) -> None:
        """Leadership or the leader is gone: whoever waits must ask again."""
        pending, self._reads, self._waiting_reads = self._reads + self._waiting_reads, [], []
        for read in pending:
            self._finish_read(read, None)
        for request_id in sorted(self._forwarded_reads):
            self._ready.reads.append(ReadState(request_id, None))
        self._forwarded_reads.clear()

    def _on_read_request(self, message: ReadIndexRequest) -> None:
        if message.sender in self.progress:
            self.progress[message.sender].heard(self._now_ms)
        asked = (message.sender, message.request_id)
        if any((read.origin, read.request_id) == asked for read in (*self._reads, *self._waiting_reads)):
            return
        if message.recollects and message.sender in self.progress:
            self.progress[message.sender].distrust()  # first: what is read must not rest on what the sender has lost
        self._leader_read(message.request_id, message.sender)

    def _refuse_read_request(self, message: ReadIndexRequest) -> None:
        self._send(message.sender, ReadIndexResponse(self.node_id, self.term, message.request_id, REFUSED_READ))

    def _on_read_response(self, message: ReadIndexResponse) -> None:
        if message.request_id == self._recollection_id and self.role is not Role.LEADER:
            if message.read_index != REFUSED_READ:
                self._recollected(message.read_index)
            return
        if message.request_id in self._forwarded_reads:
            self._forwarded_reads.discard(message.request_id)
            index = None if message.read_index == REFUSED_READ else message.read_index
            self._ready.reads.append(ReadState(message.request_id, index))

    # ------------------------------------------------------------------ output

    def _send(self, peer: NodeId, message: Message) -> None:
        """Messages that rest on a term or vote not yet durable wait for it; the others leave at once."""
        if self._hard_state_durable:
            self._ready.messages.append((peer, message))
        else:
            self._ready.messages_after_persist.append((peer, message))

    def _event(self, name: str, **facts: object) -> None:
        self._ready.events.append(CoreEvent(name, tuple(facts.items())))

    def _on_second_leader(self, message: Message) -> None:
        invariant(False, f"{message.sender} claims to lead term {self.term}, which this node leads")


_Handler = Callable[[RaftCore, "Message"], None]

_TABLE: list[tuple[tuple[Role | None, ...], type[Message], Callable[..., None]]] = [
    ((None,), RequestVote, RaftCore._on_request_vote),
    ((Role.CANDIDATE, Role.PRE_CANDIDATE), RequestVoteResponse, RaftCore._on_vote_response),
    ((Role.LEADER,), AppendEntries, RaftCore._on_second_leader),
    ((Role.LEADER,), Heartbeat, RaftCore._on_second_leader),
    ((None,), AppendEntries, RaftCore._on_append_entries),
    ((None,), Heartbeat, RaftCore._on_heartbeat),
    ((Role.LEADER,), AppendEntriesResponse, RaftCore._on_append_response),
    ((Role.LEADER,), HeartbeatResponse, RaftCore._on_heartbeat_response),
    ((Role.LEADER,), ReadIndexRequest, RaftCore._on_read_request),
    ((None,), ReadIndexRequest, RaftCore._refuse_read_request),
    ((None,), ReadIndexResponse, RaftCore._on_read_response),
    ((Role.FOLLOWER,), TimeoutNow, RaftCore._on_timeout_now),
]

_HANDLERS: Final[dict[tuple[Role | None, type[Message]], Callable[..., None]]] = {
    (role, kind): handler for roles, kind, handler in _TABLE for role in roles
}
"""(role, message) → what to do; role None: in every role that has no row of its own. No row: ignored."""
