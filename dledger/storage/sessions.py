"""Producer sessions: which entry is which sequence, so that a repeated append is answered and not appended again.

A session is opened by a *session* entry, whose ``channel`` is the session's number and whose body is the client's own
id. Entries with that number in ``channel`` follow; the k-th of them (from 0) is sequence k. Every replica builds the
same table from the headers, whatever the slices they came in.

Two tables: the *base* holds what is committed (and so never rolled back), the *tail* all of the log. A journal of the
runs between them rebuilds the tail after a truncation and feeds the base as the commit index rises.

The limits are part of the format: replicas evict alike because they count alike.
"""

from __future__ import annotations

import json
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from dledger.errors import SequenceForgottenError, SequenceGapError, SessionExpiredError
from dledger.storage.entry import SessionRun

__all__ = ["MAX_RUNS", "MAX_SESSIONS", "Session", "SessionJournal", "SessionTable"]

MAX_SESSIONS: Final = 4096
"""Sessions remembered; the least recently used one (by log position) goes first."""

MAX_RUNS: Final = 64
"""Runs of consecutive entries remembered for each session."""


@dataclass(slots=True)
class Session:
    """One session as the log shows it."""

    session_id: int
    client_id: bytes
    opened_index: int
    next_sequence: int = 0
    runs: deque[tuple[int, int, int]] = field(default_factory=deque)
    """(first sequence, first index, count), ascending; at most `MAX_RUNS`."""

    def copy(self) -> Session:
        return Session(self.session_id, self.client_id, self.opened_index, self.next_sequence, self.runs.copy())


class SessionTable:
    """Sessions by number, least recently used first."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[int, Session] = OrderedDict()
        self._by_client: dict[bytes, int] = {}
        self._last_id = 0

    def __len__(self) -> int:
        return len(self._sessions)

    def next_session_id(self) -> int:
        """The number that the next session entry gets: one more than the highest ever seen."""
        return self._last_id + 1

    def get(self, session_id: int) -> Session | None:
        return self._sessions.get(session_id)

    def find(self, client_id: bytes) -> Session | None:
        """Return the session that this client opened, if it is still remembered."""
        session_id = self._by_client.get(client_id)
        return None if session_id is None else self._sessions[session_id]

    def locate(self, session_id: int, first_sequence: int, count: int) -> list[tuple[int, int]]:
        """Return where the already appended beginning of ``count`` sequences stands: (first index, count) each.

        Empty: all are new. What the returned counts do not cover is new and comes next.

        Raises:
            SessionExpiredError: no such session (never opened, or evicted).
            SequenceGapError: earlier sequences have not been appended.
            SequenceForgottenError: appended so long ago that the indexes are forgotten.
        """
        session = self._sessions.get(session_id)
        if session is None:
            raise SessionExpiredError(f"session {session_id} is not known: open a new one")
        if first_sequence > session.next_sequence:
            raise SequenceGapError(
                f"session {session_id}: sequence {first_sequence} came before {session.next_sequence}; send that first"
            )
        end = min(first_sequence + count, session.next_sequence)
        found: list[tuple[int, int]] = []
        sequence = first_sequence
        for run_sequence, run_index, run_count in session.runs:
            if sequence >= end:
                break
            if run_sequence <= sequence < run_sequence + run_count:
                skip = sequence - run_sequence
                take = min(run_count - skip, end - sequence)
                found.append((run_index + skip, take))
                sequence += take
        if sequence < end:
            raise SequenceForgottenError(
                f"session {session_id}: sequence {first_sequence} was appended too long ago to remember where"
            )
        return found

    def apply(self, run: SessionRun) -> None:
        """Take in the next run of the log."""
        if run.client_id is not None:
            self._open(run.channel, run.client_id, run.first_index)
            return
        session = self._sessions.get(run.channel)
        if session is None:
            return  # evicted since: nothing is remembered of it
        self._sessions.move_to_end(run.channel)
        sequence, index, count = session.next_sequence, run.first_index, run.count
        if session.runs:
            last_sequence, last_index, last_count = session.runs[-1]
            if last_index + last_count == index and last_sequence + last_count == sequence:
                session.runs.pop()
                sequence, index, count = last_sequence, last_index, last_count + count
        session.runs.append((sequence, index, count))
        if len(session.runs) > MAX_RUNS:
            session.runs.popleft()
        session.next_sequence = sequence + count

    def _open(self, session_id: int, client_id: bytes, index: int) -> None:
        self._forget(self._by_client.get(client_id, 0))
        self._forget(session_id)
        self._sessions[session_id] = Session(session_id, client_id, index)
        self._by_client[client_id] = session_id
        self._last_id = max(self._last_id, session_id)
        if len(self._sessions) > MAX_SESSIONS:
            self._forget(next(iter(self._sessions)))

    def _forget(self, session_id: int) -> None:
        session = self._sessions.pop(session_id, None)
        if session is not None:
            self._by_client.pop(session.client_id, None)

    def copy(self) -> SessionTable:
        table = SessionTable()
        table._sessions = OrderedDict((number, session.copy()) for number, session in self._sessions.items())
        table._by_client = dict(self._by_client)
        table._last_id = self._last_id
        return table

    def to_json(self) -> str:
        """Serialise, least recently used first."""
        rows = [
            [s.session_id, s.client_id.hex(), s.opened_index, s.next_sequence, [list(run) for run in s.runs]]
            for s in self._sessions.values()
        ]
        return json.dumps({"last_id": self._last_id, "sessions": rows}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> SessionTable:
        data = json.loads(text)
        table = cls()
        table._last_id = int(data["last_id"])
        for session_id, client_id, opened_index, next_sequence, runs in data["sessions"]:
            session = Session(session_id, bytes.fromhex(client_id), opened_index, next_sequence)
            session.runs.extend((sequence, index, count) for sequence, index, count in runs)
            table._sessions[session_id] = session
            table._by_client[session.client_id] = session_id
        return table


class SessionJournal:
    """Base, journal and tail together.

    Invariant: tail == base + journal.
    """

    def __init__(self, base: SessionTable, base_index: int) -> None:
        self.base = base
        self.base_index = base_index
        self.tail = base.copy()
        self._journal: deque[SessionRun] = deque()

    def append(self, runs: Iterable[SessionRun]) -> None:
        for run in runs:
            self._journal.append(run)
            self.tail.apply(run)

    def commit(self, index: int) -> None:
        """Fold everything up to ``index`` into the base."""
        if index <= self.base_index:
            return
        self.base_index = index
        journal = self._journal
        while journal and journal[0].first_index <= index:
            run = journal.popleft()
            inside = index - run.first_index + 1
            if inside < run.count:
                journal.appendleft(SessionRun(run.channel, index + 1, run.count - inside))
                run = SessionRun(run.channel, run.first_index, inside)
            self.base.apply(run)

    def truncate(self, from_index: int) -> None:
        """Forget what stood at or after ``from_index`` (which is beyond the base)."""
        kept: deque[SessionRun] = deque()
        for run in self._journal:
            if run.first_index >= from_index:
                break
            inside = min(run.count, from_index - run.first_index)
            kept.append(run if inside == run.count else SessionRun(run.channel, run.first_index, inside))
        self._journal = kept
        self.tail = self.base.copy()
        for run in kept:
            self.tail.apply(run)
