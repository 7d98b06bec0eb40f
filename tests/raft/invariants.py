"""What must hold of a group at all times, checked after every step of every node (Raft figure 3, and ours).

`Checker` watches a `World`. It knows more than any node does: all logs, all disks, every entry's token.
"""

from __future__ import annotations

from dledger.raft.messages import (
    AppendEntries,
    AppendEntriesResponse,
    HeartbeatResponse,
    Message,
    RequestVote,
    RequestVoteResponse,
    Role,
)
from tests.raft.harness import Node, Record, Watcher, World


class BrokenError(AssertionError):
    """An invariant does not hold."""


def check(condition: bool, what: str) -> None:
    if not condition:
        raise BrokenError(what)


class Checker(Watcher):
    """Raises `BrokenError` at the first step after which something is wrong.

    ``strict_disks``: a committed entry is on a majority's disks. Not so once a folder was wiped: then one good copy of
    each committed entry must be left.
    """

    def __init__(self, world: World, *, strict_disks: bool = True) -> None:
        self.world = world
        self.strict_disks = strict_disks
        self.committed: list[Record] = []
        self.leaders: dict[int, str] = {}
        self.votes: dict[tuple[str, int], str] = {}  # (voter, term) → candidate
        self.seen_commit: dict[str, int] = {}
        self.seen_term: dict[str, int] = {}
        self.reads: dict[int, int] = {}  # what was acknowledged when the read began
        self.reads_done = 0
        self.elections = 0
        world.watchers.append(self)

    # ------------------------------------------------------------------ what the test tells

    def restarted(self, node: Node) -> None:
        """A node came back: commit index and term start again from its disk (`sending` sees what was promised)."""
        self.seen_commit[node.node_id] = -1
        check(node.core.term == node.disk_hard_state.term, "a restart lost the term")
        self.seen_term[node.node_id] = node.core.term

    def wiped(self, node: Node) -> None:
        self.strict_disks = False
        self.votes = {key: candidate for key, candidate in self.votes.items() if key[0] != node.node_id}

    def read_begins(self, request_id: int) -> None:
        self.reads[request_id] = len(self.committed) - 1

    # ------------------------------------------------------------------ what it sees

    def pumped(self, node: Node) -> None:
        core, name = node.core, node.node_id
        check(core.last_index == len(node.log) - 1, f"{name}: core and store disagree on the end of the log")
        check(core.log.last_term == (node.log[-1].term if node.log else -1), f"{name}: and on its last term")
        check(core.stable_index <= len(node.disk_log) - 1, f"{name} counts what its disk does not have")
        check(core.term >= self.seen_term.get(name, 0), f"{name}: the term fell")
        self.seen_term[name] = core.term
        if core.role is Role.LEADER:
            self._leads(node)
        self._commits(node)

    def _leads(self, node: Node) -> None:
        term, name = node.core.term, node.node_id
        if term in self.leaders:
            check(self.leaders[term] == name, f"election safety: {self.leaders[term]} and {name} lead term {term}")
            return
        self.leaders[term] = name
        self.elections += 1
        older = [record for record in self.committed if record.term < term]
        check(
            node.log[: len(older)] == older,
            f"leader completeness: {name} leads term {term} without all that is committed",
        )
        check(node.disk_hard_state.term == term, f"{name} leads a term that its disk does not know")

    def _commits(self, node: Node) -> None:
        core, name = node.core, node.node_id
        seen = self.seen_commit.get(name, -1)
        check(core.commit_index >= seen, f"{name}: the commit index fell")
        check(core.commit_index < len(node.log), f"{name}: the commit index is beyond the log")
        for index in range(seen + 1, core.commit_index + 1):
            record = node.log[index]
            if index < len(self.committed):
                check(self.committed[index] == record, f"state machine safety: {name} commits another entry at {index}")
                continue
            check(core.role is Role.LEADER, f"{name} commits {index}, which no leader has committed")
            self._durable(index, record)
            self.committed.append(record)
        self.seen_commit[name] = core.commit_index

    def _durable(self, index: int, record: Record) -> None:
        voters = self.world.configuration.voters
        copies = sum(
            1
            for voter in voters
            if index < len(self.world[voter].disk_log) and self.world[voter].disk_log[index] == record
        )
        needed = len(voters) // 2 + 1 if self.strict_disks else 1
        check(copies >= needed, f"entry {index} is committed with {copies} durable copies")

    def sending(self, node: Node, peer: str, message: Message) -> None:
        """Nothing leaves that rests on something not yet durable (Raft §5.1, figure 2)."""
        disk, name = node.disk_hard_state, node.node_id
        poll = (isinstance(message, RequestVote) and message.pre_vote) or (
            isinstance(message, RequestVoteResponse) and message.pre_vote and message.granted
        )
        check(poll or disk.term >= message.term, f"{name} speaks in term {message.term} before it is durable")
        if isinstance(message, RequestVoteResponse) and message.granted and not message.pre_vote:
            check(disk.term > message.term or disk.vote == peer, f"{name} grants a vote that is not on its disk")
            given = self.votes.setdefault((name, message.term), peer)
            check(given == peer, f"{name} votes for {given} and for {peer} in term {message.term}")
        if isinstance(message, RequestVote) and not message.pre_vote:
            check(disk.term > message.term or disk.vote == name, f"{name} campaigns without a durable vote for itself")
            given = self.votes.setdefault((name, message.term), name)
            check(given == name, f"{name} votes for {given} and for itself in term {message.term}")
        if isinstance(message, AppendEntriesResponse | HeartbeatResponse):
            check(
                message.match_index <= len(node.disk_log) - 1, f"{name} acknowledges {message.match_index}, not durable"
            )
        if isinstance(message, AppendEntries):
            check(message.prev_log_index >= -1 and message.last_index >= message.prev_log_index, "a bad range")
            covered = tuple(record.term for record in message.payload) if isinstance(message.payload, tuple) else ()
            check(len(covered) == message.last_index - message.prev_log_index, "payload and range differ")
            check(not covered or message.terms[0] == (message.prev_log_index + 1, covered[0]), "runs start elsewhere")

    def read_finished(self, node: Node, request_id: int, read_index: int | None) -> None:
        begun = self.reads.pop(request_id, None)
        if read_index is None or begun is None:
            return
        self.reads_done += 1
        check(read_index >= begun, f"a stale read: {read_index} although {begun} was acknowledged before it began")
        check(read_index < len(self.committed), f"a read at {read_index}, which is not committed")

    def check_logs(self) -> None:
        """Log matching and committed prefixes, over everything (dear: once in a while)."""
        nodes = list(self.world.nodes.values())
        for node in nodes:
            known = self.seen_commit.get(node.node_id, -1)
            if node.alive:
                check(
                    node.log[: known + 1] == self.committed[: known + 1], f"{node.node_id}: a committed entry changed"
                )
            terms = node.terms
            check(terms == sorted(terms), f"{node.node_id}: terms fall along the log")
        logs = [log for node in nodes for log in (node.log, node.disk_log)]
        for number, one in enumerate(logs):
            for other in logs[:number]:
                shared = min(len(one), len(other))
                while shared and one[shared - 1].term != other[shared - 1].term:
                    shared -= 1
                check(one[:shared] == other[:shared], "log matching: same index and term, another history")
